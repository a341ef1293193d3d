//! Training of the network expert, on the processor or with candle on CUDA.
//!
//! [`session`] is the loop; [`float`] the network as it is trained and [`fused`] the same on the processor, fast;
//! [`export`] makes the exact network of it.

pub mod checkpoint;
pub mod data;
pub mod evaluate;
pub mod export;
pub mod float;
pub mod fused;
pub mod mean;
pub mod optimiser;
pub mod recipe;
pub mod session;

use thiserror::Error;

use super::TrainError;
use super::published::PublishedError;
use crate::model::ModelError;
use session::{LOSS_MAX, Outcome};

/// What can go wrong in training a network.
#[derive(Debug, Error)]
pub enum NetworkError {
    #[error("{0}")]
    Recipe(String),
    /// A checkpoint that cannot be read.
    #[error("{path}: {what}")]
    Checkpoint { path: String, what: String },
    /// A checkpoint of another run.
    #[error("{path} was made with another {what}")]
    OtherRun { path: String, what: &'static str },
    #[error("{path}: {what}")]
    Data { path: String, what: String },
    #[error("{path}: {source}")]
    Tokenizer { path: String, source: ModelError },
    #[error("{path}: {source}")]
    File {
        path: String,
        source: std::io::Error,
    },
    #[error(
        "the loss became infinite at step {0}: begin again (--force) with lower learning rates"
    )]
    Diverged(u64),
    #[error(
        "{0}: that is more than {max:.0} %, so no network was written; go on from the checkpoint (--resume) with more --steps \
         or --minutes, or begin again (--force) with a shorter float_phase",
        max = LOSS_MAX * 100.0
    )]
    Lossy(Outcome),
    #[error(transparent)]
    Corpus(#[from] TrainError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Published(#[from] PublishedError),
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}
