//! Symlinks, fifos, sockets and devices.

use super::{Copier, Dir, Result, partial_name};
use crate::transfer::tree::{CopyError, Meta, Of, Target, Tree};
use crate::volume::FileKind;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// Makes a symlink, fifo, socket or device, unless it is there.
    pub(super) fn special(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        path: &[u8],
        meta: &Meta,
    ) -> Result<()> {
        let is_device = matches!(meta.kind, FileKind::CharDevice | FileKind::BlockDevice);
        if is_device && !self.options.as_root {
            return Err(CopyError::Device);
        }
        let target = match meta.kind {
            FileKind::Symlink => {
                let target = self.source.symlink_target(&dir.source, name);
                Some(target.of_source()?)
            }
            _ => None,
        };
        let attributes = self.attributes(&dir.source, name);
        let found = self.existing(dir, name)?;
        if found.as_ref().is_some_and(Meta::is_dir) {
            return Err(CopyError::InTheWay("a directory"));
        }
        let same = |found: &Meta| {
            let target_there = || self.target.symlink_target(&dir.target, name).ok();
            found.kind == meta.kind
                && self.is_linked_alike(meta, found)
                && (!is_device || found.rdev == meta.rdev)
                && (target.is_none() || target_there() == target)
        };
        if found.as_ref().is_some_and(same) {
            self.dress(path, &dir.target, name, meta, &attributes)?;
        } else {
            let partial = partial_name();
            let made = self.make_special(dir, &partial, meta, target.as_deref());
            let named = made
                .and_then(|()| self.dress(path, &dir.target, &partial, meta, &attributes))
                .and_then(|()| {
                    let renamed = self.target.rename(&dir.target, &partial, name);
                    renamed.of_target()
                });
            if named.is_err() {
                let _ = self.target.remove(&dir.target, &partial);
            }
            named?;
        }
        self.count(|report| match meta.kind {
            FileKind::Symlink => report.symlinks += 1,
            _ => report.special += 1,
        });
        Ok(())
    }

    pub(super) fn make_special(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        meta: &Meta,
        target: Option<&[u8]>,
    ) -> Result<()> {
        let wanted = self.options.wanted(meta);
        let made = match target {
            Some(target) => self.target.make_symlink(&dir.target, name, target, &wanted),
            None => self.target.make_node(&dir.target, name, &wanted),
        };
        made.of_target()
    }
}
