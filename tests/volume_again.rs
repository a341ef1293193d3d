//! Coding again what is settled: it follows model and policy, loses nothing, and keeps what is better.

mod common;

use common::gate::Gate;
use common::patient::wait_until;
use common::stop::StopWhenDropped;
use common::*;
use s2sfs::store::{Fault, OpenOptions, SimStorage, Store};
use s2sfs::volume::{POLICY, ROOT, Recoded, Volume, VolumeError, VolumeOptions, WriteMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;

/// Codes again and fails if anything could not be.
fn again(volume: &Arc<Volume>, inos: &[u64]) -> Recoded {
    let recoded = volume.settle_again(inos, Some(&|_, _| {})).unwrap();
    assert_eq!(recoded.first_failure, None);
    assert_eq!(recoded.passed, recoded.total);
    recoded
}

#[test]
fn another_policy_is_applied_to_old_data_only_when_asked_for() {
    let (storage, volume) = fresh();
    let data = text(1, 260 * KIB);
    let ino = put(&volume, "f.txt", &data).ino;
    settle(&volume);
    let small = volume.file_info(ino).unwrap().stored_bytes;
    set_policy(&volume, ROOT, "off");
    settle(&volume);
    assert_eq!(codecs_of(&volume, ino), ["zstd"], "as it was");

    let recoded = again(&volume, &[ROOT]);
    assert_eq!(codecs_of(&volume, ino), ["lz4"]);
    assert_eq!((recoded.coded, recoded.kept), (data.len() as u64, 0));
    assert_eq!(recoded.before, small);
    let large = volume.file_info(ino).unwrap().stored_bytes;
    assert_eq!(recoded.after, large);
    assert!(large > small);

    volume.removexattr(ROOT, POLICY).unwrap();
    let recoded = again(&volume, &[ino]);
    assert_eq!((recoded.before, recoded.after), (large, small));
    assert_eq!(codecs_of(&volume, ino), ["zstd"]);
    assert!(contents(&volume, ino) == data);
    volume.shutdown().unwrap();
    drop(volume);
    assert_sound(&storage);
}

#[test]
fn data_that_gains_nothing_keeps_its_blocks() {
    let (_storage, volume) = fresh();
    let files: Vec<u64> = (0..100)
        .map(|i| put(&volume, &format!("{i}.txt"), &text(i, 900)).ino)
        .chain([put(&volume, "big.txt", &text(7, 400 * KIB)).ino])
        .chain([put(&volume, "noise", &noise(7, 200 * KIB)).ino])
        .collect();
    settle(&volume);
    let blocks = |ino: &u64| volume.file_info(*ino).unwrap().extents;
    let before: Vec<_> = files.iter().map(blocks).collect();
    let recoded = again(&volume, &[ROOT]);
    assert_eq!(recoded.coded, 0);
    assert_eq!(recoded.kept, recoded.total);
    assert_eq!(recoded.before, recoded.after);
    assert!(before == files.iter().map(blocks).collect::<Vec<_>>());
}

#[test]
fn a_better_model_makes_old_data_smaller_and_packed_files_too() {
    let storage = SimStorage::new();
    let options = || VolumeOptions {
        policy: s2sfs::codec::Policy::Ratio,
        ..quiet_options()
    };
    let volume = open_with(&storage, options());
    let words: Vec<u8> = include_bytes!("../docs/format.md")[..20 * KIB].to_vec();
    let pieces: Vec<Vec<u8>> = words.chunks(800).map(<[u8]>::to_vec).collect();
    let files: Vec<u64> = pieces
        .iter()
        .enumerate()
        .map(|(i, piece)| put(&volume, &format!("{i}.md"), piece).ino)
        .collect();
    settle(&volume);
    assert!(files.iter().all(|ino| codecs_of(&volume, *ino) == ["zstd"]));
    volume.shutdown().unwrap();
    drop(volume);

    let volume = Volume::open(open_store(&storage), model_codecs(), options()).unwrap();
    // Some of those that share a block, first: the others stay readable in the old one.
    let some: Vec<u64> = files.iter().copied().step_by(3).collect();
    again(&volume, &some);
    let read = |volume: &Volume| {
        for (ino, piece) in files.iter().zip(&pieces) {
            assert!(contents(volume, *ino) == *piece);
        }
    };
    read(&volume);
    let recoded = again(&volume, &[ROOT]);
    assert!(recoded.after <= recoded.before);
    assert!(
        files
            .iter()
            .all(|ino| codecs_of(&volume, *ino) == ["model"])
    );
    read(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    assert_sound(&storage);
    let volume = Volume::open(open_store(&storage), model_codecs(), options()).unwrap();
    read(&volume);
}

#[test]
fn a_file_with_many_names_is_coded_once_and_holes_stay_holes() {
    let (_storage, volume) = fresh();
    let dir = volume.mkdir(ROOT, b"d", 0o755, caller()).unwrap().ino;
    let data = text(1, 200 * KIB);
    let ino = put(&volume, "f.txt", &data).ino;
    for name in 0..300 {
        let name = format!("{name}");
        volume.link(ino, dir, name.as_bytes()).unwrap();
    }
    let sparse = put(&volume, "sparse", b"").ino;
    volume
        .write(sparse, 5 << 20, &data[..10_000], WriteMode::default())
        .unwrap();
    settle(&volume);
    set_policy(&volume, ROOT, "off");
    let recoded = again(&volume, &[ROOT, dir, ino]);
    assert_eq!(recoded.coded, data.len() as u64 + 10_000);
    assert_eq!(recoded.total, data.len() as u64 + (5 << 20) + 10_000);
    assert!(contents(&volume, ino) == data);
    assert_eq!(volume.file_info(sparse).unwrap().logical_bytes, 10_000);
    assert_eq!(volume.seek(sparse, 0, true).unwrap(), 5 << 20);
}

#[test]
fn staged_and_dirty_data_is_settled_on_the_way() {
    let (_storage, volume) = fresh();
    let ino = put(&volume, "f.txt", &text(1, 300 * KIB)).ino;
    volume
        .write(ino, 300 * KIB as u64, &noise(1, 5000), WriteMode::default())
        .unwrap();
    again(&volume, &[ino]);
    let info = volume.file_info(ino).unwrap();
    assert_eq!((info.staged_bytes, info.dirty_bytes), (0, 0));
    assert_eq!(volume.status().unwrap().settle.queue_bytes, 0);
    let mut expected = text(1, 300 * KIB);
    expected.extend(noise(1, 5000));
    assert!(contents(&volume, ino) == expected);
}

#[test]
fn writers_and_coding_again_race_without_losing_anything() {
    let (storage, volume) = fresh();
    let stop = AtomicBool::new(false);
    let mut data = text(1, 600 * KIB);
    let ino = put(&volume, "f.txt", &data).ino;
    settle(&volume);
    let rounds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&stop);
        let recoder = scope.spawn(|| {
            while !stop.load(SeqCst) {
                set_policy(&volume, ROOT, ["off", "fast"][rounds.load(SeqCst) % 2]);
                let done = volume.settle_again(&[ROOT], Some(&|_, _| {})).unwrap();
                assert_eq!(done.first_failure, None);
                rounds.fetch_add(1, SeqCst);
            }
        });
        let mut random = random::Random::new(5);
        let until = Instant::now() + Duration::from_secs(4);
        let races = || Instant::now() < until || rounds.load(SeqCst) < 2;
        while races() && !recoder.is_finished() {
            let (offset, len) = (random.below(590 * KIB), 1 + random.below(9000));
            let piece = text(random.next(), len);
            data[offset..offset + len].copy_from_slice(&piece);
            volume
                .write(ino, offset as u64, &piece, WriteMode::default())
                .unwrap();
            volume.flush(ino).unwrap();
            let from = random.below(590 * KIB);
            assert!(volume.read(ino, from as u64, 10_000).unwrap() == data[from..from + 10_000]);
        }
    });
    assert!(rounds.into_inner() >= 2);
    assert!(contents(&volume, ino) == data);
    settle(&volume);
    let volume = remount(&storage, volume);
    assert!(contents(&volume, ino) == data);
    volume.shutdown().unwrap();
    drop(volume);
    assert_sound(&storage);
}

#[test]
fn damaged_blocks_are_named_and_the_rest_is_coded() {
    let (storage, volume) = fresh();
    let (bad, good) = (
        put(&volume, "bad.txt", &text(1, 100 * KIB)).ino,
        put(&volume, "good.txt", &text(2, 100 * KIB)).ino,
    );
    settle(&volume);
    let info = volume.file_info(bad).unwrap();
    let place = &info.extents[0];
    let mut bytes = storage.contents(&place.segment).unwrap();
    bytes[place.segment_offset as usize + 200] ^= 1;
    storage.set_contents(&place.segment, bytes);
    set_policy(&volume, ROOT, "off");
    let done = volume.settle_again(&[ROOT], Some(&|_, _| {})).unwrap();
    assert_eq!(done.failures, 1);
    assert!(
        done.first_failure
            .unwrap()
            .contains(&format!("inode {bad}"))
    );
    assert_eq!(codecs_of(&volume, good), ["lz4"]);
    assert_eq!(codecs_of(&volume, bad), ["zstd"]);
}

#[test]
fn an_unmount_in_the_middle_ends_it_and_loses_nothing() {
    let (storage, volume) = fresh();
    let files: Vec<u64> = (0..12)
        .map(|i| put(&volume, &format!("{i}.bin"), &text(i, 200 * KIB)).ino)
        .collect();
    settle(&volume);
    set_policy(&volume, ROOT, "off");
    let gate = Gate::before_blocks(&storage);
    // Nobody waits for this one, which is shown as long as it is at work.
    volume.settle_again(&[ROOT], None).unwrap();
    gate.wait();
    let waiting = std::thread::scope(|scope| {
        let second = scope.spawn(|| volume.settle_again(&[ROOT], Some(&|_, _| {})));
        wait_until("the second request", || {
            let again = volume.status().unwrap().again;
            again.is_some_and(|again| again.waiting == 1)
        });
        gate.shut_down_behind(&volume);
        second.join().unwrap()
    });
    let ended = match waiting {
        Ok(recoded) => recoded.failures > 0,
        Err(error) => matches!(error, VolumeError::Closed),
    };
    assert!(ended, "it ends with the volume");
    drop(volume);
    let volume = open(&storage);
    for (i, ino) in files.iter().enumerate() {
        assert!(contents(&volume, *ino) == text(i as u64, 200 * KIB));
    }
    let as_before = |ino: &&u64| codecs_of(&volume, **ino) == ["zstd"];
    assert!(
        files.iter().filter(as_before).count() > 6,
        "it was in the middle"
    );
    volume.shutdown().unwrap();
    drop(volume);
    assert_sound(&storage);
}

#[test]
fn a_power_cut_at_any_operation_of_coding_again_loses_nothing() {
    let options = || VolumeOptions {
        extent: 4096,
        threads: 1,
        ..quiet_options()
    };
    let open = |storage: &SimStorage| {
        let tiny = OpenOptions {
            create: true,
            memory_index: true,
            segment_bytes: 16 << 10,
            ..OpenOptions::default()
        };
        let store = Store::open(Arc::new(storage.clone()), &tiny).unwrap();
        Volume::open(store, codecs(), options()).unwrap()
    };
    let files: Vec<(String, Vec<u8>)> = (0..4)
        .map(|i| (format!("{i}.txt"), text(i, 300 + 2900 * i as usize)))
        .collect();
    for at in 0.. {
        let storage = SimStorage::new();
        let volume = open(&storage);
        for (name, data) in &files {
            put(&volume, name, data);
        }
        settle(&volume);
        set_policy(&volume, ROOT, "off");
        volume.sync_log().unwrap();
        storage.set_fault(Some(Fault::PowerCutAt(at)));
        let done = volume.settle_again(&[ROOT], Some(&|_, _| {}));
        let complete = done.is_ok_and(|done| done.failures == 0);
        volume.abandon();
        drop(volume);
        storage.crash(at * 31);
        let volume = open(&storage);
        for (name, data) in &files {
            let ino = volume.lookup(ROOT, name.as_bytes()).unwrap().ino;
            assert!(contents(&volume, ino) == *data, "operation {at}: {name}");
        }
        // What the cut has left is coded by asking once more.
        again(&volume, &[ROOT]);
        for (name, data) in &files {
            let ino = volume.lookup(ROOT, name.as_bytes()).unwrap().ino;
            assert!(contents(&volume, ino) == *data, "operation {at}: {name}");
            assert_ne!(codecs_of(&volume, ino), ["zstd"]);
        }
        volume.shutdown().unwrap();
        drop(volume);
        assert_sound(&storage);
        if complete {
            assert!(at > 6, "only {at} operations");
            return;
        }
    }
}
