use thiserror::Error;

/// Everything that can go wrong while encoding or decoding.
#[derive(Debug, Error)]
pub enum CodecError {
    #[error("damaged block: {0}")]
    Damaged(String),
    #[error("block needs model {0}, which is neither in the store nor in the program")]
    NoModel(String),
    #[error("the model cannot be used: {0}")]
    BadModel(String),
    #[error("block needs its anchor, block {0}")]
    NeedsAnchor(u64),
    /// This machine cannot decode at the moment; the block may be intact.
    #[error("cannot decode here: {0}")]
    Unavailable(String),
    #[error("decoding was stopped")]
    Stopped,
}
