//! Between the types of the protocol and those of the volume.

use crate::volume::{FileKind, Stat, Timestamp, VolumeError};
use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use log::warn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

/// Preferred size of reads and writes, for stat and statfs.
pub const BLOCK_SIZE: u32 = 4096;

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub fn file_attr(stat: &Stat) -> FileAttr {
    let attr = &stat.attr;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: attr.size,
        blocks: stat.blocks,
        atime: attr.atime.to_system(),
        mtime: attr.mtime.to_system(),
        ctime: attr.ctime.to_system(),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub fn timestamp(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => requested(time),
        TimeOrNow::Now => Timestamp::now(),
    }
}

/// Requests of this process that failed. It serves one mount.
static FAULTS: AtomicU64 = AtomicU64::new(0);
static NO_SPACE: AtomicU64 = AtomicU64::new(0);

/// How many requests have failed because the store did, and how many because the disk was full.
pub fn failures() -> (u64, u64) {
    (FAULTS.load(Relaxed), NO_SPACE.load(Relaxed))
}

/// The time that the kernel has sent. fuser 0.18 takes nanoseconds off times before 1970 that are to be added.
pub fn requested(time: SystemTime) -> Timestamp {
    match SystemTime::UNIX_EPOCH.duration_since(time) {
        Ok(before) => Timestamp {
            secs: i64::try_from(before.as_secs()).map_or(i64::MIN, |secs| -secs),
            nanos: before.subsec_nanos(),
        },
        Err(_) => time.into(),
    }
}

/// The errno of a failed request. Failures of the store are logged here, once per request.
pub fn errno(operation: &str, error: &VolumeError) -> Errno {
    if error.is_fault() {
        FAULTS.fetch_add(1, Relaxed);
        warn!("{operation}: {error}");
    }
    if matches!(error, VolumeError::NoSpace) {
        NO_SPACE.fetch_add(1, Relaxed);
    }
    Errno::from_i32(error.errno())
}
