#!/bin/bash
# A machine of its own for the commands of a document: docs_world.sh TREE PROGRAM ROOT SCRIPT
# Called in private name spaces of mounts and processes. What a reader would change is made anew under ROOT (/data, /mnt,
# /root, /etc, /dev, /run, /var, /tmp, /usr/local, /sbin), everything else is the machine's, and cannot be written. The
# reader sits in a clean tree of the sources, ~/s2sfs, with what `cargo build` would have left.
set -euo pipefail
if [ $$ != 1 ]; then
    echo "docs_world.sh: only in a name space of processes of its own, see docs_commands.rs" >&2
    exit 2
fi
tree=$1 program=$2 root=$3 script=$4

# Makes everything that is mounted at DIR and below read-only, as far as this name space sees it.
protect() {
    local dir=$1 point options
    while read -r _ _ _ _ point options _; do
        point=$(printf %b "$point")
        if [ "$point" = "$dir" ] || [ "${point#"$dir/"}" != "$point" ]; then
            # A bind mount has all its flags said anew.
            mount -o "remount,bind,$(sed 's/^rw/ro/' <<<"$options")" "$point"
        fi
    done < <(grep -F " $dir" /proc/self/mountinfo)
}

mkdir -p "$root"
mount --bind "$root" "$root"
for item in /*; do
    name=${item##*/}
    case $name in
    dev | data | mnt | backup | other | root | home | etc | run | var | tmp | sbin | proc | lost+found) continue ;;
    esac
    if [ -L "$item" ]; then
        cp -P "$item" "$root/"
    elif [ -d "$item" ]; then
        mkdir "$root/$name"
        mount --rbind "$item" "$root/$name"
        # The kernel's own is not of files.
        [ "$name" = sys ] || protect "$root/$name"
    fi
done
# Devices are bound one by one: nothing that runs as root here can remove those of the machine.
mkdir "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty fuse; do
    [ -e "/dev/$device" ] || continue
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
mount --rbind /dev/pts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mkdir -p "$root"/{mnt,root,run/lock,var/log,var/tmp,tmp,sbin,proc,other}
chmod 1777 "$root/tmp" "$root/var/tmp"
mount -t proc proc "$root/proc"
cp -a /etc "$root/etc"
: >"$root/etc/fstab"
mkdir -p "$root/etc/systemd/system"
# mount(8) looks for its helpers here only.
if [ -L /sbin ]; then ln -s /usr/sbin/* "$root/sbin/"; else cp -a /sbin/. "$root/sbin/"; fi
mkdir "$root/.local"
mount --bind "$root/.local" "$root/usr/local"
mkdir -p "$root"/usr/local/{bin,share}

home=$root/root
mkdir -p "$home"/{texts,samples,s2sfs/target/release,s2sfs/models}
cp -a "$tree"/{Makefile,README.md,CHANGELOG.md,CONTRIBUTING.md,LICENSE-MIT,LICENSE-APACHE,Cargo.toml,docs,scripts} \
    "$tree"/{systemd,debian} "$home/s2sfs/"
cp "$tree"/models/*.{md,toml} "$home/s2sfs/models/"
: >"$home/s2sfs/target/release/s2sfs"
mount --bind "$program" "$home/s2sfs/target/release/s2sfs"
cp "$tree/docs/durability.md" "$home/texts/notes.txt"
cp "$tree/docs/posix.md" "$home/texts/a.txt"
head -c 20000 /dev/urandom >"$home/texts/disk.img"
cp "$tree"/src/cli/*.rs "$tree"/docs/*.md "$home/samples/"

# What minutes of training would have made.
cp "$tree/models/default.s2m" "$home/s2sfs/special.model"

# What stands for something that is not here:
# cargo, as everything is built,
printf '#!/bin/sh\nexec /usr/bin/make CARGO=true "$@"\n' >"$root/usr/local/bin/make"
# sudo, as we are root,
printf '#!/bin/sh\nexec "$@"\n' >"$root/usr/local/bin/sudo"
# and another machine, whose /data is /other/data here.
printf '#!/bin/sh\nshift\nexec sh -c "$(echo "$*" | sed s:/data:/other/data:g)"\n' >"$root/usr/local/bin/ssh"
chmod 755 "$root"/usr/local/bin/*

cp "$script" "$root/root/session.sh"
exec env -i HOME=/root USER=root LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    chroot "$root" /bin/bash /root/session.sh </dev/null
