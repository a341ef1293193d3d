//! What a tree of files must offer to be copied from, and to be copied to.

use std::io;

use thiserror::Error;

use crate::volume::{FileKind, Timestamp, VolumeError};

/// The name under which a directory itself is meant.
pub const SELF: &[u8] = b".";

/// Why something in a tree could not be read or changed.
#[derive(Debug, Error)]
pub enum TreeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<rustix::io::Errno> for TreeError {
    fn from(errno: rustix::io::Errno) -> TreeError {
        TreeError::Io(errno.into())
    }
}

impl TreeError {
    pub fn errno(&self) -> i32 {
        match self {
            TreeError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
            TreeError::Volume(error) => error.errno(),
        }
    }

    pub fn is_missing(&self) -> bool {
        self.errno() == libc::ENOENT
    }

    /// True if no other file could be written either.
    pub fn hits_everything(&self) -> bool {
        let stopped = matches!(
            self,
            TreeError::Volume(VolumeError::Store { .. } | VolumeError::Closed)
        );
        stopped || matches!(self.errno(), libc::ENOSPC | libc::EDQUOT | libc::EROFS)
    }
}

pub type Result<T> = std::result::Result<T, TreeError>;

/// Why something was not copied.
#[derive(Debug, Error)]
pub enum CopyError {
    #[error("cannot read: {0}")]
    Source(#[source] TreeError),
    #[error("cannot write: {0}")]
    Target(#[source] TreeError),
    #[error("cannot write attribute {name}: {error}")]
    Attribute { name: String, error: TreeError },
    #[error("cannot make it durable: {0}")]
    Sync(#[source] TreeError),
    #[error("this cannot be the name of a file")]
    Name,
    #[error("it is a directory that it lies in")]
    Loop,
    #[error("it changed while it was read")]
    Changed,
    #[error("the copy reads back with other contents than were written")]
    Different,
    #[error("{0} of the same name is in its place")]
    InTheWay(&'static str),
    #[error("only root can make devices")]
    Device,
    #[error("another name of it could not be copied")]
    OtherName,
    #[error("interrupted")]
    Interrupted,
}

impl CopyError {
    /// True if going on makes no sense.
    pub fn is_fatal(&self) -> bool {
        match self {
            CopyError::Interrupted => true,
            CopyError::Target(error) => error.hits_everything(),
            _ => false,
        }
    }
}

/// Says which of two trees an error is of.
pub(super) trait Of<T> {
    fn of_source(self) -> std::result::Result<T, CopyError>;
    fn of_target(self) -> std::result::Result<T, CopyError>;
}

impl<T> Of<T> for Result<T> {
    fn of_source(self) -> std::result::Result<T, CopyError> {
        self.map_err(CopyError::Source)
    }

    fn of_target(self) -> std::result::Result<T, CopyError> {
        self.map_err(CopyError::Target)
    }
}

/// The path of a name in the directory at `path`, which is empty for the root.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        path => [path, b"/", name].concat(),
    }
}

/// What `stat` says of something, as far as copies care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky.
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub nlink: u64,
    /// Device and inode number: what names of one file have in common.
    pub id: (u64, u64),
    /// Major and minor number of a device.
    pub rdev: (u32, u32),
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Meta {
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub fn is_regular(&self) -> bool {
        self.kind == FileKind::Regular
    }

    /// Whether the contents can have changed between two looks at a file.
    pub fn is_as_before(&self, before: &Meta) -> bool {
        (self.size, self.mtime, self.ctime) == (before.size, before.mtime, before.ctime)
    }
}

/// An extended attribute: name and value.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// A tree that can be read. Names are single components, or [`SELF`].
pub trait Tree: Sync {
    /// An open directory.
    type Dir: Send + Sync;

    fn root(&self) -> Result<Self::Dir>;
    /// All names in a directory but `.` and `..`.
    fn names(&self, dir: &Self::Dir) -> Result<Vec<Vec<u8>>>;
    /// Symlinks are not followed.
    fn meta(&self, dir: &Self::Dir, name: &[u8]) -> Result<Meta>;
    fn open_dir(&self, dir: &Self::Dir, name: &[u8]) -> Result<Self::Dir>;
    fn symlink_target(&self, dir: &Self::Dir, name: &[u8]) -> Result<Vec<u8>>;
    /// Names of all extended attributes; none where there is no such thing.
    fn attribute_names(&self, dir: &Self::Dir, name: &[u8]) -> Result<Vec<Vec<u8>>>;
    /// The value of an attribute. None: it is gone, or hidden.
    fn attribute(&self, dir: &Self::Dir, name: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>>;
    /// Opens a regular file. Reading it leaves its access time alone, where that can be had.
    fn open(&self, dir: &Self::Dir, name: &[u8]) -> Result<Box<dyn Contents + '_>>;

    /// The directory of a path under the root, and the name in it.
    fn locate(&self, path: &[u8]) -> Result<(Self::Dir, Vec<u8>)> {
        let mut dir = self.root()?;
        let mut parts = path.split(|&byte| byte == b'/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return Ok((dir, part.to_vec()));
            }
            dir = self.open_dir(&dir, part)?;
        }
        Ok((dir, SELF.to_vec()))
    }
}

/// An open regular file.
pub trait Contents: Send {
    fn meta(&self) -> Result<Meta>;
    /// The first range of data (start, end) that ends behind `offset`; None if only a hole follows.
    fn data_from(&self, offset: u64) -> Result<Option<(u64, u64)>>;
    /// Fills as much of `buf` as the file has from `offset` on.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
}

/// A tree that can be written. What is made belongs to the owner in `wanted`, if that can be had, and is
/// for this owner alone until it is given its own attributes.
pub trait Target: Tree {
    fn make_dir(&self, dir: &Self::Dir, name: &[u8], wanted: &Meta) -> Result<()>;
    fn make_symlink(
        &self,
        dir: &Self::Dir,
        name: &[u8],
        target: &[u8],
        wanted: &Meta,
    ) -> Result<()>;
    /// Makes a fifo, a socket or a device.
    fn make_node(&self, dir: &Self::Dir, name: &[u8], wanted: &Meta) -> Result<()>;
    fn create(&self, dir: &Self::Dir, name: &[u8], wanted: &Meta) -> Result<Box<dyn Output + '_>>;
    fn link(&self, from: &Self::Dir, name: &[u8], to: &Self::Dir, new: &[u8]) -> Result<()>;
    /// Renames within a directory; what has the new name is replaced.
    fn rename(&self, dir: &Self::Dir, from: &[u8], to: &[u8]) -> Result<()>;
    /// Removes a name that is not a directory's.
    fn remove(&self, dir: &Self::Dir, name: &[u8]) -> Result<()>;
    fn set_owner(&self, dir: &Self::Dir, name: &[u8], wanted: &Meta) -> Result<()>;
    fn set_mode_and_times(&self, dir: &Self::Dir, name: &[u8], wanted: &Meta) -> Result<()>;
    fn set_attribute(&self, dir: &Self::Dir, name: &[u8], attribute: &Attribute) -> Result<()>;
    fn remove_attribute(&self, dir: &Self::Dir, name: &[u8], attribute: &[u8]) -> Result<()>;
    /// Everything written so far is durable before anything that is renamed from now on.
    fn barrier(&self) -> Result<()>;
    /// Everything that was done so far is durable on return.
    fn sync_all(&self) -> Result<()>;
    /// Opens a file to see what was really written.
    fn reopen(&self, dir: &Self::Dir, name: &[u8]) -> Result<Box<dyn Contents + '_>>;
}

/// A new regular file that is being written, front to back.
pub trait Output: Send {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// Sets the size, and hands everything over to the file system.
    fn finish(self: Box<Self>, size: u64) -> Result<()>;
}
