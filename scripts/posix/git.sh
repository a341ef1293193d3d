#!/usr/bin/env bash
# git: clone of this repository, fsck, branches, gc.
source "$(dirname "$0")/lib.sh"
need git:git

export HOME=$dir GIT_CONFIG_NOSYSTEM=1
git config --global user.name suite
git config --global user.email suite@localhost
git config --global --add safe.directory '*'
mount_store
git clone --quiet --no-local --no-hardlinks "$root" "$mnt/clone"
cd "$mnt/clone"
git fsck --full --strict >"$dir/fsck.log" 2>&1 || { cat "$dir/fsck.log"; fail "fsck of the clone"; }
git checkout --quiet -b work
for i in $(seq 20); do
    echo "line $i" >>README.md
    cp README.md "copy-$i.md"
    git add -A
    git commit --quiet -m "commit $i"
done
git gc --quiet --aggressive --prune=now
git fsck --full --strict >"$dir/fsck.log" 2>&1 || { cat "$dir/fsck.log"; fail "fsck after gc"; }
[ -z "$(git status --porcelain)" ] || fail "the tree differs from its commit"
git clone --quiet "$mnt/clone" "$mnt/second"
diff -r --exclude=.git "$mnt/clone" "$mnt/second" || fail "the second clone differs"
finish_store "clone, fsck, 20 commits, gc, second clone"
