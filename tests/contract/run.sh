#!/usr/bin/env bash
# Holds alchemi to third parties: an issuer that is not ours, Zitadel's own descriptors, its models and official clients.
# No Zitadel runs here; with ZITADEL_LIVE_URL one that does is asked too (see live.test.mjs).
# ALCHEMI_BIN names a gateway to test instead of building one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")

cargo build --quiet --manifest-path "$root/Cargo.toml" --example zitadel-stand-in --example zitadel-calls
export ZITADEL_STAND_IN=$target/debug/examples/zitadel-stand-in
export ALCHEMI_EXCHANGES=$target/contract-exchanges.json
"$target/debug/examples/zitadel-calls" >"$ALCHEMI_EXCHANGES"
if [[ -z "${ALCHEMI_BIN:-}" ]]; then
    cargo build --quiet --manifest-path "$root/Cargo.toml" --bin alchemi
    ALCHEMI_BIN=$target/debug/alchemi
fi
ALCHEMI_BIN=$(realpath "$ALCHEMI_BIN")
export ALCHEMI_BIN

cd "$here"
if [[ package-lock.json -nt node_modules/.package-lock.json ]]; then
    npm ci --silent --no-audit --no-fund
fi
venv=$target/contract-venv
stamp=$(cat requirements.txt constraints.txt | sha256sum | cut -d' ' -f1)
if [[ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ]]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --requirement requirements.txt --constraint constraints.txt
    echo "$stamp" >"$venv/.stamp"
fi

"$venv/bin/python" -W ignore management.py "$ALCHEMI_EXCHANGES"
exec node --test --test-reporter=spec ./*.test.mjs
