//! The reference engine: candle tensors that hold integers in floats, on the processor or on CUDA.
//!
//! Products are single-precision matrix products whose partial sums stay below 2^24; everything
//! else is double precision with integers below 2^53. So every operation is exact or correctly rounded
//! wherever it runs (docs/exactness.md).

mod streams;
mod tensors;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use self::streams::Streams;
use self::tensors::{Arithmetic, HIDDEN, Matrix, Result};
use super::config::Config;
use super::exact;
use super::weights::{Attention, Layer};
use super::{Batch, Chunk, Engine, Memory, Network};
use super::{check_chunks, check_class, check_latents};

/// Chunks of one pass over the tensors: bounds the memory of the teacher-forced path.
const PASS: usize = 64;

#[derive(Debug)]
struct AttentionTensors {
    norm: Tensor,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    /// heads x 1 x 1.
    score: Tensor,
    /// heads x 1 x 1.
    gain: Tensor,
    /// heads x queries x keys, for all pairs of positions; none in cross-attention. In the decoder
    /// later positions are hidden.
    bias: Option<Tensor>,
}

#[derive(Debug)]
struct LayerTensors {
    attention: AttentionTensors,
    cross: Option<AttentionTensors>,
    norm: Tensor,
    up: Matrix,
    down: Matrix,
}

/// A network at work as tensors.
#[derive(Debug)]
pub struct Reference {
    network: Arc<Network>,
    device: Device,
    arithmetic: Arithmetic,
    tokens: Tensor,
    ngrams: Vec<Tensor>,
    latents: Option<Tensor>,
    encoder: Vec<LayerTensors>,
    encoder_norm: Tensor,
    decoder: Vec<LayerTensors>,
    decoder_norm: Tensor,
    class_head: (Matrix, Tensor),
    /// By class.
    token_heads: Vec<(Matrix, Tensor)>,
}

/// The biases of all pairs of `positions` positions.
fn biases(
    config: &Config,
    attention: &Attention,
    positions: usize,
    decoder: bool,
    device: &Device,
) -> Result<Tensor> {
    let buckets = config.relative_attention_num_buckets;
    let distance = config.relative_attention_max_distance;
    let mut values = Vec::with_capacity(config.num_heads * positions * positions);
    for head in attention.bias.chunks_exact(buckets) {
        for query in 0..positions as i64 {
            for key in 0..positions as i64 {
                let bucket = exact::bucket(key - query, !decoder, buckets, distance);
                let hidden = decoder && key > query;
                values.push(if hidden {
                    HIDDEN
                } else {
                    f64::from(head[bucket])
                });
            }
        }
    }
    let shape = (config.num_heads, positions, positions);
    Ok(Tensor::from_vec(values, shape, device)?)
}

impl AttentionTensors {
    fn new(
        config: &Config,
        attention: &Attention,
        bias: Option<Tensor>,
        device: &Device,
    ) -> Result<AttentionTensors> {
        let heads = (config.num_heads, 1, 1);
        Ok(AttentionTensors {
            norm: tensors::vector(&attention.norm, device)?,
            query: Matrix::all(&attention.query, device)?,
            key: Matrix::all(&attention.key, device)?,
            value: Matrix::all(&attention.value, device)?,
            output: Matrix::all(&attention.output, device)?,
            score: tensors::vector(&attention.score, device)?.reshape(heads)?,
            gain: tensors::vector(&attention.gain, device)?.reshape(heads)?,
            bias,
        })
    }
}

impl LayerTensors {
    fn new(config: &Config, layer: &Layer, decoder: bool, device: &Device) -> Result<LayerTensors> {
        let positions = if decoder {
            config.max_tokens
        } else {
            config.max_latents
        };
        let bias = biases(config, &layer.attention, positions, decoder, device)?;
        let cross = layer.cross.as_ref();
        let cross = cross.map(|cross| AttentionTensors::new(config, cross, None, device));
        Ok(LayerTensors {
            attention: AttentionTensors::new(config, &layer.attention, Some(bias), device)?,
            cross: cross.transpose()?,
            norm: tensors::vector(&layer.norm, device)?,
            up: Matrix::all(&layer.up, device)?,
            down: Matrix::all(&layer.down, device)?,
        })
    }
}

/// A batch of positions: how rows are arranged in sequences.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    positions: usize,
}

impl Reference {
    /// An engine on a device.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(network: Arc<Network>, device: Device) -> Result<Reference> {
        let (config, weights) = (network.config(), network.weights());
        let embed = |table| tensors::embedding(table, &device);
        let layers = |layers: &[Layer], decoder| {
            let tensors = layers
                .iter()
                .map(|l| LayerTensors::new(config, l, decoder, &device));
            tensors.collect::<Result<Vec<_>>>()
        };
        let head = |class| -> Result<(Matrix, Tensor)> {
            let range = config.class_range(class);
            let bias = tensors::vector(&weights.token_bias[range.clone()], &device)?;
            Ok((Matrix::new(&weights.token_head, range, &device)?, bias))
        };
        let class_bias = tensors::vector(&weights.class_bias, &device)?;
        Ok(Reference {
            arithmetic: Arithmetic::new(&device)?,
            tokens: embed(&weights.tokens)?,
            ngrams: weights.ngrams.iter().map(embed).collect::<Result<_>>()?,
            latents: weights.latents.as_ref().map(embed).transpose()?,
            encoder: layers(&weights.encoder, false)?,
            encoder_norm: tensors::vector(&weights.encoder_norm, &device)?,
            decoder: layers(&weights.decoder, true)?,
            decoder_norm: tensors::vector(&weights.decoder_norm, &device)?,
            class_head: (Matrix::all(&weights.class_head, &device)?, class_bias),
            token_heads: (0..config.classes.len()).map(head).collect::<Result<_>>()?,
            network,
            device,
        })
    }

    fn config(&self) -> &Config {
        self.network.config()
    }

    /// Rows x inner as batch x heads x positions x d_kv.
    fn heads(&self, rows: &Tensor, shape: Shape) -> Result<Tensor> {
        let (heads, d_kv) = (self.config().num_heads, self.config().d_kv);
        let split = rows.reshape((shape.batch, shape.positions, heads, d_kv))?;
        Ok(split.transpose(1, 2)?.contiguous()?)
    }

    /// The projection of rows of activations, by heads.
    fn project(&self, matrix: &Matrix, inputs: &Tensor, shape: Shape) -> Result<Tensor> {
        let products = self.arithmetic.multiply(matrix, inputs)?;
        self.heads(&self.arithmetic.activation(&products)?, shape)
    }

    /// Adds what an attention found to the residual stream.
    fn put_context(
        &self,
        attention: &AttentionTensors,
        context: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let rows = (residual.dim(0)?, self.config().inner());
        let context = context.transpose(1, 2)?.contiguous()?.reshape(rows)?;
        let update = self.arithmetic.multiply(&attention.output, &context)?;
        self.arithmetic.residual(residual, &update)
    }

    fn feed_forward(&self, layer: &LayerTensors, residual: &Tensor) -> Result<Tensor> {
        let kind = self.config().feed_forward;
        let inputs = self.arithmetic.normalise(&layer.norm, residual)?;
        let hidden = self.arithmetic.hidden(kind, &layer.up, &inputs)?;
        let update = self.arithmetic.multiply(&layer.down, &hidden)?;
        self.arithmetic.residual(residual, &update)
    }

    /// Attention of all positions of a batch to one another.
    fn attend_all(
        &self,
        attention: &AttentionTensors,
        residual: &Tensor,
        shape: Shape,
        visible: &Tensor,
    ) -> Result<Tensor> {
        let inputs = self.arithmetic.normalise(&attention.norm, residual)?;
        let queries = self.project(&attention.query, &inputs, shape)?;
        let keys = self.project(&attention.key, &inputs, shape)?;
        let values = self.project(&attention.value, &inputs, shape)?;
        let positions = shape.positions;
        let bias = attention.bias.as_ref();
        let bias = bias.map(|bias| bias.narrow(1, 0, positions)?.narrow(2, 0, positions));
        let context = self.arithmetic.attend(
            (&queries, &keys, &values),
            (&attention.score, &attention.gain),
            bias.transpose()?.as_ref(),
            visible,
        )?;
        self.put_context(attention, &context, residual)
    }

    /// Attention to latents, whose keys and values are given by heads.
    fn attend_latents(
        &self,
        cross: &AttentionTensors,
        residual: &Tensor,
        shape: Shape,
        (keys, values): (&Tensor, &Tensor),
        visible: &Tensor,
    ) -> Result<Tensor> {
        let inputs = self.arithmetic.normalise(&cross.norm, residual)?;
        let queries = self.project(&cross.query, &inputs, shape)?;
        let scales = (&cross.score, &cross.gain);
        let context = self
            .arithmetic
            .attend((&queries, keys, values), scales, None, visible)?;
        self.put_context(cross, &context, residual)
    }

    /// 1 for each of the first `lens[i]` of `most` keys of sequence i, as batch x 1 x 1 x keys.
    fn visible(&self, lens: impl Iterator<Item = usize>, most: usize) -> Result<Tensor> {
        let values: Vec<f64> = lens
            .flat_map(|len| (0..most).map(move |key| f64::from(u8::from(key < len))))
            .collect();
        let batch = values.len() / most.max(1);
        Ok(Tensor::from_vec(values, (batch, 1, 1, most), &self.device)?)
    }

    /// Rows of embeddings added up, for positions each of which has seen some tokens.
    fn embed<'t>(&self, seen: impl Iterator<Item = &'t [u16]> + Clone) -> Result<Tensor> {
        let start = self.config().vocab_size as u32;
        let newest = seen
            .clone()
            .map(|tokens| tokens.last().map_or(start, |&t| u32::from(t)));
        let rows = |index: Vec<u32>, table: &Tensor| -> Result<Tensor> {
            let len = index.len();
            let index = Tensor::from_vec(index, len, &self.device)?;
            Ok(table.index_select(&index, 0)?)
        };
        let mut residual = rows(newest.collect(), &self.tokens)?;
        let Some(ngrams) = &self.config().ngrams else {
            return Ok(residual);
        };
        for (&length, table) in ngrams.lengths.iter().zip(&self.ngrams) {
            let slot = |tokens: &[u16]| {
                let newest_first = tokens.iter().rev().take(length).copied();
                exact::ngram_slot(newest_first, ngrams.slots) as u32
            };
            let slots = seen.clone().map(slot).collect();
            let known: Vec<f64> = seen
                .clone()
                .map(|tokens| f64::from(u8::from(tokens.len() >= length)))
                .collect();
            let known = Tensor::from_vec(known, (residual.dim(0)?, 1), &self.device)?;
            let update = rows(slots, table)?.broadcast_mul(&known)?;
            residual = self.arithmetic.residual(&residual, &update)?;
        }
        Ok(residual)
    }

    /// The keys and values of latents for every decoder layer, padded to `most` latents.
    fn latent_keys(
        &self,
        memories: &[&Memory],
        most: usize,
    ) -> Result<Vec<Option<(Tensor, Tensor)>>> {
        let d = self.config().d_model;
        let mut rows = Vec::with_capacity(memories.len() * most * d);
        for (index, memory) in memories.iter().enumerate() {
            rows.extend_from_slice(&memory.rows);
            rows.resize((index + 1) * most * d, 0);
        }
        let inputs = tensors::activations(&rows, d, &self.device)?;
        let shape = Shape {
            batch: memories.len(),
            positions: most,
        };
        let layer = |layer: &LayerTensors| -> Result<Option<(Tensor, Tensor)>> {
            let Some(cross) = &layer.cross else {
                return Ok(None);
            };
            let keys = self.project(&cross.key, &inputs, shape)?;
            Ok(Some((keys, self.project(&cross.value, &inputs, shape)?)))
        };
        self.decoder.iter().map(layer).collect()
    }

    /// One pass of the teacher-forced path.
    fn pass(&self, chunks: &[Chunk]) -> Result<Vec<Vec<i8>>> {
        let most = chunks.iter().map(|c| c.tokens.len()).max().unwrap_or(0);
        if most == 0 {
            return Ok(vec![Vec::new(); chunks.len()]);
        }
        let shape = Shape {
            batch: chunks.len(),
            positions: most,
        };
        // positions behind the end of a chunk repeat its last; nothing looks at them
        let seen = chunks
            .iter()
            .flat_map(|c| (0..most).map(|t| &c.tokens[..t.min(c.tokens.len())]));
        let mut residual = self.embed(seen)?;
        let visible = Tensor::ones((1, 1, 1, most), DType::F64, &self.device)?;
        let memories: Vec<&Memory> = chunks.iter().map(|c| c.memory).collect();
        let latents = memories.iter().map(|m| m.len).max().unwrap_or(0);
        let present = self.visible(memories.iter().map(|m| m.len), latents)?;
        let keys = match latents {
            0 => self.decoder.iter().map(|_| None).collect(),
            _ => self.latent_keys(&memories, latents)?,
        };
        for (layer, latent_keys) in self.decoder.iter().zip(&keys) {
            residual = self.attend_all(&layer.attention, &residual, shape, &visible)?;
            if let Some((cross, (keys, values))) = layer.cross.as_ref().zip(latent_keys.as_ref()) {
                residual =
                    self.attend_latents(cross, &residual, shape, (keys, values), &present)?;
            }
            residual = self.feed_forward(layer, &residual)?;
        }
        let rows = self.arithmetic.normalise(&self.decoder_norm, &residual)?;
        let rows = tensors::to_activations(&rows)?;
        let d = self.config().d_model;
        let cut = |(rows, chunk): (&[i8], &Chunk)| rows[..chunk.tokens.len() * d].to_vec();
        Ok(rows.chunks_exact(most * d).zip(chunks).map(cut).collect())
    }

    fn encode_pass(&self, latents: &[&[u16]], table: &Tensor) -> Result<Vec<Memory>> {
        let d = self.config().d_model;
        let most = latents.iter().map(|l| l.len()).max().unwrap_or(0);
        if most == 0 {
            return Ok(vec![Memory::default(); latents.len()]);
        }
        let shape = Shape {
            batch: latents.len(),
            positions: most,
        };
        let padded = |l: &&[u16]| -> Vec<u32> {
            (0..most)
                .map(|i| l.get(i).map_or(0, |&c| u32::from(c)))
                .collect()
        };
        let index: Vec<u32> = latents.iter().flat_map(padded).collect();
        let index = Tensor::from_vec(index, latents.len() * most, &self.device)?;
        let mut residual = table.index_select(&index, 0)?;
        let visible = self.visible(latents.iter().map(|l| l.len()), most)?;
        for layer in &self.encoder {
            residual = self.attend_all(&layer.attention, &residual, shape, &visible)?;
            residual = self.feed_forward(layer, &residual)?;
        }
        let rows = self.arithmetic.normalise(&self.encoder_norm, &residual)?;
        let rows = tensors::to_activations(&rows)?;
        let cut = |(rows, latents): (&[i8], &&[u16])| Memory {
            rows: rows[..latents.len() * d].to_vec(),
            len: latents.len(),
        };
        Ok(rows.chunks_exact(most * d).zip(latents).map(cut).collect())
    }

    fn logits(&self, (matrix, bias): &(Matrix, Tensor), rows: &[i8]) -> Result<Vec<i32>> {
        let inputs = tensors::activations(rows, self.config().d_model, &self.device)?;
        let products = self.arithmetic.multiply(matrix, &inputs)?;
        let logits = products
            .broadcast_add(bias)?
            .flatten_all()?
            .to_vec1::<f64>()?;
        Ok(logits.into_iter().map(|x| x as i32).collect())
    }
}

impl Engine for Reference {
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>> {
        check_latents(self.config(), latents)?;
        let Some(table) = &self.latents else {
            return Ok(vec![Memory::default(); latents.len()]);
        };
        let passes = latents
            .chunks(PASS)
            .map(|part| self.encode_pass(part, table));
        Ok(passes.collect::<Result<Vec<_>>>()?.concat())
    }

    fn hidden(&self, chunks: &[Chunk]) -> Result<Vec<Vec<i8>>> {
        check_chunks(self.config(), chunks)?;
        let passes = chunks.chunks(PASS).map(|part| self.pass(part));
        Ok(passes.collect::<Result<Vec<_>>>()?.concat())
    }

    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>> {
        Ok(Box::new(Streams::new(self, slots)?))
    }

    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>> {
        self.logits(&self.class_head, rows)
    }

    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>> {
        check_class(self.config(), class)?;
        self.logits(&self.token_heads[class], rows)
    }
}
