#!/usr/bin/env bash
# The file system class of stress-ng, for POSIX_STRESS_SECONDS in all.
source "$(dirname "$0")/lib.sh"
need stress-ng:stress-ng
seconds=${POSIX_STRESS_SECONDS:-600}

# Left out: what mounts other file systems, and what is not about files.
excluded="binderfs bind-mount eventfd io ioprio procfs"

mount_store
mkdir "$mnt/stress"
cd "$mnt/stress"
all=$(stress-ng --class 'filesystem?' 2>&1 | sed -n "s/^class 'filesystem' stressors: //p")
[ -n "$all" ] || fail "stress-ng has no file system class"
run=$(comm -23 <(tr ' ' '\n' <<<"$all" | sort) <(tr ' ' '\n' <<<"$excluded" | sort))
each=$((seconds / $(wc -l <<<"$run")))
each=$((each > 0 ? each : 1))
for stressor in $run; do
    "$s2sfs" status "$mnt" >/dev/null || fail "the daemon is gone before $stressor"
    stress-ng "--$stressor" 2 --timeout "$each" --temp-path "$mnt/stress" --verify --metrics-brief \
        >"$dir/stress.log" 2>&1 || { cat "$dir/stress.log"; fail "$stressor"; }
    if grep -E 'stress-ng: (fail|error)' "$dir/stress.log"; then fail "$stressor complained"; fi
    say "$(grep -E 'metrc:.* [0-9]+\.[0-9]+ ' "$dir/stress.log" | tail -n 1 | awk '{ print $4, $5, "operations" }')"
done
finish_store "all stressors of the file system class, $each seconds each"
