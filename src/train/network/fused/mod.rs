//! Cost and gradients of a network on the processor, forward and back written out by hand.
//!
//! It computes what [`FloatNetwork::loss`](super::float::FloatNetwork::loss) and candle's gradients are, many times faster:
//! products in bf16, nothing written to memory that need not be, and threads that share nothing. A batch is cut into shards
//! of whole sequences; gradients are added up in the order of the shards, so they do not depend on the number of threads. What the
//! encoder does is left to candle: it is little.

mod attention;
mod cross;
mod head;
mod layer;
mod matrix;
mod memory;
mod muon;
mod pack;
mod places;
mod product;
mod rows;
mod wide;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result, Storage, Tensor, Var};
use parking_lot::Mutex;

use super::float::{
    FloatAttention, FloatLayer, FloatNetwork, Parameter, RESIDUAL_UNIT, Sample, stored_scale,
};
use crate::model::network::{Config, exact};
use attention::Heads;
use cross::Cross;
use head::{Head, HeadWork};
use layer::{Kept, Layer, Scratch};
use matrix::Matrix;
use memory::{Memories, Reading, Sequence};
pub use muon::orthogonal;
use places::Places;
pub use rows::{Adam, adam, blend};

/// Tokens of a shard, roughly.
const SHARD: usize = 1024;

/// Computes on the processor; keeps its memory from step to step.
#[derive(Debug, Default)]
pub struct Fused {
    workers: Vec<Worker>,
    shards: Vec<Shard>,
}

/// What a thread works in.
#[derive(Debug, Default)]
struct Worker {
    x: Vec<f32>,
    kept: Vec<Kept>,
    scratch: Scratch,
    head: HeadWork,
}

/// What comes of a shard.
#[derive(Debug, Default)]
struct Shard {
    /// Of each sequence, in nats.
    costs: Vec<f64>,
    gradients: Vec<f32>,
    /// Gradients of what entered the residual stream, a row for each token.
    dx: Vec<f32>,
    /// The memories that were read, and the gradients of their rows in this order.
    memories: Vec<usize>,
    dmemory: Vec<f32>,
}

/// A network as a step needs it.
struct Prepared<'a> {
    config: &'a Config,
    layers: Vec<Layer>,
    head: Head,
    /// The token embedding and the n-gram tables, and what their integers stand for.
    embeddings: Vec<(&'a [f32], f32)>,
    rounded: bool,
}

/// True if this code can train such a network.
pub fn supports(config: &Config) -> bool {
    config.d_kv.is_multiple_of(2)
}

impl Fused {
    /// As many threads as `threads`.
    pub fn new(threads: usize) -> Fused {
        let workers = std::iter::repeat_with(Worker::default);
        Fused {
            workers: workers.take(threads.max(1)).collect(),
            shards: Vec::new(),
        }
    }

    /// Cost of each sample in nats.
    ///
    /// # Errors
    /// If latents are not of this network, or it is not on the processor.
    pub fn costs(&mut self, network: &FloatNetwork, samples: &[Sample]) -> Result<Vec<f64>> {
        let (memories, sequences) = Memories::new(network, samples)?;
        self.run(network, &sequences, |prepared, worker, shard, own| {
            let reading = memories.reading(own);
            shard.costs = prepared.costs(own, &reading, worker);
        })?;
        Ok(self.all_costs())
    }

    fn all_costs(&self) -> Vec<f64> {
        let shards = self.shards.iter();
        shards
            .flat_map(|shard| shard.costs.iter().copied())
            .collect()
    }

    /// Mean cost of a token in nats, and its gradients in the order of [`FloatNetwork::parameters`].
    ///
    /// # Errors
    /// As for [`Fused::costs`].
    pub fn gradients(
        &mut self,
        network: &FloatNetwork,
        samples: &[Sample],
    ) -> Result<(f64, Vec<Tensor>)> {
        let (memories, sequences) = Memories::new(network, samples)?;
        let places = Places::new(&network.config);
        let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        self.run(network, &sequences, |prepared, worker, shard, own| {
            shard.gradients.resize(places.len, 0.0);
            shard.gradients[..places.added].fill(0.0);
            let reading = memories.reading(own);
            prepared.gradients(own, &reading, 1.0 / tokens as f32, &places, worker, shard);
            shard.memories = reading.memories;
        })?;
        let cost: f64 = self.all_costs().iter().sum();
        let mut gradients = self.add_up(network, &sequences, &places)?;
        if let Some(encoder) = &network.encoder {
            let shards = self.shards.iter();
            let shards = shards.map(|shard| (&shard.memories[..], &shard.dmemory[..]));
            gradients.extend(memories.back(encoder, shards)?);
        }
        Ok((cost / tokens as f64, gradients))
    }

    /// Has every shard worked on, by whichever thread is free.
    fn run(
        &mut self,
        network: &FloatNetwork,
        sequences: &[Sequence],
        work: impl Fn(&Prepared, &mut Worker, &mut Shard, &[Sequence]) + Sync,
    ) -> Result<()> {
        let ranges = shards(sequences);
        self.shards.resize_with(ranges.len(), Shard::default);
        let shards: Vec<_> = self.shards.iter_mut().map(Mutex::new).collect();
        let next = AtomicUsize::new(0);
        with_prepared(network, |prepared| {
            std::thread::scope(|scope| {
                for worker in &mut self.workers {
                    let (next, work, ranges, shards) = (&next, &work, &ranges, &shards);
                    scope.spawn(move || {
                        while let Some(range) =
                            ranges.get(next.fetch_add(1, Ordering::Relaxed)).cloned()
                        {
                            let index = ranges.partition_point(|other| other.start < range.start);
                            work(
                                prepared,
                                worker,
                                &mut shards[index].lock(),
                                &sequences[range],
                            );
                        }
                    });
                }
            });
        })
    }

    /// The gradients of all parameters but the encoder's.
    fn add_up(
        &mut self,
        network: &FloatNetwork,
        sequences: &[Sequence],
        places: &Places,
    ) -> Result<Vec<Tensor>> {
        let threads = self.workers.len();
        let mut sum = vec![0f32; places.len];
        let part = places.len.div_ceil(threads).max(1);
        let shards = &self.shards;
        std::thread::scope(|scope| {
            for (index, part_of_sum) in sum.chunks_mut(part).enumerate() {
                scope.spawn(move || {
                    for shard in shards {
                        let values = &shard.gradients[index * part..];
                        part_of_sum
                            .iter_mut()
                            .zip(values)
                            .for_each(|(sum, value)| *sum += value);
                    }
                });
            }
        });
        let mut tables = embedding_gradients(&network.config, sequences, &self.shards).into_iter();
        let mut places = places.of_parameters(&network.config, &sum).into_iter();
        let next = |parameter: Parameter| {
            let values = match parameter.is_embedding {
                true => tables.next(),
                false => places.next(),
            };
            let var = parameter.var;
            Tensor::from_vec(values.unwrap_or_default(), var.shape(), var.device())
        };
        let mut parameters = network.parameters();
        let of_encoder = network.encoder.as_ref().map_or(0, |e| e.parameters().len());
        parameters.truncate(parameters.len() - of_encoder);
        parameters.into_iter().map(next).collect()
    }
}

/// Whole sequences in shards.
fn shards(sequences: &[Sequence]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        tokens += sequence.tokens.len();
        if tokens >= SHARD || index + 1 == sequences.len() {
            ranges.push(start..index + 1);
            (start, tokens) = (index + 1, 0);
        }
    }
    ranges
}

/// The rows of the embeddings that a position adds up: the table and the row.
fn embedded<'a>(
    config: &'a Config,
    sequence: &'a [u16],
    at: usize,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let newest = at
        .checked_sub(1)
        .map_or(config.vocab_size, |at| usize::from(sequence[at]));
    let tables = config.ngrams.iter().flat_map(|ngrams| {
        ngrams
            .lengths
            .iter()
            .enumerate()
            .map(move |(i, &length)| (i, length, ngrams.slots))
    });
    let grams =
        tables
            .filter(move |&(_, length, _)| at >= length)
            .map(move |(table, length, slots)| {
                let newest_first = sequence[at - length..at].iter().rev().copied();
                (table + 1, exact::ngram_slot(newest_first, slots))
            });
    std::iter::once((0, newest)).chain(grams)
}

/// Gradients of the token embedding and the n-gram tables, in this order.
fn embedding_gradients(config: &Config, sequences: &[Sequence], shards: &[Shard]) -> Vec<Vec<f32>> {
    let d = config.d_model;
    let slots = config
        .ngrams
        .iter()
        .flat_map(|n| n.lengths.iter().map(|_| n.slots));
    let rows = std::iter::once(config.vocab_size + 1).chain(slots);
    let mut tables: Vec<Vec<f32>> = rows.map(|rows| vec![0.0; rows * d]).collect();
    let positions = sequences
        .iter()
        .flat_map(|&Sequence { tokens, .. }| (0..tokens.len()).map(move |at| (tokens, at)));
    let gradients = shards.iter().flat_map(|shard| shard.dx.chunks_exact(d));
    for ((tokens, at), gradient) in positions.zip(gradients) {
        for (table, row) in embedded(config, tokens, at) {
            let row = &mut tables[table][row * d..][..d];
            row.iter_mut()
                .zip(gradient)
                .for_each(|(sum, value)| *sum += value);
        }
    }
    tables
}

impl Prepared<'_> {
    fn embed(&self, sequences: &[Sequence], x: &mut Vec<f32>) {
        let d = self.config.d_model;
        x.clear();
        for &Sequence { tokens, .. } in sequences {
            for at in 0..tokens.len() {
                let start = x.len();
                x.resize(start + d, 0.0);
                for (table, row) in embedded(self.config, tokens, at) {
                    let (values, step) = self.embeddings[table];
                    let row = &values[row * d..][..d];
                    rows::add_embedding(&mut x[start..], row, step, self.rounded);
                }
            }
        }
    }

    /// The residual stream behind the last layer, in `worker.x`.
    fn forward(&self, sequences: &[Sequence], reading: &Reading, worker: &mut Worker) {
        self.embed(sequences, &mut worker.x);
        worker.kept.resize_with(self.layers.len(), Kept::default);
        for (layer, kept) in self.layers.iter().zip(&mut worker.kept) {
            layer.forward(&mut worker.x, reading, kept, &mut worker.scratch);
        }
    }

    /// Cost of each sequence.
    fn costs(&self, sequences: &[Sequence], reading: &Reading, worker: &mut Worker) -> Vec<f64> {
        self.forward(sequences, reading, worker);
        let (head, scratch) = (&mut worker.head, &mut worker.scratch);
        let targets = targets(sequences);
        self.head.run(&worker.x, &targets, 0.0, head, scratch, None);
        by_sequence(&head.costs, &reading.lens)
    }

    fn gradients(
        &self,
        sequences: &[Sequence],
        reading: &Reading,
        weight: f32,
        places: &Places,
        worker: &mut Worker,
        shard: &mut Shard,
    ) {
        self.forward(sequences, reading, worker);
        let targets = targets(sequences);
        shard.dx.resize(worker.x.len(), 0.0);
        if targets.is_empty() {
            shard.gradients.fill(0.0);
            shard.costs = vec![0.0; sequences.len()];
            shard.dmemory.clear();
            return;
        }
        let back = Some((&mut shard.dx[..], &places.head, &mut shard.gradients[..]));
        let (head, scratch) = (&mut worker.head, &mut worker.scratch);
        self.head
            .run(&worker.x, &targets, weight, head, scratch, back);
        shard.costs = by_sequence(&head.costs, &reading.lens);
        let dmemory = &mut scratch.dmemory;
        dmemory.clear();
        dmemory.resize(reading.rows * self.config.d_model, 0.0);
        let layers = self.layers.iter().zip(&worker.kept).zip(&places.layers);
        for ((layer, kept), places) in layers.rev() {
            layer.back(
                &mut shard.dx,
                reading,
                kept,
                scratch,
                places,
                &mut shard.gradients,
            );
        }
        shard.dmemory.clone_from(&scratch.dmemory);
    }
}

/// The tokens of sequences one behind the other.
fn targets(sequences: &[Sequence]) -> Vec<u16> {
    let tokens = sequences.iter().map(|sequence| sequence.tokens);
    tokens.collect::<Vec<_>>().concat()
}

/// Sums of the costs of tokens.
fn by_sequence(costs: &[f64], lens: &[usize]) -> Vec<f64> {
    let mut rest = costs;
    let of = |&len: &usize| {
        let (own, others) = rest.split_at(len);
        rest = others;
        own.iter().sum()
    };
    lens.iter().map(of).collect()
}

/// Hands a network to `work` as steps need it.
fn with_prepared<T>(network: &FloatNetwork, work: impl FnOnce(&Prepared) -> T) -> Result<T> {
    let parameters = network.parameters();
    let guards: Vec<_> = parameters
        .iter()
        .map(|p| p.var.storage_and_layout())
        .collect();
    let slices = guards.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => {
            let values = storage.as_slice::<f32>()?;
            Ok(&values[layout.start_offset()..][..layout.shape().elem_count()])
        }
        _ => candle_core::bail!("this network is not on the processor"),
    });
    let slices = slices.collect::<Result<Vec<_>>>()?;
    let of = |var: &Var| {
        let index = parameters.iter().position(|p| p.var.id() == var.id());
        index.map_or(&[][..], |index| slices[index])
    };
    let config = &network.config;
    let rounded = network.rounded;
    let embeddings = std::iter::once(&network.tokens).chain(&network.ngrams);
    let embeddings = embeddings.map(|var| {
        let values = of(var);
        let largest = rows::largest(values);
        let scale = stored_scale(largest, RESIDUAL_UNIT);
        (values, scale as f32 / RESIDUAL_UNIT as f32)
    });
    let prepared = Prepared {
        config,
        layers: network
            .layers
            .iter()
            .map(|from| layer(config, from, rounded, &of))
            .collect(),
        head: head(network, &of),
        embeddings: embeddings.collect(),
        rounded,
    };
    Ok(work(&prepared))
}

fn head<'a>(network: &FloatNetwork, of: &impl Fn(&Var) -> &'a [f32]) -> Head {
    let (config, rounded) = (&network.config, network.rounded);
    let d = config.d_model;
    let (steps, weights) = matrix::in_steps(of(&network.token_head), d, rounded);
    Head {
        norm: of(&network.norm).to_vec(),
        classes: Matrix::new(of(&network.class_head), d, rounded),
        class_bias: of(&network.class_bias).to_vec(),
        steps,
        weights,
        bias: of(&network.token_bias).to_vec(),
        class_of: network.class_of.clone(),
        members: (0..config.classes.len())
            .map(|class| config.class_range(class))
            .collect(),
        rounded,
    }
}

fn layer<'a>(
    config: &Config,
    from: &FloatLayer,
    rounded: bool,
    of: &impl Fn(&Var) -> &'a [f32],
) -> Layer {
    let (d, inner) = (config.d_model, config.inner());
    let attention = &from.attention;
    let qkv = [&attention.query, &attention.key, &attention.value]
        .map(of)
        .concat();
    Layer {
        attention_norm: of(&attention.norm).to_vec(),
        qkv: Matrix::new(&qkv, d, rounded),
        heads: heads(config, from, of),
        output: Matrix::new(of(&attention.output), inner, rounded),
        cross: from
            .cross
            .as_ref()
            .map(|from| cross(config, from, rounded, of)),
        norm: of(&from.norm).to_vec(),
        up: Matrix::new(of(&from.up), d, rounded),
        down: Matrix::new(of(&from.down), config.d_ff, rounded),
        kind: config.feed_forward,
        rounded,
    }
}

fn cross<'a>(
    config: &Config,
    from: &FloatAttention,
    rounded: bool,
    of: &impl Fn(&Var) -> &'a [f32],
) -> Cross {
    let (d, inner) = (config.d_model, config.inner());
    let keys_values = [&from.key, &from.value].map(of).concat();
    Cross {
        norm: of(&from.norm).to_vec(),
        query: Matrix::new(of(&from.query), d, rounded),
        keys_values: Matrix::new(&keys_values, d, rounded),
        output: Matrix::new(of(&from.output), inner, rounded),
        d_kv: config.d_kv,
        score: of(&from.score).to_vec(),
        gain: of(&from.gain).to_vec(),
        rounded,
    }
}

fn heads<'a>(config: &Config, from: &FloatLayer, of: &impl Fn(&Var) -> &'a [f32]) -> Heads {
    let (window, attention) = (config.window, &from.attention);
    let by_bucket = of(&from.bias).chunks_exact(config.relative_attention_num_buckets);
    let buckets = places::buckets(config);
    Heads {
        heads: config.num_heads,
        d_kv: config.d_kv,
        window,
        score: of(&attention.score).to_vec(),
        gain: of(&attention.gain).to_vec(),
        bias: by_bucket
            .flat_map(|biases| buckets.iter().map(|&bucket| biases[bucket]))
            .collect(),
    }
}
