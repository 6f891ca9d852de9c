#!/bin/sh
# Makes .venv-peers: the libraries from PyPI, and FuxiCTR's model zoo at the commit of the same version.
#   benchmarks/speed/setup.sh [REPOSITORY [PIP ARGUMENTS]]
# REPOSITORY: where the zoo is cloned from. On Linux, give pip the CPU index of PyTorch, or it takes a CUDA build.
set -eu

COMMIT=0245987fdc1d43c36164ea496a02324885a8557a
REPOSITORY=${1:-https://github.com/reczoo/FuxiCTR}
[ $# -eq 0 ] || shift
VENV=.venv-peers

test -x "$VENV/bin/python" || python3 -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet "$@" torch==2.13.0
"$VENV/bin/python" -m pip install --quiet "$@" fuxictr==2.3.10 deepctr-torch==0.3.0 torch-rechub==0.9.0 pyarrow
test -d "$VENV/zoo" || git clone --quiet --no-checkout "$REPOSITORY" "$VENV/zoo"
git -C "$VENV/zoo" checkout --quiet "$COMMIT"
