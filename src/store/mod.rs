//! The store: an append-only log of records, an index of it, and blocks.
//!
//! To the layers above, a store is an ordered map of small keys and values that changes by atomic
//! [`Transaction`]s, plus immutable blocks that transactions refer to and count references of.
//! See docs/format.md for what is on disk and docs/durability.md for what survives what.

mod error;
pub use error::StoreError;

/// Result of every operation of this layer.
pub type Result<T> = std::result::Result<T, StoreError>;

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
