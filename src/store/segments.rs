//! State that all streams of the log share: which segments there are, how much of each is live,
//! open files, and whether the store has failed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use uuid::Uuid;

use super::entry::{self, BlockEntry};
use super::record::{self, HEADER_LEN, Place, RecordHeader};
use super::segment::{LOG_DIR, SegmentKind, SegmentName};
use super::storage::{Storage, StorageFile};
use super::{BlockId, Result, StoreError};

/// Segments that are kept open for reading.
const OPEN_FILES: usize = 64;

const CLOSED: &str = "it was closed";

/// A place in a stream. Later places of one stream compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Position {
    pub seq: u64,
    pub offset: u64,
}

/// What is known of a segment while the store is open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentState {
    pub kind: SegmentKind,
    /// Length of the file.
    pub len: u64,
    /// Bytes of records of blocks that are referenced or may still become so.
    pub live: u64,
}

/// Shared by the journal, the block stream, readers and reclaim.
pub(crate) struct Log {
    pub storage: Arc<dyn Storage>,
    pub uuid: Uuid,
    pub segment_bytes: u64,
    pub read_only: bool,
    next_seq: AtomicU64,
    segments: Mutex<BTreeMap<u64, SegmentState>>,
    files: Mutex<LruCache<u64, Arc<dyn StorageFile>>>,
    failure: Mutex<Option<String>>,
}

impl Log {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        uuid: Uuid,
        segment_bytes: u64,
        read_only: bool,
    ) -> Log {
        let capacity = NonZeroUsize::new(OPEN_FILES).unwrap_or(NonZeroUsize::MIN);
        Log {
            storage,
            uuid,
            segment_bytes,
            read_only,
            next_seq: AtomicU64::new(1),
            segments: Mutex::new(BTreeMap::new()),
            files: Mutex::new(LruCache::new(capacity)),
            failure: Mutex::new(None),
        }
    }

    /// Stops the store: what is acknowledged from now on could not be kept.
    pub(crate) fn fail(&self, error: StoreError) -> StoreError {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            log::error!(
                "store {}: {error}; no more changes until it is mounted again",
                self.storage.describe()
            );
            *failure = Some(error.to_string());
        }
        error
    }

    /// Err if the store has failed or may not be written.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(StoreError::ReadOnly);
        }
        match &*self.failure.lock() {
            Some(why) => Err(StoreError::Stopped(why.clone())),
            None => Ok(()),
        }
    }

    /// Refuses all changes from now on because the store was closed.
    pub(crate) fn close(&self) {
        self.failure.lock().get_or_insert_with(|| CLOSED.to_owned());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.failure.lock().as_deref() == Some(CLOSED)
    }

    /// A number no segment has had.
    pub(crate) fn take_seq(&self) -> u64 {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn peek_seq(&self) -> u64 {
        self.next_seq.load(Ordering::Relaxed)
    }

    pub(crate) fn raise_seq(&self, at_least: u64) {
        self.next_seq.fetch_max(at_least, Ordering::Relaxed);
    }

    pub(crate) fn add_segment(&self, name: SegmentName, len: u64) {
        self.segments.lock().insert(
            name.seq,
            SegmentState {
                kind: name.kind,
                len,
                live: 0,
            },
        );
        self.raise_seq(name.seq + 1);
    }

    /// Unlinks a segment that nothing needs, a checkpoint with both copies.
    pub(crate) fn drop_segment(&self, name: SegmentName) -> Result<()> {
        let checkpoint = name.kind == SegmentKind::Checkpoint;
        let copy = checkpoint.then(|| name.copy_path());
        for path in std::iter::once(name.path()).chain(copy) {
            match self.storage.unlink(&path) {
                Err(e) if checkpoint && e.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(StoreError::io("unlink", &path))?,
            }
        }
        self.forget_segment(name.seq);
        Ok(())
    }

    pub(crate) fn forget_segment(&self, seq: u64) {
        self.segments.lock().remove(&seq);
        self.files.lock().pop(&seq);
    }

    pub(crate) fn segments(&self) -> BTreeMap<u64, SegmentState> {
        self.segments.lock().clone()
    }

    pub(crate) fn set_len(&self, seq: u64, len: u64) {
        if let Some(state) = self.segments.lock().get_mut(&seq) {
            state.len = len;
        }
    }

    pub(crate) fn add_live(&self, seq: u64, bytes: u64) {
        if let Some(state) = self.segments.lock().get_mut(&seq) {
            state.live += bytes;
        }
    }

    pub(crate) fn drop_live(&self, seq: u64, bytes: u64) {
        if let Some(state) = self.segments.lock().get_mut(&seq) {
            state.live = state.live.saturating_sub(bytes);
        }
    }

    /// The path of a segment for messages and for opening it.
    pub(crate) fn path_of(&self, seq: u64) -> Option<String> {
        let kind = self.segments.lock().get(&seq)?.kind;
        Some(SegmentName { seq, kind }.path())
    }

    pub(crate) fn remember_file(&self, seq: u64, file: Arc<dyn StorageFile>) {
        self.files.lock().put(seq, file);
    }

    fn file(&self, seq: u64, path: &str) -> Result<Arc<dyn StorageFile>> {
        if let Some(file) = self.files.lock().get(&seq) {
            return Ok(file.clone());
        }
        let file = self
            .storage
            .open(path, false)
            .map_err(StoreError::io("open", path))?;
        self.remember_file(seq, file.clone());
        Ok(file)
    }

    /// Lets the system forget the record of a block, so that it is read from the disk next time.
    pub(crate) fn uncache(&self, entry: &BlockEntry) {
        let path = self.path_of(entry.seq);
        if let Some(file) = path.and_then(|path| self.file(entry.seq, &path).ok()) {
            file.uncache(entry.offset, entry.record_len());
        }
    }

    /// Reads the payload of the block that `entry` describes, and checks that it is that block.
    pub(crate) fn read_block(&self, id: BlockId, entry: &BlockEntry) -> Result<Vec<u8>> {
        let (_, mut record) = self.read_record(id, entry)?;
        record.drain(..entry.overhead() as usize);
        Ok(record)
    }

    /// The whole record of a block, with its header.
    pub(crate) fn read_record(
        &self,
        id: BlockId,
        entry: &BlockEntry,
    ) -> Result<(RecordHeader, Vec<u8>)> {
        let damaged = |why: String| {
            let name = format!(
                "segment {LOG_DIR}/{:08x}, offset {}, block {id}",
                entry.seq, entry.offset
            );
            StoreError::damaged("block", name, why)
        };
        let Some(path) = self.path_of(entry.seq) else {
            return Err(damaged("the segment is missing".into()));
        };
        let file = self.file(entry.seq, &path)?;
        let len = entry.record_len() as usize;
        if entry.record_len() > HEADER_LEN as u64 + u64::from(record::MAX_BODY) {
            return Err(damaged("it is said to be longer than any record".into()));
        }
        let mut record = vec![0u8; len];
        let got = file
            .read_at(entry.offset, &mut record)
            .map_err(StoreError::io("read", &path))?;
        let place = Place {
            store: self.uuid,
            seq: entry.seq,
            offset: entry.offset,
        };
        if got < len {
            return Err(damaged(format!(
                "the segment ends {} bytes too early",
                len - got
            )));
        }
        let Some(header) = RecordHeader::parse(&record, place) else {
            return Err(damaged("no record begins there".into()));
        };
        if header.record_len() != entry.record_len() || !record::verify_body(&record) {
            return Err(damaged("wrong checksum".into()));
        }
        let same = header.object == id && header.tag == entry.info.codec;
        let head =
            entry::split_block_body(&record[HEADER_LEN..]).map(|(raw, anchor, _)| (raw, anchor));
        if !same || head != Some((entry.info.raw_len, entry.info.anchor)) {
            return Err(damaged("another record lies there".into()));
        }
        Ok((header, record))
    }
}
