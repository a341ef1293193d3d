use std::io;

use thiserror::Error;

/// Everything that can go wrong in the store layer.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The storage under the store failed; the errno is passed on.
    #[error("{op} {path}: {source}")]
    Io {
        op: &'static str,
        path: String,
        source: io::Error,
    },
    /// Bytes on disk that cannot be what was written there.
    #[error("damaged {what} in {place}: {why}")]
    Damaged {
        what: &'static str,
        place: String,
        why: String,
    },
    #[error("{0} is not an s2sfs store and not empty")]
    NotAStore(String),
    #[error("there is no store at {0}")]
    Missing(String),
    #[error("store {path} has format version {found}, this program reads up to {known}")]
    NewerFormat {
        path: String,
        found: u32,
        known: u32,
    },
    #[error("store {path} needs the feature '{feature}', which this program does not have")]
    UnknownFeature { path: String, feature: String },
    #[error("store {0} is in use by another process")]
    Locked(String),
    #[error("store is read-only")]
    ReadOnly,
    #[error("block {0} does not exist")]
    NoSuchBlock(u64),
    /// A write or sync failed earlier; nothing more is accepted until the store is opened again.
    #[error("the store stopped after a failure: {0}")]
    Stopped(String),
    /// A request that no correct caller makes.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The index (a cache of the log) failed; opening the store again rebuilds it.
    #[error("index: {0}")]
    Index(String),
}

impl StoreError {
    pub(crate) fn io(op: &'static str, path: &str) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { op, path, source }
    }

    pub(crate) fn damaged(
        what: &'static str,
        place: impl Into<String>,
        why: impl Into<String>,
    ) -> StoreError {
        StoreError::Damaged {
            what,
            place: place.into(),
            why: why.into(),
        }
    }

    /// The errno that stands for this error in a reply to the kernel.
    pub fn errno(&self) -> i32 {
        match self {
            StoreError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            StoreError::ReadOnly => libc::EROFS,
            StoreError::Locked(_) => libc::EBUSY,
            StoreError::Missing(_) => libc::ENOENT,
            StoreError::Invalid(_) => libc::EINVAL,
            _ => libc::EIO,
        }
    }

    /// True if the disk under the store is full: the request can succeed later.
    pub fn is_no_space(&self) -> bool {
        self.errno() == libc::ENOSPC || self.errno() == libc::EDQUOT
    }
}
