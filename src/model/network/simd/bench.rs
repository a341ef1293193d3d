//! The products of the kernels alone. See [`crate::benching`].

use super::super::Linear;
use super::kernels::{Kernel, Output};
use super::layout::{Activations, LANES, Packed, Parts};

/// A matrix and rows of inputs to multiply it with.
pub struct Product {
    matrix: Packed,
    inputs: Activations,
    out: Activations,
}

impl Product {
    /// A matrix of `outputs` x `columns` and `rows` rows of inputs, with made-up numbers.
    pub fn new(outputs: usize, columns: usize, rows: usize) -> Product {
        let number = |at: usize| (at * 73 % 255) as i32 as i8 / 2;
        let linear = Linear {
            rows: outputs,
            columns,
            weight: (0..outputs * columns).map(number).collect(),
            scale: vec![4096; outputs],
        };
        let values: Vec<i8> = (0..rows * columns).map(|at| number(at + 11)).collect();
        let (mut inputs, mut out) = (Activations::default(), Activations::default());
        inputs.copy(&values, columns);
        out.shape(rows, outputs);
        Product {
            matrix: Packed::new(&linear, Parts::one(outputs), Parts::one(columns)),
            inputs,
            out,
        }
    }

    /// Multiplies once; the first number of the result.
    pub fn run(&mut self, kernel: Kernel) -> i8 {
        let blocks = 0..self.matrix.outputs / LANES;
        let output = Output::Activations(&mut self.out);
        kernel.multiply(&self.matrix, blocks, &self.inputs, output);
        self.out.row_mut(0)[0]
    }
}
