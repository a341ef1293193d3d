#!/usr/bin/env bash
# Counts the instructions of every part: scripts/bench-instructions.sh [WORDS]
# By the processor's own counters, or with valgrind where they cannot be read. Without either it says so and ends well.
set -euo pipefail
cd "$(dirname "$0")/.."
filter=${1:-}

# Name, amount, unit and instructions, with tabs between, as a table.
show() {
    awk -F '\t' '{ printf "%-64s %14d instructions %12.2f for each %s\n", $1, $4, $4 / $2, $3 }'
}

cargo=${CARGO:-cargo}
binary=$($cargo bench ${PROFILE:+--profile "$PROFILE"} --locked --bench instructions --no-run --message-format=json |
    grep '"name":"instructions"' | grep -o '"executable":"[^"]*"' | tail -n 1 | cut -d '"' -f 4)
test -x "$binary"

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
status=0
"$binary" --bench ${filter:+"$filter"} > "$out/counts" || status=$?
if [ $status -eq 0 ]; then
    echo "counted by the processor"
    show < "$out/counts"
    exit
fi
test $status -eq 3 || exit $status
if ! command -v valgrind > /dev/null; then
    echo "and valgrind, which could count instead, is not installed: instructions were NOT counted" >&2
    exit 0
fi
echo "counted by valgrind, without AVX-512, which it does not know"
# One file for each call of `counted`, in the order of the parts.
valgrind --tool=callgrind --callgrind-out-file="$out/callgrind" --toggle-collect=instructions::counted \
    --dump-after=instructions::counted --compress-strings=no "$binary" --callgrind ${filter:+"$filter"} \
    > "$out/names" 2> "$out/log" || { tail -n 20 "$out/log" >&2; exit 1; }
number=0
while IFS= read -r line; do
    number=$((number + 1))
    count=$(grep -h '^totals:\|^summary:' "$out/callgrind.$number" | head -n 1 | grep -o '[0-9]*' | head -n 1)
    printf '%s\t%s\n' "$line" "${count:-0}"
done < "$out/names" | show
