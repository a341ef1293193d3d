//! Opening a store: creating it, taking its lock, and continuing where its log ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;
use uuid::Uuid;

use super::adaptive_index::AdaptiveIndex;
use super::check::Problem;
use super::checkpoint::{CheckpointEnd, CheckpointWriter};
use super::engine::{CommitState, Maintenance, Store};
use super::layout::{self, Description};
use super::reclaim;
use super::recovery::{self, Listing, Recovered};
use super::segment::{LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName};
use super::segments::{Log, Position};
use super::space::SpaceKeeper;
use super::storage::{LockGuard, Storage};
use super::stream::Stream;
use super::{FORMAT_VERSION, OpenOptions, Result, StoreError, mend, salvage};

/// The two streams of a log.
struct Streams {
    journal: Stream,
    blocks: Stream,
}

impl Streams {
    fn new(log: &Arc<Log>) -> Streams {
        Streams {
            journal: Stream::new(SegmentKind::Journal, log.clone()),
            blocks: Stream::new(SegmentKind::Blocks, log.clone()),
        }
    }
}

/// What was read of a store.
struct Opened {
    index: AdaptiveIndex,
    recovered: Recovered,
    listing: Listing,
    description: Description,
    salvage: Option<salvage::Salvage>,
    lock: Box<dyn LockGuard>,
}

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

    /// Opens the store read-only, however damaged it is, for its check and repair: whatever can be read
    /// is shown, and [`Store::check`] names what is wrong. Nothing else is changed on disk. With `exclusive`,
    /// nobody else can open the store meanwhile, and segments under wrong names get their own back.
    ///
    /// Fails if nothing there says that this is a store, or if it has a newer format.
    pub fn open_damaged(
        storage: Arc<dyn Storage>,
        options: &OpenOptions,
        exclusive: bool,
    ) -> Result<Store> {
        let place = storage.describe();
        if !storage.exists("").map_err(StoreError::io("stat", &place))? {
            return Err(StoreError::Missing(place));
        }
        let (description, mut problems) = salvage::identify(&*storage)?;
        let lock = storage
            .lock(exclusive)
            .map_err(StoreError::io("lock", &place))?;
        let lock = lock.ok_or(StoreError::Locked(place))?;
        let options = OpenOptions {
            read_only: true,
            ..options.clone()
        };
        let uuid = description.uuid;
        let rewrite = !problems.is_empty();
        if exclusive {
            mend::straighten(&*storage, uuid)?;
        }
        let log = Arc::new(Log::new(storage, uuid, options.segment_bytes, true));
        let listing = Listing::of(&log)?;
        for (path, error) in listing.register(&log, true)? {
            problems.push(Problem::in_segment(path, error));
        }
        let index = AdaptiveIndex::empty(&log, &options)?;
        let (recovered, mut salvage) = salvage::recover(&log, &listing, &index)?;
        let ends = salvage.account(&log, &index)?;
        // Where entries of blocks may be lost, nothing says where the live blocks end.
        let complete = salvage.keys.is_empty() && salvage.commits.is_empty();
        leave_tails_out(&log, &listing, &recovered, complete.then_some(&ends));
        salvage.new_description = rewrite;
        problems.append(&mut salvage.problems);
        salvage.problems = problems;
        let streams = Streams::new(&log);
        let opened = Opened {
            index,
            recovered,
            listing,
            description,
            salvage: Some(salvage),
            lock,
        };
        Ok(Store::assemble(log, streams, opened))
    }

    fn assemble(log: Arc<Log>, streams: Streams, opened: Opened) -> Store {
        let recovered = opened.recovered;
        let maintenance = Maintenance {
            checkpoint: recovered.checkpoint,
            checkpoint_seq: opened
                .listing
                .newest_checkpoint()
                .map_or(0, |name| name.seq),
            checkpoint_bytes: recovered.checkpoint_bytes,
            whole: recovered.whole,
        };
        Store {
            log,
            journal: streams.journal,
            blocks: streams.blocks,
            index: opened.index,
            pending: Mutex::new(HashMap::new()),
            commit: Mutex::new(CommitState {
                journal_bytes: recovered.replayed_bytes,
            }),
            maintenance: Mutex::new(maintenance),
            held: AtomicBool::new(false),
            next_block: AtomicU64::new(recovered.next_block.max(1)),
            lsn: AtomicU64::new(recovered.lsn),
            staged_since: AtomicU64::new(0),
            space: SpaceKeeper::new(),
            description: opened.description,
            salvage: opened.salvage,
            _lock: opened.lock,
        }
    }

    fn recover(
        storage: Arc<dyn Storage>,
        description: Description,
        options: &OpenOptions,
        lock: Box<dyn LockGuard>,
    ) -> Result<Store> {
        let segment_bytes = reclaim::segment_bytes(&*storage, options.segment_bytes);
        let log = Arc::new(Log::new(
            storage,
            description.uuid,
            segment_bytes,
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
        let listing = Listing::of(&log)?;
        listing.register(&log, false)?;
        let streams = Streams::new(&log);
        let (index, recovered, ends) = match AdaptiveIndex::reuse(&log, options)? {
            Some((index, state)) => {
                let recovered = recovery::resume_clean(&log, &listing, &state)?;
                (index, recovered, None)
            }
            None => {
                let index = AdaptiveIndex::empty(&log, options)?;
                let recovered = recovery::recover(&log, &listing, &index)?;
                let ends = recovery::account(&log, &index)?;
                (index, recovered, Some(ends))
            }
        };
        if !options.read_only {
            resume_journal(&log, &streams.journal, &recovered)?;
            resume_blocks(&log, &streams.blocks, &listing, ends.as_ref())?;
            remove_leftovers(&log, &listing)?;
        } else {
            leave_tails_out(&log, &listing, &recovered, ends.as_ref());
        }
        let opened = Opened {
            index,
            recovered,
            listing,
            description,
            salvage: None,
            lock,
        };
        let store = Store::assemble(log, streams, opened);
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
        reclaim::segment_bytes(&*storage, options.segment_bytes),
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
        return drop_tail(log, name);
    }
    let file = recovery::cut(log, name, end.offset)?;
    journal.resume(name, file, end.offset);
    Ok(())
}

/// Removes the last segment of a stream, durably: nothing in it is referred to, and perhaps not even its
/// header has reached the disk.
fn drop_tail(log: &Log, name: SegmentName) -> Result<()> {
    let path = name.path();
    log.storage
        .unlink(&path)
        .map_err(StoreError::io("unlink", &path))?;
    log.forget_segment(name.seq);
    log.storage
        .sync_dir(LOG_DIR)
        .map_err(StoreError::io("fsync", LOG_DIR))
}

/// Cuts blocks off the last block segment that no transaction refers to, and continues there. The
/// journal that says so is durable already. Without `ends`, the store was closed and nothing is cut.
fn resume_blocks(
    log: &Log,
    blocks: &Stream,
    listing: &Listing,
    ends: Option<&BTreeMap<u64, u64>>,
) -> Result<()> {
    let Some(name) = listing.of_kind(SegmentKind::Blocks).next_back() else {
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
    if ends.is_some() && end == 0 && !recovery::is_misnamed(log, name) {
        return drop_tail(log, name);
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
    listing: &Listing,
    recovered: &Recovered,
    ends: Option<&BTreeMap<u64, u64>>,
) {
    match recovered.journal_end {
        Some(end) if end.offset < SEGMENT_HEADER_LEN => log.forget_segment(end.seq),
        Some(end) => log.set_len(end.seq, end.offset),
        None => {}
    }
    let last = listing.of_kind(SegmentKind::Blocks).next_back();
    if let Some((name, ends)) = last.zip(ends) {
        let len = log.segments().get(&name.seq).map_or(0, |state| state.len);
        match ends.get(&name.seq) {
            Some(end) => log.set_len(name.seq, len.min(*end)),
            None if recovery::is_misnamed(log, name) => {}
            None => log.forget_segment(name.seq),
        }
    }
}

/// Removes what interrupted work has left, and checkpoints that a newer one has replaced.
fn remove_leftovers(log: &Log, listing: &Listing) -> Result<()> {
    for path in &listing.leftovers {
        log.storage
            .unlink(path)
            .map_err(StoreError::io("unlink", path))?;
    }
    let newest = listing.newest_checkpoint().map_or(0, |name| name.seq);
    listing
        .of_kind(SegmentKind::Checkpoint)
        .filter(|name| name.seq < newest)
        .try_for_each(|name| log.drop_segment(name))
}
