//! Settling: it never loses a newer write, goes on after a restart, and stays out of the way.

mod common;

use common::gate::Gate;
use common::patient::wait_until;
use common::stop::StopWhenDropped;
use common::*;
use s2sfs::settle::{Host, Wanted};
use s2sfs::volume::{ROOT, Volume, VolumeOptions, WriteMode};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

const KIB: usize = 1 << 10;

fn write(volume: &Volume, ino: u64, offset: usize, data: &[u8]) {
    volume
        .write(ino, offset as u64, data, WriteMode::default())
        .expect("write");
}

#[test]
fn a_write_between_encoding_and_swapping_is_not_lost() {
    let (_storage, volume) = fresh();
    let old = text(1, 200 * KIB);
    let ino = put(&volume, "f.txt", &old).ino;
    let host: &dyn Host = &*volume;
    let windows = host.pending(None, 100).unwrap();
    assert_eq!(windows.len(), 2);
    let candidates = host.candidates(&windows, Wanted::Staged).unwrap();
    let mut blocks = Vec::new();
    for candidate in &candidates {
        let raw = host.read_run(&candidate.run).unwrap().unwrap();
        let encoded = volume_codecs()
            .encode(&raw, &Default::default(), None)
            .unwrap();
        blocks.push(host.append(&encoded, raw.len() as u32).unwrap());
    }
    write(&volume, ino, 1000, b"NEWER");
    volume.flush(ino).unwrap();
    let mut expected = old;
    expected[1000..1005].copy_from_slice(b"NEWER");
    let first = host.swap(blocks[0], &[candidates[0].run.clone()]).unwrap();
    assert_eq!((first.settled, first.skipped), (0, 128 * 1024));
    let second = host.swap(blocks[1], &[candidates[1].run.clone()]).unwrap();
    assert_eq!((second.settled, second.skipped), (72 * 1024, 0));
    assert!(contents(&volume, ino) == expected);
    assert_eq!(
        host.pending(None, 100).unwrap().len(),
        1,
        "the written window is still pending"
    );
    settle(&volume);
    assert!(contents(&volume, ino) == expected);
}

fn volume_codecs() -> std::sync::Arc<s2sfs::codec::Codecs> {
    codecs()
}

#[test]
fn a_packed_swap_leaves_out_only_the_file_that_changed() {
    let (_storage, volume) = fresh();
    let inos: Vec<u64> = (0..3)
        .map(|i| put(&volume, &format!("{i}.txt"), &text(i, 5000)).ino)
        .collect();
    let host: &dyn Host = &*volume;
    let candidates = host
        .candidates(&host.pending(None, 100).unwrap(), Wanted::Staged)
        .unwrap();
    let runs: Vec<_> = candidates.iter().map(|c| c.run.clone()).collect();
    let raw: Vec<u8> = runs
        .iter()
        .flat_map(|run| host.read_run(run).unwrap().unwrap())
        .collect();
    let encoded = volume_codecs()
        .encode(&raw, &Default::default(), None)
        .unwrap();
    let block = host.append(&encoded, raw.len() as u32).unwrap();
    volume.unlink(ROOT, b"0.txt").unwrap();
    write(&volume, inos[1], 5000, b"more");
    volume.flush(inos[1]).unwrap();
    let swapped = host.swap(block, &runs).unwrap();
    assert_eq!((swapped.settled, swapped.skipped), (10_000, 5000));
    let mut expected = text(1, 5000);
    expected.extend_from_slice(b"more");
    assert!(contents(&volume, inos[1]) == expected);
    assert!(contents(&volume, inos[2]) == text(2, 5000));
    settle(&volume);
    assert!(contents(&volume, inos[1]) == expected);
}

#[test]
fn writers_and_settling_race_without_losing_anything() {
    let (storage, volume) = fresh();
    let stop = AtomicBool::new(false);
    let finals: Vec<(u64, Vec<u8>)> = std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&stop);
        let settler = scope.spawn(|| {
            while !stop.load(SeqCst) {
                volume.settle(&|_, _| {}).expect("settling works");
            }
        });
        let writers: Vec<_> = (0..4u64)
            .map(|seed| {
                let volume = &volume;
                scope.spawn(move || write_randomly(volume, seed))
            })
            .collect();
        let finals = writers.into_iter().map(|w| w.join().unwrap()).collect();
        stop.store(true, SeqCst);
        settler.join().unwrap();
        finals
    });
    let check = |volume: &Volume| {
        for (ino, data) in &finals {
            assert!(contents(volume, *ino) == *data);
        }
    };
    check(&volume);
    settle(&volume);
    check(&volume);
    let volume = remount(&storage, volume);
    check(&volume);
}

fn write_randomly(volume: &Volume, seed: u64) -> (u64, Vec<u8>) {
    let mut data = text(seed, 300 * KIB);
    let ino = put(volume, &format!("{seed}.txt"), &data).ino;
    let mut random = noise(seed, 4000).into_iter().map(usize::from);
    let mut next = move || random.next().unwrap() * 1200 % (299 * KIB);
    for round in 0..300 {
        let (offset, len) = (next(), 1 + next() % 3000);
        let piece = text(seed * 1000 + round, len);
        if data.len() < offset + len {
            data.resize(offset + len, 0);
        }
        data[offset..offset + len].copy_from_slice(&piece);
        write(volume, ino, offset, &piece);
        if round % 3 == 0 {
            volume.flush(ino).unwrap();
        }
        if round % 10 == 0 {
            assert!(contents(volume, ino) == data, "round {round}");
        }
    }
    volume.flush(ino).unwrap();
    (ino, data)
}

#[test]
fn settling_goes_on_after_a_restart_without_being_asked() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f.txt", &text(1, 500 * KIB)).ino;
    assert!(volume.status().unwrap().settle.queue_bytes > 0);
    volume.shutdown().unwrap();
    drop(volume);
    let options = VolumeOptions {
        settle_after: Duration::ZERO,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    wait_until("settling", || {
        volume.status().unwrap().settle.queue_bytes == 0
    });
    assert!(contents(&volume, ino) == text(1, 500 * KIB));
    assert_eq!(volume.file_info(ino).unwrap().staged_bytes, 0);
}

#[test]
fn another_extent_size_settles_what_the_old_one_staged() {
    let (storage, volume) = fresh();
    let data = text(1, 1000 * KIB);
    let ino = put(&volume, "f.txt", &data).ino;
    volume.shutdown().unwrap();
    drop(volume);
    for extent in [1 << 20, 16 << 10, 128 << 10] {
        let volume = open_with(
            &storage,
            VolumeOptions {
                extent,
                ..quiet_options()
            },
        );
        assert!(contents(&volume, ino) == data);
        write(
            &volume,
            ino,
            600 * KIB,
            &text(1, 1000 * KIB)[600 * KIB..700 * KIB],
        );
        volume.flush(ino).unwrap();
        settle(&volume);
        assert!(contents(&volume, ino) == data);
        volume.shutdown().unwrap();
    }
}

#[test]
fn later_windows_of_a_file_may_be_anchored_and_still_read_after_overwriting_the_first() {
    let (storage, volume) = fresh();
    let mut data = text(3, 600 * KIB);
    let ino = put(&volume, "big.log", &data).ino;
    settle(&volume);
    write(&volume, ino, 0, &noise(1, 128 * KIB));
    data[..128 * KIB].copy_from_slice(&noise(1, 128 * KIB));
    volume.flush(ino).unwrap();
    settle(&volume);
    assert!(contents(&volume, ino) == data);
    let volume = remount(&storage, volume);
    assert!(contents(&volume, ino) == data);
}

#[test]
fn shutting_down_does_not_wait_for_settling() {
    let options = VolumeOptions {
        settle_after: Duration::ZERO,
        ..quiet_options()
    };
    let storage = s2sfs::store::SimStorage::new();
    let volume = open_with(&storage, options);
    let gate = Gate::before_blocks(&storage);
    for i in 0..200 {
        put(&volume, &format!("{i}.txt"), &text(i, 300 * KIB));
    }
    gate.shut_down_behind(&volume);
    drop(volume);
    let volume = open(&storage);
    let left = volume.status().unwrap().settle.queue_bytes;
    assert!(
        left > (150 * 300) << 10,
        "only {left} bytes are left to settle"
    );
    for i in (0..200).step_by(37) {
        let ino = volume
            .lookup(ROOT, format!("{i}.txt").as_bytes())
            .unwrap()
            .ino;
        assert!(contents(&volume, ino) == text(i, 300 * KIB));
    }
}
