#!/usr/bin/env bash
# tar round trip, and rsync -aHAX --checksum of a tree with hard links, attributes, access lists, sparse and
# special files; then cp -a inside the mount.
source "$(dirname "$0")/lib.sh"
need rsync:rsync setfacl:acl setfattr:attr tar:tar

tree=$dir/tree
mkdir -p "$tree/sub/deep" "$tree/shared"
cp -r "$root/src" "$root/docs" "$tree/"
ln "$tree/src/lib.rs" "$tree/sub/hard-link"
ln -s ../src/lib.rs "$tree/sub/soft-link"
truncate -s 1G "$tree/sparse"
printf end | dd of="$tree/sparse" bs=1 seek=700000000 conv=notrunc status=none
head -c 3000000 /dev/urandom >"$tree/noise"
mkfifo "$tree/fifo"
mknod "$tree/null" c 1 3
setfattr -n user.note -v "an attribute" "$tree/noise"
setfattr -n trusted.note -v "another" "$tree/sub"
setfacl -m u:daemon:rw,g:mail:r "$tree/noise"
setfacl -d -m u:daemon:rwx "$tree/sub/deep"
chmod 4755 "$tree/src/lib.rs"
chmod 2775 "$tree/shared"
chown daemon:mail "$tree/docs"
touch -d '1999-12-31 23:59:59.123456789' "$tree/noise"

mount_store
same() { # A B
    local difference
    difference=$(rsync -naHAX --checksum --delete --itemize-changes --devices --specials "$1/" "$2/")
    [ -z "$difference" ] || { echo "$difference"; fail "$2 differs from $1"; }
}

say rsync
rsync -aHAXS --checksum "$tree/" "$mnt/rsync/"
same "$tree" "$mnt/rsync"
[ "$(stat -c %i "$mnt/rsync/src/lib.rs")" = "$(stat -c %i "$mnt/rsync/sub/hard-link")" ] || fail "the hard link was lost"
[ "$(du -k "$mnt/rsync/sparse" | cut -f1)" -lt 1000 ] || fail "the sparse file was filled"

say tar
tar -C "$tree" --acls --xattrs --xattrs-include='*' -S -cf - . | (mkdir "$mnt/tar" && tar -C "$mnt/tar" --acls --xattrs --xattrs-include='*' -xpf -)
same "$tree" "$mnt/tar"
tar -C "$mnt/tar" --acls --xattrs --xattrs-include='*' -S -cf "$dir/back.tar" .
mkdir "$dir/back"
tar -C "$dir/back" --acls --xattrs --xattrs-include='*' -xpf "$dir/back.tar"
same "$tree" "$dir/back"

say "cp -a"
cp -a "$mnt/rsync" "$mnt/cp"
same "$tree" "$mnt/cp"

"$s2sfs" settle "$mnt"
"$s2sfs" umount "$mnt"
mount_store
for copy in rsync tar cp; do same "$tree" "$mnt/$copy"; done
rm -r "$mnt/rsync"
same "$tree" "$mnt/cp"
finish_store "rsync, tar and cp agree, also after settling and a remount"
