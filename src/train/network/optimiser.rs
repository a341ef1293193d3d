//! The optimisers: Muon for the matrices of the layers, AdamW for the rest.
//!
//! Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest orthogonal matrix, found by
//! a few steps of Newton and Schulz's iteration; AdamW is that of Loshchilov and Hutter (2019).

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Result, Tensor, Var};
use parking_lot::Mutex;

use super::float::Parameter;
use super::fused;

/// Coefficients of the quintic iteration.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
const MOMENTUM: f64 = 0.95;
const MUON_DECAY: f64 = 0.02;
const BETAS: [f64; 2] = [0.9, 0.95];
const EPSILON: f64 = 1e-8;

/// One parameter and what its optimiser remembers of it.
#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    /// The momentum of a matrix; mean and mean square of the gradients of others.
    memory: Vec<Tensor>,
}

/// Both optimisers over all parameters of a network.
#[derive(Debug)]
pub struct Optimiser {
    slots: Vec<Slot>,
    steps: i32,
    threads: usize,
}

/// Learning rates of Muon and of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    pub matrices: f64,
    pub others: f64,
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
    /// Matrices go to Muon, all others to AdamW. On the processor up to `threads` threads share the work.
    pub fn new(parameters: Vec<Parameter>, threads: usize) -> Result<Optimiser> {
        let slot = |parameter: Parameter| {
            let nothing = parameter.var.zeros_like()?;
            let memory = vec![nothing; if parameter.is_matrix { 1 } else { 2 }];
            Ok(Slot { parameter, memory })
        };
        let slots = parameters.into_iter().map(slot).collect::<Result<_>>()?;
        Ok(Optimiser {
            slots,
            steps: 0,
            threads: threads.max(1),
        })
    }

    /// What it remembers, by name, to go on later.
    pub fn memory(&self) -> Vec<(String, Tensor)> {
        let of = |slot: &Slot| {
            let name = slot.parameter.name.clone();
            let named =
                |(index, tensor): (usize, &Tensor)| (format!("{name}.{index}"), tensor.clone());
            slot.memory
                .iter()
                .enumerate()
                .map(named)
                .collect::<Vec<_>>()
        };
        self.slots.iter().flat_map(of).collect()
    }

    /// Goes on after `steps` steps with what [`Optimiser::memory`] gave, in the same order.
    pub fn restore(&mut self, steps: i32, memory: Vec<Tensor>) {
        let places = self.slots.iter_mut().flat_map(|slot| &mut slot.memory);
        places
            .zip(memory)
            .for_each(|(place, tensor)| *place = tensor);
        self.steps = steps;
    }

    /// Moves all parameters by their gradients, which are in the same order.
    pub fn step(&mut self, gradients: &[Tensor], rates: Rates) -> Result<()> {
        self.steps += 1;
        let steps = self.steps;
        let next = AtomicUsize::new(0);
        let work: Vec<_> = self
            .slots
            .iter_mut()
            .zip(gradients)
            .map(Mutex::new)
            .collect();
        let move_all = || -> Result<()> {
            while let Some(slot) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (slot, gradient) = &mut *slot.lock();
                slot.step(&gradient.detach(), rates, steps)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..self.threads).map(|_| scope.spawn(move_all)).collect();
            let own = move_all();
            let joined = others.into_iter().map(|thread| thread.join());
            joined.fold(own, |done, other| {
                done.and(other.unwrap_or_else(|_| candle_core::bail!("a thread panicked")))
            })
        })
    }
}

impl Slot {
    fn step(&mut self, gradient: &Tensor, rates: Rates, steps: i32) -> Result<()> {
        let on_processor = self.parameter.var.device().is_cpu();
        match (self.parameter.is_matrix, on_processor) {
            (true, true) => self.muon_on_processor(gradient, rates.matrices),
            (true, false) => self.muon(gradient, rates.matrices),
            (false, true) => self.adam_on_processor(gradient, rates.others, steps),
            (false, false) => self.adam(gradient, rates.others, steps),
        }
    }

    fn muon(&mut self, gradient: &Tensor, rate: f64) -> Result<()> {
        let momentum = &mut self.memory[0];
        *momentum = blend(momentum, gradient, MOMENTUM)?;
        let update = orthogonal(&blend(gradient, momentum, 1.0 - MOMENTUM)?)?;
        let var = &self.parameter.var;
        let kept = (var.as_tensor() * (1.0 - rate * MUON_DECAY))?;
        var.set(&(kept - (update * (rate * size(var)?))?)?.detach())
    }

    fn muon_on_processor(&mut self, gradient: &Tensor, rate: f64) -> Result<()> {
        let var = &self.parameter.var;
        let (_, columns) = var.dims2()?;
        let mut momentum = values(&self.memory[0])?;
        let mut direction = values(gradient)?;
        fused::blend(
            &mut momentum,
            MOMENTUM as f32,
            &direction,
            1.0 - MOMENTUM as f32,
        );
        fused::blend(
            &mut direction,
            1.0 - MOMENTUM as f32,
            &momentum,
            MOMENTUM as f32,
        );
        let update = fused::orthogonal(&direction, columns, QUINTIC.map(|c| c as f32), ITERATIONS);
        let mut moved = values(var)?;
        let kept = (1.0 - rate * MUON_DECAY) as f32;
        fused::blend(&mut moved, kept, &update, -(rate * size(var)?) as f32);
        self.memory[0] = Tensor::from_vec(momentum, var.shape(), var.device())?;
        var.set(&Tensor::from_vec(moved, var.shape(), var.device())?)
    }

    fn adam(&mut self, gradient: &Tensor, rate: f64, steps: i32) -> Result<()> {
        let corrections = BETAS.map(|beta| 1.0 - beta.powi(steps));
        self.memory[0] = blend(&self.memory[0], gradient, BETAS[0])?;
        self.memory[1] = blend(&self.memory[1], &gradient.sqr()?, BETAS[1])?;
        let root = ((&self.memory[1] / corrections[1])?.sqrt()? + EPSILON)?;
        let update = ((&self.memory[0] / corrections[0])? / root)?;
        let var = &self.parameter.var;
        var.set(&(var.as_tensor() - (update * rate)?)?.detach())
    }

    fn adam_on_processor(&mut self, gradient: &Tensor, rate: f64, steps: i32) -> Result<()> {
        let var = &self.parameter.var;
        let with = fused::Adam {
            betas: BETAS.map(|beta| beta as f32),
            corrections: BETAS.map(|beta| (1.0 - beta.powi(steps)) as f32),
            epsilon: EPSILON as f32,
            rate: rate as f32,
        };
        let (mut mean, mut square) = (values(&self.memory[0])?, values(&self.memory[1])?);
        let mut moved = values(var)?;
        fused::adam(&mut moved, &mut mean, &mut square, &values(gradient)?, with);
        let tensor = |values| Tensor::from_vec(values, var.shape(), var.device());
        self.memory = vec![tensor(mean)?, tensor(square)?];
        var.set(&tensor(moved)?)
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// How much larger than those of a square matrix the updates of a tall one are.
fn size(var: &Var) -> Result<f64> {
    let (rows, columns) = var.dims2()?;
    Ok((rows as f64 / columns as f64).max(1.0).sqrt())
}

/// beta * old + (1 - beta) * new.
fn blend(old: &Tensor, new: &Tensor, beta: f64) -> Result<Tensor> {
    ((old * beta)? + (new * (1.0 - beta))?)?.contiguous()
}

/// The gradients of parameters that candle derived from `loss`.
pub fn derived(loss: &Tensor, parameters: &[Parameter]) -> Result<Vec<Tensor>> {
    let gradients = loss.backward()?;
    let of = |parameter: &Parameter| match gradients.get(parameter.var.as_tensor()) {
        Some(gradient) => Ok(gradient.clone()),
        None => parameter.var.zeros_like(),
    };
    parameters.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn matrix(rows: usize, columns: usize) -> Result<Tensor> {
        let values = (0..rows * columns).map(|i| ((i * 37 % 101) as f32).sin());
        Tensor::from_vec(values.collect::<Vec<_>>(), (rows, columns), &Device::Cpu)
    }

    #[test]
    fn orthogonal_matrices_have_singular_values_near_one() -> Result<()> {
        for (rows, columns) in [(8, 8), (4, 16), (16, 4)] {
            let x = orthogonal(&matrix(rows, columns)?)?;
            let gram = if rows <= columns {
                x.matmul(&x.t()?)?
            } else {
                x.t()?.matmul(&x)?
            };
            let n = rows.min(columns);
            let distance = (gram - Tensor::eye(n, DType::F32, &Device::Cpu)?)?.abs()?;
            assert!(
                distance.max_all()?.to_scalar::<f32>()? < 0.6,
                "{rows} {columns}"
            );
        }
        Ok(())
    }

    fn parameters() -> Result<Vec<Parameter>> {
        let new = |shape: &[usize], is_matrix| {
            let var = Var::zeros(shape, DType::F32, &Device::Cpu)?;
            Ok::<_, candle_core::Error>(Parameter {
                name: format!("{shape:?}"),
                var,
                is_matrix,
                is_embedding: false,
            })
        };
        Ok(vec![new(&[6, 5], true)?, new(&[5], false)?])
    }

    #[test]
    fn the_processor_does_the_same_as_any_device() -> Result<()> {
        let both = [parameters()?, parameters()?];
        let mut slots = both.map(|parameters| Optimiser::new(parameters, 1).map(|o| o.slots));
        let gradients = [matrix(6, 5)?, matrix(1, 5)?.flatten_all()?];
        for steps in 1..4 {
            for (index, gradient) in gradients.iter().enumerate() {
                let [one, two] = &mut slots;
                let (one, two) = (
                    &mut one.as_mut().unwrap()[index],
                    &mut two.as_mut().unwrap()[index],
                );
                one.step(
                    gradient,
                    Rates {
                        matrices: 0.1,
                        others: 0.1,
                    },
                    steps,
                )?;
                match index {
                    0 => two.muon(gradient, 0.1)?,
                    _ => two.adam(gradient, 0.1, steps)?,
                }
                let difference = (one.parameter.var.as_tensor() - two.parameter.var.as_tensor())?;
                let largest = difference.abs()?.max_all()?.to_scalar::<f32>()?;
                // products of the processor are in bf16 where it has them: about 3 % of a step of 0.1
                let most = [5e-3 * steps as f32, 1e-6][index];
                assert!(
                    largest < most,
                    "step {steps} of parameter {index}: {largest}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn both_optimisers_reach_a_minimum() -> Result<()> {
        let parameters = parameters()?;
        let mut optimiser = Optimiser::new(parameters.clone(), 2)?;
        let goal = (matrix(6, 5)? * 0.7)?;
        let loss = || -> Result<Tensor> {
            let sum = parameters[0]
                .var
                .broadcast_add(parameters[1].var.as_tensor())?;
            (sum - &goal)?.sqr()?.sum_all()
        };
        let first = loss()?.to_scalar::<f32>()?;
        for step in 0..200 {
            let rate = 0.1 * (1.0 - f64::from(step) / 200.0);
            let gradients = derived(&loss()?, &parameters)?;
            optimiser.step(
                &gradients,
                Rates {
                    matrices: rate,
                    others: rate,
                },
            )?;
        }
        let last = loss()?.to_scalar::<f32>()?;
        assert!(last < first / 100.0, "{first} -> {last}");
        Ok(())
    }
}
