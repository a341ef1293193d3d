#!/usr/bin/env bash
# Installs a Debian package, mounts through mount(8) with it, removes it, and looks for what is left:
# deb-test.sh PACKAGE. As root. Refuses if s2sfs is installed already.
set -euo pipefail

package=$(realpath "${1:?a package}")
fail() {
    echo "deb-test: $*" >&2
    exit 1
}
[ "$(id -u)" -eq 0 ] || fail "needs root, to install the package"
if dpkg -s s2sfs >/dev/null 2>&1; then
    fail "s2sfs is installed as a package already"
fi
for file in /usr/bin/s2sfs /usr/sbin/mount.s2sfs /usr/sbin/mount.fuse.s2sfs /etc/s2sfs; do
    # A link that leads nowhere counts.
    [ ! -e "$file" ] && [ ! -L "$file" ] || fail "$file is there already"
done

work=$(mktemp -d)
store=$work/store mnt=$work/mnt
mkdir "$mnt"
finish() {
    ! mountpoint -q "$mnt" || umount -l "$mnt"
    ! dpkg -s s2sfs >/dev/null 2>&1 || dpkg --purge --force-all s2sfs >/dev/null 2>&1
    rm -rf "$work"
}
trap finish EXIT

dpkg --contents "$package" | awk '{print $6}' | sed 's|^\./|/|; s|/$||' | grep -v '^$' | sort >"$work/contents"
for file in /usr/bin/s2sfs /usr/sbin/mount.s2sfs /usr/sbin/mount.fuse.s2sfs \
    /usr/lib/systemd/system/s2sfs@.service /usr/lib/systemd/system/s2sfs-scrub@.timer \
    /usr/share/man/man1/s2sfs.1.gz /usr/share/man/man5/s2sfs.toml.5.gz /usr/share/man/man8/mount.s2sfs.8.gz \
    /usr/share/bash-completion/completions/s2sfs /usr/share/zsh/vendor-completions/_s2sfs \
    /usr/share/fish/vendor_completions.d/s2sfs.fish /usr/share/doc/s2sfs/copyright \
    /usr/share/doc/s2sfs/docs/user-guide.md; do
    grep -qx "$file" "$work/contents" || fail "the package lacks $file"
done
dpkg-deb -f "$package" Depends | grep -q fuse3 || fail "the package does not depend on fuse3"

dpkg -i "$package"
[ "$(dpkg-query -W -f '${Status}' s2sfs)" = "install ok installed" ] || fail "not installed"
[ -d /etc/s2sfs ] || fail "/etc/s2sfs was not made"
if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
    ! systemctl is-enabled --quiet s2sfs@test.service || fail "a unit was enabled"
fi

s2sfs --version
for type in s2sfs fuse.s2sfs; do
    mount -t "$type" -o nofail,x-test "$store" "$mnt"
    echo "written through $type" >"$mnt/$type"
    mount -o remount,ro "$mnt"
    s2sfs umount "$mnt"
done
echo "$store $mnt s2sfs defaults,noauto 0 0" >"$work/fstab"
mount -T "$work/fstab" "$mnt"
[ "$(cat "$mnt/s2sfs" "$mnt/fuse.s2sfs" | wc -l)" -eq 2 ] || fail "files are missing"
s2sfs umount "$mnt"
s2sfs check "$store"

dpkg -r s2sfs
dpkg --purge s2sfs
while read -r file; do
    [ -d "$file" ] && [ ! -L "$file" ] && continue
    [ ! -e "$file" ] && [ ! -L "$file" ] || fail "$file is left"
done <"$work/contents"
for dir in /usr/share/doc/s2sfs /etc/s2sfs; do
    [ ! -e "$dir" ] || fail "$dir is left"
done
echo "deb-test: installed, mounted, removed; nothing is left"
