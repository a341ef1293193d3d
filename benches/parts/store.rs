//! Records, transactions, the index in both kinds, and the cache of decoded data.

use std::sync::Arc;

use s2sfs::benching::{Changes, Index, decode_record, encode_record, mixed};
use s2sfs::cache::Cache;
use s2sfs::codec::Codecs;
use s2sfs::store::{NewBlock, Op, OpenOptions, RealStorage, Store, Transaction};
use tempfile::TempDir;

use super::{Amount, Part, Run, noise, text};

/// Pairs of the index that is measured: about what 25,000 files have.
const PAIRS: u64 = 100_000;
/// Operations of one run.
const BATCH: u64 = 1024;
/// Pairs of a transaction, as making a file has them.
const CHANGES: u64 = 3;
const READ: usize = 4 << 10;
const EXTENT: usize = 128 << 10;

pub fn parts() -> Vec<Part> {
    let mut parts = records();
    parts.extend(transactions());
    for kind in ["memory", "sled"] {
        parts.extend(index(kind));
    }
    parts.push(cache());
    parts
}

fn records() -> Vec<Part> {
    let mut parts = Vec::new();
    for len in [256, EXTENT] {
        let amount = Amount::Bytes(len as u64);
        let name = |what: &str| format!("{what}, body of {len} bytes");
        parts.push(Part::new("record", name("encode"), amount, move || {
            let body = noise(len);
            Box::new(move || encode_record(&body).len() as u64)
        }));
        parts.push(Part::new("record", name("decode"), amount, move || {
            let record = encode_record(&noise(len));
            Box::new(move || decode_record(&record).expect("a record") as u64)
        }));
    }
    parts
}

/// Key and value of the size that those of an inode have.
fn pair(number: u64, round: u64) -> (Vec<u8>, Vec<u8>) {
    let key = [&b"I"[..], &number.to_be_bytes()].concat();
    let value = [mixed(number), mixed(round), number, round].map(u64::to_le_bytes);
    (key, value.concat()[..26].to_vec())
}

fn transactions() -> [Part; 2] {
    let changes = || Changes::puts((0..CHANGES).map(|number| pair(number, 0)));
    let encode = move || -> Run {
        let changes = changes();
        Box::new(move || (0..BATCH).map(|_| changes.encode().len() as u64).sum())
    };
    let decode = move || -> Run {
        let body = changes().encode();
        let decode = move |_| Changes::decode(&body).expect("a transaction") as u64;
        Box::new(move || (0..BATCH).map(&decode).sum())
    };
    let amount = Amount::Elements(BATCH);
    [
        Part::new("transaction", "encode", amount, encode),
        Part::new("transaction", "decode", amount, decode),
    ]
}

fn filled(kind: &str) -> (Index, Option<TempDir>) {
    let (index, dir) = match kind {
        "memory" => (Index::in_memory(), None),
        _ => {
            let dir = TempDir::new().expect("a temporary directory");
            let index = Index::in_sled(&dir.path().join("index"));
            (index.expect("sled"), Some(dir))
        }
    };
    for first in (0..PAIRS).step_by(BATCH as usize) {
        let numbers = first..PAIRS.min(first + BATCH);
        let changes = Changes::puts(numbers.map(|number| pair(number, 0)));
        index.apply(&changes).expect("an index");
    }
    (index, dir)
}

fn index(kind: &'static str) -> [Part; 3] {
    let get = move || -> Run {
        let (index, dir) = filled(kind);
        let mut round = 0;
        Box::new(move || {
            let _dir = &dir;
            round += 1;
            let key = |at| pair(mixed(round << 32 | at) % PAIRS, 0).0;
            let get = |at| index.get(&key(at)).expect("an index").expect("a value");
            (0..BATCH).map(|at| get(at).len() as u64).sum()
        })
    };
    let insert = move || -> Run {
        let (index, dir) = filled(kind);
        let mut round = 0;
        Box::new(move || {
            let _dir = &dir;
            round += 1;
            for at in 0..BATCH {
                let changes = Changes::puts([pair(mixed(round << 32 | at) % PAIRS, round)]);
                index.apply(&changes).expect("an index");
            }
            round
        })
    };
    let scan = move || -> Run {
        let (index, dir) = filled(kind);
        let mut round = 0;
        Box::new(move || {
            let _dir = &dir;
            round += 1;
            let from = pair(mixed(round) % (PAIRS - BATCH), 0).0;
            index.scan(&from, BATCH as usize).expect("an index") as u64
        })
    };
    let amount = Amount::Elements(BATCH);
    [
        Part::new("index", format!("get, {kind}"), amount, get),
        Part::new("index", format!("insert, {kind}"), amount, insert),
        Part::new("index", format!("scan, {kind}"), amount, scan),
    ]
}

/// 4 KiB of what has been decoded already.
fn cache() -> Part {
    let run = || -> Run {
        let dir = TempDir::new().expect("a temporary directory");
        let options = OpenOptions {
            create: true,
            ..OpenOptions::default()
        };
        let storage = Arc::new(RealStorage::new(dir.path().join("store")));
        let store = Store::open(storage, &options).expect("a store");
        let codecs = Codecs::without_model();
        let encoded = codecs.encode_fast(&text(EXTENT));
        let block = NewBlock {
            codec: encoded.codec as u8,
            raw_len: EXTENT as u32,
            anchor: None,
            payload: &encoded.payload,
        };
        let block = store.stage(&block).expect("a block");
        let live = EXTENT as i64;
        let ops = vec![Op::Ref {
            block,
            refs: 1,
            live,
        }];
        store.commit(Transaction { ops }).expect("a commit");
        let cache = Cache::new(Arc::new(store), Arc::new(codecs), 1 << 20, 1);
        let mut out = vec![0; READ];
        cache.read(block, 0, &mut out).expect("what was written");
        let mut round = 0;
        Box::new(move || {
            let _dir = &dir;
            for _ in 0..BATCH {
                round += 1;
                let skip = mixed(round) as usize % (EXTENT - READ);
                cache
                    .read(block, skip as u32, &mut out)
                    .expect("what was written");
            }
            u64::from(out[0])
        })
    };
    Part::new(
        "cache",
        "get 4 KiB",
        Amount::Bytes(BATCH * READ as u64),
        run,
    )
}
