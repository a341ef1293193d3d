//! The network expert: an encoder-decoder of the T5 family, evaluated exactly.
//!
//! The encoder reads latents, the decoder predicts the tokens of a sequence one after another, from the
//! latents and a sliding window of the tokens before. All numbers are integers (docs/exactness.md, "The
//! network"): weights and activations have 8 bits, the residual stream has 16. [`exact`] defines every
//! operation; an [`Engine`] computes them fast, and all engines give the same result bit for bit, whatever
//! the batch, the path or the number of threads.
//!
//! Differences from T5 (Raffel et al. 2020, section 2.1): relative position biases belong to each layer
//! instead of being shared with the first, the output head is factored into a class of tokens and a
//! token of the class, and feed-forward layers may square what ReLU lets through.

pub(crate) mod bench;
pub mod config;
pub mod exact;
mod files;
pub mod reference;
pub mod simd;
mod weights;

pub use config::{Config, FeedForward, Ngrams};
pub use files::Values;
pub use weights::{Attention, Embedding, Layer, Linear, Weights};

use self::config::NGRAM_MAX;
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

/// What the encoder makes of the latents of one sequence: a row of `d_model` activations for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    pub rows: Vec<i8>,
    /// Number of latents.
    pub len: usize,
}

/// Most tokens of a sequence: more than an extent can have.
pub const SEQUENCE_MAX: usize = 1 << 21;

/// A sequence for the teacher-forced path, of up to [`SEQUENCE_MAX`] tokens. Each position sees itself
/// and the `window - 1` positions before it.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Tokens, each below `vocab_size`.
    pub tokens: &'a [u16],
    /// Latents that the encoder has read; empty if there are none.
    pub memory: &'a Memory,
}

/// Evaluates a network.
///
/// *Hidden rows* are the normalised activations behind the last layer, `d_model` for each position, from
/// which the two heads make logits in units of 1/256 nat.
pub trait Engine: Send + Sync {
    /// Reads latents: `latents[i]` gives the i-th memory.
    ///
    /// # Errors
    /// If a latent is not of the alphabet or there are more than `max_latents`, or if the device fails.
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>, ModelError>;

    /// Hidden rows for every position of every sequence: row t predicts token t and has seen those before it.
    ///
    /// # Errors
    /// If a sequence is not of this network, or if the device fails.
    fn hidden(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>, ModelError>;

    /// Room for `slots` streams of the step-by-step path.
    ///
    /// # Errors
    /// If the device fails.
    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>, ModelError>;

    /// Logits of the classes for each hidden row.
    ///
    /// # Errors
    /// If the device fails.
    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>, ModelError>;

    /// Logits of the tokens of `class` for each hidden row.
    ///
    /// # Errors
    /// If there is no such class, or if the device fails.
    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>, ModelError>;
}

/// Streams that are decoded step by step; each occupies a slot, and slots are used again.
pub trait Batch: Send {
    /// Puts a stream at the start of a sequence into a slot.
    ///
    /// # Errors
    /// If there is no such slot, the memory is not of this network, or the device fails.
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<(), ModelError>;

    /// One step of some streams, no slot twice. Returns the hidden row that predicts the next token of
    /// each, one behind the other. The result for a stream does not depend on the others, nor on how its
    /// tokens are spread over steps.
    ///
    /// # Errors
    /// If a step does not fit its stream, in which case no stream has moved, or if the device fails, after
    /// which streams must be started again.
    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>, ModelError>;
}

/// One stream's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    pub slot: usize,
    /// The tokens that have been decoded since the stream's last step. A stream's first step may have
    /// none, every other has at least one.
    pub tokens: &'a [u16],
}

/// How far a stream has come, and its last tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// At most [`NGRAM_MAX`], the newest last.
    recent: Vec<u16>,
    positions: usize,
}

impl Seen {
    /// Err if `tokens` cannot be the next ones.
    fn check(&self, config: &Config, tokens: &[u16]) -> Result<(), ModelError> {
        let known = tokens.iter().all(|&t| usize::from(t) < config.vocab_size);
        let moves = self.positions == 0 || !tokens.is_empty();
        match known && moves && tokens.len() + self.positions < SEQUENCE_MAX {
            true => Ok(()),
            false => Err(ModelError::Input("not the next tokens of a stream".into())),
        }
    }

    /// What enters at each of the next positions: the token before it, nothing at the start.
    fn inputs<'a>(&self, tokens: &'a [u16]) -> impl Iterator<Item = Option<u16>> + use<'a> {
        let start = (self.positions == 0).then_some(None);
        start.into_iter().chain(tokens.iter().copied().map(Some))
    }

    fn push(&mut self, token: Option<u16>) {
        if self.recent.len() == NGRAM_MAX {
            self.recent.remove(0);
        }
        self.recent.extend(token);
        self.positions += 1;
    }

    /// The row of the token table that the newest position takes.
    fn token_row(&self, config: &Config) -> usize {
        let newest = self.recent.last();
        newest.map_or(config.vocab_size, |&token| usize::from(token))
    }

    /// The row of a table of n-grams, if there are as many tokens.
    fn ngram_row(&self, length: usize, slots: usize) -> Option<usize> {
        let newest_first = self.recent.iter().rev().take(length).copied();
        (self.recent.len() >= length).then(|| exact::ngram_slot(newest_first, slots))
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
        seen.check(config, step.tokens)?;
    }
    Ok(())
}

/// Checks the input of the teacher-forced path.
pub(super) fn check_sequences(config: &Config, sequences: &[Sequence]) -> Result<(), ModelError> {
    for sequence in sequences {
        let known = |&t: &u16| usize::from(t) < config.vocab_size;
        if sequence.tokens.len() > SEQUENCE_MAX {
            return Err(ModelError::Input("a sequence has too many tokens".into()));
        }
        if !sequence.tokens.iter().all(known) {
            return Err(ModelError::Input("a token outside the vocabulary".into()));
        }
        check_memory(config, sequence.memory)?;
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

/// Checks hidden rows that come back for their logits.
pub(super) fn check_rows(config: &Config, rows: &[i8]) -> Result<(), ModelError> {
    let fits = rows.len().is_multiple_of(config.d_model) && rows.iter().all(|&a| a != i8::MIN);
    fits.then_some(())
        .ok_or_else(|| ModelError::Input("rows that are not of this network".into()))
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
