//! What is to be done with each name of a directory.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Copier, Dir, Job, Result, Written};
use crate::transfer::links::Claim;
use crate::transfer::tree::{CopyError, Of, Target, Tree, join};
use crate::volume::FileKind;

/// Bytes that are written before files get their names.
const BATCH_BYTES: u64 = 64 << 20;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    pub(super) fn entries(&self, dir: Arc<Dir<S, T>>, names: &[Vec<u8>]) -> Result<()> {
        let mut written = Vec::new();
        let outcome = self.copy_names(&dir, names, &mut written);
        for file in &written {
            // Not committed: the copy was interrupted, or has failed. What cannot be removed now is
            // removed by the next one.
            let _ = self.target.remove(&dir.target, &file.partial);
        }
        outcome?;
        self.release(dir)
    }

    /// Leaves in `written` what has not got its name.
    fn copy_names(
        &self,
        dir: &Arc<Dir<S, T>>,
        names: &[Vec<u8>],
        written: &mut Vec<Written>,
    ) -> Result<()> {
        let mut bytes = 0;
        for name in names {
            if self.watch.stop.load(Relaxed) {
                return Err(CopyError::Interrupted);
            }
            let path = join(&dir.path, name);
            let before = written.len();
            let copied = self.entry(dir, name, &path, written);
            self.note(&path, copied)?;
            bytes += written[before..]
                .iter()
                .map(|file| file.meta.size)
                .sum::<u64>();
            if bytes >= BATCH_BYTES {
                self.commit(dir, written)?;
                bytes = 0;
            }
        }
        self.commit(dir, written)
    }

    /// Copies one name, or begins to.
    fn entry(
        &self,
        dir: &Arc<Dir<S, T>>,
        name: &[u8],
        path: &[u8],
        written: &mut Vec<Written>,
    ) -> Result<()> {
        let meta = self.source.meta(&dir.source, name).of_source()?;
        if self.options.leaves_out(path, &meta) {
            self.count(|report| report.excluded += 1);
            return Ok(());
        }
        if meta.is_dir() {
            // Opened when it is its turn, so that few directories are open.
            let job = Job::Directory(dir.clone(), name.to_vec(), meta);
            self.queue.add([job].into_iter());
            return Ok(());
        }
        let claimed = (meta.nlink > 1).then_some(meta.id);
        if let Some(id) = claimed {
            let waiting = (dir.clone(), name.to_vec());
            match self.links.claim(id, meta.nlink, waiting) {
                Claim::First => {}
                Claim::Waits => return Ok(()),
                Claim::Link(existing) => return self.link(dir, name, &existing),
                Claim::Failed => return Err(CopyError::OtherName),
            }
        }
        let copied = match meta.kind {
            FileKind::Regular => self.regular(dir, name, meta, claimed),
            _ => self.special(dir, name, path, &meta).map(|()| None),
        };
        match copied {
            Ok(Some(file)) => {
                written.push(file);
                Ok(())
            }
            Ok(None) => self.finish_links(claimed, Some(path)),
            Err(error) => {
                self.finish_links(claimed, None)?;
                Err(error)
            }
        }
    }
}
