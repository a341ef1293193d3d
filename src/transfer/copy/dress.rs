//! Owners, modes, times and extended attributes.

use super::{Copier, Result};
use crate::transfer::attributes::{Attributes, Difference, OWN};
use crate::transfer::tree::{CopyError, Meta, Of, Target, Tree, TreeError};
use crate::volume::FileKind;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// The attributes of an original. What cannot be read of them is noted when its copy is given the others.
    pub(super) fn attributes(&self, dir: &S::Dir, name: &[u8]) -> Attributes {
        Attributes::read(self.source, dir, name, self.options.as_root)
    }

    /// Gives a copy the owner, attributes, mode and times of its original. An attribute that cannot be
    /// read or set is noted, and does not keep the rest from being set.
    pub(super) fn dress(
        &self,
        path: &[u8],
        dir: &T::Dir,
        name: &[u8],
        original: &Meta,
        attributes: &Attributes,
    ) -> Result<()> {
        let wanted = self.options.wanted(original);
        let now = self.target.meta(dir, name).of_target()?;
        let same_owner = (now.uid, now.gid) == (wanted.uid, wanted.gid);
        if !same_owner {
            let owned = self.target.set_owner(dir, name, &wanted);
            owned.of_target()?;
        }
        let there = Attributes::read(self.target, dir, name, self.options.as_root);
        for why in attributes.unread.iter().chain(&there.unread) {
            self.count(|report| report.fail(path, why));
        }
        let difference = Difference::of(attributes, &there);
        for key in &difference.remove {
            let removed = self.target.remove_attribute(dir, name, key);
            self.note_attribute(path, key, removed)?;
        }
        for attribute in &difference.set {
            let set = self.target.set_attribute(dir, name, attribute);
            self.note_attribute(path, &attribute.0, set)?;
        }
        let same_mode = now.perm == wanted.perm || wanted.kind == FileKind::Symlink;
        let same_times = (now.atime, now.mtime) == (wanted.atime, wanted.mtime);
        if !(same_owner && same_mode && same_times && difference.is_empty()) {
            let set = self.target.set_mode_and_times(dir, name, &wanted);
            set.of_target()?;
        }
        Ok(())
    }

    pub(super) fn note_attribute(
        &self,
        path: &[u8],
        key: &[u8],
        outcome: std::result::Result<(), TreeError>,
    ) -> Result<()> {
        let Err(error) = outcome else {
            return Ok(());
        };
        if error.hits_everything() {
            return Err(CopyError::Target(error));
        }
        // What another store says of its own way of storing a file has no meaning here.
        if key.starts_with(OWN) && error.errno() == libc::EPERM {
            return Ok(());
        }
        let name = String::from_utf8_lossy(key).into_owned();
        self.count(|report| report.fail(path, CopyError::Attribute { name, error }));
        Ok(())
    }
}
