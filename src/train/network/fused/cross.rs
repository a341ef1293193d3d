//! Attention of the tokens of a shard to the memories that they read, forward and back. Tokens that read none take no part.

use std::ops::Range;

use super::attention::{Work, query_back};
use super::layer::{
    Scratch, by_column, exactly, gains_back, mask, matrix_back, pack_context, pack_into, project,
    room,
};
use super::matrix::Matrix;
use super::memory::{Reading, Span};
use super::pack;
use super::product::{Left, Output, Panels, Rows, product, unpack};
use super::rows::{self, UNIT};

/// Attention to memories as a step needs it.
#[derive(Debug)]
pub struct Cross {
    pub norm: Vec<f32>,
    pub query: Matrix,
    /// Keys and values in one.
    pub keys_values: Matrix,
    pub output: Matrix,
    pub d_kv: usize,
    /// Scale of scores and gain of outputs, by head.
    pub score: Vec<f32>,
    pub gain: Vec<f32>,
    pub rounded: bool,
}

/// Where its gradients lie among all.
#[derive(Debug, Clone)]
pub struct CrossPlaces {
    pub norm: Range<usize>,
    pub query: Range<usize>,
    pub keys_values: Range<usize>,
    pub output: Range<usize>,
    pub score: Range<usize>,
    pub gain: Range<usize>,
}

/// What the way back needs of the way forward: rows of the tokens that read, one behind the other.
#[derive(Debug, Default)]
pub struct CrossKept {
    x: Vec<f32>,
    reciprocals: Vec<f32>,
    inputs: Vec<u32>,
    queries: Vec<u32>,
    /// Rows of all memories of the shard.
    keys_values: Vec<u32>,
    /// Weights: by span, by head, by token.
    shares: Vec<u32>,
    outputs: Vec<f32>,
    context: Vec<u32>,
}

/// A span and where its own begin: rows of tokens that read, and pairs of weights.
struct Placed<'a> {
    span: &'a Span,
    row: usize,
    shares: usize,
}

impl Placed<'_> {
    fn tokens(&self) -> usize {
        self.span.tokens.len()
    }

    /// Pairs of the weights of a token.
    fn pairs(&self) -> usize {
        self.span.memory.len().div_ceil(2)
    }

    /// Where the weights of a head lie.
    fn shares(&self, head: usize) -> Range<usize> {
        let len = self.tokens() * self.pairs();
        let start = self.shares + head * len;
        start..start + len
    }

    /// Its rows of numbers of all tokens that read.
    fn rows_of<'r, T>(&self, all: &'r [T], stride: usize) -> &'r [T] {
        &all[self.row * stride..][..self.tokens() * stride]
    }

    /// The rows of its memory of those of all memories.
    fn memory_of<'r, T>(&self, all: &'r [T], stride: usize) -> &'r [T] {
        &all[self.span.memory.start * stride..self.span.memory.end * stride]
    }
}

/// The rows of tokens that read, one behind the other.
fn gather(from: &[f32], d: usize, reading: &Reading, to: &mut [f32]) {
    let mut rest = to;
    for span in &reading.spans {
        let (own, others) = rest.split_at_mut(span.tokens.len() * d);
        own.copy_from_slice(&from[span.tokens.start * d..span.tokens.end * d]);
        rest = others;
    }
}

impl Cross {
    fn heads(&self) -> usize {
        self.gain.len()
    }

    /// Values of all heads of a row.
    fn inner(&self) -> usize {
        self.heads() * self.d_kv
    }

    /// The spans of a shard, and the pairs of all their weights.
    fn placed<'a>(&self, reading: &'a Reading) -> (Vec<Placed<'a>>, usize) {
        let (mut row, mut shares) = (0, 0);
        let place = |span: &'a Span| {
            let placed = Placed { span, row, shares };
            row += placed.tokens();
            shares += self.heads() * placed.tokens() * placed.pairs();
            placed
        };
        let placed = reading.spans.iter().map(place).collect();
        (placed, shares)
    }

    /// Adds what tokens find in their memories to their residual stream `x`.
    pub fn forward(
        &self,
        x: &mut [f32],
        reading: &Reading,
        kept: &mut CrossKept,
        scratch: &mut Scratch,
    ) {
        if reading.spans.is_empty() {
            return;
        }
        let (d, inner, count) = (self.norm.len(), self.inner(), reading.tokens);
        gather(x, d, reading, exactly(&mut kept.x, count * d));
        let inputs = room(&mut scratch.floats, count * d);
        let reciprocals = exactly(&mut kept.reciprocals, count);
        rows::normalise(&kept.x, &self.norm, self.rounded, inputs, reciprocals);
        pack_into(inputs, d, &mut kept.inputs);
        let floats = &mut scratch.floats;
        let (queries, keys_values) = (&mut kept.queries, &mut kept.keys_values);
        project(
            &self.query,
            self.rounded,
            &kept.inputs,
            count,
            floats,
            queries,
        );
        let (memory, rows) = (&reading.packed, reading.rows);
        project(
            &self.keys_values,
            self.rounded,
            memory,
            rows,
            floats,
            keys_values,
        );

        let (placed, shares) = self.placed(reading);
        exactly(&mut kept.shares, shares);
        exactly(&mut kept.outputs, count * inner);
        for placed in &placed {
            for head in 0..self.heads() {
                self.forward_head(placed, head, kept, &mut scratch.attention);
            }
        }
        let gains = by_column(&self.gain, self.d_kv);
        pack_context(
            &kept.outputs,
            &gains,
            self.rounded,
            &mut scratch.floats,
            &mut kept.context,
        );
        let sums = room(&mut scratch.floats, count * d);
        self.output.apply(&kept.context, count, sums);
        let scales = self.output.scales(UNIT, 1.0);
        for placed in &placed {
            let tokens = &placed.span.tokens;
            let x = &mut x[tokens.start * d..tokens.end * d];
            rows::add_scaled(x, placed.rows_of(sums, d), &scales);
        }
    }

    /// Weights and outputs of one head of one span.
    fn forward_head(&self, placed: &Placed, head: usize, kept: &mut CrossKept, work: &mut Work) {
        let (inner, half) = (self.inner(), self.d_kv / 2);
        let (own, pairs) = (head * half, placed.pairs());
        let memory = placed.memory_of(&kept.keys_values, inner);
        pack::transpose_into(memory, inner, own, half, &mut work.keys);
        pack::interleave_into(memory, inner, inner / 2 + own, half, &mut work.values);
        let queries = placed.rows_of(&kept.queries, inner / 2);
        self.scores(placed, &queries[own..], &work.keys, &mut work.scores);
        let (seen, scale) = (placed.span.memory.len(), self.score[head] / (UNIT * UNIT));
        let no_bias = vec![0f32; seen];
        for row in work.scores.chunks_exact_mut(2 * pairs) {
            row[seen..].fill(0.0);
            rows::softmax(&mut row[..seen], scale, &no_bias);
        }
        let shares = &mut kept.shares[placed.shares(head)];
        pack::rows_into(&work.scores, 2 * pairs, shares);
        let out = Output {
            data: &mut kept.outputs[placed.row * inner + head * self.d_kv..],
            stride: inner,
            rows: placed.tokens(),
            columns: self.d_kv,
            add: false,
        };
        product(
            Rows::whole(shares, pairs),
            Panels::whole(&work.values, pairs),
            out,
        );
    }

    /// Products of what the tokens of a span have in a head, from `rows` on, with rows of its memory in panels.
    fn scores(&self, placed: &Placed, rows: &[u32], memory: &[u32], out: &mut Vec<f32>) {
        let pairs = self.d_kv / 2;
        let left = Left::Rows(Rows {
            data: rows,
            stride: self.inner() / 2,
            pairs,
        });
        let width = 2 * placed.pairs();
        let out = Output {
            data: exactly(out, placed.tokens() * width),
            stride: width,
            rows: placed.tokens(),
            columns: placed.span.memory.len(),
            add: false,
        };
        product(left, Panels::whole(memory, pairs), out);
    }

    /// Adds to the gradient `dx` of what [`Cross::forward`] made of `x` what makes it that of `x`, and to
    /// `scratch.dmemory` the gradients of the memories' rows in 1.0; stores those of the parameters.
    pub fn back(
        &self,
        dx: &mut [f32],
        reading: &Reading,
        kept: &CrossKept,
        scratch: &mut Scratch,
        places: &CrossPlaces,
        gradients: &mut [f32],
    ) {
        if reading.spans.is_empty() {
            for place in [&places.query, &places.keys_values, &places.output] {
                gradients[place.clone()].fill(0.0);
            }
            return;
        }
        let (d, count) = (self.norm.len(), reading.tokens);
        let mut doutputs = std::mem::take(&mut scratch.more);
        gather(dx, d, reading, room(&mut doutputs, count * d));
        let place = &mut gradients[places.output.clone()];
        let (context, doutputs_of) = (&kept.context, &doutputs[..count * d]);
        matrix_back(&self.output, doutputs_of, context, UNIT, scratch, place);
        scratch.more = doutputs;
        self.context_back(reading, kept, scratch, places, gradients);

        let dmemory = std::mem::take(&mut scratch.keys_values);
        let place = &mut gradients[places.keys_values.clone()];
        let memory = &reading.packed;
        matrix_back(&self.keys_values, &dmemory, memory, UNIT, scratch, place);
        scratch.keys_values = dmemory;
        let drows = room(&mut scratch.floats, reading.rows * d);
        self.keys_values.back(&scratch.packed, reading.rows, drows);
        let sums = scratch.dmemory.iter_mut().zip(drows.iter());
        sums.for_each(|(sum, value)| *sum += value);

        let dqueries = std::mem::take(&mut scratch.more);
        let place = &mut gradients[places.query.clone()];
        let dqueries_of = &dqueries[..count * self.inner()];
        matrix_back(&self.query, dqueries_of, &kept.inputs, UNIT, scratch, place);
        scratch.more = dqueries;
        let dinputs = room(&mut scratch.floats, count * d);
        self.query.back(&scratch.packed, count, dinputs);
        let dgain = &mut gradients[places.norm.clone()];
        for placed in self.placed(reading).0 {
            let tokens = &placed.span.tokens;
            rows::normalise_back(
                placed.rows_of(&kept.x, d),
                &self.norm,
                placed.rows_of(&kept.reciprocals, 1),
                self.rounded,
                &mut dinputs[placed.row * d..][..tokens.len() * d],
                &mut dx[tokens.start * d..tokens.end * d],
                dgain,
            );
        }
    }

    /// From packed gradients of what the output matrix made to those of queries, in `scratch.more`, and of keys and
    /// values, in `scratch.keys_values`.
    fn context_back(
        &self,
        reading: &Reading,
        kept: &CrossKept,
        scratch: &mut Scratch,
        places: &CrossPlaces,
        gradients: &mut [f32],
    ) {
        let (inner, count) = (self.inner(), reading.tokens);
        let dcontext = room(&mut scratch.floats, count * inner);
        self.output.back(&scratch.packed, count, dcontext);
        if self.rounded {
            mask(dcontext, &kept.context);
        }
        let place = &mut gradients[places.gain.clone()];
        gains_back(dcontext, &kept.outputs, self.d_kv, place);
        let douts = room(&mut scratch.more, count * inner);
        rows::scale_columns(dcontext, &by_column(&self.gain, self.d_kv), douts);
        pack_into(douts, inner, &mut scratch.packed);
        let dqueries = room(&mut scratch.more, count * inner);
        let dmemory = exactly(&mut scratch.keys_values, reading.rows * 2 * inner);
        dmemory.fill(0.0);
        let (work, score) = (&mut scratch.attention, &mut gradients[places.score.clone()]);
        for placed in self.placed(reading).0 {
            let douts = placed.rows_of(&scratch.packed, inner / 2);
            for (head, score) in score.iter_mut().enumerate() {
                self.values_back(&placed, head, (kept, douts), work, dmemory);
                *score += self.scores_back(&placed, head, kept, work, (dqueries, dmemory));
            }
        }
        self.scale_keys(dmemory);
        if self.rounded {
            mask(dqueries, &kept.queries);
            mask(dmemory, &kept.keys_values);
        }
    }

    /// From the gradients of a head's outputs, packed, to those of its scores, in `work.packed`; adds those of the
    /// values.
    fn values_back(
        &self,
        placed: &Placed,
        head: usize,
        (kept, douts): (&CrossKept, &[u32]),
        work: &mut Work,
        dmemory: &mut [f32],
    ) {
        let (inner, half, seen) = (self.inner(), self.d_kv / 2, placed.span.memory.len());
        let (own, pairs) = (head * half, placed.pairs());
        let memory = placed.memory_of(&kept.keys_values, inner);
        pack::transpose_into(memory, inner, inner / 2 + own, half, &mut work.values);
        self.scores(placed, &douts[own..], &work.values, &mut work.scores);
        let packed = &kept.shares[placed.shares(head)];
        pack::interleave_into(packed, pairs, 0, pairs, &mut work.turned);
        pack::interleave_into(douts, inner / 2, own, half, &mut work.outputs);
        let column = inner + head * self.d_kv;
        self.memory_back(placed, &work.turned, &work.outputs, column, dmemory);
        work.shares.clear();
        let shares = packed
            .iter()
            .flat_map(|&pair| <[f32; 2]>::from(unpack(pair)));
        work.shares.extend(shares);
        // there is no bias that a gradient goes to
        let mut bias = vec![0f32; seen];
        let rows = work.scores.chunks_exact_mut(2 * pairs);
        for (row, shares) in rows.zip(work.shares.chunks_exact(2 * pairs)) {
            row[seen..].fill(0.0);
            rows::softmax_back(&shares[..seen], 1.0 / UNIT, &mut row[..seen], &mut bias);
        }
        pack_into(&work.scores, 2 * pairs, &mut work.packed);
    }

    /// From the gradients of a head's scores to those of its queries; adds those of the keys without the scale of
    /// scores, and returns that of this scale.
    fn scores_back(
        &self,
        placed: &Placed,
        head: usize,
        kept: &CrossKept,
        work: &mut Work,
        (dqueries, dmemory): (&mut [f32], &mut [f32]),
    ) -> f32 {
        let (inner, half, d_kv) = (self.inner(), self.d_kv / 2, self.d_kv);
        let (own, pairs) = (head * half, placed.pairs());
        let queries = placed.rows_of(&kept.queries, inner / 2);
        pack::interleave_into(&work.packed, pairs, 0, pairs, &mut work.turned);
        pack::interleave_into(queries, inner / 2, own, half, &mut work.queries);
        let column = head * d_kv;
        self.memory_back(placed, &work.turned, &work.queries, column, dmemory);
        let memory = placed.memory_of(&kept.keys_values, inner);
        pack::interleave_into(memory, inner, own, half, &mut work.keys);
        let plain = exactly(&mut work.plain, placed.tokens() * d_kv);
        let out = Output::rows(plain, placed.tokens(), d_kv);
        product(
            Rows::whole(&work.packed, pairs),
            Panels::whole(&work.keys, pairs),
            out,
        );
        let dqueries = dqueries[placed.row * inner..].chunks_exact_mut(inner);
        let rows = queries.chunks_exact(inner / 2).zip(dqueries);
        let scale = self.score[head] / UNIT;
        let mut total = 0.0;
        for ((query, dquery), plain) in rows.zip(work.plain.chunks_exact(d_kv)) {
            let (query, dquery) = (&query[own..own + half], &mut dquery[column..column + d_kv]);
            total += query_back(query, plain, scale, dquery, &mut work.query);
        }
        total / (UNIT * UNIT)
    }

    /// Adds products of what the tokens of a span give to the rows of its memory, turned, with `right` to columns from
    /// `column` on.
    fn memory_back(
        &self,
        placed: &Placed,
        turned: &[u32],
        right: &[u32],
        column: usize,
        dmemory: &mut [f32],
    ) {
        let (stride, memory) = (2 * self.inner(), &placed.span.memory);
        let out = Output {
            data: &mut dmemory[memory.start * stride + column..],
            stride,
            rows: memory.len(),
            columns: self.d_kv,
            add: true,
        };
        let pairs = placed.tokens().div_ceil(2);
        let left = Left::Transposed(Panels::whole(turned, pairs));
        product(left, Panels::whole(right, pairs), out);
    }

    /// Products took keys in their exact unit and left the scale of scores out.
    fn scale_keys(&self, dmemory: &mut [f32]) {
        let scales: Vec<f32> = self.score.iter().map(|score| score / UNIT).collect();
        let scales = by_column(&scales, self.d_kv);
        for row in dmemory.chunks_exact_mut(2 * self.inner()) {
            let keys = row.iter_mut().zip(&scales);
            keys.for_each(|(value, scale)| *value *= scale);
        }
    }
}
