#!/usr/bin/env bash
# Installs, removes or lists the files of s2sfs: install.sh install|uninstall|list
# In the environment: BUILT (the program), PREFIX, SBINDIR (where mount(8) looks), UNITDIR, ZSHDIR, DESTDIR.
set -euo pipefail
cd "$(dirname "$0")/.."

action=${1:?install, uninstall or list}
: "${BUILT:=target/release/s2sfs}" "${PREFIX:=/usr/local}" "${SBINDIR:=/sbin}" "${DESTDIR:=}"
: "${UNITDIR:=/etc/systemd/system}" "${ZSHDIR:=$PREFIX/share/zsh/site-functions}"
share=$PREFIX/share
doc=$share/doc/s2sfs

# KIND SOURCE TARGET: `link` to another target, `unit` with the program's directory filled in, `shell` for
# completions, otherwise the mode of a copy.
entries() {
    cat <<END
755 $BUILT $PREFIX/bin/s2sfs
link $PREFIX/bin/s2sfs $SBINDIR/mount.s2sfs
link $PREFIX/bin/s2sfs $SBINDIR/mount.fuse.s2sfs
644 docs/man/s2sfs.1 $share/man/man1/s2sfs.1
644 docs/man/s2sfs.toml.5 $share/man/man5/s2sfs.toml.5
644 docs/man/mount.s2sfs.8 $share/man/man8/mount.s2sfs.8
shell bash $share/bash-completion/completions/s2sfs
shell zsh $ZSHDIR/_s2sfs
shell fish $share/fish/vendor_completions.d/s2sfs.fish
shell elvish $share/elvish/lib/s2sfs.elv
unit systemd/s2sfs@.service $UNITDIR/s2sfs@.service
unit systemd/s2sfs-scrub@.service $UNITDIR/s2sfs-scrub@.service
unit systemd/s2sfs-scrub@.timer $UNITDIR/s2sfs-scrub@.timer
END
    local file
    for file in README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE docs/*.md; do
        echo "644 $file $doc/${file##*/}"
    done
    for file in docs/plots/*; do
        echo "644 $file $doc/plots/${file##*/}"
    done
    for file in systemd/examples/*; do
        echo "644 $file $doc/examples/${file##*/}"
    done
}

install_entry() {
    local kind=$1 source=$2 target=$DESTDIR$3
    mkdir -p "${target%/*}"
    case $kind in
    link) ln -sfn "$source" "$target" ;;
    unit)
        sed "s|@BINDIR@|$PREFIX/bin|" "$source" >"$target"
        chmod 644 "$target"
        ;;
    shell)
        "$BUILT" completions "$source" >"$target"
        chmod 644 "$target"
        ;;
    *) install -m "$kind" "$source" "$target" ;;
    esac
}

reload_units() {
    if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
}

case $action in
install)
    umask 022
    while read -r kind source target; do install_entry "$kind" "$source" "$target"; done < <(entries)
    reload_units
    ;;
uninstall)
    while read -r _ _ target; do rm -f "$DESTDIR$target"; done < <(entries)
    rmdir "$DESTDIR$doc/plots" "$DESTDIR$doc/examples" "$DESTDIR$doc" 2>/dev/null || true
    reload_units
    ;;
list)
    while read -r _ _ target; do echo "$target"; done < <(entries)
    ;;
*)
    echo "usage: install.sh install|uninstall|list" >&2
    exit 2
    ;;
esac
