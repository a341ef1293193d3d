//! Removal of inodes without names, and completion of what a crash interrupted.

use super::change::Change;
use super::inode::Inode;
use super::keys::{self, Fields};
use super::{Result, Volume};
use log::warn;
use std::sync::Arc;

/// Keys that one transaction of a removal deletes.
const STEP: usize = 1024;

impl Volume {
    /// Removes an inode that has no names, is not open, and is not known to the kernel. A failure leaves
    /// it to the next mount.
    pub(super) fn reap_if_unused(&self, inode: &Arc<Inode>) {
        {
            let state = inode.state.lock();
            if state.gone || state.attr.nlink > 0 || self.options.read_only {
                return;
            }
            self.known.add_orphan(inode.ino);
            if state.opens > 0 || self.known.contains(inode.ino) {
                return;
            }
        }
        let _pass = loop {
            match self.gate.try_enter() {
                Some(pass) => break pass,
                None if self.gate.remove_later(inode.ino) => return,
                // Thawed between the two.
                None => {}
            }
        };
        if let Err(error) = self.reap(inode) {
            warn!("inode {} stays until the next mount: {error}", inode.ino);
        }
    }

    /// Frees everything that belongs to an inode, in steps; the orphan key goes with the last.
    fn reap(&self, inode: &Arc<Inode>) -> Result<()> {
        let ino = inode.ino;
        let _staging = inode.stage.lock();
        let mut state = inode.state.lock();
        let used = state.opens > 0 || self.known.contains(ino);
        if state.gone || state.attr.nlink > 0 || used {
            return Ok(());
        }
        let dropped = state.dirty.take(false, self.window());
        self.budget.release(dropped.bytes());
        self.forget_dirty(ino, &mut state);
        state.error = None;
        loop {
            let mut change = Change::new(self);
            let mut cuts = Vec::new();
            self.for_extents(ino, 0, u64::MAX, |extent| {
                cuts.push((extent.offset, extent.end()));
                cuts.len() < STEP
            })?;
            change.replace(ino, &mut state, &cuts, &[])?;
            let mut done = cuts.len() < STEP;
            for tag in [b'Q', b'X', b'L'] {
                done &= change.delete_all(tag, ino, STEP)?;
            }
            if done {
                change.delete(keys::inode(ino));
                change.delete(keys::orphan(ino));
                change.delete(keys::cut(ino));
                change.count_inode(&state.attr, -1);
            }
            change.commit()?;
            if done {
                break;
            }
        }
        state.gone = true;
        drop(state);
        self.known.remove_orphan(ino);
        self.table.remove(ino);
        Ok(())
    }

    /// Finishes truncations and removals that were under way when the volume was last in use. What
    /// cannot be finished, because something is damaged, is left for the next mount.
    pub(super) fn recover(&self) -> Result<()> {
        self.for_each_left(b"C", b"D", |ino, value| {
            let size = Fields::new("truncation", value).varint()?;
            let inode = self.inode(ino)?;
            let mut state = inode.state.lock();
            self.cut(ino, &mut state, size)?;
            let mut change = Change::new(self);
            change.delete(keys::cut(ino));
            change.commit()
        })?;
        self.for_each_left(b"O", b"P", |ino, _| self.reap(&self.inode(ino)?))
    }

    fn for_each_left(
        &self,
        from: &[u8],
        to: &[u8],
        finish: impl Fn(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut from = from.to_vec();
        loop {
            let found = self.store()?.scan(&from, to, STEP)?;
            for (key, value) in &found {
                let ino = keys::ino_of(key)?;
                if let Err(error) = finish(ino, value) {
                    warn!("inode {ino}: finishing what a crash interrupted: {error}");
                }
            }
            match found.last() {
                Some((last, _)) if found.len() == STEP => from = keys::after(last),
                _ => return Ok(()),
            }
        }
    }
}
