#!/usr/bin/env bash
# Runs the tests; makes the environment first if it is missing. With --all also those marked slow, as before a change lands.
# Other arguments go to pytest: bash scripts/test.sh -k camvid. TEST_GPU=1 shows the tests the GPUs, which they do not see otherwise.
# With the lowest versions that are supported, in an environment of its own: pip install -e ".[test]" -c constraints-lowest.txt && pytest.
# They come in random order; the first lines say its seed, and --randomly-seed=N repeats it.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"

case "${1:-}" in
    --all) shift ;;
    *) set -- -m "not slow" "$@" ;;
esac
"$PYTHON" -m ruff check .
# One thread a process: two processes with two threads each would fight for two cores.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 "$@"
