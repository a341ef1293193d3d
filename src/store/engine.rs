//! The store itself: commits, blocks and reads over the journal, the block stream and the index.
//!
//! Lock order: `maintenance`, `commit`, then the locks of a [`Stream`], then `pending`, then the index.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

use super::adaptive_index::{AdaptiveIndex, CleanState};
use super::checkpoint::{CheckpointEnd, CheckpointWriter, scan_step};
use super::entry::{self, BlockEntry};
use super::index::{Index, Pair};
use super::layout::{self, Description, INDEX_DIR, RESERVE};
use super::record::{RecordHeader, RecordKind};
use super::salvage::Salvage;
use super::segment::{SegmentKind, SegmentName};
use super::segments::{Log, Position};
use super::space::SpaceKeeper;
use super::storage::LockGuard;
use super::stream::Stream;
use super::transaction::{self, Resolved};
use super::{
    BlockId, BlockInfo, Lsn, NewBlock, Op, ReclaimReport, Result, StoreError, Transaction, Usage,
};
use crate::fault;

/// zstd level of checkpoints that are written while the store is in use.
pub(super) const CHECKPOINT_LEVEL: i32 = 3;
/// A checkpoint is due when the journal has grown by this much, or by the size of the last checkpoint.
const CHECKPOINT_JOURNAL_BYTES: u64 = 16 << 20;
/// Staged bytes since the last checkpoint after which one is due: recovery has to read them.
const CHECKPOINT_STAGED_BYTES: u64 = 1 << 30;
/// How often a read looks for a block again that was being relocated.
const RELOCATION_RETRIES: usize = 8;
/// How often who waits for maintenance looks whether the store is held.
const LOOK_FOR_HOLDER: Duration = Duration::from_millis(20);

/// An open store. All methods may be called from any thread.
pub struct Store {
    pub(super) log: Arc<Log>,
    pub(super) journal: Stream,
    pub(super) blocks: Stream,
    pub(super) index: AdaptiveIndex,
    /// Blocks that were appended and are not yet referenced by a transaction.
    pub(super) pending: Mutex<HashMap<BlockId, BlockEntry>>,
    pub(super) commit: Mutex<CommitState>,
    /// Held by checkpoint, reclaim and close: one of them at a time.
    pub(super) maintenance: Mutex<Maintenance>,
    /// Somebody holds it as [`super::carry::Held`], perhaps for long.
    pub(super) held: AtomicBool,
    pub(super) next_block: AtomicU64,
    /// Bytes staged since the last checkpoint.
    pub(super) staged_since: AtomicU64,
    /// The last LSN given out; only changed under `commit`.
    pub(super) lsn: AtomicU64,
    pub(super) space: SpaceKeeper,
    pub(super) description: Description,
    /// What was found wrong, if the store was opened however damaged it is.
    pub(super) salvage: Option<Salvage>,
    pub(super) _lock: Box<dyn LockGuard>,
}

/// Guarded by the commit lock.
pub(super) struct CommitState {
    /// Bytes of transactions since the last checkpoint began.
    pub journal_bytes: u64,
}

/// The last valid checkpoint.
pub(super) struct Maintenance {
    pub checkpoint: CheckpointEnd,
    pub checkpoint_seq: u64,
    /// Length of one copy.
    pub checkpoint_bytes: u64,
    /// Both copies are there, and nothing wrong with them has been seen.
    pub whole: bool,
}

impl Store {
    /// The store's name, unique in the world.
    pub fn uuid(&self) -> Uuid {
        self.description.uuid
    }

    /// True if the store was opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.log.read_only
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.index.get(key)
    }

    /// At most `limit` pairs with keys in `[from, to)`, ascending; an empty `to` means up to the
    /// last key. Each pair is consistent; a commit may happen between two of them.
    pub fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>> {
        self.index.scan(from, to, limit)
    }

    /// Appends a block to the journal. It is garbage until a commit refers to it.
    ///
    /// Refused with ENOSPC while there is still space for metadata and settling.
    pub fn stage(&self, block: &NewBlock) -> Result<BlockId> {
        self.space
            .admit_data(&*self.log.storage, block.payload.len() as u64)?;
        self.append_block(&self.journal, block, true)
    }

    /// Appends a block to the block segments. It is garbage until a commit refers to it, and that
    /// commit makes it durable first.
    pub fn append(&self, block: &NewBlock) -> Result<BlockId> {
        self.append_block(&self.blocks, block, false)
    }

    fn append_block(&self, stream: &Stream, block: &NewBlock, staged: bool) -> Result<BlockId> {
        self.log.check_writable()?;
        if let Some(anchor) = block.anchor {
            self.check_anchor(anchor)?;
        }
        let Ok(stored_len) = u32::try_from(block.payload.len()) else {
            return Err(StoreError::Invalid(format!(
                "a block of {} bytes",
                block.payload.len()
            )));
        };
        let id = self.next_block.fetch_add(1, Ordering::Relaxed);
        let header = RecordHeader {
            kind: if staged {
                RecordKind::Staged
            } else {
                RecordKind::Settled
            },
            tag: block.codec,
            body_len: 0,
            object: id,
            version: self.lsn.load(Ordering::Relaxed) + 1,
        };
        let prefix = entry::block_prefix(block.raw_len, block.anchor);
        let (at, len) = stream.append(header, &|_| prefix.clone(), block.payload, true)?;
        if staged {
            self.staged_since.fetch_add(len, Ordering::Relaxed);
        }
        let info = BlockInfo {
            codec: block.codec,
            staged,
            stored_len,
            raw_len: block.raw_len,
            refs: 0,
            live: 0,
            anchor: block.anchor,
        };
        self.pending.lock().insert(
            id,
            BlockEntry {
                seq: at.seq,
                offset: at.offset,
                info,
            },
        );
        Ok(id)
    }

    fn check_anchor(&self, anchor: BlockId) -> Result<()> {
        let (entry, _) = self
            .lookup(anchor)?
            .ok_or(StoreError::NoSuchBlock(anchor))?;
        match entry.info.anchor {
            None => Ok(()),
            Some(_) => Err(StoreError::Invalid(format!(
                "block {anchor} has an anchor, so it cannot be one"
            ))),
        }
    }

    /// Gives up a block that the caller will not refer to. It stays if a transaction has adopted it
    /// meanwhile, as the anchor of another one.
    pub fn discard(&self, id: BlockId) {
        // A commit that has looked the block up must not find it gone when it is written.
        let _commit = self.commit.lock();
        if let Some(entry) = self.pending.lock().remove(&id) {
            self.log.drop_live(entry.seq, entry.record_len());
        }
    }

    /// Where a block is and whether it is still pending.
    pub(super) fn lookup(&self, id: BlockId) -> Result<Option<(BlockEntry, bool)>> {
        // A block moves from `pending` to the index, so it is looked for in this order.
        if let Some(entry) = self.pending.lock().get(&id) {
            return Ok(Some((*entry, true)));
        }
        let Some(value) = self.index.get(&entry::block_key(id))? else {
            return Ok(None);
        };
        let entry = BlockEntry::decode(&value).ok_or_else(|| {
            StoreError::damaged("index entry", format!("block {id}"), "it makes no sense")
        })?;
        Ok(Some((entry, false)))
    }

    /// Applies a transaction: all of it or nothing, after every earlier one. Not durable before
    /// [`Store::sync`], except that settled blocks it refers to are.
    ///
    /// The store itself keeps the reference that an anchored block has on its anchor.
    pub fn commit(&self, txn: Transaction) -> Result<Lsn> {
        self.log.check_writable()?;
        self.settle_referenced(&txn)?;
        let frees = frees_space(&txn);
        let mut state = self.commit.lock();
        let resolved = transaction::resolve(txn, &|id| self.lookup(id))?;
        let lsn = self.write_with_reserve(&mut state, &resolved, frees)?;
        let journal_bytes = state.journal_bytes;
        drop(state);
        self.checkpoint_if_due(journal_bytes);
        Ok(lsn)
    }

    /// A transaction that frees something may use the reserve; others may not eat what it was for.
    fn write_with_reserve(
        &self,
        state: &mut CommitState,
        resolved: &Resolved,
        frees: bool,
    ) -> Result<Lsn> {
        let storage = &*self.log.storage;
        if !frees {
            self.space
                .admit_metadata(storage, transaction::body_size(&resolved.changes) as u64)?;
        }
        match self.write_transaction(state, resolved) {
            Err(error) if error.is_no_space() && frees && self.space.release_reserve(storage) => {
                self.write_transaction(state, resolved)
            }
            other => other,
        }
    }

    /// Makes newly appended settled blocks durable before a transaction refers to them.
    fn settle_referenced(&self, txn: &Transaction) -> Result<()> {
        let unsynced = {
            let pending = self.pending.lock();
            txn.ops.iter().any(|op| match op {
                Op::Ref { block, .. } => pending.get(block).is_some_and(|entry| {
                    let end = Position {
                        seq: entry.seq,
                        offset: entry.offset + entry.record_len(),
                    };
                    !entry.info.staged && !self.blocks.is_durable(end)
                }),
                _ => false,
            })
        };
        if unsynced { self.blocks.sync() } else { Ok(()) }
    }

    /// Appends the record and applies it. The caller holds the commit lock.
    pub(super) fn write_transaction(
        &self,
        state: &mut CommitState,
        resolved: &Resolved,
    ) -> Result<Lsn> {
        let lsn = self.lsn.load(Ordering::Relaxed) + 1;
        let header = RecordHeader {
            kind: RecordKind::Transaction,
            tag: 0,
            body_len: 0,
            object: 0,
            version: lsn,
        };
        let body = |durable| transaction::encode_body(durable, &resolved.changes);
        let (_, len) = self.journal.append(header, &body, &[], false)?;
        self.lsn.store(lsn, Ordering::Relaxed);
        self.index
            .apply(&resolved.changes)
            .map_err(|e| self.log.fail(e))?;
        let mut pending = self.pending.lock();
        for id in &resolved.adopted {
            pending.remove(id);
        }
        for (id, entry) in &resolved.dead {
            pending.remove(id);
            self.log.drop_live(entry.seq, entry.record_len());
        }
        drop(pending);
        state.journal_bytes += len;
        Ok(lsn)
    }

    /// The last commit; 0 if there was none.
    pub fn last_lsn(&self) -> Lsn {
        self.lsn.load(Ordering::Relaxed)
    }

    /// What a sled index must know to be used again without reading the log.
    pub(super) fn clean_state(&self, checkpoint: CheckpointEnd) -> CleanState {
        let journal_end = self.journal.active_seq().map(|_| self.journal.end());
        let journal_bytes = self.commit.lock().journal_bytes;
        CleanState {
            lsn: self.last_lsn(),
            checkpoint,
            next_block: self.next_block.load(Ordering::Relaxed),
            next_seq: self.log.peek_seq(),
            journal_bytes,
            journal_end,
            segments: self.log.segments().into_iter().collect(),
        }
    }

    /// Makes all earlier commits durable.
    pub fn sync(&self) -> Result<()> {
        self.journal.sync()
    }

    /// Makes all appended settled blocks durable, so that commits that refer to them need not.
    pub fn sync_blocks(&self) -> Result<()> {
        self.blocks.sync()
    }

    /// What is known of a block, referenced or not yet.
    pub fn block_info(&self, id: BlockId) -> Result<BlockInfo> {
        let (entry, _) = self.lookup(id)?.ok_or(StoreError::NoSuchBlock(id))?;
        Ok(entry.info)
    }

    /// Whether a block that was looked up before has died since.
    pub fn is_gone(&self, id: BlockId) -> bool {
        matches!(self.block_info(id), Err(StoreError::NoSuchBlock(_)))
    }

    /// The payload of a block, with its checksum verified.
    pub fn read_block(&self, id: BlockId) -> Result<Vec<u8>> {
        let (mut entry, _) = self.lookup(id)?.ok_or(StoreError::NoSuchBlock(id))?;
        for _ in 0..RELOCATION_RETRIES {
            let error = match self.log.read_block(id, &entry) {
                Ok(payload) => return Ok(payload),
                Err(error) => error,
            };
            // Reclaim may have moved the block and dropped its old segment in between.
            let (now, _) = self.lookup(id)?.ok_or(StoreError::NoSuchBlock(id))?;
            if (now.seq, now.offset) == (entry.seq, entry.offset) {
                return Err(error);
            }
            entry = now;
        }
        Err(StoreError::NoSuchBlock(id))
    }

    /// At most `limit` referenced blocks with ids above `after`, ascending.
    pub fn blocks(&self, after: BlockId, limit: usize) -> Result<Vec<(BlockId, BlockInfo)>> {
        let Some(from) = after.checked_add(1) else {
            return Ok(Vec::new());
        };
        let pairs = self
            .index
            .scan(&entry::block_key(from), &[entry::BLOCK_KEY + 1], limit)?;
        pairs
            .iter()
            .map(|(key, value)| {
                let decoded = entry::block_of_key(key).zip(BlockEntry::decode(value));
                let (id, entry) = decoded.ok_or_else(|| {
                    StoreError::damaged(
                        "index entry",
                        format!("key {key:02x?}"),
                        "it makes no sense",
                    )
                })?;
                Ok((id, entry.info))
            })
            .collect()
    }

    /// Writes a snapshot of the metadata, so that recovery need not read the journal before it, and
    /// drops the segments that are not needed any more.
    pub fn checkpoint(&self) -> Result<()> {
        self.checkpoint_and_drop(&mut self.maintenance.lock())
    }

    /// As [`Store::checkpoint`], but returns false instead of waiting for who holds the store.
    pub fn try_checkpoint(&self) -> Result<bool> {
        match self.maintenance_unless_held() {
            Some(mut maintenance) => self.checkpoint_and_drop(&mut maintenance).map(|()| true),
            None => Ok(false),
        }
    }

    /// Waits for other maintenance, but not for who holds the store.
    pub(super) fn maintenance_unless_held(&self) -> Option<MutexGuard<'_, Maintenance>> {
        loop {
            let maintenance = self.maintenance.try_lock_for(LOOK_FOR_HOLDER);
            if maintenance.is_some() || self.held.load(Ordering::SeqCst) {
                return maintenance;
            }
        }
    }

    fn checkpoint_and_drop(&self, maintenance: &mut Maintenance) -> Result<()> {
        self.checkpoint_locked(maintenance, CHECKPOINT_LEVEL)?;
        self.drop_dead(maintenance, &mut ReclaimReport::default())
    }

    /// Writes a checkpoint if the journal since the last one has become long. A failure is no
    /// failure of the commit after which this is done.
    fn checkpoint_if_due(&self, journal_bytes: u64) {
        let staged_bytes = self.staged_since.load(Ordering::Relaxed);
        if journal_bytes < CHECKPOINT_JOURNAL_BYTES && staged_bytes < CHECKPOINT_STAGED_BYTES {
            return;
        }
        let Some(mut maintenance) = self.maintenance.try_lock() else {
            return;
        };
        let size = maintenance.checkpoint_bytes;
        let due = journal_bytes >= CHECKPOINT_JOURNAL_BYTES.max(size)
            || staged_bytes >= CHECKPOINT_STAGED_BYTES.max(16 * size);
        if !due {
            return;
        }
        if let Err(error) = self.checkpoint_and_drop(&mut maintenance) {
            log::warn!("no checkpoint: {error}");
        }
    }

    pub(super) fn checkpoint_locked(
        &self,
        maintenance: &mut Maintenance,
        level: i32,
    ) -> Result<()> {
        self.log.check_writable()?;
        let (lsn, replay) = {
            let mut state = self.commit.lock();
            state.journal_bytes = 0;
            self.staged_since.store(0, Ordering::Relaxed);
            (self.lsn.load(Ordering::Relaxed), self.journal.end())
        };
        let mut writer = CheckpointWriter::create(&self.log, lsn, level)?;
        let last_lsn = writer
            .write_all(&|from| scan_step(&self.index, from))
            // The pages may show transactions up to this one, so they must not be lost.
            .map(|()| self.lsn.load(Ordering::Relaxed))
            .and_then(
                |last_lsn| match fault::planted("checkpoint-ahead-of-journal") {
                    true => Ok(last_lsn),
                    false => self.journal.sync().map(|()| last_lsn),
                },
            )?;
        let next_block = self.next_block.load(Ordering::Relaxed);
        let end = CheckpointEnd {
            lsn,
            last_lsn,
            replay,
            next_block,
            next_seq: self.log.peek_seq(),
            ..Default::default()
        };
        let (seq, len) = writer.finish(end)?;
        self.log.add_segment(
            SegmentName {
                seq,
                kind: SegmentKind::Checkpoint,
            },
            len,
        );
        let old = std::mem::replace(&mut maintenance.checkpoint_seq, seq);
        maintenance.checkpoint = end;
        maintenance.checkpoint_bytes = len;
        maintenance.whole = true;
        if let Err(error) = self.drop_segment(SegmentName {
            seq: old,
            kind: SegmentKind::Checkpoint,
        }) {
            log::warn!("the old checkpoint stays until the next mount: {error}");
        }
        Ok(())
    }

    /// Unlinks a segment that nothing needs.
    pub(super) fn drop_segment(&self, name: SegmentName) -> Result<()> {
        self.log.drop_segment(name)
    }

    /// Bytes on disk.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let allocated = |path: &str| {
            self.log
                .storage
                .allocated(path)
                .map_err(StoreError::io("stat", path))
        };
        for (seq, state) in self.log.segments() {
            let name = SegmentName {
                seq,
                kind: state.kind,
            };
            let bytes = allocated(&name.path())?;
            match state.kind {
                SegmentKind::Checkpoint => {
                    usage.checkpoint_bytes += bytes + allocated(&name.copy_path())?;
                }
                SegmentKind::Journal => usage.staged_bytes += state.live,
                SegmentKind::Blocks => usage.settled_bytes += state.live,
            }
            if state.kind != SegmentKind::Checkpoint {
                usage.log_bytes += bytes;
                usage.dead_bytes += state.len.saturating_sub(state.live);
            }
        }
        usage.index_bytes = allocated(INDEX_DIR)?;
        usage.model_bytes = layout::model_bytes(&*self.log.storage)?;
        let known =
            usage.log_bytes + usage.checkpoint_bytes + usage.index_bytes + usage.model_bytes;
        usage.other_bytes = allocated("")?.saturating_sub(known + allocated(RESERVE)?);
        Ok(usage)
    }

    /// Available and total bytes of the file system under the store.
    pub fn free_space(&self) -> Result<(u64, u64)> {
        let place = self.log.storage.describe();
        let space = self
            .log
            .storage
            .free_space()
            .map_err(StoreError::io("statvfs", &place))?;
        Ok((space.available, space.total))
    }

    /// Keeps a model in the store, durably. Names are content hashes.
    pub fn put_model(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.log.check_writable()?;
        layout::put_model(&*self.log.storage, name, bytes)
    }

    /// A model of the store, if it is there. The caller compares the bytes with the name.
    pub fn get_model(&self, name: &str) -> Result<Option<Vec<u8>>> {
        layout::get_model(&*self.log.storage, name)
    }
}

/// True if a transaction is made to give space back.
fn frees_space(txn: &Transaction) -> bool {
    txn.ops.iter().any(|op| match op {
        Op::Put { .. } => false,
        Op::Delete { .. } => true,
        Op::Ref { refs, .. } => *refs < 0,
    })
}
