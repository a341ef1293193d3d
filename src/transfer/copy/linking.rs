//! Further names of files with several.

use super::{Copier, Dir, Job, Result, partial_name};
use crate::transfer::links::FileId;
use crate::transfer::tree::{CopyError, Meta, Of, Target, Tree, join};

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// Whether what is there can have the same names as the original.
    pub(super) fn is_linked_alike(&self, meta: &Meta, found: &Meta) -> bool {
        found.nlink == 1 || meta.nlink > 1 && self.links.keep(found.id, meta.id)
    }

    /// What a name that was the first of a file with several has become is another file now: the other names
    /// are looked at afresh.
    pub(super) fn begin_links_again(&self, id: FileId) {
        let waiting = self.links.forget(id).into_iter();
        let jobs: Vec<Job<S, T>> = waiting
            .map(|(dir, name)| Job::Entries(dir, vec![name]))
            .collect();
        self.queue.add(jobs.into_iter());
    }

    /// Links the names that have waited for a file, which is complete at `path` or has failed.
    pub(super) fn finish_links(&self, id: Option<FileId>, path: Option<&[u8]>) -> Result<()> {
        let Some(id) = id else {
            return Ok(());
        };
        for (dir, name) in self.links.finish(id, path) {
            let linked = match path {
                Some(existing) => self.link(&dir, &name, existing),
                None => Err(CopyError::OtherName),
            };
            self.note(&join(&dir.path, &name), linked)?;
            self.release(dir)?;
        }
        Ok(())
    }

    /// Makes `name` a name of the copy at `existing`, unless it is.
    pub(super) fn link(&self, dir: &Dir<S, T>, name: &[u8], existing: &[u8]) -> Result<()> {
        let (from, first) = self.target.locate(existing).of_target()?;
        let file = self.target.meta(&from, &first).of_target()?;
        let link = |new: &[u8]| {
            let linked = self.target.link(&from, &first, &dir.target, new);
            linked.of_target()
        };
        match self.existing(dir, name)? {
            None => link(name)?,
            Some(found) if found.id == file.id => {}
            Some(found) if found.is_dir() => return Err(CopyError::InTheWay("a directory")),
            Some(_) => {
                let partial = partial_name();
                link(&partial)?;
                let renamed = self.target.rename(&dir.target, &partial, name);
                if let Err(error) = renamed {
                    let _ = self.target.remove(&dir.target, &partial);
                    return Err(CopyError::Target(error));
                }
            }
        }
        self.count(|report| report.hard_links += 1);
        Ok(())
    }
}
