//! Published T5 checkpoints (Raffel et al. 2020) in the layout of Hugging Face: a directory with
//! `config.json`, `model.safetensors` (or its parts and their index) and `tokenizer.json`.
//!
//! A [`Checkpoint`] is read and checked as a whole before anything is computed. From there it runs in two
//! ways, which tests/published_t5.rs compares: [`CandleT5`] is candle-transformers', [`FloatT5`] is ours, whose
//! parameters can be trained. [`measure`] says what it would cost to code files by such a model, and
//! [`start()`] takes over what fits into the network that is trained for the exact engines.

pub mod candle;
mod config;
mod error;
pub mod float;
pub mod measure;
mod pieces;
pub mod start;
mod tensors;

pub use candle::CandleT5;
pub use config::{Activation, Config};
pub use error::PublishedError;
pub use float::FloatT5;
pub use measure::{Measured, measure};
pub use pieces::{Encoded, Pieces};
pub use start::{Start, check_width, start};

use std::path::Path;

use candle_core::{Device, Tensor};

use tensors::Tensors;

type Result<T> = std::result::Result<T, PublishedError>;

/// A checkpoint in memory: complete, in single precision, every tensor of the shape that the configuration
/// gives it, every value finite, and every piece within the vocabulary.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    tensors: Tensors,
    pieces: Pieces,
    device: Device,
}

impl Checkpoint {
    /// Reads the checkpoint in `dir` onto `device`.
    ///
    /// # Errors
    /// If a file is missing, cannot be read, is truncated or malformed, describes something else than a T5 with
    /// ReLU or gated GELU, or if the files do not fit each other. The error names the file and the tensor.
    pub fn load(dir: &Path, device: &Device) -> Result<Checkpoint> {
        let config = Config::read(dir)?;
        let pieces = Pieces::read(dir, &config)?;
        let tensors = tensors::read(dir, &config, device)?;
        Ok(Checkpoint {
            config,
            tensors,
            pieces,
            device: device.clone(),
        })
    }

    /// The shape and what else its configuration says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The vocabulary.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The tensor of a published name, such as `decoder.final_layer_norm.weight`.
    ///
    /// # Errors
    /// If a T5 of this configuration has no such tensor.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| PublishedError::Tensor {
                file: tensors::WHOLE.into(),
                tensor: name.into(),
                what: "missing".into(),
            })
    }

    /// The matrix that makes logits of hidden rows, pieces x `d_model`. Where it is the embedding, hidden
    /// rows are divided by the root of `d_model` first.
    ///
    /// # Errors
    /// None for a checkpoint that was loaded.
    pub fn head(&self) -> Result<&Tensor> {
        self.tensor(match self.config.tied {
            true => tensors::EMBEDDING,
            false => tensors::HEAD,
        })
    }

    /// The embedding of pieces, pieces x `d_model`.
    ///
    /// # Errors
    /// None for a checkpoint that was loaded.
    pub fn embedding(&self) -> Result<&Tensor> {
        self.tensor(tensors::EMBEDDING)
    }
}
