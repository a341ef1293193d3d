//! Reading directories.

use super::attr::FileKind;
use super::keys;
use super::namespace::{Dirent, check_name};
use super::{Result, Volume, VolumeError};

/// Entries that one scan reads.
const PAGE: usize = 1024;

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: FileKind,
}

/// An open directory. Entries keep their positions until it is rewound, whatever happens to the
/// directory meanwhile; what is not read yet is read when it is asked for.
#[derive(Debug)]
pub struct DirStream {
    ino: u64,
    entries: Vec<DirEntry>,
    complete: bool,
}

impl DirStream {
    /// The entry at a position, or `None` at the end. Position 0 rewinds.
    pub fn entry(&mut self, volume: &Volume, position: usize) -> Result<Option<&DirEntry>> {
        if self.entries.is_empty() && !self.complete {
            self.begin(volume)?;
        }
        while position >= self.entries.len() && !self.complete {
            self.load_page(volume)?;
        }
        Ok(self.entries.get(position))
    }

    /// Forgets what was read, so that the next entry is read afresh.
    pub fn rewind(&mut self) {
        self.entries.clear();
        self.complete = false;
    }

    fn begin(&mut self, volume: &Volume) -> Result<()> {
        let parent = volume.getattr(self.ino)?.attr.parent;
        for (name, ino) in [(".", self.ino), ("..", parent)] {
            self.entries.push(DirEntry {
                name: name.into(),
                ino,
                kind: FileKind::Directory,
            });
        }
        Ok(())
    }

    fn load_page(&mut self, volume: &Volume) -> Result<()> {
        let (start, end) = keys::range_of(b'D', self.ino);
        let from = match self.entries.get(2..).and_then(<[_]>::last) {
            Some(last) => keys::after(&keys::dirent(self.ino, &last.name)),
            None => start,
        };
        let page = volume.store()?.scan(&from, &end, PAGE)?;
        self.complete = page.len() < PAGE;
        for (key, value) in page {
            let entry = Dirent::decode(&value)?;
            let name = key.get(9..).unwrap_or_default();
            // Whoever copies the directory elsewhere makes a path of it.
            check_name(name).map_err(|_| keys::damaged("directory entry", "bad name"))?;
            self.entries.push(DirEntry {
                name: name.to_vec(),
                ino: entry.ino,
                kind: entry.kind,
            });
        }
        Ok(())
    }
}

impl Volume {
    pub fn open_dir(&self, ino: u64) -> Result<DirStream> {
        if !self.getattr(ino)?.attr.is_dir() {
            return Err(VolumeError::NotDirectory);
        }
        Ok(DirStream {
            ino,
            entries: Vec::new(),
            complete: false,
        })
    }

    /// All entries of a directory but `.` and `..`; for tests and small directories.
    pub fn list(&self, ino: u64) -> Result<Vec<DirEntry>> {
        let mut stream = self.open_dir(ino)?;
        let mut entries = Vec::new();
        let mut position = 2;
        while let Some(entry) = stream.entry(self, position)? {
            entries.push(entry.clone());
            position += 1;
        }
        Ok(entries)
    }
}
