//! Damaged stores: a clear error, or recovery, and never a panic or wrong bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use s2sfs::store::{
    BlockId, ExtentRef, Fault, NewBlock, Op, OpenOptions, RealStorage, SimOp, SimStorage, Store,
    StoreError, Transaction,
};

fn options() -> OpenOptions {
    OpenOptions {
        create: true,
        segment_bytes: 16 << 10,
        ..OpenOptions::default()
    }
}

fn open(storage: &SimStorage) -> Result<Store, StoreError> {
    Store::open(Arc::new(storage.clone()), &options())
}

fn key(number: u64) -> Vec<u8> {
    [&b"I"[..], &number.to_be_bytes()].concat()
}

/// Adds a key that refers to a block whose payload is known from the key.
fn add(store: &Store, number: u64, anchor: Option<BlockId>) -> BlockId {
    let payload = payload(number);
    let block = NewBlock {
        codec: 1,
        raw_len: 500,
        anchor,
        payload: &payload,
    };
    let id = if number.is_multiple_of(2) {
        store.stage(&block)
    } else {
        store.append(&block)
    }
    .expect("append");
    let ops = vec![
        Op::Put {
            key: key(number),
            value: id.to_be_bytes().to_vec(),
        },
        Op::Ref {
            block: id,
            refs: 1,
            live: 500,
        },
    ];
    store.commit(Transaction { ops }).expect("commit");
    id
}

fn payload(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(300 + (number as usize * 37) % 900, number as u8);
    bytes
}

/// A store with 60 blocks, one checkpoint in the middle and a sync after every tenth key.
fn filled() -> SimStorage {
    let storage = SimStorage::new();
    let store = open(&storage).expect("open");
    for number in 0..60 {
        add(&store, number, None);
        if number % 10 == 9 {
            store.sync().expect("sync");
        }
        if number == 30 {
            store.checkpoint().expect("checkpoint");
        }
    }
    drop(store);
    storage.kill();
    storage
}

/// The keys that a store shows, and whether each one's block can be read. Wrong bytes fail the test.
fn contents(store: &Store) -> BTreeMap<u64, bool> {
    let pairs = store.scan(b"I", b"J", 1000).expect("scan");
    let read = |(key, value): (Vec<u8>, Vec<u8>)| {
        let number = u64::from_be_bytes(key[1..].try_into().expect("eight bytes"));
        let id = BlockId::from_be_bytes(value.try_into().expect("eight bytes"));
        match store.read_block(id) {
            Ok(bytes) => {
                assert_eq!(bytes, payload(number), "wrong bytes");
                (number, true)
            }
            Err(StoreError::Damaged { place, .. }) => {
                assert!(
                    place.contains("offset") && place.contains("block"),
                    "{place}"
                );
                (number, false)
            }
            Err(other) => panic!("unexpected error: {other}"),
        }
    };
    pairs.into_iter().map(read).collect()
}

fn extents(store: &Store) -> Vec<s2sfs::store::Pair> {
    store.scan(b"I", b"J", 1000).expect("scan")
}

fn check(store: &Store) -> Vec<String> {
    let pairs = extents(store);
    let mut refs = pairs.into_iter().map(|(_, value)| {
        Ok(ExtentRef {
            block: BlockId::from_be_bytes(value.try_into().expect("eight bytes")),
            live: 500,
        })
    });
    let report = store.check(&mut refs, &mut |_, _, _| None).expect("check");
    report.problems.iter().map(ToString::to_string).collect()
}

fn files_of(storage: &SimStorage, kind: &str) -> Vec<String> {
    storage
        .files()
        .into_iter()
        .filter(|path| path.ends_with(kind))
        .collect()
}

fn change(storage: &SimStorage, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = storage.contents(path).expect("the file exists");
    change(&mut bytes);
    storage.set_contents(path, bytes);
}

#[derive(Debug, Clone)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Truncate { at: usize },
    Zero { at: usize, len: usize },
    Remove,
    Append { len: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => any::<usize>().prop_map(|at| Damage::Truncate { at }),
        2 => (any::<usize>(), 1usize..5000).prop_map(|(at, len)| Damage::Zero { at, len }),
        1 => Just(Damage::Remove),
        1 => (1usize..5000).prop_map(|len| Damage::Append { len }),
    ]
}

impl Damage {
    fn apply(&self, storage: &SimStorage, path: &str) {
        let change = |with: &dyn Fn(&mut Vec<u8>)| change(storage, path, |bytes| with(bytes));
        match *self {
            Damage::Remove => storage.remove(path),
            Damage::Append { len } => {
                change(&|bytes| bytes.extend((0..len).map(|i| (i * 7) as u8)))
            }
            Damage::Truncate { at } => change(&|bytes| bytes.truncate(at % bytes.len().max(1))),
            Damage::Flip { at, bit } => change(&|bytes| {
                let len = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at % len) {
                    *byte ^= 1 << bit;
                }
            }),
            Damage::Zero { at, len } => change(&|bytes| {
                let at = at % bytes.len().max(1);
                bytes
                    .iter_mut()
                    .skip(at)
                    .take(len)
                    .for_each(|byte| *byte = 0);
            }),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_gives_an_error_or_a_prefix_and_never_wrong_bytes(
        which: prop::sample::Index, damages in prop::collection::vec(damage(), 1..3), close: bool,
    ) {
        let storage = filled();
        if close {
            let store = open(&storage).expect("open");
            store.close().expect("close");
            drop(store);
        }
        let files = storage.files();
        let path = which.get(&files);
        for damage in &damages {
            if storage.contents(path).is_some() {
                damage.apply(&storage, path);
            }
        }
        match open(&storage) {
            Ok(store) => {
                let found = contents(&store);
                let expected: Vec<u64> = (0..found.len() as u64).collect();
                prop_assert_eq!(found.keys().copied().collect::<Vec<u64>>(), expected);
                let unreadable = found.values().filter(|readable| !**readable).count();
                let problems = check(&store);
                prop_assert!(problems.len() >= unreadable, "{:?}", problems);
                // Whatever is left goes on working.
                add(&store, found.len() as u64, None);
                let _ = store.reclaim(Default::default());
                store.close().expect("close");
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn damage_in_the_middle_of_the_journal_is_not_taken_for_a_torn_tail() {
    let storage = filled();
    let journal = files_of(&storage, ".j");
    let last = journal.last().expect("a journal");
    // The last segment was synced in parts; its first records are known to have been durable.
    change(&storage, last, |bytes| bytes[60] ^= 1);
    let error = open(&storage).err().expect("refused").to_string();
    assert!(
        error.contains(last.as_str()) && error.contains("offset 48"),
        "{error}"
    );
}

#[test]
fn a_torn_tail_is_cut_and_the_store_goes_on() {
    let storage = filled();
    let last = files_of(&storage, ".j").pop().expect("a journal");
    change(&storage, &last, |bytes| bytes.truncate(bytes.len() - 5));
    let store = open(&storage).expect("open");
    assert_eq!(contents(&store).len(), 59);
    add(&store, 59, None);
    drop(store);
    storage.kill();
    assert_eq!(contents(&open(&storage).expect("open")).len(), 60);
}

#[test]
fn a_missing_journal_segment_or_checkpoint_is_named() {
    for (kind, what) in [(".j", "is missing"), (".c", "no checkpoint")] {
        let storage = filled();
        let path = files_of(&storage, kind)
            .into_iter()
            .next_back()
            .expect("a segment");
        let journal = files_of(&storage, ".j");
        let path = if kind == ".j" {
            journal[journal.len() - 2].clone()
        } else {
            path
        };
        storage.remove(&path);
        storage.remove(&copy_of(&path));
        let error = open(&storage).err().expect("refused").to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// The second copy of a checkpoint; for other segments a file that is not there.
fn copy_of(path: &str) -> String {
    format!("{}.d", path.trim_end_matches(".c"))
}

#[test]
fn one_copy_of_a_checkpoint_is_enough_and_the_next_one_makes_both_whole() {
    for harm in ["missing", "zeroed", "flipped"] {
        for which in [".c", ".d"] {
            let storage = filled();
            let path = files_of(&storage, which).pop().expect("a checkpoint");
            match harm {
                "missing" => storage.remove(&path),
                "zeroed" => change(&storage, &path, |bytes| bytes.fill(0)),
                _ => change(&storage, &path, |bytes| bytes[80] ^= 1),
            }
            let store = open(&storage).expect("open");
            assert_eq!(contents(&store).len(), 60);
            store.close().expect("close");
            drop(store);
            let first = files_of(&storage, ".c").pop().expect("a checkpoint");
            assert_ne!(first, path, "a new one was written");
            assert_eq!(
                storage.contents(&first).expect("the first copy"),
                storage.contents(&copy_of(&first)).expect("the second copy")
            );
            assert_eq!(files_of(&storage, ".d").len(), 1);
        }
    }
}

#[test]
fn a_missing_block_segment_costs_its_blocks_and_nothing_else() {
    let storage = filled();
    let path = files_of(&storage, ".b")
        .into_iter()
        .next()
        .expect("a block segment");
    storage.remove(&path);
    let store = open(&storage).expect("open");
    let found = contents(&store);
    assert_eq!(found.len(), 60);
    let lost = found.values().filter(|readable| !**readable).count();
    assert!(lost > 0 && lost < 30, "{lost}");
    let problems = check(&store);
    assert_eq!(problems.len(), lost);
    assert!(problems[0].contains("missing"), "{}", problems[0]);
}

#[test]
fn check_finds_nothing_in_a_sound_store_and_names_segment_offset_and_block_of_a_fault() {
    let storage = filled();
    assert_eq!(check(&open(&storage).expect("open")), Vec::<String>::new());
    storage.kill();
    let path = files_of(&storage, ".b")
        .into_iter()
        .next()
        .expect("a block segment");
    change(&storage, &path, |bytes| bytes[100] ^= 1);
    let problems = check(&open(&storage).expect("open"));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains(&path) && problems[0].contains("offset 48"),
        "{}",
        problems[0]
    );
    assert!(
        problems[1].contains("block 2") && problems[1].contains("wrong checksum"),
        "{}",
        problems[1]
    );
}

#[test]
fn check_names_miscounted_references_and_the_dependants_of_a_damaged_anchor() {
    let storage = SimStorage::new();
    let store = open(&storage).expect("open");
    let anchor = add(&store, 1, None);
    let dependant = add(&store, 3, Some(anchor));
    store
        .commit(Transaction {
            ops: vec![Op::Delete { key: key(3) }],
        })
        .expect("commit");
    let problems = check(&store);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains(&format!("block {dependant}")) && problems[0].contains("1 references")
    );
    drop(store);
    storage.kill();
    let path = files_of(&storage, ".b").pop().expect("a block segment");
    change(&storage, &path, |bytes| bytes[90] ^= 1);
    let problems = check(&open(&storage).expect("open")).join("\n");
    assert!(
        problems.contains(&format!(
            "block {dependant}: its anchor, block {anchor}, is damaged"
        )),
        "{problems}"
    );
}

#[test]
fn an_anchor_lives_until_its_last_dependant_is_dead() {
    let store = open(&SimStorage::new()).expect("open");
    let anchor = add(&store, 1, None);
    let dependant = add(&store, 3, Some(anchor));
    let drop_ref = |block| Transaction {
        ops: vec![Op::Ref {
            block,
            refs: -1,
            live: -500,
        }],
    };
    store.commit(drop_ref(anchor)).expect("commit");
    assert_eq!(store.read_block(anchor).expect("still there"), payload(1));
    store.commit(drop_ref(dependant)).expect("commit");
    assert!(matches!(
        store.read_block(anchor),
        Err(StoreError::NoSuchBlock(_))
    ));
    assert_eq!(store.blocks(0, 10).expect("blocks"), vec![]);
}

#[test]
fn wrong_magic_and_newer_versions_are_refused_by_name() {
    let storage = filled();
    let path = files_of(&storage, ".c").pop().expect("a checkpoint");
    for path in [&path, &copy_of(&path)] {
        change(&storage, path, |bytes| bytes[0] = b'X');
    }
    let error = open(&storage).err().expect("refused").to_string();
    assert!(
        error.contains("wrong magic") && error.contains(&path),
        "{error}"
    );

    let storage = filled();
    let path = files_of(&storage, ".c").pop().expect("a checkpoint");
    for path in [&path, &copy_of(&path)] {
        change(&storage, path, |bytes| {
            bytes[8] = 9;
            let crc = crc32c::crc32c(&bytes[..44]);
            bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        });
    }
    let error = open(&storage).err().expect("refused");
    assert!(
        matches!(
            error,
            StoreError::NewerFormat {
                found: 9,
                known: 1,
                ..
            }
        ),
        "{error}"
    );

    let storage = filled();
    change(&storage, "s2sfs.toml", |bytes| {
        let text = String::from_utf8_lossy(bytes).replace("format = 1", "format = 7");
        *bytes = text.into_bytes();
    });
    assert!(matches!(
        open(&storage),
        Err(StoreError::NewerFormat { found: 7, .. })
    ));
    change(&storage, "s2sfs.toml", |bytes| {
        let text = String::from_utf8_lossy(bytes).replace("format = 7", "format = 1");
        *bytes = text
            .replace("features = []", "features = [\"sharding\"]")
            .into_bytes();
    });
    assert!(matches!(
        open(&storage),
        Err(StoreError::UnknownFeature { .. })
    ));
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let (storage, other) = (filled(), filled());
    let path = files_of(&storage, ".j").pop().expect("a journal");
    storage.set_contents(
        &path,
        other
            .contents(&path)
            .expect("the same name in the other store"),
    );
    let error = open(&storage).err().expect("refused").to_string();
    assert!(error.contains("another store"), "{error}");
}

#[test]
fn a_failed_fsync_stops_the_store_until_it_is_opened_again() {
    let storage = SimStorage::new();
    let store = open(&storage).expect("open");
    add(&store, 0, None);
    store.sync().expect("sync");
    add(&store, 1, None);
    storage.set_fault(Some(Fault::FailKind(SimOp::SyncData, 0, libc::EIO)));
    assert!(store.sync().is_err());
    let refused = store.commit(Transaction {
        ops: vec![Op::Delete { key: key(0) }],
    });
    assert!(matches!(refused, Err(StoreError::Stopped(_))));
    assert!(
        matches!(store.sync(), Err(StoreError::Stopped(_))),
        "a second fsync must not pretend success"
    );
    assert_eq!(contents(&store).len(), 2, "reading goes on");
    drop(store);
    storage.crash(1);
    assert!(contents(&open(&storage).expect("open")).contains_key(&0));
}

#[test]
fn on_a_full_disk_data_is_refused_but_removal_and_reclaim_work() {
    let storage = SimStorage::new();
    storage.set_capacity(24 << 20);
    let options = OpenOptions {
        create: true,
        segment_bytes: 1 << 20,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &options).expect("open");
    let payload = vec![7u8; 100_000];
    let block = NewBlock {
        codec: 1,
        raw_len: 500,
        anchor: None,
        payload: &payload,
    };
    let mut kept = Vec::new();
    let refused = loop {
        let id = match store.stage(&block) {
            Ok(id) => id,
            Err(error) => break error,
        };
        let ops = vec![
            Op::Put {
                key: key(kept.len() as u64),
                value: id.to_be_bytes().to_vec(),
            },
            Op::Ref {
                block: id,
                refs: 1,
                live: 500,
            },
        ];
        store.commit(Transaction { ops }).expect("commit");
        kept.push(id);
        assert!(kept.len() < 1000);
    };
    assert!(
        refused.is_no_space() && kept.len() > 150,
        "{refused}, {}",
        kept.len()
    );
    // Somebody else takes the rest of the disk.
    let used = (24 << 20) - store.free_space().expect("space").0;
    storage.set_capacity(used);
    let mut metadata = 0u64;
    let full = loop {
        let ops = vec![Op::Put {
            key: [&b"K"[..], &metadata.to_be_bytes()].concat(),
            value: vec![1; 4000],
        }];
        match store.commit(Transaction { ops }) {
            Ok(_) => metadata += 1,
            Err(error) => break error,
        }
    };
    assert!(full.is_no_space(), "{full}");
    let half = kept.len() / 2;
    for (number, id) in kept.iter().enumerate().take(half) {
        let ops = vec![
            Op::Delete {
                key: key(number as u64),
            },
            Op::Ref {
                block: *id,
                refs: -1,
                live: -500,
            },
        ];
        store
            .commit(Transaction { ops })
            .expect("removal on a full disk");
    }
    let report = store
        .reclaim(Default::default())
        .expect("reclaim on a full disk");
    assert!(report.bytes_freed > 5 << 20, "{report:?}");
    store.stage(&block).expect("there is space again");
    store.sync().expect("sync");
    drop(store);
    storage.crash(3);
    let store = Store::open(Arc::new(storage), &options).expect("open");
    assert_eq!(extents(&store).len(), kept.len() - half);
    assert_eq!(
        store.scan(b"K", b"L", 100_000).expect("scan").len() as u64,
        metadata
    );
}

/// Options that put even a tiny index into sled.
fn sled_options() -> OpenOptions {
    OpenOptions {
        create: true,
        index_cache_bytes: 0,
        ..OpenOptions::default()
    }
}

fn sled_store(root: &std::path::Path) -> Result<Store, StoreError> {
    Store::open(Arc::new(RealStorage::new(root)), &sled_options())
}

#[test]
fn the_index_can_be_deleted_garbage_or_stale_and_everything_is_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let root = dir.path().join("store");
    let index = root.join("index");
    let store = sled_store(&root).expect("open");
    for number in 0..50 {
        add(&store, number, None);
    }
    store.close().expect("close");
    drop(store);
    assert!(index.join("clean").exists());
    let old = dir.path().join("old-index");
    copy_tree(&index, &old);

    let store = sled_store(&root).expect("open with the index");
    assert!(
        !index.join("clean").exists(),
        "the mark is gone while the store is open"
    );
    add(&store, 50, None);
    store.close().expect("close");
    drop(store);

    type Harm<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let harms: Vec<Harm> = vec![
        (
            "deleted",
            Box::new(|| std::fs::remove_dir_all(&index).expect("remove")),
        ),
        (
            "garbage",
            Box::new(|| {
                for name in ["db", "conf"] {
                    std::fs::write(index.join(name), vec![0x5a; 100_000]).expect("write");
                }
            }),
        ),
        (
            "truncated",
            Box::new(|| std::fs::write(index.join("db"), b"").expect("write")),
        ),
        (
            "stale",
            Box::new(|| {
                std::fs::remove_dir_all(&index).expect("remove");
                copy_tree(&old, &index);
            }),
        ),
        (
            "mixed with an older mark",
            Box::new(|| {
                std::fs::copy(old.join("clean"), index.join("clean")).expect("copy");
            }),
        ),
        (
            "marked with garbage",
            Box::new(|| std::fs::write(index.join("clean"), b"s2sfsidx").expect("write")),
        ),
    ];
    for (what, harm) in harms {
        harm();
        let store = sled_store(&root).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(contents(&store).len(), 51, "{what}");
        assert!(
            contents(&store).values().all(|readable| *readable),
            "{what}"
        );
        store.close().expect("close");
    }
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[test]
fn a_sled_index_is_not_trusted_after_a_crash() {
    let dir = tempfile::tempdir().expect("tempdir");
    for round in 0..5u64 {
        let store = sled_store(dir.path()).expect("open");
        assert_eq!(contents(&store).len() as u64, round * 10);
        for number in round * 10..round * 10 + 10 {
            add(&store, number, None);
        }
        if round % 2 == 1 {
            store.close().expect("close");
        }
    }
}

#[test]
fn directories_that_are_no_stores_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("thesis.tex"), b"years of work").expect("write");
    let refused = Store::open(Arc::new(RealStorage::new(dir.path())), &options());
    assert!(matches!(refused, Err(StoreError::NotAStore(_))));
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    let absent = RealStorage::new(dir.path().join("absent"));
    assert!(matches!(
        Store::open(Arc::new(absent), &OpenOptions::default()),
        Err(StoreError::Missing(_))
    ));

    let storage = filled();
    storage.remove("s2sfs.toml");
    assert!(matches!(open(&storage), Err(StoreError::NotAStore(_))));
}

#[test]
fn an_interrupted_creation_can_be_repeated() {
    for cut in 0..30 {
        for seed in 0..20 {
            let storage = SimStorage::new();
            storage.set_fault(Some(Fault::PowerCutAt(cut)));
            let _ = open(&storage);
            storage.crash(seed);
            let store = open(&storage).unwrap_or_else(|e| panic!("cut {cut}, seed {seed}: {e}"));
            add(&store, 1, None);
            assert_eq!(contents(&store).len(), 1);
        }
    }
}

#[test]
fn a_read_only_store_is_readable_after_a_crash_and_not_changed() {
    let storage = filled();
    let last = files_of(&storage, ".j").pop().expect("a journal");
    change(&storage, &last, |bytes| bytes.truncate(bytes.len() - 5));
    let before: Vec<_> = storage
        .files()
        .iter()
        .map(|path| storage.contents(path))
        .collect();
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &options).expect("open");
    let second = Store::open(Arc::new(storage.clone()), &options).expect("a second reader");
    assert!(matches!(open(&storage), Err(StoreError::Locked(_))));
    assert_eq!(contents(&store).len(), 59);
    assert_eq!(check(&second), Vec::<String>::new());
    let refused = store.commit(Transaction {
        ops: vec![Op::Delete { key: key(0) }],
    });
    assert!(matches!(refused, Err(StoreError::ReadOnly)));
    store.close().expect("close");
    let after: Vec<_> = storage
        .files()
        .iter()
        .map(|path| storage.contents(path))
        .collect();
    assert!(before == after);
}

#[test]
fn models_are_kept_and_their_names_are_checked() {
    let storage = SimStorage::new();
    let store = open(&storage).expect("open");
    store.put_model("abc123", b"weights").expect("put");
    store.put_model("abc123", b"weights!").expect("replace");
    assert!(matches!(
        store.put_model("../evil", b""),
        Err(StoreError::Invalid(_))
    ));
    drop(store);
    storage.crash(1);
    let store = open(&storage).expect("open");
    assert_eq!(
        store.get_model("abc123").expect("get"),
        Some(b"weights!".to_vec())
    );
    assert_eq!(store.get_model("other").expect("get"), None);
}

#[test]
fn keys_of_the_store_itself_and_negative_counts_are_refused() {
    let store = open(&SimStorage::new()).expect("open");
    let id = add(&store, 1, None);
    for op in [
        Op::Put {
            key: b"B12345678".to_vec(),
            value: vec![],
        },
        Op::Delete { key: vec![] },
        Op::Ref {
            block: id,
            refs: -2,
            live: 0,
        },
    ] {
        let ops = vec![
            Op::Put {
                key: b"Z".to_vec(),
                value: vec![1],
            },
            op,
        ];
        assert!(matches!(
            store.commit(Transaction { ops }),
            Err(StoreError::Invalid(_))
        ));
    }
    assert_eq!(
        store.get(b"Z").expect("get"),
        None,
        "nothing of a refused transaction happens"
    );
    let ghost = vec![Op::Ref {
        block: 999,
        refs: 1,
        live: 1,
    }];
    assert!(matches!(
        store.commit(Transaction { ops: ghost }),
        Err(StoreError::NoSuchBlock(999))
    ));
}

#[test]
fn a_torn_block_full_of_what_looks_like_records_does_not_stall_recovery() {
    let storage = SimStorage::new();
    let options = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &options).expect("open");
    add(&store, 0, None);
    store.sync().expect("sync");
    let mut fake = b"s2\x01\x00".to_vec();
    fake.extend_from_slice(&(8u32 << 20).to_le_bytes());
    fake.resize(32, 1);
    let payload = fake.repeat((16 << 20) / fake.len());
    store
        .stage(&NewBlock {
            codec: 0,
            raw_len: 1,
            anchor: None,
            payload: &payload,
        })
        .expect("stage");
    drop(store);
    storage.kill();
    let last = files_of(&storage, ".j").pop().expect("a journal");
    change(&storage, &last, |bytes| bytes.truncate(bytes.len() - 1));
    let start = std::time::Instant::now();
    assert_eq!(contents(&open(&storage).expect("open")).len(), 1);
    // Searched record by record it would take hours.
    assert!(start.elapsed() < std::time::Duration::from_secs(60));
}
