//! Coding again the data of files and trees, settled or not, under the model and the policies of now.

use super::scrub_block::Anchors;
use super::{FileKind, Result, Volume, VolumeError, keys};
use crate::settle::{Again, Extent, HostResult, Recoded, Step, Window};
use crate::store::BlockId;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// Names of a directory that are read at a time.
const PAGE: usize = 256;
/// Files that one step looks at, so that it ends soon even where they are empty.
const FILES: usize = 4096;
/// Bytes that one step hands over: few enough that new data does not wait long for the next.
const BYTES: u64 = 4 << 20;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);
/// Decoded blocks that each encoding thread keeps: small files follow each other in their block.
const BLOCKS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// What decoding past the cache keeps between blocks.
pub struct PastCache {
    anchors: Anchors,
    blocks: LruCache<BlockId, Arc<Vec<u8>>>,
}

impl Default for PastCache {
    fn default() -> PastCache {
        PastCache {
            anchors: Anchors::default(),
            blocks: LruCache::new(BLOCKS),
        }
    }
}

/// One for each thread that decodes, while none does.
pub type PastCaches = Mutex<Vec<PastCache>>;

/// A place in a tree that is walked.
enum Place {
    Inode(u64),
    /// The names of a directory from a key on.
    Names(u64, Vec<u8>),
}

/// Goes over the regular files of some trees, each once.
struct Walk {
    todo: Vec<Place>,
    roots: HashSet<u64>,
    /// What can be met more than once: roots, files with several names, and directories, because one root
    /// may lie in another one, and in a damaged tree a directory in itself.
    met: HashSet<u64>,
}

impl Walk {
    fn new(roots: &[u64]) -> Walk {
        Walk {
            todo: roots.iter().rev().copied().map(Place::Inode).collect(),
            roots: roots.iter().copied().collect(),
            met: HashSet::new(),
        }
    }

    /// The next file and its size.
    fn next(&mut self, volume: &Volume) -> Result<Option<(u64, u64)>> {
        while let Some(place) = self.todo.pop() {
            match place {
                Place::Names(dir, from) => self.read_names(volume, dir, &from)?,
                Place::Inode(ino) => {
                    let attr = match volume.getattr(ino) {
                        Ok(stat) => stat.attr,
                        // Removed meanwhile.
                        Err(VolumeError::Stale(_)) => continue,
                        Err(error) => return Err(error),
                    };
                    let once = attr.nlink < 2 && !attr.is_dir() && !self.roots.contains(&ino);
                    if !once && !self.met.insert(ino) {
                        continue;
                    }
                    match attr.kind {
                        FileKind::Directory => {
                            let (from, _) = keys::range_of(b'D', ino);
                            self.todo.push(Place::Names(ino, from));
                        }
                        FileKind::Regular => return Ok(Some((ino, attr.size))),
                        _ => {}
                    }
                }
            }
        }
        Ok(None)
    }

    fn read_names(&mut self, volume: &Volume, dir: u64, from: &[u8]) -> Result<()> {
        let (_, to) = keys::range_of(b'D', dir);
        let page = volume.store()?.scan(from, &to, PAGE)?;
        if let Some((last, _)) = page.last().filter(|_| page.len() == PAGE) {
            self.todo.push(Place::Names(dir, keys::after(last)));
        }
        for (_, value) in page.iter().rev() {
            let entry = super::namespace::Dirent::decode(value)?;
            if matches!(entry.kind, FileKind::Regular | FileKind::Directory) {
                self.todo.push(Place::Inode(entry.ino));
            }
        }
        Ok(())
    }
}

/// The windows of all files of some trees.
struct Windows {
    walk: Walk,
    /// A file that is not done: its inode, where it goes on, and its size.
    file: Option<(u64, u64, u64)>,
    passed: u64,
}

impl Windows {
    fn next(&mut self, volume: &Volume, limit: usize) -> Result<Step> {
        let (mut step, mut bytes) = (Step::default(), 0);
        for _ in 0..FILES {
            if step.windows.len() >= limit || bytes >= BYTES {
                break;
            }
            let (ino, from, size) = match self.file.take() {
                Some(file) => file,
                None => match self.walk.next(volume)? {
                    Some((ino, size)) => (ino, 0, size),
                    None => {
                        step.last = true;
                        break;
                    }
                },
            };
            let window = volume.window();
            let room = (limit - step.windows.len()).min(((BYTES - bytes) / window).max(1) as usize);
            let before = step.windows.len();
            let next = volume.windows_of(ino, from, room, &mut step.windows)?;
            bytes += (step.windows.len() - before) as u64 * window.min(size);
            match next {
                Some(next) => self.file = Some((ino, next, size)),
                None => self.passed += size,
            }
        }
        step.passed = self.passed + self.file.map_or(0, |(_, from, size)| from.min(size));
        Ok(step)
    }
}

impl Volume {
    /// Codes all data of these files and directories anew in the background, and waits for it unless
    /// `progress` is `None`. It gets bytes of files that lie behind, and of all of them.
    pub fn settle_again(
        self: &Arc<Self>,
        inos: &[u64],
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<Recoded> {
        self.writable()?;
        self.sync_now()?;
        let (mut walk, mut total) = (Walk::new(inos), 0);
        while let Some((_, size)) = walk.next(self)? {
            if self.is_stopping() {
                return Err(VolumeError::Closed);
            }
            total += size;
        }
        let mut windows = Windows {
            walk: Walk::new(inos),
            file: None,
            passed: 0,
        };
        let volume = Arc::downgrade(self);
        let source = move |limit| -> HostResult<Step> {
            let volume = volume.upgrade().ok_or("the volume is closed")?;
            windows.next(&volume, limit).map_err(|e| e.to_string())
        };
        let again = Again::new(total, Box::new(source));
        self.settler.code_again(again.clone());
        if let Some(progress) = progress {
            while !again.wait(TICK) {
                if self.is_stopping() {
                    return Err(VolumeError::Closed);
                }
                progress(again.recoded().passed, total);
            }
        }
        Ok(again.recoded())
    }

    /// Appends at most `limit` windows that hold data of a file, from the one at `from` on. Returns where
    /// the file goes on, if it does.
    fn windows_of(
        &self,
        ino: u64,
        from: u64,
        limit: usize,
        windows: &mut Vec<Window>,
    ) -> Result<Option<u64>> {
        let (size, before) = (self.window(), windows.len());
        let mut next = None;
        self.for_extents(ino, from, u64::MAX, |extent| {
            let mut offset = extent.offset.max(from);
            offset -= offset % size;
            while offset < extent.end() {
                let window = Window { ino, offset };
                offset = offset.saturating_add(size);
                if extent.is_lost() || windows.last() == Some(&window) {
                    continue;
                }
                if windows.len() - before >= limit {
                    next = Some(window.offset);
                    return false;
                }
                windows.push(window);
            }
            true
        })?;
        Ok(next)
    }

    /// The bytes that some extents show, one after the other, decoded past the cache: readers neither wait
    /// for it nor lose what they have in the cache.
    pub(super) fn read_past_cache(&self, extents: &[Extent]) -> HostResult<Vec<u8>> {
        let mut keep = self.past_caches.lock().pop().unwrap_or_default();
        let raw = self.read_with(&mut keep, extents);
        let mut idle = self.past_caches.lock();
        if idle.len() < self.options.threads {
            idle.push(keep);
        }
        raw
    }

    fn read_with(&self, keep: &mut PastCache, extents: &[Extent]) -> HostResult<Vec<u8>> {
        let mut out = Vec::new();
        for extent in extents {
            let known = keep.blocks.get(&extent.block).cloned();
            let raw = match known {
                Some(raw) => raw,
                None => {
                    let info = self.store.block_info(extent.block);
                    let info = info.map_err(|e| e.to_string())?;
                    let read = |block| self.store.read_block(block);
                    let raw = self
                        .raw_of_block(extent.block, &info, &mut keep.anchors, &read)
                        .map_err(|why| format!("block {}: {why}", extent.block))?;
                    let raw = Arc::new(raw);
                    keep.blocks.put(extent.block, raw.clone());
                    raw
                }
            };
            let from = extent.skip as usize;
            let part = raw.get(from..from + extent.len as usize);
            let part = part.ok_or_else(|| format!("block {} is too short", extent.block))?;
            out.extend_from_slice(part);
        }
        Ok(out)
    }

    /// Lets go of what decoding past the cache has kept.
    pub(super) fn drop_past_caches(&self) {
        self.past_caches.lock().clear();
    }
}
