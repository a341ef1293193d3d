use thiserror::Error;

/// What can be wrong with a model file.
#[derive(Debug, Clone, Error)]
pub enum ModelError {
    #[error("not a model file")]
    NotAModel,
    #[error("model file has version {found}, this program reads version {known}")]
    Version { found: u32, known: u32 },
    #[error("model file is damaged: {0}")]
    Damaged(String),
    #[error("the model needs its base, model {0}, which is not there")]
    NeedsBase(String),
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// What a caller or a block asks of a network that does not fit it.
    #[error("network input: {0}")]
    Input(String),
    #[error("device: {0}")]
    Device(String),
}
