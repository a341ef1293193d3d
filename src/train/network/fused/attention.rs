//! Banded attention of one layer over sequences, a head and a block of queries at a time.

use std::ops::Range;

use super::layer::exactly;
use super::pack;
use super::product::{Left, Output, PANEL, Panels, Rows, product, unpack};
use super::rows::{UNIT, dot, softmax, softmax_back};

/// Queries that are computed together.
const BLOCK: usize = 64;

/// Sizes and parameters of an attention.
#[derive(Debug)]
pub struct Heads {
    pub heads: usize,
    pub d_kv: usize,
    pub window: usize,
    /// Scale of scores and gain of outputs, by head.
    pub score: Vec<f32>,
    pub gain: Vec<f32>,
    /// Bias by head and distance, farthest first: `window` values for each head.
    pub bias: Vec<f32>,
}

/// Memory that is used again and again.
#[derive(Debug, Default)]
pub struct Work {
    pub scores: Vec<f32>,
    pub shares: Vec<f32>,
    pub packed: Vec<u32>,
    pub turned: Vec<u32>,
    pub queries: Vec<u32>,
    pub keys: Vec<u32>,
    pub values: Vec<u32>,
    pub outputs: Vec<u32>,
    /// Gradients of queries without the scale of scores.
    pub plain: Vec<f32>,
    pub query: Vec<f32>,
}

/// What the way back adds up: as the fields of [`Heads`].
#[derive(Debug)]
pub struct HeadGradients<'a> {
    pub score: &'a mut [f32],
    pub bias: &'a mut [f32],
}

/// What the way back reads, of all sequences or of one.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Packed rows of queries, keys and values.
    pub qkv: &'a [u32],
    /// The weights that [`Heads::forward`] kept.
    pub shares: &'a [u32],
    /// Packed gradients of the outputs in 1.0, times the gain.
    pub douts: &'a [u32],
}

/// A block of queries of a sequence and the keys that they see, rounded to whole panels in front.
struct Block {
    queries: Range<usize>,
    first_key: usize,
    /// Keys, and this rounded up to pairs.
    span: usize,
    width: usize,
}

/// Stores the gradient of a packed query: `plain`, which is without the scale of scores, times `scale`. Returns the gradient of
/// that scale, times the square of the unit of activations; `unpacked` is memory to work in.
pub fn query_back(
    query: &[u32],
    plain: &[f32],
    scale: f32,
    out: &mut [f32],
    unpacked: &mut Vec<f32>,
) -> f32 {
    let unpacked = exactly(unpacked, plain.len());
    for (two, &pair) in unpacked.as_chunks_mut::<2>().0.iter_mut().zip(query) {
        *two = unpack(pair).into();
    }
    for (out, &plain) in out.iter_mut().zip(plain) {
        *out = plain * scale;
    }
    dot(unpacked, plain)
}

/// The rows of a block's queries among those of a sequence.
fn part<'a>(data: &'a [u32], depth: usize, block: &Block) -> Panels<'a> {
    Panels {
        data,
        depth,
        first: block.queries.start / 2,
        pairs: block.queries.len().div_ceil(2),
    }
}

impl Heads {
    /// Values of all heads of a position.
    pub fn inner(&self) -> usize {
        self.heads * self.d_kv
    }

    /// Pairs of a row of queries, keys and values together.
    fn stride(&self) -> usize {
        self.inner() * 3 / 2
    }

    fn blocks(&self, len: usize) -> impl Iterator<Item = Block> {
        let window = self.window;
        (0..len).step_by(BLOCK).map(move |start| {
            let end = (start + BLOCK).min(len);
            let first_key = (start + 1).saturating_sub(window) / PANEL * PANEL;
            let span = end - first_key;
            let width = span.next_multiple_of(2);
            Block {
                queries: start..end,
                first_key,
                span,
                width,
            }
        })
    }

    /// The keys that a query sees, as places in its row of the block and in the bias.
    fn band(&self, block: &Block, query: usize) -> (Range<usize>, usize) {
        let first = (query + 1).saturating_sub(self.window);
        let band = first - block.first_key..query + 1 - block.first_key;
        (band, self.window - (query + 1 - first))
    }

    /// Pairs of all weights of sequences of these lengths.
    pub fn shares_len(&self, lens: &[usize]) -> usize {
        let of = |&len| {
            self.blocks(len)
                .map(|b| b.queries.len() * b.width / 2)
                .sum::<usize>()
        };
        self.heads * lens.iter().map(of).sum::<usize>()
    }

    /// Weighted values in their exact unit of sequences one behind the other; `qkv` are packed rows of queries, keys
    /// and values. Keeps the weights for the way back.
    pub fn forward(
        &self,
        qkv: &[u32],
        lens: &[usize],
        work: &mut Work,
        shares: &mut [u32],
        out: &mut [f32],
    ) {
        let (mut row, mut kept) = (0, 0);
        for &len in lens {
            let qkv = &qkv[row * self.stride()..][..len * self.stride()];
            let out = &mut out[row * self.inner()..][..len * self.inner()];
            for head in 0..self.heads {
                kept += self.forward_head(qkv, head, work, &mut shares[kept..], out);
            }
            row += len;
        }
    }

    fn forward_head(
        &self,
        qkv: &[u32],
        head: usize,
        work: &mut Work,
        shares: &mut [u32],
        out: &mut [f32],
    ) -> usize {
        let (stride, half, inner) = (self.stride(), self.d_kv / 2, self.inner());
        let (own, len) = (head * half, qkv.len() / stride);
        pack::transpose_into(qkv, stride, inner / 2 + own, half, &mut work.keys);
        pack::interleave_into(qkv, stride, inner + own, half, &mut work.values);
        let bias = &self.bias[head * self.window..][..self.window];
        let mut kept = 0;
        for block in self.blocks(len) {
            self.scores(&block, &qkv[own..], stride, &work.keys, &mut work.scores);
            let rows = work.scores.chunks_exact_mut(block.width);
            for (row, query) in rows.zip(block.queries.clone()) {
                let (band, far) = self.band(&block, query);
                row[band.end..].fill(0.0);
                row[..band.start].fill(0.0);
                softmax(
                    &mut row[band],
                    self.score[head] / (UNIT * UNIT),
                    &bias[far..],
                );
            }
            let pairs = block.width / 2;
            let packed = &mut shares[kept..][..block.queries.len() * pairs];
            pack::rows_into(&work.scores, block.width, packed);
            kept += packed.len();
            let right = Panels {
                data: &work.values,
                depth: len.div_ceil(2),
                first: block.first_key / 2,
                pairs,
            };
            let out = Output {
                data: &mut out[block.queries.start * inner + head * self.d_kv..],
                stride: inner,
                rows: block.queries.len(),
                columns: self.d_kv,
                add: false,
            };
            product(Rows::whole(packed, pairs), right, out);
        }
        kept
    }

    /// Products of the rows of a block, `stride` pairs apart from `rows` on, with all its keys in panels.
    fn scores(&self, block: &Block, rows: &[u32], stride: usize, keys: &[u32], out: &mut Vec<f32>) {
        let pairs = self.d_kv / 2;
        let left = Left::Rows(Rows {
            data: &rows[block.queries.start * stride..],
            stride,
            pairs,
        });
        let right = Panels::whole(&keys[block.first_key * pairs..], pairs);
        out.clear();
        out.resize(block.queries.len() * block.width, 0.0);
        let out = Output {
            data: out,
            stride: block.width,
            rows: block.queries.len(),
            columns: block.span,
            add: false,
        };
        product(left, right, out);
    }

    /// From what is known to gradients of queries, keys and values in 1.0, which are added to `dqkv`.
    pub fn back(
        &self,
        known: Known,
        lens: &[usize],
        work: &mut Work,
        dqkv: &mut [f32],
        gradients: &mut HeadGradients,
    ) {
        let (mut row, mut kept) = (0, 0);
        for &len in lens {
            let dqkv = &mut dqkv[row * 3 * self.inner()..][..len * 3 * self.inner()];
            for head in 0..self.heads {
                let own = Known {
                    qkv: &known.qkv[row * self.stride()..][..len * self.stride()],
                    shares: &known.shares[kept..],
                    douts: &known.douts[row * self.inner() / 2..][..len * self.inner() / 2],
                };
                kept += self.back_head(own, head, work, dqkv, gradients);
            }
            row += len;
        }
    }

    /// The way back of one head of one sequence; returns how many pairs of weights it has read.
    fn back_head(
        &self,
        known: Known,
        head: usize,
        work: &mut Work,
        dqkv: &mut [f32],
        gradients: &mut HeadGradients,
    ) -> usize {
        let (stride, half, inner) = (self.stride(), self.d_kv / 2, self.inner());
        let (own, len) = (head * half, known.qkv.len() / stride);
        let depth = len.div_ceil(2);
        pack::interleave_into(known.qkv, stride, own, half, &mut work.queries);
        pack::interleave_into(known.qkv, stride, inner / 2 + own, half, &mut work.keys);
        pack::transpose_into(known.qkv, stride, inner + own, half, &mut work.values);
        pack::interleave_into(known.douts, inner / 2, own, half, &mut work.outputs);
        let keys = inner + head * self.d_kv;
        let mut kept = 0;
        for block in self.blocks(len) {
            let (rows, pairs) = (block.queries.len(), block.width / 2);
            let packed = &known.shares[kept..][..rows * pairs];
            kept += packed.len();
            let douts = &known.douts[own..];
            self.scores(&block, douts, inner / 2, &work.values, &mut work.scores);
            self.softmax_back(&block, head, packed, work, gradients.bias);
            pack::interleave_into(packed, pairs, 0, pairs, &mut work.turned);
            let outputs = part(&work.outputs, depth, &block);
            self.keys_back(&block, &work.turned, outputs, keys + inner, dqkv);
            pack::rows_into(
                &work.scores,
                block.width,
                exactly(&mut work.packed, rows * pairs),
            );
            pack::interleave_into(&work.packed, pairs, 0, pairs, &mut work.turned);
            let queries = part(&work.queries, depth, &block);
            self.keys_back(&block, &work.turned, queries, keys, dqkv);
            gradients.score[head] += self.queries_back(&block, known.qkv, head, work, dqkv);
        }
        // products took keys in their exact unit and left the scale of scores out
        let scale = self.score[head] / UNIT;
        for row in dqkv.chunks_exact_mut(3 * inner) {
            let keys = &mut row[keys..keys + self.d_kv];
            keys.iter_mut().for_each(|value| *value *= scale);
        }
        kept
    }

    /// Adds the products of what a block's queries give to its keys, turned, with `right` to columns from `column` on
    /// of the keys' rows.
    fn keys_back(
        &self,
        block: &Block,
        turned: &[u32],
        right: Panels,
        column: usize,
        dqkv: &mut [f32],
    ) {
        let stride = 3 * self.inner();
        let out = Output {
            data: &mut dqkv[block.first_key * stride + column..],
            stride,
            rows: block.span,
            columns: self.d_kv,
            add: true,
        };
        let pairs = block.queries.len().div_ceil(2);
        product(Left::Transposed(Panels::whole(turned, pairs)), right, out);
    }

    /// From gradients of weights to those of scores, in `work.scores`, with nothing outside the band.
    fn softmax_back(
        &self,
        block: &Block,
        head: usize,
        packed: &[u32],
        work: &mut Work,
        bias: &mut [f32],
    ) {
        let bias = &mut bias[head * self.window..][..self.window];
        work.shares.clear();
        work.shares.extend(
            packed
                .iter()
                .flat_map(|&pair| <[f32; 2]>::from(unpack(pair))),
        );
        let rows = work
            .scores
            .chunks_exact_mut(block.width)
            .zip(work.shares.chunks_exact(block.width));
        for ((row, shares), query) in rows.zip(block.queries.clone()) {
            let (band, far) = self.band(block, query);
            row[band.end..].fill(0.0);
            row[..band.start].fill(0.0);
            softmax_back(
                &shares[band.clone()],
                1.0 / UNIT,
                &mut row[band],
                &mut bias[far..],
            );
        }
    }

    /// Stores the gradients of a block's queries from those of their scores, in `work.packed`; returns that of the scale
    /// of scores.
    fn queries_back(
        &self,
        block: &Block,
        qkv: &[u32],
        head: usize,
        work: &mut Work,
        dqkv: &mut [f32],
    ) -> f32 {
        let (stride, inner, d_kv) = (self.stride(), self.inner(), self.d_kv);
        let pairs = block.width / 2;
        let keys = Panels {
            data: &work.keys,
            depth: (qkv.len() / stride).div_ceil(2),
            first: block.first_key / 2,
            pairs,
        };
        let plain = exactly(&mut work.plain, block.queries.len() * d_kv);
        let out = Output::rows(plain, block.queries.len(), d_kv);
        product(Rows::whole(&work.packed, pairs), keys, out);
        let scale = self.score[head] / UNIT;
        let mut total = 0.0;
        for (plain, at) in work.plain.chunks_exact(d_kv).zip(block.queries.clone()) {
            let query = &qkv[at * stride + head * d_kv / 2..][..d_kv / 2];
            let out = &mut dqkv[at * 3 * inner + head * d_kv..][..d_kv];
            total += query_back(query, plain, scale, out, &mut work.query);
        }
        total / (UNIT * UNIT)
    }
}
