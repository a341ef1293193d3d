# The beginning of every session: docs_commands.rs writes the commands of a document behind it.
set -euo pipefail
cd ~/s2sfs

here=
at() {
    here="$1: $2"
    echo "== $here"
}
trap 'status=$?; [ $status = 0 ] || { echo "FAILED with $status at $here" >&2; tail -n 20 /var/log/s2sfs.log >&2 || true; }' EXIT

# Whatever the commands do, the machine stays as it is.
[ ! -w /usr ]

# Files are read by what reads them, for another store and mount point, as those of the document may be in use.
mkdir -p /.store /.mnt

check_fstab() {
    sed 's|^/data  */mnt |/.store /.mnt |' "$1" >/tmp/fstab
    grep -q '^/.store /.mnt s2sfs\|^/.store /.mnt  *s2sfs' /tmp/fstab
    mount -f -T /tmp/fstab /.mnt
}

check_conf() (
    . "$1"
    [ "${STORE:0:1}${MNT:0:1}" = // ]
    mount.s2sfs -f -o "$OPTIONS" /.store /.mnt
)

check_toml() {
    if [ ! -e /.store/s2sfs.toml ]; then
        mount.s2sfs /.store /.mnt
        s2sfs umount /.mnt
    fi
    cp "$1" /.store/options.toml
    mount.s2sfs -f /.store /.mnt
    rm /.store/options.toml
}

# Who did all that has an intact store.
the_end() {
    here="the end"
    sync
    if mountpoint -q /mnt; then s2sfs umount /mnt; fi
    s2sfs check /data
    echo "the end"
}
