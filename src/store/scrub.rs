//! Verifying an open store piece by piece, while it is in use: the part of scrubbing that reads the log.
//!
//! No lock is held while anything is read. What was written is never changed in place, so whatever a
//! step finds unreadable is damage, unless the segment was dropped meanwhile.

use super::checkpoint;
use super::engine::Store;
use super::entry::{self, BlockEntry};
use super::index::Index;
use super::layout;
use super::record::{RecordHeader, RecordKind};
use super::segment::{SegmentKind, SegmentName, SegmentReader, Step};
use super::transaction;
use super::{BlockId, Result};

/// Set in the position of a step that is in the second copy of a checkpoint.
const COPY: u64 = 1 << 63;
/// What is skipped when the disk refuses to read a place.
const UNREADABLE: u64 = 256 << 10;
const SCAN_STEP: usize = 1024;

/// Where a scrub of the store ends: what was written after it began is not part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubEnd {
    /// Segments with smaller numbers belong to it.
    pub segment: u64,
    /// Blocks with smaller ids belong to it.
    pub block: BlockId,
}

/// A part of the log that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRange {
    /// Path of the segment under the root of the store.
    pub segment: String,
    /// Number of the segment.
    pub number: u64,
    pub offset: u64,
    pub len: u64,
    pub what: String,
}

/// What one step of scrubbing has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStep {
    pub bytes: u64,
    pub records: u64,
    pub bad: Vec<BadRange>,
    /// Where the segment continues; `None` at its end.
    pub next: Option<u64>,
}

impl Store {
    /// The end of a scrub that begins now.
    pub fn scrub_end(&self) -> ScrubEnd {
        ScrubEnd {
            segment: self.log.peek_seq(),
            block: self.next_block.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// Numbers of the segments (journal, blocks, checkpoints) from `from` on, and what a scrub reads of
    /// each, in bytes: checkpoints have two copies.
    pub fn segment_lengths(&self, from: u64) -> Vec<(u64, u64)> {
        let segments = self.log.segments();
        let lengths = segments.range(from..);
        let copies = |kind| {
            if kind == SegmentKind::Checkpoint {
                2
            } else {
                1
            }
        };
        lengths
            .map(|(seq, state)| (*seq, state.len * copies(state.kind)))
            .collect()
    }

    /// Verifies the records of a segment from `from` on (0: the segment's header first) until about
    /// `limit` bytes are done. A segment that is gone counts as finished. Reads from the disk, not from
    /// what the system remembers, and leaves nothing there.
    pub fn scrub_segment(&self, number: u64, from: u64, limit: u64) -> ScrubStep {
        match self.scrub_records(number, from, limit) {
            Ok(step) if step.bad.is_empty() => step,
            outcome => match self.log.segments().get(&number) {
                Some(state) => outcome.unwrap_or_else(|error| {
                    let name = SegmentName {
                        seq: number,
                        kind: state.kind,
                    };
                    ScrubStep {
                        bad: vec![bad(
                            name,
                            &file_of(name, from),
                            0,
                            state.len,
                            error.to_string(),
                        )],
                        next: copy_after(name, from),
                        ..ScrubStep::default()
                    }
                }),
                None => ScrubStep::default(),
            },
        }
    }

    fn scrub_records(&self, number: u64, from: u64, limit: u64) -> Result<ScrubStep> {
        let mut done = ScrubStep::default();
        let Some(state) = self.log.segments().get(&number).copied() else {
            return Ok(done);
        };
        let name = SegmentName {
            seq: number,
            kind: state.kind,
        };
        let place = file_of(name, from);
        let other = file_of(name, from ^ COPY);
        let exists = |path: &str| self.log.storage.exists(path).unwrap_or(true);
        if name.kind == SegmentKind::Checkpoint && !exists(&place) && exists(&other) {
            // A power cut may have come between the two, and the next checkpoint has both again.
            log::warn!("{place} is missing; {other} is there");
            done.next = copy_after(name, from);
            return Ok(done);
        }
        let (copy, from) = (from & COPY, from & !COPY);
        let mut reader =
            SegmentReader::open_at(&*self.log.storage, self.log.uuid, name, place.clone())?;
        let end = state.len;
        if reader.len < end {
            done.bad.push(bad(
                name,
                &place,
                reader.len,
                end,
                "the file is cut off".into(),
            ));
        }
        // What is appended from now on is the next scrub's.
        reader.len = reader.len.min(end);
        let stop = from.saturating_add(limit).min(reader.len);
        reader.uncache(from, stop - from.min(stop));
        match from {
            0 => {
                if let Err(error) = reader.check_header() {
                    done.bad
                        .push(bad(name, &place, 0, reader.cursor, error.to_string()));
                }
            }
            _ => reader.cursor = from,
        }
        while reader.cursor < stop {
            scrub_record(&mut reader, &mut done);
        }
        let reached = reader.cursor.min(reader.len).max(from);
        reader.uncache(from, reached - from);
        done.bytes = reached - from;
        done.next = match reader.cursor < reader.len {
            true => Some(copy | reader.cursor),
            false => copy_after(name, copy),
        };
        Ok(done)
    }

    /// The payload of a block, read from the disk and not from what the system remembers.
    pub fn scrub_block(&self, id: BlockId) -> Result<Vec<u8>> {
        self.uncache_block(id);
        let payload = self.read_block(id);
        self.uncache_block(id);
        payload
    }

    fn uncache_block(&self, id: BlockId) {
        if let Ok(Some((entry, _))) = self.lookup(id) {
            self.log.uncache(&entry);
        }
    }

    /// Path of the segment and offset at which a block's record lies now.
    pub fn block_place(&self, id: BlockId) -> Result<Option<(String, u64)>> {
        let place = self.lookup(id)?.map(|(entry, _)| {
            let path = self.log.path_of(entry.seq);
            let path = path.unwrap_or_else(|| format!("{:08x} (missing)", entry.seq));
            (path, entry.offset)
        });
        Ok(place)
    }

    /// Referenced blocks whose records overlap a part of a segment.
    pub fn blocks_at(&self, number: u64, offset: u64, len: u64) -> Result<Vec<BlockId>> {
        let end = offset.saturating_add(len);
        let mut found = Vec::new();
        let mut from = vec![entry::BLOCK_KEY];
        loop {
            let page = self.index.scan(&from, &[entry::BLOCK_KEY + 1], SCAN_STEP)?;
            for (key, value) in &page {
                let decoded = entry::block_of_key(key).zip(BlockEntry::decode(value));
                let Some((id, at)) = decoded else { continue };
                let overlaps = at.offset < end && at.offset + at.record_len() > offset;
                if at.seq == number && overlaps {
                    found.push(id);
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == SCAN_STEP => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => return Ok(found),
            }
        }
    }

    /// Hands the bytes of a model to `sink`, in order and in pieces. False if it does not exist.
    pub fn read_model(&self, name: &str, sink: &mut dyn FnMut(&[u8])) -> Result<bool> {
        layout::read_model(&*self.log.storage, name, sink)
    }
}

/// The file that a position of a step lies in.
fn file_of(name: SegmentName, from: u64) -> String {
    match from & COPY {
        0 => name.path(),
        _ => name.copy_path(),
    }
}

/// Where it goes on behind the file that a position lies in.
fn copy_after(name: SegmentName, from: u64) -> Option<u64> {
    (name.kind == SegmentKind::Checkpoint && from & COPY == 0).then_some(COPY)
}

fn bad(name: SegmentName, place: &str, from: u64, to: u64, what: String) -> BadRange {
    BadRange {
        segment: place.to_owned(),
        number: name.seq,
        offset: from,
        len: to.saturating_sub(from),
        what,
    }
}

/// Verifies what lies at the cursor, and puts the cursor behind it.
fn scrub_record(reader: &mut SegmentReader, done: &mut ScrubStep) {
    let (name, at, len) = (reader.name, reader.cursor, reader.len);
    let place = reader.place().to_owned();
    let fault = match reader.step() {
        Ok(Step::Record { header, body, .. }) => {
            done.records += 1;
            if let Some(why) = nonsense(&header, body) {
                let end = reader.cursor;
                done.bad.push(bad(name, &place, at, end, why.into()));
            }
            return;
        }
        Ok(Step::End) => {
            reader.cursor = len;
            return;
        }
        Ok(Step::Bad { why, .. }) => (at + 1, why.to_owned()),
        Err(error) => ((at + UNREADABLE).min(len), error.to_string()),
    };
    let (resume, why) = fault;
    let found = reader.seek_valid(resume);
    if found.is_err() {
        reader.cursor = (resume + UNREADABLE).min(len);
    }
    done.bad.push(bad(name, &place, at, reader.cursor, why));
}

/// What is wrong with a record whose checksum is right.
fn nonsense(header: &RecordHeader, body: &[u8]) -> Option<&'static str> {
    let (sound, why) = match header.kind {
        RecordKind::Transaction => (
            transaction::decode_body(body).is_some(),
            "a transaction that makes no sense",
        ),
        RecordKind::Staged | RecordKind::Settled => (
            entry::split_block_body(body).is_some(),
            "a block that makes no sense",
        ),
        RecordKind::CheckpointPage => (
            checkpoint::unpack_page(body).is_some(),
            "a page that makes no sense",
        ),
        RecordKind::CheckpointEnd => (
            checkpoint::CheckpointEnd::decode(body).is_some(),
            "an end that makes no sense",
        ),
    };
    (!sound).then_some(why)
}
