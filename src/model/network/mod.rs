//! The network expert: an encoder-decoder of the T5 family, evaluated exactly.
//!
//! The encoder reads latents, the decoder predicts the tokens of a chunk one after another. All numbers
//! are integers (docs/exactness.md, "The network"): weights and activations have 8 bits, the residual
//! stream has 16. [`exact`] defines every operation; an [`Engine`] computes them fast, and all engines
//! give the same result bit for bit, whatever the batch, the path or the number of threads.
//!
//! Differences from T5 (Raffel et al. 2020, section 2.1): relative position biases belong to each layer
//! instead of being shared with the first, the output head is factored into a class of tokens and a
//! token of the class, and feed-forward layers may square what ReLU lets through.

pub mod config;
pub mod exact;
mod files;
pub mod reference;
pub mod simd;
mod weights;

pub use config::{Config, FeedForward, Ngrams};
pub use files::Values;
pub use weights::{Attention, Embedding, Layer, Linear, Weights};

use super::ModelError;

/// A network: its shape and its numbers. Both have been checked, so that no engine can overflow.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    config: Config,
    weights: Weights,
}

impl Network {
    /// A network of its parts.
    ///
    /// # Errors
    /// If a size, a shape or a value is outside the bounds that exactness rests on.
    pub fn new(config: Config, weights: Weights) -> Result<Network, ModelError> {
        config.check()?;
        weights.check(&config)?;
        Ok(Network { config, weights })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// What the encoder makes of the latents of one chunk or extent: a row of `d_model` activations for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub rows: Vec<i8>,
    /// Number of latents.
    pub len: usize,
}

/// A chunk for the teacher-forced path.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// Tokens, each below `vocab_size`; at most `max_tokens`.
    pub tokens: &'a [u16],
    /// Latents that the encoder has read; empty if there are none.
    pub memory: &'a Memory,
}

/// Evaluates a network.
///
/// *Hidden rows* are the normalised activations behind the last layer, `d_model` for each position, from
/// which the two heads make logits in units of 1/256 nat.
pub trait Engine {
    /// Reads latents: `latents[i]` gives the i-th memory.
    ///
    /// # Errors
    /// If a latent is not of the alphabet or there are more than `max_latents`, or if the device fails.
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>, ModelError>;

    /// Hidden rows for every position of every chunk: row t predicts token t and has seen those before it.
    fn hidden(&self, chunks: &[Chunk]) -> Result<Vec<Vec<i8>>, ModelError>;

    /// Room for `slots` streams of the step-by-step path.
    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>, ModelError>;

    /// Logits of the classes for each hidden row.
    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>, ModelError>;

    /// Logits of the tokens of `class` for each hidden row.
    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>, ModelError>;
}

/// Streams that are decoded step by step; each occupies a slot, and slots are used again.
pub trait Batch {
    /// Puts a stream at the start of a chunk into a slot.
    ///
    /// # Errors
    /// If there is no such slot, the memory is not of this network, or the device fails.
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<(), ModelError>;

    /// One step of some streams, no slot twice: what each has decoded last, `None` at its start. Returns
    /// their hidden rows, one behind the other. The result for a stream does not depend on the others.
    ///
    /// # Errors
    /// If a step does not fit its stream, in which case no stream has moved, or if the device fails.
    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>, ModelError>;
}

/// One stream's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub slot: usize,
    /// The token before the position that is predicted; `None` at the start of a chunk.
    pub token: Option<u16>,
}

/// The tokens that a stream has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    tokens: Vec<u16>,
    positions: usize,
}

impl Seen {
    /// Err if `token` cannot be the next one.
    fn check(&self, config: &Config, token: Option<u16>) -> Result<(), ModelError> {
        let known = token.is_none_or(|t| usize::from(t) < config.vocab_size);
        let fits = known && token.is_some() == (self.positions > 0);
        match fits && self.positions < config.max_tokens {
            true => Ok(()),
            false => Err(ModelError::Input("not a token of this position".into())),
        }
    }

    fn push(&mut self, token: Option<u16>) {
        self.tokens.extend(token);
        self.positions += 1;
    }
}

/// Checks a step of streams: every slot exists, occurs once, and can take its token.
pub(super) fn check_steps<'a>(
    config: &Config,
    steps: &[Step],
    seen: impl Fn(usize) -> Option<&'a Seen>,
) -> Result<(), ModelError> {
    let mut slots: Vec<usize> = steps.iter().map(|step| step.slot).collect();
    slots.sort_unstable();
    if slots.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(ModelError::Input("a slot occurs twice in a step".into()));
    }
    for step in steps {
        let seen = seen(step.slot).ok_or_else(|| ModelError::Input("no such slot".into()))?;
        seen.check(config, step.token)?;
    }
    Ok(())
}

/// Checks the input of the teacher-forced path.
pub(super) fn check_chunks(config: &Config, chunks: &[Chunk]) -> Result<(), ModelError> {
    for chunk in chunks {
        if chunk.tokens.len() > config.max_tokens {
            return Err(ModelError::Input("a chunk has too many tokens".into()));
        }
        if chunk
            .tokens
            .iter()
            .any(|&t| usize::from(t) >= config.vocab_size)
        {
            return Err(ModelError::Input("a token outside the vocabulary".into()));
        }
        check_memory(config, chunk.memory)?;
    }
    Ok(())
}

pub(super) fn check_memory(config: &Config, memory: &Memory) -> Result<(), ModelError> {
    let fits = memory.len <= config.max_latents
        && memory.rows.len() == memory.len * config.d_model
        && memory.rows.iter().all(|&a| a != i8::MIN);
    fits.then_some(())
        .ok_or_else(|| ModelError::Input("a memory that is not of this network".into()))
}

pub(super) fn check_latents(config: &Config, latents: &[&[u16]]) -> Result<(), ModelError> {
    let fits = |stream: &&[u16]| {
        stream.len() <= config.max_latents
            && stream.iter().all(|&c| usize::from(c) < config.latent_vocab)
    };
    latents
        .iter()
        .all(fits)
        .then_some(())
        .ok_or_else(|| ModelError::Input("latents that are not of this network".into()))
}

pub(super) fn check_class(config: &Config, class: usize) -> Result<(), ModelError> {
    match class < config.classes.len() {
        true => Ok(()),
        false => Err(ModelError::Input("no such class".into())),
    }
}
