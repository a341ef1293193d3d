//! Directories of the host, which may be mounts of s2sfs, too.
//!
//! Everything goes through open directories, so that neither long paths nor renamed or replaced
//! directories lead astray.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use rustix::fs::{
    Advice, AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tree::{Attribute, Contents, Meta, Output, Result, Target, Tree, TreeError};
use crate::volume::{FileKind, Timestamp};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// No value of an attribute, and no list of names, is longer.
const MAX_ATTRIBUTE: usize = 64 << 10;

/// A directory and everything under it.
pub struct HostTree {
    root: OwnedFd,
}

impl HostTree {
    pub fn open(path: &Path) -> io::Result<HostTree> {
        let root = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
        Ok(HostTree { root })
    }

    /// The directory at `inside` under `path`; it is made if it is missing, and so are directories on the
    /// way. Symbolic links on the way are not followed, as they may lead out of `path`.
    pub fn within(path: &Path, inside: &Path) -> io::Result<HostTree> {
        let mut root = HostTree::open(path)?.root;
        for part in inside.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            let open = || rustix::fs::openat(&root, name, flags, Mode::empty());
            let opened = match open() {
                Err(Errno::NOENT) => {
                    let mode = Mode::RWXU | Mode::RWXG | Mode::RWXO;
                    rustix::fs::mkdirat(&root, name, mode)?;
                    open()?
                }
                other => other?,
            };
            root = opened;
        }
        Ok(HostTree { root })
    }

    /// The directory itself, for what has to be done in it besides.
    pub fn directory(&self) -> &OwnedFd {
        &self.root
    }

    /// The topmost directory of the same mount, as far up as directories may be opened. FUSE has no request
    /// for syncfs: on a mount of s2sfs an fsync of the root directory stands for it.
    fn top(&self) -> io::Result<OwnedFd> {
        let mut dir = self.root.try_clone()?;
        let mut id = meta_of(&rustix::fs::fstat(&dir)?)?.id;
        while let Ok(above) = rustix::fs::openat(&dir, "..", DIRECTORY, Mode::empty()) {
            let next = meta_of(&rustix::fs::fstat(&above)?)?.id;
            if next.0 != id.0 || next == id {
                break;
            }
            (dir, id) = (above, next);
        }
        Ok(dir)
    }
}

/// A path by which system calls without an open directory get at a name in one.
fn by_descriptor(dir: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn time(secs: i64, nanos: i64) -> Timestamp {
    Timestamp {
        secs,
        nanos: u32::try_from(nanos).unwrap_or(0),
    }
}

fn meta_of(stat: &Stat) -> io::Result<Meta> {
    let kind = FileKind::from_mode(stat.st_mode)
        .ok_or_else(|| io::Error::other(format!("unknown file type {:o}", stat.st_mode)))?;
    Ok(Meta {
        kind,
        perm: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        // of 32 bits on other machines
        #[allow(clippy::unnecessary_cast)]
        nlink: stat.st_nlink as u64,
        id: (stat.st_dev, stat.st_ino),
        rdev: (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ),
        atime: time(stat.st_atime, stat.st_atime_nsec as i64),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec as i64),
    })
}

/// Opens a regular file for reading, without moving its access time where that is allowed.
fn open_file(dir: &OwnedFd, name: &[u8]) -> Result<HostFile> {
    // A fifo that has taken the place of a file must not make us wait for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let quiet = rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty());
    let file = match quiet {
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty())?,
        other => other?,
    };
    Ok(HostFile {
        file: File::from(file),
    })
}

/// Changes the mode of a file, but not through a symlink that has taken its place.
fn set_mode(dir: &OwnedFd, name: &[u8], wanted: &Meta) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if meta_of(&rustix::fs::fstat(&file)?)?.kind != wanted.kind {
        return Err(io::Error::other("something else has taken its place").into());
    }
    // A descriptor of this kind has no fchmod of its own.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(wanted.perm))?)
}

impl Tree for HostTree {
    type Dir = OwnedFd;

    fn root(&self) -> Result<OwnedFd> {
        Ok(self.root.try_clone()?)
    }

    fn names(&self, dir: &OwnedFd) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn meta(&self, dir: &OwnedFd, name: &[u8]) -> Result<Meta> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(meta_of(&stat)?)
    }

    fn open_dir(&self, dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
    }

    fn symlink_target(&self, dir: &OwnedFd, name: &[u8]) -> Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
    }

    fn attribute_names(&self, dir: &OwnedFd, name: &[u8]) -> Result<Vec<Vec<u8>>> {
        let path = by_descriptor(dir, name);
        let mut buffer = vec![0; MAX_ATTRIBUTE];
        let len = match rustix::fs::llistxattr(&path, &mut buffer[..]) {
            Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
            other => other?,
        };
        let names = buffer[..len]
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec);
        Ok(names.collect())
    }

    fn attribute(&self, dir: &OwnedFd, name: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; MAX_ATTRIBUTE];
        match rustix::fs::lgetxattr(by_descriptor(dir, name), key, &mut buffer[..]) {
            Ok(len) => {
                buffer.truncate(len);
                Ok(Some(buffer))
            }
            // Removed since it was listed, or listed but hidden.
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, dir: &OwnedFd, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        Ok(Box::new(open_file(dir, name)?))
    }
}

impl Target for HostTree {
    fn make_dir(&self, dir: &OwnedFd, name: &[u8], _wanted: &Meta) -> Result<()> {
        Ok(rustix::fs::mkdirat(dir, name, Mode::RWXU)?)
    }

    fn make_symlink(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        target: &[u8],
        _wanted: &Meta,
    ) -> Result<()> {
        Ok(rustix::fs::symlinkat(target, dir, name)?)
    }

    fn make_node(&self, dir: &OwnedFd, name: &[u8], wanted: &Meta) -> Result<()> {
        let file_type = match wanted.kind {
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput).into()),
        };
        let device = rustix::fs::makedev(wanted.rdev.0, wanted.rdev.1);
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::mknodat(dir, name, file_type, mode, device)?)
    }

    fn create(&self, dir: &OwnedFd, name: &[u8], _wanted: &Meta) -> Result<Box<dyn Output + '_>> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Box::new(HostFile {
            file: File::from(file),
        }))
    }

    fn link(&self, from: &OwnedFd, name: &[u8], to: &OwnedFd, new: &[u8]) -> Result<()> {
        Ok(rustix::fs::linkat(from, name, to, new, AtFlags::empty())?)
    }

    fn rename(&self, dir: &OwnedFd, from: &[u8], to: &[u8]) -> Result<()> {
        Ok(rustix::fs::renameat(dir, from, dir, to)?)
    }

    fn remove(&self, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn set_owner(&self, dir: &OwnedFd, name: &[u8], wanted: &Meta) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), flags)?)
    }

    fn set_mode_and_times(&self, dir: &OwnedFd, name: &[u8], wanted: &Meta) -> Result<()> {
        if wanted.kind != FileKind::Symlink {
            set_mode(dir, name, wanted)?;
        }
        let spec = |time: Timestamp| Timespec {
            tv_sec: time.secs,
            tv_nsec: i64::from(time.nanos),
        };
        let times = Timestamps {
            last_access: spec(wanted.atime),
            last_modification: spec(wanted.mtime),
        };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::utimensat(dir, name, &times, flags)?)
    }

    fn set_attribute(&self, dir: &OwnedFd, name: &[u8], attribute: &Attribute) -> Result<()> {
        let (key, value) = attribute;
        let path = by_descriptor(dir, name);
        Ok(rustix::fs::lsetxattr(
            &path,
            key,
            value,
            XattrFlags::empty(),
        )?)
    }

    fn remove_attribute(&self, dir: &OwnedFd, name: &[u8], attribute: &[u8]) -> Result<()> {
        let path = by_descriptor(dir, name);
        Ok(rustix::fs::lremovexattr(&path, attribute)?)
    }

    fn barrier(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root)?;
        if rustix::fs::fstatfs(&self.root)?.f_type == libc::FUSE_SUPER_MAGIC {
            rustix::fs::fsync(self.top()?)?;
        }
        Ok(())
    }

    fn reopen(&self, dir: &OwnedFd, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        let file = open_file(dir, name)?;
        // What memory has of it says nothing about the disk. Where this is not possible, memory must do.
        if let Err(error) = rustix::fs::fadvise(&file.file, 0, None, Advice::DontNeed) {
            log::debug!("fadvise: {error}");
        }
        Ok(Box::new(file))
    }
}

struct HostFile {
    file: File,
}

impl Contents for HostFile {
    fn meta(&self) -> Result<Meta> {
        Ok(meta_of(&rustix::fs::fstat(&self.file)?)?)
    }

    fn data_from(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows nothing of holes.
            Err(Errno::INVAL | Errno::NOTSUP) => {
                let size = self.meta()?.size;
                return Ok((offset < size).then_some((offset, size)));
            }
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some((start, end))),
            // Cut short since.
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }
}

impl Output for HostFile {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.file.write_all_at(data, offset).map_err(TreeError::Io)
    }

    fn finish(self: Box<Self>, size: u64) -> Result<()> {
        if self.file.metadata()?.len() != size {
            self.file.set_len(size)?;
        }
        // What a file system can say only now, such as that the disk is full, would be lost in a drop.
        nix::unistd::close(self.file).map_err(io::Error::from)?;
        Ok(())
    }
}
