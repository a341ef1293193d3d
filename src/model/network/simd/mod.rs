//! The engine for processors: integer kernels, one row of activations at a time.

mod kernels;

pub use kernels::Kernel;

use std::sync::Arc;

use super::config::{Config, FeedForward};
use super::exact;
use super::weights::{Attention, Embedding, Layer, Linear};
use super::{Batch, Engine, Memory, Network, Seen, Sequence, Step};
use super::{check_class, check_latents, check_memory, check_sequences, check_steps};
use crate::model::ModelError;

/// Positions that go through the layers together: bounds the memory of the teacher-forced path.
const BLOCK: usize = 64;

/// What a decoder remembers of a stream: the keys and values of its last positions and of its latents.
#[derive(Debug, Clone, Default)]
struct Stream {
    seen: Seen,
    layers: Vec<StreamLayer>,
    /// Number of latents.
    latents: usize,
}

/// Keys and values of one decoder layer, a row of `heads * d_kv` for each position.
#[derive(Debug, Clone, Default)]
struct StreamLayer {
    keys: Vec<i8>,
    values: Vec<i8>,
    latent_keys: Vec<i8>,
    latent_values: Vec<i8>,
}

impl StreamLayer {
    /// Drops what lies before the last `keep` bytes, now and then.
    fn forget(&mut self, keep: usize) {
        if self.keys.len() > 2 * keep {
            let old = self.keys.len() - keep;
            self.keys.drain(..old);
            self.values.drain(..old);
        }
    }
}

/// Keys and values of `count` positions, a row for each.
#[derive(Clone, Copy)]
struct Positions<'a> {
    keys: &'a [i8],
    values: &'a [i8],
    count: usize,
}

/// Some rows of a [`Linear`].
#[derive(Clone, Copy)]
struct Rows<'a> {
    columns: usize,
    weight: &'a [i8],
    scale: &'a [i32],
}

impl<'a> Rows<'a> {
    fn of(linear: &'a Linear, rows: std::ops::Range<usize>) -> Rows<'a> {
        Rows {
            columns: linear.columns,
            weight: &linear.weight[rows.start * linear.columns..rows.end * linear.columns],
            scale: &linear.scale[rows],
        }
    }

    fn all(linear: &'a Linear) -> Rows<'a> {
        Rows::of(linear, 0..linear.rows)
    }

    fn outputs(&self, inputs: &[i8]) -> usize {
        inputs.len() / self.columns * self.scale.len()
    }
}

/// A network at work on the processor.
#[derive(Debug, Clone)]
pub struct Simd {
    network: Arc<Network>,
    kernel: Kernel,
    threads: usize,
    /// Score biases of each decoder layer, by head and distance back.
    looking_back: Vec<Vec<i32>>,
    /// Score biases of each encoder layer, by head and distance ahead + `max_latents`.
    around: Vec<Vec<i32>>,
}

impl Simd {
    /// An engine that uses up to `threads` threads for the teacher-forced path.
    pub fn new(network: Arc<Network>, threads: usize) -> Simd {
        let config = network.config();
        let (window, latents) = (config.window as i64, config.max_latents as i64);
        let back = |layer: &Layer| biases(config, &layer.attention, 0..window, |d| (-d, false));
        let around = |layer: &Layer| {
            biases(config, &layer.attention, 0..2 * latents, |d| {
                (d - latents, true)
            })
        };
        Simd {
            looking_back: network.weights().decoder.iter().map(back).collect(),
            around: network.weights().encoder.iter().map(around).collect(),
            kernel: Kernel::detect(),
            threads: threads.max(1),
            network,
        }
    }

    /// Uses another kernel than the fastest, for tests.
    pub fn with_kernel(mut self, kernel: Kernel) -> Simd {
        self.kernel = kernel;
        self
    }

    fn config(&self) -> &Config {
        self.network.config()
    }

    /// Multiplies all rows of `inputs` with all rows of a matrix: `put` gets the place of each output, the
    /// sum of products and its scale.
    fn multiply(&self, matrix: Rows, inputs: &[i8], mut put: impl FnMut(usize, i32, i32)) {
        let (columns, rows) = (matrix.columns, matrix.scale.len());
        let weights = matrix.weight.chunks_exact(columns);
        for (row, (weight, &scale)) in weights.zip(matrix.scale).enumerate() {
            for (index, input) in inputs.chunks_exact(columns).enumerate() {
                put(index * rows + row, self.kernel.dot(weight, input), scale);
            }
        }
    }

    fn activations(&self, linear: &Linear, inputs: &[i8]) -> Vec<i8> {
        let matrix = Rows::all(linear);
        let mut out = vec![0; matrix.outputs(inputs)];
        self.multiply(matrix, inputs, |at, sum, scale| {
            out[at] = exact::activation(exact::rescale(sum, scale));
        });
        out
    }

    fn update(&self, linear: &Linear, inputs: &[i8], residual: &mut [i32]) {
        self.multiply(Rows::all(linear), inputs, |at, sum, scale| {
            residual[at] = exact::residual(residual[at], exact::rescale(sum, scale));
        });
    }

    fn logits(&self, matrix: Rows, bias: &[i32], inputs: &[i8]) -> Vec<i32> {
        let mut out = vec![0; matrix.outputs(inputs)];
        self.multiply(matrix, inputs, |at, sum, scale| {
            // the product is at most 2^28, the bias at most 2^20
            out[at] = exact::rescale(sum, scale) as i32 + bias[at % bias.len()];
        });
        out
    }

    fn feed_forward(&self, layer: &Layer, residual: &mut [i32]) {
        let inputs = self.normalise(&layer.norm, residual);
        let up = Rows::all(&layer.up);
        let mut hidden = vec![0; up.outputs(&inputs)];
        let hide = match self.config().feed_forward {
            FeedForward::Relu => exact::relu,
            FeedForward::SquaredRelu => exact::squared_relu,
        };
        self.multiply(up, &inputs, |at, sum, scale| {
            hidden[at] = hide(sum, scale);
        });
        self.update(&layer.down, &hidden, residual);
    }

    fn normalise(&self, gains: &[i32], residual: &[i32]) -> Vec<i8> {
        let mut out = Vec::with_capacity(residual.len());
        for row in residual.chunks_exact(gains.len().max(1)) {
            let squares = row.iter().map(|&x| i64::from(x) * i64::from(x)).sum();
            let reciprocal = exact::reciprocal(squares, row.len());
            out.extend(
                row.iter()
                    .zip(gains)
                    .map(|(&x, &gain)| exact::normalise(x, gain, reciprocal)),
            );
        }
        out
    }

    /// One query's attention to the positions in `seen`; `bias` gives the score bias of a head and a key.
    fn attend(
        &self,
        attention: &Attention,
        query: &[i8],
        seen: Positions,
        bias: impl Fn(usize, usize) -> i32,
        out: &mut Vec<i8>,
    ) {
        let Positions {
            keys,
            values,
            count,
        } = seen;
        let (inner, d_kv) = (self.config().inner(), self.config().d_kv);
        let weights_by_distance = &*exact::ATTENTION_WEIGHTS;
        let mut scores = vec![0i64; count];
        let mut sums = vec![0i32; d_kv];
        for head in 0..self.config().num_heads {
            let part = head * d_kv..(head + 1) * d_kv;
            for (key, score) in scores.iter_mut().enumerate() {
                let row = &keys[key * inner..(key + 1) * inner];
                let sum = self.kernel.dot(&query[part.clone()], &row[part.clone()]);
                *score = exact::rescale(sum, attention.score[head]) + i64::from(bias(head, key));
            }
            let best = scores.iter().copied().max().unwrap_or(0);
            let mut total = 0;
            sums.fill(0);
            for (key, score) in scores.iter().enumerate() {
                let distance = (best - score).min(i64::from(exact::ATTENTION_REACH));
                let weight = weights_by_distance[distance as usize];
                if weight == 0 {
                    continue;
                }
                total += weight;
                let row = &values[key * inner..(key + 1) * inner][part.clone()];
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += weight * i32::from(value);
                }
            }
            let gain = attention.gain[head];
            out.extend(sums.iter().map(|&sum| exact::context(sum, total, gain)));
        }
    }

    /// Runs the decoder over rows, of which `counts[i]` belong to stream i and follow what it has seen.
    fn decode(&self, streams: &mut [&mut Stream], counts: &[usize], residual: &mut [i32]) {
        let (inner, window) = (self.config().inner(), self.config().window);
        for (index, layer) in self.network.weights().decoder.iter().enumerate() {
            let attention = &layer.attention;
            let inputs = self.normalise(&attention.norm, residual);
            let queries = self.activations(&attention.query, &inputs);
            let keys = self.activations(&attention.key, &inputs);
            let values = self.activations(&attention.value, &inputs);
            let biases = &self.looking_back[index];
            let mut contexts = Vec::with_capacity(queries.len());
            let mut at = 0;
            for (stream, &count) in streams.iter_mut().zip(counts) {
                let cached = &mut stream.layers[index];
                for row in at..at + count {
                    let part = row * inner..(row + 1) * inner;
                    cached.keys.extend_from_slice(&keys[part.clone()]);
                    cached.values.extend_from_slice(&values[part.clone()]);
                    let known = cached.keys.len() / inner;
                    let seen = known.min(window);
                    let bias = |head, key| biases[head * window + seen - 1 - key];
                    let positions = Positions {
                        keys: &cached.keys[(known - seen) * inner..],
                        values: &cached.values[(known - seen) * inner..],
                        count: seen,
                    };
                    self.attend(attention, &queries[part], positions, bias, &mut contexts);
                }
                at += count;
                cached.forget(window * inner);
            }
            self.update(&attention.output, &contexts, residual);
            if let Some(cross) = &layer.cross {
                self.attend_latents(cross, index, streams, counts, residual);
            }
            self.feed_forward(layer, residual);
        }
    }

    fn attend_latents(
        &self,
        cross: &Attention,
        index: usize,
        streams: &[&mut Stream],
        counts: &[usize],
        residual: &mut [i32],
    ) {
        let inner = self.config().inner();
        let queries = self.activations(&cross.query, &self.normalise(&cross.norm, residual));
        let mut contexts = Vec::with_capacity(queries.len());
        let mut queries = queries.chunks_exact(inner);
        for (stream, &count) in streams.iter().zip(counts) {
            let cached = &stream.layers[index];
            let positions = Positions {
                keys: &cached.latent_keys,
                values: &cached.latent_values,
                count: stream.latents,
            };
            for query in queries.by_ref().take(count) {
                match stream.latents {
                    0 => contexts.resize(contexts.len() + inner, 0),
                    _ => self.attend(cross, query, positions, |_, _| 0, &mut contexts),
                }
            }
        }
        self.update(&cross.output, &contexts, residual);
    }

    /// What enters the residual stream for the newest position.
    fn embed(&self, seen: &Seen, residual: &mut Vec<i32>) {
        let weights = self.network.weights();
        let at = residual.len();
        residual.resize(at + self.config().d_model, 0);
        add_row(
            &weights.tokens,
            seen.token_row(self.config()),
            &mut residual[at..],
        );
        let Some(ngrams) = &self.config().ngrams else {
            return;
        };
        for (&length, table) in ngrams.lengths.iter().zip(&weights.ngrams) {
            if let Some(row) = seen.ngram_row(length, ngrams.slots) {
                add_row(table, row, &mut residual[at..]);
            }
        }
    }

    fn stream(&self, memory: &Memory) -> Stream {
        let layers = self.network.weights().decoder.iter().map(|layer| {
            let cross = layer.cross.as_ref();
            let project = |pick: fn(&Attention) -> &Linear| {
                cross.map_or_else(Vec::new, |cross| {
                    self.activations(pick(cross), &memory.rows)
                })
            };
            StreamLayer {
                latent_keys: project(|cross| &cross.key),
                latent_values: project(|cross| &cross.value),
                ..StreamLayer::default()
            }
        });
        Stream {
            seen: Seen::default(),
            layers: layers.collect(),
            latents: memory.len,
        }
    }

    fn sequence(&self, sequence: &Sequence) -> Vec<i8> {
        let mut stream = self.stream(sequence.memory);
        let inputs = sequence.tokens.len().saturating_sub(1);
        let mut inputs = stream.seen.inputs(&sequence.tokens[..inputs]);
        let mut rows = Vec::with_capacity(sequence.tokens.len() * self.config().d_model);
        let mut left = sequence.tokens.len();
        while left > 0 {
            let count = left.min(BLOCK);
            let mut residual = Vec::with_capacity(count * self.config().d_model);
            for input in inputs.by_ref().take(count) {
                stream.seen.push(input);
                self.embed(&stream.seen, &mut residual);
            }
            self.decode(&mut [&mut stream], &[count], &mut residual);
            rows.extend(self.normalise(&self.network.weights().decoder_norm, &residual));
            left -= count;
        }
        rows
    }

    fn encode_one(&self, latents: &[u16]) -> Memory {
        let weights = self.network.weights();
        let d = self.config().d_model;
        let mut residual = vec![0; latents.len() * d];
        if let Some(table) = &weights.latents {
            for (row, &latent) in residual.chunks_exact_mut(d).zip(latents) {
                add_row(table, usize::from(latent), row);
            }
        }
        for (index, layer) in weights.encoder.iter().enumerate() {
            let attention = &layer.attention;
            let inputs = self.normalise(&attention.norm, &residual);
            let queries = self.activations(&attention.query, &inputs);
            let keys = self.activations(&attention.key, &inputs);
            let values = self.activations(&attention.value, &inputs);
            let biases = &self.around[index];
            let most = self.config().max_latents;
            let mut contexts = Vec::with_capacity(queries.len());
            for (at, query) in queries.chunks_exact(self.config().inner()).enumerate() {
                let bias = |head: usize, key: usize| biases[head * 2 * most + most + key - at];
                let positions = Positions {
                    keys: &keys,
                    values: &values,
                    count: latents.len(),
                };
                self.attend(attention, query, positions, bias, &mut contexts);
            }
            self.update(&attention.output, &contexts, &mut residual);
            self.feed_forward(layer, &mut residual);
        }
        Memory {
            rows: self.normalise(&weights.encoder_norm, &residual),
            len: latents.len(),
        }
    }
}

/// The score biases of a layer by head and a number that `place` turns into a relative position.
fn biases(
    config: &Config,
    attention: &Attention,
    numbers: std::ops::Range<i64>,
    place: impl Fn(i64) -> (i64, bool),
) -> Vec<i32> {
    let buckets = config.relative_attention_num_buckets;
    let distance = config.relative_attention_max_distance;
    attention
        .bias
        .chunks_exact(buckets)
        .flat_map(|head| {
            numbers.clone().map(|number| {
                let (ahead, bidirectional) = place(number);
                head[exact::bucket(ahead, bidirectional, buckets, distance)]
            })
        })
        .collect()
}

/// Adds a row of an embedding to a row of the residual stream.
fn add_row(embedding: &Embedding, row: usize, residual: &mut [i32]) {
    let columns = embedding.columns;
    let weights = &embedding.weight[row * columns..(row + 1) * columns];
    for (value, &weight) in residual.iter_mut().zip(weights) {
        *value = exact::residual(*value, i64::from(weight) * i64::from(embedding.scale));
    }
}

impl Engine for Simd {
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>, ModelError> {
        check_latents(self.config(), latents)?;
        Ok(latents
            .iter()
            .map(|latents| self.encode_one(latents))
            .collect())
    }

    fn hidden(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>, ModelError> {
        check_sequences(self.config(), sequences)?;
        let share = sequences.len().div_ceil(self.threads).max(1);
        let part = |part: &[Sequence]| part.iter().map(|s| self.sequence(s)).collect::<Vec<_>>();
        if share >= sequences.len() {
            return Ok(part(sequences));
        }
        std::thread::scope(|scope| {
            let workers: Vec<_> = sequences
                .chunks(share)
                .map(|sequences| scope.spawn(move || part(sequences)))
                .collect();
            let mut rows = Vec::with_capacity(sequences.len());
            for worker in workers {
                let part = worker.join();
                rows.extend(part.map_err(|_| ModelError::Device("a thread panicked".into()))?);
            }
            Ok(rows)
        })
    }

    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>, ModelError> {
        Ok(Box::new(Streams {
            engine: self,
            slots: vec![None; slots],
        }))
    }

    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>, ModelError> {
        let weights = self.network.weights();
        Ok(self.logits(Rows::all(&weights.class_head), &weights.class_bias, rows))
    }

    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>, ModelError> {
        check_class(self.config(), class)?;
        let weights = self.network.weights();
        let range = self.config().class_range(class);
        let matrix = Rows::of(&weights.token_head, range.clone());
        Ok(self.logits(matrix, &weights.token_bias[range], rows))
    }
}

/// The slots of the step-by-step path.
struct Streams<'a> {
    engine: &'a Simd,
    slots: Vec<Option<Stream>>,
}

impl Batch for Streams<'_> {
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<(), ModelError> {
        check_memory(self.engine.config(), memory)?;
        let place = self.slots.get_mut(slot);
        let place = place.ok_or_else(|| ModelError::Input("no such slot".into()))?;
        *place = Some(self.engine.stream(memory));
        Ok(())
    }

    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>, ModelError> {
        let engine = self.engine;
        let seen = |slot: usize| Some(&self.slots.get(slot)?.as_ref()?.seen);
        check_steps(engine.config(), steps, seen)?;
        let d = engine.config().d_model;
        let (mut streams, mut counts) = (Vec::new(), Vec::new());
        let mut residual = Vec::new();
        for step in steps {
            // the check has seen that the slot is taken
            let mut stream = self.slots[step.slot].take().unwrap_or_default();
            let before = residual.len();
            for input in stream.seen.inputs(step.tokens) {
                stream.seen.push(input);
                engine.embed(&stream.seen, &mut residual);
            }
            counts.push((residual.len() - before) / d);
            streams.push(stream);
        }
        let mut borrowed: Vec<&mut Stream> = streams.iter_mut().collect();
        engine.decode(&mut borrowed, &counts, &mut residual);
        let mut last = Vec::with_capacity(steps.len() * d);
        let mut end = 0;
        for ((step, stream), count) in steps.iter().zip(streams).zip(counts) {
            self.slots[step.slot] = Some(stream);
            end += count * d;
            last.extend_from_slice(&residual[end - d..end]);
        }
        Ok(engine.normalise(&engine.network.weights().decoder_norm, &last))
    }
}
