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
pub mod optimiser;
pub mod recipe;
pub mod session;

use thiserror::Error;

use super::published::PublishedError;
use crate::model::ModelError;

/// What can go wrong in training a network.
#[derive(Debug, Error)]
pub enum NetworkError {
    #[error("{0}")]
    Recipe(String),
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    #[error("training data: {0}")]
    Data(String),
    #[error("{path}: {source}")]
    File {
        path: String,
        source: std::io::Error,
    },
    #[error("the loss became infinite at step {0}: lower the learning rates")]
    Diverged(u64),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Published(#[from] PublishedError),
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}
