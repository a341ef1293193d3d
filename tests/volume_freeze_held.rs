//! Freezing, settling and ending beside whoever holds the store, waits, or fails.

mod common;
#[path = "common/in_time.rs"]
mod in_time;

use common::*;
use in_time::{SOON, aside, soon};
use s2sfs::control::{ScrubAction, ScrubOptions, ScrubState};
use s2sfs::settle::Host;
use s2sfs::store::{Fault, SimOp};
use s2sfs::volume::{ROOT, Volume, WriteMode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;
const LONG: Duration = Duration::from_secs(120);

/// As [`soon`], with the volume.
fn soon_on<T: Send + 'static>(
    volume: &Arc<Volume>,
    work: impl FnOnce(&Arc<Volume>) -> T + Send + 'static,
) -> T {
    let volume = volume.clone();
    soon(move || work(&volume))
}

fn write(volume: &Volume, ino: u64, data: &[u8]) {
    volume.write(ino, 0, data, WriteMode::default()).unwrap();
}

/// A volume with dead blocks.
fn with_garbage() -> (s2sfs::store::SimStorage, Arc<Volume>, u64) {
    let (storage, volume) = fresh();
    for i in 0..8u64 {
        put(&volume, &format!("{i}"), &noise(i, 300 * KIB));
    }
    settle(&volume);
    for i in 0..7u64 {
        volume.unlink(ROOT, format!("{i}").as_bytes()).unwrap();
    }
    let ino = volume.lookup(ROOT, b"7").unwrap().ino;
    (storage, volume, ino)
}

#[test]
fn a_store_that_is_being_sent_can_be_frozen_and_thawed() {
    let (_storage, volume, ino) = with_garbage();
    let held = volume.hold().unwrap();
    let files = held.files().to_vec();
    write(&volume, ino, b"dirty when it is frozen");
    let number = soon_on(&volume, |volume| volume.freeze(LONG)).unwrap();
    assert_eq!(volume.status().unwrap().dirty_bytes, 0);
    soon_on(&volume, move |volume| {
        volume.fsync(ino).unwrap();
        volume.sync_everything().unwrap();
        volume.seek(ino, 0, true).unwrap();
        volume.thaw(Some(number)).unwrap();
        write(volume, ino, b"NEW");
        volume.fsync(ino).unwrap();
    });
    assert_eq!(held.files(), files);
    drop(held);
    volume.freeze(LONG).unwrap();
    volume.shutdown().unwrap();
}

#[test]
fn settling_goes_on_while_a_store_is_being_sent_and_reclaiming_waits_where_it_is_in_nobodys_way() {
    let (_storage, volume, ino) = with_garbage();
    let held = volume.hold().unwrap();
    put(&volume, "new", &text(1, 200 * KIB));
    soon_on(&volume, |volume| settle(volume));
    let freed = soon_on(&volume, |volume| {
        let host: &dyn Host = &**volume;
        host.reclaim()
    });
    assert_eq!(freed, Ok(0));
    assert_eq!(volume.status().unwrap().errors.settle, 0);

    let reclaims = volume.clone();
    let reclaiming = aside(move || reclaims.reclaim(&|_, _| {}));
    std::thread::sleep(Duration::from_millis(300));
    assert!(reclaiming.try_recv().is_err(), "it waits");
    soon_on(&volume, |volume| volume.freeze(LONG)).unwrap();
    volume.thaw(None).unwrap();
    drop(held);
    let report = reclaiming.recv_timeout(SOON).unwrap().unwrap();
    assert!(report.bytes_freed > 1 << 20, "{report:?}");
    assert!(contents(&volume, ino) == noise(7, 300 * KIB));
    volume.shutdown().unwrap();
}

#[test]
fn every_write_that_was_acknowledged_before_or_during_the_end_is_there_afterwards() {
    const PIECE: usize = 700;
    let (storage, volume) = fresh();
    let files: Vec<u64> = (0..8)
        .map(|i| put(&volume, &format!("{i}"), b"").ino)
        .collect();
    volume.freeze(LONG).unwrap();
    let begun = Instant::now();
    let acknowledged: Vec<usize> = std::thread::scope(|scope| {
        let writers: Vec<_> = files
            .iter()
            .map(|&ino| {
                let volume = &volume;
                // Waits for the thaw, which is the end, and goes on for as long as it may.
                scope.spawn(move || {
                    let mut count = 0;
                    while begun.elapsed() < SOON {
                        let (offset, piece) = (count * PIECE, text(count as u64, PIECE));
                        let mode = WriteMode::default();
                        if volume.write(ino, offset as u64, &piece, mode).is_err() {
                            return count;
                        }
                        count += 1;
                    }
                    panic!("nobody has refused a write to a volume that is closed");
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        volume.shutdown().unwrap();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    drop(volume);
    let volume = open(&storage);
    for (ino, count) in files.iter().zip(acknowledged) {
        let expected: Vec<u8> = (0..count).flat_map(|i| text(i as u64, PIECE)).collect();
        assert!(contents(&volume, *ino) == expected, "{count} writes");
    }
    volume.shutdown().unwrap();
}

/// A file without a name that is still open.
fn unnamed(volume: &Volume) -> u64 {
    let ino = put(volume, "unnamed", &text(1, 50 * KIB)).ino;
    volume.open_file(ino, false, false).unwrap();
    volume.unlink(ROOT, b"unnamed").unwrap();
    ino
}

#[test]
fn what_loses_its_last_user_while_a_freeze_waits_in_vain_is_removed() {
    let (_storage, volume) = fresh();
    let ino = unnamed(&volume);
    let operation = volume.try_change().unwrap();
    let freezes = volume.clone();
    let freezing = aside(move || freezes.freeze(Duration::from_millis(700)));
    soon_on(&volume, move |volume| {
        while volume.try_change().is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        volume.release(ino);
    });
    let error = freezing.recv_timeout(SOON).unwrap().unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY, "{error}");
    drop(operation);
    assert_eq!(volume.status().unwrap().files, 0);
    assert!(volume.getattr(ino).is_err());
    volume.shutdown().unwrap();
}

#[test]
fn what_loses_its_last_user_during_a_freeze_that_fails_is_removed() {
    let (storage, volume) = fresh();
    let ino = unnamed(&volume);
    let dirty = put(&volume, "dirty", b"old").ino;
    write(&volume, dirty, b"new");
    let (releasing, released) = (volume.clone(), AtomicBool::new(false));
    storage.set_hook(Some(Arc::new(move |op, _| {
        if op == SimOp::Write && !released.swap(true, SeqCst) {
            // Not by the thread that freezes, which may do everything.
            let volume = releasing.clone();
            let _ = std::thread::spawn(move || volume.release(ino)).join();
        }
    })));
    storage.set_fault(Some(Fault::FailKind(SimOp::Write, 0, libc::ENOSPC)));
    let error = volume.freeze(LONG).unwrap_err();
    storage.set_hook(None);
    storage.set_fault(None);
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    assert_eq!(volume.status().unwrap().files, 1, "only the dirty one");
    assert!(volume.getattr(ino).is_err());
    assert_eq!(contents(&volume, dirty), b"new");
    volume.shutdown().unwrap();
}

#[test]
fn a_scrub_that_is_stopped_while_frozen_stays_so_after_the_next_mount() {
    for unmount_frozen in [false, true] {
        let (storage, volume) = fresh();
        put(&volume, "f", &noise(1, 3000 * KIB));
        settle(&volume);
        let slow = ScrubOptions {
            rate: Some(1),
            ..ScrubOptions::default()
        };
        volume.scrub(ScrubAction::Start, slow).unwrap();
        volume.freeze(LONG).unwrap();
        volume
            .scrub(ScrubAction::Stop, ScrubOptions::default())
            .unwrap();
        if !unmount_frozen {
            volume.thaw(None).unwrap();
        }
        let volume = remount(&storage, volume);
        let status = volume
            .scrub(ScrubAction::Status, ScrubOptions::default())
            .unwrap();
        assert_eq!(status.state, ScrubState::Idle, "{unmount_frozen}");
        volume.shutdown().unwrap();
    }
}
