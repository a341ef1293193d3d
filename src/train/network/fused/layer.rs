//! One layer of the decoder, forward and back, over some sequences.

use std::ops::Range;

use super::attention::{HeadGradients, Heads, Known, Work};
use super::matrix::Matrix;
use super::pack;
use super::product::unpack;
use super::rows::{self, UNIT, is_clipped};
use crate::model::network::FeedForward;
use crate::train::network::float::{SQUARE_UNIT, hidden_unit};

/// A layer as a step of training needs it.
#[derive(Debug)]
pub struct Layer {
    pub attention_norm: Vec<f32>,
    /// Queries, keys and values in one.
    pub qkv: Matrix,
    pub heads: Heads,
    pub output: Matrix,
    pub norm: Vec<f32>,
    pub up: Matrix,
    pub down: Matrix,
    pub kind: FeedForward,
    pub rounded: bool,
}

/// Where the gradients of a layer lie among all.
#[derive(Debug, Clone)]
pub struct LayerPlaces {
    pub attention_norm: Range<usize>,
    pub qkv: Range<usize>,
    pub output: Range<usize>,
    pub score: Range<usize>,
    pub gain: Range<usize>,
    pub bias: Range<usize>,
    pub norm: Range<usize>,
    pub up: Range<usize>,
    pub down: Range<usize>,
}

/// What the way back needs of the way forward.
#[derive(Debug, Default)]
pub struct Kept {
    /// The residual stream before attention and before the feed-forward part.
    x: [Vec<f32>; 2],
    reciprocals: [Vec<f32>; 2],
    inputs: [Vec<u32>; 2],
    qkv: Vec<u32>,
    shares: Vec<u32>,
    outputs: Vec<f32>,
    context: Vec<u32>,
    hidden: Vec<u32>,
    /// Roots or hidden values.
    roots: Vec<f32>,
}

/// Memory that all layers use in turn.
#[derive(Debug, Default)]
pub struct Scratch {
    pub floats: Vec<f32>,
    pub more: Vec<f32>,
    pub packed: Vec<u32>,
    pub left: Vec<u32>,
    pub right: Vec<u32>,
    attention: Work,
}

/// A slice of `len` values in memory that is kept; what it holds is unspecified.
pub fn room<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

/// A memory of exactly `len` values; what they are is unspecified.
pub fn exactly<T: Copy + Default>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    memory.resize(len, T::default());
    memory
}

fn pack_into(values: &[f32], columns: usize, out: &mut Vec<u32>) {
    let len = values.len() / columns * columns.div_ceil(2);
    pack::rows_into(values, columns, exactly(out, len));
}

/// Packs gradients both ways: as rows in `packed`, interleaved in `left`.
fn pack_both(values: &[f32], columns: usize, packed: &mut Vec<u32>, left: &mut Vec<u32>) {
    pack_into(values, columns, packed);
    let pairs = columns.div_ceil(2);
    pack::interleave_into(packed, pairs, 0, pairs, left);
}

impl Layer {
    fn hidden_scale(&self) -> f32 {
        match self.kind {
            FeedForward::Relu => UNIT,
            FeedForward::SquaredRelu => SQUARE_UNIT as f32,
        }
    }

    /// Normalised inputs of part 0 or 1, packed; keeps what the way back needs.
    fn normalise(&self, part: usize, x: &[f32], kept: &mut Kept, floats: &mut Vec<f32>) {
        let gain = [&self.attention_norm, &self.norm][part];
        let count = x.len() / gain.len();
        exactly(&mut kept.x[part], x.len()).copy_from_slice(x);
        let out = room(floats, x.len());
        rows::normalise(
            x,
            gain,
            self.rounded,
            out,
            exactly(&mut kept.reciprocals[part], count),
        );
        pack_into(out, gain.len(), &mut kept.inputs[part]);
    }

    /// Moves the residual stream `x` of sequences that lie one behind the other.
    pub fn forward(&self, x: &mut [f32], lens: &[usize], kept: &mut Kept, scratch: &mut Scratch) {
        let count = lens.iter().sum();
        let inner = self.heads.inner();
        self.normalise(0, x, kept, &mut scratch.floats);
        let sums = room(&mut scratch.floats, count * 3 * inner);
        self.qkv.apply(&kept.inputs[0], count, sums);
        rows::store(sums, &self.qkv.scales(UNIT, UNIT), self.rounded);
        pack_into(sums, 3 * inner, &mut kept.qkv);
        let outputs = exactly(&mut kept.outputs, count * inner);
        let shares = exactly(&mut kept.shares, self.heads.shares_len(lens));
        self.heads
            .forward(&kept.qkv, lens, &mut scratch.attention, shares, outputs);
        let context = room(&mut scratch.floats, count * inner);
        context.copy_from_slice(outputs);
        rows::store(context, &self.gains(), self.rounded);
        pack_into(context, inner, &mut kept.context);
        self.add(&self.output, &kept.context, UNIT, x, &mut scratch.floats);

        self.normalise(1, x, kept, &mut scratch.floats);
        let roots = exactly(&mut kept.roots, count * self.up.rows);
        self.up.apply(&kept.inputs[1], count, roots);
        let hidden = room(&mut scratch.floats, roots.len());
        let scales = self.up.scales(UNIT, self.hidden_scale());
        rows::hidden(roots, &scales, self.kind, self.rounded, hidden);
        pack_into(hidden, self.up.rows, &mut kept.hidden);
        let unit = hidden_unit(self.kind) as f32;
        self.add(&self.down, &kept.hidden, unit, x, &mut scratch.floats);
    }

    /// The gain of every column of the outputs of attention.
    fn gains(&self) -> Vec<f32> {
        let gains = self.heads.gain.iter();
        gains
            .flat_map(|&gain| std::iter::repeat_n(gain, self.heads.d_kv))
            .collect()
    }

    /// Adds the gradients of the gains from those of the outputs behind them.
    fn gains_back(&self, doutputs: &[f32], outputs: &[f32], gradients: &mut [f32]) {
        let (d_kv, inner) = (self.heads.d_kv, self.heads.inner());
        let rows = doutputs
            .chunks_exact(inner)
            .zip(outputs.chunks_exact(inner));
        for (doutputs, outputs) in rows {
            let by_head = doutputs.chunks_exact(d_kv).zip(outputs.chunks_exact(d_kv));
            for (gradient, (doutput, output)) in gradients.iter_mut().zip(by_head) {
                *gradient += rows::dot(doutput, output) / UNIT;
            }
        }
    }

    /// Adds the product of a matrix with inputs of `unit` per 1.0 to the residual stream.
    fn add(
        &self,
        matrix: &Matrix,
        inputs: &[u32],
        unit: f32,
        x: &mut [f32],
        floats: &mut Vec<f32>,
    ) {
        let sums = room(floats, x.len());
        matrix.apply(inputs, x.len() / matrix.rows, sums);
        rows::add_scaled(x, sums, &matrix.scales(unit, 1.0));
    }

    /// Turns the gradient of what [`Layer::forward`] made of `x` into that of `x`, and stores those of the parameters.
    pub fn back(
        &self,
        dx: &mut [f32],
        lens: &[usize],
        kept: &Kept,
        scratch: &mut Scratch,
        places: &LayerPlaces,
        gradients: &mut [f32],
    ) {
        let count = dx.len() / self.norm.len();
        let unit = hidden_unit(self.kind) as f32;
        self.matrix_back(
            &self.down,
            dx,
            &kept.hidden,
            unit,
            scratch,
            &mut gradients[places.down.clone()],
        );
        let dhidden = room(&mut scratch.floats, count * self.up.rows);
        self.down.back(&scratch.packed, count, dhidden);
        rows::hidden_back(
            &kept.roots,
            self.kind,
            self.rounded,
            &self.up.steps,
            dhidden,
        );
        pack_both(
            dhidden,
            self.up.rows,
            &mut scratch.packed,
            &mut scratch.left,
        );
        self.inputs_back(1, dx, kept, scratch, places, gradients);

        self.matrix_back(
            &self.output,
            dx,
            &kept.context,
            UNIT,
            scratch,
            &mut gradients[places.output.clone()],
        );
        self.attention_back(lens, kept, scratch, places, gradients);
        self.inputs_back(0, dx, kept, scratch, places, gradients);
    }

    /// Packs the gradients of a matrix's outputs, and stores that of the matrix.
    fn matrix_back(
        &self,
        matrix: &Matrix,
        doutputs: &[f32],
        inputs: &[u32],
        unit: f32,
        scratch: &mut Scratch,
        gradient: &mut [f32],
    ) {
        let count = doutputs.len() / matrix.rows;
        let scaled = room(&mut scratch.floats, doutputs.len());
        rows::scale_columns(doutputs, &matrix.steps, scaled);
        pack_both(scaled, matrix.rows, &mut scratch.packed, &mut scratch.left);
        let pairs = matrix.columns.div_ceil(2);
        pack::interleave_into(inputs, pairs, 0, pairs, &mut scratch.right);
        matrix.gradient(&scratch.left, &scratch.right, count, unit, gradient);
    }

    /// From packed gradients of the outputs of the first matrix of part 0 or 1, through it and the normalisation, to `dx`.
    fn inputs_back(
        &self,
        part: usize,
        dx: &mut [f32],
        kept: &Kept,
        scratch: &mut Scratch,
        places: &LayerPlaces,
        gradients: &mut [f32],
    ) {
        let (matrix, place, norm) = match part {
            0 => (&self.qkv, &places.qkv, &places.attention_norm),
            _ => (&self.up, &places.up, &places.norm),
        };
        let count = dx.len() / matrix.columns;
        let pairs = matrix.columns.div_ceil(2);
        pack::interleave_into(&kept.inputs[part], pairs, 0, pairs, &mut scratch.right);
        matrix.gradient(
            &scratch.left,
            &scratch.right,
            count,
            UNIT,
            &mut gradients[place.clone()],
        );
        let dinputs = room(&mut scratch.floats, dx.len());
        matrix.back(&scratch.packed, count, dinputs);
        let gain = [&self.attention_norm, &self.norm][part];
        let (x, reciprocals) = (&kept.x[part], &kept.reciprocals[part]);
        let dgain = &mut gradients[norm.clone()];
        rows::normalise_back(x, gain, reciprocals, self.rounded, dinputs, dx, dgain);
    }

    /// From packed gradients of what the output matrix made, to packed ones of queries, keys and values.
    fn attention_back(
        &self,
        lens: &[usize],
        kept: &Kept,
        scratch: &mut Scratch,
        places: &LayerPlaces,
        gradients: &mut [f32],
    ) {
        let (heads, inner) = (&self.heads, self.heads.inner());
        let count = lens.iter().sum();
        let dcontext = room(&mut scratch.floats, count * inner);
        self.output.back(&scratch.packed, count, dcontext);
        if self.rounded {
            mask(dcontext, &kept.context);
        }
        self.gains_back(dcontext, &kept.outputs, &mut gradients[places.gain.clone()]);
        let douts = room(&mut scratch.more, count * inner);
        rows::scale_columns(dcontext, &self.gains(), douts);
        pack_into(douts, inner, &mut scratch.packed);
        let dqkv = room(&mut scratch.more, count * 3 * inner);
        dqkv.fill(0.0);
        let (score, bias) =
            gradients[places.score.start..places.bias.end].split_at_mut(heads.heads);
        let mut own = HeadGradients { score, bias };
        let known = Known {
            qkv: &kept.qkv,
            shares: &kept.shares,
            douts: &scratch.packed,
        };
        heads.back(known, lens, &mut scratch.attention, dqkv, &mut own);
        if self.rounded {
            mask(dqkv, &kept.qkv);
        }
        let scaled = room(&mut scratch.floats, dqkv.len());
        rows::scale_columns(dqkv, &self.qkv.steps, scaled);
        pack_both(scaled, 3 * inner, &mut scratch.packed, &mut scratch.left);
    }
}

super::wide::vectorised! {
/// Takes the gradients of activations away that were clipped.
pub fn mask(gradients: &mut [f32], stored: &[u32]) {
    for (gradients, &pair) in gradients.as_chunks_mut::<2>().0.iter_mut().zip(stored) {
        let (first, second) = unpack(pair);
        gradients[0] = if is_clipped(first) { 0.0 } else { gradients[0] };
        gradients[1] = if is_clipped(second) { 0.0 } else { gradients[1] };
    }
}
}
