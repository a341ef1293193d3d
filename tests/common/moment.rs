//! Networks in floats that are trained for a moment.
#![allow(dead_code)]

use candle_core::{Device, Tensor, Var};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::evaluate::Computer;
use s2sfs::train::network::float::{FloatNetwork, Sample};
use s2sfs::train::network::optimiser::{Optimiser, Rates};

/// Trains on samples, by `computer`.
pub fn train(network: &FloatNetwork, computer: &mut Computer, samples: &[Sample], steps: u32) {
    let mut optimiser = Optimiser::new(network.parameters(), 2).unwrap();
    let mut random = Random(2);
    for step in 0..steps {
        let batch: Vec<Sample> = (0..16)
            .map(|_| samples[random.below(samples.len())])
            .collect();
        let (_, gradients) = computer.gradients(network, &batch).unwrap();
        let rate = 1.0 - f64::from(step) / f64::from(steps);
        let rates = Rates {
            matrices: 0.02 * rate,
            others: 0.01 * rate,
        };
        optimiser.step(&gradients, rates).unwrap();
    }
}

/// Multiplies columns of a parameter by these factors in turn.
pub fn by_columns(var: &Var, factors: &[f32]) {
    let columns = *var.dims().last().unwrap();
    let factors: Vec<f32> = factors.iter().copied().cycle().take(columns).collect();
    let factors = Tensor::from_vec(factors, columns, &Device::Cpu).unwrap();
    let moved = var.as_tensor().broadcast_mul(&factors).unwrap();
    var.set(&moved).unwrap();
}
