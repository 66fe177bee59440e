#!/usr/bin/env bash
# Clients that people already have, unmodified, against a real server: tests/clients/run.sh [BINARY]. Needs python3 with
# venv; what it installs goes into a folder of its own under target/. Where the registry cannot be reached it says so and
# ends well: nothing was found wrong.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:-target/debug/polydelta}
if [ ! -x "$binary" ]; then
    echo "there is no $binary: cargo build, or name another" >&2
    exit 2
fi

venv=target/clients
python3 -m venv "$venv"
if ! "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt; then
    echo "SKIPPED: the clients cannot be installed, the registry is out of reach"
    exit 0
fi

work=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -r "$work"
}
trap cleanup EXIT
echo "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}" > "$work/chat.jinja"
adapters=()
for name in headline sentiment text-to-sql; do
    adapters+=(--adapter "$name=models/demo/adapters/$name")
done
"$binary" serve --model models/demo "${adapters[@]}" --chat-template "$work/chat.jinja" --store "$work/store" \
    --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --log-format json 2> "$work/log" &
server=$!
address=
for _ in $(seq 600); do
    address=$(sed -n 's/.*"grpc":"\([^"]*\)".*/\1/p' "$work/log")
    [ -z "$address" ] || break
    if ! kill -0 "$server" 2>/dev/null; then
        cat "$work/log" >&2
        exit 1
    fi
    sleep 0.1
done
"$venv/bin/python" tests/clients/openai_client.py "http://$address"
