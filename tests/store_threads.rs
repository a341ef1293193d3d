//! Many threads at once: commits, syncs, reads, checkpoints and reclaim on one store.

#[path = "common/stop.rs"]
mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use s2sfs::store::{
    BlockId, ExtentRef, NewBlock, Op, OpenOptions, RealStorage, Reclaim, Store, StoreError,
    Transaction,
};

use stop::StopWhenDropped;

const WRITERS: u64 = 4;
const ROUNDS: u64 = 400;
const KEYS: u64 = 16;

fn key(writer: u64, slot: u64) -> Vec<u8> {
    format!("I{writer}-{slot:02}").into_bytes()
}

fn payload(writer: u64, round: u64) -> Vec<u8> {
    let len = 50 + (round as usize * 131) % 3000;
    (0..len)
        .map(|at| (at as u64 * (round + 1) + writer) as u8)
        .collect()
}

/// Overwrites its keys round after round: staged, and every third time settled right away.
fn write(store: &Store, writer: u64) {
    let mut shown: Vec<Option<BlockId>> = vec![None; KEYS as usize];
    for round in 0..ROUNDS {
        let slot = round % KEYS;
        let payload = payload(writer, round);
        let block = NewBlock {
            codec: 1,
            raw_len: 9,
            anchor: None,
            payload: &payload,
        };
        let id = if round % 3 == 0 {
            store.append(&block)
        } else {
            store.stage(&block)
        }
        .expect("append");
        let value = [id.to_be_bytes(), round.to_be_bytes()].concat();
        let mut ops = vec![
            Op::Put {
                key: key(writer, slot),
                value,
            },
            Op::Ref {
                block: id,
                refs: 1,
                live: 5,
            },
        ];
        if let Some(old) = shown[slot as usize].replace(id) {
            ops.push(Op::Ref {
                block: old,
                refs: -1,
                live: -5,
            });
        }
        store.commit(Transaction { ops }).expect("commit");
        if round % 7 == 0 {
            store.sync().expect("sync");
        }
    }
}

/// Reads all keys again and again; a block may die between the key and the block, but not be wrong.
fn read(store: &Store, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for writer in 0..WRITERS {
            for slot in 0..KEYS {
                let Some(value) = store.get(&key(writer, slot)).expect("get") else {
                    continue;
                };
                let id = BlockId::from_be_bytes(value[..8].try_into().expect("eight bytes"));
                let round = u64::from_be_bytes(value[8..].try_into().expect("eight bytes"));
                match store.read_block(id) {
                    Ok(bytes) => assert_eq!(bytes, payload(writer, round)),
                    Err(StoreError::NoSuchBlock(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}

fn verify(store: &Store) {
    let pairs = store.scan(b"I", b"J", 1000).expect("scan");
    assert_eq!(pairs.len() as u64, WRITERS * KEYS);
    let mut refs = pairs.iter().map(|(_, value)| {
        let block = BlockId::from_be_bytes(value[..8].try_into().expect("eight bytes"));
        Ok(ExtentRef { block, live: 5 })
    });
    let report = store.check(&mut refs, &mut |_, _, _| None).expect("check");
    assert_eq!(report.problems, vec![]);
    assert_eq!(report.blocks, WRITERS * KEYS);
}

#[test]
fn threads_do_not_disturb_each_other() {
    for index_cache_bytes in [32 << 20, 0] {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = OpenOptions {
            create: true,
            segment_bytes: 64 << 10,
            index_cache_bytes,
            ..OpenOptions::default()
        };
        let open = || Store::open(Arc::new(RealStorage::new(dir.path())), &options).expect("open");
        let store = open();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = StopWhenDropped(&stop);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    scope.spawn({
                        let store = &store;
                        move || write(store, writer)
                    })
                })
                .collect();
            scope.spawn(|| read(&store, &stop));
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    store
                        .reclaim(Reclaim {
                            min_dead_percent: 10,
                            ..Reclaim::default()
                        })
                        .expect("reclaim");
                    store.checkpoint().expect("checkpoint");
                }
            });
            for writer in writers {
                writer.join().expect("writer");
            }
        });
        verify(&store);
        drop(store);
        let store = open();
        verify(&store);
        store.close().expect("close");
        drop(store);
        let store = open();
        verify(&store);
        assert!(store.usage().expect("usage").log_bytes < 2 << 20);
    }
}
