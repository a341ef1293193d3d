//! What a volume says of how long things take, and of how its files are stored.

mod common;

use common::*;
use s2sfs::control::LatencyStatus;
use s2sfs::volume::{Volume, VolumeError, WriteMode};

fn latency(volume: &Volume) -> LatencyStatus {
    volume.status().expect("status").latency
}

fn counts(volume: &Volume) -> [u64; 4] {
    let latency = latency(volume);
    [
        latency.read_cached.count,
        latency.read_decoded.count,
        latency.write.count,
        latency.fsync.count,
    ]
}

#[test]
fn reads_writes_and_fsyncs_are_timed_and_reads_told_apart() {
    let (storage, volume) = fresh();
    let file = put(&volume, "file", &text(1, 100_000)).ino;
    assert_eq!(counts(&volume), [0, 0, 1, 0]);
    volume.fsync(file).expect("fsync");
    assert_eq!(counts(&volume), [0, 0, 1, 1]);
    settle(&volume);
    let batch = latency(&volume).settle_batch;
    assert!(batch.count > 0 && batch.max_micros > 0);

    let volume = remount(&storage, volume);
    assert_eq!(counts(&volume), [0; 4]);
    volume.read(file, 0, 4096).expect("read");
    assert_eq!(counts(&volume), [0, 1, 0, 0]);
    volume.read(file, 0, 4096).expect("read");
    assert_eq!(counts(&volume), [1, 1, 0, 0]);
    // What was just written is in memory.
    volume
        .write(file, 0, b"new", WriteMode::default())
        .expect("write");
    volume.read(file, 0, 3).expect("read");
    assert_eq!(counts(&volume), [2, 1, 1, 0]);
    // What fails is an error, not a time.
    assert!(matches!(volume.read(999, 0, 1), Err(VolumeError::Stale(_))));
    assert_eq!(counts(&volume), [2, 1, 1, 0]);
    let write = latency(&volume).write;
    assert!(write.p50_micros <= write.p99_micros && write.p99_micros <= write.max_micros);
    assert_eq!(write.buckets.iter().map(|bucket| bucket.1).sum::<u64>(), 1);
}

#[test]
fn the_short_figures_of_a_file_are_those_of_its_extents() {
    let (_storage, volume) = fresh();
    let big = put(&volume, "big", &text(1, 3_000_000)).ino;
    let small = put(&volume, "small", &text(2, 500)).ino;
    let other = put(&volume, "other", &text(3, 500)).ino;
    let same = |ino| {
        let (info, usage) = (
            volume.file_info(ino).expect("info"),
            volume.usage(ino).expect("usage"),
        );
        assert_eq!(usage.codecs, info.codecs);
        assert_eq!(usage.staged_bytes, info.staged_bytes);
        assert_eq!(usage.dirty_bytes, info.dirty_bytes);
        usage
    };
    for ino in [big, small, other] {
        assert!(same(ino).staged_bytes > 0);
    }
    settle(&volume);
    for ino in [big, small, other] {
        assert_eq!(same(ino).staged_bytes, 0);
    }
    volume
        .write(small, 0, b"dirty", WriteMode::default())
        .expect("write");
    assert_eq!(same(small).dirty_bytes, 5);
    let value = volume
        .getxattr(small, b"user.s2sfs.usage")
        .expect("getxattr");
    let told: s2sfs::control::FileUsage = serde_json::from_slice(&value).expect("JSON");
    assert_eq!(told, same(small));
}

#[test]
fn figures_can_be_asked_for_while_files_change_and_settle() {
    let (_storage, volume) = fresh();
    let ino = put(&volume, "file", &text(1, 400_000)).ino;
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            for _ in 0..300 {
                let usage = volume.usage(ino).expect("usage");
                let shown: u64 = usage.codecs.values().map(|codec| codec.logical_bytes).sum();
                assert!(shown <= 800_000, "{usage:?}");
            }
        });
        for round in 0..5u64 {
            let data = text(round, 300_000);
            volume
                .write(ino, round * 1000, &data, WriteMode::default())
                .expect("write");
            volume.flush(ino).expect("flush");
            settle(&volume);
        }
        asker.join().expect("the asker");
    });
}
