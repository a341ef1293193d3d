//! Opening a store: creating it, taking its lock, and continuing where its log ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use uuid::Uuid;

use super::adaptive_index::AdaptiveIndex;
use super::checkpoint::{CheckpointEnd, CheckpointWriter};
use super::engine::{CommitState, Maintenance, Store};
use super::layout::{self, Description};
use super::recovery::{self, Recovered};
use super::segment::{LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName};
use super::segments::{Log, Position};
use super::space::SpaceKeeper;
use super::storage::{LockGuard, Storage};
use super::stream::Stream;
use super::{FORMAT_VERSION, OpenOptions, Result, StoreError};

impl Store {
    /// Opens the store under `storage`; recovers it if it was not closed.
    pub fn open(storage: Arc<dyn Storage>, options: &OpenOptions) -> Result<Store> {
        let place = storage.describe();
        if !storage.exists("").map_err(StoreError::io("stat", &place))? {
            if !options.create || options.read_only {
                return Err(StoreError::Missing(place));
            }
            storage.mkdir("").map_err(StoreError::io("mkdir", &place))?;
        }
        // Before the lock is taken, so that no lock file appears in a directory that is refused.
        if layout::read_description(&*storage)?.is_none() && (!options.create || options.read_only)
        {
            return Err(StoreError::Missing(place));
        }
        let lock = storage
            .lock(!options.read_only)
            .map_err(StoreError::io("lock", &place))?;
        let lock = lock.ok_or(StoreError::Locked(place))?;
        let description = match layout::read_description(&*storage)? {
            Some(description) => description,
            None => create(storage.clone(), options)?,
        };
        Store::recover(storage, description, options, lock)
    }

    fn recover(
        storage: Arc<dyn Storage>,
        description: Description,
        options: &OpenOptions,
        lock: Box<dyn LockGuard>,
    ) -> Result<Store> {
        let log = Arc::new(Log::new(
            storage,
            description.uuid,
            options.segment_bytes,
            options.read_only,
        ));
        if !options.read_only {
            // A name that a killed program could not sync yet is relied upon from now on.
            for dir in ["", LOG_DIR] {
                log.storage
                    .sync_dir(dir)
                    .map_err(StoreError::io("fsync", dir))?;
            }
        }
        let (names, leftovers) = recovery::list_segments(&log)?;
        recovery::register(&log, &names)?;
        let journal = Stream::new(SegmentKind::Journal, log.clone());
        let blocks = Stream::new(SegmentKind::Blocks, log.clone());
        let (index, recovered, ends) = match AdaptiveIndex::reuse(&log, options)? {
            Some((index, state)) => {
                let recovered = recovery::resume_clean(&log, &names, &state)?;
                (index, recovered, None)
            }
            None => {
                let index = AdaptiveIndex::empty(&log, options)?;
                let recovered = recovery::recover(&log, &names, &index)?;
                let ends = recovery::account(&log, &index)?;
                (index, recovered, Some(ends))
            }
        };
        if !options.read_only {
            resume_journal(&log, &journal, &recovered)?;
            resume_blocks(&log, &blocks, &names, ends.as_ref())?;
            remove_leftovers(&log, &names, leftovers)?;
        } else {
            leave_tails_out(&log, &names, &recovered, ends.as_ref());
        }
        let checkpoint_seq = recovery::newest_checkpoint(&names).map_or(0, |name| name.seq);
        let maintenance = Maintenance {
            checkpoint: recovered.checkpoint,
            checkpoint_seq,
            checkpoint_bytes: recovered.checkpoint_bytes,
        };
        let store = Store {
            log,
            journal,
            blocks,
            index,
            pending: Mutex::new(HashMap::new()),
            commit: Mutex::new(CommitState {
                journal_bytes: recovered.replayed_bytes,
            }),
            maintenance: Mutex::new(maintenance),
            next_block: AtomicU64::new(recovered.next_block.max(1)),
            lsn: AtomicU64::new(recovered.lsn),
            staged_since: AtomicU64::new(0),
            space: SpaceKeeper::new(),
            description,
            _lock: lock,
        };
        if !options.read_only {
            store.space.restore_reserve(&*store.log.storage);
        }
        Ok(store)
    }
}

/// Makes a new store: a checkpoint of nothing, then the description that makes it a store.
fn create(storage: Arc<dyn Storage>, options: &OpenOptions) -> Result<Description> {
    let description = Description {
        uuid: Uuid::new_v4(),
        format: FORMAT_VERSION,
        features: Vec::new(),
    };
    layout::begin_creation(&*storage, &description)?;
    storage
        .mkdir(LOG_DIR)
        .map_err(StoreError::io("mkdir", LOG_DIR))?;
    storage.sync_dir("").map_err(StoreError::io("fsync", "."))?;
    let log = Log::new(
        storage.clone(),
        description.uuid,
        options.segment_bytes,
        false,
    );
    let end = CheckpointEnd {
        next_block: 1,
        replay: Position { seq: 1, offset: 0 },
        ..Default::default()
    };
    CheckpointWriter::create(&log, 0, 1)?.finish(end)?;
    layout::finish_creation(&*storage)?;
    Ok(description)
}

/// Cuts the torn tail of the journal, makes what was read durable, and continues there.
fn resume_journal(log: &Log, journal: &Stream, recovered: &Recovered) -> Result<()> {
    let Some(end) = recovered.journal_end else {
        return Ok(());
    };
    let name = SegmentName {
        seq: end.seq,
        kind: SegmentKind::Journal,
    };
    if end.offset < SEGMENT_HEADER_LEN {
        let path = name.path();
        log.storage
            .unlink(&path)
            .map_err(StoreError::io("unlink", &path))?;
        log.forget_segment(name.seq);
        return log
            .storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR));
    }
    let file = recovery::cut(log, name, end.offset)?;
    journal.resume(name, file, end.offset);
    Ok(())
}

/// Cuts blocks off the last block segment that no transaction refers to, and continues there. The
/// journal that says so is durable already. Without `ends`, the store was closed and nothing is cut.
fn resume_blocks(
    log: &Log,
    blocks: &Stream,
    names: &[SegmentName],
    ends: Option<&BTreeMap<u64, u64>>,
) -> Result<()> {
    let Some(&name) = names
        .iter()
        .rev()
        .find(|name| name.kind == SegmentKind::Blocks)
    else {
        return Ok(());
    };
    let len = log.segments().get(&name.seq).map_or(0, |state| state.len);
    let end = match ends {
        Some(ends) => ends.get(&name.seq).copied().unwrap_or(0),
        None => len,
    };
    if end > len {
        log::error!(
            "{}: {} bytes of live blocks are missing at its end",
            name.path(),
            end - len
        );
    }
    if end > len || end < SEGMENT_HEADER_LEN {
        return Ok(());
    }
    let file = recovery::cut(log, name, end)?;
    blocks.resume(name, file, end);
    Ok(())
}

/// For a read-only store: what a writer would cut off does not belong to the log.
fn leave_tails_out(
    log: &Log,
    names: &[SegmentName],
    recovered: &Recovered,
    ends: Option<&BTreeMap<u64, u64>>,
) {
    if let Some(end) = recovered.journal_end {
        log.set_len(end.seq, end.offset);
    }
    let last = names
        .iter()
        .rev()
        .find(|name| name.kind == SegmentKind::Blocks);
    if let Some((name, ends)) = last.zip(ends) {
        let len = log.segments().get(&name.seq).map_or(0, |state| state.len);
        log.set_len(
            name.seq,
            ends.get(&name.seq)
                .copied()
                .unwrap_or(SEGMENT_HEADER_LEN)
                .min(len),
        );
    }
}

/// Removes what interrupted work has left, and checkpoints that a newer one has replaced.
fn remove_leftovers(log: &Log, names: &[SegmentName], leftovers: Vec<String>) -> Result<()> {
    for path in leftovers {
        log.storage
            .unlink(&path)
            .map_err(StoreError::io("unlink", &path))?;
    }
    let newest = recovery::newest_checkpoint(names).map_or(0, |name| name.seq);
    for name in names
        .iter()
        .filter(|name| name.kind == SegmentKind::Checkpoint && name.seq < newest)
    {
        let path = name.path();
        log.storage
            .unlink(&path)
            .map_err(StoreError::io("unlink", &path))?;
        log.forget_segment(name.seq);
    }
    Ok(())
}
