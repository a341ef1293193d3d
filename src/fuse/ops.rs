//! One method per request.

use super::convert::{BLOCK_SIZE, errno, file_attr, requested, timestamp};
use super::dirs::Dirs;
use super::groups::is_member;
use super::held::HeldRequests;
use super::replies::{ATTR_TTL, ENTRY_TTL, GENERATION, reply_attr, reply_empty, reply_xattr};
use crate::volume::{
    AclKind, Allocate, AllocateMode, Caller, CopyRange, NAME_MAX, Place, ROOT, RenameMode, SetAttr,
    Stat, Volume, VolumeError, WriteMode,
};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use log::debug;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Longest write request.
const MAX_WRITE: u32 = 1 << 20;
/// Requests of read-ahead, write-back and the like that the kernel may have under way. While the volume is
/// frozen, write-back that waits takes places from read-ahead, so there are many.
pub(super) const MAX_BACKGROUND: u16 = 1024;
/// Most bytes of one copy_file_range, so that it comes to an end in sensible time.
const MAX_COPY: u64 = 1 << 30;

/// Answers the kernel's requests.
pub struct Requests {
    volume: Arc<Volume>,
    dirs: Dirs,
    /// Everything that changes the volume goes through here.
    held: Arc<HeldRequests>,
    /// What stages or syncs. Apart from the changes, because those may wait for much longer.
    syncs: Arc<HeldRequests>,
}

impl Requests {
    pub fn new(volume: Arc<Volume>) -> Requests {
        Requests {
            held: HeldRequests::new(volume.clone()),
            syncs: HeldRequests::new(volume.clone()),
            volume,
            dirs: Dirs::default(),
        }
    }

    /// Whether a change of owner or access list by this caller clears setgid.
    fn loses_setgid(&self, request: &Request, ino: INodeNo) -> bool {
        loses_privileges(request)
            && !self
                .volume
                .getattr(ino.0)
                .is_ok_and(|stat| is_member(request, stat.attr.gid))
    }
}

/// Tells the kernel of an inode, which it knows from then on until it forgets it.
fn reply_entry(
    volume: &Volume,
    operation: &str,
    result: Result<Stat, VolumeError>,
    reply: ReplyEntry,
) {
    match result {
        Ok(stat) => {
            volume.remember(stat.ino);
            reply.entry_with_ttls(&ATTR_TTL, &ENTRY_TTL, &file_attr(&stat), GENERATION)
        }
        Err(error) => reply.error(errno(operation, &error)),
    }
}

/// A write as the kernel asks for it.
#[derive(Clone, Copy)]
struct Write {
    ino: u64,
    offset: u64,
    mode: WriteMode,
    synchronous: bool,
}

impl Write {
    fn carry_out(self, volume: &Volume, data: &[u8], reply: ReplyWrite) {
        let result = volume
            .write(self.ino, self.offset, data, self.mode)
            .and_then(|_| match self.synchronous {
                true => volume.fsync(self.ino),
                false => Ok(()),
            });
        match result {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(errno("write", &error)),
        }
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask,
    }
}

/// Whether setuid and setgid bits go when this caller changes a file: only privileges keep them.
fn loses_privileges(request: &Request) -> bool {
    request.uid() != 0
}

fn allocate_mode(mode: i32, clear_privileges: bool) -> Result<AllocateMode, VolumeError> {
    let what = match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Allocate::Reserve,
        libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero,
        libc::FALLOC_FL_PUNCH_HOLE if mode & libc::FALLOC_FL_KEEP_SIZE != 0 => Allocate::Zero,
        _ => return Err(VolumeError::Unsupported("this kind of fallocate")),
    };
    Ok(AllocateMode {
        what,
        keep_size: mode & libc::FALLOC_FL_KEEP_SIZE != 0,
        clear_privileges,
    })
}

/// Features that are asked for where the kernel has them.
fn wanted() -> [InitFlags; 8] {
    [
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_ASYNC_DIO,
        // Without it the kernel asks for capabilities before every write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        // A default list takes the place of the umask, so these two go together.
        InitFlags::FUSE_POSIX_ACL.union(InitFlags::FUSE_DONT_MASK),
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
        let result = self.volume.lookup(parent.0, name.as_bytes());
        reply_entry(&self.volume, "lookup", result, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.volume.forget(ino.0, nlookup);
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
            ctime: ctime.map(requested),
            clear_privileges: loses_privileges(req),
            drop_setgid: (uid.is_some() || gid.is_some()) && self.loses_setgid(req, ino),
        };
        self.held.change(move |volume| {
            reply_attr("setattr", volume.setattr(ino.0, set), reply);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.volume.readlink(ino.0) {
            Ok(target) => {
                self.volume.accessed(ino.0);
                reply.data(&target)
            }
            Err(error) => reply.error(errno("readlink", &error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), caller(req, umask));
        self.held.change(move |volume| {
            let result = volume.mknod(parent.0, name.as_bytes(), mode, rdev, caller);
            reply_entry(volume, "mknod", result, reply);
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), caller(req, umask));
        self.held.change(move |volume| {
            let result = volume.mkdir(parent.0, name.as_bytes(), mode, caller);
            reply_entry(volume, "mkdir", result, reply);
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.held.change(move |volume| {
            reply_empty("unlink", volume.unlink(parent.0, name.as_bytes()), reply);
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.held.change(move |volume| {
            reply_empty("rmdir", volume.rmdir(parent.0, name.as_bytes()), reply);
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target, caller) = (link_name.to_owned(), target.to_owned(), caller(req, 0));
        self.held.change(move |volume| {
            let target = target.as_os_str().as_bytes();
            let result = volume.symlink(parent.0, name.as_bytes(), target, caller);
            reply_entry(volume, "symlink", result, reply);
        });
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
        let (name, newname) = (name.to_owned(), newname.to_owned());
        self.held.change(move |volume| {
            let from = Place {
                parent: parent.0,
                name: name.as_bytes(),
            };
            let to = Place {
                parent: newparent.0,
                name: newname.as_bytes(),
            };
            reply_empty("rename", volume.rename(from, to, mode), reply);
        });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let newname = newname.to_owned();
        self.held.change(move |volume| {
            let result = volume.link(ino.0, newparent.0, newname.as_bytes());
            reply_entry(volume, "link", result, reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let reads = flags.0 & libc::O_ACCMODE != libc::O_WRONLY;
        let clear_privileges = loses_privileges(req);
        let open = move |volume: &Volume| match volume.open_file(ino.0, truncate, clear_privileges)
        {
            // The first read after a change must come here, to move the access time.
            Ok(()) if reads && volume.access_is_due(ino.0) => {
                reply.opened(FileHandle(0), FopenFlags::empty());
            }
            // Only this kernel changes files, so what it has cached stays right.
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(errno("open", &error)),
        };
        match truncate {
            true => self.held.change(open),
            false => open(&self.volume),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller) = (name.to_owned(), caller(req, umask));
        self.held.change(move |volume| {
            match volume.create(parent.0, name.as_bytes(), mode, caller) {
                Ok(stat) => {
                    volume.remember(stat.ino);
                    reply.created(
                        &ATTR_TTL,
                        &file_attr(&stat),
                        GENERATION,
                        FileHandle(0),
                        FopenFlags::FOPEN_KEEP_CACHE,
                    )
                }
                Err(error) => reply.error(errno("create", &error)),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.volume.read(ino.0, offset, size as usize) {
            Ok(data) => {
                if flags.0 & libc::O_NOATIME == 0 {
                    self.volume.accessed(ino.0);
                }
                reply.data(&data)
            }
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
        let write = Write {
            ino: ino.0,
            offset,
            mode,
            synchronous: flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0,
        };
        match self.volume.try_change() {
            Some(_pass) => write.carry_out(&self.volume, data, reply),
            None => {
                let data = data.to_vec();
                let work = move |volume: &Volume| write.carry_out(volume, &data, reply);
                self.held.later(Box::new(work));
            }
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
        self.syncs.stage(move |volume| {
            reply_empty("close", volume.flush(ino.0), reply);
        });
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
        self.syncs.stage(move |volume| {
            reply_empty("fsync", volume.fsync(ino.0), reply);
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.volume.open_dir(ino.0) {
            Ok(stream) => reply.opened(self.dirs.open(stream), FopenFlags::empty()),
            Err(error) => reply.error(errno("opendir", &error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.dirs.read(&self.volume, ino, fh, offset, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.dirs.read_plus(&self.volume, ino, fh, offset, reply);
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.dirs.close(fh);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Names are in the log as soon as they are changed. There is no request for syncfs, so that
        // syncing the root directory stands for it.
        self.syncs.stage(move |volume| {
            let result = match ino.0 {
                ROOT => volume.sync_everything(),
                _ => volume.sync_log(),
            };
            reply_empty("fsyncdir", result, reply);
        });
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
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let create = flags & libc::XATTR_CREATE != 0;
        let replace = flags & libc::XATTR_REPLACE != 0;
        let kind = AclKind::of_name(name.as_bytes());
        let keep_setgid = kind.is_some() && !self.loses_setgid(req, ino);
        let (name, value) = (name.to_owned(), value.to_owned());
        self.held.change(move |volume| {
            let result = match kind {
                Some(kind) => volume.set_acl(ino.0, kind, Some(&value), keep_setgid),
                None => volume.setxattr(ino.0, name.as_bytes(), &value, create, replace),
            };
            reply_empty("setxattr", result, reply);
        });
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
        let name = name.to_owned();
        self.held.change(move |volume| {
            let result = volume.removexattr(ino.0, name.as_bytes());
            reply_empty("removexattr", result, reply);
        });
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
        let clear_privileges = loses_privileges(req);
        self.held.change(move |volume| {
            let result = allocate_mode(mode, clear_privileges)
                .and_then(|mode| volume.allocate(ino.0, offset, length, mode));
            reply_empty("fallocate", result, reply);
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let copy = CopyRange {
            from: ino_in.0,
            from_offset: offset_in,
            to: ino_out.0,
            to_offset: offset_out,
            // The reply has 32 bits.
            len: len.min(MAX_COPY),
            clear_privileges: loses_privileges(req),
        };
        self.held
            .change(move |volume| match volume.copy_range(copy) {
                Ok(copied) => {
                    volume.accessed(ino_in.0);
                    reply.written(copied as u32)
                }
                Err(error) => reply.error(errno("copy_file_range", &error)),
            });
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
        self.syncs.stage(move |volume| {
            let result = match u64::try_from(offset) {
                Ok(offset) => volume.seek(ino.0, offset, data),
                Err(_) => Err(VolumeError::NoData),
            };
            match result {
                Ok(at) => reply.offset(at as i64),
                Err(error) => reply.error(errno("lseek", &error)),
            }
        });
    }
}
