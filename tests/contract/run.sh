#!/usr/bin/env bash
# Holds alchemi to third parties: an issuer that is not ours, Zitadel's own descriptors and its official clients.
# ALCHEMI_BIN names a gateway to test instead of building one; arguments choose tests (files of this folder).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

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
(($#)) || set -- *.test.mjs
exec node --test --test-reporter=spec "$@"
