#!/usr/bin/env bash
# sqlite3 in WAL and in delete mode: several writers, then integrity_check, also after a remount.
source "$(dirname "$0")/lib.sh"
need sqlite3:sqlite3
rows=${SQLITE_ROWS:-2000}

mount_store
writer() { # DATABASE NUMBER
    { for i in $(seq "$rows"); do
          echo "insert into t(writer, text) values ($2, printf('row %d of writer %d', $i, $2));"
          [ $((i % 100)) -ne 0 ] || echo "update t set text = text || '!' where writer = $2 and id % 7 = 0;"
      done; } | { echo ".timeout 60000"; echo "pragma synchronous=normal;"; cat; } | sqlite3 "$1" >/dev/null
}
check() {
    local answer
    answer=$(sqlite3 "$1" 'pragma integrity_check; select count(*) from t;' | tr '\n' ' ')
    [ "$answer" = "ok $((rows * 2)) " ] || fail "$1: $answer"
}
for mode in wal delete; do
    say "$mode"
    db=$mnt/$mode.db
    sqlite3 "$db" "pragma journal_mode=$mode; create table t(id integer primary key, writer int, text text);
        create index i on t(text);" >/dev/null
    writer "$db" 1 & first=$!
    writer "$db" 2 & second=$!
    wait $first || fail "$mode: first writer"
    wait $second || fail "$mode: second writer"
    check "$db"
    sqlite3 "$db" 'delete from t where id % 2 = 0 and id < 0; vacuum;'
done
"$s2sfs" settle "$mnt"
"$s2sfs" umount "$mnt"
mount_store
for mode in wal delete; do check "$mnt/$mode.db"; done
finish_store "two writers of $rows rows in WAL and in delete mode"
