#!/usr/bin/env bash
# Runs the file system stressors of stress-ng on a mount and watches the memory of the daemon.
# Arguments: SECONDS DIRECTORY (for memory.csv). Some stressors make more and more files, so they run in rounds
# of ROUND_SECONDS (300), each of which begins with an empty directory. Fails if a stressor finds something
# wrong, if the daemon dies, or if its memory grows: the median of the last quarter of the time must not be
# above 1.1 times that of the second quarter plus 16 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1 csv=$2/memory.csv
s2sfs=${S2SFS:-target/release/s2sfs}
dir=$(mktemp -d /var/tmp/s2sfs-torture-XXXXXX)
mkdir "$dir/mnt"
trap '"$s2sfs" umount "$dir/mnt" >/dev/null 2>&1 || umount -l "$dir/mnt" 2>/dev/null || true; rm -rf "$dir"' EXIT
[ -n "${S2SFS:-}" ] || cargo build --release --locked --quiet
"$s2sfs" mount "$dir/store" "$dir/mnt" -o "cache=64M,dirty=32M,segment=16M,settle_after=2s"
pid=$("$s2sfs" status --json "$dir/mnt" | sed -nE 's/.*"pid": *([0-9]+).*/\1/p')

stressors=()
# Not `io`: it syncs every file system of the machine, and fails when any of them does.
for name in chmod chown copy-file dentry dir dirdeep dirmany fallocate fcntl file-ioctl filename flock \
    fpunch fstat getdent hdd iomix lease link locka lockf lockofd metamix mknod open rename seek \
    symlink sync-file touch unlink utime verity xattr; do
    # Which ones there are depends on the version.
    if stress-ng --stressors 2>/dev/null | tr ' ' '\n' | grep -qx "$name"; then
        stressors+=("--$name" 1)
    fi
done

echo "seconds,rss_kib" >"$csv"
(
    begun=$SECONDS
    while sleep 1 && rss=$(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status" 2>/dev/null) && [ -n "$rss" ]; do
        echo "$((SECONDS - begun)),$rss" >>"$csv"
    done
) &
sampler=$!

outcome=0 round=${ROUND_SECONDS:-300}
for ((done = 0; done < seconds; done += round)); do
    mkdir "$dir/mnt/work"
    # Its `open` leaves files where it was started.
    (cd "$dir" && exec nice -n 5 stress-ng --temp-path "$dir/mnt/work" --timeout "${round}s" --verify --metrics-brief \
        --hdd-bytes 64M --iomix-bytes 64M --copy-file-bytes 128M --fallocate-bytes 64M --sync-file-bytes 64M \
        --dirdeep-dirs 8 "${stressors[@]}") || outcome=$?
    rm -rf "$dir/mnt/work"
done
kill "$sampler" 2>/dev/null || true
[ -d "/proc/$pid" ] || { echo "the daemon died" >&2; exit 1; }
"$s2sfs" umount "$dir/mnt"
"$s2sfs" check "$dir/store"

median() { # FROM TO: of the samples between these shares of the time
    awk -F, -v from="$1" -v to="$2" 'NR > 1 { rss[++n] = $2 }
        END { for (i = int(n * from) + 1; i <= int(n * to); i++) print rss[i] }' "$csv" |
        sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] + 0 }'
}
early=$(median 0.25 0.5) late=$(median 0.75 1) peak=$(tail -n +2 "$csv" | cut -d, -f2 | sort -n | tail -1)
limit=$((early * 11 / 10 + 16384))
echo "FIGURES seconds=$seconds round=$round stressors=$((${#stressors[@]} / 2)) rss_second_quarter=${early}_KiB rss_last_quarter=${late}_KiB rss_peak=${peak}_KiB"
[ "$outcome" -eq 0 ] || { echo "stress-ng: exit status $outcome" >&2; exit 1; }
[ "$late" -le "$limit" ] || { echo "the daemon's memory grows: $late KiB, at most $limit allowed" >&2; exit 1; }
