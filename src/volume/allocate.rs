//! Where a file has data and where it has holes: fallocate, and lseek for data and holes.
//!
//! Space is not set aside: how much a block will take is not known before its bytes are. What
//! preallocation promises is that the range exists, reads as zeros where nothing was written, and that
//! the disk had room for it at that moment.

use super::attr::Timestamp;
use super::change::Change;
use super::file::{MAX_SIZE, check_regular};
use super::inode::{Inode, State};
use super::stage::StageMode;
use super::{Result, Volume, VolumeError};
use std::sync::Arc;

/// Extents that one transaction drops.
const STEP: usize = 1024;

/// What becomes of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// It exists: contents stay, what is not written reads as zeros.
    Reserve,
    /// It reads as zeros, and its space is given back.
    Zero,
}

/// How to allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocateMode {
    pub what: Allocate,
    /// The size of the file stays, even if the range ends behind it.
    pub keep_size: bool,
    /// Clear suid and sgid, as for callers without privileges.
    pub clear_privileges: bool,
}

impl Volume {
    /// Allocates or zeroes a range of a regular file. Fails with `NoSpace` if the disk under the store has
    /// less free space than the range lacks, and with `FileTooLarge` past the largest file.
    pub fn allocate(&self, ino: u64, offset: u64, len: u64, mode: AllocateMode) -> Result<()> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        if len == 0 {
            return Err(VolumeError::Invalid("empty range"));
        }
        let end = match offset.checked_add(len) {
            Some(end) if end <= MAX_SIZE => end,
            _ => return Err(VolumeError::FileTooLarge),
        };
        let inode = self.inode(ino)?;
        if mode.what == Allocate::Reserve {
            self.check_room(&inode, offset, end)?;
        }
        let staging = inode.stage.lock();
        // What was written before is in the log before the new size, and under what is zeroed.
        if mode.what == Allocate::Zero || !mode.keep_size {
            self.stage_locked(&inode, StageMode::All, &staging)?;
        }
        let mut state = inode.state.lock();
        check_regular(ino, &state)?;
        let before = (state.attr.clone(), state.disk_size);
        let cleared = match mode.what {
            Allocate::Reserve => (0, 0),
            Allocate::Zero => (offset, end.min(state.disk_size)),
        };
        state.attr.mtime = Timestamp::now();
        state.attr.ctime = state.attr.mtime;
        if mode.clear_privileges {
            state.attr.clear_privileges();
        }
        if !mode.keep_size {
            state.attr.size = state.attr.size.max(end);
            state.disk_size = state.disk_size.max(end);
        }
        let result = self.clear_range(ino, &mut state, cleared);
        if let Err(error) = result {
            let stored = state.attr.stored;
            (state.attr, state.disk_size) = before;
            state.attr.stored = stored;
            return Err(error);
        }
        drop(state);
        drop(staging);
        match mode.clear_privileges {
            true => self.drop_capabilities(&inode),
            false => Ok(()),
        }
    }

    /// Makes a range of a regular file read as zeros and gives its space back; the size stays.
    pub fn punch_hole(&self, ino: u64, offset: u64, len: u64) -> Result<()> {
        let mode = AllocateMode {
            what: Allocate::Zero,
            keep_size: true,
            clear_privileges: false,
        };
        self.allocate(ino, offset, len, mode)
    }

    /// Drops what extents show of a range and stores the inode: in one transaction, or in several if
    /// there are very many extents.
    fn clear_range(&self, ino: u64, state: &mut State, range: (u64, u64)) -> Result<()> {
        let (mut from, to) = range;
        loop {
            let mut step = Vec::new();
            self.for_extents(ino, from, to, |extent| {
                step.push(extent.end());
                step.len() < STEP
            })?;
            let until = match step.last() {
                Some(end) if step.len() == STEP => to.min(*end),
                _ => to,
            };
            let stored = state.attr.stored;
            let mut change = Change::new(self);
            let cleared = change
                .replace(ino, state, &[(from, until)], &[])
                .and_then(|()| {
                    change.put_inode(ino, &state.attr, state.disk_size);
                    change.commit()
                });
            if let Err(error) = cleared {
                state.attr.stored = stored;
                return Err(error);
            }
            if until >= to {
                return Ok(());
            }
            from = until;
        }
    }

    /// Fails if the disk cannot hold what a range lacks, even if it could be stored without overhead.
    fn check_room(&self, inode: &Arc<Inode>, from: u64, to: u64) -> Result<()> {
        let (free, _) = self.store()?.free_space()?;
        if to - from <= free {
            return Ok(());
        }
        let mut covered = inode.state.lock().unstored_bytes();
        self.for_extents(inode.ino, from, to, |extent| {
            covered += u64::from(extent.slice(from, to).len);
            true
        })?;
        match (to - from).saturating_sub(covered) <= free {
            true => Ok(()),
            false => Err(VolumeError::NoSpace),
        }
    }

    /// The first offset at or after `offset` that lies in data, or in a hole.
    pub fn seek(&self, ino: u64, offset: u64, data: bool) -> Result<u64> {
        let inode = self.inode(ino)?;
        if let Some(_pass) = self.gate.enter_staging() {
            self.stage(&inode, StageMode::All)?;
        }
        let state = inode.state.lock();
        let size = state.attr.size;
        if offset >= size {
            return Err(VolumeError::NoData);
        }
        let mut at = offset;
        self.for_extents(ino, offset, size, |extent| {
            match data {
                true => {
                    at = extent.offset.max(offset);
                    return false;
                }
                false if extent.offset <= at => at = extent.end(),
                false => return false,
            }
            true
        })?;
        let covered = !self.extents(ino, at, at.saturating_add(1))?.is_empty();
        match data {
            true if !covered => Err(VolumeError::NoData),
            true => Ok(at),
            false => Ok(at.min(size)),
        }
    }
}
