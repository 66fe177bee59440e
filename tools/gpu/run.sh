#!/usr/bin/env bash
# The tests of the CUDA backend on the GPU of this machine and, where its binary is given, the bench `gpu`; JSON documents about
# both: see README.md beside this.
set -euo pipefail
out=${1:?where to write: a folder}
cuda=${2:?the test binary cuda}
numbers=${3:?the test binary numbers}
bench=${4-}
mkdir -p "$out"
device=$(nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total --format=csv,noheader | head -n 1)
echo "on $device"
export POLYDELTA_TEST_GPU=1
failed=0

# run NAME COMMAND...: its output to a file, its end and its seconds to the document.
lines=()
run() {
    local name=$1 began=$SECONDS rc=0
    shift
    "$@" >"$out/$name.txt" 2>&1 || rc=$?
    lines+=("    {\"name\": \"$name\", \"rc\": $rc, \"seconds\": $((SECONDS - began)), \"said\": \"$({ grep -E '^test result' "$out/$name.txt" || true; } | tr -d '"\n')\"}")
    [ "$rc" = 0 ] || { failed=1; tail -n 20 "$out/$name.txt"; }
    echo "$name: rc $rc"
}

run ops "$cuda" --test-threads 1
run numbers "$numbers" device:: --test-threads 1
if [ -n "$bench" ]; then
    run bench "$bench" --out "$out/bench.json" --scratch "${SCRATCH:-/tmp}"
    if [ -f "$out/bench.json" ]; then
        slug=$(tr -cs 'A-Za-z0-9' '-' <<<"${device%%,*}" | sed 's/-$//')
        cp "$out/bench.json" "$(dirname "$0")/../../docs/gpu/$(date -u +%F)-$slug.json"
    fi
fi
if command -v compute-sanitizer >/dev/null; then
    run memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$cuda" --test-threads 1
    run racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$cuda" --test-threads 1
else
    echo "compute-sanitizer is not here: no memcheck and no racecheck"
fi

{
    printf '{\n  "device": "%s",\n  "commit": "%s",\n  "runs": [\n' "$device" "${COMMIT:-unknown}"
    printf '%s' "${lines[0]}"
    printf ',\n%s' "${lines[@]:1}"
    printf '\n  ]\n}\n'
} >"$out/run.json"
cat "$out/run.json"
exit "$failed"
