#!/usr/bin/env bash
# From a fresh clone to a pretrained checkpoint that fills gaps in text: one command.
#
#   bash launch/quickstart.sh [--out DIR] [--corpus PATH]... [--processes N] [--steps N] ...
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment hf,mpi
exec "$VENV/bin/spade" quickstart "$@"
