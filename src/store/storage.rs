//! Everything the store asks of the storage under it, as one trait, and its implementation on a real directory.
//!
//! All paths are relative to the root of the store, with `/` between their parts. The store goes
//! through this trait for every byte of the log, so that tests can put [`super::SimStorage`] there
//! and fail, tear or lose any operation.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: String,
    pub is_dir: bool,
}

/// Free and total bytes of the file system that holds the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes an unprivileged process can still allocate.
    pub available: u64,
    pub total: u64,
}

/// Holds the lock on a store until it is dropped.
pub trait LockGuard: Send + Sync {}

/// An open file. All methods are safe to call from several threads.
pub trait StorageFile: Send + Sync {
    /// Fills as much of `buf` as the file has from `offset` on; fewer bytes only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `parts`, one after the other, from `offset` on. On error any part may be on disk.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Makes the contents and the length durable, not the name (see [`Storage::sync_dir`]).
    fn sync_data(&self) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
    /// Allocates disk space for the first `len` bytes without changing the length of the file.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Drops what the system remembers of a range, as far as it is on the disk already: the next read
    /// asks the disk. Does nothing where that cannot be asked for.
    fn uncache(&self, _offset: u64, _len: u64) {}
}

/// A directory tree that a store lives in.
pub trait Storage: Send + Sync {
    fn open(&self, path: &str, writable: bool) -> io::Result<Arc<dyn StorageFile>>;
    /// Creates a file that must not exist yet.
    fn create(&self, path: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Removes a directory and everything in it; no error if it does not exist.
    fn remove_tree(&self, path: &str) -> io::Result<()>;
    /// Creates a directory and its missing parents; no error if it exists.
    fn mkdir(&self, path: &str) -> io::Result<()>;
    /// The entries of a directory by name. The empty path is the root.
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Bytes allocated on disk for a file, or for a directory and everything in it; 0 if it does not exist.
    fn allocated(&self, path: &str) -> io::Result<u64>;
    fn free_space(&self) -> io::Result<Space>;
    /// Takes the lock of the store: exclusive for a writer, shared for readers. `None`: somebody else has it.
    fn lock(&self, exclusive: bool) -> io::Result<Option<Box<dyn LockGuard>>>;
    /// Where `path` lies in the host's file system, if it does: the place for sled, which opens files itself.
    fn local_path(&self, path: &str) -> Option<PathBuf>;
    /// The root as shown in messages.
    fn describe(&self) -> String;
}

/// A directory of the host's file system.
pub struct RealStorage {
    root: PathBuf,
}

/// Name of the lock under the root.
pub const LOCK_FILE: &str = "lock";

impl RealStorage {
    /// `root` need not exist yet: opening a store with `create` makes it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        RealStorage { root: root.into() }
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        }
    }
}

struct FileLock {
    /// The lock is released when the descriptor is closed.
    _file: File,
    /// Of a writer: the directory, which readers lock where there is no lock file.
    _root: Option<File>,
}

impl LockGuard for FileLock {}

fn allocated_in(path: &Path) -> io::Result<u64> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut total = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            total += allocated_in(&entry?.path())?;
        }
    }
    Ok(total)
}

impl Storage for RealStorage {
    fn open(&self, path: &str, writable: bool) -> io::Result<Arc<dyn StorageFile>> {
        // A fifo in the place of a file must not make us wait for its other end.
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_NONBLOCK)
            .open(self.path(path))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(path))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))
    }

    fn remove_tree(&self, path: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.path(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => self.unlink(path),
            other => other,
        }
    }

    fn mkdir(&self, path: &str) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.path(path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry {
                name,
                is_dir: entry.file_type()?.is_dir(),
            });
        }
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        File::open(self.path(path))?.sync_all()
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.path(path).try_exists()
    }

    fn allocated(&self, path: &str) -> io::Result<u64> {
        allocated_in(&self.path(path))
    }

    fn free_space(&self) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(Space {
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self, exclusive: bool) -> io::Result<Option<Box<dyn LockGuard>>> {
        let path = self.path(LOCK_FILE);
        let opened = if exclusive {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
        } else {
            // A reader writes nothing, so a store that never had a writer here (a read-only copy) has no lock file.
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(libc::O_NONBLOCK);
            options.open(&path).or_else(|_| File::open(&self.root))
        };
        let file = opened?;
        let operation = if exclusive {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let root = match exclusive {
            true => Some(File::open(&self.root)?),
            false => None,
        };
        match root.as_ref().map(|root| rustix::fs::flock(root, operation)) {
            Some(Err(rustix::io::Errno::WOULDBLOCK)) => return Ok(None),
            // Not every file system locks directories; then readers cannot have done so, either.
            Some(Err(e)) => log::debug!("flock {}: {e}", self.root.display()),
            Some(Ok(())) | None => {}
        }
        Ok(Some(Box::new(FileLock {
            _file: file,
            _root: root,
        })))
    }

    fn local_path(&self, path: &str) -> Option<PathBuf> {
        Some(self.path(path))
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }
}

struct RealFile {
    file: File,
}

impl StorageFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        let mut at = offset;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(&self.file, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(
            &self.file,
            FallocateFlags::KEEP_SIZE,
            0,
            len,
        )?)
    }

    fn uncache(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        if let Err(e) = len.map_or(Ok(()), |len| {
            rustix::fs::fadvise(&self.file, offset, Some(len), Advice::DontNeed)
        }) {
            log::debug!("fadvise: {e}");
        }
    }
}
