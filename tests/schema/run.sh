#!/usr/bin/env bash
# Holds a running alchemi to its own description: Schemathesis calls every operation of /openapi.json with what the
# description allows and with what it does not, as the operator and as an account's admin. schemathesis.toml says how.
# Arguments go to `schemathesis run`. ALCHEMI_BIN names a gateway to test instead of building one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")

if [[ -z "${ALCHEMI_BIN:-}" ]]; then
    cargo build --quiet --manifest-path "$root/Cargo.toml" --bin alchemi
    ALCHEMI_BIN=$target/debug/alchemi
fi
ALCHEMI_BIN=$(realpath "$ALCHEMI_BIN")

venv=$target/schema-venv
stamp=$(cat "$here/requirements.txt" "$here/constraints.txt" | sha256sum | cut -d' ' -f1)
if [[ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ]]; then
    rm -rf "$venv"
    mkdir -p "$target"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
        --requirement "$here/requirements.txt" --constraint "$here/constraints.txt"
    echo "$stamp" >"$venv/.stamp"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# What runs in the background does not hear of Ctrl-C.
trap 'trap - INT; kill 0' INT
cd "$folder"

# All operations as one caller, whose token is in the file of that name, with a gateway and a database of its own.
as() {
    local caller=$1 home=$1.d failed=0 url account
    shift
    "$ALCHEMI_BIN" dev --port 0 --data-dir "$home" >"$home.out" 2>"$home.err" &
    gateway=$!
    trap 'kill "$gateway" 2>/dev/null || true; wait "$gateway" 2>/dev/null || true' EXIT
    for _ in {1..300}; do
        grep -q 'Ctrl-C stops it' "$home.out" && break
        kill -0 "$gateway" 2>/dev/null || break
        sleep 0.1
    done
    url=$(sed -n 's/^ *gateway  *\(http[^ ]*\).*/\1/p' "$home.out")
    account=$(sed -n 's/^ *account .*(\([0-9a-f-]\{36\}\)).*/\1/p' "$home.out")
    if [[ -z "$url" || -z "$account" ]]; then
        echo "alchemi dev did not start:"
        cat "$home.out" "$home.err"
        return 1
    fi
    ALCHEMI_ACCOUNT=$account "$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$url/openapi.json" \
        --header "Authorization: Bearer $(cat "$home/$caller")" "$@" || failed=1
    # A run that deletes the account it acts in would test refusals alone.
    if ! "$venv/bin/python" - "$url/v1/accounts/$account" "$(cat "$home/master.key")" <<'PYTHON'; then
import sys, requests
sys.exit(requests.get(sys.argv[1], headers={"Authorization": f"Bearer {sys.argv[2]}"}, timeout=20).status_code != 200)
PYTHON
        echo "the seeded account is gone after the run"
        failed=1
    fi
    return "$failed"
}

# Beside each other: neither keeps more than one core busy.
running=()
for caller in master.key admin.token; do
    as "$caller" "$@" 2>&1 | sed --unbuffered "s/^/$caller: /" &
    running+=($!)
done
failed=0
for job in "${running[@]}"; do
    wait "$job" || failed=1
done
exit "$failed"
