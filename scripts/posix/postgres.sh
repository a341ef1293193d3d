#!/usr/bin/env bash
# PostgreSQL: initdb with checksums, pgbench, a crash of the server, pg_amcheck and pg_checksums.
source "$(dirname "$0")/lib.sh"
need pg_ctlcluster:postgresql
bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
seconds=${PGBENCH_SECONDS:-60}

mount_store
as_postgres() { (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$@"); }
data=$mnt/data
install -d -o postgres -g postgres -m 700 "$data" "$dir/socket"
chmod 755 "$dir"
as_postgres "$bin/initdb" --data-checksums -D "$data" >"$dir/initdb.log" 2>&1 ||
    { cat "$dir/initdb.log"; fail initdb; }
cat >>"$data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$dir/socket'
shared_buffers = 32MB
max_wal_size = 128MB
CONF
start() {
    as_postgres "$bin/pg_ctl" -w -D "$data" -l "$data/server.log" start >/dev/null ||
        { tail "$data/server.log"; fail "the server does not start"; }
}
stop() { as_postgres "$bin/pg_ctl" -w -D "$data" -m "$1" stop >/dev/null; }
sql() { as_postgres "$bin/psql" -h "$dir/socket" -d postgres -Atc "$1"; }
start
as_postgres "$bin/pgbench" -h "$dir/socket" -i -q -s 5 postgres >/dev/null 2>&1
as_postgres "$bin/pgbench" -h "$dir/socket" -c 4 -j 2 -T "$seconds" postgres >"$dir/pgbench.log" 2>&1 ||
    { cat "$dir/pgbench.log"; stop immediate; fail pgbench; }
# A stop without a checkpoint, so that the next start recovers from the WAL.
stop immediate
start
sums=$(sql "select (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches)
    and (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)")
[ "$sums" = t ] || { stop fast; fail "the balances do not add up"; }
sql "create extension amcheck" >/dev/null
as_postgres "$bin/pg_amcheck" -h "$dir/socket" --heapallindexed postgres || { stop fast; fail pg_amcheck; }
stop fast
"$s2sfs" settle "$mnt"
"$s2sfs" umount "$mnt"
mount_store
as_postgres "$bin/pg_checksums" --check -D "$data" >"$dir/checksums.log" 2>&1 ||
    { cat "$dir/checksums.log"; fail pg_checksums; }
finish_store "pgbench for $seconds seconds, $(grep -h '^tps' "$dir/pgbench.log"), recovery, checksums"
