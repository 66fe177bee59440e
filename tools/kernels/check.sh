#!/usr/bin/env bash
# Assembles the kernels for every kind of device and shows what they take: see README.md beside this.
# PYTHON names an interpreter that has the packages of requirements.txt; else an environment is made in target/.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../target/kernel-tools
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$venv/bin/python
    if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
        python3 -m venv --clear "$venv"
        if ! said=$("$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" 2>&1); then
            echo "skipped: the wheels of tools/kernels/requirements.txt cannot be had: $(tail -n 1 <<<"$said")"
            exit 0
        fi
        cp "$here/requirements.txt" "$venv/requirements.txt"
    fi
fi
exec "$PYTHON" "$here/check.py" "$@"
