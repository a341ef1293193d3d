use std::path::PathBuf;

use thiserror::Error;

/// What can be wrong with a published checkpoint, or with what is asked of it.
#[derive(Debug, Error)]
pub enum PublishedError {
    #[error("{file}: {source}")]
    Read {
        file: PathBuf,
        source: std::io::Error,
    },
    /// A file that is not there, and what to do about it.
    #[error("{file} is missing: {hint}")]
    Missing { file: PathBuf, hint: String },
    /// A file is not what its name says, or does not fit the others.
    #[error("{file}: {what}")]
    File { file: String, what: String },
    #[error("{file}: tensor {tensor}: {what}")]
    Tensor {
        file: String,
        tensor: String,
        what: String,
    },
    /// A network that cannot start from this checkpoint.
    #[error("cannot start from this checkpoint: {0}")]
    Mismatch(String),
    #[error("not an input of this model: {0}")]
    Input(String),
    #[error("device: {0}")]
    Device(String),
}

impl From<candle_core::Error> for PublishedError {
    fn from(error: candle_core::Error) -> PublishedError {
        // behind the first line there may be a backtrace
        let text = error.to_string();
        PublishedError::Device(text.lines().next().unwrap_or_default().to_owned())
    }
}
