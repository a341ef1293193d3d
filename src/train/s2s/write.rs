//! How a compressor writes latents: a string for every input, one latent after the other.

use candle_core::Tensor;

use super::{Compressor, Result, S2sError};
use crate::train::corpus::Random;
use crate::train::t5::Memory;

/// How latents are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The likeliest, the lowest of equals: one string for each input.
    Greedy,
    /// By chance: `count` strings for each input. Logits are divided by `temperature`, which is above 0: below 1
    /// likely latents get likelier, 1 is what the compressor was trained for.
    Sampled { count: usize, temperature: f64 },
}

/// A string of latents, and how it came about: an action is a latent or the end, which is none behind the most
/// latents.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub latents: Vec<u16>,
    /// Log-probability of each action in nats, among those that it was drawn from: at the temperature, 1 where
    /// it was greedy.
    pub log_probs: Vec<f32>,
    /// What the critic expected in front of each action.
    pub values: Vec<f32>,
}

/// A string that is being written.
struct Draft {
    written: Written,
    ended: bool,
    /// Its own, so that strings do not depend on which others are written with them.
    random: Random,
}

impl Compressor {
    /// Writes strings of latents for inputs, those of the first input first; the seed of each string comes from
    /// `random`.
    ///
    /// # Errors
    /// As for [`Compressor::read`], or if no strings are asked for, or with an impossible temperature.
    pub fn write(
        &self,
        inputs: &[&[u16]],
        choice: Choice,
        random: &mut Random,
    ) -> Result<Vec<Written>> {
        let (count, temperature) = match choice {
            Choice::Greedy => (1, 1.0),
            Choice::Sampled { count, temperature } => (count, temperature),
        };
        if count == 0 || !(temperature > 0.0 && temperature.is_finite()) {
            return Err(S2sError::Input(format!(
                "{count} strings at a temperature of {temperature}"
            )));
        }
        let memory = repeat(&self.read(inputs)?, count)?;
        let mut drafts: Vec<Draft> = (0..inputs.len() * count)
            .map(|_| Draft::new(random.bits()))
            .collect();
        let mut newest = vec![self.config().end(); drafts.len()];
        let mut writer = self.writer(&memory)?;
        for _ in 0..self.config().max_latents {
            let (logits, values) = self.next(&mut writer, &newest)?;
            for (row, draft) in drafts.iter_mut().enumerate().filter(|(_, d)| !d.ended) {
                newest[row] = draft.choose(&logits[row], values[row], choice, temperature);
            }
            if drafts.iter().all(|draft| draft.ended) {
                break;
            }
        }
        Ok(drafts.into_iter().map(|draft| draft.written).collect())
    }
}

/// The memory of each input several times.
fn repeat(memory: &Memory, count: usize) -> Result<Memory> {
    let inputs = memory.rows.dim(0)?;
    let rows = (0..inputs * count).map(|row| (row / count) as u32);
    let rows = Tensor::from_iter(rows, memory.rows.device())?;
    let hidden = memory.hidden.as_ref();
    let hidden = hidden.map(|hidden| hidden.index_select(&rows, 0));
    Ok(Memory {
        rows: memory.rows.detach().index_select(&rows, 0)?,
        hidden: hidden.transpose()?,
    })
}

impl Draft {
    fn new(seed: u64) -> Draft {
        Draft {
            written: Written {
                latents: Vec::new(),
                log_probs: Vec::new(),
                values: Vec::new(),
            },
            ended: false,
            random: Random(seed),
        }
    }

    /// Takes the next action and returns it; the last of the logits is that of the end.
    fn choose(&mut self, logits: &[f32], value: f32, choice: Choice, temperature: f64) -> u32 {
        let best = likeliest(logits);
        let highest = f64::from(logits[best]);
        let scaled = |&logit: &f32| (f64::from(logit) - highest) / temperature;
        let total: f64 = logits.iter().map(|logit| scaled(logit).exp()).sum();
        let action = match choice {
            Choice::Greedy => best,
            Choice::Sampled { .. } => {
                let mut left = self.random.share() * total;
                let reaches = |logit: &f32| {
                    left -= scaled(logit).exp();
                    left < 0.0
                };
                // rounding may leave a little behind the last one
                logits.iter().position(reaches).unwrap_or(best)
            }
        };
        self.written
            .log_probs
            .push((scaled(&logits[action]) - total.ln()) as f32);
        self.written.values.push(value);
        match action + 1 == logits.len() {
            true => self.ended = true,
            false => self.written.latents.push(action as u16),
        }
        action as u32
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    best
}
