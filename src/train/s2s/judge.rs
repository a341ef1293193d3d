//! What latents are worth to the whole model: tables, matches, histories and the mixer included.
//!
//! What the decompressor alone saves is not what a store saves, since much of it is known to the other experts as
//! well. So a model whose mixer is trained takes the decompressor as it is now for its network, and codes.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{Result, S2sError};
use crate::model::latents::LatentPrior;
use crate::model::network::simd::Simd;
use crate::model::network::{Engine, Memory, Sequence};
use crate::model::tokens::Tokens;
use crate::model::{Cost, Model, ModelError};
use crate::train::network::data::Language;
use crate::train::network::evaluate::best_export;
use crate::train::network::float::{FloatNetwork, Sample};

/// A model that says what latents save.
#[derive(Debug)]
pub struct Judge {
    model: Model,
    engine: Simd,
    threads: usize,
}

impl Judge {
    /// `known` with the decompressor for its network, in the units that suit `samples`.
    ///
    /// # Errors
    /// If the model has another vocabulary, or the decompressor cannot be exported.
    pub fn new(
        known: &Model,
        decompressor: &FloatNetwork,
        prior: &LatentPrior,
        samples: &[Sample],
        threads: usize,
    ) -> Result<Judge> {
        let (network, _) = best_export(decompressor, samples, threads)?;
        Ok(Judge {
            model: known.with_other_network(network.clone(), Some(prior.clone()))?,
            engine: Simd::new(network, threads),
            threads,
        })
    }

    /// Bits that each sample costs as a group of its own, with its latents but without theirs.
    ///
    /// # Errors
    /// If tokens or latents are not of the model.
    pub fn bits(&self, language: &Language, samples: &[Sample]) -> Result<Vec<f64>> {
        let memories = self.memories(samples)?;
        let pairs = samples.iter().zip(&memories);
        let sequences: Vec<Sequence> = pairs
            .map(|(&Sample { tokens, .. }, memory)| Sequence { tokens, memory })
            .collect();
        let rows = self.engine.hidden(&sequences)?;
        let bits: Vec<Mutex<f64>> = samples.iter().map(|_| Mutex::new(0.0)).collect();
        let next = AtomicUsize::new(0);
        let work = || -> std::result::Result<(), ModelError> {
            loop {
                let at = next.fetch_add(1, Relaxed);
                let Some(sample) = samples.get(at) else {
                    return Ok(());
                };
                *bits[at].lock() = self.cost(language, sample, &rows[at])?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| {
                let panicked = |_| ModelError::Device("a thread panicked".into());
                worker.join().map_err(panicked)?
            })
        })?;
        Ok(bits.into_iter().map(Mutex::into_inner).collect())
    }

    /// Neighbours with the same latents are read once.
    fn memories(&self, samples: &[Sample]) -> Result<Vec<Memory>> {
        let same = |a: &Sample, b: &Sample| a.latents == b.latents;
        let runs: Vec<&[Sample]> = samples.chunk_by(same).collect();
        let latents: Vec<&[u16]> = runs.iter().map(|run| run[0].latents).collect();
        let made = self.engine.encode(&latents)?;
        let repeated = runs.iter().zip(made);
        Ok(repeated
            .flat_map(|(run, memory)| std::iter::repeat_n(memory, run.len()))
            .collect())
    }

    fn cost(
        &self,
        language: &Language,
        sample: &Sample,
        rows: &[i8],
    ) -> std::result::Result<f64, ModelError> {
        let len = language.bytes(sample.tokens) as usize;
        let fresh = |more| self.model.fresh(len + more);
        let mut tokens = Tokens::new(&self.model, || self.model.begin(sample.latents, fresh))?;
        let mut cost = Cost::default();
        tokens.group(&mut cost, &self.engine, (sample.tokens, rows), len)?;
        Ok(cost.bits)
    }
}

/// Refuses a model that cannot judge a decompressor of this vocabulary.
///
/// # Errors
/// Says why.
pub fn check(model: &Model, language: &Language) -> Result<()> {
    let why = match model.network() {
        None => "the judge has no network",
        Some(_) if model.tokenizer.to_json()? != language.tokenizer.to_json()? => {
            "the judge has another vocabulary than the decompressor"
        }
        Some(_) => return Ok(()),
    };
    Err(S2sError::Config(why.into()))
}
