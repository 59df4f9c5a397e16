#!/usr/bin/env bash
# Makes the virtual environment of the end-to-end tests; does nothing when it is up to date.
# ALCHEMI_E2E_VENV says where (default target/e2e-venv). Prints the environment's python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(realpath -m "${ALCHEMI_E2E_VENV:-$here/../../target/e2e-venv}")
stamp=$(cat "$here/requirements.txt" "$here/constraints.txt" | sha256sum | cut -d' ' -f1)

if [[ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ]]; then
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
        --requirement "$here/requirements.txt" --constraint "$here/constraints.txt" >&2
    echo "$stamp" >"$venv/.stamp"
fi
echo "$venv/bin/python"
