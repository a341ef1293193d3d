//! A matrix of the network as a step of training needs it.

use super::pack;
use super::product::{Left, Output, Panels, Rows, product};
use super::rows;
use crate::model::network::exact;

/// A matrix with a row for each output, divided by a step per row, so that stored rows are integers.
#[derive(Debug, Default)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    /// By row.
    pub steps: Vec<f32>,
    forward: Vec<u32>,
    back: Vec<u32>,
}

/// The step of each row, and the rows in steps: integers if they are rounded.
pub fn in_steps(values: &[f32], columns: usize, rounded: bool) -> (Vec<f32>, Vec<f32>) {
    let most = exact::ACT_MAX as f32;
    let mut steps = Vec::with_capacity(values.len() / columns);
    let mut out = vec![0f32; values.len()];
    for (row, out) in values
        .chunks_exact(columns)
        .zip(out.chunks_exact_mut(columns))
    {
        let step = (rows::largest(row) / most).max(1e-8);
        rows::divide(row, step, rounded, out);
        steps.push(step);
    }
    (steps, out)
}

impl Matrix {
    /// A matrix of rows of `columns` numbers; `rounded` as in training, or in floats.
    pub fn new(values: &[f32], columns: usize, rounded: bool) -> Matrix {
        let (steps, values) = in_steps(values, columns, rounded);
        let packed = pack::rows(&values, columns);
        let pairs = columns.div_ceil(2);
        Matrix {
            rows: steps.len(),
            columns,
            steps,
            forward: pack::transpose(&packed, pairs),
            back: pack::interleave(&packed, pairs),
        }
    }

    /// Scales that turn sums of products with inputs of `input` per 1.0 to outputs of `output` per 1.0.
    pub fn scales(&self, input: f32, output: f32) -> Vec<f32> {
        self.steps
            .iter()
            .map(|step| step * output / input)
            .collect()
    }

    /// Sums of products of `count` input rows, packed, with the rows of the matrix in steps.
    pub fn apply(&self, inputs: &[u32], count: usize, out: &mut [f32]) {
        let pairs = self.columns.div_ceil(2);
        product(
            Rows::whole(inputs, pairs),
            Panels::whole(&self.forward, pairs),
            Output::rows(out, count, self.rows),
        );
    }

    /// Gradients of the inputs from those of the outputs times their steps, packed.
    pub fn back(&self, gradients: &[u32], count: usize, out: &mut [f32]) {
        let pairs = self.rows.div_ceil(2);
        product(
            Rows::whole(gradients, pairs),
            Panels::whole(&self.back, pairs),
            Output::rows(out, count, self.columns),
        );
    }

    /// The gradient of the matrix from those of the outputs times their steps, and the inputs, both interleaved, of
    /// `count` rows; inputs have `unit` per 1.0.
    pub fn gradient(
        &self,
        outputs: &[u32],
        inputs: &[u32],
        count: usize,
        unit: f32,
        out: &mut [f32],
    ) {
        let pairs = count.div_ceil(2);
        product(
            Left::Transposed(Panels::whole(outputs, pairs)),
            Panels::whole(inputs, pairs),
            Output::rows(out, self.rows, self.columns),
        );
        for (row, step) in out.chunks_exact_mut(self.columns).zip(&self.steps) {
            let scale = 1.0 / (step * unit);
            row.iter_mut().for_each(|value| *value *= scale);
        }
    }
}
