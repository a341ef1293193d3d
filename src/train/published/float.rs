//! A published T5 in floats, teacher-forced, with parameters that can be trained ([`crate::train::t5`]).
//!
//! Unlike the network of [`crate::train::network`], which has the roundings of the exact engines, it is what
//! published weights were made for.

use candle_core::{Result as CandleResult, Tensor, Var};
use candle_nn::loss::cross_entropy;

use super::tensors::{EMBEDDING, HEAD};
use super::{Checkpoint, Config, PublishedError, Result};
use crate::train::network::float::Parameter;
use crate::train::t5::{DECODER, ENCODER, Memory, Stack, multiply};

/// A whole T5.
#[derive(Debug)]
pub struct FloatT5 {
    config: Config,
    /// Vocabulary x `d_model`, shared by encoder and decoder.
    tokens: Var,
    /// Vocabulary x `d_model`; absent where it is the embedding.
    head: Option<Var>,
    encoder: Stack,
    decoder: Stack,
}

impl FloatT5 {
    /// A model that starts from a checkpoint, whose tensors it copies.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(checkpoint: &Checkpoint) -> Result<FloatT5> {
        let config = checkpoint.config.clone();
        let head = (!config.tied).then(|| checkpoint.head());
        let head = head.transpose()?.map(Var::from_tensor).transpose()?;
        let mut var = |name: &str| Ok(Var::from_tensor(checkpoint.tensor(name)?)?);
        let mut stack =
            |name, layers| Stack::new::<PublishedError>(name, layers, config.sizes(), &mut var);
        Ok(FloatT5 {
            tokens: Var::from_tensor(checkpoint.embedding()?)?,
            head,
            encoder: stack(ENCODER, config.num_layers)?,
            decoder: stack(DECODER, config.num_decoder_layers)?,
            config,
        })
    }

    /// All parameters under their published names, for [`crate::train::network::optimiser::Optimiser`].
    pub fn parameters(&self) -> Vec<Parameter> {
        let single = |name: &str, var: &Var| Parameter {
            name: name.to_owned(),
            var: var.clone(),
            is_matrix: false,
            is_embedding: name == EMBEDDING,
        };
        let mut all = vec![single(EMBEDDING, &self.tokens)];
        all.extend(self.head.as_ref().map(|head| single(HEAD, head)));
        all.extend(self.encoder.parameters());
        all.extend(self.decoder.parameters());
        all
    }

    /// What the encoder makes of inputs that all have `positions` pieces: batch x pieces x `d_model`.
    ///
    /// # Errors
    /// If a piece is not of the vocabulary, there are none, or the device fails.
    pub fn encode(&self, inputs: &[u32], positions: usize) -> Result<Tensor> {
        let x = self.embed(inputs, positions)?;
        Ok(self.encoder.read(&x, None, None)?)
    }

    /// Logits behind every piece of streams that all have `positions` pieces, the start among them: batch x
    /// pieces x vocabulary. `memory` is what the encoder made of each stream's input.
    ///
    /// # Errors
    /// As for [`FloatT5::encode`], or if the memory is of another batch.
    pub fn logits(&self, memory: &Tensor, pieces: &[u32], positions: usize) -> Result<Tensor> {
        let memory = Memory {
            rows: memory.clone(),
            hidden: None,
        };
        let x = self.embed(pieces, positions)?;
        let hidden = self.decoder.read(&x, None, Some(&memory))?;
        let logits = match &self.head {
            Some(head) => multiply(&hidden, head)?,
            None => {
                let scale = 1.0 / (self.config.d_model as f64).sqrt();
                multiply(&(hidden * scale)?, &self.tokens)?
            }
        };
        Ok(logits)
    }

    /// Mean cost in nats of the pieces of chunks that all have `positions` pieces; the decoder starts each
    /// from the start piece.
    ///
    /// # Errors
    /// As for [`FloatT5::logits`].
    pub fn loss(&self, memory: &Tensor, chunks: &[u32], positions: usize) -> Result<Tensor> {
        let inputs: Vec<u32> = (0..chunks.len())
            .map(|at| match at % positions {
                0 => self.config.start,
                _ => chunks[at - 1],
            })
            .collect();
        let logits = self.logits(memory, &inputs, positions)?;
        let targets = Tensor::new(chunks, logits.device())?;
        Ok(cross_entropy(&logits.flatten_to(1)?, &targets)?)
    }

    /// The largest value of the decoder's residual stream, up or down, when it reads one stream of pieces and
    /// no memory.
    ///
    /// # Errors
    /// As for [`FloatT5::encode`].
    pub fn peak(&self, pieces: &[u32]) -> Result<f32> {
        let mut most = 0f32;
        let mut look = |x: &Tensor| -> CandleResult<()> {
            most = most.max(x.abs()?.max_all()?.to_scalar::<f32>()?);
            Ok(())
        };
        let x = self.embed(pieces, pieces.len())?;
        self.decoder.residual(&x, None, None, &mut look)?;
        Ok(most)
    }

    /// What enters the residual stream: batch x positions x `d_model`.
    fn embed(&self, pieces: &[u32], positions: usize) -> Result<Tensor> {
        if positions == 0 || pieces.is_empty() || !pieces.len().is_multiple_of(positions) {
            return Err(PublishedError::Input("streams of different lengths".into()));
        }
        if pieces
            .iter()
            .any(|&id| id as usize >= self.config.vocab_size)
        {
            return Err(PublishedError::Input(
                "a piece outside the vocabulary".into(),
            ));
        }
        let ids = Tensor::new(pieces, self.tokens.device())?;
        let x = self.tokens.index_select(&ids, 0)?;
        Ok(x.reshape(((), positions, self.config.d_model))?)
    }
}
