#!/usr/bin/env bash
# Makes a Debian package of a program that is built: deb.sh [PROGRAM]. The files are those of `make install`.
set -euo pipefail
cd "$(dirname "$0")/.."

built=${1:-target/release/s2sfs}
tools=$PWD/target/tools
root=target/deb
if [ ! -x "$tools/bin/cargo-deb" ]; then
    # Not the caller's profile or target directory.
    env -u CARGO_TARGET_DIR "${CARGO:-cargo}" install cargo-deb --locked --root "$tools"
fi

rm -rf "$root"
BUILT=$built DESTDIR=$root PREFIX=/usr SBINDIR=/usr/sbin UNITDIR=/usr/lib/systemd/system \
    ZSHDIR=/usr/share/zsh/vendor-completions scripts/install.sh install
# Most of a program is what debuggers want.
strip "$root/usr/bin/s2sfs"
# In Debian, links inside one directory tree are relative, and the text of the licence is in `copyright`.
ln -sfn ../bin/s2sfs "$root/usr/sbin/mount.s2sfs"
ln -sfn ../bin/s2sfs "$root/usr/sbin/mount.fuse.s2sfs"
"$tools/bin/cargo-deb" --no-build --no-strip
