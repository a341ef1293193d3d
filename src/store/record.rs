//! The record: the one unit of which every segment consists. Byte tables are in docs/format.md.

use uuid::Uuid;

/// Bytes of a record before its body.
pub(crate) const HEADER_LEN: usize = 32;
/// Bytes of the fields, which the checksum of the header covers.
const FIELDS_LEN: usize = 24;
/// No record is longer than this; a larger length in a header is damage.
pub(crate) const MAX_BODY: u32 = 64 << 20;

const MAGIC: [u8; 2] = *b"s2";

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Transaction = 1,
    Staged = 2,
    Settled = 3,
    CheckpointPage = 4,
    CheckpointEnd = 5,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<RecordKind> {
        Some(match byte {
            1 => RecordKind::Transaction,
            2 => RecordKind::Staged,
            3 => RecordKind::Settled,
            4 => RecordKind::CheckpointPage,
            5 => RecordKind::CheckpointEnd,
            _ => return None,
        })
    }
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub kind: RecordKind,
    /// Codec of a block, 0 in other records.
    pub tag: u8,
    pub body_len: u32,
    /// Block id, or number of a checkpoint page.
    pub object: u64,
    /// LSN under which the object was first written; it is kept when the record is relocated.
    pub version: u64,
}

/// Where a record lies. The checksum covers it, so that bytes of this or another log that turn up
/// in the wrong place (a stale sector, a log stored as a file in itself) are not taken for a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub store: Uuid,
    pub seq: u64,
    pub offset: u64,
}

impl Place {
    fn seed(&self) -> u32 {
        let mut bytes = [0u8; 32];
        bytes[..16].copy_from_slice(self.store.as_bytes());
        bytes[16..24].copy_from_slice(&self.seq.to_le_bytes());
        bytes[24..].copy_from_slice(&self.offset.to_le_bytes());
        crc32c::crc32c(&bytes)
    }
}

impl RecordHeader {
    /// The header bytes of a record whose body is the concatenation of `body`.
    pub(crate) fn encode(&self, place: Place, body: &[&[u8]]) -> [u8; HEADER_LEN] {
        let mut bytes = [0u8; HEADER_LEN];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = self.kind as u8;
        bytes[3] = self.tag;
        bytes[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.object.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.version.to_le_bytes());
        let mut crc = crc32c::crc32c_append(place.seed(), &bytes[..FIELDS_LEN]);
        bytes[FIELDS_LEN..28].copy_from_slice(&crc.to_le_bytes());
        for part in body {
            crc = crc32c::crc32c_append(crc, part);
        }
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// True if a header may begin here: a quick look before [`RecordHeader::parse`].
    pub(crate) fn may_begin(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// The header at the front of `bytes`, which lie at `place`. `None` if there is none: the
    /// fields of a header that is returned, the length too, are as they were written.
    pub(crate) fn parse(bytes: &[u8], place: Place) -> Option<RecordHeader> {
        let bytes: &[u8; HEADER_LEN] = bytes.get(..HEADER_LEN)?.try_into().ok()?;
        if !Self::may_begin(bytes) {
            return None;
        }
        let crc = crc32c::crc32c_append(place.seed(), &bytes[..FIELDS_LEN]);
        if crc.to_le_bytes() != bytes[FIELDS_LEN..28] {
            return None;
        }
        let header = RecordHeader {
            kind: RecordKind::from_byte(bytes[2])?,
            tag: bytes[3],
            body_len: u32::from_le_bytes(bytes[4..8].try_into().ok()?),
            object: u64::from_le_bytes(bytes[8..16].try_into().ok()?),
            version: u64::from_le_bytes(bytes[16..24].try_into().ok()?),
        };
        (header.body_len <= MAX_BODY).then_some(header)
    }

    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.body_len)
    }
}

/// Checks the body of `record`, whose header was parsed.
pub(crate) fn verify_body(record: &[u8]) -> bool {
    let stored = |range: std::ops::Range<usize>| {
        Some(u32::from_le_bytes(record.get(range)?.try_into().ok()?))
    };
    let (Some(head), Some(whole)) = (stored(FIELDS_LEN..28), stored(28..HEADER_LEN)) else {
        return false;
    };
    crc32c::crc32c_append(head, &record[HEADER_LEN..]) == whole
}
