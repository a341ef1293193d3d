use thiserror::Error;

/// Everything that can go wrong in the store layer.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The storage under the store failed; the errno is passed on.
    #[error("{op} {path}: {source}")]
    Io {
        op: &'static str,
        path: String,
        source: std::io::Error,
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
    #[error("store {path} has format version {found}, this program reads up to {known}")]
    NewerFormat {
        path: String,
        found: u32,
        known: u32,
    },
    #[error("store {0} is in use by another process")]
    Locked(String),
    #[error("store is read-only")]
    ReadOnly,
    #[error("block {0} does not exist")]
    NoSuchBlock(u64),
}
