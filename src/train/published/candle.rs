//! A published model as candle-transformers computes it.
//!
//! Two things of candle-transformers 0.11.1 are put right from outside. Its decoder spreads relative positions over
//! half of the buckets, as if it could look ahead; twice the buckets, the second half never used, give what T5
//! does. And where the embedding is the head it multiplies hidden rows by the root of `d_model` instead of
//! dividing them, which moves no maximum, but is no distribution that anybody trained.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::t5;

use super::tensors::Tensors;
use super::{Activation, Checkpoint, Config, Result};
use crate::train::t5::bias_name;

/// A model that candle-transformers runs.
#[derive(Debug)]
pub struct CandleT5 {
    encoder: t5::T5EncoderModel,
    decoder: t5::T5ForConditionalGeneration,
    /// What its logits must be multiplied by.
    scale: f64,
}

fn settings(config: &Config) -> t5::Config {
    let (gated, activation) = match config.activation {
        Activation::Relu => (false, candle_nn::Activation::Relu),
        Activation::GatedGelu => (true, candle_nn::Activation::NewGelu),
    };
    t5::Config {
        vocab_size: config.vocab_size,
        d_model: config.d_model,
        d_kv: config.d_kv,
        d_ff: config.d_ff,
        num_layers: config.num_layers,
        num_decoder_layers: Some(config.num_decoder_layers),
        num_heads: config.num_heads,
        relative_attention_num_buckets: config.relative_attention_num_buckets,
        relative_attention_max_distance: config.relative_attention_max_distance,
        layer_norm_epsilon: config.epsilon,
        feed_forward_proj: t5::ActivationWithOptionalGating { gated, activation },
        tie_word_embeddings: config.tied,
        pad_token_id: config.start as usize,
        eos_token_id: config.end as usize,
        decoder_start_token_id: Some(config.start as usize),
        ..t5::Config::default()
    }
}

impl CandleT5 {
    /// The model of a checkpoint, whose tensors it shares.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(checkpoint: &Checkpoint) -> Result<CandleT5> {
        let config = &checkpoint.config;
        let build =
            |tensors: Tensors| VarBuilder::from_tensors(tensors, DType::F32, &checkpoint.device);
        let settings = settings(config);
        let encoder = t5::T5EncoderModel::load(build(checkpoint.tensors.clone()), &settings)?;
        let name = bias_name("decoder");
        let bias = checkpoint.tensor(&name)?;
        let mut tensors = checkpoint.tensors.clone();
        tensors.insert(name, Tensor::cat(&[bias, &bias.zeros_like()?], 0)?);
        let settings = t5::Config {
            // the encoder has been loaded above
            num_layers: 0,
            relative_attention_num_buckets: 2 * config.relative_attention_num_buckets,
            ..settings
        };
        let decoder = t5::T5ForConditionalGeneration::load(build(tensors), &settings)?;
        let scale = match config.tied {
            true => 1.0 / config.d_model as f64,
            false => 1.0,
        };
        Ok(CandleT5 {
            encoder,
            decoder,
            scale,
        })
    }

    /// What the encoder makes of its inputs, batch x pieces.
    ///
    /// # Errors
    /// If a piece is not of the vocabulary, or the device fails.
    pub fn encode(&mut self, inputs: &Tensor) -> Result<Tensor> {
        Ok(self.encoder.forward(inputs)?)
    }

    /// Makes the decoder forget all streams, so that the next pieces are their first.
    pub fn restart(&mut self) {
        self.decoder.clear_kv_cache();
    }

    /// Appends pieces, batch x pieces, to the streams of the decoder and returns the logits behind the last,
    /// batch x vocabulary. More than one piece at once is possible at the start only.
    ///
    /// # Errors
    /// If a piece is not of the vocabulary, the batch changes between restarts, or the device fails.
    pub fn step(&mut self, pieces: &Tensor, memory: &Tensor) -> Result<Tensor> {
        let logits = self.decoder.decode(pieces, memory)?;
        Ok((logits * self.scale)?)
    }
}
