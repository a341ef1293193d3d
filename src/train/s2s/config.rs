//! The shape of a compressor.

use serde::{Deserialize, Serialize};

use super::{Result, S2sError};
use crate::model::network::FeedForward;
use crate::model::network::exact::KEYS_MAX;
use crate::train::t5;

const VERSION: u32 = 1;
/// Those of published T5 (Raffel et al. 2020).
const BUCKETS: usize = 32;
const DISTANCE: usize = 128;
const EPSILON: f64 = 1e-6;
/// Tokens and latents are stored in 16 bits.
const VOCABULARY_MAX: usize = 1 << 16;
const INPUT_MAX: usize = 1 << 14;

/// What can be chosen freely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Most tokens that it reads at a time.
    pub input: usize,
    pub d_model: usize,
    /// Layers of the encoder, and of the decoder as many.
    pub layers: usize,
    /// Heads of each attention; they divide `d_model`.
    pub heads: usize,
    pub d_ff: usize,
    #[serde(default = "relu")]
    pub feed_forward: FeedForward,
}

impl Default for Sizes {
    /// A small one, which a processor can train.
    fn default() -> Sizes {
        Sizes {
            input: 256,
            d_model: 128,
            layers: 2,
            heads: 4,
            d_ff: 512,
            feed_forward: FeedForward::Relu,
        }
    }
}

fn relu() -> FeedForward {
    FeedForward::Relu
}

/// The shape of a compressor, `config.json` beside its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    version: u32,
    /// Tokens of the vocabulary that it reads, that of the decompressor.
    pub vocab_size: usize,
    /// Number of different latents.
    pub latent_vocab: usize,
    /// Most latents of a string.
    pub max_latents: usize,
    pub sizes: Sizes,
}

impl Config {
    /// A compressor of these sizes for a decompressor with `vocab_size` tokens that reads up to `max_latents` of
    /// `latent_vocab` latents.
    ///
    /// # Errors
    /// If a size is out of range, or the heads do not divide `d_model`.
    pub fn new(
        vocab_size: usize,
        latent_vocab: usize,
        max_latents: usize,
        sizes: Sizes,
    ) -> Result<Config> {
        let config = Config {
            version: VERSION,
            vocab_size,
            latent_vocab,
            max_latents,
            sizes,
        };
        config.check().map_err(S2sError::Config)?;
        Ok(config)
    }

    /// Says what is wrong with it, if something is.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if self.version != VERSION {
            let found = self.version;
            return Err(format!("version {found}, this program reads {VERSION}"));
        }
        let sizes = &self.sizes;
        for (name, size, most) in [
            ("vocab_size", self.vocab_size, VOCABULARY_MAX),
            ("latent_vocab", self.latent_vocab, VOCABULARY_MAX),
            ("max_latents", self.max_latents, KEYS_MAX),
            ("input", sizes.input, INPUT_MAX),
            ("d_model", sizes.d_model, 1 << 14),
            ("layers", sizes.layers, 256),
            ("heads", sizes.heads, 256),
            ("d_ff", sizes.d_ff, 1 << 16),
        ] {
            if !(1..=most).contains(&size) {
                return Err(format!("{name} is {size}, it must be 1 to {most}"));
            }
        }
        if !sizes.d_model.is_multiple_of(sizes.heads) {
            let (d_model, heads) = (sizes.d_model, sizes.heads);
            return Err(format!(
                "{heads} heads do not divide a d_model of {d_model}"
            ));
        }
        Ok(())
    }

    /// The end of a string, behind all latents. The decoder starts from it as well.
    pub(super) fn end(&self) -> u32 {
        self.latent_vocab as u32
    }

    /// What its layers share.
    pub(super) fn layers(&self) -> t5::Sizes {
        let sizes = &self.sizes;
        t5::Sizes {
            d_model: sizes.d_model,
            d_kv: sizes.d_model / sizes.heads,
            d_ff: sizes.d_ff,
            heads: sizes.heads,
            buckets: BUCKETS,
            distance: DISTANCE,
            epsilon: EPSILON,
            activation: match sizes.feed_forward {
                FeedForward::Relu => t5::Activation::Relu,
                FeedForward::SquaredRelu => t5::Activation::SquaredRelu,
            },
        }
    }
}
