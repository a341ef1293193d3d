//! Opening the log: the last good checkpoint, the journal after it, and the cut of a torn tail.

use std::sync::Arc;

use super::adaptive_index::CleanState;
use super::checkpoint::{self, CheckpointEnd};
use super::entry::{self, BlockEntry};
use super::index::{Change, Index};
use super::record::RecordKind;
use super::segment::{LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName, SegmentReader, Step};
use super::segments::{Log, Position};
use super::transaction;
use super::{BlockId, Lsn, Result, StoreError};

/// Ids that a crash may have used for blocks of which no trace is left are never used again.
const LOST_IDS: u64 = 1 << 16;
const APPLY_BATCH: usize = 4096;

/// The state of a store after its log has been read.
pub(crate) struct Recovered {
    pub checkpoint: CheckpointEnd,
    pub checkpoint_bytes: u64,
    /// The last transaction.
    pub lsn: Lsn,
    pub next_block: BlockId,
    /// Bytes of transactions since the checkpoint.
    pub replayed_bytes: u64,
    /// The end of the last journal segment, where the journal continues.
    pub journal_end: Option<Position>,
}

/// The segments of a store by number; leftovers of interrupted work are returned apart.
pub(crate) fn list_segments(log: &Log) -> Result<(Vec<SegmentName>, Vec<String>)> {
    let mut names = Vec::new();
    let mut leftovers = Vec::new();
    for entry in log
        .storage
        .list(LOG_DIR)
        .map_err(StoreError::io("list", LOG_DIR))?
    {
        match SegmentName::parse(&entry.name) {
            Some(name) => names.push(name),
            None if entry.name.ends_with(".tmp") || entry.name == "reserve" => {
                leftovers.push(format!("{LOG_DIR}/{}", entry.name));
            }
            None => log::warn!("{LOG_DIR}/{}: not a segment, left alone", entry.name),
        }
    }
    names.sort_by_key(|name| name.seq);
    Ok((names, leftovers))
}

/// Registers all segments with their lengths.
pub(crate) fn register(log: &Log, names: &[SegmentName]) -> Result<()> {
    for &name in names {
        let path = name.path();
        let file = log
            .storage
            .open(&path, false)
            .map_err(StoreError::io("open", &path))?;
        log.add_segment(name, file.size().map_err(StoreError::io("stat", &path))?);
    }
    Ok(())
}

pub(crate) fn newest_checkpoint(names: &[SegmentName]) -> Option<SegmentName> {
    names
        .iter()
        .rev()
        .find(|name| name.kind == SegmentKind::Checkpoint)
        .copied()
}

/// The state of a store whose sled index is as the last close left it.
pub(crate) fn resume_clean(
    log: &Log,
    names: &[SegmentName],
    state: &CleanState,
) -> Result<Recovered> {
    log.raise_seq(state.next_seq);
    for (seq, segment) in &state.segments {
        log.add_live(*seq, segment.live);
    }
    let name = newest_checkpoint(names).ok_or_else(no_checkpoint)?;
    Ok(Recovered {
        checkpoint: state.checkpoint,
        checkpoint_bytes: log.segments().get(&name.seq).map_or(0, |state| state.len),
        lsn: state.lsn,
        next_block: state.next_block,
        replayed_bytes: state.journal_bytes,
        journal_end: state.journal_end,
    })
}

fn no_checkpoint() -> StoreError {
    StoreError::damaged(
        "log",
        LOG_DIR,
        "no checkpoint is there, so files would be missing",
    )
}

/// Reads checkpoint and journal into `index`, which is empty. `names` is sorted.
pub(crate) fn recover(log: &Log, names: &[SegmentName], index: &dyn Index) -> Result<Recovered> {
    let newest = newest_checkpoint(names).ok_or_else(no_checkpoint)?;
    let end = checkpoint::load(log, newest, &mut |changes| index.apply(&changes))?;
    log.raise_seq(end.next_seq);
    let checkpoint_bytes = log.segments().get(&newest.seq).map_or(0, |state| state.len);
    let mut recovered = Recovered {
        checkpoint: end,
        checkpoint_bytes,
        lsn: end.lsn,
        next_block: end.next_block,
        replayed_bytes: 0,
        journal_end: None,
    };
    let journal: Vec<SegmentName> = names
        .iter()
        .copied()
        .filter(|name| name.kind == SegmentKind::Journal && name.seq >= end.replay.seq)
        .collect();
    if end.replay.offset > 0 && journal.first().map(|name| name.seq) != Some(end.replay.seq) {
        let missing = SegmentName {
            seq: end.replay.seq,
            kind: SegmentKind::Journal,
        };
        return Err(StoreError::damaged(
            "log",
            missing.path(),
            "the segment is missing",
        ));
    }
    for (at, &name) in journal.iter().enumerate() {
        let last = at + 1 == journal.len();
        Replay {
            log,
            index,
            recovered: &mut recovered,
            name,
            last,
        }
        .run()?;
    }
    if recovered.lsn < end.last_lsn {
        let why = format!(
            "the journal ends at change {}, the checkpoint shows {}",
            recovered.lsn, end.last_lsn
        );
        return Err(StoreError::damaged("log", LOG_DIR, why));
    }
    if !journal.is_empty() {
        recovered.next_block += LOST_IDS;
    }
    Ok(recovered)
}

/// Replays one segment of the journal.
struct Replay<'a> {
    log: &'a Log,
    index: &'a dyn Index,
    recovered: &'a mut Recovered,
    name: SegmentName,
    last: bool,
}

impl Replay<'_> {
    fn run(&mut self) -> Result<()> {
        let mut reader = SegmentReader::open(&*self.log.storage, self.log.uuid, self.name)?;
        if let Err(error) = reader.check_header() {
            return self.bad_header(&mut reader, error);
        }
        let replay = self.recovered.checkpoint.replay;
        if replay.seq == self.name.seq {
            reader.cursor = replay.offset.max(SEGMENT_HEADER_LEN);
            if reader.cursor > reader.len {
                let why = format!("the segment ends before offset {}", reader.cursor);
                return Err(StoreError::damaged("log", self.name.path(), why));
            }
        }
        let end = self.replay_records(&mut reader)?;
        self.recovered.journal_end = Some(Position {
            seq: self.name.seq,
            offset: end,
        });
        Ok(())
    }

    /// A segment whose header never reached the disk holds nothing that was ever durable.
    fn bad_header(&mut self, reader: &mut SegmentReader, error: StoreError) -> Result<()> {
        let torn = matches!(error, StoreError::Damaged { .. }) && !reader.header_is_whole()?;
        if !torn || !self.last || durable_evidence(reader, SEGMENT_HEADER_LEN, 0)? {
            return Err(error);
        }
        log::warn!(
            "{}: {error}; it was never synced and is dropped",
            self.name.path()
        );
        self.recovered.journal_end = Some(Position {
            seq: self.name.seq,
            offset: 0,
        });
        Ok(())
    }

    /// Returns the end of the valid records.
    fn replay_records(&mut self, reader: &mut SegmentReader) -> Result<u64> {
        let path = self.name.path();
        let mut batch: Vec<Change> = Vec::new();
        let end = loop {
            match reader.step()? {
                Step::Record {
                    offset,
                    header,
                    body,
                } => {
                    let place = || format!("{path}, offset {offset}");
                    match header.kind {
                        RecordKind::Staged => {
                            self.recovered.next_block =
                                self.recovered.next_block.max(header.object + 1);
                        }
                        RecordKind::Transaction => {
                            let expected = self.recovered.lsn + 1;
                            if header.version != expected {
                                let why = format!(
                                    "change {expected} is missing, {} follows",
                                    header.version
                                );
                                return Err(StoreError::damaged("journal", place(), why));
                            }
                            let changes = transaction::decode_body(body).ok_or_else(|| {
                                StoreError::damaged("transaction", place(), "it makes no sense")
                            })?;
                            self.recovered.lsn = header.version;
                            self.recovered.replayed_bytes += header.record_len();
                            self.note_blocks(&changes);
                            batch.extend(changes);
                        }
                        _ => {
                            return Err(StoreError::damaged(
                                "journal",
                                place(),
                                "a record that does not belong here",
                            ));
                        }
                    }
                    if batch.len() >= APPLY_BATCH {
                        self.index.apply(&std::mem::take(&mut batch))?;
                    }
                }
                Step::End => break reader.cursor,
                Step::Bad { offset, why } => {
                    self.judge_bad_record(reader, offset, why)?;
                    break offset;
                }
            }
        };
        self.index.apply(&batch)?;
        Ok(end)
    }

    fn note_blocks(&mut self, changes: &[Change]) {
        let newest = changes
            .iter()
            .filter_map(|change| entry::block_of_key(&change.key))
            .max();
        self.recovered.next_block = self.recovered.next_block.max(newest.unwrap_or(0) + 1);
    }

    /// Ok if the bad record is the beginning of a torn tail, which may be cut. After a power cut
    /// later sectors of the tail can be valid though earlier ones are not, so a valid record
    /// behind the bad one proves damage only if it says that the bad place had been durable.
    fn judge_bad_record(&self, reader: &mut SegmentReader, offset: u64, why: &str) -> Result<()> {
        if !self.last || durable_evidence(reader, offset + 1, offset)? {
            let why = format!("{why}, but what follows was written later; run s2sfs check");
            return Err(StoreError::damaged(
                "journal",
                format!("{}, offset {offset}", self.name.path()),
                why,
            ));
        }
        log::warn!("{}: tail cut at offset {offset} ({why})", self.name.path());
        Ok(())
    }
}

/// True if a valid transaction at or after `from` states that more than the first `limit` bytes were durable.
fn durable_evidence(reader: &mut SegmentReader, from: u64, limit: u64) -> Result<bool> {
    let mut from = from;
    while reader.seek_valid(from)? {
        let Step::Record {
            offset,
            header,
            body,
        } = reader.step()?
        else {
            return Ok(false);
        };
        let durable = transaction::durable_of_body(body).unwrap_or(0);
        if header.kind == RecordKind::Transaction && durable > limit {
            return Ok(true);
        }
        from = offset + header.record_len();
    }
    Ok(false)
}

/// Recounts the live bytes of all segments. Returns where the last live block of each ends.
pub(crate) fn account(
    log: &Log,
    index: &dyn Index,
) -> Result<std::collections::BTreeMap<u64, u64>> {
    let mut ends = std::collections::BTreeMap::new();
    let mut missing = 0u64;
    let mut from = vec![entry::BLOCK_KEY];
    loop {
        let pairs = index.scan(&from, &[entry::BLOCK_KEY + 1], APPLY_BATCH)?;
        let Some((last, _)) = pairs.last() else { break };
        from.clone_from(last);
        from.push(0);
        for (key, value) in &pairs {
            let Some(block) = BlockEntry::decode(value) else {
                return Err(StoreError::damaged(
                    "index entry",
                    format!("key {key:02x?}"),
                    "it makes no sense",
                ));
            };
            log.add_live(block.seq, block.record_len());
            missing += u64::from(log.path_of(block.seq).is_none());
            let end = ends.entry(block.seq).or_insert(0);
            *end = block.offset.saturating_add(block.record_len()).max(*end);
        }
    }
    if missing > 0 {
        log::error!(
            "segments are missing: {missing} blocks cannot be read (s2sfs check names them)"
        );
    }
    Ok(ends)
}

/// A file of the log opened for writing, cut to `len`, and durable.
pub(crate) fn cut(log: &Log, name: SegmentName, len: u64) -> Result<Arc<dyn super::StorageFile>> {
    let path = name.path();
    let file = log
        .storage
        .open(&path, true)
        .map_err(StoreError::io("open", &path))?;
    if file.size().map_err(StoreError::io("stat", &path))? > len {
        file.truncate(len)
            .map_err(StoreError::io("truncate", &path))?;
    }
    file.sync_data()
        .map_err(StoreError::io("fdatasync", &path))?;
    log.set_len(name.seq, len);
    Ok(file)
}
