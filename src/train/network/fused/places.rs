//! Where the gradients of a shard lie in one flat memory.

use std::ops::Range;

use super::cross::CrossPlaces;
use super::head::HeadPlaces;
use super::layer::LayerPlaces;
use crate::model::network::{Config, exact};

/// The places of all gradients but those of embeddings and of the encoder.
#[derive(Debug)]
pub struct Places {
    pub layers: Vec<LayerPlaces>,
    pub head: HeadPlaces,
    /// The first so many are added to, the others are written once.
    pub added: usize,
    pub len: usize,
}

/// The bucket of every distance of a window, farthest first.
pub fn buckets(config: &Config) -> Vec<usize> {
    let (buckets, most) = (
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
    );
    let distances = (0..config.window as i64).rev();
    distances
        .map(|distance| exact::bucket(-distance, false, buckets, most))
        .collect()
}

impl Places {
    /// The places of a network of this shape.
    pub fn new(config: &Config) -> Places {
        let mut len = 0;
        let mut take = |count: usize| {
            len += count;
            len - count..len
        };
        let (d, inner, heads) = (config.d_model, config.inner(), config.num_heads);
        let (nothing, reads) = (0..0, config.max_latents > 0);
        let added = |_| LayerPlaces {
            attention_norm: take(d),
            score: take(heads),
            bias: take(heads * config.window),
            gain: take(heads),
            cross: reads.then(|| CrossPlaces {
                norm: take(d),
                score: take(heads),
                gain: take(heads),
                query: nothing.clone(),
                keys_values: nothing.clone(),
                output: nothing.clone(),
            }),
            norm: take(d),
            qkv: nothing.clone(),
            output: nothing.clone(),
            up: nothing.clone(),
            down: nothing.clone(),
        };
        let mut layers: Vec<LayerPlaces> = (0..config.num_decoder_layers).map(added).collect();
        let mut head = HeadPlaces {
            norm: take(d),
            class_bias: take(config.classes.len()),
            tokens: take(config.vocab_size * d),
            token_bias: take(config.vocab_size),
            classes: nothing.clone(),
        };
        let added = take(0).end;
        for layer in &mut layers {
            layer.qkv = take(3 * inner * d);
            layer.output = take(d * inner);
            if let Some(cross) = &mut layer.cross {
                cross.query = take(inner * d);
                cross.keys_values = take(2 * inner * d);
                cross.output = take(d * inner);
            }
            layer.up = take(config.d_ff * d);
            layer.down = take(d * config.d_ff);
        }
        head.classes = take(config.classes.len() * d);
        Places {
            layers,
            head,
            added,
            len,
        }
    }

    /// The gradients of parameters in the order of `FloatNetwork::parameters`, without embeddings and the encoder.
    pub fn of_parameters(&self, config: &Config, sum: &[f32]) -> Vec<Vec<f32>> {
        let of = |range: &Range<usize>| sum[range.clone()].to_vec();
        let buckets = buckets(config);
        let mut out = Vec::new();
        for layer in &self.layers {
            out.push(of(&layer.attention_norm));
            out.extend(
                sum[layer.qkv.clone()]
                    .chunks_exact(layer.qkv.len() / 3)
                    .map(<[f32]>::to_vec),
            );
            out.extend([of(&layer.output), of(&layer.score), of(&layer.gain)]);
            let mut bias = vec![0f32; config.num_heads * config.relative_attention_num_buckets];
            let heads = bias.chunks_exact_mut(config.relative_attention_num_buckets);
            for (bias, by_distance) in
                heads.zip(sum[layer.bias.clone()].chunks_exact(buckets.len()))
            {
                for (&bucket, gradient) in buckets.iter().zip(by_distance) {
                    bias[bucket] += gradient;
                }
            }
            out.push(bias);
            if let Some(cross) = &layer.cross {
                out.extend([of(&cross.norm), of(&cross.query)]);
                let (keys, values) =
                    sum[cross.keys_values.clone()].split_at(cross.keys_values.len() / 2);
                out.extend([keys.to_vec(), values.to_vec()]);
                out.extend([&cross.output, &cross.score, &cross.gain].map(of));
            }
            out.extend([&layer.norm, &layer.up, &layer.down].map(of));
        }
        let head = &self.head;
        out.extend(
            [
                &head.norm,
                &head.classes,
                &head.class_bias,
                &head.tokens,
                &head.token_bias,
            ]
            .map(of),
        );
        out
    }
}
