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

/// Extents of a step, what the compressor sees of them, and the chunks of them that the decompressor does.
struct Batch {
    extents: Vec<Vec<u16>>,
    inputs: Vec<Vec<u16>>,
    chunks: Vec<Vec<Vec<u16>>>,
    /// How many times the tokens of its chunks each extent has.
    times: Vec<f64>,
    /// Bytes of all extents.
    bytes: f64,
}

/// Bits of a batch: with one string for each extent, and without any.
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

    /// The chunks with these latents, one string for each extent.
    fn samples<'a>(&'a self, strings: &'a [Vec<u16>]) -> Vec<Sample<'a>> {
        let each = self.chunks.iter().zip(strings);
        each.flat_map(|(chunks, latents)| samples_of(chunks, latents))
            .collect()
    }

    /// The bits of each extent from those of its chunks.
    fn of_extents(&self, bits: &[f64]) -> Vec<f64> {
        let mut rest = bits;
        let of = |(chunks, times): (&Vec<Vec<u16>>, &f64)| {
            let (own, others) = rest.split_at(chunks.len());
            rest = others;
            own.iter().sum::<f64>() * times
        };
        self.chunks.iter().zip(&self.times).map(of).collect()
    }
}

/// Some chunks of an extent, drawn by chance: all if it has no more than `most`.
fn drawn(extent: &[u16], chunk: usize, most: usize, random: &mut Random) -> Vec<Vec<u16>> {
    let mut chunks: Vec<Vec<u16>> = extent.chunks(chunk).map(<[u16]>::to_vec).collect();
    if chunks.len() > most {
        random.shuffle(&mut chunks);
        chunks.truncate(most);
    }
    chunks
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
        let mut random = Random(self.random.bits());
        Ok(self.batch_of(extents, method.learned, &mut random))
    }

    /// A batch of these extents, with `learned` chunks of each.
    fn batch_of(&self, extents: Vec<Vec<u16>>, learned: usize, random: &mut Random) -> Batch {
        let (chunk, input) = (
            self.order.recipe.latents.chunk,
            self.order.recipe.compressor.input,
        );
        let bytes = extents.iter().map(|tokens| self.language.bytes(tokens));
        let chunks: Vec<Vec<Vec<u16>>> = extents
            .iter()
            .map(|extent| drawn(extent, chunk, learned, random))
            .collect();
        let times = extents.iter().zip(&chunks).map(|(extent, chunks)| {
            let tokens: usize = chunks.iter().map(Vec::len).sum();
            extent.len() as f64 / tokens.max(1) as f64
        });
        Batch {
            inputs: extents.iter().map(|e| sampled(e, input)).collect(),
            bytes: bytes.sum::<u64>() as f64,
            times: times.collect(),
            chunks,
            extents,
        }
    }

    /// One step of copying: the compressor is told what to write, the decompressor reads it.
    pub(super) fn copy_step(&mut self, rates: Rates) -> Result<Stepped> {
        let batch = self.batch()?;
        let strings = self.told(&batch);
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
        let without = self.judged(batch, &vec![vec![]; batch.extents.len()])?;
        let mut all = vec![0.0; written.len()];
        let mut first = Costs {
            with: 0.0,
            without: without.iter().sum(),
        };
        for sample in 0..samples {
            let strings = written.iter().skip(sample).step_by(samples);
            let strings: Vec<Vec<u16>> = strings.map(|string| string.latents.clone()).collect();
            let with = self.judged(batch, &strings)?;
            if sample == 0 {
                first.with = with.iter().sum();
            }
            for (extent, (with, without)) in with.iter().zip(&without).enumerate() {
                all[extent * samples + sample] = with - without;
            }
        }
        Ok((all, first))
    }

    /// Bits that the whole model needs for each extent of a batch with these latents, if there is one to judge, else
    /// those of the decompressor.
    fn judged(&mut self, batch: &Batch, strings: &[Vec<u16>]) -> Result<Vec<f64>> {
        let (samples, language) = (batch.samples(strings), self.language);
        if let Some(judge) = self.judge()? {
            return Ok(batch.of_extents(&judge.bits(language, &samples)?));
        }
        let nats = self.computer.costs(&self.decompressor, &samples)?;
        let bits: Vec<f64> = nats.iter().map(|nats| nats * BITS).collect();
        Ok(batch.of_extents(&bits))
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
        let without = self.order.recipe.latents.without;
        let mut samples = Vec::new();
        for (chunks, latents) in batch.chunks.iter().zip(strings) {
            let latents: &[u16] = match self.random.share() < without {
                true => &[],
                false => latents,
            };
            samples.extend(samples_of(chunks, latents));
        }
        let (nats, gradients) = self.computer.gradients(&self.decompressor, &samples)?;
        let nats = self.finite(nats)?;
        self.decompressor_optimiser.step(&gradients, rates)?;
        let tokens = |sample: &Sample| sample.tokens.len();
        let bytes = |sample: &Sample| self.language.bytes(sample.tokens);
        let tokens: usize = samples.iter().map(tokens).sum();
        self.state.tokens += tokens as u64;
        let bytes: u64 = samples.iter().map(bytes).sum();
        Ok(nats * BITS * tokens as f64 / bytes.max(1) as f64)
    }

    /// The value of a loss, which must be finite.
    fn finite(&self, value: f64) -> Result<f64> {
        match value.is_finite() {
            true => Ok(value),
            false => Err(S2sError::Diverged(self.state.step)),
        }
    }

    /// Completes a line for the log with what the strings of a batch cost and save, if one is due; `known` is what the
    /// batch needed, if that was judged in this step.
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
            with: self.judged(batch, strings)?.iter().sum(),
            without: self.judged(batch, &empty)?.iter().sum(),
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

    /// What held-out extents cost with the string that suits each best: the one that the rule tells or the likeliest.
    pub(super) fn held_out(&mut self) -> Result<Line> {
        let size = self.order.recipe.latents.batch;
        let mut all = Line::default();
        let (mut bytes, mut strings) = (0.0, 0.0);
        for start in (0..self.held_out.len()).step_by(size) {
            let end = (start + size).min(self.held_out.len());
            let extents = self.held_out[start..end].to_vec();
            // nothing is drawn: all chunks are measured
            let batch = self.batch_of(extents, usize::MAX, &mut Random(0));
            let (written, costs) = self.best(&batch)?;
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

    /// The better of two strings for each extent, and what the batch costs with it.
    fn best(&mut self, batch: &Batch) -> Result<(Vec<Vec<u16>>, Costs)> {
        let mut best = self.told(batch);
        let mut with = self.judged(batch, &best)?;
        let others = self.greedy(batch)?;
        let costs = self.judged(batch, &others)?;
        for (at, string) in others.into_iter().enumerate() {
            let price = |string: &[u16]| -> Result<f64> {
                Ok(self.prior.costs(string)?.iter().sum::<f64>())
            };
            if costs[at] + price(&string)? < with[at] + price(&best[at])? {
                (best[at], with[at]) = (string, costs[at]);
            }
        }
        let empty = vec![vec![]; best.len()];
        let costs = Costs {
            with: with.iter().sum(),
            without: self.judged(batch, &empty)?.iter().sum(),
        };
        Ok((best, costs))
    }

    /// What the rule tells for each extent.
    fn told(&self, batch: &Batch) -> Vec<Vec<u16>> {
        let config = self.compressor.config();
        let extents = batch.extents.iter();
        extents
            .map(|extent| self.rule.string(extent, config))
            .collect()
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

    /// The strings that are tried first for batches of training data: for the shipped prior.
    pub(super) fn likeliest(&mut self, batches: usize) -> Result<Vec<Vec<u16>>> {
        let mut all = Vec::new();
        for _ in 0..batches {
            let batch = self.batch()?;
            all.extend(self.greedy(&batch)?);
            all.extend(self.told(&batch));
        }
        Ok(all)
    }
}

/// Chunks with the latents of their extent.
fn samples_of<'a>(chunks: &'a [Vec<u16>], latents: &'a [u16]) -> impl Iterator<Item = Sample<'a>> {
    chunks.iter().map(move |tokens| Sample { tokens, latents })
}
