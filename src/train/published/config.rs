//! `config.json` of a published checkpoint.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

use super::pieces::TOKENIZER;
use super::tensors::WHOLE;
use super::{PublishedError, Result};
use crate::train::t5::{self, Sizes};

/// Name of the file.
pub(super) const CONFIG: &str = "config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Class of the tokenizer that has no file, because its pieces are bytes.
const BYTE_TOKENIZER: &str = "ByT5Tokenizer";
/// Architectures that are T5: mT5 differs in its training only.
const MODEL_TYPES: [&str; 2] = ["t5", "mt5"];

/// What stands between the matrices of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0): T5 v1.0.
    Relu,
    /// gelu(gate) * x, with the approximation of GELU by tanh: T5 v1.1, flan-t5, mT5, ByT5 (Shazeer 2020).
    GatedGelu,
}

/// The shape of a published T5.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
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
    /// What a normalisation adds to the mean of squares.
    pub epsilon: f64,
    pub activation: Activation,
    /// Whether the embedding is the head as well.
    pub tied: bool,
    /// The piece that the decoder starts from.
    pub start: u32,
    /// The piece that ends a text; alone, it is the encoder's empty input.
    pub end: u32,
    /// Whether pieces are bytes (ByT5), which need no `tokenizer.json`.
    pub bytes: bool,
}

/// The fields that matter, with the defaults of Hugging Face's `T5Config`.
#[derive(Deserialize)]
struct Fields {
    model_type: Option<String>,
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_heads: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    is_encoder_decoder: bool,
    #[serde(default)]
    pad_token_id: u32,
    #[serde(default = "end")]
    eos_token_id: u32,
    decoder_start_token_id: Option<u32>,
    tokenizer_class: Option<String>,
}

fn buckets() -> usize {
    32
}

fn distance() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

fn relu() -> String {
    "relu".into()
}

fn yes() -> bool {
    true
}

fn end() -> u32 {
    1
}

#[derive(Deserialize)]
struct TokenizerFields {
    tokenizer_class: Option<String>,
}

fn wrong(what: impl std::fmt::Display) -> PublishedError {
    PublishedError::File {
        file: CONFIG.into(),
        what: what.to_string(),
    }
}

impl Config {
    /// Dimension of all heads together.
    pub fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// What its layers share.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            d_model: self.d_model,
            d_kv: self.d_kv,
            d_ff: self.d_ff,
            heads: self.num_heads,
            buckets: self.relative_attention_num_buckets,
            distance: self.relative_attention_max_distance,
            epsilon: self.epsilon,
            activation: match self.activation {
                Activation::Relu => t5::Activation::Relu,
                Activation::GatedGelu => t5::Activation::GatedGelu,
            },
        }
    }

    /// Reads the configuration in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Config> {
        let json = read(dir, CONFIG)?;
        let fields: Fields = serde_json::from_slice(&json).map_err(wrong)?;
        let named = match &fields.tokenizer_class {
            Some(class) => Some(class.clone()),
            None => tokenizer_class(dir)?,
        };
        Config::new(fields, named.as_deref() == Some(BYTE_TOKENIZER))
    }

    fn new(fields: Fields, bytes: bool) -> Result<Config> {
        let known = |model: &String| MODEL_TYPES.contains(&model.as_str());
        if let Some(model) = fields.model_type.filter(|model| !known(model)) {
            return Err(wrong(format!("a model of type {model}, not T5")));
        }
        if !fields.is_encoder_decoder {
            return Err(wrong("not an encoder and a decoder"));
        }
        let activation = match fields.feed_forward_proj.as_str() {
            "relu" => Activation::Relu,
            "gated-gelu" => Activation::GatedGelu,
            other => return Err(wrong(format!("unknown feed_forward_proj {other:?}"))),
        };
        let config = Config {
            vocab_size: fields.vocab_size,
            d_model: fields.d_model,
            d_kv: fields.d_kv,
            d_ff: fields.d_ff,
            num_heads: fields.num_heads,
            num_layers: fields.num_layers,
            num_decoder_layers: fields.num_decoder_layers.unwrap_or(fields.num_layers),
            relative_attention_num_buckets: fields.relative_attention_num_buckets,
            relative_attention_max_distance: fields.relative_attention_max_distance,
            epsilon: fields.layer_norm_epsilon,
            activation,
            tied: fields.tie_word_embeddings,
            start: fields.decoder_start_token_id.unwrap_or(fields.pad_token_id),
            end: fields.eos_token_id,
            bytes,
        };
        config.check()?;
        Ok(config)
    }

    /// Err unless the sizes can be those of a T5.
    fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("d_model", self.d_model, 1 << 16),
            ("d_kv", self.d_kv, 1 << 12),
            ("d_ff", self.d_ff, 1 << 20),
            ("num_heads", self.num_heads, 1 << 10),
            ("num_layers", self.num_layers, 1 << 10),
            ("num_decoder_layers", self.num_decoder_layers, 1 << 10),
            (
                "relative_attention_max_distance",
                self.relative_attention_max_distance,
                1 << 20,
            ),
        ];
        for (name, size, most) in sizes {
            if !(1..=most).contains(&size) {
                return Err(wrong(format!("{name} is {size}")));
            }
        }
        let buckets = self.relative_attention_num_buckets;
        if !(4..=1 << 12).contains(&buckets)
            || !buckets.is_multiple_of(4)
            || self.relative_attention_max_distance <= buckets / 2
        {
            return Err(wrong(format!(
                "relative_attention_num_buckets is {buckets}, relative_attention_max_distance {}",
                self.relative_attention_max_distance
            )));
        }
        if !(0.0..1.0).contains(&self.epsilon) {
            return Err(wrong(format!("layer_norm_epsilon is {}", self.epsilon)));
        }
        for (name, id) in [
            ("decoder_start_token_id", self.start),
            ("eos_token_id", self.end),
        ] {
            if id as usize >= self.vocab_size {
                return Err(wrong(format!(
                    "{name} is {id}, the vocabulary has {} pieces",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }
}

/// The contents of a file of the checkpoint.
pub(super) fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let file = dir.join(name);
    std::fs::read(&file).map_err(|source| match source.kind() {
        ErrorKind::NotFound => PublishedError::Missing {
            hint: hint(dir, name),
            file,
        },
        _ => PublishedError::Read { file, source },
    })
}

/// What to do about a file that is not there.
fn hint(dir: &Path, name: &str) -> String {
    // what other programs read instead, and how the files come into being
    let others = [
        (
            WHOLE,
            "pytorch_model.bin",
            "save_pretrained of transformers, with safe_serialization",
        ),
        (
            TOKENIZER,
            "spiece.model",
            "save_pretrained of transformers' AutoTokenizer",
        ),
    ];
    let is_there = |other: &str| dir.join(other).exists();
    for (file, other, by) in others {
        if file == name && is_there(other) {
            return format!("make it from {other} by {by}");
        }
    }
    format!(
        "copy it from where the checkpoint comes from; a directory with {CONFIG}, {WHOLE} and {TOKENIZER} is needed"
    )
}

/// What `tokenizer_config.json` says, if it is there.
fn tokenizer_class(dir: &Path) -> Result<Option<String>> {
    if !dir.join(TOKENIZER_CONFIG).exists() {
        return Ok(None);
    }
    let fields: TokenizerFields =
        serde_json::from_slice(&read(dir, TOKENIZER_CONFIG)?).map_err(|error| {
            PublishedError::File {
                file: TOKENIZER_CONFIG.into(),
                what: error.to_string(),
            }
        })?;
    Ok(fields.tokenizer_class)
}
