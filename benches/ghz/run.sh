#!/usr/bin/env bash
# Runs every configuration beside this file against a server and prints one line for each: requests a second, latencies, statuses.
# Usage: run.sh [HOST:PORT]
set -euo pipefail
cd "$(dirname "$0")/../.."
host=${1:-127.0.0.1:50051}

printf '%-18s %12s %10s %10s %10s  %s\n' load requests/s p50 p95 p99 statuses
for config in benches/ghz/*.json; do
    ghz --config "$config" --format json "$host" | python3 benches/ghz/summary.py "$(basename "$config" .json)"
done
