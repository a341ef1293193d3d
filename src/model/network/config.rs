//! The shape of a network.

use serde::{Deserialize, Serialize};

use super::exact::{KEYS_MAX, MODEL_DIM_MAX};
use crate::model::ModelError;

/// Largest inner dimension of any product: 127 * 127 * 2^16 < 2^31.
const INNER_MAX: usize = 1 << 16;
/// Largest dimension of one head: 127 * 127 * 512 < 2^24, so a score is exact in single precision.
const HEAD_DIM_MAX: usize = 512;
const LAYERS_MAX: usize = 64;
/// Most heads of all layers together: bounds the tables of biases, which are not in the file.
const HEADS_MAX: usize = 1024;
/// Tokens are coded in 16 bits.
const VOCAB_MAX: usize = 1 << 16;
const NGRAM_SLOTS_MAX: usize = 1 << 24;
/// Longest n-gram.
pub(super) const NGRAM_MAX: usize = 4;

/// What stands between the two matrices of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// max(x, 0), as in T5.
    Relu,
    /// max(x, 0)^2 (So et al. 2021, "Primer").
    SquaredRelu,
}

/// Hashed n-gram embeddings: look-ups that are added to the embedding of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ngrams {
    /// Rows of each table: a power of two.
    pub slots: usize,
    /// Length of the n-grams of each table: 2 to 4 tokens.
    pub lengths: Vec<usize>,
}

/// The shape of a network, `config.json` beside its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens of the decoder.
    pub vocab_size: usize,
    /// Alphabet of the latents that the encoder reads.
    pub latent_vocab: usize,
    /// Keys that a position of the decoder sees: its own and those of the positions before it.
    pub window: usize,
    /// Most latents of a sequence; 0 if there is no encoder.
    pub max_latents: usize,
    pub d_model: usize,
    /// Dimension of one head.
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_heads: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    pub num_decoder_layers: usize,
    pub relative_attention_num_buckets: usize,
    pub relative_attention_max_distance: usize,
    pub feed_forward: FeedForward,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ngrams: Option<Ngrams>,
    /// The first token of every class, ascending from 0: a class is a range of tokens.
    pub classes: Vec<u16>,
}

impl Config {
    /// Dimension of all heads together.
    pub fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// Tokens of a class, which must exist.
    pub fn class_range(&self, class: usize) -> std::ops::Range<usize> {
        let end = self.classes.get(class + 1);
        usize::from(self.classes[class])..end.map_or(self.vocab_size, |&first| usize::from(first))
    }

    /// Err unless every size is within the bounds that docs/exactness.md derives.
    pub fn check(&self) -> Result<(), ModelError> {
        let refuse = |what: &str| Err(ModelError::Damaged(format!("network: {what}")));
        let within = |value: usize, least: usize, most: usize| (least..=most).contains(&value);
        let sizes = within(self.vocab_size, 2, VOCAB_MAX)
            && within(self.window, 1, KEYS_MAX)
            && within(self.d_model, 1, MODEL_DIM_MAX)
            && within(self.d_kv, 1, HEAD_DIM_MAX)
            && within(self.d_ff, 1, INNER_MAX)
            && within(self.num_heads, 1, 256)
            && within(self.inner(), 1, INNER_MAX)
            && within(self.num_decoder_layers, 1, LAYERS_MAX);
        if !sizes {
            return refuse("a size is out of range");
        }
        let encoder = within(self.max_latents, 1, KEYS_MAX)
            && within(self.latent_vocab, 1, VOCAB_MAX)
            && within(self.num_layers, 1, LAYERS_MAX);
        let no_encoder = (self.max_latents, self.latent_vocab, self.num_layers) == (0, 0, 0);
        if !encoder && !no_encoder {
            return refuse("the encoder's sizes do not fit each other");
        }
        if self.num_heads * (self.num_layers + self.num_decoder_layers) > HEADS_MAX {
            return refuse("too many heads");
        }
        let (buckets, distance) = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        );
        if !within(buckets, 4, 256) || buckets % 4 != 0 || !within(distance, buckets, 1 << 16) {
            return refuse("impossible buckets of relative positions");
        }
        if let Some(ngrams) = &self.ngrams {
            let fits = ngrams.slots.is_power_of_two()
                && ngrams.slots <= NGRAM_SLOTS_MAX
                && within(ngrams.lengths.len(), 1, 4)
                && ngrams.lengths.iter().all(|&n| within(n, 2, NGRAM_MAX));
            if !fits {
                return refuse("impossible n-gram tables");
            }
        }
        let ascending = self.classes.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self
            .classes
            .iter()
            .all(|&c| usize::from(c) < self.vocab_size);
        if self.classes.first() != Some(&0) || !ascending || !inside {
            return refuse("the classes do not divide the vocabulary");
        }
        Ok(())
    }
}
