//! Inode attributes and their stored form.

use super::VolumeError;
use super::keys::{Fields, damaged, put_varint, unzigzag, zigzag};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time with nanoseconds, also before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Timestamp {
    pub fn now() -> Timestamp {
        SystemTime::now().into()
    }

    pub fn to_system(self) -> SystemTime {
        let nanos = Duration::from_nanos(u64::from(self.nanos));
        let base = if self.secs >= 0 {
            UNIX_EPOCH.checked_add(Duration::from_secs(self.secs as u64))
        } else {
            UNIX_EPOCH.checked_sub(Duration::from_secs(self.secs.unsigned_abs()))
        };
        base.and_then(|t| t.checked_add(nanos))
            .unwrap_or(UNIX_EPOCH)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp {
                secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let secs = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Timestamp {
                        secs: -secs,
                        nanos: 0,
                    },
                    nanos => Timestamp {
                        secs: -secs - 1,
                        nanos: 1_000_000_000 - nanos,
                    },
                }
            }
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl FileKind {
    /// The kind in the type bits of a mode; no type bits mean a regular file, as for mknod.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            _ => return None,
        })
    }

    pub fn mode_bits(self) -> u32 {
        match self {
            FileKind::Regular => libc::S_IFREG,
            FileKind::Directory => libc::S_IFDIR,
            FileKind::Symlink => libc::S_IFLNK,
            FileKind::Fifo => libc::S_IFIFO,
            FileKind::Socket => libc::S_IFSOCK,
            FileKind::CharDevice => libc::S_IFCHR,
            FileKind::BlockDevice => libc::S_IFBLK,
        }
    }
}

/// The stored attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky.
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    /// This file's share of the blocks that hold its data, in bytes.
    pub stored: u64,
    pub rdev: u32,
    /// Directory in which the inode was last linked: the real parent of a directory, and for files a
    /// hint for packing neighbours together.
    pub parent: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// Flags in the first field of a stored inode, below the mode.
const ATIME_IS_MTIME: u64 = 1;
const CTIME_IS_MTIME: u64 = 2;

impl Attr {
    /// Attributes of a fresh inode.
    pub fn new(kind: FileKind, perm: u32, uid: u32, gid: u32, parent: u64) -> Attr {
        let now = Timestamp::now();
        Attr {
            kind,
            perm: perm & 0o7777,
            uid,
            gid,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            size: 0,
            stored: 0,
            rdev: 0,
            parent,
            atime: now,
            mtime: now,
            ctime: now,
        }
    }

    /// The stored form, with `size` in place of the size.
    pub fn encode(&self, size: u64) -> Vec<u8> {
        let mut flags = 0;
        if self.atime == self.mtime {
            flags |= ATIME_IS_MTIME;
        }
        if self.ctime == self.mtime {
            flags |= CTIME_IS_MTIME;
        }
        let mut out = Vec::with_capacity(40);
        let mode = u64::from(self.kind.mode_bits() | self.perm);
        put_varint(&mut out, mode << 2 | flags);
        for value in [self.uid, self.gid, self.nlink] {
            put_varint(&mut out, u64::from(value));
        }
        put_varint(&mut out, size);
        put_varint(&mut out, self.stored);
        put_varint(&mut out, self.parent);
        put_time(&mut out, self.mtime);
        if flags & ATIME_IS_MTIME == 0 {
            put_time(&mut out, self.atime);
        }
        if flags & CTIME_IS_MTIME == 0 {
            put_time(&mut out, self.ctime);
        }
        if self.rdev != 0 {
            put_varint(&mut out, u64::from(self.rdev));
        }
        out
    }

    pub fn decode(value: &[u8]) -> Result<Attr, VolumeError> {
        let mut fields = Fields::new("inode", value);
        let first = fields.varint()?;
        let mode = u32::try_from(first >> 2).map_err(|_| damaged("inode", "bad mode"))?;
        let kind = FileKind::from_mode(mode).ok_or_else(|| damaged("inode", "bad type"))?;
        let (uid, gid, nlink) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (size, stored, parent) = (fields.varint()?, fields.varint()?, fields.varint()?);
        let mtime = get_time(&mut fields)?;
        let mut other = |same: u64| match first & same {
            0 => get_time(&mut fields),
            _ => Ok(mtime),
        };
        let (atime, ctime) = (other(ATIME_IS_MTIME)?, other(CTIME_IS_MTIME)?);
        let rdev = if fields.is_empty() { 0 } else { fields.u32()? };
        fields.finish()?;
        Ok(Attr {
            kind,
            perm: mode & 0o7777,
            uid,
            gid,
            nlink,
            size,
            stored,
            rdev,
            parent,
            atime,
            mtime,
            ctime,
        })
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Clears suid, and sgid where it means set-group-id, as writing and chown do.
    pub fn clear_privileges(&mut self) {
        self.perm &= !libc::S_ISUID;
        if self.perm & libc::S_IXGRP != 0 {
            self.perm &= !libc::S_ISGID;
        }
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_varint(out, zigzag(time.secs));
    put_varint(out, u64::from(time.nanos));
}

fn get_time(fields: &mut Fields<'_>) -> Result<Timestamp, VolumeError> {
    let secs = unzigzag(fields.varint()?);
    let nanos = fields.u32()?;
    if nanos >= 1_000_000_000 {
        return Err(damaged("inode", "bad time"));
    }
    Ok(Timestamp { secs, nanos })
}

/// What `stat` shows of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    pub ino: u64,
    pub attr: Attr,
    /// 512-byte units of the real stored size, at least 1 for a file with data.
    pub blocks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time() -> impl Strategy<Value = Timestamp> {
        (any::<i64>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
    }

    proptest! {
        #[test]
        fn attributes_survive_encoding(perm in 0u32..0o10000, ids: (u32, u32, u32), size: u64, stored: u64,
                                       rdev: u32, mtime in time(), atime in time(), same: bool) {
            let attr = Attr { kind: FileKind::Regular, perm, uid: ids.0, gid: ids.1, nlink: ids.2, size, stored,
                rdev, parent: 1, atime, mtime, ctime: if same { mtime } else { atime } };
            prop_assert_eq!(Attr::decode(&attr.encode(attr.size)).unwrap(), attr);
        }

        #[test]
        fn any_bytes_decode_or_fail_but_never_panic(value: Vec<u8>) {
            let _ = Attr::decode(&value);
        }
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = UNIX_EPOCH - Duration::new(5, 250_000_000);
        let stamp = Timestamp::from(time);
        assert_eq!((stamp.secs, stamp.nanos), (-6, 750_000_000));
        assert_eq!(stamp.to_system(), time);
    }
}
