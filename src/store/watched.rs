//! A storage that remembers whether the disk failed to read. What a disk cannot read now may be read later, or
//! from a copy of the disk, so nobody may take it for lost.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::storage::{Entry, LockGuard, Space, Storage, StorageFile};

type FirstFailure = Arc<Mutex<Option<String>>>;

/// Passes everything on to another storage, and notes the first read that the disk failed.
pub struct WatchedStorage {
    inner: Arc<dyn Storage>,
    failure: FirstFailure,
}

struct WatchedFile {
    inner: Arc<dyn StorageFile>,
    path: String,
    failure: FirstFailure,
}

fn note<T>(failure: &FirstFailure, path: &str, result: io::Result<T>) -> io::Result<T> {
    if let Err(error) = &result
        && error.raw_os_error() == Some(libc::EIO)
    {
        let place = || format!("{path}: {error}");
        failure.lock().get_or_insert_with(place);
    }
    result
}

impl WatchedStorage {
    pub fn new(inner: Arc<dyn Storage>) -> WatchedStorage {
        WatchedStorage {
            inner,
            failure: FirstFailure::default(),
        }
    }

    /// The first file that the disk failed to read, and how.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    fn watch(
        &self,
        path: &str,
        file: io::Result<Arc<dyn StorageFile>>,
    ) -> io::Result<Arc<dyn StorageFile>> {
        let inner = note(&self.failure, path, file)?;
        Ok(Arc::new(WatchedFile {
            inner,
            path: path.to_owned(),
            failure: self.failure.clone(),
        }))
    }
}

impl StorageFile for WatchedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        note(&self.failure, &self.path, self.inner.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.write_at(offset, parts)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(len)
    }

    fn uncache(&self, offset: u64, len: u64) {
        self.inner.uncache(offset, len);
    }
}

impl Storage for WatchedStorage {
    fn open(&self, path: &str, writable: bool) -> io::Result<Arc<dyn StorageFile>> {
        self.watch(path, self.inner.open(path, writable))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.watch(path, self.inner.create(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.inner.unlink(path)
    }

    fn remove_tree(&self, path: &str) -> io::Result<()> {
        self.inner.remove_tree(path)
    }

    fn mkdir(&self, path: &str) -> io::Result<()> {
        self.inner.mkdir(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        note(&self.failure, path, self.inner.list(path))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        note(&self.failure, path, self.inner.exists(path))
    }

    fn allocated(&self, path: &str) -> io::Result<u64> {
        self.inner.allocated(path)
    }

    fn free_space(&self) -> io::Result<Space> {
        self.inner.free_space()
    }

    fn lock(&self, exclusive: bool) -> io::Result<Option<Box<dyn LockGuard>>> {
        self.inner.lock(exclusive)
    }

    fn local_path(&self, path: &str) -> Option<PathBuf> {
        self.inner.local_path(path)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
