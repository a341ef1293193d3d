//! A compressor at work: it writes the latents that are tried for a block.

use std::path::Path;

use candle_core::Device;
use parking_lot::Mutex;

use super::reading::sampled;
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
    purpose: Purpose,
    /// Candidates for a block: the likeliest string, and others drawn by chance.
    candidates: usize,
    /// Whatever is drawn, blocks decode to the same; a seed makes runs comparable.
    random: Mutex<Random>,
}

impl Writer {
    /// Uses `compressor` for this purpose, with so many candidates, at least one.
    pub fn new(compressor: Compressor, purpose: Purpose, candidates: usize) -> Writer {
        Writer {
            compressor,
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
        Ok(Writer::new(compressor, purpose, candidates))
    }

    /// Strings for each input: the likeliest first.
    fn strings(&self, inputs: &[Vec<u16>]) -> Result<Vec<Vec<Vec<u16>>>> {
        let mut random = Random(self.random.lock().bits());
        let mut all = Vec::with_capacity(inputs.len());
        for part in inputs.chunks(BATCH) {
            let views: Vec<&[u16]> = part.iter().map(Vec::as_slice).collect();
            let likeliest = self.compressor.write(&views, Choice::Greedy, &mut random)?;
            let mut strings: Vec<Vec<Vec<u16>>> =
                likeliest.into_iter().map(|w| vec![w.latents]).collect();
            if self.candidates > 1 {
                let count = self.candidates - 1;
                let choice = Choice::Sampled {
                    count,
                    temperature: TEMPERATURE,
                };
                let drawn = self.compressor.write(&views, choice, &mut random)?;
                for (of, drawn) in strings.iter_mut().zip(drawn.chunks(count)) {
                    of.extend(drawn.iter().map(|written| written.latents.clone()));
                }
            }
            all.extend(strings);
        }
        Ok(all)
    }

    fn candidates(&self, groups: &[Vec<u16>]) -> Result<Vec<Latents>> {
        let most = self.compressor.config().sizes.input;
        let strings = match self.purpose {
            Purpose::Extent => self.strings(&[sampled(&groups.concat(), most)])?,
            Purpose::Chunk => {
                let inputs: Vec<Vec<u16>> = groups.iter().map(|g| sampled(g, most)).collect();
                self.strings(&inputs)?
            }
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
