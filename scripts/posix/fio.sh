#!/usr/bin/env bash
# fio with verification: sequential and random, buffered, mapped and direct, several jobs at a time.
source "$(dirname "$0")/lib.sh"
need fio:fio
size=${FIO_SIZE:-64M}

mount_store
run() {
    say "$*"
    fio --directory="$mnt" --aux-path="$dir" --size="$size" --verify=crc32c --do_verify=1 --verify_fatal=1 --group_reporting \
        --output="$dir/fio.log" "$@" || { cat "$dir/fio.log"; fail "fio $1"; }
    rm -f "$mnt"/*.0
}
run --name=sequential --rw=write --bs=128k --numjobs=3 --ioengine=psync
run --name=random --rw=randwrite --bs=4k --numjobs=3 --ioengine=psync --fsync=256
run --name=mixed --rw=randrw --bsrange=512-64k --numjobs=2 --ioengine=psync
run --name=mapped --rw=randwrite --bs=4k --numjobs=2 --ioengine=mmap
run --name=direct --rw=randwrite --bs=4k --numjobs=2 --ioengine=libaio --iodepth=16 --direct=1
run --name=compressible --rw=write --bs=64k --numjobs=2 --ioengine=psync --buffer_compress_percentage=80 \
    --refill_buffers
finish_store "six kinds of jobs of $size"
