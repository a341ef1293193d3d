//! Scrubbing: everything that is stored is read again and verified in the background, while files are
//! read, written, settled and reclaimed.
//!
//! A scrub goes over the segments of the log, then the models, then (unless it is a fast one) decodes
//! every block. It takes turns of one piece of the log or one block, holds no lock while it reads or
//! decodes, keeps nothing in the cache, and rests between turns while somebody else wants the disk or
//! the processor. What was written after it began is left to the next one; what is gone when its turn
//! comes is no error. Its position is kept in the log now and then, so it goes on after a remount.
//!
//! Lock order: `thread`, then `inner`. `inner` is a leaf: nothing is called under it.

use super::change::Change;
use super::keys::{self, Fields};
use super::{Result, Volume, VolumeError, thread_failed};
use crate::codec::Codecs;
use crate::control::{ScrubAction, ScrubFinding, ScrubOptions, ScrubState, ScrubStatus};
use crate::settle::lower_priority;
use crate::store::{BlockId, ScrubEnd, ScrubStep};
use log::{error, info, warn};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The lowest priority there is.
const NICE: i32 = 19;
/// Where the position is kept.
const META_SCRUB: &[u8] = b"Mscrub";
const LAYOUT: u64 = 1;
/// Bytes of the log in one turn.
const PIECE: u64 = 1 << 20;
/// How often the position is written to the log.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// While others are at work, a turn is followed by a rest of so many times its length.
const POLITENESS: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Findings that are listed.
const LISTED: usize = 100;
/// Damaged blocks that are remembered, so that they are named once.
const REMEMBERED: usize = 1 << 16;

/// The part that a scrub is at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Log,
    Models,
    Blocks,
}

/// How far a scrub is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    phase: Phase,
    /// Number of the segment that is verified, or the last block that was.
    at: u64,
    /// Where the segment continues.
    offset: u64,
    end: ScrubEnd,
}

#[derive(Debug, Default)]
struct Inner {
    status: ScrubStatus,
    position: Position,
    /// Blocks that were named already.
    named: BTreeSet<BlockId>,
    /// Asked to rest for ever: the volume is being shut down.
    closing: bool,
    /// A thread will look at the state again. Set before it begins; it clears it under the lock under which it
    /// found that there is nothing more to do, so a scrub that begins later starts another thread.
    attended: bool,
    saved: Option<Instant>,
    /// Somebody has started, stopped, paused or resumed it since.
    unsaved: bool,
}

/// The state of scrubbing. See the module.
#[derive(Debug, Default)]
pub struct Scrubber {
    inner: Mutex<Inner>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Scrubber {
    /// A copy of the figures.
    pub fn status(&self) -> ScrubStatus {
        self.inner.lock().status.clone()
    }

    /// Ends the thread after its turn; a scrub that runs stays so for the next mount.
    pub fn close(&self) {
        self.inner.lock().closing = true;
        self.changed.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            error!("the scrubbing thread panicked");
        }
    }

    /// Waits so long, or until something is asked for. False if there is nothing more to do: the thread must end.
    fn rest(&self, length: Duration) -> bool {
        let until = Instant::now() + length;
        let mut inner = self.inner.lock();
        loop {
            if inner.closing || inner.status.state == ScrubState::Idle {
                inner.attended = false;
                return false;
            }
            if inner.status.state == ScrubState::Paused {
                self.changed.wait(&mut inner);
            } else if self.changed.wait_until(&mut inner, until).timed_out() {
                return true;
            }
        }
    }

    fn run(&self, volume: &Weak<Volume>) {
        lower_priority(NICE);
        let (mut turns, mut rest) = (Turns::default(), Duration::ZERO);
        while self.rest(rest) {
            let Some(volume) = volume.upgrade() else {
                return;
            };
            rest = volume.scrub_turn(&mut turns);
        }
    }
}

/// What the thread keeps between turns.
#[derive(Default)]
struct Turns {
    anchors: super::scrub_block::Anchors,
    models: Option<Vec<String>>,
    traffic: u64,
}

/// What a turn did.
enum Done {
    /// So many stored bytes.
    Bytes(u64),
    /// The phase is over.
    Phase,
}

impl Volume {
    /// Starts, pauses, resumes or stops scrubbing, or only asks how it stands.
    pub fn scrub(
        self: &Arc<Self>,
        action: ScrubAction,
        options: ScrubOptions,
    ) -> Result<ScrubStatus> {
        let state = match action {
            ScrubAction::Status => return Ok(self.scrubber.status()),
            ScrubAction::Start => {
                self.begin_scrub(options)?;
                ScrubState::Running
            }
            ScrubAction::Resume => ScrubState::Running,
            ScrubAction::Pause => ScrubState::Paused,
            ScrubAction::Stop => ScrubState::Idle,
        };
        let mut inner = self.scrubber.inner.lock();
        if !inner.status.is_active() {
            return match action {
                ScrubAction::Stop => Ok(inner.status.clone()),
                _ => Err(VolumeError::Invalid("no scrub is under way")),
            };
        }
        inner.status.state = state;
        inner.unsaved = true;
        if state == ScrubState::Idle {
            inner.status.failed = Some("it was stopped".into());
        }
        drop(inner);
        self.scrubber.changed.notify_all();
        if state == ScrubState::Running {
            self.start_scrub_thread()?;
        }
        self.save_scrub();
        Ok(self.scrubber.status())
    }

    /// Puts a new scrub at its beginning, unless one is under way.
    fn begin_scrub(&self, options: ScrubOptions) -> Result<()> {
        let store = self.store()?;
        let end = store.scrub_end();
        let total = self.scrub_total(options.fast)?;
        let mut inner = self.scrubber.inner.lock();
        if inner.closing {
            return Err(VolumeError::Closed);
        }
        if inner.status.is_active() {
            if inner.status.fast != options.fast {
                return Err(VolumeError::Invalid(
                    "a scrub of the other kind (fast or not) is under way",
                ));
            }
            inner.status.rate = options.rate.or(inner.status.rate);
            return Ok(());
        }
        inner.status = ScrubStatus {
            state: ScrubState::Running,
            fast: options.fast,
            rate: options.rate,
            total_bytes: total,
            last_completed: inner.status.last_completed,
            last_errors: inner.status.last_errors,
            ..ScrubStatus::default()
        };
        inner.position = Position {
            end,
            ..Position::default()
        };
        inner.named.clear();
        inner.saved = Some(Instant::now());
        Ok(())
    }

    fn scrub_total(&self, fast: bool) -> Result<u64> {
        let usage = self.store()?.usage()?;
        let log: u64 = self.store()?.segment_lengths(0).iter().map(|s| s.1).sum();
        let blocks = usage.staged_bytes + usage.settled_bytes;
        Ok(log + usage.model_bytes + if fast { 0 } else { blocks })
    }

    /// The thread lives as long as a scrub is running or paused.
    fn start_scrub_thread(self: &Arc<Self>) -> Result<()> {
        let mut thread = self.scrubber.thread.lock();
        let lives = thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if std::mem::replace(&mut self.scrubber.inner.lock().attended, true) && lives {
            return Ok(());
        }
        let (scrubber, volume) = (self.scrubber.clone(), Arc::downgrade(self));
        let started = std::thread::Builder::new()
            .name("scrub".into())
            .spawn(move || scrubber.run(&volume))
            .map_err(thread_failed)?;
        *thread = Some(started);
        Ok(())
    }

    /// Goes on with a scrub that was running when the volume was last open.
    pub(super) fn resume_scrub(self: &Arc<Self>) -> Result<()> {
        if self.scrubber.status().state == ScrubState::Running {
            info!("scrubbing goes on where it was");
            self.start_scrub_thread()?;
        }
        Ok(())
    }

    /// One turn; returns how long to rest after it.
    fn scrub_turn(&self, turns: &mut Turns) -> Duration {
        // Held up while the volume is frozen: whoever copies the store has the disk for himself.
        let Ok(_pass) = self.gate.enter() else {
            return Duration::ZERO;
        };
        let begun = Instant::now();
        let position = {
            let inner = self.scrubber.inner.lock();
            // Stopped or paused while it was held up.
            if inner.status.state != ScrubState::Running {
                return Duration::ZERO;
            }
            inner.position
        };
        let done = match position.phase {
            Phase::Log => self.scrub_log(position),
            Phase::Models => self.scrub_model(position, turns),
            Phase::Blocks => self.scrub_one_block(position, turns),
        };
        let bytes = match done {
            Ok(Done::Bytes(bytes)) => bytes,
            Ok(Done::Phase) => {
                self.next_phase(position);
                0
            }
            Err(VolumeError::Closed) => return Duration::ZERO,
            Err(error) => {
                warn!("scrubbing ends: {error}");
                let mut inner = self.scrubber.inner.lock();
                inner.status.state = ScrubState::Idle;
                inner.status.failed = Some(error.to_string());
                0
            }
        };
        let (rate, due) = {
            let mut inner = self.scrubber.inner.lock();
            let total = inner.status.total_bytes;
            inner.status.done_bytes = (inner.status.done_bytes + bytes).min(total);
            let due = inner.saved.is_none_or(|at| at.elapsed() >= SAVE_EVERY);
            (inner.status.rate, due)
        };
        if due {
            self.save_scrub();
        }
        self.rest_after(begun.elapsed(), bytes, rate, turns)
    }

    fn rest_after(
        &self,
        turn: Duration,
        bytes: u64,
        rate: Option<u64>,
        turns: &mut Turns,
    ) -> Duration {
        let traffic = self.io.read.load(Relaxed) + self.io.written.load(Relaxed);
        let others = traffic != turns.traffic || self.settler.is_working();
        turns.traffic = traffic;
        let polite = match others {
            true => (turn * POLITENESS).min(LONGEST_REST),
            false => Duration::ZERO,
        };
        let limited = rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64).saturating_sub(turn)
        });
        polite.max(limited)
    }

    fn next_phase(&self, position: Position) {
        let mut inner = self.scrubber.inner.lock();
        let next = match position.phase {
            Phase::Log => Some(Phase::Models),
            Phase::Models if !inner.status.fast => Some(Phase::Blocks),
            _ => None,
        };
        match next {
            Some(phase) => {
                inner.position = Position {
                    phase,
                    at: 0,
                    offset: 0,
                    end: position.end,
                }
            }
            None => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let status = &mut inner.status;
                status.state = ScrubState::Idle;
                status.done_bytes = status.total_bytes;
                status.last_completed = Some(now.map_or(0, |since| since.as_secs()));
                status.last_errors = status.errors;
                info!("scrubbed everything: {} errors", status.errors);
            }
        }
        let finished = next.is_none();
        drop(inner);
        if finished {
            self.save_scrub();
        }
    }

    fn scrub_log(&self, position: Position) -> Result<Done> {
        let store = self.store()?;
        let segments = store.segment_lengths(position.at);
        let next = segments.first().filter(|(n, _)| *n < position.end.segment);
        let Some(&(number, _)) = next else {
            return Ok(Done::Phase);
        };
        let from = if number == position.at {
            position.offset
        } else {
            0
        };
        let step = store.scrub_segment(number, from, PIECE);
        self.note_bad_ranges(&step)?;
        let mut inner = self.scrubber.inner.lock();
        inner.status.records += step.records;
        (inner.position.at, inner.position.offset) = match step.next {
            Some(offset) => (number, offset),
            None => (number + 1, 0),
        };
        Ok(Done::Bytes(step.bytes))
    }

    fn note_bad_ranges(&self, step: &ScrubStep) -> Result<()> {
        for bad in &step.bad {
            self.note_finding(ScrubFinding {
                segment: bad.segment.clone(),
                offset: bad.offset,
                what: format!("{}; {} bytes are unreadable", bad.what, bad.len),
                ..ScrubFinding::default()
            });
            // Most of it may be garbage, or readable: a live block is damaged if it cannot be read.
            let mut hit = BTreeSet::new();
            for block in self.store()?.blocks_at(bad.number, bad.offset, bad.len)? {
                if self.store()?.scrub_block(block).is_err() && !self.store.is_gone(block) {
                    hit.insert(block);
                }
            }
            self.note_damaged_blocks(hit, "its record is damaged")?;
        }
        Ok(())
    }

    fn scrub_model(&self, position: Position, turns: &mut Turns) -> Result<Done> {
        let store = self.store()?;
        let models = match &turns.models {
            Some(models) => models,
            None => {
                let mut models = store.model_names()?;
                models.retain(|name| Codecs::model_of_name(name).is_some());
                turns.models.insert(models)
            }
        };
        let Some(name) = models.get(position.at as usize) else {
            return Ok(Done::Phase);
        };
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let read = store.read_model(name, &mut |piece| {
            bytes += piece.len() as u64;
            hasher.update(piece);
        });
        let mut short = [0; 8];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let fault = match read {
            Ok(true) if crate::codec::file_name(&short) != *name => Some("its hash differs".into()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(what) = fault {
            self.note_finding(ScrubFinding {
                segment: format!("{}/{name}", crate::store::MODEL_DIR),
                what: format!("damaged model: {what}"),
                ..ScrubFinding::default()
            });
        }
        self.scrubber.inner.lock().position.at += 1;
        Ok(Done::Bytes(bytes))
    }

    fn scrub_one_block(&self, position: Position, turns: &mut Turns) -> Result<Done> {
        let next = self.store()?.blocks(position.at, 1)?;
        let next = next.first().filter(|(id, _)| *id < position.end.block);
        let Some((id, block)) = next else {
            return Ok(Done::Phase);
        };
        let verified = self.verify_block(*id, block, &mut turns.anchors);
        let mut damaged = false;
        if let Err(why) = verified
            && !self.store.is_gone(*id)
        {
            damaged = true;
            self.note_damaged_blocks(BTreeSet::from([*id]), &why)?;
        }
        let mut inner = self.scrubber.inner.lock();
        inner.position.at = *id;
        inner.status.blocks += u64::from(!damaged);
        Ok(Done::Bytes(u64::from(block.stored_len)))
    }

    /// Names damaged blocks, those that are anchored to them, and the files that show any of them.
    fn note_damaged_blocks(&self, mut blocks: BTreeSet<BlockId>, why: &str) -> Result<()> {
        let known = |id: &BlockId| self.scrubber.inner.lock().named.contains(id);
        blocks.retain(|id| !known(id));
        if blocks.is_empty() {
            return Ok(());
        }
        let mut findings: Vec<(BlockId, String)> =
            blocks.iter().map(|id| (*id, why.to_owned())).collect();
        for (id, anchor) in self.anchored_to(&blocks)? {
            if !known(&id) && blocks.insert(id) {
                findings.push((id, format!("its anchor, block {anchor}, is damaged")));
            }
        }
        let mut hit = self.parts_of_files(&blocks)?;
        for (block, what) in findings {
            let place = self.store()?.block_place(block)?;
            let (segment, offset) = place.unwrap_or_default();
            let (files, parts) = hit.remove(&block).unwrap_or_default();
            self.note_finding(ScrubFinding {
                segment,
                offset,
                block: Some(block),
                what,
                files,
                parts,
            });
            let mut inner = self.scrubber.inner.lock();
            if inner.named.len() < REMEMBERED {
                inner.named.insert(block);
            }
        }
        Ok(())
    }

    fn note_finding(&self, finding: ScrubFinding) {
        let block = finding.block.map(|block| format!(", block {block}"));
        error!(
            "scrub: {}, offset {}{}: {}",
            finding.segment,
            finding.offset,
            block.unwrap_or_default(),
            finding.what
        );
        for part in &finding.files {
            error!(
                "scrub: hits {}, {} bytes at {}",
                part.path, part.len, part.offset
            );
        }
        let mut inner = self.scrubber.inner.lock();
        inner.status.errors += 1;
        if inner.status.findings.len() < LISTED {
            inner.status.findings.push(finding);
        }
    }

    /// Reads what an earlier mount knew. What makes no sense is forgotten: it is no part of the data.
    pub(super) fn load_scrub(&self) -> Result<()> {
        let Some(value) = self.store()?.get(META_SCRUB)? else {
            return Ok(());
        };
        match decode(&value) {
            Ok((mut status, position)) => {
                if status.is_active() && self.options.read_only {
                    status.state = ScrubState::Idle;
                }
                let mut inner = self.scrubber.inner.lock();
                (inner.status, inner.position) = (status, position);
            }
            Err(error) => warn!("the position of the last scrub is lost: {error}"),
        }
        Ok(())
    }

    /// Keeps the position of a scrub under way, and what was asked for since it was last kept.
    pub(super) fn keep_scrub(&self) {
        let due = {
            let inner = self.scrubber.inner.lock();
            inner.unsaved || inner.status.is_active()
        };
        if due {
            self.save_scrub();
        }
    }

    /// Keeps the position. Failing costs a scrub its place, no more.
    pub(super) fn save_scrub(&self) {
        // While the volume is frozen the place is not kept; the thaw or the unmount does it.
        let Some(_pass) = self.gate.try_enter() else {
            return;
        };
        let value = {
            let mut inner = self.scrubber.inner.lock();
            if inner.saved.is_none() && !inner.unsaved && !inner.status.is_active() {
                return;
            }
            inner.saved = Some(Instant::now());
            inner.unsaved = false;
            encode(&inner.status, &inner.position)
        };
        if self.options.read_only {
            return;
        }
        let mut change = Change::new(self);
        change.put(META_SCRUB.to_vec(), value);
        if let Err(error) = change.commit() {
            warn!("keeping the position of the scrub: {error}");
        }
    }
}

fn encode(status: &ScrubStatus, position: &Position) -> Vec<u8> {
    let state = match status.state {
        ScrubState::Idle => 0,
        ScrubState::Running => 1,
        ScrubState::Paused => 2,
    };
    let phase = match position.phase {
        Phase::Log => 0,
        Phase::Models => 1,
        Phase::Blocks => 2,
    };
    let mut out = Vec::new();
    for number in [
        LAYOUT,
        status.last_completed.unwrap_or(0),
        status.last_errors,
        state,
        u64::from(status.fast),
        status.rate.unwrap_or(0),
        status.done_bytes,
        status.total_bytes,
        status.records,
        status.blocks,
        status.errors,
        phase,
        position.at,
        position.offset,
        position.end.segment,
        position.end.block,
    ] {
        keys::put_varint(&mut out, number);
    }
    out
}

fn decode(value: &[u8]) -> Result<(ScrubStatus, Position)> {
    let mut fields = Fields::new("scrub", value);
    let mut next = || fields.varint();
    if next()? != LAYOUT {
        return Err(keys::damaged("scrub", "unknown layout"));
    }
    let some = |number: u64| (number != 0).then_some(number);
    let status = ScrubStatus {
        last_completed: some(next()?),
        last_errors: next()?,
        state: match next()? {
            1 => ScrubState::Running,
            2 => ScrubState::Paused,
            _ => ScrubState::Idle,
        },
        fast: next()? != 0,
        rate: some(next()?),
        done_bytes: next()?,
        total_bytes: next()?,
        records: next()?,
        blocks: next()?,
        errors: next()?,
        ..ScrubStatus::default()
    };
    let phase = match next()? {
        0 => Phase::Log,
        1 => Phase::Models,
        _ => Phase::Blocks,
    };
    let position = Position {
        phase,
        at: next()?,
        offset: next()?,
        end: ScrubEnd {
            segment: next()?,
            block: next()?,
        },
    };
    fields.finish()?;
    Ok((status, position))
}

/// What decodes must survive being written again. See [`crate::fuzzing`].
pub(super) fn fuzz(value: &[u8]) {
    if let Ok((status, position)) = decode(value) {
        let again = decode(&encode(&status, &position));
        assert_eq!(
            again.expect("a position that was written"),
            (status, position)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_survives_encoding_and_any_bytes_decode_or_fail() {
        let status = ScrubStatus {
            state: ScrubState::Paused,
            fast: true,
            rate: Some(7),
            done_bytes: 1 << 40,
            errors: 3,
            last_completed: Some(1_700_000_000),
            ..ScrubStatus::default()
        };
        let position = Position {
            phase: Phase::Blocks,
            at: 9,
            offset: 0,
            end: ScrubEnd {
                segment: 12,
                block: 1 << 50,
            },
        };
        let bytes = encode(&status, &position);
        assert_eq!(decode(&bytes).unwrap(), (status, position));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err());
        }
    }
}
