//! The engine for processors: integer kernels on packed weights.

pub(in crate::model::network) mod bench;
mod kernels;
mod layout;
mod streams;
mod tables;

pub use kernels::Kernel;

use std::ops::Range;
use std::sync::Arc;

use self::kernels::{Attend, Norm, Output};
use self::layout::{Activations, GROUP, KeyValues, LANES, Packed, Parts, padded};
use self::streams::{Scratch, Stream, Streams};
use self::tables::{AttentionTables, LayerTables, Tables};
use super::config::Config;
use super::weights::Embedding;
use super::{Batch, Engine, Memory, Network, Seen, Sequence, exact};
use super::{check_class, check_latents, check_rows, check_sequences};
use crate::model::ModelError;

/// Positions that go through the layers together: bounds the memory of a sequence.
const BLOCK: usize = 64;

/// A network at work on the processor.
#[derive(Debug, Clone)]
pub struct Simd {
    network: Arc<Network>,
    tables: Arc<Tables>,
    kernel: Kernel,
    threads: usize,
}

impl Simd {
    /// An engine that uses up to `threads` threads for the teacher-forced path.
    pub fn new(network: Arc<Network>, threads: usize) -> Simd {
        Simd {
            tables: Arc::new(Tables::new(&network)),
            kernel: Kernel::detect(),
            threads: threads.max(1),
            network,
        }
    }

    /// Uses another kernel than the fastest, for tests and measurements.
    pub fn with_kernel(mut self, kernel: Kernel) -> Simd {
        self.kernel = kernel;
        self
    }

    fn config(&self) -> &Config {
        self.network.config()
    }

    /// Numbers of a row of the residual stream.
    fn width(&self) -> usize {
        padded(self.config().d_model)
    }

    fn heads(&self) -> Parts {
        Parts {
            count: self.config().num_heads,
            width: self.config().d_kv,
        }
    }

    /// Multiplies with all outputs of a matrix.
    fn multiply(&self, matrix: &Packed, inputs: &Activations, output: Output) {
        let blocks = 0..matrix.outputs / LANES;
        self.kernel.multiply(matrix, blocks, inputs, output);
    }

    fn project(&self, matrix: &Packed, inputs: &Activations, out: &mut Activations) {
        out.shape(inputs.rows(), matrix.outputs);
        self.multiply(matrix, inputs, Output::Activations(out));
    }

    fn normalise(&self, norm: &Norm, scratch: &mut Scratch) {
        self.kernel
            .normalise(norm, &scratch.residual, &mut scratch.inputs);
    }

    /// Adds what an attention has found to the residual stream.
    fn put_contexts(&self, attention: &AttentionTables, scratch: &mut Scratch) {
        let output = Output::Residual(&mut scratch.residual);
        self.multiply(&attention.output, &scratch.contexts, output);
    }

    fn feed_forward(&self, layer: &LayerTables, scratch: &mut Scratch) {
        self.normalise(&layer.norm, scratch);
        scratch
            .hidden
            .shape(scratch.inputs.rows(), layer.up.outputs);
        let output = Output::Hidden(self.config().feed_forward, &mut scratch.hidden);
        self.multiply(&layer.up, &scratch.inputs, output);
        let output = Output::Residual(&mut scratch.residual);
        self.multiply(&layer.down, &scratch.hidden, output);
    }

    /// What enters the residual stream for the newest position.
    fn embed(&self, seen: &Seen, residual: &mut Vec<i32>) {
        let (config, weights) = (self.config(), self.network.weights());
        let at = residual.len();
        residual.resize(at + self.width(), 0);
        let row = &mut residual[at..];
        add_row(&weights.tokens, seen.token_row(config), row);
        let Some(ngrams) = &config.ngrams else {
            return;
        };
        for (&length, table) in ngrams.lengths.iter().zip(&weights.ngrams) {
            if let Some(number) = seen.ngram_row(length, ngrams.slots) {
                add_row(table, number, row);
            }
        }
    }

    /// Attention of row `row` of the queries to keys, with biases from number `first` of the table on.
    fn attend(
        &self,
        attention: &AttentionTables,
        (queries, row): (&Activations, usize),
        (known, seen): (&KeyValues, Range<usize>),
        first: usize,
        out: &mut Activations,
    ) {
        let width = padded(self.config().d_kv);
        let parts = out.row_mut(row).chunks_exact_mut(width).enumerate();
        if seen.is_empty() {
            return out.row_mut(row).fill(0);
        }
        for (head, out) in parts {
            let query = head * width / GROUP..(head + 1) * width / GROUP;
            self.kernel.attend(Attend {
                query: &queries.row(row)[query],
                head: known.head(head),
                seen: seen.clone(),
                bias: attention.bias(head, first, seen.len()),
                score: attention.score[head],
                gain: attention.gain[head],
                out,
            });
        }
    }

    /// Runs the decoder over the rows that have been entered for streams, at most [`BLOCK`] for each, and
    /// leaves the hidden rows in `scratch.inputs`: all, or the last one of each stream.
    fn decode(&self, streams: &mut [&mut Stream], scratch: &mut Scratch, last: bool) {
        let window = self.config().window;
        for (index, layer) in self.tables.decoder.iter().enumerate() {
            let attention = &layer.attention;
            self.normalise(&attention.norm, scratch);
            scratch.project_keys(self, attention);
            let mut row = 0;
            for (stream, &count) in streams.iter_mut().zip(&scratch.counts) {
                let known = &mut stream.window[index];
                known.make_room(count, window - 1);
                scratch.remember(row..row + count, known);
                row += count;
            }
            if last && index + 1 == self.tables.decoder.len() {
                scratch.keep_last(self.width());
            }
            self.prepare(attention, scratch);
            let mut row = 0;
            for (stream, &count) in streams.iter().zip(&scratch.counts) {
                let known = &stream.window[index];
                for end in known.len() + 1 - count..=known.len() {
                    let seen = end.saturating_sub(window)..end;
                    let (first, queries) = (window - seen.len(), (&scratch.queries, row));
                    let known = (known, seen);
                    self.attend(attention, queries, known, first, &mut scratch.contexts);
                    row += 1;
                }
            }
            self.put_contexts(attention, scratch);
            if let Some(cross) = &layer.cross {
                self.attend_latents(cross, index, streams, scratch);
            }
            self.feed_forward(layer, scratch);
        }
        self.normalise(&self.tables.decoder_norm, scratch);
    }

    /// Queries of all rows, and room for what they find.
    fn prepare(&self, attention: &AttentionTables, scratch: &mut Scratch) {
        self.project(&attention.query, &scratch.inputs, &mut scratch.queries);
        scratch
            .contexts
            .shape(scratch.inputs.rows(), attention.query.outputs);
    }

    fn attend_latents(
        &self,
        cross: &AttentionTables,
        index: usize,
        streams: &[&mut Stream],
        scratch: &mut Scratch,
    ) {
        self.normalise(&cross.norm, scratch);
        self.prepare(cross, scratch);
        let mut row = 0;
        for (stream, &count) in streams.iter().zip(&scratch.counts) {
            let known = &stream.latents[index];
            for _ in 0..count {
                let (queries, known) = ((&scratch.queries, row), (known, 0..known.len()));
                self.attend(cross, queries, known, 0, &mut scratch.contexts);
                row += 1;
            }
        }
        self.put_contexts(cross, scratch);
    }

    fn sequence(&self, sequence: &Sequence, scratch: &mut Scratch) -> Vec<i8> {
        let d = self.config().d_model;
        let mut stream = Stream::new(self);
        stream.start(self, sequence.memory, scratch);
        let mut rows = Vec::with_capacity(sequence.tokens.len() * d);
        // the last token is predicted, not put in
        let known = sequence.tokens.len().saturating_sub(1);
        let mut inputs = stream.seen.inputs(&sequence.tokens[..known]);
        for start in (0..sequence.tokens.len()).step_by(BLOCK) {
            let count = BLOCK.min(sequence.tokens.len() - start);
            scratch.clear();
            scratch.enter(self, &mut stream.seen, inputs.by_ref().take(count));
            self.decode(&mut [&mut stream], scratch, false);
            (0..count).for_each(|row| rows.extend_from_slice(scratch.inputs.numbers(row, d)));
        }
        rows
    }

    fn encode_one(&self, latents: &[u16], scratch: &mut Scratch) -> Memory {
        let Some(table) = &self.network.weights().latents else {
            return Memory::default();
        };
        let (d, len, most) = (
            self.config().d_model,
            latents.len(),
            self.config().max_latents,
        );
        scratch.clear();
        scratch.residual.resize(len * self.width(), 0);
        let rows = scratch.residual.chunks_exact_mut(self.width());
        for (row, &latent) in rows.zip(latents) {
            add_row(table, usize::from(latent), row);
        }
        let mut known = KeyValues::new(self.heads(), len);
        for layer in &self.tables.encoder {
            let attention = &layer.attention;
            self.normalise(&attention.norm, scratch);
            scratch.project_keys(self, attention);
            known.clear();
            scratch.remember(0..len, &mut known);
            self.prepare(attention, scratch);
            for row in 0..len {
                let (queries, known) = ((&scratch.queries, row), (&known, 0..len));
                self.attend(attention, queries, known, most - row, &mut scratch.contexts);
            }
            self.put_contexts(attention, scratch);
            self.feed_forward(layer, scratch);
        }
        self.normalise(&self.tables.encoder_norm, scratch);
        let mut rows = Vec::with_capacity(len * d);
        (0..len).for_each(|row| rows.extend_from_slice(scratch.inputs.numbers(row, d)));
        Memory { rows, len }
    }

    /// Logits of some outputs of a head for each row.
    fn logits(&self, head: &Packed, bias: &[i32], outputs: Range<usize>, rows: &[i8]) -> Vec<i32> {
        let mut inputs = Activations::default();
        inputs.copy(rows, self.config().d_model);
        let blocks = outputs.start / LANES..outputs.end.div_ceil(LANES);
        let (width, skip) = (blocks.len() * LANES, outputs.start % LANES);
        let mut found = vec![0; inputs.rows() * width];
        self.kernel
            .multiply(head, blocks, &inputs, Output::Logits(&mut found));
        let mut logits = Vec::with_capacity(inputs.rows() * outputs.len());
        for row in found.chunks_exact(width) {
            // the product is at most 127 * 127 * 4096 < 2^26, the bias at most 2^20
            let with_bias = row[skip..].iter().zip(&bias[outputs.clone()]);
            logits.extend(with_bias.map(|(logit, bias)| logit + bias));
        }
        logits
    }
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
        let mut scratch = Scratch::default();
        let memories = latents.iter().map(|l| self.encode_one(l, &mut scratch));
        Ok(memories.collect())
    }

    fn hidden(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>, ModelError> {
        check_sequences(self.config(), sequences)?;
        let share = sequences.len().div_ceil(self.threads).max(1);
        let part = |part: &[Sequence]| {
            let mut scratch = Scratch::default();
            let rows = part.iter().map(|s| self.sequence(s, &mut scratch));
            rows.collect::<Vec<_>>()
        };
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
        Ok(Box::new(Streams::new(self, slots)))
    }

    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>, ModelError> {
        check_rows(self.config(), rows)?;
        let classes = 0..self.config().classes.len();
        let bias = &self.network.weights().class_bias;
        Ok(self.logits(&self.tables.class_head, bias, classes, rows))
    }

    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>, ModelError> {
        check_rows(self.config(), rows)?;
        check_class(self.config(), class)?;
        let tokens = self.config().class_range(class);
        let bias = &self.network.weights().token_bias;
        Ok(self.logits(&self.tables.token_head, bias, tokens, rows))
    }
}
