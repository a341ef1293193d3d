//! A compressor at work: it writes the latents that are tried for a block.

use std::path::Path;

use candle_core::Device;
use parking_lot::Mutex;

use super::reading::{Rule, sampled};
use super::recipe::Purpose;
use super::{Choice, Compressor, Result};
use crate::codec::{LatentWriter, Latents};
use crate::train::corpus::Random;

/// Groups for which a compressor writes at once.
const BATCH: usize = 32;
/// Of strings that are drawn.
const TEMPERATURE: f64 = 1.0;

/// A compressor with how it is to be used.
#[derive(Debug)]
pub struct Writer {
    compressor: Compressor,
    rule: Rule,
    purpose: Purpose,
    /// Candidates for a block: what the rule says, the likeliest string, and others drawn by chance.
    candidates: usize,
    /// Whatever is drawn, blocks decode to the same; a seed makes runs comparable.
    random: Mutex<Random>,
}

impl Writer {
    /// Uses `compressor` and `rule` for this purpose, with so many candidates, at least one.
    pub fn new(compressor: Compressor, rule: Rule, purpose: Purpose, candidates: usize) -> Writer {
        Writer {
            compressor,
            rule,
            purpose,
            candidates: candidates.max(1),
            random: Mutex::new(Random(1)),
        }
    }

    /// The compressor in a directory.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn load(dir: &Path, purpose: Purpose, candidates: usize) -> Result<Writer> {
        let compressor = Compressor::load(dir, &Device::Cpu)?;
        let rule = Rule::load(dir, compressor.config().vocab_size)?;
        Ok(Writer::new(compressor, rule, purpose, candidates))
    }

    /// The compressor in a directory for what it was trained for, with the candidate that needs no network.
    ///
    /// # Errors
    /// As for [`Writer::load`].
    pub fn as_trained(dir: &Path) -> Result<Writer> {
        let mut writer = Writer::load(dir, Purpose::Extent, 1)?;
        writer.purpose = writer.rule.purpose;
        Ok(writer)
    }

    /// Strings for each text: what the rule says first, then what the compressor finds likeliest.
    fn strings(&self, texts: &[Vec<u16>]) -> Result<Vec<Vec<Vec<u16>>>> {
        let config = self.compressor.config();
        let told = texts.iter().map(|tokens| self.rule.string(tokens, config));
        let mut strings: Vec<Vec<Vec<u16>>> = told.map(|string| vec![string]).collect();
        let written = self.candidates - 1;
        if written == 0 {
            return Ok(strings);
        }
        let mut random = Random(self.random.lock().bits());
        let most = config.sizes.input;
        for (texts, strings) in texts.chunks(BATCH).zip(strings.chunks_mut(BATCH)) {
            let inputs: Vec<Vec<u16>> = texts.iter().map(|text| sampled(text, most)).collect();
            let views: Vec<&[u16]> = inputs.iter().map(Vec::as_slice).collect();
            let likeliest = self.compressor.write(&views, Choice::Greedy, &mut random)?;
            for (of, likeliest) in strings.iter_mut().zip(likeliest) {
                of.push(likeliest.latents);
            }
            let count = written - 1;
            if count == 0 {
                continue;
            }
            let choice = Choice::Sampled {
                count,
                temperature: TEMPERATURE,
            };
            let drawn = self.compressor.write(&views, choice, &mut random)?;
            for (of, drawn) in strings.iter_mut().zip(drawn.chunks(count)) {
                of.extend(drawn.iter().map(|written| written.latents.clone()));
            }
        }
        Ok(strings)
    }

    fn candidates(&self, groups: &[Vec<u16>]) -> Result<Vec<Latents>> {
        let strings = match self.purpose {
            Purpose::Extent => self.strings(&[groups.concat()])?,
            Purpose::Chunk => self.strings(groups)?,
        };
        let candidate = |at: usize| match self.purpose {
            Purpose::Extent => Latents {
                shared: strings[0][at].clone(),
                own: vec![],
            },
            Purpose::Chunk => Latents {
                shared: vec![],
                own: strings.iter().map(|of| of[at].clone()).collect(),
            },
        };
        let all = (0..self.candidates).map(candidate);
        Ok(all.filter(|latents| !latents.is_empty()).collect())
    }
}

impl LatentWriter for Writer {
    fn write(&self, groups: &[Vec<u16>]) -> std::result::Result<Vec<Latents>, String> {
        if groups.iter().all(Vec::is_empty) {
            return Ok(vec![]);
        }
        self.candidates(groups).map_err(|error| error.to_string())
    }

    fn sizes(&self) -> [usize; 3] {
        let config = self.compressor.config();
        [config.vocab_size, config.latent_vocab, config.max_latents]
    }
}
