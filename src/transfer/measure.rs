//! Finds out how much there is to copy.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::CopyOptions;
use super::tree::{Result, SELF, Tree, join};
use crate::volume::FileKind;

/// Hands the bytes of each file that would be copied to `found`.
pub fn measure<S: Tree>(
    source: &S,
    options: &CopyOptions,
    stop: &AtomicBool,
    found: &dyn Fn(u64),
) -> Result<()> {
    let root = source.root()?;
    let device = source.meta(&root, SELF)?.id.0;
    let mut open = vec![(Vec::new(), root)];
    while let Some((path, dir)) = open.pop() {
        // What cannot be read is the copy's to report.
        for name in source.names(&dir).unwrap_or_default() {
            if stop.load(Relaxed) {
                return Ok(());
            }
            let Ok(meta) = source.meta(&dir, &name) else {
                continue;
            };
            let path = join(&path, &name);
            if options.leaves_out(&path, &meta) {
                continue;
            }
            match meta.kind {
                FileKind::Regular => found(meta.size),
                FileKind::Directory if options.enters(&meta, device) => {
                    open.extend(source.open_dir(&dir, &name).ok().map(|dir| (path, dir)));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
