#!/bin/sh
# Makes .venv-peers: FuxiCTR, DeepCTR-Torch and torch-rechub; arguments are those of benchmarks/peers.sh.
#   benchmarks/speed/setup.sh [REPOSITORY [PIP ARGUMENTS]]
set -eu
HERE=$(dirname "$0")
exec "$HERE/../peers.sh" .venv-peers "$HERE/requirements.txt" "$@"
