//! The everyday promises of the store: what was put in is there, also after closing and opening again.

use std::sync::Arc;

use s2sfs::store::{NewBlock, Op, OpenOptions, RealStorage, Store, StoreError, Transaction};

fn open(dir: &std::path::Path) -> Store {
    let options = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    Store::open(Arc::new(RealStorage::new(dir)), &options).expect("open")
}

fn put(key: &str, value: &str) -> Op {
    Op::Put {
        key: key.into(),
        value: value.into(),
    }
}

fn block(payload: &[u8]) -> NewBlock<'_> {
    NewBlock {
        codec: 3,
        raw_len: 2 * payload.len() as u32,
        anchor: None,
        payload,
    }
}

#[test]
fn commits_and_blocks_are_there_after_close_and_after_a_crash() {
    let dir = tempfile::tempdir().expect("tempdir");
    for close in [true, false] {
        let root = dir.path().join(format!("store-{close}"));
        let store = open(&root);
        let staged = store.stage(&block(b"staged bytes")).expect("stage");
        let settled = store.append(&block(b"settled bytes")).expect("append");
        let refs = |id| Op::Ref {
            block: id,
            refs: 1,
            live: 10,
        };
        store
            .commit(Transaction {
                ops: vec![put("I1", "one"), refs(staged), refs(settled)],
            })
            .expect("commit");
        store
            .commit(Transaction {
                ops: vec![
                    put("I2", "two"),
                    Op::Delete {
                        key: b"I1".to_vec(),
                    },
                ],
            })
            .expect("commit");
        if close {
            store.close().expect("close");
        }
        drop(store);
        let store = open(&root);
        assert_eq!(store.get(b"I1").expect("get"), None);
        assert_eq!(
            store.scan(b"I", b"J", 9).expect("scan"),
            vec![(b"I2".to_vec(), b"two".to_vec())]
        );
        assert_eq!(store.read_block(staged).expect("read"), b"staged bytes");
        assert_eq!(store.read_block(settled).expect("read"), b"settled bytes");
        let info = store.block_info(settled).expect("info");
        assert_eq!(
            (info.refs, info.live, info.staged, info.codec),
            (1, 10, false, 3)
        );
        assert!(store.stage(&block(b"x")).expect("stage") > settled);
    }
}

#[test]
fn a_second_opening_is_refused_while_the_first_lasts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = open(dir.path());
    let second = Store::open(
        Arc::new(RealStorage::new(dir.path())),
        &OpenOptions::default(),
    );
    assert!(matches!(second, Err(StoreError::Locked(_))));
    drop(store);
    open(dir.path());
}

#[test]
fn the_journal_of_a_store_in_use_is_bounded_by_checkpoints() {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = OpenOptions {
        create: true,
        segment_bytes: 2 << 20,
        ..OpenOptions::default()
    };
    let storage = Arc::new(RealStorage::new(dir.path()));
    let store = Store::open(storage, &options).expect("open");
    let value = vec![7u8; 1000];
    for number in 0..60_000u32 {
        let ops = vec![Op::Put {
            key: format!("K{}", number % 50).into_bytes(),
            value: value.clone(),
        }];
        store.commit(Transaction { ops }).expect("commit");
    }
    let usage = store.usage().expect("usage");
    assert!(usage.log_bytes < 22 << 20, "{usage:?}");
}
