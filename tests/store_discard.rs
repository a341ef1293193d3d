//! Giving up a block beside commits that may refer to it.

mod common;

use common::noise;
use parking_lot::Mutex;
use s2sfs::store::{BlockId, NewBlock, Op, OpenOptions, SimOp, SimStorage, Store, Transaction};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn open(storage: &SimStorage) -> Store {
    let options = OpenOptions {
        create: true,
        memory_index: true,
        // Each block has a segment of its own, which goes when the block is dead.
        segment_bytes: 4096,
        ..OpenOptions::default()
    };
    Store::open(Arc::new(storage.clone()), &options).expect("the store opens")
}

fn append(store: &Store, payload: &[u8], anchor: Option<BlockId>) -> BlockId {
    let block = NewBlock {
        codec: 1,
        raw_len: 9,
        anchor,
        payload,
    };
    store.append(&block).expect("append")
}

fn show(store: &Store, block: BlockId) {
    let put = Op::Put {
        key: b"Ifile".to_vec(),
        value: block.to_be_bytes().to_vec(),
    };
    let refer = Op::Ref {
        block,
        refs: 1,
        live: 9,
    };
    let ops = vec![put, refer];
    store.commit(Transaction { ops }).expect("commit");
}

#[test]
fn a_block_that_a_commit_adopts_as_an_anchor_while_it_is_given_up_stays_and_is_counted() {
    let storage = SimStorage::new();
    let store = Arc::new(open(&storage));
    let first = append(&store, &noise(0, 100), None);
    show(&store, first);
    let payloads = [noise(1, 3000), noise(2, 3000)];
    let anchor = append(&store, &payloads[0], None);
    let anchored = append(&store, &payloads[1], Some(anchor));
    append(&store, &noise(3, 3000), None);

    // Settling gives up a block while another one that is anchored to it is on its way into the journal.
    let gives_up: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
    let (hooked, thread) = (store.clone(), gives_up.clone());
    storage.set_hook(Some(Arc::new(move |op, path| {
        let mut thread = thread.lock();
        if op != SimOp::Write || !path.ends_with(".j") || thread.is_some() {
            return;
        }
        let store = hooked.clone();
        let gives_up = std::thread::spawn(move || store.discard(anchor));
        let until = Instant::now() + Duration::from_millis(300);
        while !gives_up.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        *thread = Some(gives_up);
    })));
    show(&store, anchored);
    storage.set_hook(None);
    let gives_up = gives_up.lock().take().expect("the journal was written");
    gives_up.join().expect("giving up ends");

    store.checkpoint().expect("checkpoint");
    for (block, payload) in [anchor, anchored].into_iter().zip(&payloads) {
        assert!(store.read_block(block).expect("it is there") == *payload);
    }
    let counted = store.usage().expect("usage").settled_bytes;
    drop(store);
    storage.kill();
    let store = open(&storage);
    assert_eq!(store.block_info(anchor).expect("it is there").refs, 1);
    // Garbage that nobody refers to is not found again.
    let garbage = 3000..3200;
    let found = store.usage().expect("usage").settled_bytes;
    assert!(garbage.contains(&(counted - found)), "{counted}, {found}");
}
