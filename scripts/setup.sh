#!/bin/sh
# Finds a Python that can make the environment and hands over to setup_env.py.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "setup: $1" >&2
    exit 1
}

command -v git >/dev/null 2>&1 || fail "git is missing: install it with your package manager"

# The upper end is the newest Python that vLLM supports.
right_version='import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
without_venv=

# $1: an interpreter. It replaces this process if it will do.
try() {
    "$1" -c "$right_version" >/dev/null 2>&1 || return 0
    if "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        exec "$1" scripts/setup_env.py
    fi
    without_venv=${without_venv:-$1}
}

if [ -n "${PYTHON:-}" ]; then
    try "$PYTHON"
    [ -n "$without_venv" ] || fail "PYTHON=$PYTHON is not a Python 3.11 to 3.14: name one, or leave PYTHON out"
else
    # 3.11 first: it is what the project is developed and tested with.
    for candidate in python3.11 python3.12 python3.13 python3 python3.14 python; do
        try "$candidate"
    done
fi

[ -z "$without_venv" ] ||
    fail "$without_venv lacks the venv module: install it (Debian and Ubuntu: the package python3-venv)"
fail "no Python 3.11 to 3.14 found: install one, or name it with 'make setup PYTHON=/path/to/python'"
