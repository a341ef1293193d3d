//! One layer of the decoder, forward and back, over some sequences.

use std::ops::Range;

use super::attention::{HeadGradients, Heads, Known, Work};
use super::cross::{Cross, CrossKept, CrossPlaces};
use super::matrix::Matrix;
use super::memory::Reading;
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
    /// Attention to memories, behind that to tokens, if the network has an encoder.
    pub cross: Option<Cross>,
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
    pub cross: Option<CrossPlaces>,
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
    cross: CrossKept,
}

/// Memory that all layers use in turn.
#[derive(Debug, Default)]
pub struct Scratch {
    pub floats: Vec<f32>,
    pub more: Vec<f32>,
    pub packed: Vec<u32>,
    pub left: Vec<u32>,
    pub right: Vec<u32>,
    pub attention: Work,
    /// Gradients of keys and values of memories.
    pub keys_values: Vec<f32>,
    /// Gradients of the rows of memories, of all layers.
    pub dmemory: Vec<f32>,
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

pub fn pack_into(values: &[f32], columns: usize, out: &mut Vec<u32>) {
    let len = values.len() / columns * columns.div_ceil(2);
    pack::rows_into(values, columns, exactly(out, len));
}

/// Packs gradients both ways: as rows in `packed`, interleaved in `left`.
fn pack_both(values: &[f32], columns: usize, packed: &mut Vec<u32>, left: &mut Vec<u32>) {
    pack_into(values, columns, packed);
    let pairs = columns.div_ceil(2);
    pack::interleave_into(packed, pairs, 0, pairs, left);
}

/// Activations that a matrix makes of `count` packed rows, packed.
pub fn project(
    matrix: &Matrix,
    rounded: bool,
    inputs: &[u32],
    count: usize,
    floats: &mut Vec<f32>,
    out: &mut Vec<u32>,
) {
    let sums = room(floats, count * matrix.rows);
    matrix.apply(inputs, count, sums);
    rows::store(sums, &matrix.scales(UNIT, UNIT), rounded);
    pack_into(sums, matrix.rows, out);
}

/// The outputs of attention with a gain for each column, as the output matrix reads them.
pub fn pack_context(
    outputs: &[f32],
    gains: &[f32],
    rounded: bool,
    floats: &mut Vec<f32>,
    out: &mut Vec<u32>,
) {
    let context = room(floats, outputs.len());
    context.copy_from_slice(outputs);
    rows::store(context, gains, rounded);
    pack_into(context, gains.len(), out);
}

/// For each column of all heads what its head has.
pub fn by_column(by_head: &[f32], d_kv: usize) -> Vec<f32> {
    let heads = by_head.iter();
    heads
        .flat_map(|&value| std::iter::repeat_n(value, d_kv))
        .collect()
}

/// Adds the gradients of the gains by head from those of the outputs behind them.
pub fn gains_back(doutputs: &[f32], outputs: &[f32], d_kv: usize, gradients: &mut [f32]) {
    let inner = gradients.len() * d_kv;
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

/// Packs the gradients of a matrix's outputs, and stores that of the matrix.
pub fn matrix_back(
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
    pub fn forward(
        &self,
        x: &mut [f32],
        reading: &Reading,
        kept: &mut Kept,
        scratch: &mut Scratch,
    ) {
        let lens = &reading.lens;
        let (count, inner) = (lens.iter().sum(), self.heads.inner());
        let floats = &mut scratch.floats;
        self.normalise(0, x, kept, floats);
        project(
            &self.qkv,
            self.rounded,
            &kept.inputs[0],
            count,
            floats,
            &mut kept.qkv,
        );
        let outputs = exactly(&mut kept.outputs, count * inner);
        let shares = exactly(&mut kept.shares, self.heads.shares_len(lens));
        self.heads
            .forward(&kept.qkv, lens, &mut scratch.attention, shares, outputs);
        let gains = by_column(&self.heads.gain, self.heads.d_kv);
        let floats = &mut scratch.floats;
        pack_context(outputs, &gains, self.rounded, floats, &mut kept.context);
        self.add(&self.output, &kept.context, UNIT, x, floats);
        if let Some(cross) = &self.cross {
            cross.forward(x, reading, &mut kept.cross, scratch);
        }

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

    /// Turns the gradient of what [`Layer::forward`] made of `x` into that of `x`, and stores those of the parameters; those of
    /// memories are added to `scratch.dmemory`.
    pub fn back(
        &self,
        dx: &mut [f32],
        reading: &Reading,
        kept: &Kept,
        scratch: &mut Scratch,
        places: &LayerPlaces,
        gradients: &mut [f32],
    ) {
        let count = dx.len() / self.norm.len();
        let unit = hidden_unit(self.kind) as f32;
        matrix_back(
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

        if let (Some(cross), Some(places)) = (&self.cross, &places.cross) {
            cross.back(dx, reading, &kept.cross, scratch, places, gradients);
        }
        matrix_back(
            &self.output,
            dx,
            &kept.context,
            UNIT,
            scratch,
            &mut gradients[places.output.clone()],
        );
        self.attention_back(&reading.lens, kept, scratch, places, gradients);
        self.inputs_back(0, dx, kept, scratch, places, gradients);
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
        let place = &mut gradients[places.gain.clone()];
        gains_back(dcontext, &kept.outputs, heads.d_kv, place);
        let douts = room(&mut scratch.more, count * inner);
        rows::scale_columns(dcontext, &by_column(&heads.gain, heads.d_kv), douts);
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
