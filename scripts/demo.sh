#!/usr/bin/env bash
# Copies this source tree into a temporary store, settles it, shows the ratio of each file type,
# compares everything with the originals after a remount, and unmounts. Models are left out: they are
# compressed already, and would hide what happens to the text. Arguments: S2SFS MOUNT.S2SFS
set -euo pipefail

s2sfs=$(realpath "$1")
# The helper is a link, and the name it is called by matters.
helper=$(realpath -s "$2")
cd "$(dirname "$0")/.."

dir=$(mktemp -d)
store=$dir/store mnt=$dir/mnt
finish() {
    mountpoint -q "$mnt" && "$s2sfs" umount "$mnt"
    rm -rf "$dir"
}
trap finish EXIT
mkdir "$mnt"

echo "== mounting $store at $mnt"
"$helper" "$store" "$mnt"

echo "== copying this tree"
list() { find . \( -name target -o -name 'target-*' -o -name .git \) -prune -o \
    -type f ! -name '*.s2m' -print0; }
list | tar --null --no-recursion --files-from=- -cf - | tar -C "$mnt" -xf -

echo "== settling"
"$s2sfs" settle "$mnt"

echo "== ratio by file type (size of the files / what their blocks take)"
(cd "$mnt" && find . -type f -printf '%f %s %b\n') | awk '
    {
        type = match($1, /\.[A-Za-z0-9]+$/) ? substr($1, RSTART + 1) : "(none)"
        files[type]++; bytes[type] += $2; stored[type] += $3 * 512
    }
    END {
        for (type in files)
            printf "%-10s %6d files %10d bytes -> %9d, ratio %.2f\n", type, files[type],
                bytes[type], stored[type], stored[type] ? bytes[type] / stored[type] : 0
    }' | sort -k4 -n -r

echo "== remounting and comparing every file"
"$s2sfs" umount "$mnt"
"$helper" "$store" "$mnt"
list | while IFS= read -r -d '' file; do cmp "$file" "$mnt/$file"; done
echo "all files are equal"

"$s2sfs" umount "$mnt"
echo "== the store"
"$s2sfs" status "$store"
"$s2sfs" check "$store"
