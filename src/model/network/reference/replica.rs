//! A network as tensors on one device.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::super::config::Config;
use super::super::weights::{Attention, Layer};
use super::super::{Memory, Network, Seen, Sequence, exact};
use super::tensors::{self, Arithmetic, HIDDEN, Matrix, Result};
use crate::model::ModelError;

/// Sequences of one pass over the tensors: with [`Replica::block`] it bounds the memory of the
/// teacher-forced path.
pub(super) const PASS: usize = 64;
/// Fewest positions of a block.
const BLOCK_MIN: usize = 32;
/// Most positions by which a stream moves at once.
pub(super) const CATCH_UP: usize = 16;

#[derive(Debug)]
pub(super) struct AttentionTensors {
    norm: Tensor,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    /// heads x 1 x 1.
    score: Tensor,
    /// heads x 1 x 1.
    gain: Tensor,
}

/// A layer of the encoder or decoder.
#[derive(Debug)]
pub(super) struct LayerTensors {
    attention: AttentionTensors,
    pub(super) cross: Option<AttentionTensors>,
    norm: Tensor,
    up: Matrix,
    down: Matrix,
    /// heads x queries x keys: in the encoder for all pairs of positions, in the decoder for a block of
    /// queries and the keys of the block and of the `window - 1` positions before it.
    bias: Tensor,
}

/// A network at work as tensors.
#[derive(Debug)]
pub(super) struct Replica {
    network: Arc<Network>,
    pub(super) device: Device,
    pub(super) arithmetic: Arithmetic,
    tokens: Tensor,
    ngrams: Vec<Tensor>,
    latents: Option<Tensor>,
    encoder: Vec<LayerTensors>,
    encoder_norm: Tensor,
    pub(super) decoder: Vec<LayerTensors>,
    /// By decoder layer, heads x states x places of a ring, see [`ring_biases`].
    ring_biases: Vec<Tensor>,
    decoder_norm: Tensor,
    class_head: (Matrix, Tensor),
    /// By class.
    token_heads: Vec<(Matrix, Tensor)>,
}

/// The biases of `queries` x `keys`, by the place of the key behind the query in the text; what `ahead`
/// knows no place for is hidden.
fn biases(
    config: &Config,
    attention: &Attention,
    (queries, keys): (usize, usize),
    bidirectional: bool,
    ahead: impl Fn(usize, usize) -> Option<i64>,
    device: &Device,
) -> Result<Tensor> {
    let buckets = config.relative_attention_num_buckets;
    let distance = config.relative_attention_max_distance;
    let mut values = Vec::with_capacity(config.num_heads * queries * keys);
    for head in attention.bias.chunks_exact(buckets) {
        for query in 0..queries {
            values.extend((0..keys).map(|key| {
                ahead(query, key).map_or(HIDDEN, |ahead| {
                    f64::from(head[exact::bucket(ahead, bidirectional, buckets, distance)])
                })
            }));
        }
    }
    let shape = (config.num_heads, queries, keys);
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// Places of the ring that holds the keys of a stream: a step of [`CATCH_UP`] positions overwrites none
/// that its first position still sees.
pub(super) fn ring(config: &Config) -> usize {
    config.window - 1 + CATCH_UP
}

/// The state of a ring that a position finds: which places are filled, and how far back they are.
pub(super) fn ring_state(config: &Config, position: usize) -> usize {
    let ring = ring(config);
    match position < ring {
        true => position,
        false => ring + position % ring,
    }
}

/// The biases of a decoder layer by the state of the ring and the place of the key in it. Places that
/// are not filled yet, lie before the window, or hold a later position of the same step are hidden.
fn ring_biases(config: &Config, attention: &Attention, device: &Device) -> Result<Tensor> {
    let ring = ring(config);
    let ahead = |state: usize, place: usize| {
        let back = (state % ring + ring - place) % ring;
        let filled = state >= ring || place <= state;
        (filled && back < config.window).then_some(-(back as i64))
    };
    biases(config, attention, (2 * ring, ring), false, ahead, device)
}

impl AttentionTensors {
    fn new(config: &Config, attention: &Attention, device: &Device) -> Result<AttentionTensors> {
        let heads = (config.num_heads, 1, 1);
        Ok(AttentionTensors {
            norm: tensors::vector(&attention.norm, device)?,
            query: Matrix::all(&attention.query, device)?,
            key: Matrix::all(&attention.key, device)?,
            value: Matrix::all(&attention.value, device)?,
            output: Matrix::all(&attention.output, device)?,
            score: tensors::vector(&attention.score, device)?.reshape(heads)?,
            gain: tensors::vector(&attention.gain, device)?.reshape(heads)?,
        })
    }
}

impl LayerTensors {
    fn new(config: &Config, layer: &Layer, decoder: bool, device: &Device) -> Result<LayerTensors> {
        let attention = &layer.attention;
        let (block, before) = (Replica::block(config), config.window - 1);
        let around = |query: usize, key: usize| Some(key as i64 - query as i64);
        let band = |query: usize, key: usize| {
            let back = (before + query) as i64 - key as i64;
            (0..=before as i64).contains(&back).then_some(-back)
        };
        let latents = (config.max_latents, config.max_latents);
        let cross = layer.cross.as_ref();
        let cross = cross.map(|cross| AttentionTensors::new(config, cross, device));
        Ok(LayerTensors {
            attention: AttentionTensors::new(config, attention, device)?,
            cross: cross.transpose()?,
            norm: tensors::vector(&layer.norm, device)?,
            up: Matrix::all(&layer.up, device)?,
            down: Matrix::all(&layer.down, device)?,
            bias: match decoder {
                true => {
                    let shape = (block, before + block);
                    biases(config, attention, shape, false, band, device)?
                }
                false => biases(config, attention, latents, true, around, device)?,
            },
        })
    }
}

/// Keys and values by heads: batch x heads x positions x d_kv.
pub(super) type Pair = (Tensor, Tensor);

/// Rows x inner each.
pub(super) struct Projected {
    pub(super) queries: Tensor,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

/// A batch of positions: how rows are arranged in sequences.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) positions: usize,
}

impl Replica {
    /// The tensors of a network on a device.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub(super) fn new(network: Arc<Network>, device: Device) -> Result<Replica> {
        let (config, weights) = (network.config(), network.weights());
        let embed = |table| tensors::embedding(table, &device);
        let layers = |layers: &[Layer], decoder| {
            let tensors = layers
                .iter()
                .map(|l| LayerTensors::new(config, l, decoder, &device));
            tensors.collect::<Result<Vec<_>>>()
        };
        let rings = |layer: &Layer| ring_biases(config, &layer.attention, &device);
        let head = |class| -> Result<(Matrix, Tensor)> {
            let range = config.class_range(class);
            let bias = tensors::vector(&weights.token_bias[range.clone()], &device)?;
            Ok((Matrix::new(&weights.token_head, range, &device)?, bias))
        };
        let class_bias = tensors::vector(&weights.class_bias, &device)?;
        Ok(Replica {
            arithmetic: Arithmetic::new(&device)?,
            tokens: embed(&weights.tokens)?,
            ngrams: weights.ngrams.iter().map(embed).collect::<Result<_>>()?,
            latents: weights.latents.as_ref().map(embed).transpose()?,
            encoder: layers(&weights.encoder, false)?,
            encoder_norm: tensors::vector(&weights.encoder_norm, &device)?,
            decoder: layers(&weights.decoder, true)?,
            ring_biases: weights.decoder.iter().map(rings).collect::<Result<_>>()?,
            decoder_norm: tensors::vector(&weights.decoder_norm, &device)?,
            class_head: (Matrix::all(&weights.class_head, &device)?, class_bias),
            token_heads: (0..config.classes.len()).map(head).collect::<Result<_>>()?,
            network,
            device,
        })
    }

    /// A result whose error, if it is the device's, names the device.
    pub(super) fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            ModelError::Device(what) => {
                ModelError::Device(format!("{}: {what}", tensors::name(&self.device)))
            }
            other => other,
        })
    }

    /// Positions of a block: each sees positions of its own block and of the one before.
    fn block(config: &Config) -> usize {
        config.window.max(BLOCK_MIN)
    }

    pub(super) fn config(&self) -> &Config {
        self.network.config()
    }

    /// Rows x inner as batch x heads x positions x d_kv.
    pub(super) fn heads(&self, rows: &Tensor, shape: Shape) -> Result<Tensor> {
        let (heads, d_kv) = (self.config().num_heads, self.config().d_kv);
        let split = rows.reshape((shape.batch, shape.positions, heads, d_kv))?;
        Ok(split.transpose(1, 2)?.contiguous()?)
    }

    /// The projection of rows of activations, by heads.
    pub(super) fn project(&self, matrix: &Matrix, inputs: &Tensor, shape: Shape) -> Result<Tensor> {
        let products = self.arithmetic.multiply(matrix, inputs)?;
        self.heads(&self.arithmetic.activation(&products)?, shape)
    }

    /// Adds what an attention found to the residual stream.
    pub(super) fn put_context(
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

    pub(super) fn feed_forward(&self, layer: &LayerTensors, residual: &Tensor) -> Result<Tensor> {
        let kind = self.config().feed_forward;
        let inputs = self.arithmetic.normalise(&layer.norm, residual)?;
        let hidden = self.arithmetic.hidden(kind, &layer.up, &inputs)?;
        let update = self.arithmetic.multiply(&layer.down, &hidden)?;
        self.arithmetic.residual(residual, &update)
    }

    /// Attention of all positions of a batch to one another and to those in `past`. Also returns the
    /// keys and values, the past ones first.
    fn attend_all(
        &self,
        layer: &LayerTensors,
        residual: &Tensor,
        shape: Shape,
        past: Option<&Pair>,
        visible: Option<&Tensor>,
    ) -> Result<(Tensor, Pair)> {
        let attention = &layer.attention;
        let inputs = self.arithmetic.normalise(&attention.norm, residual)?;
        let queries = self.project(&attention.query, &inputs, shape)?;
        let mut keys = self.project(&attention.key, &inputs, shape)?;
        let mut values = self.project(&attention.value, &inputs, shape)?;
        let before = layer.bias.dim(2)? - layer.bias.dim(1)?;
        let mut first = before;
        if let Some((past_keys, past_values)) = past {
            keys = Tensor::cat(&[past_keys, &keys], 2)?;
            values = Tensor::cat(&[past_values, &values], 2)?;
            first = before - past_keys.dim(2)?;
        }
        let bias = layer.bias.narrow(1, 0, shape.positions)?;
        let bias = bias.narrow(2, first, keys.dim(2)?)?;
        let context = self.arithmetic.attend(
            (&queries, &keys, &values),
            (&attention.score, &attention.gain),
            Some(&bias),
            visible,
        )?;
        let residual = self.put_context(attention, &context, residual)?;
        Ok((residual, (keys, values)))
    }

    /// Queries, keys and values of the newest positions of streams.
    pub(super) fn project_newest(
        &self,
        layer: &LayerTensors,
        residual: &Tensor,
    ) -> Result<Projected> {
        let attention = &layer.attention;
        let inputs = self.arithmetic.normalise(&attention.norm, residual)?;
        let project = |matrix| {
            self.arithmetic
                .activation(&self.arithmetic.multiply(matrix, &inputs)?)
        };
        Ok(Projected {
            queries: project(&attention.query)?,
            keys: project(&attention.key)?,
            values: project(&attention.value)?,
        })
    }

    /// Attention of the newest positions of streams, in these states, to what their rings hold.
    pub(super) fn attend_rings(
        &self,
        index: usize,
        (queries, (keys, values)): (&Tensor, &Pair),
        states: &Tensor,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let (batch, heads, positions, _) = queries.dims4()?;
        let bias = self.ring_biases[index].index_select(states, 1)?;
        let bias = bias.reshape((heads, batch, positions, keys.dim(2)?))?;
        let attention = &self.decoder[index].attention;
        let context = self.arithmetic.attend(
            (queries, keys, values),
            (&attention.score, &attention.gain),
            Some(&bias.transpose(0, 1)?.contiguous()?),
            None,
        )?;
        self.put_context(attention, &context, residual)
    }

    /// Attention to latents, whose keys and values are given by heads.
    pub(super) fn attend_latents(
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
        let context =
            self.arithmetic
                .attend((&queries, keys, values), scales, None, Some(visible))?;
        self.put_context(cross, &context, residual)
    }

    /// 1 for each of the first `lens[i]` of `most` keys of sequence i, as batch x 1 x 1 x keys.
    pub(super) fn visible(&self, lens: impl Iterator<Item = usize>, most: usize) -> Result<Tensor> {
        let values: Vec<f64> = lens
            .flat_map(|len| (0..most).map(move |key| f64::from(u8::from(key < len))))
            .collect();
        let batch = values.len() / most.max(1);
        Ok(Tensor::from_vec(values, (batch, 1, 1, most), &self.device)?)
    }

    /// Rows of embeddings added up, one for each position.
    pub(super) fn embed(&self, rows: &EmbeddingRows) -> Result<Tensor> {
        let count = rows.tokens.len();
        let look_up = |index: &[u32], table: &Tensor| -> Result<Tensor> {
            let index = Tensor::from_slice(index, count, &self.device)?;
            Ok(table.index_select(&index, 0)?)
        };
        let mut residual = look_up(&rows.tokens, &self.tokens)?;
        for (ngrams, table) in rows.ngrams.iter().zip(&self.ngrams) {
            let known: Vec<f64> = ngrams
                .iter()
                .map(|row| f64::from(u8::from(row.is_some())))
                .collect();
            let known = Tensor::from_vec(known, (count, 1), &self.device)?;
            let index: Vec<u32> = ngrams.iter().map(|row| row.unwrap_or(0)).collect();
            let update = look_up(&index, table)?.broadcast_mul(&known)?;
            residual = self.arithmetic.residual(&residual, &update)?;
        }
        Ok(residual)
    }

    /// The keys and values of latents for every decoder layer, padded to `most` latents.
    pub(super) fn latent_keys(
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

    /// One pass of the teacher-forced path: blocks of positions, one after another.
    pub(super) fn pass(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>> {
        // the longest first, so that those which still go on are the first ones
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(sequences[index].tokens.len()));
        let sorted: Vec<Sequence> = order.iter().map(|&index| sequences[index]).collect();
        let mut seen = vec![Seen::default(); sorted.len()];
        let mut state = State::new(self, &sorted)?;
        let mut rows = vec![Vec::new(); sequences.len()];
        let d = self.config().d_model;
        for start in (0..).step_by(Replica::block(self.config())) {
            let going = sorted.partition_point(|s| s.tokens.len() > start);
            let Some(longest) = sorted.first().filter(|_| going > 0) else {
                break;
            };
            let most = Replica::block(self.config()).min(longest.tokens.len() - start);
            let shape = Shape {
                batch: going,
                positions: most,
            };
            let mut inputs = EmbeddingRows::new(self.config());
            for (sequence, seen) in sorted.iter().zip(&mut seen[..going]) {
                inputs.push_block(self.config(), seen, sequence.tokens, start, most);
            }
            let found = self.block_rows(&self.embed(&inputs)?, shape, &mut state)?;
            for (index, found) in found.chunks_exact(most * d).enumerate() {
                let count = most.min(sorted[index].tokens.len() - start);
                rows[order[index]].extend_from_slice(&found[..count * d]);
            }
        }
        Ok(rows)
    }

    /// Hidden rows of one block, of the first `shape.batch` sequences.
    fn block_rows(&self, inputs: &Tensor, shape: Shape, state: &mut State) -> Result<Vec<i8>> {
        let keep = self.config().window - 1;
        let first = |(keys, values): &Pair| -> Result<Pair> {
            Ok((
                keys.narrow(0, 0, shape.batch)?,
                values.narrow(0, 0, shape.batch)?,
            ))
        };
        let mut residual = inputs.clone();
        for (index, layer) in self.decoder.iter().enumerate() {
            let past = state.past[index].as_ref().map(first).transpose()?;
            let (attended, (keys, values)) =
                self.attend_all(layer, &residual, shape, past.as_ref(), None)?;
            let known = keys.dim(2)?;
            let last = |all: &Tensor| all.narrow(2, known - keep.min(known), keep.min(known));
            state.past[index] = match keep {
                0 => None,
                _ => Some((last(&keys)?.contiguous()?, last(&values)?.contiguous()?)),
            };
            residual = attended;
            if let (Some(cross), Some(latents)) = (&layer.cross, &state.latents[index]) {
                let (keys, values) = first(latents)?;
                let present = state.present.narrow(0, 0, shape.batch)?;
                residual =
                    self.attend_latents(cross, &residual, shape, (&keys, &values), &present)?;
            }
            residual = self.feed_forward(layer, &residual)?;
        }
        self.hidden_rows(&residual)
    }

    /// The rows from which the heads make logits.
    pub(super) fn hidden_rows(&self, residual: &Tensor) -> Result<Vec<i8>> {
        let rows = self.arithmetic.normalise(&self.decoder_norm, residual)?;
        tensors::to_activations(&rows)
    }

    pub(super) fn encode_pass(&self, latents: &[&[u16]]) -> Result<Vec<Memory>> {
        let d = self.config().d_model;
        let most = latents.iter().map(|l| l.len()).max().unwrap_or(0);
        let Some(table) = self.latents.as_ref().filter(|_| most > 0) else {
            return Ok(vec![Memory::default(); latents.len()]);
        };
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
            let (attended, _) = self.attend_all(layer, &residual, shape, None, Some(&visible))?;
            residual = self.feed_forward(layer, &attended)?;
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

    pub(super) fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>> {
        self.logits(&self.class_head, rows)
    }

    /// Logits of a class, which must exist.
    pub(super) fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>> {
        self.logits(&self.token_heads[class], rows)
    }
}

/// What a pass remembers from block to block, by decoder layer.
struct State {
    past: Vec<Option<Pair>>,
    latents: Vec<Option<Pair>>,
    /// 1 for each latent of each sequence.
    present: Tensor,
}

impl State {
    fn new(replica: &Replica, sequences: &[Sequence]) -> Result<State> {
        let memories: Vec<&Memory> = sequences.iter().map(|s| s.memory).collect();
        let most = memories.iter().map(|m| m.len).max().unwrap_or(0);
        Ok(State {
            past: replica.decoder.iter().map(|_| None).collect(),
            latents: match most {
                0 => replica.decoder.iter().map(|_| None).collect(),
                _ => replica.latent_keys(&memories, most)?,
            },
            present: replica.visible(memories.iter().map(|m| m.len), most)?,
        })
    }
}

/// Rows of the embedding tables, an entry for each position.
#[derive(Debug)]
pub(super) struct EmbeddingRows {
    tokens: Vec<u32>,
    /// By table; none where the n-gram is not complete.
    ngrams: Vec<Vec<Option<u32>>>,
}

impl EmbeddingRows {
    pub(super) fn new(config: &Config) -> EmbeddingRows {
        let tables = config.ngrams.as_ref().map_or(0, |n| n.lengths.len());
        EmbeddingRows {
            tokens: Vec::new(),
            ngrams: vec![Vec::new(); tables],
        }
    }

    /// Adds the newest position of a stream.
    pub(super) fn push(&mut self, config: &Config, seen: &Seen) {
        self.tokens.push(seen.token_row(config) as u32);
        if let Some(ngrams) = &config.ngrams {
            for (rows, &length) in self.ngrams.iter_mut().zip(&ngrams.lengths) {
                rows.push(seen.ngram_row(length, ngrams.slots).map(|row| row as u32));
            }
        }
    }

    /// Adds `count` positions of a sequence; behind its end the last one again, which nothing looks at.
    fn push_block(
        &mut self,
        config: &Config,
        seen: &mut Seen,
        tokens: &[u16],
        start: usize,
        count: usize,
    ) {
        for position in start..start + count {
            if position < tokens.len() {
                seen.push(position.checked_sub(1).map(|last| tokens[last]));
            }
            self.push(config, seen);
        }
    }
}
