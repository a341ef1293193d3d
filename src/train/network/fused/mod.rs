//! Cost and gradients of a network on the processor, forward and back written out by hand.
//!
//! It computes what [`FloatNetwork::loss`](super::float::FloatNetwork::loss) and candle's gradients are, many times faster:
//! products in bf16, nothing written to memory that need not be, and threads that share nothing. A batch is cut into shards
//! of whole sequences; gradients are added up in the order of the shards, so they do not depend on the number of threads.

mod attention;
mod head;
mod layer;
mod matrix;
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

use super::float::{FloatLayer, FloatNetwork, Parameter, RESIDUAL_UNIT, stored_scale};
use crate::model::network::{Config, exact};
use attention::Heads;
use head::{Head, HeadWork};
use layer::{Kept, Layer, Scratch};
use matrix::Matrix;
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
    cost: f64,
    gradients: Vec<f32>,
    /// Gradients of what entered the residual stream, a row for each token.
    dx: Vec<f32>,
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

/// True if this code can train such a network: it has no encoder.
pub fn supports(config: &Config) -> bool {
    config.d_kv.is_multiple_of(2) && config.max_latents == 0
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

    /// Total cost in nats of all sequences.
    ///
    /// # Errors
    /// If the network is not on the processor.
    pub fn cost(&mut self, network: &FloatNetwork, sequences: &[&[u16]]) -> Result<f64> {
        self.run(network, sequences, |prepared, worker, shard, own| {
            shard.cost = prepared.cost(own, worker);
        })?;
        Ok(self.shards.iter().map(|shard| shard.cost).sum())
    }

    /// Mean cost of a token in nats, and its gradients in the order of [`FloatNetwork::parameters`].
    ///
    /// # Errors
    /// As for [`Fused::cost`].
    pub fn gradients(
        &mut self,
        network: &FloatNetwork,
        sequences: &[&[u16]],
    ) -> Result<(f64, Vec<Tensor>)> {
        let places = Places::new(&network.config);
        let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        self.run(network, sequences, |prepared, worker, shard, own| {
            shard.gradients.resize(places.len, 0.0);
            shard.gradients[..places.added].fill(0.0);
            prepared.gradients(own, 1.0 / tokens as f32, &places, worker, shard);
        })?;
        let cost: f64 = self.shards.iter().map(|shard| shard.cost).sum();
        let gradients = self.add_up(network, sequences, &places)?;
        Ok((cost / tokens as f64, gradients))
    }

    /// Has every shard worked on, by whichever thread is free.
    fn run(
        &mut self,
        network: &FloatNetwork,
        sequences: &[&[u16]],
        work: impl Fn(&Prepared, &mut Worker, &mut Shard, &[&[u16]]) + Sync,
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

    /// The gradients of all parameters.
    fn add_up(
        &mut self,
        network: &FloatNetwork,
        sequences: &[&[u16]],
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
        network.parameters().into_iter().map(next).collect()
    }
}

/// Whole sequences in shards.
fn shards(sequences: &[&[u16]]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        tokens += sequence.len();
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
fn embedding_gradients(config: &Config, sequences: &[&[u16]], shards: &[Shard]) -> Vec<Vec<f32>> {
    let d = config.d_model;
    let slots = config
        .ngrams
        .iter()
        .flat_map(|n| n.lengths.iter().map(|_| n.slots));
    let rows = std::iter::once(config.vocab_size + 1).chain(slots);
    let mut tables: Vec<Vec<f32>> = rows.map(|rows| vec![0.0; rows * d]).collect();
    let positions = sequences
        .iter()
        .flat_map(|sequence| (0..sequence.len()).map(move |at| (sequence, at)));
    let gradients = shards.iter().flat_map(|shard| shard.dx.chunks_exact(d));
    for ((sequence, at), gradient) in positions.zip(gradients) {
        for (table, row) in embedded(config, sequence, at) {
            let row = &mut tables[table][row * d..][..d];
            row.iter_mut()
                .zip(gradient)
                .for_each(|(sum, value)| *sum += value);
        }
    }
    tables
}

impl Prepared<'_> {
    fn embed(&self, sequences: &[&[u16]], x: &mut Vec<f32>) {
        let d = self.config.d_model;
        x.clear();
        for sequence in sequences {
            for at in 0..sequence.len() {
                let start = x.len();
                x.resize(start + d, 0.0);
                for (table, row) in embedded(self.config, sequence, at) {
                    let (values, step) = self.embeddings[table];
                    let row = &values[row * d..][..d];
                    rows::add_embedding(&mut x[start..], row, step, self.rounded);
                }
            }
        }
    }

    /// The residual stream behind the last layer, in `worker.x`.
    fn forward(&self, sequences: &[&[u16]], lens: &[usize], worker: &mut Worker) {
        self.embed(sequences, &mut worker.x);
        worker.kept.resize_with(self.layers.len(), Kept::default);
        for (layer, kept) in self.layers.iter().zip(&mut worker.kept) {
            layer.forward(&mut worker.x, lens, kept, &mut worker.scratch);
        }
    }

    fn cost(&self, sequences: &[&[u16]], worker: &mut Worker) -> f64 {
        let lens: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        self.forward(sequences, &lens, worker);
        let targets = sequences.concat();
        self.head.run(
            &worker.x,
            &targets,
            0.0,
            &mut worker.head,
            &mut worker.scratch,
            None,
        )
    }

    fn gradients(
        &self,
        sequences: &[&[u16]],
        weight: f32,
        places: &Places,
        worker: &mut Worker,
        shard: &mut Shard,
    ) {
        let lens: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
        self.forward(sequences, &lens, worker);
        let targets = sequences.concat();
        shard.dx.resize(worker.x.len(), 0.0);
        let back = Some((&mut shard.dx[..], &places.head, &mut shard.gradients[..]));
        let (head, scratch) = (&mut worker.head, &mut worker.scratch);
        shard.cost = self
            .head
            .run(&worker.x, &targets, weight, head, scratch, back);
        let layers = self.layers.iter().zip(&worker.kept).zip(&places.layers);
        for ((layer, kept), places) in layers.rev() {
            layer.back(
                &mut shard.dx,
                &lens,
                kept,
                &mut worker.scratch,
                places,
                &mut shard.gradients,
            );
        }
    }
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
        norm: of(&from.norm).to_vec(),
        up: Matrix::new(of(&from.up), d, rounded),
        down: Matrix::new(of(&from.down), config.d_ff, rounded),
        kind: config.feed_forward,
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
