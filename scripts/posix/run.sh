#!/usr/bin/env bash
# Runs suites, one after the other, and prints a table. Arguments: names of suites (default: all).
set -uo pipefail
cd "$(dirname "$0")"
suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(pjdfstest fsx random stress-ng fio git sqlite cargo tar-rsync postgres venv)

table=() failed=0
for suite in "${suites[@]}"; do
    [ -x "./$suite.sh" ] || { echo "no suite $suite"; exit 2; }
    begun=$SECONDS
    output=$("./$suite.sh" 2>&1 | tee >(cat >&2)) || failed=1
    table+=("$(printf '%-10s %5d s  %s' "$suite" $((SECONDS - begun)) "$(tail -n 1 <<<"$output")")")
done
echo
printf '%s\n' "${table[@]}"
exit $failed
