//! The index that a store uses: in memory while it is small, in sled when it has outgrown that.
//!
//! A small index costs nothing on disk: it is read from the checkpoint at mount. A large one lives
//! in sled, so that neither memory nor mounting grows with the store.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use uuid::Uuid;

use super::checkpoint::CheckpointEnd;
use super::index::{Change, Index, MemoryIndex, Pair};
use super::layout::INDEX_DIR;
use super::segment::SegmentKind;
use super::segments::{Log, Position, SegmentState};
use super::sled_index::SledIndex;
use super::varint::{self, Reader};
use super::{BlockId, Lsn, OpenOptions, Result, StoreError};
use crate::fault;

const MARKER: &str = "index/clean";
const MARKER_TEMPORARY: &str = "index/clean.tmp";
const COMPACTED: &str = "index.tmp";
const MARKER_MAGIC: &[u8; 8] = b"s2sfsidx";
/// A mark lists all segments, in a few bytes each.
const MAX_MARKER: u64 = 64 << 20;
const COPY_STEP: usize = 4096;
/// Below this, compacting sled at close is not worth the time.
const COMPACT_ABOVE: u64 = 1 << 20;

enum Backing {
    Memory(MemoryIndex),
    Sled(SledIndex),
    Closed,
}

impl Backing {
    fn index(&self) -> Result<&dyn Index> {
        match self {
            Backing::Memory(index) => Ok(index),
            Backing::Sled(index) => Ok(index),
            Backing::Closed => Err(StoreError::Index("the store is closed".into())),
        }
    }
}

pub(crate) struct AdaptiveIndex {
    backing: RwLock<Backing>,
    /// Memory after which the index moves to sled.
    limit: AtomicU64,
    cache_bytes: u64,
    place: Option<SledPlace>,
}

/// Where sled keeps its files.
struct SledPlace {
    path: PathBuf,
    /// For a read-only store: outside of it, and removed afterwards.
    temporary: bool,
}

/// The state of the log that a cleanly closed sled index stands for.
#[derive(Debug, Clone)]
pub(crate) struct CleanState {
    pub lsn: Lsn,
    /// The end record of the last checkpoint.
    pub checkpoint: CheckpointEnd,
    pub next_block: BlockId,
    pub next_seq: u64,
    /// Bytes of transactions since the last checkpoint.
    pub journal_bytes: u64,
    /// Where the journal goes on; absent if it has no segment.
    pub journal_end: Option<Position>,
    /// Number, kind, length and live bytes of every segment.
    pub segments: Vec<(u64, SegmentState)>,
}

impl AdaptiveIndex {
    /// An empty index. What sled has on disk is removed unless the store is read-only.
    pub(crate) fn empty(log: &Log, options: &OpenOptions) -> Result<AdaptiveIndex> {
        if !options.read_only {
            for dir in [INDEX_DIR, COMPACTED] {
                log.storage
                    .remove_tree(dir)
                    .map_err(StoreError::io("remove", dir))?;
            }
        }
        Ok(AdaptiveIndex::with(
            Backing::Memory(MemoryIndex::default()),
            log,
            options,
        ))
    }

    fn with(backing: Backing, log: &Log, options: &OpenOptions) -> AdaptiveIndex {
        let local = log.storage.local_path(INDEX_DIR);
        let place = local.map(|path| match options.read_only {
            false => SledPlace {
                path,
                temporary: false,
            },
            true => SledPlace {
                path: std::env::temp_dir().join(format!("s2sfs-index-{}", Uuid::new_v4())),
                temporary: true,
            },
        });
        let limit = if options.memory_index || place.is_none() {
            u64::MAX
        } else {
            options.index_cache_bytes
        };
        AdaptiveIndex {
            backing: RwLock::new(backing),
            limit: AtomicU64::new(limit),
            cache_bytes: options.index_cache_bytes,
            place,
        }
    }

    /// The sled index on disk, if the store was closed after it was written and neither it nor the
    /// log has changed since. The mark is removed, durably, before it is returned.
    pub(crate) fn reuse(
        log: &Log,
        options: &OpenOptions,
    ) -> Result<Option<(AdaptiveIndex, CleanState)>> {
        if options.read_only || options.rebuild_index || options.memory_index {
            return Ok(None);
        }
        let Some((nonce, state)) = read_marker(log)? else {
            return Ok(None);
        };
        let found = log.segments();
        let same = fault::planted("stale-index-trusted")
            || state.segments.len() == found.len()
                && state.segments.iter().all(|(seq, state)| {
                    found
                        .get(seq)
                        .is_some_and(|found| (found.kind, found.len) == (state.kind, state.len))
                });
        let Some(path) = log.storage.local_path(INDEX_DIR).filter(|_| same) else {
            return Ok(None);
        };
        let sled = match SledIndex::open(&path, options.index_cache_bytes, false) {
            Ok(sled)
                if sled
                    .nonce()
                    .is_ok_and(|found| found.as_deref() == Some(&nonce)) =>
            {
                sled
            }
            Ok(_) => return Ok(None),
            Err(error) => {
                log::warn!("{error}; the index is made anew from the log");
                return Ok(None);
            }
        };
        if !fault::planted("stale-index-trusted") {
            log.storage
                .unlink(MARKER)
                .map_err(StoreError::io("unlink", MARKER))?;
        }
        log.storage
            .sync_dir(INDEX_DIR)
            .map_err(StoreError::io("fsync", INDEX_DIR))?;
        Ok(Some((
            AdaptiveIndex::with(Backing::Sled(sled), log, options),
            state,
        )))
    }

    pub(crate) fn is_sled(&self) -> bool {
        matches!(&*self.backing.read(), Backing::Sled(_))
    }

    /// Moves the index to sled; where sled fails, the index stays in memory for this mount.
    fn spill_or_stay(&self) {
        if let Err(error) = self.spill() {
            log::warn!("the index stays in memory: {error}");
            self.limit.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Moves the index to sled. Readers wait meanwhile.
    fn spill(&self) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let mut backing = self.backing.write();
        let Backing::Memory(memory) = &*backing else {
            return Ok(());
        };
        let sled = SledIndex::open(&place.path, self.cache_bytes, place.temporary)?;
        copy(memory, &sled)?;
        *backing = Backing::Sled(sled);
        Ok(())
    }

    /// At a clean close: makes sled small and durable, and marks it with the state it stands for.
    pub(crate) fn close(&self, log: &Log, state: &CleanState) -> Result<()> {
        let mut backing = self.backing.write();
        if !matches!(&*backing, Backing::Sled(_)) {
            return Ok(());
        }
        self.compact(log, &mut backing)?;
        let Backing::Sled(sled) = &*backing else {
            return Ok(());
        };
        let nonce = Uuid::new_v4().into_bytes();
        sled.flush(&nonce)?;
        // Closes the database; nothing may be asked of this index any more.
        *backing = Backing::Closed;
        sync_tree(log, INDEX_DIR)?;
        write_marker(log, &nonce, state)
    }

    /// Replaces the database by a fresh copy if much of it is garbage.
    fn compact(&self, log: &Log, backing: &mut Backing) -> Result<()> {
        let Backing::Sled(sled) = &*backing else {
            return Ok(());
        };
        let allocated = log
            .storage
            .allocated(INDEX_DIR)
            .map_err(StoreError::io("stat", INDEX_DIR))?;
        let Some(path) = log
            .storage
            .local_path(COMPACTED)
            .filter(|_| allocated > COMPACT_ABOVE)
        else {
            return Ok(());
        };
        log.storage
            .remove_tree(COMPACTED)
            .map_err(StoreError::io("remove", COMPACTED))?;
        let fresh = SledIndex::open(&path, self.cache_bytes, false)?;
        copy(sled, &fresh)?;
        fresh.flush(&[])?;
        drop(fresh);
        *backing = Backing::Closed;
        log.storage
            .remove_tree(INDEX_DIR)
            .map_err(StoreError::io("remove", INDEX_DIR))?;
        log.storage
            .rename(COMPACTED, INDEX_DIR)
            .map_err(StoreError::io("rename", INDEX_DIR))?;
        log.storage
            .sync_dir("")
            .map_err(StoreError::io("fsync", "."))?;
        let path = log.storage.local_path(INDEX_DIR).unwrap_or(path);
        *backing = Backing::Sled(SledIndex::open(&path, self.cache_bytes, false)?);
        Ok(())
    }
}

impl Index for AdaptiveIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.backing.read().index()?.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>> {
        self.backing.read().index()?.scan(from, to, limit)
    }

    fn apply(&self, changes: &[Change]) -> Result<()> {
        let bytes = {
            let backing = self.backing.read();
            let index = backing.index()?;
            index.apply(changes)?;
            index.memory_bytes()
        };
        if bytes > self.limit.load(Ordering::Relaxed) {
            self.spill_or_stay();
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.backing.read().index().map_or(0, Index::memory_bytes)
    }
}

fn copy(from: &dyn Index, to: &dyn Index) -> Result<()> {
    let mut start = Vec::new();
    loop {
        let pairs = from.scan(&start, &[], COPY_STEP)?;
        let Some((last, _)) = pairs.last() else {
            return Ok(());
        };
        start.clone_from(last);
        start.push(0);
        let changes: Vec<Change> = pairs
            .into_iter()
            .map(|(key, value)| Change {
                key,
                value: Some(value),
            })
            .collect();
        to.apply(&changes)?;
    }
}

/// Makes the files of a directory durable, names included. sled itself does not always.
fn sync_tree(log: &Log, dir: &str) -> Result<()> {
    for entry in log.storage.list(dir).map_err(StoreError::io("list", dir))? {
        let path = format!("{dir}/{}", entry.name);
        if entry.is_dir {
            sync_tree(log, &path)?;
        } else {
            let file = log
                .storage
                .open(&path, true)
                .map_err(StoreError::io("open", &path))?;
            file.sync_data()
                .map_err(StoreError::io("fdatasync", &path))?;
        }
    }
    log.storage
        .sync_dir(dir)
        .map_err(StoreError::io("fsync", dir))
}

fn encode_marker(log: &Log, nonce: &[u8; 16], state: &CleanState) -> Vec<u8> {
    let mut out = MARKER_MAGIC.to_vec();
    out.extend_from_slice(log.uuid.as_bytes());
    out.extend_from_slice(nonce);
    let end = state.journal_end.unwrap_or_default();
    let counts = [
        state.lsn,
        state.next_block,
        state.next_seq,
        state.journal_bytes,
        end.seq,
        end.offset,
    ];
    for value in counts {
        varint::put(&mut out, value);
    }
    let checkpoint = state.checkpoint.encode();
    varint::put(&mut out, checkpoint.len() as u64);
    out.extend_from_slice(&checkpoint);
    varint::put(&mut out, state.segments.len() as u64);
    for (seq, segment) in &state.segments {
        for value in [*seq, segment.kind as u64, segment.len, segment.live] {
            varint::put(&mut out, value);
        }
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn decode_marker(log: &Log, bytes: &[u8]) -> Option<(Vec<u8>, CleanState)> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc32c::crc32c(body).to_le_bytes() != crc {
        return None;
    }
    let mut reader = Reader::new(body);
    if reader.bytes(8)? != MARKER_MAGIC || reader.bytes(16)? != log.uuid.as_bytes() {
        return None;
    }
    let nonce = reader.bytes(16)?.to_vec();
    let (lsn, next_block, next_seq) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let journal_bytes = reader.varint()?;
    let end = Position {
        seq: reader.varint()?,
        offset: reader.varint()?,
    };
    let journal_end = (end.seq != 0).then_some(end);
    let checkpoint_len = reader.varint_usize()?;
    let checkpoint = CheckpointEnd::decode(reader.bytes(checkpoint_len)?)?;
    let mut segments = Vec::new();
    for _ in 0..reader.varint()? {
        let seq = reader.varint()?;
        let kind = match reader.varint()? {
            0 => SegmentKind::Journal,
            1 => SegmentKind::Blocks,
            2 => SegmentKind::Checkpoint,
            _ => return None,
        };
        segments.push((
            seq,
            SegmentState {
                kind,
                len: reader.varint()?,
                live: reader.varint()?,
            },
        ));
    }
    let state = CleanState {
        lsn,
        checkpoint,
        next_block,
        next_seq,
        journal_bytes,
        journal_end,
        segments,
    };
    reader.is_empty().then_some((nonce, state))
}

fn read_marker(log: &Log) -> Result<Option<(Vec<u8>, CleanState)>> {
    if !matches!(log.storage.exists(MARKER), Ok(true)) {
        return Ok(None);
    }
    // The index is only a cache: one that cannot be read is made anew.
    match super::layout::read_file(&*log.storage, MARKER, MAX_MARKER) {
        Ok(bytes) => Ok(decode_marker(log, &bytes)),
        Err(error) => {
            log::warn!("{error}; the index is made anew from the log");
            Ok(None)
        }
    }
}

fn write_marker(log: &Log, nonce: &[u8; 16], state: &CleanState) -> Result<()> {
    let bytes = encode_marker(log, nonce, state);
    super::layout::replace_file(&*log.storage, INDEX_DIR, MARKER, MARKER_TEMPORARY, &bytes)
}
