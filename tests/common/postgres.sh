#!/bin/sh
# Runs a private PostgreSQL on a socket in a temporary directory for as long as standard input stays open, then removes
# it. Prints the URL of its database `postgres` once it takes connections.
# Whoever starts this holds the other end of standard input: when that process ends, in whatever way, so does the server.
# Exit status 3: PostgreSQL is not installed.
set -eu
trap '' INT TERM HUP # a Ctrl-C for the tests must not stop the clean-up

bin=
for candidate in "$(dirname "$(command -v initdb || echo /)")" /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin; do
    if [ -x "$candidate/initdb" ] && [ -x "$candidate/pg_ctl" ]; then
        bin=$candidate
        break
    fi
done
if [ -z "$bin" ]; then
    echo "PostgreSQL is not installed: initdb is neither on PATH nor in /usr/lib/postgresql" >&2
    exit 3
fi
if [ "$(id -u)" = 0 ]; then # the server refuses to run as root; this file may be unreadable for others
    exec runuser -u postgres -- sh -c "$(cat "$0")"
fi

cd /
# In memory where there is room for it: databases of tests are thousands of small files.
base=/tmp
free=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo 2>/dev/null || echo 0)
room=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
if [ -w /dev/shm ] && [ "${free:-0}" -gt 8000000 ] && [ "${room:-0}" -gt 6000000 ]; then
    base=/dev/shm
fi
dir=$(mktemp -d "$base/alchemi-postgres.XXXXXX")
remove() {
    "$bin/pg_ctl" stop -D "$dir/data" -m immediate -s >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap remove EXIT
if ! {
    "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync &&
        "$bin/pg_ctl" start -D "$dir/data" -w -l "$dir/server.log" -o "-k $dir -c listen_addresses= -c max_connections=300 \
            -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
} >"$dir/start.log" 2>&1; then
    cat "$dir"/*.log >&2
    exit 1
fi
echo "postgres://postgres@localhost/postgres?host=$dir"
cat >/dev/null
