#!/bin/sh
# Makes .venv-fuxictr: FuxiCTR from PyPI, and its model zoo, whose WuKong and DIN are in no wheel, at the commit that
# holds the same version.
#   benchmarks/quality/fuxictr/setup.sh [REPOSITORY [PIP ARGUMENTS]]
# REPOSITORY: where the zoo is cloned from. On Linux, give pip the CPU index of PyTorch, or it takes a CUDA build.
set -eu

COMMIT=0245987fdc1d43c36164ea496a02324885a8557a
REPOSITORY=${1:-https://github.com/reczoo/FuxiCTR}
[ $# -eq 0 ] || shift
VENV=.venv-fuxictr

test -x "$VENV/bin/python" || python3 -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet "$@" -r "$(dirname "$0")/requirements.txt"
test -d "$VENV/zoo" || git clone --quiet --no-checkout "$REPOSITORY" "$VENV/zoo"
git -C "$VENV/zoo" checkout --quiet "$COMMIT"
