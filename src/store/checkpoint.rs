//! Checkpoints: a snapshot of the whole index in a segment of its own.
//!
//! A checkpoint is fuzzy: it is taken while transactions go on, so a page may already show some of
//! them. Changes are physical (a key and its new value), so replaying the journal from the place
//! where the checkpoint began gives the right state, provided that the journal is durable up to
//! the last transaction that a page can show. The journal is synced before the checkpoint counts.

use std::sync::Arc;

use super::index::{Change, Index, Pair};
use super::record::{Place, RecordHeader, RecordKind};
use super::segment::{LOG_DIR, SegmentKind, SegmentName, encode_header};
use super::segments::{Log, Position};
use super::storage::StorageFile;
use super::varint::{self, Reader};
use super::{BlockId, Lsn, Result, StoreError};
use crate::fault;

/// Uncompressed bytes after which a page ends.
const PAGE_BYTES: usize = 1 << 20;
/// No page is longer than this, uncompressed: one pair may overshoot [`PAGE_BYTES`].
const MAX_PAGE: usize = 80 << 20;
/// Bytes that the keys of a page share with the keys before them; bounds what a hostile page makes of itself.
const MAX_EXPANDED: usize = 256 << 20;
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
    let mut expanded = 0;
    for _ in 0..pairs {
        let shared = shared.varint_usize()?;
        let suffix_len = suffix_lens.varint_usize()?;
        expanded += last_key.get(..shared)?.len();
        if expanded > MAX_EXPANDED {
            return None;
        }
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

/// A page with these pairs, for fuzzing.
pub(crate) fn encode_pairs(changes: &[Change]) -> Vec<u8> {
    let mut page = Page::default();
    for change in changes {
        page.push(&change.key, change.value.as_deref().unwrap_or_default());
    }
    page.encode()
}

/// One of the two files of a checkpoint that is being written.
struct Copy {
    temporary: String,
    path: String,
    file: Arc<dyn StorageFile>,
}

/// Writes a checkpoint, in two copies, under temporary names.
pub(crate) struct CheckpointWriter<'a> {
    log: &'a Log,
    name: SegmentName,
    copies: Vec<Copy>,
    len: u64,
    level: i32,
    pages: u64,
    pairs: u64,
    /// Both have their names.
    finished: bool,
}

impl<'a> CheckpointWriter<'a> {
    pub(crate) fn create(log: &'a Log, lsn: Lsn, level: i32) -> Result<CheckpointWriter<'a>> {
        let name = SegmentName {
            seq: log.take_seq(),
            kind: SegmentKind::Checkpoint,
        };
        let mut writer = CheckpointWriter {
            log,
            name,
            copies: Vec::new(),
            len: 0,
            level,
            pages: 0,
            pairs: 0,
            finished: false,
        };
        for path in [name.copy_path(), name.path()] {
            let temporary = format!("{path}.tmp");
            let file = log
                .storage
                .create(&temporary)
                .map_err(StoreError::io("create", &temporary))?;
            writer.copies.push(Copy {
                temporary,
                path,
                file,
            });
        }
        writer.write(&[&encode_header(name, log.uuid, lsn)])?;
        Ok(writer)
    }

    /// Appends to both copies.
    fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        for copy in &self.copies {
            copy.file
                .write_at(self.len, parts)
                .map_err(StoreError::io("write", &copy.temporary))?;
        }
        self.len += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
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
        self.write(&[&header.encode(place, &[body]), body])
    }

    /// Writes the end record and gives the copies their names, durably. Returns number and size of one.
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
        let late = fault::planted("checkpoint-renamed-before-sync");
        if !late {
            self.sync()?;
        }
        // Each copy alone is a whole checkpoint, so a power cut may keep either name.
        for copy in &self.copies {
            self.log
                .storage
                .rename(&copy.temporary, &copy.path)
                .map_err(StoreError::io("rename", &copy.path))?;
        }
        self.finished = true;
        self.log
            .storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR))?;
        if late {
            self.sync()?;
        }
        Ok((self.name.seq, self.len))
    }

    fn sync(&self) -> Result<()> {
        for copy in &self.copies {
            copy.file
                .sync_data()
                .map_err(StoreError::io("fdatasync", &copy.temporary))?;
        }
        Ok(())
    }
}

impl Drop for CheckpointWriter<'_> {
    /// A checkpoint that was not finished must not keep its space.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for Copy { temporary, .. } in &self.copies {
            if let Err(e) = self.log.storage.unlink(temporary)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("unlink {temporary}: {e}");
            }
        }
    }
}

/// Pairs of `index` from `from` on, in the portions that [`CheckpointWriter::write_all`] takes.
pub(crate) fn scan_step(index: &dyn Index, from: &[u8]) -> Result<Vec<Pair>> {
    index.scan(from, &[], SCAN_STEP)
}

/// The pairs of a page.
pub(crate) fn unpack_page(body: &[u8]) -> Option<Vec<Change>> {
    let size = zstd::zstd_safe::get_frame_content_size(body).ok()??;
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size <= MAX_PAGE)?;
    decode_page(&zstd::bulk::decompress(body, size).ok()?)
}
