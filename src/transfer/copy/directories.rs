//! Directories: what is in them is found, and they are finished when all of it is done.

use std::sync::Arc;

use super::{Copier, Dir, Job, Result};
use crate::transfer::PARTIAL;
use crate::transfer::tree::{CopyError, Meta, Of, SELF, Target, Tree, join};

/// Names that one job takes care of, at most.
const BATCH: usize = 256;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// Makes jobs of the names in a directory.
    pub(super) fn list(&self, dir: Arc<Dir<S, T>>) -> Result<()> {
        let names = self.source.names(&dir.source).of_source();
        let mut names = self.note(&dir.path, names)?.unwrap_or_default();
        // In order, so that a copy that is made again finds the first names of files first, too.
        names.sort_unstable();
        if !dir.is_new {
            self.clean(&dir, &names)?;
        }
        let size = names.len().div_ceil(self.options.threads.max(1) * 4);
        let jobs: Vec<Job<S, T>> = names
            .chunks(size.clamp(1, BATCH))
            .map(|names| Job::Entries(dir.clone(), names.to_vec()))
            .collect();
        self.queue.add(jobs.into_iter());
        self.release(dir)
    }

    /// Removes what an interrupted copy has left in a directory.
    pub(super) fn clean(&self, dir: &Dir<S, T>, names: &[Vec<u8>]) -> Result<()> {
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
                (self.watch.last)();
            }
            let attributes = self.source.attributes(&dir.source, SELF);
            if let Some(attributes) = self.note(&dir.path, attributes.of_source())? {
                let dressed = self.dress(&dir.path, &dir.target, SELF, &dir.meta, &attributes);
                self.note(&dir.path, dressed)?;
            }
            self.count(|report| report.directories += 1);
            next = dir.parent;
        }
        Ok(())
    }

    pub(super) fn directory(
        &self,
        dir: &Arc<Dir<S, T>>,
        name: &[u8],
        path: &[u8],
        meta: Meta,
    ) -> Result<()> {
        let wanted = self.options.wanted(&meta);
        let is_new = match self.existing(dir, name)? {
            None => {
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
        let source = match self.source.open_dir(&dir.source, name) {
            Ok(source) => source,
            Err(error) => {
                // What is known of it is kept, though what is in it cannot be.
                let attributes = self.source.attributes(&dir.source, name);
                let attributes = attributes.unwrap_or_default();
                self.dress(path, &dir.target, name, &meta, &attributes)?;
                return Err(CopyError::Source(error));
            }
        };
        let target = self.target.open_dir(&dir.target, name);
        let child = Arc::new(Dir {
            path: path.to_vec(),
            source,
            target: target.of_target()?,
            parent: Some(dir.clone()),
            meta,
            is_new,
        });
        if self.options.enters(&child.meta, self.device) {
            self.queue.add([Job::List(child)].into_iter());
            return Ok(());
        }
        self.count(|report| report.excluded += 1);
        self.release(child)
    }

    /// A directory that its owner may not write is opened up; it gets its own mode when it is done.
    pub(super) fn make_writable(&self, dir: &Dir<S, T>, name: &[u8], found: &Meta) -> Result<()> {
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
