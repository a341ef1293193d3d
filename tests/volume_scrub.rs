//! Scrubbing: silent on sound volumes, whatever goes on meanwhile; names what is damaged; keeps its place.

mod common;

use common::patient::wait_until;
use common::stop::StopWhenDropped;
use common::*;
use s2sfs::control::{ScrubAction, ScrubOptions, ScrubState, ScrubStatus};
use s2sfs::store::{OpenOptions, SimStorage, Store};
use s2sfs::volume::{ROOT, Volume, VolumeOptions, WriteMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;
const FULL: ScrubOptions = ScrubOptions {
    fast: false,
    rate: None,
};
const FAST: ScrubOptions = ScrubOptions {
    fast: true,
    rate: None,
};

fn ask(volume: &Arc<Volume>, action: ScrubAction) -> ScrubStatus {
    volume.scrub(action, FULL).expect("scrub")
}

fn finished(volume: &Arc<Volume>) -> ScrubStatus {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = ask(volume, ScrubAction::Status);
        if !status.is_active() {
            return status;
        }
        assert!(Instant::now() < deadline, "never ends: {status:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn scrub(volume: &Arc<Volume>, options: ScrubOptions) -> ScrubStatus {
    volume.scrub(ScrubAction::Start, options).expect("start");
    finished(volume)
}

fn assert_clean(status: &ScrubStatus) {
    assert_eq!((status.errors, &status.failed), (0, &None), "{status:?}");
    assert_eq!(status.done_bytes, status.total_bytes);
    assert!(status.last_completed.is_some() && status.records > 0);
}

/// Files that are staged, settled, packed, shared and overwritten.
fn fill(volume: &Volume) {
    let dir = volume.mkdir(ROOT, b"dir", 0o755, caller()).unwrap().ino;
    for (number, len) in [0, 1, 500, 5000, 131_072, 700_000].into_iter().enumerate() {
        let name = format!("text{number}.txt");
        put_in(volume, dir, &name, &text(number as u64, len));
        put(
            volume,
            &format!("noise{number}"),
            &noise(number as u64, len / 2),
        );
    }
    settle(volume);
    let late = put(volume, "late", &text(77, 200_000)).ino;
    let mode = WriteMode::default();
    volume.write(late, 50_000, b"changed", mode).unwrap();
    volume.flush(late).unwrap();
    volume.unlink(ROOT, b"noise3").unwrap();
}

#[test]
fn a_sound_volume_has_no_errors_and_the_cache_keeps_what_it_had() {
    let (storage, volume) = fresh();
    fill(&volume);
    let ino = volume.lookup(ROOT, b"late").unwrap().ino;
    contents(&volume, ino);
    let before = volume.status().unwrap().cache;
    let fast = scrub(&volume, FAST);
    assert_clean(&fast);
    assert_eq!(fast.blocks, 0);
    let full = scrub(&volume, FULL);
    assert_clean(&full);
    assert!(full.blocks > 5 && full.total_bytes > fast.total_bytes);
    let after = volume.status().unwrap();
    assert_eq!(after.cache, before);
    assert_eq!(after.scrub, full);
    let volume = remount(&storage, volume);
    let status = ask(&volume, ScrubAction::Status);
    assert_eq!(status.last_completed, full.last_completed);
    assert_eq!(status.state, ScrubState::Idle);
    assert_clean(&scrub(&volume, FULL));
}

/// Flips a bit in the payload of the block that shows the byte at `offset` of a file.
fn damage(storage: &SimStorage, volume: &Volume, ino: u64, offset: u64) -> (String, u64) {
    let info = volume.file_info(ino).unwrap();
    let extent = info
        .extents
        .iter()
        .find(|e| e.offset <= offset && offset < e.offset + e.len)
        .expect("an extent");
    let (segment, at) = (extent.segment.clone(), extent.segment_offset);
    let mut bytes = storage.contents(&segment).expect("the segment");
    bytes[at as usize + 32 + 10] ^= 4;
    storage.set_contents(&segment, bytes);
    (segment, at)
}

#[test]
fn a_damaged_block_is_named_with_its_file_its_offset_and_its_place() {
    for options in [FULL, FAST] {
        let (storage, volume) = fresh();
        fill(&volume);
        let dir = volume.lookup(ROOT, b"dir").unwrap().ino;
        let ino = volume.lookup(dir, b"text5.txt").unwrap().ino;
        let place = damage(&storage, &volume, ino, 200_000);
        let status = scrub(&volume, options);
        assert!(status.errors > 0 && status.last_errors == status.errors);
        let named: Vec<_> = status
            .findings
            .iter()
            .filter(|f| f.block.is_some())
            .collect();
        assert_eq!(named.len(), 1, "{:?}", status.findings);
        assert_eq!((named[0].segment.clone(), named[0].offset), place);
        let part = &named[0].files[0];
        assert_eq!(
            (part.path.as_str(), part.offset, part.len),
            ("dir/text5.txt", 131_072, 131_072)
        );
        assert_eq!((named[0].files.len(), named[0].parts), (1, 1));
        // Undamaged files stay readable, and a second scrub says the same.
        let other = volume.lookup(ROOT, b"late").unwrap().ino;
        contents(&volume, other);
        assert_eq!(scrub(&volume, options).errors, status.errors);
    }
}

#[test]
fn blocks_that_are_anchored_to_a_damaged_one_are_named_too() {
    let storage = SimStorage::new();
    let options = quiet_options();
    let volume = Volume::open(open_store(&storage), model_codecs(), options).unwrap();
    let source = include_bytes!("../src/volume/scrub.rs");
    let data: Vec<u8> = source.iter().cycle().take(300 * KIB).copied().collect();
    let ino = put(&volume, "source.rs", &data).ino;
    settle(&volume);
    let info = volume.file_info(ino).unwrap();
    let anchored = info.extents.iter().filter(|e| e.anchor.is_some()).count();
    assert!(anchored > 0, "{:?}", info.extents);
    assert_clean(&scrub(&volume, FULL));
    damage(&storage, &volume, ino, 0);
    for options in [FULL, FAST] {
        let status = scrub(&volume, options);
        let named = status.findings.iter().filter(|f| f.block.is_some());
        assert_eq!(named.count(), 1 + anchored, "{:?}", status.findings);
    }
}

#[test]
fn a_damaged_checkpoint_a_damaged_model_and_a_missing_segment_are_named() {
    let (storage, volume) = fresh();
    fill(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    let store = open_store(&storage);
    let name = "0123456789abcdef.s2m";
    store.put_model(name, b"not this").unwrap();
    let volume = Volume::open(store, codecs(), quiet_options()).unwrap();
    let files = storage.files();
    let checkpoint = files.iter().find(|f| f.ends_with(".c")).expect("one");
    let mut bytes = storage.contents(checkpoint).expect("it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    storage.set_contents(checkpoint, bytes);
    let model = format!("models/{name}");
    let blocks = files.iter().find(|f| f.ends_with(".b")).expect("one");
    storage.remove(blocks);
    let status = scrub(&volume, FAST);
    let named: Vec<&str> = status.findings.iter().map(|f| f.segment.as_str()).collect();
    for place in [checkpoint.as_str(), model.as_str(), blocks.as_str()] {
        assert!(named.contains(&place), "{place} in {named:?}");
    }
}

#[test]
fn a_scrub_that_is_paused_keeps_its_place_over_a_remount_and_can_be_stopped() {
    let (storage, volume) = fresh();
    fill(&volume);
    // So slow that it cannot end.
    let slow = ScrubOptions {
        fast: false,
        rate: Some(1),
    };
    volume.scrub(ScrubAction::Start, slow).unwrap();
    wait_for(&volume, |status| status.records > 0);
    let other = volume.scrub(ScrubAction::Start, FAST);
    assert!(other.is_err(), "one that decodes is under way");
    let paused = ask(&volume, ScrubAction::Pause);
    assert_eq!(paused.state, ScrubState::Paused);
    let volume = remount(&storage, volume);
    let back = ask(&volume, ScrubAction::Status);
    assert_eq!(back.state, ScrubState::Paused);
    assert!(back.records >= paused.records && back.rate == Some(1));
    assert_eq!(ask(&volume, ScrubAction::Resume).state, ScrubState::Running);
    let volume = remount(&storage, volume);
    assert_eq!(
        ask(&volume, ScrubAction::Status).state,
        ScrubState::Running,
        "it goes on by itself"
    );
    assert_eq!(ask(&volume, ScrubAction::Stop).state, ScrubState::Idle);
    let stopped = finished(&volume);
    assert!(stopped.failed.is_some() && stopped.last_completed.is_none());
    assert!(volume.scrub(ScrubAction::Resume, FULL).is_err());
    assert_clean(&scrub(&volume, FULL));
}

fn wait_for(volume: &Arc<Volume>, done: impl Fn(&ScrubStatus) -> bool) {
    wait_until("a step of the scrub", || {
        done(&ask(volume, ScrubAction::Status))
    });
}

#[test]
fn a_killed_scrub_goes_on_where_it_last_kept_its_place() {
    let (storage, volume) = fresh();
    fill(&volume);
    let slow = ScrubOptions {
        fast: false,
        rate: Some(1),
    };
    volume.scrub(ScrubAction::Start, slow).unwrap();
    volume
        .fsync(volume.lookup(ROOT, b"late").unwrap().ino)
        .unwrap();
    volume.abandon();
    drop(volume);
    storage.crash(7);
    let volume = open(&storage);
    let status = ask(&volume, ScrubAction::Status);
    assert_eq!(status.state, ScrubState::Running);
    ask(&volume, ScrubAction::Stop);
    finished(&volume);
    assert_clean(&scrub(&volume, FULL));
}

#[test]
fn a_read_only_volume_can_be_scrubbed() {
    let (storage, volume) = fresh();
    fill(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    let open = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &open).unwrap();
    let volume = Volume::open(store, codecs(), quiet_options()).unwrap();
    assert_clean(&scrub(&volume, FULL));
}

#[test]
fn a_scrub_that_begins_as_the_last_one_ends_is_done_too() {
    let (_storage, volume) = fresh();
    let until = Instant::now() + Duration::from_secs(4);
    for round in 0.. {
        if round > 100 && Instant::now() > until {
            return;
        }
        volume.scrub(ScrubAction::Start, FAST).expect("start");
        let deadline = Instant::now() + Duration::from_secs(120);
        while ask(&volume, ScrubAction::Status).is_active() {
            assert!(Instant::now() < deadline, "nobody attends to it");
            std::hint::spin_loop();
        }
        // between its last turn and its end the thread takes a few microseconds
        std::thread::sleep(Duration::from_micros(round % 40));
    }
}

#[test]
fn writing_settling_and_reclaiming_meanwhile_is_no_damage() {
    let storage = SimStorage::new();
    let open = OpenOptions {
        create: true,
        segment_bytes: 64 << 10,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &open).unwrap();
    let options = VolumeOptions {
        settle_after: Duration::ZERO,
        ..quiet_options()
    };
    let volume = Volume::open(store, codecs(), options).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (volume, stop) = (&volume, &stop);
        for seed in 0..2u64 {
            scope.spawn(move || churn(volume, seed, stop));
        }
        scope.spawn(move || {
            while !stop.load(SeqCst) {
                volume.reclaim(&|_, _| {}).expect("reclaim");
            }
        });
        let _stop = StopWhenDropped(stop);
        let until = Instant::now() + Duration::from_secs(3);
        let mut rounds = 0;
        while Instant::now() < until || rounds < 2 {
            let status = scrub(volume, if rounds % 2 == 0 { FULL } else { FAST });
            // Reclaim may have dropped every segment that there was when it began.
            assert_eq!((status.errors, &status.failed), (0, &None), "{status:?}");
            rounds += 1;
        }
    });
    assert_clean(&scrub(&volume, FULL));
}

fn churn(volume: &Volume, seed: u64, stop: &AtomicBool) {
    let mut round = 0;
    while !stop.load(SeqCst) {
        let name = format!("{seed}-{}", round % 7);
        let _ = volume.unlink(ROOT, name.as_bytes());
        let ino = put(volume, &name, &text(round, 60 * KIB)).ino;
        if round % 3 == 0 {
            let _ = volume.write(ino, 1000, &noise(round, 5000), WriteMode::default());
            let _ = volume.flush(ino);
        }
        round += 1;
        std::thread::sleep(Duration::from_millis(3));
    }
}
