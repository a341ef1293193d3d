//! Checkpoints: a snapshot of the whole index in a segment of its own.
//!
//! A checkpoint is fuzzy: it is taken while transactions go on, so a page may already show some of
//! them. Changes are physical (a key and its new value), so replaying the journal from the place
//! where the checkpoint began gives the right state, provided that the journal is durable up to
//! the last transaction that a page can show. The journal is synced before the checkpoint counts.

use std::sync::Arc;

use super::index::{Change, Index, Pair};
use super::record::{Place, RecordHeader, RecordKind};
use super::segment::{
    LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName, SegmentReader, Step, encode_header,
};
use super::segments::{Log, Position};
use super::storage::StorageFile;
use super::varint::{self, Reader};
use super::{BlockId, Lsn, Result, StoreError};

/// Uncompressed bytes after which a page ends.
const PAGE_BYTES: usize = 1 << 20;
/// No page is longer than this, uncompressed: one pair may overshoot [`PAGE_BYTES`].
const MAX_PAGE: usize = 80 << 20;
const SCAN_STEP: usize = 512;

/// The last record of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CheckpointEnd {
    /// Every transaction up to this one is in the pages.
    pub lsn: Lsn,
    /// Later ones up to this one may be, so the journal must have them.
    pub last_lsn: Lsn,
    /// Where the journal continues after `lsn`.
    pub replay: Position,
    pub next_block: BlockId,
    pub next_seq: u64,
    pub pages: u64,
    pub pairs: u64,
}

impl CheckpointEnd {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for value in [
            self.lsn,
            self.last_lsn,
            self.replay.seq,
            self.replay.offset,
            self.next_block,
            self.next_seq,
            self.pages,
            self.pairs,
        ] {
            varint::put(&mut out, value);
        }
        out
    }

    pub(crate) fn decode(body: &[u8]) -> Option<CheckpointEnd> {
        let mut reader = Reader::new(body);
        let end = CheckpointEnd {
            lsn: reader.varint()?,
            last_lsn: reader.varint()?,
            replay: Position {
                seq: reader.varint()?,
                offset: reader.varint()?,
            },
            next_block: reader.varint()?,
            next_seq: reader.varint()?,
            pages: reader.varint()?,
            pairs: reader.varint()?,
        };
        reader.is_empty().then_some(end)
    }
}

/// A page being filled: the parts of its pairs in columns, because like things compress better together.
#[derive(Default)]
struct Page {
    pairs: u64,
    last_key: Vec<u8>,
    shared: Vec<u8>,
    suffix_lens: Vec<u8>,
    suffixes: Vec<u8>,
    value_lens: Vec<u8>,
    values: Vec<u8>,
}

impl Page {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let shared = self
            .last_key
            .iter()
            .zip(key)
            .take_while(|(a, b)| a == b)
            .count();
        varint::put(&mut self.shared, shared as u64);
        varint::put(&mut self.suffix_lens, (key.len() - shared) as u64);
        self.suffixes.extend_from_slice(&key[shared..]);
        varint::put(&mut self.value_lens, value.len() as u64);
        self.values.extend_from_slice(value);
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.pairs += 1;
    }

    fn size(&self) -> usize {
        self.columns().iter().map(|column| column.len()).sum()
    }

    fn columns(&self) -> [&Vec<u8>; 5] {
        [
            &self.shared,
            &self.suffix_lens,
            &self.suffixes,
            &self.value_lens,
            &self.values,
        ]
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size() + 32);
        varint::put(&mut out, self.pairs);
        for column in self.columns() {
            varint::put(&mut out, column.len() as u64);
        }
        for column in self.columns() {
            out.extend_from_slice(column);
        }
        out
    }
}

fn decode_page(bytes: &[u8]) -> Option<Vec<Change>> {
    let mut reader = Reader::new(bytes);
    let pairs = reader.varint()?;
    let mut lens = [0usize; 5];
    for len in &mut lens {
        *len = reader.varint_usize()?;
    }
    let mut columns = Vec::with_capacity(5);
    for len in lens {
        columns.push(Reader::new(reader.bytes(len)?));
    }
    let [shared, suffix_lens, suffixes, value_lens, values] = &mut columns[..] else {
        return None;
    };
    let mut changes: Vec<Change> = Vec::new();
    let mut last_key: Vec<u8> = Vec::new();
    for _ in 0..pairs {
        let shared = shared.varint_usize()?;
        let suffix_len = suffix_lens.varint_usize()?;
        let mut key = last_key.get(..shared)?.to_vec();
        key.extend_from_slice(suffixes.bytes(suffix_len)?);
        let value_len = value_lens.varint_usize()?;
        let value = values.bytes(value_len)?.to_vec();
        last_key.clone_from(&key);
        changes.push(Change {
            key,
            value: Some(value),
        });
    }
    let all_used = columns.iter().all(Reader::is_empty) && reader.is_empty();
    all_used.then_some(changes)
}

/// Writes a checkpoint under a temporary name.
pub(crate) struct CheckpointWriter<'a> {
    log: &'a Log,
    name: SegmentName,
    temporary: String,
    file: Arc<dyn StorageFile>,
    len: u64,
    level: i32,
    pages: u64,
    pairs: u64,
    /// It has its name.
    finished: bool,
}

impl<'a> CheckpointWriter<'a> {
    pub(crate) fn create(log: &'a Log, lsn: Lsn, level: i32) -> Result<CheckpointWriter<'a>> {
        let name = SegmentName {
            seq: log.take_seq(),
            kind: SegmentKind::Checkpoint,
        };
        let temporary = format!("{}.tmp", name.path());
        let file = log
            .storage
            .create(&temporary)
            .map_err(StoreError::io("create", &temporary))?;
        let header = encode_header(name, log.uuid, lsn);
        let writer = CheckpointWriter {
            log,
            name,
            temporary,
            file,
            len: SEGMENT_HEADER_LEN,
            level,
            pages: 0,
            pairs: 0,
            finished: false,
        };
        writer
            .file
            .write_at(0, &[&header])
            .map_err(StoreError::io("write", &writer.temporary))?;
        Ok(writer)
    }

    /// Writes all pairs of `index`, page by page, so that memory stays bounded.
    pub(crate) fn write_all(&mut self, index: &dyn Fn(&[u8]) -> Result<Vec<Pair>>) -> Result<()> {
        let mut from = Vec::new();
        let mut page = Page::default();
        loop {
            let pairs = index(&from)?;
            let Some((last, _)) = pairs.last() else { break };
            from.clone_from(last);
            from.push(0);
            for (key, value) in &pairs {
                page.push(key, value);
                if page.size() >= PAGE_BYTES {
                    self.write_page(&std::mem::take(&mut page))?;
                }
            }
        }
        if page.pairs > 0 {
            self.write_page(&page)?;
        }
        Ok(())
    }

    fn write_page(&mut self, page: &Page) -> Result<()> {
        let packed = zstd::bulk::compress(&page.encode(), self.level)
            .map_err(StoreError::io("compress", "page"))?;
        self.write_record(RecordKind::CheckpointPage, self.pages, 0, &packed)?;
        self.pages += 1;
        self.pairs += page.pairs;
        Ok(())
    }

    fn write_record(
        &mut self,
        kind: RecordKind,
        object: u64,
        version: u64,
        body: &[u8],
    ) -> Result<()> {
        let header = RecordHeader {
            kind,
            tag: 0,
            body_len: body.len() as u32,
            object,
            version,
        };
        let place = Place {
            store: self.log.uuid,
            seq: self.name.seq,
            offset: self.len,
        };
        let bytes = header.encode(place, &[body]);
        self.file
            .write_at(self.len, &[&bytes, body])
            .map_err(StoreError::io("write", &self.temporary))?;
        self.len += header.record_len();
        Ok(())
    }

    /// Writes the end record and gives the checkpoint its name, durably. Returns its number and size.
    pub(crate) fn finish(mut self, mut end: CheckpointEnd) -> Result<(u64, u64)> {
        end.pages = self.pages;
        end.pairs = self.pairs;
        end.next_seq = end.next_seq.max(self.name.seq + 1);
        self.write_record(
            RecordKind::CheckpointEnd,
            self.pages,
            end.lsn,
            &end.encode(),
        )?;
        self.file
            .sync_data()
            .map_err(StoreError::io("fdatasync", &self.temporary))?;
        let path = self.name.path();
        self.log
            .storage
            .rename(&self.temporary, &path)
            .map_err(StoreError::io("rename", &path))?;
        self.finished = true;
        self.log
            .storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR))?;
        Ok((self.name.seq, self.len))
    }
}

impl Drop for CheckpointWriter<'_> {
    /// A checkpoint that was not finished must not keep its space.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(e) = self.log.storage.unlink(&self.temporary) {
            log::warn!("unlink {}: {e}", self.temporary);
        }
    }
}

/// Pairs of `index` from `from` on, in the portions that [`CheckpointWriter::write_all`] takes.
pub(crate) fn scan_step(index: &dyn Index, from: &[u8]) -> Result<Vec<Pair>> {
    index.scan(from, &[], SCAN_STEP)
}

/// Reads a checkpoint and hands its pages to `sink`. Any fault is an error: a checkpoint is whole or useless.
pub(crate) fn load(
    log: &Log,
    name: SegmentName,
    sink: &mut dyn FnMut(Vec<Change>) -> Result<()>,
) -> Result<CheckpointEnd> {
    let path = name.path();
    let mut reader = SegmentReader::open(&*log.storage, log.uuid, name)?;
    reader.check_header()?;
    let (mut pages, mut pairs) = (0u64, 0u64);
    loop {
        let at = reader.cursor;
        let damaged =
            |why: &str| StoreError::damaged("checkpoint", format!("{path}, offset {at}"), why);
        let (header, body) = match reader.step()? {
            Step::Record { header, body, .. } => (header, body),
            Step::End => return Err(damaged("its end is missing")),
            Step::Bad { why, .. } => return Err(damaged(why)),
        };
        match header.kind {
            RecordKind::CheckpointPage if header.object == pages => {
                let changes =
                    unpack_page(body).ok_or_else(|| damaged("a page that makes no sense"))?;
                pages += 1;
                pairs += changes.len() as u64;
                sink(changes)?;
            }
            RecordKind::CheckpointEnd => {
                let end = CheckpointEnd::decode(body)
                    .ok_or_else(|| damaged("an end that makes no sense"))?;
                if (end.pages, end.pairs) != (pages, pairs) {
                    return Err(damaged("pages are missing"));
                }
                return Ok(end);
            }
            _ => return Err(damaged("a record that does not belong here")),
        }
    }
}

fn unpack_page(body: &[u8]) -> Option<Vec<Change>> {
    let size = zstd::zstd_safe::get_frame_content_size(body).ok()??;
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size <= MAX_PAGE)?;
    decode_page(&zstd::bulk::decompress(body, size).ok()?)
}
