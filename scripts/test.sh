#!/usr/bin/env bash
# Runs the tests; makes the environment first if it is missing. Arguments go to pytest: bash scripts/test.sh -m "not slow" -k camvid
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"

"$PYTHON" -m ruff check .
# One thread a process: two processes with two threads each would fight for two cores.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 "$@"
