//! Directories that are open.

use super::convert::{errno, file_attr, file_type};
use super::replies::{ATTR_TTL, GENERATION};
use crate::volume::{DirEntry, DirStream, Stat, Volume, VolumeError};
use fuser::{Errno, FileHandle, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

type OpenDir = Arc<Mutex<DirStream>>;

/// Positions of `.` and `..`.
const DOTS: u64 = 2;

/// The streams of open directories, by handle.
#[derive(Default)]
pub struct Dirs {
    open: Mutex<HashMap<u64, OpenDir>>,
    last: AtomicU64,
}

impl Dirs {
    pub fn open(&self, stream: DirStream) -> FileHandle {
        let handle = self.last.fetch_add(1, Relaxed) + 1;
        let stream = Arc::new(Mutex::new(stream));
        self.open.lock().insert(handle, stream);
        FileHandle(handle)
    }

    pub fn close(&self, handle: FileHandle) {
        self.open.lock().remove(&handle.0);
    }

    fn get(&self, handle: FileHandle) -> Option<OpenDir> {
        self.open.lock().get(&handle.0).cloned()
    }

    /// Answers with names from position `offset` on, as many as fit.
    pub fn read(
        &self,
        volume: &Volume,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(dir) = self.get(handle) else {
            return reply.error(Errno::EBADF);
        };
        let mut stream = dir.lock();
        begin(volume, ino, offset, &mut stream);
        for position in offset.. {
            match stream.entry(volume, position as usize) {
                Ok(Some(entry)) => {
                    let (ino, kind) = (INodeNo(entry.ino), file_type(entry.kind));
                    if reply.add(ino, position + 1, kind, OsStr::from_bytes(&entry.name)) {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => return reply.error(errno("readdir", &error)),
            }
        }
        reply.ok();
    }

    /// The same with attributes, after which the kernel knows the inodes as if it had looked them up.
    pub fn read_plus(
        &self,
        volume: &Volume,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(dir) = self.get(handle) else {
            return reply.error(Errno::EBADF);
        };
        let mut stream = dir.lock();
        begin(volume, ino, offset, &mut stream);
        for position in offset.. {
            let entry = match stream.entry(volume, position as usize) {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => return reply.error(errno("readdirplus", &error)),
            };
            let stat = match look_up(volume, ino, position, entry) {
                Ok(stat) => stat,
                Err(VolumeError::NotFound | VolumeError::Stale(_)) => continue,
                Err(error) => return reply.error(errno("readdirplus", &error)),
            };
            let counts = position >= DOTS;
            if counts {
                volume.remember(stat.ino);
            }
            let full = reply.add(
                INodeNo(stat.ino),
                position + 1,
                OsStr::from_bytes(&entry.name),
                &ATTR_TTL,
                &file_attr(&stat),
                GENERATION,
            );
            if full {
                if counts {
                    volume.forget(stat.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }
}

fn begin(volume: &Volume, ino: INodeNo, offset: u64, stream: &mut DirStream) {
    if offset == 0 {
        stream.rewind();
        volume.accessed(ino.0);
    }
}

/// What a name stands for now. The stream may have read it a while ago, and the kernel would go on
/// believing in a name that has been removed or given away since.
fn look_up(
    volume: &Volume,
    dir: INodeNo,
    position: u64,
    entry: &DirEntry,
) -> Result<Stat, VolumeError> {
    match position < DOTS {
        true => volume.getattr(entry.ino),
        false => volume.lookup(dir.0, &entry.name),
    }
}
