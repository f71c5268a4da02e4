#!/usr/bin/env bash
# Trains a small RevHRNet on a pretrained backbone and shows what it sees. Needs Python 3.11 or newer and pip; no GPU, no data.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"

"$PYTHON" scripts/quickstart.py "$@"
