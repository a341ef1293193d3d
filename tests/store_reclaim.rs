//! Reclaim survives a crash at any operation, needs little space, and disturbs nobody.

#[path = "common/stop.rs"]
mod stop;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use s2sfs::store::{
    BlockId, ExtentRef, Fault, NewBlock, Op, OpenOptions, Reclaim, ReclaimReport, SimStorage,
    Store, StoreError, Transaction,
};

use stop::StopWhenDropped;

const SEGMENT: u64 = 8 << 10;

fn options(segment_bytes: u64) -> OpenOptions {
    OpenOptions {
        create: true,
        segment_bytes,
        memory_index: true,
        ..OpenOptions::default()
    }
}

fn open(storage: &SimStorage, segment_bytes: u64) -> Store {
    Store::open(Arc::new(storage.clone()), &options(segment_bytes)).expect("the store opens")
}

fn key(number: u64) -> Vec<u8> {
    let mut key = b"I".to_vec();
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn payload(number: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u64 * 7 + number * 13) as u8)
        .collect()
}

fn show(store: &Store, number: u64, block: BlockId) {
    let ops = vec![
        Op::Put {
            key: key(number),
            value: block.to_be_bytes().to_vec(),
        },
        Op::Ref {
            block,
            refs: 1,
            live: 1,
        },
    ];
    store.commit(Transaction { ops }).expect("commit");
}

fn remove(store: &Store, number: u64, block: BlockId) -> Result<(), StoreError> {
    let ops = vec![
        Op::Delete { key: key(number) },
        Op::Ref {
            block,
            refs: -1,
            live: -1,
        },
    ];
    store.commit(Transaction { ops }).map(|_| ())
}

/// Puts `count` keys with a block each: every other one settled, every fourth anchored to the first.
fn fill(store: &Store, count: u64, len: usize) -> BTreeMap<u64, BlockId> {
    let mut blocks = BTreeMap::new();
    for number in 0..count {
        let bytes = payload(number, len + number as usize % 50);
        let settled = number % 2 == 0;
        let block = NewBlock {
            codec: 1,
            raw_len: 1,
            anchor: (number % 4 == 2).then(|| blocks[&0]),
            payload: &bytes,
        };
        let id = match settled {
            true => store.append(&block),
            false => store.stage(&block),
        }
        .expect("a block");
        show(store, number, id);
        blocks.insert(number, id);
    }
    blocks
}

/// A store with many half dead segments, and the blocks that are left. The anchor has lost its own key
/// and lives for its dependants.
fn wasteful(storage: &SimStorage) -> BTreeMap<u64, BlockId> {
    let store = open(storage, SEGMENT);
    let mut blocks = fill(&store, 60, 900);
    let dead: Vec<u64> = blocks.keys().copied().filter(|n| n % 3 != 2).collect();
    for number in dead {
        remove(&store, number, blocks[&number]).expect("remove");
        blocks.remove(&number);
    }
    store.sync().expect("sync");
    drop(store);
    storage.kill();
    blocks
}

fn thorough() -> Reclaim {
    Reclaim {
        min_dead_percent: 20,
        ..Reclaim::default()
    }
}

/// Everything is there, bit for bit.
fn verify_contents(store: &Store, blocks: &BTreeMap<u64, BlockId>, len: usize) {
    let pairs = store.scan(b"I", b"J", 100_000).expect("scan");
    assert_eq!(pairs.len(), blocks.len());
    for (number, block) in blocks {
        let bytes = store.read_block(*block).expect("a block that is left");
        assert_eq!(bytes, payload(*number, len + *number as usize % 50));
    }
}

/// Everything is there, bit for bit, and counted right.
fn verify(store: &Store, blocks: &BTreeMap<u64, BlockId>, len: usize) {
    verify_contents(store, blocks, len);
    let mut refs = blocks.values().map(|block| {
        Ok(ExtentRef {
            block: *block,
            live: 1,
        })
    });
    let report = store.check(&mut refs, &mut |_, _, _| None).expect("check");
    assert_eq!(report.problems, vec![]);
}

#[test]
fn a_crash_at_any_operation_of_reclaim_loses_nothing_and_the_next_one_goes_on() {
    let dry = SimStorage::new();
    let blocks = wasteful(&dry);
    let store = open(&dry, SEGMENT);
    let begun = dry.operations();
    let report = store.reclaim(thorough()).expect("no fault, no failure");
    assert!(
        report.segments_dropped > 5 && report.bytes_copied > SEGMENT,
        "{report:?}"
    );
    verify(&store, &blocks, 900);
    let operations = dry.operations() - begun;
    assert!(operations > 40, "{operations}");
    for at in 0..operations {
        for power in [false, true] {
            let storage = SimStorage::new();
            let blocks = wasteful(&storage);
            let store = open(&storage, SEGMENT);
            storage.set_fault(Some(Fault::PowerCutAt(at)));
            let cut = store.reclaim(thorough());
            assert!(cut.is_err(), "operation {at} is one of reclaim's");
            drop(store);
            match power {
                true => storage.crash(at),
                false => storage.kill(),
            }
            let store = open(&storage, SEGMENT);
            verify_contents(&store, &blocks, 900);
            // A cut between its two copies leaves a checkpoint with one.
            store.checkpoint().expect("checkpoint");
            verify(&store, &blocks, 900);
            store.reclaim(thorough()).expect("reclaim");
            verify(&store, &blocks, 900);
            let usage = store.usage().expect("usage");
            assert!(usage.dead_bytes < usage.log_bytes * 2 / 3, "{usage:?}");
        }
    }
}

/// Reclaims until nothing comes of it any more.
fn reclaim_all(store: &Store) -> ReclaimReport {
    let mut all = ReclaimReport::default();
    for _ in 0..100 {
        let round = store.reclaim(thorough()).expect("reclaim");
        all.bytes_freed += round.bytes_freed;
        all.bytes_copied += round.bytes_copied;
        if round.bytes_freed <= round.bytes_copied {
            return all;
        }
    }
    panic!("reclaim never ends: {all:?}");
}

#[test]
fn reclaim_needs_no_more_space_than_one_segment_and_two_checkpoints() {
    const LEN: usize = 3000;
    let segment = 64 << 10;
    let storage = SimStorage::new();
    storage.set_capacity(64 << 20);
    let store = open(&storage, segment);
    let mut blocks = fill(&store, 3000, LEN);
    let dead: Vec<u64> = blocks.keys().copied().filter(|n| n % 5 < 3).collect();
    for number in dead {
        remove(&store, number, blocks[&number]).expect("remove");
        blocks.remove(&number);
    }
    store.checkpoint().expect("checkpoint");
    let before = store.usage().expect("usage");
    let used: u64 = (64 << 20) - store.free_space().expect("space").0;
    // What the reserve takes is given back to reclaim, so it must not be what saves it here.
    let bound = segment + 2 * before.checkpoint_bytes + (128 << 10);
    storage.set_capacity(used - (4 << 20) + bound);
    let (stop, blocks) = (AtomicBool::new(false), parking_lot::RwLock::new(blocks));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let blocks = blocks.read();
                for (number, block) in blocks.iter().step_by(17) {
                    let bytes = store.read_block(*block).expect("readers see no full disk");
                    assert_eq!(bytes, payload(*number, LEN + *number as usize % 50));
                }
            }
        });
        scope.spawn(|| {
            for _ in 0..100 {
                // before the removal, or a reader may look for what is gone
                let mut blocks = blocks.write();
                let (number, block) = blocks.pop_last().expect("one is left");
                remove(&store, number, block).expect("deleters see no full disk");
            }
        });
        let _stop = StopWhenDropped(&stop);
        reclaim_all(&store)
    });
    reclaim_all(&store);
    assert!(report.bytes_copied > 10 * segment, "{report:?}");
    let after = store.usage().expect("usage");
    assert!(
        after.dead_bytes < before.dead_bytes / 4 && after.log_bytes < before.log_bytes / 2,
        "{before:?} {after:?}"
    );
    verify(&store, &blocks.read(), LEN);
}

#[test]
fn on_a_small_disk_segments_are_small_enough_to_be_copied_out() {
    const LEN: usize = 60_000;
    let storage = SimStorage::new();
    storage.set_capacity(96 << 20);
    let store = open(&storage, OpenOptions::default().segment_bytes);
    let mut blocks = BTreeMap::new();
    // Until the disk is full.
    for number in 0.. {
        let bytes = payload(number, LEN + number as usize % 50);
        let block = NewBlock {
            codec: 1,
            raw_len: 1,
            anchor: None,
            payload: &bytes,
        };
        match store.stage(&block) {
            Ok(id) => {
                show(&store, number, id);
                blocks.insert(number, id);
            }
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                break;
            }
        }
    }
    assert!(blocks.len() > 1000, "{}", blocks.len());
    let dead: Vec<u64> = blocks.keys().copied().filter(|n| n % 3 != 0).collect();
    for number in dead {
        remove(&store, number, blocks[&number]).expect("remove");
        blocks.remove(&number);
    }
    let before = store.usage().expect("usage");
    reclaim_all(&store);
    let after = store.usage().expect("usage");
    assert!(
        after.dead_bytes < before.dead_bytes / 5,
        "{before:?} {after:?}"
    );
    verify(&store, &blocks, LEN);
}
