//! Crashes at any operation: after recovery the store is in the state after some transaction, and
//! nothing that was synced before the crash is missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use proptest::prelude::*;
use s2sfs::store::{
    BlockId, ExtentRef, Fault, NewBlock, Op, OpenOptions, Reclaim, SimOp, SimStorage, Store,
    StoreError, Transaction,
};

/// What a test does to a store.
#[derive(Debug, Clone)]
enum Action {
    /// Puts a key that refers to a new staged (or settled) block of this length.
    Write {
        key: u8,
        settled: bool,
        len: u16,
        anchored: bool,
    },
    /// Puts the new settled copy of a key's block in its place.
    Settle {
        key: u8,
    },
    /// Deletes a key and drops its block.
    Remove {
        key: u8,
    },
    /// Lets a second key show the same block.
    Share {
        from: u8,
        to: u8,
    },
    Abandon {
        len: u16,
    },
    Sync,
    Checkpoint,
    Reclaim,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0u8..12;
    prop_oneof![
        6 => (key.clone(), any::<bool>(), 0u16..3000, any::<bool>())
            .prop_map(|(key, settled, len, anchored)| Action::Write { key, settled, len, anchored }),
        3 => key.clone().prop_map(|key| Action::Settle { key }),
        3 => key.clone().prop_map(|key| Action::Remove { key }),
        2 => (key.clone(), key).prop_map(|(from, to)| Action::Share { from, to }),
        1 => (0u16..3000).prop_map(|len| Action::Abandon { len }),
        3 => Just(Action::Sync),
        1 => Just(Action::Checkpoint),
        2 => Just(Action::Reclaim),
        1 => Just(Action::Reopen),
    ]
}

/// The expected contents: for each key the payload that its block must have.
type State = BTreeMap<u8, (BlockId, Vec<u8>)>;

/// The store under test and every state it has been in.
struct Run {
    storage: SimStorage,
    store: Option<Store>,
    /// The state after each transaction; the first is the empty one.
    history: Vec<State>,
    /// Index in `history` of the last state that is known to be durable.
    durable: usize,
    written: u32,
}

fn options() -> OpenOptions {
    // Tiny segments, so that short runs have many.
    OpenOptions {
        create: true,
        segment_bytes: 8 << 10,
        ..OpenOptions::default()
    }
}

fn key_bytes(key: u8) -> Vec<u8> {
    vec![b'I', key]
}

fn open(storage: &SimStorage) -> Result<Store, StoreError> {
    Store::open(Arc::new(storage.clone()), &options())
}

impl Run {
    fn new() -> Run {
        Run {
            storage: SimStorage::new(),
            store: None,
            history: vec![State::new()],
            durable: 0,
            written: 0,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    fn state(&self) -> State {
        self.history.last().cloned().unwrap_or_default()
    }

    fn payload(&mut self, len: u16) -> Vec<u8> {
        self.written += 1;
        let mut bytes = self.written.to_le_bytes().to_vec();
        bytes.resize(usize::from(len) + 4, self.written as u8);
        bytes
    }

    fn commit(&mut self, ops: Vec<Op>, next: State) -> Result<(), StoreError> {
        // A failing commit may have reached the disk: after a crash both states are right.
        self.history.push(next);
        self.store().commit(Transaction { ops }).map(|_| ())
    }

    /// The operations that make `key` show `block`, and drop what it showed before.
    fn point(&self, key: u8, block: BlockId, state: &State) -> Vec<Op> {
        let mut ops = vec![
            Op::Put {
                key: key_bytes(key),
                value: block.to_be_bytes().to_vec(),
            },
            Op::Ref {
                block,
                refs: 1,
                live: 7,
            },
        ];
        if let Some((old, _)) = state.get(&key) {
            ops.push(Op::Ref {
                block: *old,
                refs: -1,
                live: -7,
            });
        }
        ops
    }

    fn write(
        &mut self,
        key: u8,
        settled: bool,
        len: u16,
        anchored: bool,
    ) -> Result<(), StoreError> {
        let payload = self.payload(len);
        let mut state = self.state();
        let candidates: Vec<BlockId> = state.values().map(|(block, _)| *block).collect();
        let plain = |id: &BlockId| {
            self.store()
                .block_info(*id)
                .is_ok_and(|info| info.anchor.is_none())
        };
        let anchor = candidates.into_iter().find(|id| anchored && plain(id));
        let block = NewBlock {
            codec: 1,
            raw_len: u32::from(len),
            anchor,
            payload: &payload,
        };
        let id = if settled {
            self.store().append(&block)?
        } else {
            self.store().stage(&block)?
        };
        let ops = self.point(key, id, &state);
        state.insert(key, (id, payload));
        self.commit(ops, state)
    }

    fn settle(&mut self, key: u8) -> Result<(), StoreError> {
        let mut state = self.state();
        let Some((_, payload)) = state.get(&key).cloned() else {
            return Ok(());
        };
        let id = self.store().append(&NewBlock {
            codec: 2,
            raw_len: 9,
            anchor: None,
            payload: &payload,
        })?;
        let ops = self.point(key, id, &state);
        state.insert(key, (id, payload));
        self.commit(ops, state)
    }

    fn step(&mut self, action: &Action) -> Result<(), StoreError> {
        let mut state = self.state();
        match *action {
            Action::Write {
                key,
                settled,
                len,
                anchored,
            } => self.write(key, settled, len, anchored),
            Action::Settle { key } => self.settle(key),
            Action::Remove { key } => {
                let Some((block, _)) = state.remove(&key) else {
                    return Ok(());
                };
                let ops = vec![
                    Op::Delete {
                        key: key_bytes(key),
                    },
                    Op::Ref {
                        block,
                        refs: -1,
                        live: -7,
                    },
                ];
                self.commit(ops, state)
            }
            Action::Share { from, to } => {
                let Some((block, payload)) = state.get(&from).cloned() else {
                    return Ok(());
                };
                let ops = self.point(to, block, &state);
                state.insert(to, (block, payload));
                self.commit(ops, state)
            }
            Action::Abandon { len } => {
                let payload = self.payload(len);
                self.store().stage(&NewBlock {
                    codec: 1,
                    raw_len: 1,
                    anchor: None,
                    payload: &payload,
                })?;
                self.store().append(&NewBlock {
                    codec: 1,
                    raw_len: 1,
                    anchor: None,
                    payload: &payload,
                })?;
                Ok(())
            }
            Action::Sync => {
                self.store().sync()?;
                self.durable = self.history.len() - 1;
                Ok(())
            }
            Action::Checkpoint => self.store().checkpoint(),
            Action::Reclaim => self
                .store()
                .reclaim(Reclaim {
                    min_dead_percent: 20,
                    ..Reclaim::default()
                })
                .map(|_| ()),
            Action::Reopen => {
                self.store().close()?;
                self.durable = self.history.len() - 1;
                self.store = None;
                self.store = Some(open(&self.storage)?);
                Ok(())
            }
        }
    }

    /// Runs until the end or the first failure.
    fn run(&mut self, actions: &[Action]) -> Result<(), StoreError> {
        self.store = Some(open(&self.storage)?);
        actions.iter().try_for_each(|action| self.step(action))
    }

    /// Runs to the end; an action that fails for lack of space has not happened, and the next one is tried.
    fn run_on_full_disk(&mut self, actions: &[Action]) -> Result<(), StoreError> {
        self.store = Some(open(&self.storage)?);
        for action in actions {
            let before = self.history.len();
            match self.step(action) {
                Ok(()) => {}
                Err(error) if error.is_no_space() => self.history.truncate(before),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the store after a crash and compares it with the states it may be in.
    fn check_recovered(&mut self) -> Result<(), TestCaseError> {
        let store =
            open(&self.storage).map_err(|e| TestCaseError::fail(format!("recovery: {e}")))?;
        let pairs = store
            .scan(b"I", b"J", 1000)
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut found = State::new();
        for (key, value) in pairs {
            let id = BlockId::from_be_bytes(value.try_into().expect("eight bytes"));
            let payload = store
                .read_block(id)
                .map_err(|e| TestCaseError::fail(e.to_string()))?;
            found.insert(key[1], (id, payload));
        }
        let at = self.history.iter().rposition(|state| *state == found);
        prop_assert!(
            at.is_some_and(|at| at >= self.durable),
            "not a state since the last sync: {found:?}"
        );
        check_counts(&store, &found)?;
        // The recovered store works: what is written now is there after a clean close.
        store
            .commit(Transaction {
                ops: vec![Op::Put {
                    key: b"J".to_vec(),
                    value: b"new".to_vec(),
                }],
            })
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        store
            .close()
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        drop(store);
        let store =
            open(&self.storage).map_err(|e| TestCaseError::fail(format!("after close: {e}")))?;
        prop_assert_eq!(store.get(b"J").expect("get"), Some(b"new".to_vec()));
        for (id, payload) in found.values() {
            prop_assert_eq!(&store.read_block(*id).expect("read"), payload);
        }
        Ok(())
    }
}

/// References are what the keys and the anchored blocks say, and no other blocks are left.
fn check_counts(store: &Store, state: &State) -> Result<(), TestCaseError> {
    let mut expected: BTreeMap<BlockId, (u32, u64)> = BTreeMap::new();
    for (id, _) in state.values() {
        let count = expected.entry(*id).or_default();
        count.0 += 1;
        count.1 += 7;
    }
    let blocks = store
        .blocks(0, 1000)
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    for (_, info) in &blocks {
        if let Some(anchor) = info.anchor {
            expected.entry(anchor).or_default().0 += 1;
        }
    }
    let found: BTreeMap<BlockId, (u32, u64)> = blocks
        .iter()
        .map(|(id, info)| (*id, (info.refs, info.live)))
        .collect();
    prop_assert_eq!(found, expected);
    Ok(())
}

/// `S2SFS_CRASH_CASES` times 16, by default 192.
fn cases() -> u32 {
    let cases = std::env::var("S2SFS_CRASH_CASES").ok();
    cases.and_then(|n| n.parse().ok()).unwrap_or(12) * 16
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_at_any_operation_leaves_a_state_since_the_last_sync(
        actions in prop::collection::vec(action(), 1..60), cut in 0u64..1_000_000, seed: u64,
    ) {
        // A run without faults tells how many operations there are to choose from.
        let mut dry = Run::new();
        dry.run(&actions).expect("no fault, no failure");
        let operations = dry.storage.operations();
        let mut run = Run::new();
        run.storage.set_fault(Some(Fault::PowerCutAt(cut % (operations + 1))));
        let _ = run.run(&actions);
        run.storage.crash(seed);
        run.store = None;
        run.check_recovered()?;
    }

    #[test]
    fn a_crash_during_recovery_loses_nothing_either(
        actions in prop::collection::vec(action(), 1..40), cuts in prop::collection::vec(0u64..30, 1..4), seed: u64,
    ) {
        let mut run = Run::new();
        let _ = run.run(&actions);
        run.storage.crash(seed);
        run.store = None;
        for cut in cuts {
            run.storage.set_fault(Some(Fault::PowerCutAt(cut)));
            let _ = open(&run.storage).and_then(|store| store.close());
            run.storage.crash(seed ^ cut);
        }
        run.check_recovered()?;
    }

    #[test]
    fn a_killed_program_loses_no_commit(actions in prop::collection::vec(action(), 1..60)) {
        let mut run = Run::new();
        run.run(&actions).expect("no fault, no failure");
        run.durable = run.history.len() - 1;
        run.storage.kill();
        run.store = None;
        run.check_recovered()?;
    }

    #[test]
    fn one_failing_operation_never_corrupts_the_store(
        actions in prop::collection::vec(action(), 1..60), at in 0u64..1_000_000, full: bool, seed: u64,
    ) {
        let mut dry = Run::new();
        dry.run(&actions).expect("no fault, no failure");
        let operations = dry.storage.operations();
        let mut run = Run::new();
        let errno = if full { libc::ENOSPC } else { libc::EIO };
        run.storage.set_fault(Some(Fault::FailOnceAt(at % (operations + 1), errno)));
        let _ = run.run(&actions);
        run.storage.crash(seed);
        run.store = None;
        run.check_recovered()?;
    }

    #[test]
    fn what_fails_on_a_full_disk_has_not_happened_and_all_else_has(
        actions in prop::collection::vec(action(), 1..80), blocks in 6u64..40, power_cut: bool, seed: u64,
    ) {
        let mut run = Run::new();
        run.storage.set_capacity(blocks * 4096);
        if run.run_on_full_disk(&actions).is_err() {
            // The disk was too full even to open the store again.
            run.storage.kill();
        } else if power_cut {
            run.storage.crash(seed);
        } else {
            run.durable = run.history.len() - 1;
            run.storage.kill();
        }
        run.store = None;
        run.storage.set_capacity(1 << 30);
        run.check_recovered()?;
    }
}

fn add(store: &Store, key: u8, len: usize, settled: bool) -> BlockId {
    let payload = vec![key; len];
    let block = NewBlock {
        codec: 1,
        raw_len: len as u32,
        anchor: None,
        payload: &payload,
    };
    let id = match settled {
        true => store.append(&block),
        false => store.stage(&block),
    }
    .expect("append");
    let ops = vec![
        Op::Put {
            key: key_bytes(key),
            value: id.to_be_bytes().to_vec(),
        },
        Op::Ref {
            block: id,
            refs: 1,
            live: 7,
        },
    ];
    store.commit(Transaction { ops }).expect("commit");
    id
}

fn remove(key: u8, block: BlockId) -> Transaction {
    let drop = Op::Ref {
        block,
        refs: -1,
        live: -7,
    };
    let key = key_bytes(key);
    Transaction {
        ops: vec![Op::Delete { key }, drop],
    }
}

#[test]
fn what_a_killed_program_left_is_durable_once_it_was_opened_and_synced() {
    for seed in 0..8 {
        let storage = SimStorage::new();
        let store = open(&storage).expect("open");
        for key in 0..4 {
            add(&store, key, 1000, false);
        }
        storage.kill();
        drop(store);
        let store = open(&storage).expect("open");
        store.sync().expect("sync");
        storage.crash(seed);
        drop(store);
        let store = open(&storage).expect("open");
        for key in 0..4 {
            let found = store.get(&key_bytes(key)).expect("get");
            assert!(found.is_some(), "key {key}, seed {seed}");
        }
    }
}

#[test]
fn a_block_that_dies_while_it_is_moved_stays_dead() {
    let storage = SimStorage::new();
    let store = Arc::new(open(&storage).expect("open"));
    let blocks: Vec<BlockId> = (0..12).map(|key| add(&store, key, 3000, true)).collect();
    for key in (0..12).filter(|key| key % 3 > 0) {
        let dead = remove(key, blocks[usize::from(key)]);
        store.commit(dead).expect("commit");
    }
    // The block of key 0 is the first to be copied; while that happens it dies.
    let (weak, victim) = (Arc::downgrade(&store), blocks[0]);
    let once = AtomicBool::new(false);
    storage.set_hook(Some(Arc::new(move |op, path: &str| {
        if op == SimOp::Write && path.ends_with(".b") && !once.swap(true, SeqCst) {
            let store = weak.upgrade().expect("the store is open");
            store.commit(remove(0, victim)).expect("commit");
        }
    })));
    let want = Reclaim {
        min_dead_percent: 20,
        ..Reclaim::default()
    };
    let report = store.reclaim(want).expect("reclaim");
    storage.set_hook(None);
    assert!(report.bytes_copied > 0);
    let left: Vec<BlockId> = store
        .blocks(0, 100)
        .expect("blocks")
        .iter()
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(left, [blocks[3], blocks[6], blocks[9]]);
}

fn assert_readable(store: &Store) {
    for (key, value) in store.scan(b"I", b"J", 1000).expect("scan") {
        let id = BlockId::from_be_bytes(value.try_into().expect("eight bytes"));
        let payload = store.read_block(id);
        let payload = payload.unwrap_or_else(|e| panic!("key {}: {e}", key[1]));
        assert!(payload.iter().all(|byte| *byte == key[1]));
    }
}

#[test]
fn a_segment_is_not_unlinked_before_the_death_of_its_blocks_is_durable() {
    for seed in 0..16 {
        let storage = SimStorage::new();
        let store = open(&storage).expect("open");
        let blocks: Vec<BlockId> = (0..6).map(|key| add(&store, key, 3000, true)).collect();
        store.sync().expect("sync");
        for key in 0..4 {
            let dead = remove(key, blocks[usize::from(key)]);
            store.commit(dead).expect("commit");
        }
        let report = store.reclaim(Reclaim::default()).expect("reclaim");
        assert!(report.segments_dropped > 0);
        storage.crash(seed);
        drop(store);
        assert_readable(&open(&storage).expect("open"));
    }
}

#[test]
fn of_a_write_that_did_not_fit_nothing_stays_behind() {
    let storage = SimStorage::new();
    let store = open(&storage).expect("open");
    add(&store, 0, 100, false);
    storage.set_fault(Some(Fault::FailKind(SimOp::Write, 0, libc::ENOSPC)));
    let refused = store.stage(&NewBlock {
        codec: 1,
        raw_len: 1,
        anchor: None,
        payload: &[7; 6000],
    });
    assert!(refused.is_err_and(|e| e.is_no_space()));
    storage.set_fault(None);
    // Less than what was tried, and then more than the segment has room for.
    for (key, len) in [(1, 100), (2, 7900), (3, 7900)] {
        add(&store, key, len, false);
    }
    storage.kill();
    drop(store);
    let store = open(&storage).expect("open");
    assert_eq!(store.scan(b"I", b"J", 100).expect("scan").len(), 4);
    assert_readable(&store);
}

/// What a check of the store as it lies there finds, before anything recovers it.
fn problems(storage: &SimStorage) -> Vec<String> {
    let read_only = OpenOptions {
        read_only: true,
        ..options()
    };
    let store = Store::open(Arc::new(storage.clone()), &read_only).expect("open");
    let keys = store.scan(b"I", b"J", 1000).expect("scan");
    let refs: Vec<_> = keys
        .into_iter()
        .map(|(_, value)| {
            Ok(ExtentRef {
                block: BlockId::from_be_bytes(value.try_into().expect("eight bytes")),
                live: 7,
            })
        })
        .collect();
    let report = store
        .check(&mut refs.into_iter(), &mut |_, _, _| None)
        .expect("check");
    report.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_power_cut_leaves_of_segments_without_blocks_is_no_damage() {
    for settled in [false, true] {
        for at in 0..12 {
            for seed in 0..6 {
                let storage = SimStorage::new();
                let store = open(&storage).expect("open");
                add(&store, 0, 100, false);
                store.sync().expect("sync");
                storage.set_fault(Some(Fault::PowerCutAt(at)));
                let block = NewBlock {
                    codec: 1,
                    raw_len: 1,
                    anchor: None,
                    payload: &[1; 8000],
                };
                let _ = match settled {
                    true => store.append(&block).and_then(|_| store.sync_blocks()),
                    false => store.stage(&block).and_then(|_| store.sync()),
                };
                storage.crash(seed);
                drop(store);
                assert_eq!(problems(&storage), [""; 0], "before recovery");
                drop(open(&storage).expect("open"));
                storage.kill();
                assert_eq!(problems(&storage), [""; 0], "after recovery");
            }
        }
    }
}
