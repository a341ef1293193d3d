#!/usr/bin/env bash
# Plants every fault of tests/mutants.txt in turn and demands that its test fails. See src/fault.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

# A directory of its own, so that no build with faults ever lies where an ordinary one belongs.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/mutants"
CARGO="${CARGO:-cargo}"
list=$(grep -v '^#' tests/mutants.txt)
files=$(awk '{ print $2 }' <<<"$list" | sort -u)

arguments=()
for file in $files; do arguments+=(--test "$file"); done
declare -A binary
while read -r name path; do
    binary[$name]=$path
done < <("$CARGO" test --release --locked --features mutants "${arguments[@]}" --no-run 2>&1 |
    tee >(cat >&2) | sed -nE 's|.*Executable tests/(.*)\.rs \((.*)\)|\1 \2|p')

run() { # FILE TEST: runs one test, which is given two minutes
    [ -n "${binary[$1]:-}" ] || { echo "no test file $1" >&2; exit 1; }
    S2SFS_CRASH_CASES=100 timeout 120 "${binary[$1]}" --exact "$2" 2>&1
}

echo "Without a fault:"
while read -r file test; do
    output=$(S2SFS_FAULT='' run "$file" "$test") && grep -q '^test result: ok. 1 passed' <<<"$output" ||
        { echo "$output"; echo "$file::$test does not pass" >&2; exit 1; }
    echo "  passed  $file::$test"
done < <(awk '{ print $2, $3 }' <<<"$list" | sort -u)

echo
printf '%-32s %-8s %s\n' FAULT CAUGHT TEST
survivors=0
while read -r fault file test; do
    caught=NO
    # Only a test that says no counts, not one that hangs or cannot be run.
    output=$(S2SFS_FAULT=$fault run "$file" "$test") || true
    grep -q '^test result: FAILED. 0 passed; 1 failed' <<<"$output" && caught=yes ||
        survivors=$((survivors + 1))
    printf '%-32s %-8s %s\n' "$fault" "$caught" "$file::$test"
done <<<"$list"
echo
echo "$(wc -l <<<"$list") faults planted, $survivors not noticed"
[ "$survivors" -eq 0 ]
