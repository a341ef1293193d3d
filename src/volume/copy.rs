//! copy_file_range: the copy shows the same blocks as the original.
//!
//! What extents of the source show is shared: the destination gets extents with another reference to the
//! same blocks, and holes become holes. Pieces so short that a key would cost more than it saves are
//! copied as if they were written. Staged blocks are shared, too, but each file settles its own copy.

use super::attr::Timestamp;
use super::change::Change;
use super::file::{MAX_SIZE, check_regular};
use super::inode::{Inode, Locked, State};
use super::keys;
use super::stage::StageMode;
use super::{Result, Volume, VolumeError, WriteMode};
use crate::settle::Extent;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes that one transaction shares.
const STEP: u64 = 16 << 20;
/// Shorter pieces are shared only if they are whole extents in the same place of their window, so that
/// no window of a copy has many more extents than windows of its source have.
const SHORT: u64 = 4096;

/// Where a copy comes from and where it goes; offsets and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRange {
    pub from: u64,
    pub from_offset: u64,
    pub to: u64,
    pub to_offset: u64,
    pub len: u64,
    /// Clear suid and sgid of the destination, as for callers without privileges.
    pub clear_privileges: bool,
}

/// How the destination gets what it is to show, by offsets in the destination.
#[derive(Debug, Default)]
struct Plan {
    shared: Vec<Extent>,
    /// Ranges that the shared extents and holes replace, in order.
    replaced: Vec<(u64, u64)>,
    /// Ranges to copy byte by byte.
    written: Vec<(u64, u64)>,
}

impl Volume {
    /// Copies a range of a regular file to another one, or to another place in the same. Returns how
    /// many bytes were copied: fewer than asked for only at the end of the source.
    pub fn copy_range(&self, copy: CopyRange) -> Result<u64> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        let (source, target) = (self.inode(copy.from)?, self.inode(copy.to)?);
        let size = {
            let state = source.state.lock();
            check_regular(copy.from, &state)?;
            state.attr.size
        };
        check_regular(copy.to, &target.state.lock())?;
        let len = copy.len.min(size.saturating_sub(copy.from_offset));
        if len == 0 {
            return Ok(0);
        }
        if copy
            .to_offset
            .checked_add(len)
            .is_none_or(|end| end > MAX_SIZE)
        {
            return Err(VolumeError::FileTooLarge);
        }
        if copy.from == copy.to && copy.from_offset.abs_diff(copy.to_offset) < len {
            return Err(VolumeError::Invalid("overlapping ranges"));
        }
        let mut done = 0;
        while done < len {
            // The end of the volume waits for operations under way.
            if self.is_stopping() {
                return Err(VolumeError::Closed);
            }
            let step = CopyRange {
                from_offset: copy.from_offset + done,
                to_offset: copy.to_offset + done,
                len: STEP.min(len - done),
                ..copy
            };
            let written = self.share(&source, &target, step)?;
            self.copy_bytes(step, &written)?;
            done += step.len;
        }
        if copy.clear_privileges {
            self.drop_capabilities(&target)?;
        }
        Ok(len)
    }

    /// Shares what can be shared of one step, and returns the ranges that cannot.
    fn share(
        &self,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        copy: CopyRange,
    ) -> Result<Vec<(u64, u64)>> {
        // In the order of inode numbers, as all locks of one level.
        let mut order = [source, target];
        order.sort_by_key(|inode| inode.ino);
        let staging = order[0].stage.lock();
        self.stage_locked(order[0], StageMode::All, &staging)?;
        let _other = match order[0].ino == order[1].ino {
            true => None,
            false => {
                let staging = order[1].stage.lock();
                self.stage_locked(order[1], StageMode::All, &staging)?;
                Some(staging)
            }
        };
        let mut states = Locked::new([source, target]);
        check_regular(copy.from, states.get(copy.from)?)?;
        let state = states.get(copy.to)?;
        check_regular(copy.to, state)?;
        let plan = self.plan(copy)?;
        let pending = self.windows_of_staged(&plan.shared);
        let before = (state.attr.clone(), state.disk_size);
        if let Err(error) = self.commit_shared(copy, state, &plan, &pending) {
            (state.attr, state.disk_size) = before;
            return Err(error);
        }
        drop(states);
        self.settler.touched(copy.to, pending);
        Ok(plan.written)
    }

    fn commit_shared(
        &self,
        copy: CopyRange,
        state: &mut State,
        plan: &Plan,
        pending: &BTreeSet<u64>,
    ) -> Result<()> {
        let mut change = Change::new(self);
        change.replace(copy.to, state, &plan.replaced, &plan.shared)?;
        state.attr.mtime = Timestamp::now();
        state.attr.ctime = state.attr.mtime;
        if copy.clear_privileges {
            state.attr.clear_privileges();
        }
        if let Some((_, end)) = plan.replaced.last() {
            state.attr.size = state.attr.size.max(*end);
            state.disk_size = state.disk_size.max(*end);
        }
        change.put_inode(copy.to, &state.attr, state.disk_size);
        for window in pending {
            change.put(keys::pending(copy.to, *window), Vec::new());
        }
        change.commit()
    }

    fn windows_of_staged(&self, extents: &[Extent]) -> BTreeSet<u64> {
        extents
            .iter()
            .filter(|e| e.staged)
            .map(|e| e.offset - e.offset % self.window())
            .collect()
    }

    /// Divides a range into what is shared, what is a hole, and what is copied.
    fn plan(&self, copy: CopyRange) -> Result<Plan> {
        let (from, to) = (copy.from_offset, copy.from_offset + copy.len);
        let mut plan = Plan::default();
        let mut at = copy.to_offset;
        for extent in self.extents(copy.from, from, to)? {
            let part = extent.slice(from, to);
            if part.is_lost() {
                return Err(VolumeError::lost());
            }
            let offset = copy.to_offset + (part.offset - from);
            plan.replace(at, offset);
            at = offset + u64::from(part.len);
            let whole =
                part.len == extent.len && offset % self.window() == part.offset % self.window();
            for piece in self.at_windows(Extent { offset, ..part }) {
                match whole || u64::from(piece.len) >= SHORT {
                    true => {
                        plan.replace(piece.offset, piece.end());
                        plan.shared.push(piece);
                    }
                    false => plan.written.push((piece.offset, piece.end())),
                }
            }
        }
        plan.replace(at, copy.to_offset + copy.len);
        Ok(plan)
    }

    /// An extent in pieces that do not cross windows.
    fn at_windows(&self, extent: Extent) -> impl Iterator<Item = Extent> {
        let (window, end) = (self.window(), extent.end());
        let first = extent.offset - extent.offset % window;
        (0..)
            .map(move |n| first.saturating_add(n * window))
            .take_while(move |start| *start < end)
            .map(move |start| extent.slice(start, start.saturating_add(window)))
    }

    fn copy_bytes(&self, copy: CopyRange, ranges: &[(u64, u64)]) -> Result<()> {
        let mode = WriteMode {
            append: false,
            clear_privileges: copy.clear_privileges,
        };
        for (start, end) in ranges {
            let offset = copy.from_offset + (start - copy.to_offset);
            let data = self.read(copy.from, offset, (end - start) as usize)?;
            self.write(copy.to, *start, &data, mode)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Adds a range to those that are replaced, after all that are there.
    fn replace(&mut self, from: u64, to: u64) {
        match self.replaced.last_mut() {
            _ if from >= to => {}
            Some((_, end)) if *end == from => *end = to,
            _ => self.replaced.push((from, to)),
        }
    }
}
