//! The numbers of a network.

use super::config::Config;
use super::exact::{BIAS_MAX, EMBEDDING_SCALE_MAX, GAIN_MAX, PRODUCT_SCALE_MAX, SCALE_MAX};
use crate::model::ModelError;

/// A matrix without bias: row o of the output is the scaled product of row o with the input.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Linear {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Row by row, within +-127.
    pub weight: Vec<i8>,
    /// Of each row, in units of 2^-22, 0 to 2^20.
    pub scale: Vec<i32>,
}

/// Rows that are looked up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embedding {
    pub rows: usize,
    pub columns: usize,
    /// Row by row, within +-127.
    pub weight: Vec<i8>,
    /// What a row is multiplied by when it enters the residual stream, 0 to 258.
    pub scale: i32,
}

/// Attention of one layer, its normalisation included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attention {
    /// Gains of the normalisation before it.
    pub norm: Vec<i32>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    /// Scale of the scores of each head, in units of 2^-22.
    pub score: Vec<i32>,
    /// Gain of the output of each head, in units of 2^-8.
    pub gain: Vec<i32>,
    /// Biases of the scores by head and bucket of relative position, in units of 1/32 nat; none in cross-attention.
    pub bias: Vec<i32>,
}

/// One layer of encoder or decoder.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layer {
    pub attention: Attention,
    /// Attention to the latents; in decoder layers of a network with an encoder.
    pub cross: Option<Attention>,
    /// Gains of the normalisation before the feed-forward part.
    pub norm: Vec<i32>,
    pub up: Linear,
    pub down: Linear,
}

/// All numbers of a network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights {
    /// Tokens, and behind them the start of a sequence.
    pub tokens: Embedding,
    /// One table for each length of n-grams.
    pub ngrams: Vec<Embedding>,
    pub latents: Option<Embedding>,
    pub encoder: Vec<Layer>,
    pub encoder_norm: Vec<i32>,
    pub decoder: Vec<Layer>,
    pub decoder_norm: Vec<i32>,
    pub class_head: Linear,
    /// Biases of the class logits, in units of 1/256 nat.
    pub class_bias: Vec<i32>,
    pub token_head: Linear,
    /// Biases of the token logits, in units of 1/256 nat.
    pub token_bias: Vec<i32>,
}

/// Checks shapes and ranges, and names the first tensor that is wrong.
struct Checker {
    place: String,
}

impl Checker {
    fn at(place: impl Into<String>) -> Checker {
        Checker {
            place: place.into(),
        }
    }

    fn refuse(&self, name: &str, what: &str) -> ModelError {
        ModelError::Damaged(format!("network: {}{name} {what}", self.place))
    }

    fn shape(&self, name: &str, found: usize, wanted: usize) -> Result<(), ModelError> {
        match found == wanted {
            true => Ok(()),
            false => Err(self.refuse(name, &format!("has {found} values instead of {wanted}"))),
        }
    }

    fn bytes(&self, name: &str, values: &[i8], wanted: usize) -> Result<(), ModelError> {
        self.shape(name, values.len(), wanted)?;
        match values.contains(&i8::MIN) {
            true => Err(self.refuse(name, "contains -128")),
            false => Ok(()),
        }
    }

    fn numbers(
        &self,
        name: &str,
        values: &[i32],
        wanted: usize,
        range: std::ops::RangeInclusive<i32>,
    ) -> Result<(), ModelError> {
        self.shape(name, values.len(), wanted)?;
        match values.iter().find(|value| !range.contains(value)) {
            Some(value) => Err(self.refuse(name, &format!("contains {value}"))),
            None => Ok(()),
        }
    }

    fn linear(
        &self,
        name: &str,
        linear: &Linear,
        rows: usize,
        columns: usize,
    ) -> Result<(), ModelError> {
        self.shape(&format!("{name} rows"), linear.rows, rows)?;
        self.shape(&format!("{name} columns"), linear.columns, columns)?;
        self.bytes(name, &linear.weight, rows * columns)?;
        self.numbers(
            &format!("{name} scale"),
            &linear.scale,
            rows,
            0..=PRODUCT_SCALE_MAX,
        )
    }

    fn embedding(
        &self,
        name: &str,
        embedding: &Embedding,
        rows: usize,
        columns: usize,
    ) -> Result<(), ModelError> {
        self.shape(&format!("{name} rows"), embedding.rows, rows)?;
        self.shape(&format!("{name} columns"), embedding.columns, columns)?;
        self.bytes(name, &embedding.weight, rows * columns)?;
        self.numbers(
            &format!("{name} scale"),
            &[embedding.scale],
            1,
            0..=EMBEDDING_SCALE_MAX,
        )
    }

    fn attention(
        &self,
        attention: &Attention,
        config: &Config,
        buckets: usize,
    ) -> Result<(), ModelError> {
        let (d, inner, heads) = (config.d_model, config.inner(), config.num_heads);
        self.numbers("norm", &attention.norm, d, 0..=GAIN_MAX)?;
        self.linear("query", &attention.query, inner, d)?;
        self.linear("key", &attention.key, inner, d)?;
        self.linear("value", &attention.value, inner, d)?;
        self.linear("output", &attention.output, d, inner)?;
        self.numbers("score", &attention.score, heads, 0..=SCALE_MAX)?;
        self.numbers("gain", &attention.gain, heads, 0..=SCALE_MAX)?;
        self.numbers(
            "bias",
            &attention.bias,
            heads * buckets,
            -BIAS_MAX..=BIAS_MAX,
        )
    }

    fn layer(&self, layer: &Layer, config: &Config, cross: bool) -> Result<(), ModelError> {
        let buckets = config.relative_attention_num_buckets;
        let (d, ff) = (config.d_model, config.d_ff);
        Checker::at(format!("{}attention.", self.place)).attention(
            &layer.attention,
            config,
            buckets,
        )?;
        match (&layer.cross, cross) {
            (Some(attention), true) => {
                Checker::at(format!("{}cross.", self.place)).attention(attention, config, 0)?;
            }
            (None, false) => {}
            _ => return Err(self.refuse("cross", "does not fit the encoder")),
        }
        self.numbers("norm", &layer.norm, d, 0..=GAIN_MAX)?;
        self.linear("up", &layer.up, ff, d)?;
        self.linear("down", &layer.down, d, ff)
    }
}

impl Weights {
    /// Err unless every shape fits `config` and every value lies within its bounds.
    pub fn check(&self, config: &Config) -> Result<(), ModelError> {
        let top = Checker::at("");
        let d = config.d_model;
        let has_encoder = config.max_latents > 0;
        top.embedding("tokens", &self.tokens, config.vocab_size + 1, d)?;
        let tables = config.ngrams.as_ref().map_or(0, |n| n.lengths.len());
        top.shape("ngrams", self.ngrams.len(), tables)?;
        for table in &self.ngrams {
            let slots = config.ngrams.as_ref().map_or(0, |n| n.slots);
            top.embedding("ngrams", table, slots, d)?;
        }
        match (&self.latents, has_encoder) {
            (Some(latents), true) => top.embedding("latents", latents, config.latent_vocab, d)?,
            (None, false) => {}
            _ => return Err(top.refuse("latents", "do not fit the encoder")),
        }
        top.shape("encoder", self.encoder.len(), config.num_layers)?;
        top.shape("decoder", self.decoder.len(), config.num_decoder_layers)?;
        for (index, layer) in self.encoder.iter().enumerate() {
            Checker::at(format!("encoder.{index}.")).layer(layer, config, false)?;
        }
        for (index, layer) in self.decoder.iter().enumerate() {
            Checker::at(format!("decoder.{index}.")).layer(layer, config, has_encoder)?;
        }
        let encoder_width = if has_encoder { d } else { 0 };
        top.numbers(
            "encoder_norm",
            &self.encoder_norm,
            encoder_width,
            0..=GAIN_MAX,
        )?;
        top.numbers("decoder_norm", &self.decoder_norm, d, 0..=GAIN_MAX)?;
        let classes = config.classes.len();
        top.linear("class_head", &self.class_head, classes, d)?;
        top.numbers(
            "class_bias",
            &self.class_bias,
            classes,
            -BIAS_MAX..=BIAS_MAX,
        )?;
        top.linear("token_head", &self.token_head, config.vocab_size, d)?;
        top.numbers(
            "token_bias",
            &self.token_bias,
            config.vocab_size,
            -BIAS_MAX..=BIAS_MAX,
        )
    }
}
