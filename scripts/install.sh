#!/usr/bin/env bash
# Installs, removes or lists the files of s2sfs: install.sh install|uninstall|list
# In the environment: BUILT (the program), PREFIX, SBINDIR (where mount(8) looks), UNITDIR, ZSHDIR, DESTDIR, and FORCE=1,
# to take the names of mount helpers that lead to another program.
set -euo pipefail
cd "$(dirname "$0")/.."

action=${1:?install, uninstall or list}
: "${BUILT:=target/release/s2sfs}" "${PREFIX:=/usr/local}" "${SBINDIR:=/sbin}" "${DESTDIR:=}"
: "${UNITDIR:=/etc/systemd/system}" "${ZSHDIR:=$PREFIX/share/zsh/site-functions}"
: "${FORCE:=}"
share=$PREFIX/share
doc=$share/doc/s2sfs

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# They stand in units, and in the list below.
for path in "$BUILT" "$PREFIX" "$SBINDIR" "$UNITDIR" "$ZSHDIR"; do
    case $path in
    *[[:space:]\|\&\\%]*) fail "'$path': no spaces, |, &, \\ and % in BUILT, PREFIX, SBINDIR, UNITDIR and ZSHDIR" ;;
    esac
done

# KIND SOURCE TARGET: `link` to another target, `unit` with the program's directory filled in, `shell` for
# completions, `dir` for a directory, otherwise the mode of a copy.
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
    echo "dir - /etc/s2sfs"
    # As they lie here, so that their links lead somewhere.
    local file
    for file in README.md CHANGELOG.md CONTRIBUTING.md LICENSE-MIT LICENSE-APACHE docs/*.md docs/plots/* models/README.md \
        models/*.toml; do
        echo "644 $file $doc/$file"
    done
    for file in systemd/examples/*; do
        echo "644 $file $doc/examples/${file##*/}"
    done
}

# Whether the link or file TARGET is there and is not the link to SOURCE that `install` makes.
is_foreign() {
    local source=$1 target=$2
    { [ -e "$target" ] || [ -L "$target" ]; } && [ "$(readlink "$target")" != "$source" ]
}

refuse_foreign_links() {
    local kind source target
    while read -r kind source target; do
        if [ "$kind" = link ] && [ "$FORCE" != 1 ] && is_foreign "$source" "$DESTDIR$target"; then
            fail "$DESTDIR$target is not a link to $source: of another installation? FORCE=1 replaces it"
        fi
    done < <(entries)
}

install_entry() {
    local kind=$1 source=$2 target=$DESTDIR$3
    mkdir -p "${target%/*}"
    case $kind in
    link) ln -sfn "$source" "$target" ;;
    dir) mkdir -p "$target" ;;
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

uninstall_entry() {
    local kind=$1 source=$2 target=$DESTDIR$3
    case $kind in
    link) is_foreign "$source" "$target" || rm -f "$target" ;;
    # What the administrator has put there stays.
    dir) rmdir "$target" 2>/dev/null || true ;;
    *) rm -f "$target" ;;
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
    refuse_foreign_links
    while read -r kind source target; do install_entry "$kind" "$source" "$target"; done < <(entries)
    reload_units
    ;;
uninstall)
    while read -r kind source target; do uninstall_entry "$kind" "$source" "$target"; done < <(entries)
    rmdir "$DESTDIR$doc"/{docs/plots,docs,models,examples} "$DESTDIR$doc" 2>/dev/null || true
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
