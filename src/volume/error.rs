use crate::cache::CacheError;
use crate::codec::CodecError;
use crate::store::StoreError;
use thiserror::Error;

/// Everything that a file system operation can answer instead of succeeding.
#[derive(Debug, Clone, Error)]
pub enum VolumeError {
    #[error("no such file or directory")]
    NotFound,
    /// The inode is gone, though the caller still knows its number.
    #[error("inode {0} no longer exists")]
    Stale(u64),
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("name too long")]
    NameTooLong,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("operation not permitted")]
    NotPermitted,
    #[error("too many links")]
    TooManyLinks,
    #[error("file too large")]
    FileTooLarge,
    #[error("no such attribute")]
    NoAttribute,
    #[error("attribute value too large")]
    AttributeTooLarge,
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    #[error("file system is read-only")]
    ReadOnly,
    #[error("no space left in the store")]
    NoSpace,
    #[error("no data past this offset")]
    NoData,
    #[error("the volume is shut down")]
    Closed,
    #[error("the file system is frozen; `s2sfs thaw` ends that")]
    Frozen,
    #[error("the file system is not frozen")]
    NotFrozen,
    #[error("not frozen: operations under way did not end in time")]
    NotDrained,
    /// Metadata that this layer wrote does not parse.
    #[error("damaged {what}: {why}")]
    Damaged { what: String, why: String },
    #[error("its volume has format version {found}, this program reads up to {known}")]
    NewerFormat { found: u64, known: u64 },
    /// The store failed; `errno` is what applications see.
    #[error("{message}")]
    Store { errno: i32, message: String },
    /// Data of a file cannot be decoded.
    #[error("{place}: {message}")]
    Unreadable { place: String, message: String },
}

impl VolumeError {
    /// The errno that applications see.
    pub fn errno(&self) -> i32 {
        match self {
            VolumeError::NotFound => libc::ENOENT,
            VolumeError::Stale(_) => libc::ESTALE,
            VolumeError::Exists => libc::EEXIST,
            VolumeError::NotDirectory => libc::ENOTDIR,
            VolumeError::IsDirectory => libc::EISDIR,
            VolumeError::NotEmpty => libc::ENOTEMPTY,
            VolumeError::NameTooLong => libc::ENAMETOOLONG,
            VolumeError::Invalid(_) => libc::EINVAL,
            VolumeError::NotPermitted => libc::EPERM,
            VolumeError::TooManyLinks => libc::EMLINK,
            VolumeError::FileTooLarge => libc::EFBIG,
            VolumeError::NoAttribute => libc::ENODATA,
            VolumeError::AttributeTooLarge => libc::E2BIG,
            VolumeError::Unsupported(_) => libc::EOPNOTSUPP,
            VolumeError::ReadOnly => libc::EROFS,
            VolumeError::NoSpace => libc::ENOSPC,
            VolumeError::NoData => libc::ENXIO,
            VolumeError::Closed => libc::EIO,
            VolumeError::Frozen => libc::EBUSY,
            VolumeError::NotFrozen => libc::EINVAL,
            VolumeError::NotDrained => libc::EBUSY,
            VolumeError::Damaged { .. }
            | VolumeError::Unreadable { .. }
            | VolumeError::NewerFormat { .. } => libc::EIO,
            VolumeError::Store { errno, .. } => *errno,
        }
    }

    /// True for failures of the machinery below, which belong in the daemon's log.
    pub fn is_fault(&self) -> bool {
        matches!(
            self,
            VolumeError::Damaged { .. }
                | VolumeError::Store { .. }
                | VolumeError::Unreadable { .. }
        )
    }

    /// The error for a range whose data was lost before a repair.
    pub(crate) fn lost() -> VolumeError {
        VolumeError::Unreadable {
            place: "block".into(),
            message: "lost before a repair".into(),
        }
    }

    /// Names the file in an error that came from decoding its data.
    pub(crate) fn in_file(self, ino: u64, offset: u64) -> VolumeError {
        match self {
            VolumeError::Unreadable { place, message } => VolumeError::Unreadable {
                place: format!("inode {ino}, offset {offset}, {place}"),
                message,
            },
            other => other,
        }
    }
}

impl From<StoreError> for VolumeError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Io { source, .. } => match source.raw_os_error() {
                Some(libc::ENOSPC) | Some(libc::EDQUOT) => VolumeError::NoSpace,
                Some(libc::EROFS) => VolumeError::ReadOnly,
                _ => VolumeError::Store {
                    errno: libc::EIO,
                    message: error.to_string(),
                },
            },
            StoreError::ReadOnly => VolumeError::ReadOnly,
            _ => VolumeError::Store {
                errno: libc::EIO,
                message: error.to_string(),
            },
        }
    }
}

impl From<CacheError> for VolumeError {
    fn from(error: CacheError) -> Self {
        VolumeError::Unreadable {
            place: format!("block {}", error.block()),
            message: error.to_string(),
        }
    }
}

impl From<CodecError> for VolumeError {
    fn from(error: CodecError) -> Self {
        VolumeError::Unreadable {
            place: "codec".into(),
            message: error.to_string(),
        }
    }
}
