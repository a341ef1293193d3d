//! One method per request.

use super::convert::{BLOCK_SIZE, errno, file_attr, file_type, timestamp};
use crate::volume::{
    Caller, DirStream, NAME_MAX, Place, RenameMode, SetAttr, Stat, Volume, VolumeError, WriteMode,
};
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use log::debug;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// How long the kernel may believe a name: nobody else changes them.
const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// How long the kernel may believe attributes. Short, because st_blocks changes by settling.
const ATTR_TTL: Duration = Duration::from_secs(1);
/// Longest write request.
const MAX_WRITE: u32 = 1 << 20;
/// Requests of read-ahead and the like that the kernel may have under way.
const MAX_BACKGROUND: u16 = 64;
/// Inode numbers are never used twice.
const GENERATION: Generation = Generation(0);

type OpenDir = Arc<Mutex<DirStream>>;

/// Answers the kernel's requests.
pub struct Requests {
    volume: Arc<Volume>,
    dirs: Mutex<HashMap<u64, OpenDir>>,
    next_dir: AtomicU64,
}

impl Requests {
    pub fn new(volume: Arc<Volume>) -> Requests {
        Requests {
            volume,
            dirs: Mutex::new(HashMap::new()),
            next_dir: AtomicU64::new(1),
        }
    }

    fn dir(&self, handle: FileHandle) -> Option<OpenDir> {
        self.dirs.lock().get(&handle.0).cloned()
    }
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn reply_entry(operation: &str, result: Result<Stat, VolumeError>, reply: ReplyEntry) {
    match result {
        Ok(stat) => reply.entry_with_ttls(&ATTR_TTL, &ENTRY_TTL, &file_attr(&stat), GENERATION),
        Err(error) => reply.error(errno(operation, &error)),
    }
}

fn reply_attr(operation: &str, result: Result<Stat, VolumeError>, reply: ReplyAttr) {
    match result {
        Ok(stat) => reply.attr(&ATTR_TTL, &file_attr(&stat)),
        Err(error) => reply.error(errno(operation, &error)),
    }
}

fn reply_empty(operation: &str, result: Result<(), VolumeError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, &error)),
    }
}

fn reply_xattr(result: Result<Vec<u8>, VolumeError>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno("getxattr", &error)),
    }
}

/// Features that are asked for where the kernel has them.
fn wanted() -> [InitFlags; 7] {
    [
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_ASYNC_DIO,
        // Without it the kernel asks for capabilities before every write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ]
}

impl Filesystem for Requests {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in wanted() {
            if config.add_capabilities(flag).is_err() {
                debug!("the kernel has no {flag:?}");
            }
        }
        let too_large = |most| io::Error::other(format!("a limit is above {most}"));
        config.set_max_write(MAX_WRITE).map_err(too_large)?;
        config
            .set_max_background(MAX_BACKGROUND)
            .map_err(|most| too_large(most.into()))?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(
            "lookup",
            self.volume.lookup(parent.0, name.as_bytes()),
            reply,
        );
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr("getattr", self.volume.getattr(ino.0), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            perm: mode,
            uid,
            gid,
            size,
            atime: atime.map(timestamp),
            mtime: mtime.map(timestamp),
            ctime: ctime.map(Into::into),
            clear_privileges: req.uid() != 0,
        };
        reply_attr("setattr", self.volume.setattr(ino.0, set), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.volume.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno("readlink", &error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let result = self
            .volume
            .mknod(parent.0, name.as_bytes(), mode, rdev, caller(req));
        reply_entry("mknod", result, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let result = self
            .volume
            .mkdir(parent.0, name.as_bytes(), mode, caller(req));
        reply_entry("mkdir", result, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            "unlink",
            self.volume.unlink(parent.0, name.as_bytes()),
            reply,
        );
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty("rmdir", self.volume.rmdir(parent.0, name.as_bytes()), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let result = self
            .volume
            .symlink(parent.0, link_name.as_bytes(), target, caller(req));
        reply_entry("symlink", result, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let from = Place {
            parent: parent.0,
            name: name.as_bytes(),
        };
        let to = Place {
            parent: newparent.0,
            name: newname.as_bytes(),
        };
        reply_empty("rename", self.volume.rename(from, to, mode), reply);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let result = self.volume.link(ino.0, newparent.0, newname.as_bytes());
        reply_entry("link", result, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        match self.volume.open_file(ino.0, truncate, req.uid() != 0) {
            // Only this kernel changes files, so what it has cached stays right.
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(errno("open", &error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let result = self
            .volume
            .create(parent.0, name.as_bytes(), mode, caller(req));
        match result {
            Ok(stat) => reply.created(
                &ATTR_TTL,
                &file_attr(&stat),
                GENERATION,
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(errno("create", &error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.volume.read(ino.0, offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno("read", &error)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Written-back pages have their place, whatever the flags of the file they came by.
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mode = WriteMode {
            append: flags.0 & libc::O_APPEND != 0 && !cached,
            clear_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let synchronous = flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let result = self
            .volume
            .write(ino.0, offset, data, mode)
            .and_then(|_| match synchronous {
                true => self.volume.fsync(ino.0),
                false => Ok(()),
            });
        match result {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno("write", &error)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply_empty("close", self.volume.flush(ino.0), reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.volume.release(ino.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty("fsync", self.volume.fsync(ino.0), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.volume.open_dir(ino.0) {
            Ok(stream) => {
                let handle = self.next_dir.fetch_add(1, Relaxed);
                self.dirs
                    .lock()
                    .insert(handle, Arc::new(Mutex::new(stream)));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(errno("opendir", &error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(dir) = self.dir(fh) else {
            return reply.error(Errno::EBADF);
        };
        let mut stream = dir.lock();
        if offset == 0 {
            stream.rewind();
        }
        for position in offset.. {
            match stream.entry(&self.volume, position as usize) {
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

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(dir) = self.dir(fh) else {
            return reply.error(Errno::EBADF);
        };
        let mut stream = dir.lock();
        if offset == 0 {
            stream.rewind();
        }
        for position in offset.. {
            let entry = match stream.entry(&self.volume, position as usize) {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => return reply.error(errno("readdirplus", &error)),
            };
            let stat = match self.volume.getattr(entry.ino) {
                Ok(stat) => stat,
                // Removed since the entry was read.
                Err(VolumeError::Stale(_)) => continue,
                Err(error) => return reply.error(errno("readdirplus", &error)),
            };
            let name = OsStr::from_bytes(&entry.name);
            let ino = INodeNo(entry.ino);
            if reply.add(
                ino,
                position + 1,
                name,
                &ATTR_TTL,
                &file_attr(&stat),
                GENERATION,
            ) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dirs.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Names are in the log as soon as they are changed.
        reply_empty("fsyncdir", self.volume.sync_log(), reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.volume.space() {
            Ok(space) => {
                let unit = u64::from(BLOCK_SIZE);
                let free = space.free / unit;
                let free_inodes = u64::from(u32::MAX);
                reply.statfs(
                    space.total / unit,
                    free,
                    free,
                    space.inodes + free_inodes,
                    free_inodes,
                    BLOCK_SIZE,
                    NAME_MAX as u32,
                    BLOCK_SIZE,
                );
            }
            Err(error) => reply.error(errno("statfs", &error)),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let create = flags & libc::XATTR_CREATE != 0;
        let replace = flags & libc::XATTR_REPLACE != 0;
        let result = self
            .volume
            .setxattr(ino.0, name.as_bytes(), value, create, replace);
        reply_empty("setxattr", result, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.volume.getxattr(ino.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let list = self.volume.listxattr(ino.0).map(|names| {
            names
                .into_iter()
                .flat_map(|name| name.into_iter().chain([0]))
                .collect()
        });
        reply_xattr(list, size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.volume.removexattr(ino.0, name.as_bytes());
        reply_empty("removexattr", result, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let result = match mode {
            PUNCH => self.volume.punch_hole(ino.0, offset, length),
            // Space cannot be reserved for data whose stored size is not known yet.
            libc::FALLOC_FL_KEEP_SIZE => Ok(()),
            0 => self
                .volume
                .extend(ino.0, offset.saturating_add(length), req.uid() != 0),
            _ => Err(VolumeError::Unsupported("this kind of fallocate")),
        };
        reply_empty("fallocate", result, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let result = match u64::try_from(offset) {
            Ok(offset) => self.volume.seek(ino.0, offset, data),
            Err(_) => Err(VolumeError::NoData),
        };
        match result {
            Ok(at) => reply.offset(at as i64),
            Err(error) => reply.error(errno("lseek", &error)),
        }
    }
}
