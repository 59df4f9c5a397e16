#!/usr/bin/env bash
# Runs the end-to-end tests: the official SDKs through alchemi, in front of a real LiteLLM.
# Arguments go to pytest. ALCHEMI_BIN names a gateway to test instead of building one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$("$root/tests/e2e/setup.sh")

if [[ -z "${ALCHEMI_BIN:-}" ]]; then
    cargo build --quiet --manifest-path "$root/Cargo.toml" --bin alchemi
    ALCHEMI_BIN=${CARGO_TARGET_DIR:-$root/target}/debug/alchemi
fi
ALCHEMI_BIN=$(realpath "$ALCHEMI_BIN")
export ALCHEMI_BIN
cd "$root/tests/e2e"
exec "$python" -m pytest "$@"
