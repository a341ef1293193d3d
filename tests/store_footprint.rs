//! What a store costs on disk beyond its blocks. Run with `--nocapture` to see the figures.

#[path = "common/random.rs"]
mod random;

use random::noise;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use s2sfs::store::{NewBlock, Op, OpenOptions, RealStorage, Reclaim, Store, Transaction, Usage};

fn open(root: &Path, index_cache_bytes: u64) -> Store {
    let options = OpenOptions {
        create: true,
        index_cache_bytes,
        ..OpenOptions::default()
    };
    Store::open(Arc::new(RealStorage::new(root)), &options).expect("open")
}

/// An inode as a volume stores it: mode, owner, size, and times that differ in their nanoseconds.
fn inode(number: u64) -> Vec<u8> {
    let mut value = vec![0xa4, 0x83, 0x02, 0xe8, 0x07, 0xe8, 0x07, 0x01, 0xf4, 0x03];
    for clock in 0..3 {
        value.extend_from_slice(&(1_763_700_000u32 + number as u32 / 500).to_le_bytes());
        value.extend_from_slice(&noise(number * 3 + clock, 4));
    }
    value
}

fn put(key: Vec<u8>, value: Vec<u8>) -> Op {
    Op::Put { key, value }
}

fn file_ops(number: u64) -> Vec<Op> {
    let be = |prefix: u8, id: u64| [&[prefix][..], &id.to_be_bytes()].concat();
    let name = format!("message-{number:05}.txt");
    vec![
        put(be(b'I', number), inode(number)),
        put(
            [be(b'D', 2 + number / 100), name.into_bytes()].concat(),
            number.to_le_bytes()[..3].to_vec(),
        ),
    ]
}

/// Creates files one by one, staged, and settles them in packs of 260, as a volume does.
fn fill(store: &Store, files: u64, payload: usize) -> u64 {
    let mut staged = Vec::new();
    let mut settled_bytes = 0;
    for number in 0..files {
        let bytes = noise(number, 400);
        let id = store
            .stage(&NewBlock {
                codec: 1,
                raw_len: 500,
                anchor: None,
                payload: &bytes,
            })
            .expect("stage");
        let mut ops = file_ops(1000 + number);
        ops.push(Op::Ref {
            block: id,
            refs: 1,
            live: 500,
        });
        store.commit(Transaction { ops }).expect("commit");
        staged.push((1000 + number, id));
    }
    for pack in staged.chunks(260) {
        let bytes = noise(pack[0].0, payload);
        let block = NewBlock {
            codec: 3,
            raw_len: 130_000,
            anchor: None,
            payload: &bytes,
        };
        let id = store.append(&block).expect("append");
        settled_bytes += bytes.len() as u64;
        let mut ops = Vec::new();
        for (at, (number, old)) in pack.iter().enumerate() {
            let key = [&[b'E'][..], &number.to_be_bytes(), &[0; 8]].concat();
            let skip = (at as u32 * 500).to_le_bytes();
            ops.push(put(
                key,
                [&[0xf4, 0x03][..], &id.to_le_bytes()[..3], &skip[..3]].concat(),
            ));
            ops.push(Op::Ref {
                block: *old,
                refs: -1,
                live: -500,
            });
            ops.push(Op::Ref {
                block: id,
                refs: 1,
                live: 500,
            });
        }
        store.commit(Transaction { ops }).expect("commit");
    }
    settled_bytes
}

fn report(what: &str, usage: &Usage, blocks: u64) -> u64 {
    let beyond = usage.stored_bytes() - blocks;
    println!("{what}: {usage:?}; beyond the blocks: {beyond} bytes");
    beyond
}

#[test]
fn ten_thousand_small_files_cost_little_beyond_their_blocks() {
    for (what, cache, limit) in [("memory", 32 << 20, 700 << 10), ("sled", 0, 3 << 20)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let start = Instant::now();
        let store = open(dir.path(), cache);
        let blocks = fill(&store, 10_000, 40_000);
        println!("{what}: filled in {:?}", start.elapsed());
        store.close().expect("close");
        println!("{what}: closed after {:?}", start.elapsed());
        let usage = store.usage().expect("usage");
        assert!(report(what, &usage, blocks) < limit);
        drop(store);
        let start = Instant::now();
        let store = open(dir.path(), cache);
        println!("{what}: opened again in {:?}", start.elapsed());
        assert_eq!(store.scan(b"I", b"J", 20_000).expect("scan").len(), 10_000);
        store.close().expect("close");
    }
}

#[test]
fn a_store_of_a_few_big_files_costs_less_than_48_kib_beyond_its_blocks() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path(), 32 << 20);
    let mut blocks = 0;
    for number in 0..5 {
        let mut ops = file_ops(number);
        for extent in 0..60u64 {
            let bytes = noise(number * 100 + extent, 30_000);
            let id = store
                .append(&NewBlock {
                    codec: 3,
                    raw_len: 131_072,
                    anchor: None,
                    payload: &bytes,
                })
                .expect("append");
            blocks += bytes.len() as u64;
            let key = [
                &[b'E'][..],
                &number.to_be_bytes(),
                &(extent << 17).to_be_bytes(),
            ]
            .concat();
            ops.push(put(
                key,
                [&[0x80, 0x80, 8][..], &id.to_le_bytes()[..3]].concat(),
            ));
            ops.push(Op::Ref {
                block: id,
                refs: 1,
                live: 131_072,
            });
        }
        store.commit(Transaction { ops }).expect("commit");
    }
    store.close().expect("close");
    assert!(report("5 big files", &store.usage().expect("usage"), blocks) < 48 << 10);
}

#[test]
fn staging_is_fast_and_a_settled_store_shrinks_to_what_is_live() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path(), 32 << 20);
    let bytes = noise(1, 64 << 10);
    let start = Instant::now();
    let mut ids = Vec::new();
    for number in 0..4096u64 {
        let id = store
            .stage(&NewBlock {
                codec: 1,
                raw_len: 131_072,
                anchor: None,
                payload: &bytes,
            })
            .expect("stage");
        let mut ops = file_ops(number);
        ops.push(Op::Ref {
            block: id,
            refs: 1,
            live: 131_072,
        });
        store.commit(Transaction { ops }).expect("commit");
        ids.push(id);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "staging: {:.0} MB/s of payload",
        4096.0 * 65.536 / 1000.0 / seconds
    );
    let start = Instant::now();
    for id in &ids {
        store.read_block(*id).expect("read");
    }
    println!(
        "reading: {:.0} MB/s",
        4096.0 * 65.536 / 1000.0 / start.elapsed().as_secs_f64()
    );
    for id in ids {
        store
            .commit(Transaction {
                ops: vec![Op::Ref {
                    block: id,
                    refs: -1,
                    live: -131_072,
                }],
            })
            .expect("commit");
    }
    let report = store.reclaim(Reclaim::default()).expect("reclaim");
    println!("reclaim: {report:?}");
    assert!(report.bytes_freed > 200 << 20);
    let start = Instant::now();
    for number in 0..50_000u64 {
        let ops = vec![put(
            [&b"K"[..], &number.to_be_bytes()].concat(),
            vec![7; 30],
        )];
        store.commit(Transaction { ops }).expect("commit");
    }
    println!(
        "commit: {:.1} us",
        start.elapsed().as_secs_f64() * 1e6 / 50_000.0
    );
    store.close().expect("close");
    assert!(store.usage().expect("usage").stored_bytes() < 2 << 20);
}

#[test]
fn settling_and_reclaim_free_the_staged_space_of_a_store_in_use() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path(), 32 << 20);
    let staged_bytes = noise(1, 64 << 10);
    let mut staged = Vec::new();
    for number in 0..600 {
        let block = NewBlock {
            codec: 1,
            raw_len: 131_072,
            anchor: None,
            payload: &staged_bytes,
        };
        let id = store.stage(&block).expect("stage");
        let mut ops = file_ops(number);
        ops.push(Op::Ref {
            block: id,
            refs: 1,
            live: 131_072,
        });
        store.commit(Transaction { ops }).expect("commit");
        staged.push(id);
    }
    store.sync().expect("sync");
    let settled_bytes = noise(2, 20_000);
    for old in staged {
        let block = NewBlock {
            codec: 3,
            raw_len: 131_072,
            anchor: None,
            payload: &settled_bytes,
        };
        let id = store.append(&block).expect("append");
        let ops = vec![
            Op::Ref {
                block: old,
                refs: -1,
                live: -131_072,
            },
            Op::Ref {
                block: id,
                refs: 1,
                live: 131_072,
            },
        ];
        store.commit(Transaction { ops }).expect("commit");
    }
    store.reclaim(Reclaim::default()).expect("reclaim");
    let usage = store.usage().expect("usage");
    println!("settled, still open: {usage:?}");
    assert_eq!(usage.staged_bytes, 0);
    assert!(usage.stored_bytes() < 600 * 20_000 + (1 << 20));
}
