//! What the index holds of a block (`B` keys), and the head of a block record's body.

use super::varint::{self, Reader};
use super::{BlockId, BlockInfo};
use crate::store::record::HEADER_LEN;

/// First byte of the keys that belong to the store itself, followed by the block id, big endian.
pub(crate) const BLOCK_KEY: u8 = b'B';
/// First byte of other keys that are reserved for the store.
pub(crate) const STORE_KEY: u8 = b'S';

const STAGED: u8 = 1;

/// A block's place and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    /// Number of the segment.
    pub seq: u64,
    /// Where the record begins in the segment.
    pub offset: u64,
    pub info: BlockInfo,
}

pub(crate) fn block_key(id: BlockId) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.push(BLOCK_KEY);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// The block that a `B` key names.
pub(crate) fn block_of_key(key: &[u8]) -> Option<BlockId> {
    match key.split_first() {
        Some((&BLOCK_KEY, id)) => Some(BlockId::from_be_bytes(id.try_into().ok()?)),
        _ => None,
    }
}

/// The part of a block record's body that comes before the payload.
pub(crate) fn block_prefix(raw_len: u32, anchor: Option<BlockId>) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    varint::put(&mut out, u64::from(raw_len));
    varint::put(&mut out, anchor.unwrap_or(0));
    out
}

/// Splits a block record's body in raw length, anchor and payload.
pub(crate) fn split_block_body(body: &[u8]) -> Option<(u32, Option<BlockId>, &[u8])> {
    let mut reader = Reader::new(body);
    let raw_len = reader.varint_u32()?;
    let anchor = reader.varint()?;
    Some((raw_len, (anchor != 0).then_some(anchor), reader.rest()))
}

impl BlockEntry {
    /// Bytes between the start of the record and the payload.
    pub(crate) fn overhead(&self) -> u64 {
        let prefix =
            varint::len(u64::from(self.info.raw_len)) + varint::len(self.info.anchor.unwrap_or(0));
        (HEADER_LEN + prefix) as u64
    }

    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        self.overhead() + u64::from(self.info.stored_len)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let info = &self.info;
        let mut out = Vec::with_capacity(24);
        out.push(if info.staged { STAGED } else { 0 });
        out.push(info.codec);
        for value in [
            self.seq,
            self.offset,
            u64::from(info.stored_len),
            u64::from(info.raw_len),
            u64::from(info.refs),
            info.live,
            info.anchor.unwrap_or(0),
        ] {
            varint::put(&mut out, value);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<BlockEntry> {
        let mut reader = Reader::new(bytes);
        let flags = reader.byte()?;
        let codec = reader.byte()?;
        let (seq, offset) = (reader.varint()?, reader.varint()?);
        let info = BlockInfo {
            codec,
            staged: flags & STAGED != 0,
            stored_len: reader.varint_u32()?,
            raw_len: reader.varint_u32()?,
            refs: reader.varint_u32()?,
            live: reader.varint()?,
            anchor: Some(reader.varint()?).filter(|&anchor| anchor != 0),
        };
        (flags & !STAGED == 0 && reader.is_empty()).then_some(BlockEntry { seq, offset, info })
    }
}
