//! The optimisers: Muon for the matrices of the layers, AdamW for the rest.
//!
//! Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, found by
//! a few steps of Newton and Schulz's iteration; AdamW is that of Loshchilov and Hutter (2019).

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// Coefficients of the quintic iteration.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
const MOMENTUM: f64 = 0.95;
const MUON_DECAY: f64 = 0.02;
const BETAS: [f64; 2] = [0.9, 0.95];
const EPSILON: f64 = 1e-8;

/// One parameter and what its optimiser remembers.
#[derive(Debug)]
enum Slot {
    Matrix {
        var: Var,
        momentum: Tensor,
    },
    Other {
        var: Var,
        mean: Tensor,
        square: Tensor,
    },
}

/// Both optimisers over all parameters of a network.
#[derive(Debug)]
pub struct Optimiser {
    slots: Vec<Slot>,
    steps: i32,
}

/// The orthogonal matrix nearest to `gradient`, roughly.
fn orthogonal(gradient: &Tensor) -> Result<Tensor> {
    let (rows, columns) = gradient.dims2()?;
    let norm = gradient.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
    let mut x = (gradient / (f64::from(norm) + 1e-7))?;
    if rows > columns {
        x = x.t()?.contiguous()?;
    }
    for _ in 0..ITERATIONS {
        let a = x.matmul(&x.t()?)?;
        let b = ((&a * QUINTIC[1])? + (a.matmul(&a)? * QUINTIC[2])?)?;
        x = ((&x * QUINTIC[0])? + b.matmul(&x)?)?;
    }
    if rows > columns {
        x.t()?.contiguous()
    } else {
        Ok(x)
    }
}

impl Optimiser {
    /// `matrices` go to Muon, `others` to AdamW.
    pub fn new(matrices: Vec<Var>, others: Vec<Var>) -> Result<Optimiser> {
        let mut slots = Vec::with_capacity(matrices.len() + others.len());
        for var in matrices {
            let momentum = var.zeros_like()?;
            slots.push(Slot::Matrix { var, momentum });
        }
        for var in others {
            let (mean, square) = (var.zeros_like()?, var.zeros_like()?);
            slots.push(Slot::Other { var, mean, square });
        }
        Ok(Optimiser { slots, steps: 0 })
    }

    /// Moves all parameters; `matrix_rate` and `rate` are the learning rates of the two.
    pub fn step(&mut self, gradients: &GradStore, matrix_rate: f64, rate: f64) -> Result<()> {
        self.steps += 1;
        let corrections = BETAS.map(|beta| 1.0 - beta.powi(self.steps));
        for slot in &mut self.slots {
            match slot {
                Slot::Matrix { var, momentum } => {
                    let Some(gradient) = gradients.get(var.as_tensor()) else {
                        continue;
                    };
                    muon(var, momentum, &gradient.detach(), matrix_rate)?;
                }
                Slot::Other { var, mean, square } => {
                    let Some(gradient) = gradients.get(var.as_tensor()) else {
                        continue;
                    };
                    let gradient = gradient.detach();
                    *mean = blend(mean, &gradient, BETAS[0])?;
                    *square = blend(square, &gradient.sqr()?, BETAS[1])?;
                    let root = ((&*square / corrections[1])?.sqrt()? + EPSILON)?;
                    let update = ((&*mean / corrections[0])? / root)?;
                    var.set(&(var.as_tensor() - (update * rate)?)?.detach())?;
                }
            }
        }
        Ok(())
    }
}

/// beta * old + (1 - beta) * new.
fn blend(old: &Tensor, new: &Tensor, beta: f64) -> Result<Tensor> {
    ((old * beta)? + (new * (1.0 - beta))?)?.contiguous()
}

fn muon(var: &Var, momentum: &mut Tensor, gradient: &Tensor, rate: f64) -> Result<()> {
    *momentum = blend(momentum, gradient, MOMENTUM)?;
    let update = orthogonal(&blend(gradient, momentum, 1.0 - MOMENTUM)?)?;
    let (rows, columns) = var.dims2()?;
    let size = (rows as f64 / columns as f64).max(1.0).sqrt();
    let kept = (var.as_tensor() * (1.0 - rate * MUON_DECAY))?;
    var.set(&(kept - (update * (rate * size))?)?.detach())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn orthogonal_matrices_have_singular_values_near_one() -> Result<()> {
        let device = Device::Cpu;
        for shape in [(8, 8), (4, 16), (16, 4)] {
            let values: Vec<f32> = (0..shape.0 * shape.1)
                .map(|i| ((i * 37 % 101) as f32).sin())
                .collect();
            let x = orthogonal(&Tensor::from_vec(values, shape, &device)?)?;
            let gram = if shape.0 <= shape.1 {
                x.matmul(&x.t()?)?
            } else {
                x.t()?.matmul(&x)?
            };
            let n = shape.0.min(shape.1);
            let distance = (gram - Tensor::eye(n, DType::F32, &device)?)?.abs()?;
            assert!(distance.max_all()?.to_scalar::<f32>()? < 0.6, "{shape:?}");
        }
        Ok(())
    }

    #[test]
    fn both_optimisers_reach_a_minimum() -> Result<()> {
        let device = Device::Cpu;
        let matrix = Var::zeros((3, 4), DType::F32, &device)?;
        let vector = Var::zeros(4, DType::F32, &device)?;
        let mut optimiser = Optimiser::new(vec![matrix.clone()], vec![vector.clone()])?;
        let goal: Vec<f32> = (0..12).map(|i| (i as f32 - 5.0) / 7.0).collect();
        let goal = Tensor::from_vec(goal, (3, 4), &device)?;
        let loss = || -> Result<Tensor> {
            let error = (matrix.broadcast_add(vector.as_tensor())? - &goal)?;
            error.sqr()?.sum_all()
        };
        let first = loss()?.to_scalar::<f32>()?;
        for step in 0..200 {
            let rate = 0.1 * (1.0 - f64::from(step) / 200.0);
            optimiser.step(&loss()?.backward()?, rate, rate)?;
        }
        let last = loss()?.to_scalar::<f32>()?;
        assert!(last < first / 100.0, "{first} -> {last}");
        Ok(())
    }
}
