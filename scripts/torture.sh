#!/usr/bin/env bash
# Hours of breaking: kills, power cuts, crashes, damage, stress. PARTS chooses some of them, by default all:
#
#   kill     S2SFS_KILL_ROUNDS (200) times SIGKILL of the daemon under load
#   power    S2SFS_POWER_CUTS (504) power cuts of a store on ext4
#   crash    S2SFS_CRASH_CASES (2000) histories of a volume, each cut at every operation
#   damage   S2SFS_MUTATIONS (10000) random mutations of stores
#   stress   S2SFS_STRESS_SECONDS (600) of readers and writers beside settling and reclaiming
#   memory   STRESS_SECONDS (3600) of stress-ng on a mount, with the daemon's memory watched
#
# Results are in target/torture; with SPLICE=1 the figures are written into docs/reliability.md too.
set -uo pipefail
cd "$(dirname "$0")/.."

PARTS="${PARTS:-kill power crash damage stress memory}"
STRESS_SECONDS="${STRESS_SECONDS:-3600}"
out=target/torture
mkdir -p "$out"
CARGO="${CARGO:-cargo}"

part_kill() { cargo_test kill; }
part_power() { cargo_test power_cut; }
part_crash() { cargo_test volume_crash && cargo_test store_crash; }
part_damage() { cargo_test damage_corpus; }
part_stress() { cargo_test volume_stress; }
part_memory() { scripts/torture-memory.sh "$STRESS_SECONDS" "$out"; }

export S2SFS_KILL_ROUNDS="${S2SFS_KILL_ROUNDS:-200}"
export S2SFS_POWER_CUTS="${S2SFS_POWER_CUTS:-504}"
export S2SFS_CRASH_CASES="${S2SFS_CRASH_CASES:-2000}"
export S2SFS_MUTATIONS="${S2SFS_MUTATIONS:-10000}"
export S2SFS_STRESS_SECONDS="${S2SFS_STRESS_SECONDS:-600}"

cargo_test() {
    "$CARGO" test --release --locked --test "$1" -- --nocapture
}

figures() { # PART: what it did, in words
    case $1 in
        damage) echo "mutations=$S2SFS_MUTATIONS" ;;
        crash) echo "histories=$S2SFS_CRASH_CASES long_histories=$((S2SFS_CRASH_CASES * 8))" ;;
        stress) echo "seconds=$S2SFS_STRESS_SECONDS" ;;
    esac
    # A test's name may stand before them in the same line.
    sed -nE 's/.*FIGURES //p' "$out/$1.log"
}

failed=0
for part in $PARTS; do
    declare -F "part_$part" >/dev/null || { echo "no part $part" >&2; exit 2; }
    echo "== $part"
    begun=$SECONDS
    "part_$part" 2>&1 | tee "$out/$part.log"
    [ "${PIPESTATUS[0]}" -eq 0 ] && result=passed || result=FAILED
    # A skipped part has proved nothing.
    grep -q '^SKIPPED' "$out/$part.log" && result=SKIPPED
    [ "$result" = passed ] || failed=$((failed + 1))
    {
        echo "| $part | $result | $((SECONDS - begun)) s | $(date -u +%F) | $(figures "$part" | tr '\n' ' ' |
            tr '_' ' ' | sed 's/=/ = /g; s/ *$//') |"
    } >"$out/$part.row"
done

{
    echo "s2sfs $(git describe --always --dirty), $(nproc) CPUs, $(uname -sr)"
    echo
    echo '| part | result | time | date | figures |'
    echo '|---|---|---|---|---|'
    for part in kill power crash damage stress memory; do
        [ ! -e "$out/$part.row" ] || cat "$out/$part.row"
    done
} | tee "$out/results.md"

if [ -n "${SPLICE:-}" ]; then
    document=docs/reliability.md
    awk -v table="$out/results.md" '
        /<!-- torture:end -->/ { inside = 0 }
        !inside { print }
        /<!-- torture:begin -->/ { inside = 1; while ((getline line < table) > 0) print line }
    ' "$document" >"$out/document" && cat "$out/document" >"$document"
fi
[ "$failed" -eq 0 ]
