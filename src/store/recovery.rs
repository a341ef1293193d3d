//! Opening the log: the last good checkpoint, the journal after it, and the cut of a torn tail.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::adaptive_index::CleanState;
use super::checkpoint::CheckpointEnd;
use super::entry::{self, BlockEntry};
use super::index::{Change, Index};
use super::record::RecordKind;
use super::segment::{
    LOG_DIR, SEGMENT_HEADER_LEN, SegmentHead, SegmentKind, SegmentName, SegmentReader, Step,
};
use super::segments::{Log, Position};
use super::transaction;
use super::{BlockId, Lsn, Result, StoreError, snapshot};
use crate::fault;

/// Ids that a crash may have used for blocks of which no trace is left are never used again.
pub(crate) const LOST_IDS: u64 = 1 << 16;
pub(crate) const APPLY_BATCH: usize = 4096;

/// The state of a store after its log has been read.
pub(crate) struct Recovered {
    pub checkpoint: CheckpointEnd,
    /// Both copies of the checkpoint are there, and nothing wrong was seen.
    pub whole: bool,
    pub checkpoint_bytes: u64,
    /// The last transaction.
    pub lsn: Lsn,
    pub next_block: BlockId,
    /// Bytes of transactions since the checkpoint.
    pub replayed_bytes: u64,
    /// The end of the last journal segment, where the journal continues.
    pub journal_end: Option<Position>,
}

/// What lies in the directory of the log.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// By number; a checkpoint is in it if either copy is there.
    pub segments: Vec<SegmentName>,
    /// Numbers of the checkpoints whose first, and whose second copy is there.
    pub checkpoints: BTreeSet<u64>,
    pub copies: BTreeSet<u64>,
    /// Files whose number belongs to another segment: no part of the log.
    pub doubles: Vec<SegmentName>,
    /// Paths of what interrupted work has left.
    pub leftovers: Vec<String>,
}

impl Listing {
    pub(crate) fn of(log: &Log) -> Result<Listing> {
        let mut listing = Listing::default();
        let entries = log
            .storage
            .list(LOG_DIR)
            .map_err(StoreError::io("list", LOG_DIR))?;
        for entry in entries {
            let copy = SegmentName::parse_copy(&entry.name);
            match SegmentName::parse(&entry.name).or(copy) {
                Some(name) => {
                    if name.kind == SegmentKind::Checkpoint && copy.is_none() {
                        listing.checkpoints.insert(name.seq);
                    }
                    listing.copies.extend(copy.map(|name| name.seq));
                    listing.segments.push(name);
                }
                None if entry.name.ends_with(".tmp") || entry.name == "reserve" => {
                    let path = format!("{LOG_DIR}/{}", entry.name);
                    listing.leftovers.push(path);
                }
                None => log::warn!("{LOG_DIR}/{}: not a segment, left alone", entry.name),
            }
        }
        listing.segments.sort_by_key(|name| name.seq);
        listing.segments.dedup();
        listing.set_doubles_aside(log);
        Ok(listing)
    }

    /// A number belongs to one segment: of several files with one number, the one whose header agrees.
    fn set_doubles_aside(&mut self, log: &Log) {
        let mut kept: Vec<SegmentName> = Vec::new();
        for &name in &self.segments {
            let double = match kept.last_mut() {
                Some(last) if last.seq == name.seq && is_rightful(log, name) => {
                    std::mem::replace(last, name)
                }
                Some(last) if last.seq == name.seq => name,
                _ => {
                    kept.push(name);
                    continue;
                }
            };
            log::warn!("{}: another segment has this number", double.path());
            if double.kind == SegmentKind::Checkpoint {
                self.checkpoints.remove(&double.seq);
                self.copies.remove(&double.seq);
            }
            self.doubles.push(double);
        }
        self.segments = kept;
    }

    /// Registers all segments with their lengths. What cannot be opened is an error, or with
    /// `lenient` left out and returned.
    pub(crate) fn register(&self, log: &Log, lenient: bool) -> Result<Vec<(String, StoreError)>> {
        let double = |name: &SegmentName| {
            let why = "another segment has this number";
            (
                name.path(),
                StoreError::damaged("segment", name.path(), why),
            )
        };
        let mut unreadable: Vec<_> = self.doubles.iter().map(double).collect();
        for &name in &self.segments {
            let only_copy =
                name.kind == SegmentKind::Checkpoint && !self.checkpoints.contains(&name.seq);
            let path = match only_copy {
                true => name.copy_path(),
                false => name.path(),
            };
            let size = log
                .storage
                .open(&path, false)
                .and_then(|file| file.size())
                .map_err(StoreError::io("open", &path));
            match size {
                Ok(size) => log.add_segment(name, size),
                Err(error) if lenient => {
                    log.raise_seq(name.seq + 1);
                    unreadable.push((path, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(unreadable)
    }

    pub(crate) fn newest_checkpoint(&self) -> Option<SegmentName> {
        self.of_kind(SegmentKind::Checkpoint).last()
    }

    /// The segments of one kind, oldest first.
    pub(crate) fn of_kind(
        &self,
        kind: SegmentKind,
    ) -> impl DoubleEndedIterator<Item = SegmentName> {
        self.segments
            .iter()
            .copied()
            .filter(move |name| name.kind == kind)
    }

    /// False if a copy of this checkpoint is missing.
    pub(crate) fn has_both(&self, seq: u64) -> bool {
        self.checkpoints.contains(&seq) && self.copies.contains(&seq)
    }
}

/// True if the header of a file says that it is another segment: then it is not what a crash left at the end
/// of a stream, and may be all that there is of that segment.
pub(crate) fn is_misnamed(log: &Log, name: SegmentName) -> bool {
    SegmentHead::of_file(&*log.storage, &name.path()).is_some_and(|head| head.name != name)
}

fn is_rightful(log: &Log, name: SegmentName) -> bool {
    let copy = (name.kind == SegmentKind::Checkpoint).then(|| name.copy_path());
    let mut paths = std::iter::once(name.path()).chain(copy);
    paths.any(|path| {
        SegmentHead::of_file(&*log.storage, &path).is_some_and(|head| head.name == name)
    })
}

/// The state of a store whose sled index is as the last close left it.
pub(crate) fn resume_clean(log: &Log, listing: &Listing, state: &CleanState) -> Result<Recovered> {
    log.raise_seq(state.next_seq);
    for (seq, segment) in &state.segments {
        log.add_live(*seq, segment.live);
    }
    let name = listing.newest_checkpoint().ok_or_else(no_checkpoint)?;
    Ok(Recovered {
        whole: listing.has_both(name.seq),
        checkpoint: state.checkpoint,
        checkpoint_bytes: log.segments().get(&name.seq).map_or(0, |state| state.len),
        lsn: state.lsn,
        next_block: state.next_block,
        replayed_bytes: state.journal_bytes,
        journal_end: state.journal_end,
    })
}

pub(crate) fn no_checkpoint() -> StoreError {
    StoreError::damaged(
        "log",
        LOG_DIR,
        "no checkpoint is there, so files would be missing",
    )
}

/// Reads checkpoint and journal into `index`, which is empty.
pub(crate) fn recover(log: &Log, listing: &Listing, index: &dyn Index) -> Result<Recovered> {
    let newest = listing.newest_checkpoint().ok_or_else(no_checkpoint)?;
    let loaded = snapshot::load(log, newest, &mut |changes| index.apply(&changes))?;
    for fault in &loaded.faults {
        log::error!("{fault}; the other copy is used, and the next checkpoint replaces both");
    }
    let end = loaded.end;
    log.raise_seq(end.next_seq);
    let checkpoint_bytes = log.segments().get(&newest.seq).map_or(0, |state| state.len);
    let mut recovered = Recovered {
        whole: loaded.faults.is_empty() && listing.has_both(newest.seq),
        checkpoint: end,
        checkpoint_bytes,
        lsn: end.lsn,
        next_block: end.next_block,
        replayed_bytes: 0,
        journal_end: None,
    };
    let journal: Vec<SegmentName> = listing
        .of_kind(SegmentKind::Journal)
        .filter(|name| name.seq >= end.replay.seq)
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
pub(crate) fn durable_evidence(reader: &mut SegmentReader, from: u64, limit: u64) -> Result<bool> {
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
    if !fault::planted("recovered-tail-not-synced") {
        file.sync_data()
            .map_err(StoreError::io("fdatasync", &path))?;
    }
    log.set_len(name.seq, len);
    Ok(file)
}
