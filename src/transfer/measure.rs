//! Finds out how much there is to copy.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::CopyOptions;
use super::links::FileId;
use super::tree::{Result, SELF, Tree, join};
use crate::volume::FileKind;

/// A directory that the walk is in.
struct Level<D> {
    path: Vec<u8>,
    dir: D,
    id: FileId,
    /// Names of directories in it that are still to be entered.
    below: Vec<Vec<u8>>,
}

/// Hands the bytes of each file that would be copied to `found`. What cannot be read is the copy's to report.
pub fn measure<S: Tree>(
    source: &S,
    options: &CopyOptions,
    stop: &AtomicBool,
    found: &dyn Fn(u64),
) -> Result<()> {
    let root = source.root()?;
    let id = source.meta(&root, SELF)?.id;
    let mut levels: Vec<Level<S::Dir>> = Vec::new();
    let mut next = Some((Vec::new(), root, id));
    while !stop.load(Relaxed) {
        if let Some((path, dir, id)) = next.take() {
            let below = look(source, options, &path, &dir, stop, found);
            levels.push(Level {
                path,
                dir,
                id,
                below,
            });
        }
        let Some(last) = levels.last_mut() else {
            break;
        };
        let Some(name) = last.below.pop() else {
            levels.pop();
            continue;
        };
        let Ok(dir) = source.open_dir(&last.dir, &name) else {
            continue;
        };
        let path = join(&last.path, &name);
        next = source.meta(&dir, SELF).ok().and_then(|meta| {
            let enters = options.enters(&meta, id.0) && levels.iter().all(|l| l.id != meta.id);
            enters.then_some((path, dir, meta.id))
        });
    }
    Ok(())
}

/// Hands the bytes of the files in a directory to `found`, and returns the names of directories in it.
fn look<S: Tree>(
    source: &S,
    options: &CopyOptions,
    path: &[u8],
    dir: &S::Dir,
    stop: &AtomicBool,
    found: &dyn Fn(u64),
) -> Vec<Vec<u8>> {
    let mut names = source.names(dir).unwrap_or_default();
    names.retain(|name| {
        let meta = source.meta(dir, name);
        let Some(meta) = meta.ok().filter(|_| !stop.load(Relaxed)) else {
            return false;
        };
        if options.leaves_out(&join(path, name), &meta) {
            return false;
        }
        if meta.kind == FileKind::Regular {
            found(meta.size);
        }
        meta.is_dir()
    });
    names
}
