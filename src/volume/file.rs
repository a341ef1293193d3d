//! Contents of files: open, read, write, truncate.

use super::attr::{FileKind, Stat, Timestamp};
use super::change::Change;
use super::inode::{Inode, State, stat_of};
use super::keys;
use super::stage::StageMode;
use super::{Result, Volume, VolumeError};
use crate::cache::Served;
use crate::fault;
use crate::settle::Extent;
use std::sync::Arc;
use std::time::Instant;

/// Largest file.
pub const MAX_SIZE: u64 = i64::MAX as u64;
/// Dirty bytes of one file at which complete windows go to the log.
const STAGE_AT: u64 = 1 << 20;
/// How often a read starts over because the blocks that it wanted were replaced meanwhile.
const READ_TRIES: usize = 16;
/// Extents that one step of a truncation drops.
const CUT_STEP: usize = 1024;

/// Attributes that setattr changes; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub perm: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
    pub ctime: Option<Timestamp>,
    /// Truncation clears suid and sgid, as for callers without privileges.
    pub clear_privileges: bool,
    /// A change of owner clears sgid even without group execution, as for callers outside the group.
    pub drop_setgid: bool,
}

impl SetAttr {
    /// Whether anything but the size is set, even to what it is.
    fn touches_inode(&self) -> bool {
        self.perm.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.atime.is_some()
            || self.mtime.is_some()
            || self.ctime.is_some()
    }
}

/// How to write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteMode {
    /// Write at the end, wherever that is.
    pub append: bool,
    /// Clear suid and sgid.
    pub clear_privileges: bool,
}

impl Volume {
    pub fn getattr(&self, ino: u64) -> Result<Stat> {
        if let Some(inode) = self.table.peek(ino) {
            let state = inode.state.lock();
            return match state.gone {
                true => Err(VolumeError::Stale(ino)),
                false => Ok(state.stat(ino)),
            };
        }
        Ok(stat_of(ino, &self.load_attr(ino)?, 0))
    }

    /// Opens a regular file, so that it survives losing its last name.
    pub fn open_file(&self, ino: u64, truncate: bool, clear_privileges: bool) -> Result<()> {
        let inode = self.inode(ino)?;
        {
            let mut state = inode.state.lock();
            let unused = state.opens == 0 && !self.known.contains(ino);
            if state.gone || (state.attr.nlink == 0 && unused) {
                return Err(VolumeError::Stale(ino));
            }
            if state.attr.is_dir() {
                return Err(VolumeError::IsDirectory);
            }
            state.opens += 1;
        }
        if truncate {
            let set = SetAttr {
                size: Some(0),
                clear_privileges,
                ..SetAttr::default()
            };
            if let Err(error) = self.setattr(ino, set) {
                self.release(ino);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes one open. The last one removes a file that has no name any more.
    pub fn release(&self, ino: u64) {
        let Ok(inode) = self.inode(ino) else {
            return;
        };
        {
            let mut state = inode.state.lock();
            state.opens = state.opens.saturating_sub(1);
        }
        self.reap_if_unused(&inode);
    }

    pub fn setattr(&self, ino: u64, set: SetAttr) -> Result<Stat> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            self.truncate(&inode, size, set.clear_privileges)?;
        }
        let mut state = inode.state.lock();
        if state.gone {
            return Err(VolumeError::Stale(ino));
        }
        let mut attr = state.attr.clone();
        if set.uid.is_some() || set.gid.is_some() {
            attr.uid = set.uid.unwrap_or(attr.uid);
            attr.gid = set.gid.unwrap_or(attr.gid);
            if !attr.is_dir() {
                attr.clear_privileges();
                if set.drop_setgid {
                    attr.perm &= !libc::S_ISGID;
                }
            }
        }
        let mut change = Change::new(self);
        if let Some(perm) = set.perm {
            attr.perm = perm & 0o7777;
            self.chmod_acl(&mut change, ino, attr.perm)?;
        }
        attr.atime = set.atime.unwrap_or(attr.atime);
        attr.mtime = set.mtime.unwrap_or(attr.mtime);
        if set.touches_inode() {
            attr.ctime = set.ctime.unwrap_or_else(Timestamp::now);
            change.put_inode(ino, &attr, state.disk_size);
            change.commit()?;
            state.attr = attr;
        }
        let owner_changed = set.uid.is_some() || set.gid.is_some();
        let stat = state.stat(ino);
        drop(state);
        if owner_changed {
            self.drop_capabilities(&inode)?;
        }
        Ok(stat)
    }

    /// Sets the size of a regular file. What was written before is in the log before the new size.
    fn truncate(&self, inode: &Arc<Inode>, size: u64, clear_privileges: bool) -> Result<()> {
        if size > MAX_SIZE {
            return Err(VolumeError::FileTooLarge);
        }
        let staging = inode.stage.lock();
        if size > 0 {
            self.stage_locked(inode, StageMode::All, &staging)?;
        }
        let mut state = inode.state.lock();
        check_regular(inode.ino, &state)?;
        let mut attr = state.attr.clone();
        attr.size = size;
        attr.mtime = Timestamp::now();
        attr.ctime = attr.mtime;
        if clear_privileges {
            attr.clear_privileges();
        }
        if size >= state.disk_size && size > 0 {
            let mut change = Change::new(self);
            change.put_inode(inode.ino, &attr, size);
            change.commit()?;
            // Written since the staging above, and not cut off: stays dirty.
            attr.size = size.max(state.dirty.end().min(state.attr.size));
            state.attr = attr;
            state.disk_size = size;
            return Ok(());
        }
        let dropped = state.dirty.take(false, self.window());
        let mut kept = super::dirty::Pieces::default();
        for (start, data) in dropped.iter().filter(|(start, _)| *start < size) {
            let len = (data.len() as u64).min(size - start) as usize;
            kept.write(start, &data[..len], self.window());
        }
        self.budget.release(dropped.bytes() - kept.bytes());
        state.dirty = kept;
        if state.dirty.is_empty() {
            self.forget_dirty(inode.ino, &mut state);
        }
        state.attr = attr;
        state.disk_size = size;
        self.cut(inode.ino, &mut state, size)
    }

    /// Drops the extents past `size` and stores the inode, in one transaction if they are few. Many go
    /// in steps behind a note that mount finds after a crash, so that they never show again.
    pub(super) fn cut(&self, ino: u64, state: &mut State, size: u64) -> Result<()> {
        let mut noted = false;
        loop {
            let mut step = Vec::new();
            self.for_extents(ino, size, u64::MAX, |extent| {
                step.push(extent);
                step.len() < CUT_STEP
            })?;
            let last = step.len() < CUT_STEP;
            let end = match step.last() {
                Some(extent) if !last => extent.end(),
                _ => u64::MAX,
            };
            let mut change = Change::new(self);
            if !last && !noted {
                let mut value = Vec::new();
                keys::put_varint(&mut value, size);
                change.put(keys::cut(ino), value);
                noted = true;
            }
            if last && noted {
                change.delete(keys::cut(ino));
            }
            change.replace(ino, state, &[(size, end)], &[])?;
            change.put_inode(ino, &state.attr, state.disk_size);
            change.commit()?;
            if last {
                return Ok(());
            }
        }
    }

    /// Writes and returns the new stat. Waits while too much is dirty.
    pub fn write(&self, ino: u64, offset: u64, data: &[u8], mode: WriteMode) -> Result<Stat> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        let begun = Instant::now();
        let inode = self.inode(ino)?;
        let len = data.len() as u64;
        if len == 0 {
            return self.getattr(ino);
        }
        if offset.checked_add(len).is_none_or(|end| end > MAX_SIZE) {
            return Err(VolumeError::FileTooLarge);
        }
        self.reserve(len)?;
        let result = self.write_reserved(&inode, offset, data, mode);
        match &result {
            Ok((_, grown)) => self.budget.release(len - grown),
            Err(_) => self.budget.release(len),
        }
        let (stat, _) = result?;
        self.io.note_write(len, self.started);
        if mode.clear_privileges {
            self.drop_capabilities(&inode)?;
        }
        self.io.write.record_since(begun);
        Ok(stat)
    }

    fn write_reserved(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<(Stat, u64)> {
        let mut state = inode.state.lock();
        check_regular(inode.ino, &state)?;
        let offset = if mode.append { state.attr.size } else { offset };
        let end = offset + data.len() as u64;
        if end > MAX_SIZE {
            return Err(VolumeError::FileTooLarge);
        }
        let grown = state.dirty.write(offset, data, self.window());
        let now = Timestamp::now();
        state.attr.size = state.attr.size.max(end);
        state.attr.mtime = now;
        state.attr.ctime = now;
        if mode.clear_privileges {
            state.attr.clear_privileges();
        }
        if state.dirty_since.is_none() && !state.dirty.is_empty() {
            state.dirty_since = Some(Instant::now());
            self.note_dirty(inode);
        }
        if state.dirty.bytes() >= STAGE_AT && !state.stage_queued {
            self.queue_stage(inode, &mut state, StageMode::Complete);
        }
        Ok((state.stat(inode.ino), grown))
    }

    /// Reads up to `len` bytes; fewer only at the end of the file.
    pub fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>> {
        let begun = Instant::now();
        let inode = self.inode(ino)?;
        let mut out = Vec::new();
        for _ in 0..READ_TRIES {
            let (holes, extents) = {
                let mut state = inode.state.lock();
                check_regular(ino, &state)?;
                let size = state.attr.size;
                let len = size.saturating_sub(offset).min(len as u64) as usize;
                out.clear();
                out.resize(len, 0);
                if len == 0 {
                    return Ok(out);
                }
                let holes = overlay(&state, offset, &mut out);
                let extents = match (holes.first(), holes.last()) {
                    (Some((from, _)), Some((_, to))) => self.extents(ino, *from, *to)?,
                    _ => Vec::new(),
                };
                self.read_ahead(ino, &mut state, offset, len as u64)?;
                (holes, extents)
            };
            match self.fill(offset, &mut out, &holes, &extents, false) {
                Err(error) if self.was_replaced(&error, &extents)? => continue,
                Err(error) => return Err(error.in_file(ino, offset)),
                Ok(served) => {
                    self.io.note_read(out.len() as u64, self.started);
                    match served {
                        Served::Cached => self.io.read_cached.record_since(begun),
                        Served::Decoded => self.io.read_decoded.record_since(begun),
                    }
                    return Ok(out);
                }
            }
        }
        Err(VolumeError::Unreadable {
            place: format!("inode {ino}, offset {offset}"),
            message: "blocks keep changing".into(),
        })
    }

    /// Fills the parts of `out` that no dirty data covers from extents; what has none is zero.
    fn fill(
        &self,
        offset: u64,
        out: &mut [u8],
        holes: &[(u64, u64)],
        extents: &[Extent],
        once: bool,
    ) -> Result<Served> {
        let mut served = Served::Cached;
        for &(from, to) in holes {
            for extent in extents.iter().filter(|e| e.offset < to && e.end() > from) {
                let part = extent.slice(from, to);
                if part.is_lost() {
                    return Err(VolumeError::lost());
                }
                let at = (part.offset - offset) as usize;
                let target = &mut out[at..at + part.len as usize];
                served = served.max(match once {
                    true => self.cache.read_once(part.block, part.skip, target)?,
                    false => self.cache.read(part.block, part.skip, target)?,
                });
            }
        }
        Ok(served)
    }

    /// Whether a read failed because settling replaced a block after its extent was looked up.
    fn was_replaced(&self, error: &VolumeError, extents: &[Extent]) -> Result<bool> {
        if !matches!(error, VolumeError::Unreadable { .. }) {
            return Ok(false);
        }
        let store = self.store()?;
        let mut shown = extents.iter().filter(|e| !e.is_lost());
        Ok(shown.any(|e| store.is_gone(e.block)))
    }

    /// Reads committed bytes of a file, once: what extents show, without dirty data. Holes are zero.
    pub(super) fn read_extents(&self, from: u64, out: &mut [u8], extents: &[Extent]) -> Result<()> {
        let range = (from, from + out.len() as u64);
        self.fill(from, out, &[range], extents, true).map(drop)
    }

    /// Asks the cache for what comes next when a file is read from front to back.
    fn read_ahead(&self, ino: u64, state: &mut State, offset: u64, len: u64) -> Result<()> {
        let end = offset + len;
        let sequential = offset == state.next_read && offset > 0;
        state.next_read = end;
        if !sequential {
            state.ahead = end;
            return Ok(());
        }
        let until = end.saturating_add(2 * self.window()).min(state.disk_size);
        let from = state.ahead.max(end);
        if until <= from || (until - from) * 4 < self.window() && until < state.disk_size {
            return Ok(());
        }
        for extent in self
            .extents(ino, from, until)?
            .iter()
            .filter(|e| !e.staged && !e.is_lost())
        {
            let part = extent.slice(from, until);
            self.cache.prefetch(part.block, part.skip, part.len);
        }
        state.ahead = until;
        Ok(())
    }
}

/// Copies dirty data into `out` and returns the ranges that it does not cover.
fn overlay(state: &State, offset: u64, out: &mut [u8]) -> Vec<(u64, u64)> {
    let end = offset + out.len() as u64;
    let mut covered = Vec::new();
    let hidden = fault::planted("staging-data-hidden");
    if let Some(staging) = state.staging.as_ref().filter(|_| !hidden) {
        covered.extend(staging.copy_to(offset, out));
    }
    covered.extend(state.dirty.copy_to(offset, out));
    covered.sort_unstable();
    let mut holes = Vec::new();
    let mut at = offset;
    for (from, to) in covered {
        if from > at {
            holes.push((at, from));
        }
        at = at.max(to);
    }
    if at < end {
        holes.push((at, end));
    }
    holes
}

pub(super) fn check_regular(ino: u64, state: &State) -> Result<()> {
    match state.attr.kind {
        _ if state.gone => Err(VolumeError::Stale(ino)),
        FileKind::Regular => Ok(()),
        FileKind::Directory => Err(VolumeError::IsDirectory),
        _ => Err(VolumeError::Invalid("not a regular file")),
    }
}
