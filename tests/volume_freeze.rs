//! Freezing: nothing changes the store, reading goes on, and nobody waits for ever.

mod common;

use common::patient::wait_until;
use common::*;
use s2sfs::control::{ScrubAction, ScrubOptions};
use s2sfs::settle::Host;
use s2sfs::store::{Fault, SimOp, SimStorage, Storage};
use s2sfs::volume::{Place, ROOT, RenameMode, SetAttr, Volume, VolumeOptions, WriteMode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;
const LONG: Duration = Duration::from_secs(120);

type Image = BTreeMap<String, Vec<u8>>;

fn image(storage: &SimStorage) -> Image {
    let names = storage.files().into_iter();
    names
        .map(|name| {
            let bytes = storage.contents(&name).unwrap();
            (name, bytes)
        })
        .collect()
}

/// A disk with these files.
fn copy_of(image: &Image) -> SimStorage {
    let copy = SimStorage::new();
    for dir in ["", "log", "models"] {
        copy.mkdir(dir).unwrap();
    }
    for (name, bytes) in image {
        copy.create(name).unwrap();
        copy.set_contents(name, bytes.clone());
    }
    copy
}

fn write(volume: &Volume, ino: u64, data: &[u8]) {
    volume.write(ino, 0, data, WriteMode::default()).unwrap();
}

fn in_root(name: &[u8]) -> Place<'_> {
    Place { parent: ROOT, name }
}

#[test]
fn nothing_changes_the_store_while_it_is_frozen_and_everything_after() {
    let storage = SimStorage::new();
    let options = VolumeOptions {
        settle_after: Duration::ZERO,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let old = text(1, 300 * KIB);
    let file = put(&volume, "f.txt", &old).ino;
    let spare = put(&volume, "spare", b"x").ino;
    put(&volume, "doomed", b"y");
    let open = volume.create(ROOT, b"open", 0o644, caller()).unwrap().ino;
    write(&volume, open, b"dirty when it is frozen");
    let number = volume.freeze(LONG).unwrap();
    assert!(volume.frozen().is_some());
    assert_eq!(volume.status().unwrap().dirty_bytes, 0);

    let changes = Arc::new(AtomicUsize::new(0));
    let seen = changes.clone();
    storage.set_hook(Some(Arc::new(move |op, _| {
        seen.fetch_add(usize::from(op != SimOp::Read), SeqCst);
    })));
    let before = image(&storage);
    let finished = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let operations: Vec<Box<dyn Fn() + Send + Sync>> = vec![
            Box::new(|| write(&volume, file, b"NEW")),
            Box::new(|| {
                put(&volume, "made", b"while frozen");
            }),
            Box::new(|| volume.unlink(ROOT, b"doomed").unwrap()),
            Box::new(|| {
                volume.mkdir(ROOT, b"dir", 0o755, caller()).unwrap();
            }),
            Box::new(|| {
                volume
                    .rename(in_root(b"spare"), in_root(b"renamed"), RenameMode::Replace)
                    .unwrap();
            }),
            Box::new(|| {
                volume.link(spare, ROOT, b"linked").unwrap();
            }),
            Box::new(|| {
                let set = SetAttr {
                    size: Some(10),
                    ..SetAttr::default()
                };
                volume.setattr(open, set).unwrap();
            }),
            Box::new(|| {
                volume
                    .setxattr(spare, b"user.a", b"b", false, false)
                    .unwrap()
            }),
            Box::new(|| volume.punch_hole(file, 8192, 4096).unwrap()),
            Box::new(|| {
                volume.reclaim_for_test();
            }),
        ];
        let count = operations.len();
        for operation in operations {
            let finished = &finished;
            scope.spawn(move || {
                operation();
                finished.fetch_add(1, SeqCst);
            });
        }
        // Longer than the interval at which everything is synced without being asked for.
        let until = Instant::now() + Duration::from_millis(5600);
        while Instant::now() < until {
            assert!(contents(&volume, file) == old, "reading goes on");
            volume.accessed(file);
            assert_eq!(volume.list(ROOT).unwrap().len(), 4);
            // Nothing is dirty, so there is nothing to wait for.
            volume.fsync(open).unwrap();
            volume.flush(file).unwrap();
            volume.sync_everything().unwrap();
            volume.seek(file, 0, false).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(errno(volume.settle(&|_, _| {})), libc::EBUSY);
        assert_eq!(errno(volume.settle_again(&[ROOT], None)), libc::EBUSY);
        assert_eq!(errno(volume.reclaim(&|_, _| {})), libc::EBUSY);
        volume
            .scrub(ScrubAction::Start, ScrubOptions::default())
            .unwrap();
        volume
            .scrub(ScrubAction::Pause, ScrubOptions::default())
            .unwrap();
        volume
            .scrub(ScrubAction::Resume, ScrubOptions::default())
            .unwrap();
        assert!(volume.status().unwrap().frozen.unwrap().seconds > 5.0);
        assert_eq!(finished.load(SeqCst), 0, "somebody was not held up");
        assert_eq!(changes.load(SeqCst), 0, "something was written");
        assert!(image(&storage) == before);
        storage.set_hook(None);
        volume.thaw(Some(number)).unwrap();
        wait_until("everybody's end after the thaw", || {
            finished.load(SeqCst) == count
        });
    });
    assert!(volume.frozen().is_none());
    assert_eq!(&volume.read(file, 0, 3).unwrap(), b"NEW");
    assert!(volume.lookup(ROOT, b"doomed").is_err());
    volume.lookup(ROOT, b"linked").unwrap();
    settle(&volume);
    volume.release(open);
    volume.shutdown().unwrap();
}

/// What a background thread does.
trait Reclaims {
    fn reclaim_for_test(&self) -> u64;
}

impl Reclaims for Volume {
    fn reclaim_for_test(&self) -> u64 {
        let host: &dyn Host = self;
        host.reclaim().unwrap()
    }
}

#[test]
fn a_copy_of_the_frozen_store_has_everything_and_is_sound() {
    let (storage, volume) = fresh();
    let files: Vec<(String, Vec<u8>)> = (0..20)
        .map(|i| (format!("{i}.txt"), text(i, 1000 * i as usize)))
        .collect();
    for (name, data) in &files[..10] {
        put(&volume, name, data);
    }
    settle(&volume);
    for (name, data) in &files[10..] {
        let ino = volume
            .create(ROOT, name.as_bytes(), 0o644, caller())
            .unwrap()
            .ino;
        write(&volume, ino, data);
    }
    volume.freeze(LONG).unwrap();
    let copy = copy_of(&image(&storage));
    volume.thaw(None).unwrap();
    put(&volume, "later", b"not in the copy");

    let copied = open(&copy);
    for (name, data) in &files {
        let ino = copied.lookup(ROOT, name.as_bytes()).unwrap().ino;
        assert!(contents(&copied, ino) == *data, "{name}");
    }
    assert_eq!(copied.list(ROOT).unwrap().len(), files.len());
    settle(&copied);
    copied.shutdown().unwrap();
    drop(copied);
    assert_sound(&copy);
}

#[test]
fn a_forgotten_freeze_ends_by_itself() {
    let (_storage, volume) = fresh();
    let ino = put(&volume, "f", b"old").ino;
    let begun = Instant::now();
    let first = volume.freeze(Duration::from_millis(300)).unwrap();
    write(&volume, ino, b"new");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert!(waited < LONG / 2, "{waited:?}");
    assert!(volume.frozen().is_none());
    // Its end does not end the next one.
    let second = volume.freeze(LONG).unwrap();
    assert_eq!(errno(volume.thaw(Some(first))), libc::EINVAL);
    assert!(volume.frozen().is_some());
    volume.thaw(Some(second)).unwrap();
}

#[test]
fn freezing_twice_and_thawing_what_is_not_frozen_are_errors() {
    let (_storage, volume) = fresh();
    assert_eq!(errno(volume.thaw(None)), libc::EINVAL);
    volume.freeze(LONG).unwrap();
    assert_eq!(errno(volume.freeze(LONG)), libc::EBUSY);
    volume.thaw(None).unwrap();
    assert_eq!(errno(volume.thaw(None)), libc::EINVAL);
}

#[test]
fn a_freeze_that_fails_holds_nobody_up() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"old").ino;
    write(&volume, ino, b"new");
    storage.set_fault(Some(Fault::FailAll(SimOp::Write, libc::EIO)));
    assert!(volume.freeze(LONG).is_err());
    assert!(volume.frozen().is_none());
    assert!(volume.try_change().is_some());
    volume.abandon();
}

#[test]
fn shutting_down_ends_a_freeze_and_everybodys_wait() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"old").ino;
    volume.freeze(LONG).unwrap();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for i in 0..6u8 {
            let volume = &volume;
            // It may come in time, or too late.
            scope.spawn(move || volume.write(ino, 0, &[i; 100], WriteMode::default()));
        }
        std::thread::sleep(Duration::from_millis(100));
        volume.shutdown().unwrap();
    });
    assert!(begun.elapsed() < LONG / 2);
    assert!(volume.freeze(LONG).is_err());
    drop(volume);
    let volume = open(&storage);
    let found = contents(&volume, ino);
    let whole = |i: u8| found == [i; 100];
    assert!(found == b"old" || (0..6).any(whole));
}

#[test]
fn what_loses_its_last_user_while_frozen_is_removed_afterwards() {
    let (_storage, volume) = fresh();
    let ino = put(&volume, "f", &text(1, 50 * KIB)).ino;
    volume.open_file(ino, false, false).unwrap();
    volume.unlink(ROOT, b"f").unwrap();
    volume.freeze(LONG).unwrap();
    volume.release(ino);
    assert_eq!(volume.status().unwrap().files, 1);
    volume.thaw(None).unwrap();
    assert_eq!(volume.status().unwrap().files, 0);
    assert!(volume.getattr(ino).is_err());
}

#[test]
fn freezing_again_and_again_under_load_ends_in_no_deadlock_and_loses_nothing() {
    let storage = SimStorage::new();
    let options = VolumeOptions {
        // Writers wait for staging all the time.
        dirty_bytes: 1 << 20,
        settle_after: Duration::ZERO,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let until = Instant::now() + Duration::from_secs(5);
    let (freezes, last) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|seed| {
                let volume = &volume;
                scope.spawn(move || {
                    let name = format!("{seed}");
                    let mut round = 0;
                    while Instant::now() < until {
                        let data = text(seed + round, 700 * KIB);
                        let ino = put(volume, &name, &data).ino;
                        assert!(contents(volume, ino) == data);
                        volume.fsync(ino).unwrap();
                        volume.unlink(ROOT, name.as_bytes()).unwrap();
                        round += 1;
                    }
                })
            })
            .collect();
        let (mut freezes, mut last) = (0, Image::new());
        while freezes < 5 || Instant::now() < until {
            volume.freeze(LONG).unwrap();
            last = image(&storage);
            std::thread::sleep(Duration::from_millis(20));
            assert!(image(&storage) == last, "it changed while frozen");
            volume.thaw(None).unwrap();
            freezes += 1;
            std::thread::sleep(Duration::from_millis(30));
        }
        for writer in writers {
            writer.join().unwrap();
        }
        (freezes, last)
    });
    assert!(freezes >= 5, "{freezes}");
    volume.shutdown().unwrap();
    let copy = copy_of(&last);
    let copied = open(&copy);
    for entry in copied.list(ROOT).unwrap() {
        contents(&copied, entry.ino);
    }
}
