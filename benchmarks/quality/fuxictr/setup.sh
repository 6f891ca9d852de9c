#!/bin/sh
# Makes .venv-fuxictr: FuxiCTR and its model zoo, which has WuKong and DIN; arguments are those of benchmarks/peers.sh.
#   benchmarks/quality/fuxictr/setup.sh [REPOSITORY [PIP ARGUMENTS]]
set -eu
HERE=$(dirname "$0")
exec "$HERE/../../peers.sh" .venv-fuxictr "$HERE/requirements.txt" "$@"
