//! The numbers of a network in the order in which the kernels read them.

use super::super::config::Config;
use super::super::weights::{Attention, Layer, Linear};
use super::super::{Network, exact};
use super::kernels::Norm;
use super::layout::{Packed, Parts};

/// One attention, its normalisation included.
#[derive(Debug)]
pub(super) struct AttentionTables {
    pub(super) norm: Norm,
    pub(super) query: Packed,
    pub(super) key: Packed,
    pub(super) value: Packed,
    pub(super) output: Packed,
    pub(super) score: Vec<i32>,
    pub(super) gain: Vec<i32>,
    /// By head and key, in the order of the keys: in the decoder for a full window, in the encoder for keys
    /// from `max_latents` before the query to as many behind it. None in cross-attention.
    bias: Vec<i32>,
}

#[derive(Debug)]
pub(super) struct LayerTables {
    pub(super) attention: AttentionTables,
    pub(super) cross: Option<AttentionTables>,
    pub(super) norm: Norm,
    pub(super) up: Packed,
    pub(super) down: Packed,
}

#[derive(Debug)]
pub(super) struct Tables {
    pub(super) encoder: Vec<LayerTables>,
    pub(super) encoder_norm: Norm,
    pub(super) decoder: Vec<LayerTables>,
    pub(super) decoder_norm: Norm,
    pub(super) class_head: Packed,
    pub(super) token_head: Packed,
}

impl AttentionTables {
    /// `places` are those of the keys, relative to the query; `bidirectional` in the encoder.
    fn new(
        config: &Config,
        attention: &Attention,
        places: std::ops::Range<i64>,
        bidirectional: bool,
    ) -> AttentionTables {
        let heads = Parts {
            count: config.num_heads,
            width: config.d_kv,
        };
        let by_heads = |linear: &Linear| Packed::new(linear, heads, Parts::one(config.d_model));
        let buckets = config.relative_attention_num_buckets;
        let distance = config.relative_attention_max_distance;
        let bias = |head: &[i32]| -> Vec<i32> {
            let bucket = |ahead| exact::bucket(ahead, bidirectional, buckets, distance);
            places.clone().map(|ahead| head[bucket(ahead)]).collect()
        };
        AttentionTables {
            norm: Norm::new(&attention.norm),
            query: by_heads(&attention.query),
            key: by_heads(&attention.key),
            value: by_heads(&attention.value),
            output: Packed::new(&attention.output, Parts::one(config.d_model), heads),
            score: attention.score.clone(),
            gain: attention.gain.clone(),
            bias: attention
                .bias
                .chunks_exact(buckets)
                .flat_map(bias)
                .collect(),
        }
    }

    /// Biases of a head for `count` keys, the first of which has the number `first` in the table.
    pub(super) fn bias(&self, head: usize, first: usize, count: usize) -> &[i32] {
        let span = self.bias.len() / self.score.len();
        match span {
            0 => &[],
            _ => &self.bias[head * span + first..][..count],
        }
    }
}

impl LayerTables {
    fn new(config: &Config, layer: &Layer, decoder: bool) -> LayerTables {
        let (window, latents) = (config.window as i64, config.max_latents as i64);
        let places = match decoder {
            true => 1 - window..1,
            false => -latents..latents,
        };
        let cross = layer.cross.as_ref();
        let (d, ff) = (Parts::one(config.d_model), Parts::one(config.d_ff));
        LayerTables {
            attention: AttentionTables::new(config, &layer.attention, places, !decoder),
            cross: cross.map(|cross| AttentionTables::new(config, cross, 0..0, false)),
            norm: Norm::new(&layer.norm),
            up: Packed::new(&layer.up, ff, d),
            down: Packed::new(&layer.down, d, ff),
        }
    }
}

impl Tables {
    pub(super) fn new(network: &Network) -> Tables {
        let (config, weights) = (network.config(), network.weights());
        let layers = |layers: &[Layer], decoder| -> Vec<LayerTables> {
            let tables = layers.iter().map(|l| LayerTables::new(config, l, decoder));
            tables.collect()
        };
        let head = |linear: &Linear| {
            Packed::new(linear, Parts::one(linear.rows), Parts::one(config.d_model))
        };
        Tables {
            encoder: layers(&weights.encoder, false),
            encoder_norm: Norm::new(&weights.encoder_norm),
            decoder: layers(&weights.decoder, true),
            decoder_norm: Norm::new(&weights.decoder_norm),
            class_head: head(&weights.class_head),
            token_head: head(&weights.token_head),
        }
    }
}
