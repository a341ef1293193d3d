//! Staging: dirty data moves into the log, in a fast codec.

use super::change::Change;
use super::dirty::Pieces;
use super::inode::{Inode, State};
use super::keys;
use super::{Result, Volume, VolumeError};
use crate::fault;
use crate::settle::Extent;
use crate::store::NewBlock;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use crate::sync::{Condvar, Mutex};
use log::{error, warn};
use parking_lot::MutexGuard;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Blocks that one transaction of staging makes visible.
const BLOCKS_PER_COMMIT: usize = 64;
/// Extents in one window at which staging rewrites the window as a whole, so that small appends and
/// scattered writes do not pile up keys.
const MAX_EXTENTS_PER_WINDOW: usize = 48;
/// How often data is staged and synced without being asked for.
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// How often the stager looks at memory pressure and failed staging.
const TICK: Duration = Duration::from_millis(250);

/// How often writers try again to stage after the disk was full.
const RETRY: Duration = Duration::from_millis(200);

/// What to stage of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageMode {
    All,
    /// Only windows that are full.
    Complete,
}

/// No budget is smaller.
const LEAST_BUDGET: u64 = 1 << 20;

/// Bounds the bytes that wait for staging.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    used: Mutex<u64>,
    room: Condvar,
}

impl Budget {
    pub fn new(limit: u64) -> Budget {
        Budget {
            limit: AtomicU64::new(limit.max(LEAST_BUDGET)),
            used: Mutex::new(0),
            room: Condvar::new(),
        }
    }

    /// Writers above a lower limit wait until enough is staged.
    pub fn set_limit(&self, limit: u64) {
        let _used = self.used.lock();
        self.limit.store(limit.max(LEAST_BUDGET), SeqCst);
        self.room.notify_all();
    }

    fn limit(&self) -> u64 {
        self.limit.load(SeqCst)
    }

    pub fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Past this much, staging begins without being asked for.
    pub fn is_tight(&self) -> bool {
        self.used() > self.limit() / 2
    }

    pub fn release(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = self.used.lock();
            *used = used.saturating_sub(bytes);
            self.room.notify_all();
        }
    }

    /// Takes `bytes` if there is room, and waits a moment for it. A request larger than the whole
    /// budget is let through once nothing else is in it.
    fn try_reserve(&self, bytes: u64) -> bool {
        let mut used = self.used.lock();
        if *used > 0 && *used + bytes > self.limit() {
            self.room.wait_for(&mut used, Duration::from_millis(50));
        }
        let fits = *used == 0 || *used + bytes <= self.limit();
        if fits {
            *used += bytes;
        }
        fits
    }
}

/// What the staging threads share.
#[derive(Debug, Default)]
pub struct Stager {
    /// Inodes with dirty data.
    dirty: Mutex<HashMap<u64, Arc<Inode>>>,
    queue: Mutex<Vec<(Arc<Inode>, StageMode)>>,
    wake: Condvar,
    /// Signalled only when the threads are to end.
    halt: Condvar,
    /// The last failure of staging and its time, while nothing has been staged since.
    failing: Mutex<Option<(VolumeError, Instant)>>,
    stopping: AtomicBool,
}

impl Stager {
    /// Ends the threads, after what they are doing now.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_all();
        self.halt.notify_all();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Waits a moment for a queued inode. Threads wait without holding the volume, so that they do
    /// not keep it alive.
    pub fn next(&self) -> Option<(Arc<Inode>, StageMode)> {
        let mut queue = self.queue.lock();
        if queue.is_empty() && !self.is_stopping() {
            self.wake.wait_for(&mut queue, TICK);
        }
        queue.pop()
    }

    fn push(&self, inode: Arc<Inode>, mode: StageMode) {
        self.queue.lock().push((inode, mode));
        self.wake.notify_one();
    }

    /// Waits a moment, unless the threads are to end.
    pub fn pause(&self) {
        let mut queue = self.queue.lock();
        if !self.is_stopping() {
            self.halt.wait_for(&mut queue, TICK);
        }
    }

    pub fn wake_all(&self) {
        let _queue = self.queue.lock();
        self.wake.notify_all();
    }

    pub fn failing(&self) -> Option<VolumeError> {
        self.failing.lock().as_ref().map(|(error, _)| error.clone())
    }
}

impl Volume {
    pub(super) fn note_dirty(&self, inode: &Arc<Inode>) {
        self.stager.dirty.lock().insert(inode.ino, inode.clone());
    }

    pub(super) fn forget_dirty(&self, ino: u64, state: &mut State) {
        state.dirty_since = None;
        self.stager.dirty.lock().remove(&ino);
    }

    /// Reserves room for dirty bytes, and waits for it. Fails only if staging itself fails.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        while !self.budget.try_reserve(bytes) {
            if let Some(error) = self.stager.failing() {
                return Err(error);
            }
            if self.is_stopping() {
                return Err(VolumeError::Closed);
            }
            self.stager.wake_all();
        }
        match self.stager.failing() {
            Some(VolumeError::NoSpace) if !self.has_space_again() => {
                self.budget.release(bytes);
                Err(VolumeError::NoSpace)
            }
            _ => Ok(()),
        }
    }

    /// After the disk was full: whether what waits can be staged now. Tries it now and then.
    fn has_space_again(&self) -> bool {
        if self.stager.dirty.lock().is_empty() {
            self.stager.failing.lock().take();
            return true;
        }
        let last = self.stager.failing.lock().as_ref().map(|(_, time)| *time);
        match last {
            Some(time) if time.elapsed() < RETRY => false,
            _ => self.stage_everything().is_ok(),
        }
    }

    pub(super) fn queue_stage(&self, inode: &Arc<Inode>, state: &mut State, mode: StageMode) {
        state.stage_queued = true;
        self.stager.push(inode.clone(), mode);
    }

    /// Moves dirty data of an inode into the log.
    pub(super) fn stage(&self, inode: &Arc<Inode>, mode: StageMode) -> Result<()> {
        let staging = inode.stage.lock();
        self.stage_locked(inode, mode, &staging)
    }

    /// [`Volume::stage`] for who holds the inode's stage lock.
    pub(super) fn stage_locked(
        &self,
        inode: &Arc<Inode>,
        mode: StageMode,
        _held: &MutexGuard<'_, ()>,
    ) -> Result<()> {
        let pieces = {
            let mut state = inode.state.lock();
            state.stage_queued = false;
            if state.gone || state.dirty.is_empty() {
                return Ok(());
            }
            let pieces = state.dirty.take(mode == StageMode::Complete, self.window());
            if pieces.is_empty() {
                return Ok(());
            }
            let pieces = Arc::new(pieces);
            state.staging = Some(pieces.clone());
            pieces
        };
        let result = self.stage_pieces(inode, &pieces);
        let mut state = inode.state.lock();
        state.staging = None;
        match &result {
            Ok(()) => self.budget.release(pieces.bytes()),
            Err(_) => {
                // Nothing is lost: what failed, or was staged but is dirty again, stays dirty.
                let before = state.dirty.bytes() + pieces.bytes();
                let older = Arc::try_unwrap(pieces).unwrap_or_else(|shared| (*shared).clone());
                state.dirty.write_below(older, self.window());
                self.budget.release(before - state.dirty.bytes());
            }
        }
        match state.dirty.is_empty() {
            true => self.forget_dirty(inode.ino, &mut state),
            false => state.dirty_since = Some(Instant::now()),
        }
        *self.stager.failing.lock() = result.as_ref().err().map(|e| (e.clone(), Instant::now()));
        result
    }

    fn stage_pieces(&self, inode: &Arc<Inode>, pieces: &Pieces) -> Result<()> {
        let mut batch = Vec::new();
        let result = self.stage_batches(inode, pieces, &mut batch);
        // What no commit refers to would otherwise take space until the store is closed.
        for extent in &batch {
            self.store()?.discard(extent.block);
        }
        result
    }

    /// Leaves in `batch` what was staged, but not committed.
    fn stage_batches(
        &self,
        inode: &Arc<Inode>,
        pieces: &Pieces,
        batch: &mut Vec<Extent>,
    ) -> Result<()> {
        let mut merged_until = 0;
        for (start, data) in pieces.iter() {
            if start < merged_until {
                continue;
            }
            let window = start - start % self.window();
            match self.merge_window(inode.ino, window, pieces)? {
                Some(runs) => {
                    merged_until = window + self.window();
                    for (run_start, run) in runs.iter() {
                        batch.push(self.stage_block(run_start, run)?);
                    }
                }
                None => batch.push(self.stage_block(start, data)?),
            }
            if batch.len() >= BLOCKS_PER_COMMIT {
                self.commit_staged(inode, batch)?;
            }
        }
        self.commit_staged(inode, batch)
    }

    fn stage_block(&self, offset: u64, data: &[u8]) -> Result<Extent> {
        let encoded = self.codecs.encode_fast(data);
        let block = self.store()?.stage(&NewBlock {
            codec: encoded.codec as u8,
            raw_len: data.len() as u32,
            anchor: None,
            payload: &encoded.payload,
        })?;
        Ok(Extent {
            offset,
            len: data.len() as u32,
            block,
            skip: 0,
            staged: true,
        })
    }

    /// The whole contents of a window with too many extents, as contiguous runs, or `None` if the
    /// window is fine as it is.
    fn merge_window(&self, ino: u64, window: u64, pieces: &Pieces) -> Result<Option<Pieces>> {
        let end = window + self.window();
        let extents = self.extents(ino, window, end)?;
        if extents.len() < MAX_EXTENTS_PER_WINDOW {
            return Ok(None);
        }
        let mut merged = Pieces::default();
        for extent in extents.iter().filter(|e| !e.is_lost()) {
            let part = extent.slice(window, end);
            let mut data = vec![0; part.len as usize];
            match self.read_extents(part.offset, &mut data, &[part]) {
                // Old data that cannot be read is no reason to refuse new data.
                Err(VolumeError::Unreadable { .. }) => return Ok(None),
                other => other?,
            }
            merged.write(part.offset, &data, self.window());
        }
        for (start, data) in pieces.overlapping(window, end) {
            merged.write(start, data, self.window());
        }
        Ok(Some(merged))
    }

    /// Shows the extents in the file, and takes them out of the list.
    fn commit_staged(&self, inode: &Arc<Inode>, extents: &mut Vec<Extent>) -> Result<()> {
        let Some(last) = extents.last() else {
            return Ok(());
        };
        let ino = inode.ino;
        let mut state = inode.state.lock();
        if state.gone {
            return Ok(());
        }
        let cuts: Vec<(u64, u64)> = extents.iter().map(|e| (e.offset, e.end())).collect();
        let windows: BTreeSet<u64> = extents
            .iter()
            .map(|e| e.offset - e.offset % self.window())
            .collect();
        let (stored, disk_size) = (state.attr.stored, state.disk_size);
        let mut change = Change::new(self);
        let result = change
            .replace(ino, &mut state, &cuts, extents)
            .and_then(|()| {
                state.disk_size = disk_size.max(last.end());
                change.put_inode(ino, &state.attr, state.disk_size);
                for window in &windows {
                    change.put(keys::pending(ino, *window), Vec::new());
                }
                change.commit()
            });
        if result.is_err() {
            state.attr.stored = stored;
            state.disk_size = disk_size;
            return result;
        }
        drop(state);
        extents.clear();
        self.settler.touched(ino, windows);
        Ok(())
    }

    /// What close does: stages, and reports what background staging could not.
    pub fn flush(&self, ino: u64) -> Result<()> {
        let Some(inode) = self.table.peek(ino) else {
            return Ok(());
        };
        if inode.state.lock().is_staged() {
            return Ok(());
        }
        let Some(_pass) = self.gate.enter_staging() else {
            return Ok(());
        };
        let earlier = inode.state.lock().error.take();
        self.stage(&inode, StageMode::All)?;
        match earlier {
            // Whatever failed then is in the log now, unless the log itself is broken.
            Some(VolumeError::NoSpace) | None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Returns when everything written to the file so far is on the disk.
    pub fn fsync(&self, ino: u64) -> Result<()> {
        let begun = Instant::now();
        self.fsync_now(ino)?;
        self.io.fsync.record_since(begun);
        Ok(())
    }

    fn fsync_now(&self, ino: u64) -> Result<()> {
        if fault::planted("fsync-before-data") {
            self.sync_log()?;
            return self.flush(ino);
        }
        let Some(_pass) = self.gate.enter_staging() else {
            return Ok(());
        };
        self.flush(ino)?;
        self.sync_log()
    }

    /// Makes everything that is in the log durable.
    pub fn sync_log(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        if let Some(_pass) = self.gate.enter_staging() {
            self.store()?.sync()?;
        }
        Ok(())
    }

    /// Returns when everything written to any file so far is on the disk.
    pub fn sync_everything(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        let Some(_pass) = self.gate.enter_staging() else {
            return Ok(());
        };
        let begun = Instant::now();
        self.stage_everything()?;
        self.store_accesses();
        self.sync_log()?;
        self.io.fsync.record_since(begun);
        Ok(())
    }

    /// Stages everything that is dirty now. Returns the first failure, after trying everything.
    pub fn stage_everything(&self) -> Result<()> {
        let dirty: Vec<Arc<Inode>> = self.stager.dirty.lock().values().cloned().collect();
        let mut result = Ok(());
        for inode in dirty {
            if let Err(error) = self.stage_in_background(&inode, StageMode::All) {
                result = result.and(Err(error));
            }
        }
        result
    }

    /// Stages and remembers a failure for the next fsync or close of the file.
    fn stage_in_background(&self, inode: &Arc<Inode>, mode: StageMode) -> Result<()> {
        let result = self.stage(inode, mode);
        if let Err(error) = &result {
            warn!("staging inode {}: {error}", inode.ino);
            inode.state.lock().error = Some(error.clone());
        }
        result
    }

    /// One turn of a staging thread: what was queued, or everything once memory is tight.
    pub(super) fn stage_turn(&self, next: Option<(Arc<Inode>, StageMode)>) {
        let Some(_pass) = self.gate.enter_staging() else {
            if let Some((inode, _)) = next {
                inode.state.lock().stage_queued = false;
            }
            return;
        };
        if let Some((inode, mode)) = next {
            // The failure is kept for the file's next fsync or close.
            let _ = self.stage_in_background(&inode, mode);
        } else if self.budget.is_tight() {
            let _ = self.stage_everything();
        }
    }

    /// One turn of the sync thread: everything is staged and synced if it is time.
    pub(super) fn sync_turn(&self, last: &mut Instant) {
        if last.elapsed() < SYNC_EVERY {
            return;
        }
        let Some(_pass) = self.gate.enter_staging() else {
            return;
        };
        *last = Instant::now();
        let _ = self.stage_everything();
        if self.changed.load(Relaxed) {
            self.store_accesses();
        }
        if self.changed.swap(false, Relaxed)
            && let Err(error) = self.sync_log()
        {
            error!("background sync: {error}");
            self.changed.store(true, Relaxed);
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod shuttle_tests {
    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use shuttle::thread;

    #[test]
    fn shuttle_the_budget_is_kept_and_nobody_waits_for_ever_for_room() {
        let run = || {
            let budget = Arc::new(Budget::new(1 << 20));
            let writers: Vec<_> = [400 << 10, 700 << 10, 900 << 10]
                .into_iter()
                .map(|bytes: u64| {
                    let budget = budget.clone();
                    thread::spawn(move || {
                        while !budget.try_reserve(bytes) {}
                        assert!(budget.used() <= 1 << 20);
                        budget.release(bytes);
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            assert_eq!(budget.used(), 0);
        };
        shuttle::check_random(run, 3000);
        shuttle::check_pct(run, 1000, 3);
    }

    #[test]
    fn shuttle_every_queued_inode_is_taken_once_and_stopping_ends_all_who_wait() {
        let run = || {
            let (stager, taken) = (Arc::new(Stager::default()), Arc::new(AtomicUsize::new(0)));
            let takers: Vec<_> = (0..2)
                .map(|_| {
                    let (stager, taken) = (stager.clone(), taken.clone());
                    thread::spawn(move || {
                        while !stager.is_stopping() {
                            taken.fetch_add(usize::from(stager.next().is_some()), SeqCst);
                        }
                    })
                })
                .collect();
            for ino in 0..3 {
                stager.push(Inode::for_test(ino), StageMode::All);
            }
            stager.stop();
            for taker in takers {
                taker.join().unwrap();
            }
            let left = stager.queue.lock().len();
            assert_eq!(taken.load(SeqCst) + left, 3);
        };
        shuttle::check_random(run, 3000);
        shuttle::check_pct(run, 1000, 3);
    }
}
