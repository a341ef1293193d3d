//! Segments: their names, their headers, and walking over their records.

use std::sync::Arc;

use uuid::Uuid;

use super::record::{self, HEADER_LEN, MAX_BODY, Place, RecordHeader};
use super::storage::{Storage, StorageFile};
use super::{FORMAT_VERSION, Result, StoreError, format};
use crate::fault;

/// Directory of the segments.
pub(crate) const LOG_DIR: &str = "log";
/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER_LEN: u64 = 48;

const MAGIC: [u8; 8] = *b"s2sfsseg";
/// Suffix of the second copy of a checkpoint.
const COPY_LETTER: char = 'd';
/// No store gets as far; a file with a larger number is none of its segments.
const MAX_SEQ: u64 = 1 << 48;
/// How much is read at once when records are walked.
const WINDOW: usize = 256 << 10;

/// The stream that a segment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SegmentKind {
    Journal,
    Blocks,
    Checkpoint,
}

impl SegmentKind {
    fn letter(self) -> char {
        match self {
            SegmentKind::Journal => 'j',
            SegmentKind::Blocks => 'b',
            SegmentKind::Checkpoint => 'c',
        }
    }
}

/// A segment's number, unique in its store over all kinds, and its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentName {
    pub seq: u64,
    pub kind: SegmentKind,
}

impl SegmentName {
    /// The path under the root of the store.
    pub(crate) fn path(&self) -> String {
        format!("{LOG_DIR}/{:08x}.{}", self.seq, self.kind.letter())
    }

    /// The path of the second copy of a checkpoint, which is the same byte for byte.
    pub(crate) fn copy_path(&self) -> String {
        format!("{LOG_DIR}/{:08x}.{COPY_LETTER}", self.seq)
    }

    /// The segment that a file name in the log directory stands for.
    pub(crate) fn parse(file_name: &str) -> Option<SegmentName> {
        let (digits, letter) = file_name.split_once('.')?;
        let kind = match letter {
            "j" => SegmentKind::Journal,
            "b" => SegmentKind::Blocks,
            "c" => SegmentKind::Checkpoint,
            _ => return None,
        };
        let seq = u64::from_str_radix(digits, 16).ok();
        let seq = seq.filter(|&seq| seq <= MAX_SEQ)?;
        let name = SegmentName { seq, kind };
        (format!("{LOG_DIR}/{file_name}") == name.path()).then_some(name)
    }

    /// The checkpoint whose second copy has this file name.
    pub(crate) fn parse_copy(file_name: &str) -> Option<SegmentName> {
        let digits = file_name.strip_suffix(COPY_LETTER)?;
        SegmentName::parse(&format!("{digits}c"))
    }
}

/// The header bytes of a segment.
pub(crate) fn encode_header(
    name: SegmentName,
    store: Uuid,
    lsn: u64,
) -> [u8; SEGMENT_HEADER_LEN as usize] {
    let mut bytes = [0u8; SEGMENT_HEADER_LEN as usize];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&(FORMAT_VERSION as u16).to_le_bytes());
    bytes[10] = name.kind.letter() as u8;
    bytes[12..28].copy_from_slice(store.as_bytes());
    bytes[28..36].copy_from_slice(&name.seq.to_le_bytes());
    bytes[36..44].copy_from_slice(&lsn.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..44]);
    bytes[44..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a whole segment header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    pub store: Uuid,
    pub name: SegmentName,
}

impl SegmentHead {
    /// `None` if the bytes are not those of a header as it was written.
    pub(crate) fn parse(bytes: &[u8]) -> Option<SegmentHead> {
        let bytes = bytes.get(..SEGMENT_HEADER_LEN as usize)?;
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..44]).to_le_bytes() != bytes[44..] {
            return None;
        }
        let kind = match bytes[10] {
            b'j' => SegmentKind::Journal,
            b'b' => SegmentKind::Blocks,
            b'c' => SegmentKind::Checkpoint,
            _ => return None,
        };
        let seq = u64::from_le_bytes(bytes[28..36].try_into().ok()?);
        Some(SegmentHead {
            store: Uuid::from_slice(&bytes[12..28]).ok()?,
            name: SegmentName { seq, kind },
        })
    }

    /// The header of a file, if it has one.
    pub(crate) fn of_file(storage: &dyn Storage, path: &str) -> Option<SegmentHead> {
        let mut bytes = [0; SEGMENT_HEADER_LEN as usize];
        let file = storage.open(path, false).ok()?;
        file.read_at(0, &mut bytes).ok()?;
        SegmentHead::parse(&bytes)
    }
}

/// Reads a file through a window, so that walking small records costs few system calls.
struct Window {
    file: Arc<dyn StorageFile>,
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    /// `len` bytes at `offset`; the caller has checked that the file has them.
    fn get(&mut self, offset: u64, len: usize) -> std::io::Result<&[u8]> {
        let inside =
            offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !inside {
            self.bytes.resize(len.max(WINDOW), 0);
            self.start = offset;
            let got = match self.file.read_at(offset, &mut self.bytes) {
                Ok(got) => got,
                Err(e) => {
                    self.bytes.clear();
                    return Err(e);
                }
            };
            self.bytes.truncate(got);
        }
        let at = (offset - self.start) as usize;
        self.bytes
            .get(at..at + len)
            .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// What lies at the cursor of a [`SegmentReader`].
pub(crate) enum Step<'a> {
    Record {
        offset: u64,
        header: RecordHeader,
        body: &'a [u8],
    },
    End,
    /// Not a valid record. The cursor stays where it is.
    Bad {
        offset: u64,
        why: &'static str,
    },
}

/// Walks over the records of one segment.
pub(crate) struct SegmentReader {
    pub(crate) name: SegmentName,
    store: Uuid,
    place: String,
    window: Window,
    pub(crate) len: u64,
    pub(crate) cursor: u64,
}

impl SegmentReader {
    /// Opens a segment; the cursor is on the first record. The header is not looked at yet.
    pub(crate) fn open(
        storage: &dyn Storage,
        store: Uuid,
        name: SegmentName,
    ) -> Result<SegmentReader> {
        Self::open_at(storage, store, name, name.path())
    }

    /// Opens a file that holds the segment `name`, whatever the name of the file.
    pub(crate) fn open_at(
        storage: &dyn Storage,
        store: Uuid,
        name: SegmentName,
        place: String,
    ) -> Result<SegmentReader> {
        let file = storage
            .open(&place, false)
            .map_err(StoreError::io("open", &place))?;
        let len = file.size().map_err(StoreError::io("stat", &place))?;
        let window = Window {
            file,
            bytes: Vec::new(),
            start: 0,
        };
        Ok(SegmentReader {
            name,
            store,
            place,
            window,
            len,
            cursor: SEGMENT_HEADER_LEN,
        })
    }

    /// Where the segment is read from, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// `len` bytes at `offset`; an error if the file ends before.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        self.window
            .get(offset, len)
            .map_err(StoreError::io("read", &self.place))
    }

    /// Lets the system forget a part of the file, so that it is read from the disk next time.
    pub(crate) fn uncache(&self, offset: u64, len: u64) {
        self.window.file.uncache(offset, len);
    }

    /// False if the header is not there as it was written: it never reached the disk, or is damaged.
    pub(crate) fn header_is_whole(&mut self) -> Result<bool> {
        if self.len < SEGMENT_HEADER_LEN {
            return Ok(false);
        }
        let bytes = self.bytes(0, SEGMENT_HEADER_LEN as usize)?;
        Ok(bytes[..8] == MAGIC && crc32c::crc32c(&bytes[..44]).to_le_bytes() == bytes[44..])
    }

    /// Checks the header and returns the LSN in it: the next one when the segment was created.
    pub(crate) fn check_header(&mut self) -> Result<u64> {
        let place = self.place.clone();
        let damaged = |why: &str| StoreError::damaged("segment header", place.clone(), why);
        if self.len < SEGMENT_HEADER_LEN {
            return Err(damaged("the file is shorter than a header"));
        }
        let (store, name) = (self.store, self.name);
        let mut bytes = [0u8; SEGMENT_HEADER_LEN as usize];
        bytes.copy_from_slice(self.bytes(0, SEGMENT_HEADER_LEN as usize)?);
        if bytes[..8] != MAGIC {
            return Err(damaged("wrong magic"));
        }
        if crc32c::crc32c(&bytes[..44]).to_le_bytes() != bytes[44..] {
            return Err(damaged("wrong checksum"));
        }
        let found = u32::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        format::check_version(&place, found)?;
        let lsn = u64::from_le_bytes(bytes[36..44].try_into().map_err(|_| damaged("too short"))?);
        if bytes != encode_header(name, store, lsn) {
            return Err(match SegmentHead::parse(&bytes) {
                Some(head) if head.store == store => {
                    damaged(&format!("it is {} under a wrong name", head.name.path()))
                }
                _ => damaged("it belongs to another store"),
            });
        }
        Ok(lsn)
    }

    pub(crate) fn place_at(&self, offset: u64) -> Place {
        Place {
            store: self.store,
            seq: self.name.seq,
            offset,
        }
    }

    /// The record at the cursor; the cursor moves behind it.
    pub(crate) fn step(&mut self) -> Result<Step<'_>> {
        let offset = self.cursor;
        let left = self.len.saturating_sub(offset);
        if left == 0 {
            return Ok(Step::End);
        }
        if left < HEADER_LEN as u64 {
            return Ok(Step::Bad {
                offset,
                why: "the record is cut off",
            });
        }
        let place = self.place_at(offset);
        let Some(header) = RecordHeader::parse(self.bytes(offset, HEADER_LEN)?, place) else {
            return Ok(Step::Bad {
                offset,
                why: "no record begins here",
            });
        };
        if header.record_len() > left {
            return Ok(Step::Bad {
                offset,
                why: "the record is cut off",
            });
        }
        let record = self.bytes(offset, header.record_len() as usize)?;
        if !record::verify_body(record) && !fault::planted("torn-tail-accepted") {
            return Ok(Step::Bad {
                offset,
                why: "wrong checksum",
            });
        }
        self.cursor = offset + header.record_len();
        // Borrowed again because the cursor could not be moved while the first borrow was alive.
        let record = self.bytes(offset, header.record_len() as usize)?;
        Ok(Step::Record {
            offset,
            header,
            body: &record[HEADER_LEN..],
        })
    }

    /// Puts the cursor on the first valid record at or after `from`. False if there is none.
    pub(crate) fn seek_valid(&mut self, from: u64) -> Result<bool> {
        let mut offset = from;
        while offset + HEADER_LEN as u64 <= self.len {
            let len = (self.len - offset).min(WINDOW as u64) as usize;
            let chunk = self.bytes(offset, len)?;
            let candidates: Vec<u64> = (0..len + 1 - HEADER_LEN)
                .filter(|&at| RecordHeader::may_begin(&chunk[at..]))
                .map(|at| offset + at as u64)
                .collect();
            for candidate in candidates {
                self.cursor = candidate;
                if matches!(self.step()?, Step::Record { .. }) {
                    self.cursor = candidate;
                    return Ok(true);
                }
            }
            offset += (len + 1 - HEADER_LEN) as u64;
        }
        self.cursor = self.len;
        Ok(false)
    }
}

const _: () = assert!(MAX_BODY as u64 <= u32::MAX as u64);
