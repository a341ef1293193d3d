//! The steps of training: copying, and then actor and critic on what latents really cost.

use candle_core::Tensor;

use super::a2c::{self, Episode, Losses};
use super::log::Line;
use super::reading::sampled;
use super::session::Run;
use super::{Choice, Result, S2sError, Written};
use crate::train::corpus::Random;
use crate::train::network::float::Sample;
use crate::train::network::optimiser::{Rates, derived};

/// Nats are what losses count, bits what a store does.
const BITS: f64 = std::f64::consts::LOG2_E;

/// What came of a step.
pub(super) struct Stepped {
    /// Bits per byte of what the decompressor learned from, as it read it.
    pub bits: f64,
    /// For the log, where it is due.
    pub line: Option<Line>,
}

/// Extents of a step, and what the compressor sees of them.
struct Batch {
    extents: Vec<Vec<u16>>,
    inputs: Vec<Vec<u16>>,
    /// Bytes of all extents.
    bytes: f64,
}

/// Bits that the decompressor needs for a batch: with one string for each extent, and without any.
#[derive(Clone, Copy, Default)]
struct Costs {
    with: f64,
    without: f64,
}

impl Batch {
    /// What the compressor sees, each extent `times` times.
    fn inputs(&self, times: usize) -> Vec<&[u16]> {
        let each = self.inputs.iter();
        each.flat_map(|input| std::iter::repeat_n(input.as_slice(), times))
            .collect()
    }
}

impl Run<'_> {
    fn batch(&mut self) -> Result<Batch> {
        let method = &self.order.recipe.latents;
        let (count, tokens) = (method.batch, method.tokens_of_string());
        let mut extents = Vec::with_capacity(count);
        while extents.len() < count {
            let sequences = self.source.batch(tokens)?;
            extents.extend(sequences.into_iter().filter(|tokens| !tokens.is_empty()));
        }
        extents.truncate(count);
        Ok(self.batch_of(extents))
    }

    fn batch_of(&self, extents: Vec<Vec<u16>>) -> Batch {
        let most = self.order.recipe.compressor.input;
        let bytes = extents.iter().map(|tokens| self.language.bytes(tokens));
        Batch {
            inputs: extents.iter().map(|e| sampled(e, most)).collect(),
            bytes: bytes.sum::<u64>() as f64,
            extents,
        }
    }

    /// One step of copying: the compressor is told what to write, the decompressor reads it.
    pub(super) fn copy_step(&mut self, rates: Rates) -> Result<Stepped> {
        let batch = self.batch()?;
        let (copy, config) = (self.order.recipe.latents.copy, self.compressor.config());
        let of = |extent: &Vec<u16>| self.usual.copied(extent, copy, config);
        let strings: Vec<Vec<u16>> = batch.extents.iter().map(of).collect();
        let views: Vec<&[u16]> = strings.iter().map(Vec::as_slice).collect();
        let memory = self.compressor.read(&batch.inputs(1))?;
        let evaluation = self.compressor.evaluate(&memory, &views)?;
        let entropy = (evaluation.entropies.sum_all()? / evaluation.taken.sum_all()?)?;
        let entropy = f64::from(entropy.to_scalar::<f32>()?);
        self.move_compressor(&evaluation.loss()?)?;
        self.note(strings.iter().map(Vec::as_slice));
        let bits = self.move_decompressor(&batch, &strings, rates)?;
        let line = Line {
            entropy,
            ..Line::default()
        };
        let line = self.line(line, &batch, &strings, None)?;
        Ok(Stepped { bits, line })
    }

    /// One step of actor and critic: strings are drawn, the decompressor says what they save, the compressor learns
    /// from that, and the decompressor from what it read.
    pub(super) fn reward_step(&mut self, factor: f64, rates: Rates) -> Result<Stepped> {
        let method = self.order.recipe.latents.clone();
        let batch = self.batch()?;
        let choice = Choice::Sampled {
            count: method.samples,
            temperature: method.temperature,
        };
        let written = self
            .compressor
            .write(&batch.inputs(1), choice, &mut self.random)?;
        let (saved, known) = self.residuals(&batch, &written)?;
        let mut costs = Vec::with_capacity(written.len());
        for string in &written {
            let mut bits = self.prior.costs(&string.latents)?;
            // behind the most latents the end is no action
            bits.truncate(string.log_probs.len());
            costs.push(bits);
        }
        let on_policy = method.temperature == 1.0;
        let mut first: Option<Losses> = None;
        for round in 0..=method.again {
            let episodes: Vec<Episode> = (written.iter().zip(&costs).zip(&saved))
                .map(|((string, costs), &residual)| Episode {
                    costs,
                    residual,
                    behaviour: (round > 0 || !on_policy).then_some(&string.log_probs[..]),
                })
                .collect();
            let losses = self.learn(&batch, &written, &episodes, factor)?;
            first.get_or_insert(losses);
        }
        self.note(written.iter().map(|string| string.latents.as_slice()));
        // of the strings of an extent the decompressor reads the first: they are drawn alike
        let strings = written.iter().step_by(method.samples);
        let strings: Vec<Vec<u16>> = strings.map(|string| string.latents.clone()).collect();
        let bits = self.move_decompressor(&batch, &strings, rates)?;
        let rewards = costs
            .iter()
            .zip(&saved)
            .map(|(costs, saved)| -(factor * costs.iter().sum::<f64>() + saved));
        let line = Line {
            rewarded: true,
            reward: rewards.sum::<f64>() / written.len() as f64,
            entropy: first.map_or(0.0, |losses| f64::from(losses.entropy)),
            ..Line::default()
        };
        let line = self.line(line, &batch, &strings, Some(known))?;
        Ok(Stepped { bits, line })
    }

    /// How many bits more than without latents each string leaves to code, those of an extent together; and what the
    /// first string of each costs.
    fn residuals(&mut self, batch: &Batch, written: &[Written]) -> Result<(Vec<f64>, Costs)> {
        let samples = self.order.recipe.latents.samples;
        let without = self.costs_of(batch, &vec![vec![]; batch.extents.len()])?;
        let mut all = vec![0.0; written.len()];
        let mut first = Costs {
            with: 0.0,
            without: without.iter().sum(),
        };
        for sample in 0..samples {
            let strings = written.iter().skip(sample).step_by(samples);
            let strings: Vec<Vec<u16>> = strings.map(|string| string.latents.clone()).collect();
            let with = self.costs_of(batch, &strings)?;
            if sample == 0 {
                first.with = with.iter().sum();
            }
            for (extent, (with, without)) in with.iter().zip(&without).enumerate() {
                all[extent * samples + sample] = with - without;
            }
        }
        Ok((all, first))
    }

    /// Bits that the decompressor needs for each extent of a batch with these latents.
    fn costs_of(&mut self, batch: &Batch, strings: &[Vec<u16>]) -> Result<Vec<f64>> {
        let chunk = self.order.recipe.latents.chunk;
        let each = batch.extents.iter().zip(strings);
        // a string that is empty tells as little as none
        let samples: Vec<Sample> = each
            .flat_map(|(tokens, latents)| samples_of(tokens, latents, chunk))
            .collect();
        let nats = self.computer.costs(&self.decompressor, &samples)?;
        let mut rest = nats.as_slice();
        let of = |tokens: &Vec<u16>| {
            let (own, others) = rest.split_at(tokens.len().div_ceil(chunk));
            rest = others;
            own.iter().sum::<f64>() * BITS
        };
        Ok(batch.extents.iter().map(of).collect())
    }

    /// One step of the compressor.
    fn learn(
        &mut self,
        batch: &Batch,
        written: &[Written],
        episodes: &[Episode],
        factor: f64,
    ) -> Result<Losses> {
        let method = &self.order.recipe.latents;
        let strings: Vec<&[u16]> = written.iter().map(|s| s.latents.as_slice()).collect();
        let memory = self.compressor.read(&batch.inputs(method.samples))?;
        let evaluation = self.compressor.evaluate(&memory, &strings)?;
        let losses = a2c::losses(&evaluation, episodes, factor, &method.a2c)?;
        self.move_compressor(&losses.total)?;
        Ok(losses)
    }

    fn move_compressor(&mut self, loss: &Tensor) -> Result<()> {
        self.finite(f64::from(loss.to_scalar::<f32>()?))?;
        let rate = self.order.recipe.latents.rate;
        let gradients = derived(loss, &self.compressor.parameters())?;
        let rates = Rates {
            matrices: rate,
            others: rate,
        };
        self.compressor_optimiser.step(&gradients, rates)?;
        Ok(())
    }

    /// One step of the decompressor on a batch with these latents, of which it gets a share without; returns bits
    /// per byte.
    fn move_decompressor(
        &mut self,
        batch: &Batch,
        strings: &[Vec<u16>],
        rates: Rates,
    ) -> Result<f64> {
        let method = &self.order.recipe.latents;
        let (chunk, without) = (method.chunk, method.without);
        let mut samples = Vec::new();
        for (tokens, latents) in batch.extents.iter().zip(strings) {
            let latents: &[u16] = match self.random.share() < without {
                true => &[],
                false => latents,
            };
            samples.extend(samples_of(tokens, latents, chunk));
        }
        let (nats, gradients) = self.computer.gradients(&self.decompressor, &samples)?;
        let nats = self.finite(nats)?;
        self.decompressor_optimiser.step(&gradients, rates)?;
        let tokens: usize = batch.extents.iter().map(Vec::len).sum();
        Ok(nats * BITS * tokens as f64 / batch.bytes.max(1.0))
    }

    /// The value of a loss, which must be finite.
    fn finite(&self, value: f64) -> Result<f64> {
        match value.is_finite() {
            true => Ok(value),
            false => Err(S2sError::Diverged(self.state.step)),
        }
    }

    /// Completes a line for the log with what the strings of a batch cost and save, if one is due; `known` is what the
    /// decompressor needed in this step, if it was asked.
    fn line(
        &mut self,
        line: Line,
        batch: &Batch,
        strings: &[Vec<u16>],
        known: Option<Costs>,
    ) -> Result<Option<Line>> {
        let step = self.state.step + 1;
        if !step.is_multiple_of(self.order.recipe.latents.log_steps) {
            return Ok(None);
        }
        let costs = known.map_or_else(|| self.measure(batch, strings), Ok)?;
        let measured = self.measured(batch, strings, costs)?;
        Ok(Some(Line {
            step,
            rewarded: line.rewarded,
            reward: line.reward,
            entropy: line.entropy,
            ..measured
        }))
    }

    fn measure(&mut self, batch: &Batch, strings: &[Vec<u16>]) -> Result<Costs> {
        let empty = vec![vec![]; strings.len()];
        Ok(Costs {
            with: self.costs_of(batch, strings)?.iter().sum(),
            without: self.costs_of(batch, &empty)?.iter().sum(),
        })
    }

    /// A line of the log about strings that leave so much to code.
    fn measured(&self, batch: &Batch, strings: &[Vec<u16>], costs: Costs) -> Result<Line> {
        let Costs { with, without } = costs;
        let mut bits = 0.0;
        for string in strings {
            bits += self.prior.costs(string)?.iter().sum::<f64>();
        }
        let count = strings.len().max(1) as f64;
        let bytes = batch.bytes.max(1.0);
        Ok(Line {
            latents: strings.iter().map(Vec::len).sum::<usize>() as f64 / count,
            latent_bits: bits / count,
            residual: with / bytes,
            total: (with + bits) / bytes,
            without: without / bytes,
            ..Line::default()
        })
    }

    /// What held-out extents cost with the likeliest latents.
    pub(super) fn held_out(&mut self) -> Result<Line> {
        let size = self.order.recipe.latents.batch;
        let mut all = Line::default();
        let (mut bytes, mut strings) = (0.0, 0.0);
        for start in (0..self.held_out.len()).step_by(size) {
            let end = (start + size).min(self.held_out.len());
            let batch = self.batch_of(self.held_out[start..end].to_vec());
            let written = self.greedy(&batch)?;
            let costs = self.measure(&batch, &written)?;
            let line = self.measured(&batch, &written, costs)?;
            let count = batch.extents.len() as f64;
            all.residual += line.residual * batch.bytes;
            all.total += line.total * batch.bytes;
            all.without += line.without * batch.bytes;
            all.latents += line.latents * count;
            all.latent_bits += line.latent_bits * count;
            (bytes, strings) = (bytes + batch.bytes, strings + count);
        }
        let (bytes, strings) = (f64::max(bytes, 1.0), f64::max(strings, 1.0));
        Ok(Line {
            residual: all.residual / bytes,
            total: all.total / bytes,
            without: all.without / bytes,
            latents: all.latents / strings,
            latent_bits: all.latent_bits / strings,
            ..all
        })
    }

    fn greedy(&self, batch: &Batch) -> Result<Vec<Vec<u16>>> {
        // nothing is left to chance
        let mut random = Random(0);
        let inputs = batch.inputs(1);
        let written = self
            .compressor
            .write(&inputs, Choice::Greedy, &mut random)?;
        Ok(written.into_iter().map(|string| string.latents).collect())
    }

    /// The likeliest latents of batches of training data, for the shipped prior.
    pub(super) fn likeliest(&mut self, batches: usize) -> Result<Vec<Vec<u16>>> {
        let mut all = Vec::new();
        for _ in 0..batches {
            let batch = self.batch()?;
            all.extend(self.greedy(&batch)?);
        }
        Ok(all)
    }
}

/// The chunks of an extent with its latents.
fn samples_of<'a>(
    tokens: &'a [u16],
    latents: &'a [u16],
    chunk: usize,
) -> impl Iterator<Item = Sample<'a>> {
    tokens
        .chunks(chunk)
        .map(move |tokens| Sample { tokens, latents })
}
