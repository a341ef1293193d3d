#!/usr/bin/env bash
# pjdfstest on s2sfs and on ext4: nothing may fail or be skipped here that does not there.
source "$(dirname "$0")/lib.sh"
need mkfs.ext4:e2fsprogs setfacl:acl
need_crate pjdfstest 0.2.2

# glibc answers pathconf(_PC_LINK_MAX) from a list of file system types, which FUSE is not in, so that the
# test of that limit cannot run on any FUSE file system.
known_skips='^link::link_count_max$'

for features in basic remount; do
    cat >"$dir/$features.toml" <<TOML
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = $([ $features = remount ] && echo true || echo false)

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
TOML
done

# run POINT CONFIG NAME [PATTERN]: leaves the names of tests that failed or were skipped in NAME.failed
# and NAME.skipped.
run() {
    local point=$1 config=$2 name=$dir/$3
    (cd "$point" && "$tools/bin/pjdfstest" -c "$config" -p "$point" -s "$dir/second" "${@:4}") \
        >"$name.log" 2>&1 || true
    grep -q '^Summary:' "$name.log" || { cat "$name.log"; fail "pjdfstest did not finish on $3"; }
    for verdict in failed skipped; do
        awk -v verdict=$verdict 'tolower($NF) == verdict && $1 ~ /::/ { print $1 }' "$name.log" |
            sort >"$name.$verdict"
    done
    say "$3: $(grep '^Summary:' "$name.log")"
}

loop_ext4 "$dir/ext4.img" "$dir/ext4" 512M
mkdir "$dir/second"
mount -t tmpfs none "$dir/second"
mounted_here+=("$dir/second")
mount_store
chmod 777 "$mnt" "$dir/ext4" "$dir/second"

run "$dir/ext4" "$dir/basic.toml" ext4
run "$mnt" "$dir/basic.toml" s2sfs
# mount(8) finds the helper for a remount in /sbin only. A mount with a working directory in it is
# busy, so these run on their own.
if [ "$(readlink -f /sbin/mount.fuse.s2sfs)" != "$(readlink -f "$s2sfs")" ]; then
    [ ! -e /sbin/mount.fuse.s2sfs ] || fail "/sbin/mount.fuse.s2sfs belongs to another program"
    ln -s "$s2sfs" /sbin/mount.fuse.s2sfs
    undo() { rm -f /sbin/mount.fuse.s2sfs; }
fi
run "$dir/ext4" "$dir/remount.toml" ext4-remount erofs
run "$mnt" "$dir/remount.toml" s2sfs-remount erofs

for kind in "" -remount; do
    for verdict in failed skipped; do
        worse=$(comm -13 "$dir/ext4$kind.$verdict" "$dir/s2sfs$kind.$verdict" | grep -vE "$known_skips" || true)
        [ -z "$worse" ] || { cat "$dir/s2sfs$kind.log"; fail "$verdict, but not on ext4: $worse"; }
    done
done
finish_store "$(grep -h '^Summary:' "$dir/s2sfs.log" | cut -c10-), remounts: $(
    grep -h '^Summary:' "$dir/s2sfs-remount.log" | cut -c10-)"
