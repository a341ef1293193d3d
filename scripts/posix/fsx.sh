#!/usr/bin/env bash
# fsx: random operations on one file, each checked against memory. FSX_OPS operations for each of FSX_SEEDS.
source "$(dirname "$0")/lib.sh"
need_crate fsx 0.3.2
ops=${FSX_OPS:-1000000}
seeds=${FSX_SEEDS:-1 2 3 4 5}

cat >"$dir/fsx.toml" <<'TOML'
flen = 1048576

[weights]
close_open = 1
invalidate = 1
mapread = 5
mapwrite = 5
read = 10
write = 10
truncate = 4
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 1
punch_hole = 2
sendfile = 2
posix_fadvise = 1
copy_file_range = 4
TOML

cc -shared -fPIC -O2 -o "$dir/unmap.so" "$(dirname "$0")/fsx-unmap.c" -ldl

mount_store
for seed in $seeds; do
    say "seed $seed, $ops operations"
    LD_PRELOAD="$dir/unmap.so" "$tools/bin/fsx" -q -f "$dir/fsx.toml" -N "$ops" -S "$seed" -P "$dir" "$mnt/fsx-$seed" >"$dir/fsx.log" 2>&1 ||
        { tail -n 60 "$dir/fsx.log"; fail "seed $seed"; }
    "$s2sfs" settle "$mnt" &
    wait
done
finish_store "$ops operations for each of the seeds $seeds"
