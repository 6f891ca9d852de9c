#!/bin/sh
# Makes an environment of peers from PyPI, with FuxiCTR's model zoo, which is in no wheel, at the commit of the same
# version. The setup.sh of speed and of quality/fuxictr call it.
#   benchmarks/peers.sh ENVIRONMENT REQUIREMENTS [REPOSITORY [PIP ARGUMENTS]]
# REPOSITORY: where the zoo is cloned from. On Linux, give pip the CPU index of PyTorch, or it takes a CUDA build.
set -eu

COMMIT=0245987fdc1d43c36164ea496a02324885a8557a
VENV=$1
REQUIREMENTS=$2
shift 2
REPOSITORY=${1:-https://github.com/reczoo/FuxiCTR}
[ $# -eq 0 ] || shift

test -x "$VENV/bin/python" || python3 -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet "$@" -r "$REQUIREMENTS"
test -d "$VENV/zoo" || git clone --quiet --no-checkout "$REPOSITORY" "$VENV/zoo"
git -C "$VENV/zoo" checkout --quiet "$COMMIT"
