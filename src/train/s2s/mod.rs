//! Seq2Seq2Seq ("lossless data compression via discrete latent representations and reinforcement learning"): a
//! compressor writes latents, from which the decompressor, the exact network, predicts better.
//!
//! [`compressor`] is the compressor, in floats: it is only needed to compress. [`write`] is how it writes latents,
//! [`a2c`] how it learns from what they turned out to be worth. What latents cost is known by
//! [`crate::model::latents`].

pub mod a2c;
pub mod compressor;
mod config;
pub mod judge;
pub mod log;
pub mod reading;
pub mod recipe;
mod recurring;
pub mod session;
mod steps;
pub mod write;
pub mod writer;

use std::path::PathBuf;

use thiserror::Error;

use super::network::NetworkError;
use crate::model::ModelError;

pub use compressor::{Compressor, Evaluation};
pub use config::{Config, Sizes};
pub use write::{Choice, Written};

/// What can go wrong with a compressor.
#[derive(Debug, Error)]
pub enum S2sError {
    /// Sizes that no compressor can have.
    #[error("compressor: {0}")]
    Config(String),
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file is damaged, or does not fit the others.
    #[error("{path}: {what}")]
    File { path: PathBuf, what: String },
    /// What a caller asks of a compressor that does not fit it.
    #[error("not an input of this compressor: {0}")]
    Input(String),
    #[error("a loss became infinite at step {0}: begin again (--force) with lower learning rates")]
    Diverged(u64),
    #[error(
        "{0}: that is more than a network may lose, so nothing was written; go on from the checkpoint (--resume)"
    )]
    Lossy(session::Outcome),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, S2sError>;
