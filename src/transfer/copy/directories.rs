//! Directories: what is in them is found, and they are finished when all of it is done.

use std::sync::Arc;

use super::{Copier, Dir, Job, Result};
use crate::transfer::PARTIAL;
use crate::transfer::tree::{CopyError, Meta, Of, SELF, Target, Tree, join};

/// Names that one job takes care of, at most.
const BATCH: usize = 256;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// Makes a directory, or takes the one that is there, and makes jobs of the names in it.
    pub(super) fn directory(
        &self,
        dir: &Arc<Dir<S, T>>,
        name: &[u8],
        path: &[u8],
        meta: Meta,
    ) -> Result<()> {
        let opened = self.source.open_dir(&dir.source, name);
        let meta = match &opened {
            Ok(source) => self.source.meta(source, SELF).of_source()?,
            Err(_) => meta,
        };
        if dir.is_within(meta.id) {
            return Err(CopyError::Loop);
        }
        let is_new = match self.existing(dir, name)? {
            None => {
                let wanted = self.options.wanted(&meta);
                let made = self.target.make_dir(&dir.target, name, &wanted);
                made.of_target()?;
                true
            }
            Some(found) if found.is_dir() => {
                self.make_writable(dir, name, &found)?;
                false
            }
            Some(_) => return Err(CopyError::InTheWay("a file")),
        };
        let source = match opened {
            Ok(source) => source,
            Err(error) => {
                // What is known of it is kept, though what is in it cannot be.
                let attributes = self.attributes(&dir.source, name);
                self.dress(path, &dir.target, name, &meta, &attributes)?;
                return Err(CopyError::Source(error));
            }
        };
        let child = Arc::new(Dir {
            path: path.to_vec(),
            source,
            target: self.target.open_dir(&dir.target, name).of_target()?,
            parent: Some(dir.clone()),
            meta,
            is_new,
        });
        if self.options.enters(&child.meta, self.device) {
            return self.list(child);
        }
        self.count(|report| report.excluded += 1);
        self.release(child)
    }

    /// Makes jobs of the names in a directory.
    pub(super) fn list(&self, dir: Arc<Dir<S, T>>) -> Result<()> {
        let names = self.source.names(&dir.source).of_source();
        let mut names = self.note(&dir.path, names)?.unwrap_or_default();
        names.retain(|name| self.is_name(&dir, name));
        // In order, so that a copy that is made again finds the first names of files first, too.
        names.sort_unstable();
        if !dir.is_new && self.note(&dir.path, self.clean(&dir, &names))?.is_none() {
            return self.release(dir);
        }
        let size = names.len().div_ceil(self.options.threads.max(1) * 4);
        let jobs: Vec<Job<S, T>> = names
            .chunks(size.clamp(1, BATCH))
            .map(|names| Job::Entries(dir.clone(), names.to_vec()))
            .collect();
        self.queue.add(jobs.into_iter());
        self.release(dir)
    }

    /// Whether this can be the name of something in a directory, and of nothing elsewhere; noted if not.
    fn is_name(&self, dir: &Dir<S, T>, name: &[u8]) -> bool {
        let good = !matches!(name, b"" | b"." | b"..") && !name.iter().any(|b| b"/\0".contains(b));
        if !good {
            self.count(|report| report.fail(&join(&dir.path, name), CopyError::Name));
        }
        good
    }

    /// Removes what an interrupted copy has left in a directory.
    fn clean(&self, dir: &Dir<S, T>, names: &[Vec<u8>]) -> Result<()> {
        for name in self.target.names(&dir.target).of_target()? {
            if name.starts_with(PARTIAL) && names.binary_search(&name).is_err() {
                let removed = self.target.remove(&dir.target, &name);
                self.note(&join(&dir.path, &name), removed.of_target())?;
            }
        }
        Ok(())
    }

    /// Gives up a reference to a directory, and finishes it if it was the last.
    pub(super) fn release(&self, dir: Arc<Dir<S, T>>) -> Result<()> {
        let mut next = Some(dir);
        while let Some(dir) = next.take().and_then(Arc::into_inner) {
            if dir.parent.is_none() {
                // Whatever `last` does says that all else is there.
                self.target.barrier().of_target()?;
                (self.watch.last)();
            }
            let attributes = self.attributes(&dir.source, SELF);
            let dressed = self.dress(&dir.path, &dir.target, SELF, &dir.meta, &attributes);
            self.note(&dir.path, dressed)?;
            self.count(|report| report.directories += 1);
            next = dir.parent;
        }
        Ok(())
    }

    /// A directory that its owner may not write is opened up; it gets its own mode when it is done.
    fn make_writable(&self, dir: &Dir<S, T>, name: &[u8], found: &Meta) -> Result<()> {
        if self.options.as_root || found.perm & 0o700 == 0o700 {
            return Ok(());
        }
        let open = Meta {
            perm: found.perm | 0o700,
            ..found.clone()
        };
        let changed = self.target.set_mode_and_times(&dir.target, name, &open);
        changed.of_target()
    }
}
