# Makes .venv with the pinned packages, once; later calls return at once. Sourced by the other scripts, which then use $PYTHON.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=.venv/bin/python

base_python=$(command -v python3 || command -v python) || { echo "error: no python3 found; install Python 3.11 or newer" >&2; exit 1; }
"$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$base_python" --version) is too old; Python 3.11 or newer is needed" >&2
    exit 1
}

wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "Making .venv with the pinned packages (6 GB, some minutes; once only)"
    [ -x "$PYTHON" ] || "$base_python" -m venv .venv
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lite,test]'
    echo "$wanted" > .venv/installed
fi
