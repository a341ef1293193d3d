//! The store: an append-only log of records, an index of it, and blocks.
//!
//! To the layers above, a store is an ordered map of small keys and values that changes by atomic
//! [`Transaction`]s, plus immutable blocks that transactions refer to and count references of.
//! See docs/format.md for what is on disk and docs/durability.md for what survives what.

mod adaptive_index;
pub(crate) mod bench;
pub mod carry;
mod check;
mod checkpoint;
mod close;
mod engine;
mod entry;
mod error;
mod format;
pub(crate) mod fuzz;
mod index;
mod layout;
mod mend;
mod open;
mod reclaim;
mod record;
mod recovery;
mod salvage;
mod scrub;
mod segment;
mod segments;
mod simulated;
mod sled_index;
mod snapshot;
mod space;
mod storage;
mod stream;
mod transaction;
mod varint;
mod watched;

pub use check::{BlockVisitor, CheckReport, ExtentRef, Problem};
pub use engine::Store;
pub use error::StoreError;
pub use format::FORMAT_VERSION;
pub use index::Pair;
pub use layout::MODEL_DIR;
pub use mend::{Counted, RepairNotes};
pub use salvage::LostCommits;
pub use scrub::{BadRange, ScrubEnd, ScrubStep};
pub use simulated::{Fault, SimOp, SimStorage};
pub use snapshot::LostKeys;
pub use storage::{Entry, LOCK_FILE, LockGuard, RealStorage, Space, Storage, StorageFile};
pub use watched::WatchedStorage;

/// Result of every operation of this layer.
pub type Result<T> = std::result::Result<T, StoreError>;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Make a store of a missing or empty directory.
    pub create: bool,
    /// Change nothing on disk. Several readers may have a store open, but none beside a writer.
    pub read_only: bool,
    /// Make the index anew from the log even if it could be used.
    pub rebuild_index: bool,
    /// Keep the index in memory however large it is.
    pub memory_index: bool,
    /// Length at which a segment ends and the next one begins.
    pub segment_bytes: u64,
    /// Memory for the index. A pair takes about 150 bytes, so the default is enough for 1.3 million,
    /// or 300,000 files; metadata that needs more goes to sled.
    pub index_cache_bytes: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            create: false,
            read_only: false,
            rebuild_index: false,
            memory_index: false,
            segment_bytes: 64 << 20,
            index_cache_bytes: 192 << 20,
        }
    }
}

/// How much [`Store::reclaim`] may do.
#[derive(Debug, Clone, Copy)]
pub struct Reclaim {
    /// Live bytes that may be copied out of mostly dead segments.
    pub max_copy_bytes: u64,
    /// Segments of which at least this share is dead are copied out.
    pub min_dead_percent: u8,
}

impl Default for Reclaim {
    fn default() -> Self {
        Reclaim {
            max_copy_bytes: 64 << 20,
            min_dead_percent: 50,
        }
    }
}

/// What [`Store::reclaim`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReclaimReport {
    pub segments_dropped: u64,
    pub bytes_freed: u64,
    pub bytes_copied: u64,
}

/// Bytes on disk, as allocated by the file system under the store (`du`), directories included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Journal and block segments.
    pub log_bytes: u64,
    /// The sled index; 0 while the index fits memory.
    pub index_bytes: u64,
    /// Snapshots of the metadata in the log.
    pub checkpoint_bytes: u64,
    pub model_bytes: u64,
    /// Description, lock, and directories.
    pub other_bytes: u64,
    /// Bytes of the log that no file needs any more.
    pub dead_bytes: u64,
    /// Payload bytes of live blocks that are staged.
    pub staged_bytes: u64,
    /// Payload bytes of live blocks that are settled.
    pub settled_bytes: u64,
}

impl Usage {
    /// Everything but models.
    pub fn stored_bytes(&self) -> u64 {
        self.log_bytes + self.index_bytes + self.checkpoint_bytes + self.other_bytes
    }
}

/// Log sequence number: the position of a commit in the one total order of all commits. Starts at 1.
pub type Lsn = u64;

/// Name of a block, unique for the life of a store; independent of where the block lies.
pub type BlockId = u64;

/// What the index knows of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// Codec id byte of the payload (see `codec::CodecId`), kept here for statistics.
    pub codec: u8,
    /// True while the block lies in the journal, in a fast codec.
    pub staged: bool,
    /// Bytes of the payload on disk, without the record header.
    pub stored_len: u32,
    /// Bytes the payload decodes to.
    pub raw_len: u32,
    /// References: extents that show a part of this block, plus blocks anchored to it.
    pub refs: u32,
    /// Decoded bytes that extents still show (a byte shown twice counts twice).
    pub live: u64,
    /// The block whose decoded bytes are this block's history; it holds one reference.
    pub anchor: Option<BlockId>,
}

/// A block to be appended. `payload` is opaque to the store.
#[derive(Debug, Clone)]
pub struct NewBlock<'a> {
    pub codec: u8,
    pub raw_len: u32,
    pub anchor: Option<BlockId>,
    pub payload: &'a [u8],
}

/// One change of a [`Transaction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        key: Vec<u8>,
    },
    /// Adds (or, negative, drops) `refs` references and `live` decoded bytes of a block. A block
    /// whose references reach zero at the end of the transaction is dead, and drops its anchor.
    Ref {
        block: BlockId,
        refs: i32,
        live: i64,
    },
}

/// A list of changes that happen together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    pub ops: Vec<Op>,
}
