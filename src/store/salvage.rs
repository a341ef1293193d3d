//! Reading a damaged store: as much of it as there is, and what is missing.
//!
//! Recovery ([`super::recovery`]) refuses a log of which something is missing. Here the same log is read
//! past its faults: pages of the checkpoint that neither copy has leave a range of keys of which some may
//! be missing, and transactions that are lost leave a gap. Later transactions are applied all the same,
//! because they hold resulting values; what they say is right, but it may not fit what was said before the
//! gap. The layer above puts that in order, key by key.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::adaptive_index::AdaptiveIndex;
use super::check::Problem;
use super::checkpoint::CheckpointEnd;
use super::entry::{self, BlockEntry};
use super::index::{Change, Index};
use super::layout::{self, Description};
use super::record::RecordKind;
use super::recovery::{APPLY_BATCH, LOST_IDS, Listing, Recovered, durable_evidence};
use super::segment::{
    LOG_DIR, SEGMENT_HEADER_LEN, SegmentHead, SegmentKind, SegmentName, SegmentReader, Step,
};
use super::segments::{Log, Position};
use super::snapshot::{self, LostKeys, Salvaged};
use super::storage::Storage;
use super::{BlockId, FORMAT_VERSION, Lsn, Result, StoreError, transaction};

/// Commits, by number, that are not in the journal any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostCommits {
    pub first: Lsn,
    pub last: Lsn,
}

/// What is wrong with a store, as far as reading its log shows it.
#[derive(Default)]
pub(crate) struct Salvage {
    pub problems: Vec<Problem>,
    pub keys: Vec<LostKeys>,
    pub commits: Vec<LostCommits>,
    /// `s2sfs.toml` is to be written anew.
    pub new_description: bool,
}

/// The description of a store; where it is damaged or missing, one made from the headers of the segments.
pub(crate) fn identify(storage: &dyn Storage) -> Result<(Description, Vec<Problem>)> {
    let found = layout::read_description(storage);
    let what = match &found {
        Ok(Some(_)) => "it is of another store than the log".to_owned(),
        Ok(None) => "it is missing".to_owned(),
        Err(StoreError::NewerFormat { .. } | StoreError::UnknownFeature { .. }) => String::new(),
        Err(error) => error.to_string(),
    };
    // Empty: not ours to look into.
    if what.is_empty()
        && let Err(error) = found
    {
        return Err(error);
    }
    let votes = votes(storage);
    if let Ok(Some(description)) = &found
        && (votes.is_empty() || votes.contains_key(&description.uuid))
    {
        return Ok((description.clone(), Vec::new()));
    }
    let Some((&uuid, _)) = votes.iter().max_by_key(|(_, votes)| **votes) else {
        return match found {
            Err(error) => Err(error),
            Ok(_) => Err(StoreError::Missing(storage.describe())),
        };
    };
    let description = Description {
        uuid,
        format: FORMAT_VERSION,
        features: Vec::new(),
    };
    let path = layout::DESCRIPTION.to_owned();
    Ok((description, vec![Problem::in_segment(path, what)]))
}

/// How many segments say that they belong to which store.
fn votes(storage: &dyn Storage) -> BTreeMap<Uuid, u64> {
    let mut votes = BTreeMap::new();
    for entry in storage.list(LOG_DIR).unwrap_or_default() {
        let known = SegmentName::parse(&entry.name).or(SegmentName::parse_copy(&entry.name));
        let path = format!("{LOG_DIR}/{}", entry.name);
        if known.is_some()
            && let Some(head) = SegmentHead::of_file(storage, &path)
        {
            *votes.entry(head.store).or_default() += 1;
        }
    }
    votes
}

/// Reads checkpoint and journal into `index`, which is empty, as far as they can be read.
pub(crate) fn recover(
    log: &Log,
    listing: &Listing,
    index: &dyn Index,
) -> Result<(Recovered, Salvage)> {
    let mut salvage = Salvage::default();
    let (end, lsn) = salvage.load_checkpoint(log, listing, index)?;
    let recovered = Recovered {
        whole: false,
        checkpoint: end.unwrap_or_default(),
        checkpoint_bytes: 0,
        lsn,
        next_block: end.map_or(1, |end| end.next_block),
        replayed_bytes: 0,
        journal_end: None,
    };
    log.raise_seq(recovered.checkpoint.next_seq);
    let mut replay = Replay {
        log,
        index,
        batch: Vec::new(),
        recovered,
        salvage,
    };
    let journal: Vec<SegmentName> = listing.of_kind(SegmentKind::Journal).collect();
    for &name in &journal {
        let last =
            journal.last() == Some(&name) && name.seq >= replay.recovered.checkpoint.replay.seq;
        if let Err(error) = replay.segment(name, last) {
            let problem = Problem::in_segment(name.path(), error);
            replay.salvage.problems.push(problem);
        }
    }
    replay.flush()?;
    let Replay {
        mut recovered,
        mut salvage,
        ..
    } = replay;
    // A journal from the first change on needs no checkpoint.
    if lsn == 0 && salvage.commits.is_empty() && recovered.lsn > 0 {
        salvage.keys.clear();
    }
    let last = recovered.checkpoint.last_lsn;
    if recovered.lsn < last {
        salvage.lose_commits(LOG_DIR.into(), recovered.lsn + 1, last);
        recovered.lsn = last;
    }
    recovered.next_block += LOST_IDS;
    Ok((recovered, salvage))
}

impl Salvage {
    /// Reads the newest checkpoint that is whole, or else the one with the most pairs.
    fn load_checkpoint(
        &mut self,
        log: &Log,
        listing: &Listing,
        index: &dyn Index,
    ) -> Result<(Option<CheckpointEnd>, Lsn)> {
        let mut best: Option<(SegmentName, Salvaged)> = None;
        for name in listing.of_kind(SegmentKind::Checkpoint).rev() {
            let found = snapshot::salvage(log, name, &mut |_| Ok(()))?;
            self.problems.extend(found.faults.iter().cloned());
            let better = best
                .as_ref()
                .is_none_or(|(_, best)| found.lost.is_empty() || found.pairs > best.pairs);
            let whole = found.lost.is_empty();
            if better {
                best = Some((name, found));
            }
            if whole {
                break;
            }
        }
        let Some((name, found)) = best else {
            let error = super::recovery::no_checkpoint();
            self.problems
                .push(Problem::in_segment(LOG_DIR.into(), error));
            self.keys.push(LostKeys::everything());
            return Ok((None, 0));
        };
        snapshot::salvage(log, name, &mut |changes| index.apply(&changes))?;
        for range in &found.lost {
            let (after, before) = (range.after.escape_ascii(), range.before.escape_ascii());
            let what = format!(
                "a part of it is lost in both copies: what lay between the keys '{after}' and '{before}'"
            );
            self.problems.push(Problem::in_segment(name.path(), what));
        }
        self.keys = found.lost;
        let lsn = found.end.map(|end| end.lsn).or(found.lsn);
        Ok((found.end, lsn.unwrap_or(0)))
    }

    fn lose_commits(&mut self, path: String, first: Lsn, last: Lsn) {
        let what = match first == last {
            true => format!("change {first} is missing"),
            false => format!("changes {first} to {last} are missing"),
        };
        self.problems.push(Problem::in_segment(path, what));
        self.commits.push(LostCommits { first, last });
    }

    /// Removes entries of blocks that make no sense, and counts the live bytes of all segments. Returns
    /// where the last live block of each ends.
    pub(crate) fn account(
        &mut self,
        log: &Log,
        index: &AdaptiveIndex,
    ) -> Result<BTreeMap<u64, u64>> {
        let mut ends = BTreeMap::new();
        let mut from = vec![entry::BLOCK_KEY];
        loop {
            let pairs = index.scan(&from, &[entry::BLOCK_KEY + 1], APPLY_BATCH)?;
            let Some((last, _)) = pairs.last() else {
                return Ok(ends);
            };
            from.clone_from(last);
            from.push(0);
            for (key, value) in pairs {
                let block = entry::block_of_key(&key).zip(BlockEntry::decode(&value));
                let Some((_, block)) = block else {
                    let what = format!("the entry of a block makes no sense: key {key:02x?}");
                    self.problems
                        .push(Problem::in_segment(LOG_DIR.into(), what));
                    index.apply(&[Change { key, value: None }])?;
                    continue;
                };
                log.add_live(block.seq, block.record_len());
                let end = ends.entry(block.seq).or_insert(0);
                *end = block.offset.saturating_add(block.record_len()).max(*end);
            }
        }
    }
}

/// Replays the journal past its faults.
struct Replay<'a> {
    log: &'a Log,
    index: &'a dyn Index,
    batch: Vec<Change>,
    recovered: Recovered,
    salvage: Salvage,
}

impl Replay<'_> {
    fn flush(&mut self) -> Result<()> {
        self.index.apply(&std::mem::take(&mut self.batch))
    }

    /// Replays one segment. In the `last` one, what can be a torn tail is no fault.
    fn segment(&mut self, name: SegmentName, last: bool) -> Result<()> {
        let path = name.path();
        let mut reader = SegmentReader::open(&*self.log.storage, self.log.uuid, name)?;
        if let Err(error) = reader.check_header() {
            let torn = last && !reader.header_is_whole()?;
            if torn && !durable_evidence(&mut reader, SEGMENT_HEADER_LEN, 0)? {
                self.end_at(name, 0);
                return Ok(());
            }
            self.salvage
                .problems
                .push(Problem::at(path.clone(), 0, error));
            reader.cursor = SEGMENT_HEADER_LEN;
        }
        loop {
            let (offset, why) = match reader.step()? {
                Step::Record {
                    offset,
                    header,
                    body,
                } => {
                    match header.kind {
                        RecordKind::Staged => self.note_block(header.object),
                        RecordKind::Transaction => {
                            let changes = transaction::decode_body(body);
                            self.transaction(&path, offset, header.version, changes)?;
                        }
                        _ => {
                            let what = "a record that does not belong here";
                            let problem = Problem::at(path.clone(), offset, what);
                            self.salvage.problems.push(problem);
                        }
                    }
                    continue;
                }
                Step::End => break,
                Step::Bad { offset, why } => (offset, why),
            };
            if last && !durable_evidence(&mut reader, offset + 1, offset)? {
                self.end_at(name, offset);
                return Ok(());
            }
            reader.seek_valid(offset + 1)?;
            let what = format!("{why}; {} bytes are unreadable", reader.cursor - offset);
            self.salvage
                .problems
                .push(Problem::at(path.clone(), offset, what));
        }
        if last {
            self.end_at(name, reader.cursor);
        }
        Ok(())
    }

    fn end_at(&mut self, name: SegmentName, offset: u64) {
        self.recovered.journal_end = Some(Position {
            seq: name.seq,
            offset,
        });
    }

    fn note_block(&mut self, id: BlockId) {
        self.recovered.next_block = self.recovered.next_block.max(id.saturating_add(1));
    }

    fn transaction(
        &mut self,
        path: &str,
        offset: u64,
        lsn: Lsn,
        changes: Option<Vec<Change>>,
    ) -> Result<()> {
        let next = self.recovered.lsn + 1;
        if lsn < next {
            return Ok(());
        }
        if lsn > next {
            self.salvage.lose_commits(path.to_owned(), next, lsn - 1);
        }
        self.recovered.lsn = lsn;
        let Some(changes) = changes else {
            let problem = Problem::at(path.to_owned(), offset, "a transaction that makes no sense");
            self.salvage.problems.push(problem);
            self.salvage.lose_commits(path.to_owned(), lsn, lsn);
            return Ok(());
        };
        for id in changes.iter().filter_map(|c| entry::block_of_key(&c.key)) {
            self.note_block(id);
        }
        self.batch.extend(changes);
        if self.batch.len() >= APPLY_BATCH {
            self.flush()?;
        }
        Ok(())
    }
}
