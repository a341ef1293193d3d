//! Giving space back: unlinking dead segments, and copying live blocks out of mostly dead ones.
//!
//! A segment is unlinked when no block in it is live and the journal that says so is durable; a
//! segment of the journal also only when a durable checkpoint has all its transactions.
//!
//! Space that reclaiming needs for a while is bounded: one segment is copied out at a time, deadest
//! first, and dropped before the next, so it is the live part of one segment, and for segments of the
//! journal what waits for a checkpoint (never more than [`MIN_GARBAGE`] or the size of a checkpoint,
//! whichever is larger) and that checkpoint. A segment whose live part does not fit is left for later.

use super::engine::{CHECKPOINT_LEVEL, CommitState, Maintenance, Store};
use super::entry::{self, BlockEntry};
use super::index::Change;
use super::record::{RecordHeader, RecordKind};
use super::segment::{LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName, SegmentReader, Step};
use super::segments::{Position, SegmentState};
use super::storage::Storage;
use super::transaction::Resolved;
use super::{BlockId, Reclaim, ReclaimReport, Result, StoreError};
use crate::fault;

/// Live bytes that are copied before a transaction moves the blocks.
const COPY_BATCH: u64 = 4 << 20;
/// An active segment with less garbage than this, or less than a quarter of a segment, is left alone.
const MIN_GARBAGE: u64 = 1 << 20;
/// Smallest segment that is made for the sake of a small disk.
const SMALL_SEGMENT: u64 = 1 << 20;
/// A segment is at most this part of the disk, so that reclaiming can copy one out.
const DISK_SHARE: u64 = 64;
/// Free space that copying leaves for the transaction that counts, and for others.
const COPY_FLOOR: u64 = 64 << 10;

/// How long segments are on this disk, if they may have `wanted` bytes.
pub(super) fn segment_bytes(storage: &dyn Storage, wanted: u64) -> u64 {
    match storage.free_space() {
        Ok(space) => wanted.min((space.total / DISK_SHARE).max(SMALL_SEGMENT)),
        Err(error) => {
            log::warn!("statvfs {}: {error}", storage.describe());
            wanted
        }
    }
}

/// A block copied to a new place, which counts once the index says so.
struct Moved {
    id: BlockId,
    old: BlockEntry,
    new: Position,
}

fn dead_percent(state: &SegmentState) -> u64 {
    let garbage = state.len.saturating_sub(state.live);
    garbage.saturating_mul(100) / state.len.max(1)
}

impl Store {
    /// Frees space: drops dead segments and copies live blocks out of mostly dead ones, so that those
    /// die too. Needs no more space at any time than the live part of one segment and two checkpoints.
    pub fn reclaim(&self, want: Reclaim) -> Result<ReclaimReport> {
        self.reclaim_and_restore(&mut self.maintenance.lock(), want)
    }

    /// As [`Store::reclaim`], but returns `None` instead of waiting for who holds the store.
    pub fn try_reclaim(&self, want: Reclaim) -> Result<Option<ReclaimReport>> {
        match self.maintenance_unless_held() {
            Some(mut maintenance) => self.reclaim_and_restore(&mut maintenance, want).map(Some),
            None => Ok(None),
        }
    }

    fn reclaim_and_restore(
        &self,
        maintenance: &mut Maintenance,
        want: Reclaim,
    ) -> Result<ReclaimReport> {
        self.log.check_writable()?;
        let min = MIN_GARBAGE.min(self.log.segment_bytes / 4);
        let report = self.reclaim_locked(maintenance, want, min);
        self.space.restore_reserve(&*self.log.storage);
        report
    }

    pub(super) fn reclaim_locked(
        &self,
        maintenance: &mut Maintenance,
        want: Reclaim,
        min: u64,
    ) -> Result<ReclaimReport> {
        let mut report = ReclaimReport::default();
        self.drop_dead(maintenance, &mut report)?;
        self.end_wasteful_segments(want.min_dead_percent, min)?;
        // Before anything is copied: on a full disk this is what makes room for the copies.
        self.free_superseded(maintenance, min, &mut report)?;
        let mut budget = want.max_copy_bytes;
        for (seq, _) in self.candidates(want.min_dead_percent) {
            // It may have died, and been dropped, since it was chosen.
            let Some(state) = self.log.segments().get(&seq).copied() else {
                continue;
            };
            if state.live > budget || !self.has_room_for(state.live) {
                continue;
            }
            let copied = self.copy_out(SegmentName {
                seq,
                kind: state.kind,
            });
            let copied = match copied {
                // Others were faster with what was free. What was moved so far is moved.
                Err(error) if error.is_no_space() => break,
                other => other?,
            };
            budget = budget.saturating_sub(copied);
            report.bytes_copied += copied;
            self.free_superseded(maintenance, min, &mut report)?;
        }
        self.free_superseded(maintenance, min, &mut report)?;
        Ok(report)
    }

    /// Whether live blocks of so many bytes can be copied. On a full disk the reserve is given up for it,
    /// because this is what gives it back.
    fn has_room_for(&self, live: u64) -> bool {
        let storage = &*self.log.storage;
        let fits = || {
            storage
                .free_space()
                .is_ok_and(|space| space.available >= live + COPY_FLOOR)
        };
        fits() || self.space.release_reserve(storage) && fits()
    }

    /// Writes a checkpoint if that lets enough of the journal go, and drops what nothing needs.
    fn free_superseded(
        &self,
        maintenance: &mut Maintenance,
        min: u64,
        report: &mut ReclaimReport,
    ) -> Result<()> {
        if self.waiting_for_checkpoint(maintenance) > min.max(2 * maintenance.checkpoint_bytes) {
            let written = match self.checkpoint_locked(maintenance, CHECKPOINT_LEVEL) {
                Err(error)
                    if error.is_no_space() && self.space.release_reserve(&*self.log.storage) =>
                {
                    self.checkpoint_locked(maintenance, CHECKPOINT_LEVEL)
                }
                other => other,
            };
            match written {
                // Segments of blocks can go without one, and may make room for it.
                Err(error) if error.is_no_space() => log::debug!("no checkpoint: {error}"),
                other => other?,
            }
        }
        self.drop_dead(maintenance, report)
    }

    /// Ends the active segments that are mostly garbage, so that they can be copied out.
    fn end_wasteful_segments(&self, min_dead_percent: u8, min: u64) -> Result<()> {
        let segments = self.log.segments();
        for stream in [&self.journal, &self.blocks] {
            let state = stream.active_seq().and_then(|seq| segments.get(&seq));
            let wasteful = state.is_some_and(|state| {
                state.len.saturating_sub(state.live) >= min.max(SEGMENT_HEADER_LEN + 1)
                    && dead_percent(state) >= u64::from(min_dead_percent)
            });
            if wasteful {
                stream.rotate()?;
            }
        }
        Ok(())
    }

    /// Ended segments, as they were when the call began: nothing is ever appended to them again.
    fn ended_segments(&self) -> Vec<(u64, SegmentState)> {
        let (journal, blocks) = (self.journal.end().seq, self.blocks.end().seq);
        let ended = |seq: u64, state: &SegmentState| match state.kind {
            SegmentKind::Journal => seq < journal,
            SegmentKind::Blocks => seq < blocks,
            SegmentKind::Checkpoint => false,
        };
        self.log
            .segments()
            .into_iter()
            .filter(|(seq, state)| ended(*seq, state))
            .collect()
    }

    /// Mostly dead segments with something live, deadest first.
    fn candidates(&self, min_dead_percent: u8) -> Vec<(u64, SegmentState)> {
        let mut found = self.ended_segments();
        found.retain(|(_, state)| {
            state.live > 0 && dead_percent(state) >= u64::from(min_dead_percent)
        });
        found.sort_by_key(|(_, state)| std::cmp::Reverse(dead_percent(state)));
        found
    }

    /// Bytes of journal segments without live blocks that only a checkpoint keeps from being dropped.
    fn waiting_for_checkpoint(&self, maintenance: &Maintenance) -> u64 {
        let replay = maintenance.checkpoint.replay.seq;
        let waiting = self.ended_segments().into_iter().filter(|(seq, state)| {
            state.kind == SegmentKind::Journal && state.live == 0 && *seq >= replay
        });
        waiting.map(|(_, state)| state.len).sum()
    }

    /// Unlinks the segments that nothing needs.
    pub(super) fn drop_dead(
        &self,
        maintenance: &Maintenance,
        report: &mut ReclaimReport,
    ) -> Result<()> {
        let replay = maintenance.checkpoint.replay.seq;
        let mut dead = self.ended_segments();
        dead.retain(|(seq, state)| {
            let replaced = *seq < replay || fault::planted("segment-unlinked-early");
            state.live == 0 && (state.kind == SegmentKind::Blocks || replaced)
        });
        if dead.is_empty() {
            return Ok(());
        }
        // What killed the last block in them must not be lost.
        if !fault::planted("unlinked-before-journal-sync") {
            self.journal.sync()?;
        }
        for (seq, state) in dead {
            self.drop_segment(SegmentName {
                seq,
                kind: state.kind,
            })?;
            report.segments_dropped += 1;
            report.bytes_freed += state.len;
        }
        self.log
            .storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR))
    }

    /// Copies the live blocks of an ended segment to the end of its stream. A block that cannot be
    /// read stays where it is, and its segment with it.
    fn copy_out(&self, name: SegmentName) -> Result<u64> {
        let mut reader = SegmentReader::open(&*self.log.storage, self.log.uuid, name)?;
        let mut copied = 0;
        loop {
            let mut moved = Vec::new();
            let outcome = self
                .copy_batch(&mut reader, &mut moved)
                .and_then(|more| self.commit_moves(&moved).map(|()| more));
            if outcome.is_err() {
                // The copies are garbage.
                for Moved { old, new, .. } in &moved {
                    self.log.drop_live(new.seq, old.record_len());
                }
            }
            copied += moved.iter().map(|m| m.old.record_len()).sum::<u64>();
            if !outcome? {
                return Ok(copied);
            }
        }
    }

    /// Copies up to a batch of live blocks. False at the end of the segment.
    fn copy_batch(&self, reader: &mut SegmentReader, moved: &mut Vec<Moved>) -> Result<bool> {
        let name = reader.name;
        let mut bytes = 0;
        while bytes < COPY_BATCH {
            let (offset, header, body) = match reader.step()? {
                Step::Record {
                    offset,
                    header,
                    body,
                } => (offset, header, body),
                Step::End => return Ok(false),
                Step::Bad { offset, why } => {
                    log::error!(
                        "{}, offset {offset}: {why} (s2sfs check names what it was)",
                        name.path()
                    );
                    reader.seek_valid(offset + 1)?;
                    continue;
                }
            };
            let place = Position {
                seq: name.seq,
                offset,
            };
            let Some(old) = self.live_block_at(&header, place)? else {
                continue;
            };
            let stream = if old.info.staged {
                &self.journal
            } else {
                &self.blocks
            };
            let (new, len) = stream.append(header, &|_| Vec::new(), body, true)?;
            moved.push(Moved {
                id: header.object,
                old,
                new,
            });
            bytes += len;
        }
        Ok(true)
    }

    /// The block whose record lies at `place`, if it is referenced.
    fn live_block_at(&self, header: &RecordHeader, place: Position) -> Result<Option<BlockEntry>> {
        if !matches!(header.kind, RecordKind::Staged | RecordKind::Settled) {
            return Ok(None);
        }
        let found = self.lookup(header.object)?.filter(|(_, pending)| !pending);
        Ok(found
            .map(|(entry, _)| entry)
            .filter(|entry| (entry.seq, entry.offset) == (place.seq, place.offset)))
    }

    /// Makes the index point to the copies, except for blocks that died meanwhile.
    fn commit_moves(&self, moved: &[Moved]) -> Result<()> {
        if moved.iter().any(|m| !m.old.info.staged) {
            self.blocks.sync()?;
        }
        let mut state = self.commit.lock();
        let (mut changes, mut freed) = (Vec::new(), Vec::new());
        for &Moved { id, old, new } in moved {
            let now = match fault::planted("move-of-dead-block") {
                true => Some(old),
                false => self.lookup(id)?.map(|(entry, _)| entry),
            };
            match now.filter(|now| (now.seq, now.offset) == (old.seq, old.offset)) {
                Some(now) => {
                    let entry = BlockEntry {
                        seq: new.seq,
                        offset: new.offset,
                        info: now.info,
                    };
                    changes.push(Change {
                        key: entry::block_key(id),
                        value: Some(entry.encode()),
                    });
                    freed.push((old.seq, old.record_len()));
                }
                None => freed.push((new.seq, old.record_len())),
            }
        }
        self.write_moves(&mut state, changes)?;
        for (seq, len) in freed {
            self.log.drop_live(seq, len);
        }
        Ok(())
    }

    fn write_moves(&self, state: &mut CommitState, changes: Vec<Change>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write_transaction(
            state,
            &Resolved {
                changes,
                ..Resolved::default()
            },
        )
        .map(|_| ())
    }
}
