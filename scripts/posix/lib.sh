# Shared by the suites in this directory, which source it. Each suite gets a fresh store, mounted, and
# ends with one line that begins with PASS or FAIL. Nothing is left behind unless KEEP=1.
#
# POSIX_DIR      where stores and scratch files go (default /var/tmp)
# POSIX_OPTIONS  mount options. By default nothing is coded by the model, which would take most of the
#                time, and settling begins so soon that it runs beside the suite.
set -euEo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
s2sfs=${S2SFS:-$root/target/release/s2sfs}
tools=$root/target/tools
suite=$(basename "$0" .sh)
options=${POSIX_OPTIONS:-policy=fast,settle_after=1s}
export LC_ALL=C

[ "$(id -u)" -eq 0 ] || { echo "FAIL $suite: needs root, to mount and to change users"; exit 1; }

dir=$(mktemp -d "${POSIX_DIR:-/var/tmp}/s2sfs-$suite-XXXXXX")
chmod 755 "$dir"
store=$dir/store mnt=$dir/mnt
mkdir "$mnt"
ln -s "$s2sfs" "$dir/mount.s2sfs"
failure=
mounted_here=()

say() { echo "== $suite: $*"; }

# fail REASON: ends the suite.
fail() { failure=$*; exit 1; }

# need PROGRAM:PACKAGE ...
need() { "$root/scripts/packages.sh" "$@"; }

# need_crate NAME VERSION: a program from crates.io, in $tools/bin.
need_crate() {
    [ -x "$tools/bin/$1" ] || cargo install --quiet --locked --root "$tools" --version "$2" "$1"
}

mount_store() { "$dir/mount.s2sfs" "$store" "$mnt" -o "log=$dir/daemon.log,$options"; }

# loop_ext4 IMAGE POINT SIZE: an ext4 file system to compare with.
loop_ext4() {
    truncate -s "$3" "$1"
    mkfs.ext4 -q "$1"
    mkdir -p "$2"
    mount -o loop "$1" "$2"
    mounted_here+=("$2")
}

# finish_store SUMMARY: what every suite ends with.
finish_store() {
    cd /
    "$s2sfs" settle "$mnt" || fail "settling failed"
    "$s2sfs" umount "$mnt" || fail "unmounting failed"
    "$s2sfs" check "$store" >"$dir/check.log" 2>&1 || { cat "$dir/check.log"; fail "the check found damage"; }
    summary=$1
}

# What a suite wants undone at its end.
undo() { :; }

finish() {
    local code=$?
    cd /
    undo
    if mountpoint -q "$mnt"; then "$s2sfs" umount "$mnt" >/dev/null 2>&1 || umount -l "$mnt" || true; fi
    for point in "${mounted_here[@]}"; do umount "$point" || umount -l "$point" || true; done
    if [ "$code" -eq 0 ] && [ -n "${summary:-}" ]; then
        echo "PASS $suite: $summary"
    else
        [ ! -s "$dir/daemon.log" ] || { echo "-- daemon:"; tail -n 20 "$dir/daemon.log"; }
        echo "FAIL $suite: ${failure:-${failed_command:-it ended early}}"
        code=1
    fi
    [ "${KEEP:-0}" = 1 ] || rm -rf "$dir"
    exit "$code"
}
trap finish EXIT
trap 'failed_command="line $LINENO: $BASH_COMMAND"' ERR
