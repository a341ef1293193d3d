//! Many readers and writers on the same files while everything else goes on: staging, settling,
//! reclaiming, scrubbing and checkpoints, with tiny segments, a tiny cache and little room for dirty data.
//!
//! Files consist of slots. A write fills one slot with records of 64 bytes that name file, slot and
//! version and carry a checksum, so a reader can tell what it sees: all records of a slot are of one
//! write, no version is older than one whose write had ended before the read began, and none is newer
//! than the last that had begun when the read ended. S2SFS_STRESS_SECONDS makes it last longer.

mod common;

use common::random::Random;
use common::stop::StopWhenDropped;
use common::*;
use s2sfs::control::{ScrubAction, ScrubOptions};
use s2sfs::settle::Host;
use s2sfs::store::{OpenOptions, SimStorage, Store};
use s2sfs::volume::{
    Place, ROOT, RenameMode, SetAttr, Volume, VolumeError, VolumeOptions, WriteMode,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const RECORD: usize = 64;
/// Does not divide the windows in which data is settled, so that slots lie across their borders.
const SLOT: usize = 48 * RECORD;
const SLOTS: usize = 24;
const FILES: usize = 4;

fn seconds() -> Duration {
    let asked = std::env::var("S2SFS_STRESS_SECONDS").ok();
    Duration::from_secs(asked.and_then(|s| s.parse().ok()).unwrap_or(4))
}

/// One slot: the versions whose writing has begun, and has ended.
#[derive(Default)]
struct Slot {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Held by the one who writes: versions follow each other.
    writing: parking_lot::Mutex<()>,
}

struct Shared {
    volume: Arc<Volume>,
    inos: Vec<u64>,
    slots: Vec<Vec<Slot>>,
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// The record at `index` of a slot: names itself, has some filling that compresses, and a checksum.
fn record(file: usize, slot: usize, index: usize, version: u64) -> [u8; RECORD] {
    let mut bytes = [b'.'; RECORD];
    bytes[..8].copy_from_slice(&(file as u64).to_le_bytes());
    bytes[8..16].copy_from_slice(&((slot * 1000 + index) as u64).to_le_bytes());
    bytes[16..24].copy_from_slice(&version.to_le_bytes());
    let line = format!("version {version} of slot {slot}");
    bytes[24..24 + line.len()].copy_from_slice(line.as_bytes());
    let check = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn slot_bytes(file: usize, slot: usize, version: u64) -> Vec<u8> {
    (0..SLOT / RECORD)
        .flat_map(|index| record(file, slot, index, version))
        .collect()
}

/// The version that all of a slot's records have; 0 for a slot that was never written or was cut off.
fn version_of(file: usize, slot: usize, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|b| *b == 0) {
        return 0;
    }
    let version = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    for (index, found) in bytes.chunks(RECORD).enumerate() {
        let expected = record(file, slot, index, version);
        assert!(
            found == expected,
            "file {file}, slot {slot}, record {index}, version {version}: {:?}",
            String::from_utf8_lossy(found)
        );
    }
    version
}

impl Shared {
    fn running(&self) -> bool {
        !self.stop.load(SeqCst)
    }

    /// Writes the next version of a slot, in one piece.
    fn write(&self, file: usize, slot: usize) {
        let state = &self.slots[file][slot];
        let _writing = state.writing.lock();
        let version = state.begun.fetch_add(1, SeqCst) + 1;
        let data = slot_bytes(file, slot, version);
        let offset = (slot * SLOT) as u64;
        self.volume
            .write(self.inos[file], offset, &data, WriteMode::default())
            .expect("write");
        state.ended.store(version, SeqCst);
        self.writes.fetch_add(1, SeqCst);
    }

    /// Reads a slot and judges what it shows. `never_cut`: no truncation ever reaches it.
    fn read(&self, file: usize, slot: usize) {
        let state = &self.slots[file][slot];
        let oldest = state.ended.load(SeqCst);
        let offset = (slot * SLOT) as u64;
        let bytes = self.volume.read(self.inos[file], offset, SLOT);
        let bytes = bytes.expect("read");
        let newest = state.begun.load(SeqCst);
        let whole = bytes.len() == SLOT;
        assert!(
            whole || file == 0 || oldest == 0,
            "file {file} is too short"
        );
        if !whole {
            return;
        }
        let version = version_of(file, slot, &bytes);
        // File 0 is truncated now and then: what was cut off reads as zeros.
        let cut = file == 0 && version == 0;
        assert!(
            cut || (oldest..=newest).contains(&version),
            "file {file}, slot {slot}: version {version}, not {oldest} to {newest}"
        );
        self.reads.fetch_add(1, SeqCst);
    }

    /// Cuts the first file off while nobody writes the slots behind the cut.
    fn truncate(&self, slot: usize) {
        let guards: Vec<_> = self.slots[0][slot..]
            .iter()
            .map(|state| state.writing.lock())
            .collect();
        let set = SetAttr {
            size: Some((slot * SLOT) as u64),
            ..SetAttr::default()
        };
        self.volume.setattr(self.inos[0], set).expect("truncate");
        drop(guards);
    }
}

fn writer(shared: &Shared, seed: u64) {
    let mut random = Random::new(seed);
    while shared.running() {
        let file = random.below(FILES);
        shared.write(file, random.below(SLOTS));
        match random.below(40) {
            0 => shared.volume.fsync(shared.inos[file]).expect("fsync"),
            1..5 => shared.volume.flush(shared.inos[file]).expect("flush"),
            5 => shared.truncate(random.below(SLOTS)),
            _ => {}
        }
    }
}

fn reader(shared: &Shared, seed: u64) {
    let mut random = Random::new(seed);
    while shared.running() {
        shared.read(random.below(FILES), random.below(SLOTS));
        std::thread::yield_now();
    }
}

/// Makes, renames over each other, copies and removes small files; each holds one whole slot.
fn names(shared: &Shared, seed: u64) {
    let mut random = Random::new(seed);
    let volume = &shared.volume;
    let missing = |error: &VolumeError| error.errno() == libc::ENOENT;
    let mut version = 0;
    while shared.running() {
        let (from, to) = (random.below(6), random.below(6));
        let name = |number: usize| format!("{seed}-{number}.txt").into_bytes();
        match random.below(4) {
            0 => {
                version += 1;
                if volume.lookup(ROOT, &name(from)).is_err() {
                    let text = String::from_utf8(name(from)).unwrap();
                    put(volume, &text, &slot_bytes(99, 0, version));
                }
            }
            1 => {
                let (a, b) = (name(from), name(to));
                let (from, to) = (
                    Place {
                        parent: ROOT,
                        name: &a,
                    },
                    Place {
                        parent: ROOT,
                        name: &b,
                    },
                );
                let renamed = volume.rename(from, to, RenameMode::Replace);
                assert!(renamed.as_ref().err().is_none_or(missing), "{renamed:?}");
            }
            2 => {
                let removed = volume.unlink(ROOT, &name(from));
                assert!(removed.as_ref().err().is_none_or(missing), "{removed:?}");
            }
            _ => {
                if let Ok(stat) = volume.lookup(ROOT, &name(from)) {
                    let bytes = volume.read(stat.ino, 0, SLOT).expect("only we remove it");
                    assert_eq!(bytes.len(), SLOT);
                    assert!(version_of(99, 0, &bytes) > 0, "a name without its data");
                }
            }
        }
    }
}

fn upkeep(shared: &Shared) {
    let host: &dyn Host = &*shared.volume;
    let options = ScrubOptions::default();
    while shared.running() {
        host.reclaim().expect("reclaim");
        let scrub = shared.volume.scrub(ScrubAction::Status, options);
        if !scrub.expect("status").is_active() {
            shared
                .volume
                .scrub(ScrubAction::Start, options)
                .expect("scrub");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn open_tiny(storage: &SimStorage) -> Arc<Volume> {
    let open = OpenOptions {
        create: true,
        segment_bytes: 32 << 10,
        memory_index: true,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &open).expect("the store opens");
    let options = VolumeOptions {
        cache_bytes: 96 << 10,
        dirty_bytes: 1 << 20,
        extent: 16 << 10,
        settle_after: Duration::ZERO,
        threads: 2,
        ..VolumeOptions::default()
    };
    Volume::open(store, codecs(), options).expect("the volume opens")
}

#[test]
fn every_read_shows_a_state_that_some_order_of_writes_allows() {
    let storage = SimStorage::new();
    let volume = open_tiny(&storage);
    let inos = (0..FILES)
        .map(|file| {
            let stat = volume.create(ROOT, format!("f{file}").as_bytes(), 0o644, caller());
            stat.expect("create").ino
        })
        .collect();
    let slots = || (0..SLOTS).map(|_| Slot::default()).collect();
    let shared = Shared {
        volume,
        inos,
        slots: (0..FILES).map(|_| slots()).collect(),
        stop: AtomicBool::new(false),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let shared = &shared;
        let _stop = StopWhenDropped(&shared.stop);
        let mut threads = Vec::new();
        for seed in 1..4u64 {
            threads.push(scope.spawn(move || writer(shared, seed)));
            threads.push(scope.spawn(move || reader(shared, 100 + seed)));
        }
        threads.push(scope.spawn(|| names(shared, 7)));
        threads.push(scope.spawn(|| names(shared, 8)));
        threads.push(scope.spawn(|| upkeep(shared)));
        let until = Instant::now() + seconds();
        while Instant::now() < until && !threads.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (reads, writes) = (shared.reads.load(SeqCst), shared.writes.load(SeqCst));
    assert!(
        reads > 100 && writes > 100,
        "{reads} reads, {writes} writes"
    );
    let status = shared
        .volume
        .scrub(ScrubAction::Status, ScrubOptions::default());
    assert_eq!(status.expect("status").findings, vec![]);
    for _ in 0..2 {
        for file in 0..FILES {
            for slot in 0..SLOTS {
                shared.read(file, slot);
            }
        }
        settle(&shared.volume);
    }
    let Shared {
        volume,
        inos,
        slots,
        ..
    } = shared;
    volume.shutdown().expect("shutdown");
    drop(volume);
    let volume = open_tiny(&storage);
    for (file, ino) in inos.iter().enumerate().skip(1) {
        for (slot, state) in slots[file].iter().enumerate() {
            let last = state.ended.load(SeqCst);
            let bytes = volume.read(*ino, (slot * SLOT) as u64, SLOT).expect("read");
            if last > 0 {
                assert_eq!(
                    version_of(file, slot, &bytes),
                    last,
                    "the last write of all"
                );
            }
        }
    }
}
