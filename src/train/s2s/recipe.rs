//! What to train and how: the configuration file of `s2sfs train --s2s`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::a2c::{CostSchedule, Options};
use super::{Config, Result, S2sError, Sizes};
use crate::train::network::recipe::{self, Shape, Training};

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The decompressor, and how it is trained. `training.sequence` is not used: an extent is a sequence.
    pub network: Shape,
    pub training: Training,
    pub compressor: Sizes,
    pub latents: Method,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            network: Shape {
                latents: 32,
                ..Shape::default()
            },
            training: Training::default(),
            compressor: Sizes::default(),
            latents: Method::default(),
        }
    }
}

/// Who latents are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A chunk has its own, as in the paper.
    Chunk,
    /// All chunks of an extent share them.
    Extent,
}

/// What the compressor is to write before it is rewarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Copy {
    /// The first tokens of its input, as in the paper.
    First,
    /// The tokens that occur most beyond what is usual.
    Salient,
    /// Half of the string the first tokens, the rest such tokens.
    Both,
    /// Passages that come again in many chunks.
    Recurring,
}

/// How latents are learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Method {
    pub purpose: Purpose,
    /// Tokens of a chunk, each of which the decompressor begins anew.
    pub chunk: usize,
    /// Chunks of an extent in training, at most.
    pub chunks: usize,
    /// How many of them, drawn by chance, are learned from in a step.
    pub learned: usize,
    /// Strings of latents of a step: extents, or chunks that have their own.
    pub batch: usize,
    /// Share of training in which the compressor learns to copy, and what.
    pub copy: Copy,
    pub copy_share: f64,
    /// Whether latents stand for the tokens that are copied: matches and histories know these tokens before a group begins.
    pub gloss: bool,
    /// What naming a token must save at least, in nats, as if tokens were drawn at random. A latent costs about six, and a
    /// predictor that sees the text knows most of what counting tells by itself.
    pub worth: f64,
    /// Share of what the decompressor reads without latents.
    pub without: f64,
    /// Strings that are sampled for each input, and how freely.
    pub samples: usize,
    pub temperature: f64,
    /// How often a batch is learned from again, by importance weights.
    pub again: usize,
    /// Learning rate of the compressor (Adam); that of the paper is 1e-6.
    pub rate: f64,
    pub cost: CostSchedule,
    pub a2c: Options,
    /// Steps between lines of the log, and between new priors.
    pub log_steps: u64,
    pub prior_steps: u64,
}

impl Default for Method {
    fn default() -> Method {
        Method {
            purpose: Purpose::Extent,
            chunk: 128,
            chunks: 64,
            learned: 8,
            batch: 16,
            copy: Copy::Salient,
            copy_share: 0.3,
            gloss: true,
            worth: 60.0,
            without: 0.25,
            samples: 2,
            temperature: 1.0,
            again: 0,
            rate: 3e-4,
            cost: CostSchedule {
                start: 0.1,
                share: 0.5,
            },
            a2c: Options::default(),
            log_steps: 10,
            prior_steps: 50,
        }
    }
}

impl Method {
    /// Chunks that one string of latents is for.
    pub fn chunks_of_string(&self) -> usize {
        match self.purpose {
            Purpose::Chunk => 1,
            Purpose::Extent => self.chunks,
        }
    }

    /// Tokens that one string of latents is for, at most.
    pub fn tokens_of_string(&self) -> usize {
        self.chunk * self.chunks_of_string()
    }

    fn check(&self) -> Result<()> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let within = |value: usize, most: usize| (1..=most).contains(&value);
        for (name, sound, allowed) in [
            ("chunk", within(self.chunk, 128), "1 to 128"),
            ("chunks", within(self.chunks, 1024), "1 to 1024"),
            ("learned", within(self.learned, 1024), "1 to 1024"),
            ("batch", within(self.batch, 1 << 12), "1 to 4096"),
            ("samples", within(self.samples, 64), "1 to 64"),
            ("copy_share", share(self.copy_share), "0 to 1"),
            ("worth", (0.0..=1e6).contains(&self.worth), "0 to 1000000"),
            ("without", share(self.without), "0 to 1"),
            ("temperature", positive(self.temperature), "more than 0"),
            ("again", self.again <= 64, "0 to 64"),
            ("rate", positive(self.rate), "more than 0"),
            ("cost.start", share(self.cost.start), "0 to 1"),
            ("cost.share", share(self.cost.share), "0 to 1"),
            ("log_steps", self.log_steps > 0, "1 or more"),
            ("prior_steps", self.prior_steps > 0, "1 or more"),
        ] {
            if !sound {
                return Err(S2sError::Config(format!(
                    "latents.{name} must be {allowed}"
                )));
            }
        }
        self.a2c.check()
    }
}

impl Recipe {
    /// Reads a configuration file: TOML, or JSON if its name ends so.
    ///
    /// # Errors
    /// If it cannot be read, has unknown fields or impossible values.
    pub fn read(path: &Path) -> Result<Recipe> {
        let read = || -> std::result::Result<Recipe, String> {
            let recipe: Recipe = recipe::read_configuration(path)?;
            recipe.check().map_err(|e| e.to_string())?;
            Ok(recipe)
        };
        read().map_err(|why| S2sError::Config(format!("{}: {why}", path.display())))
    }

    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// If there is one; the error names it and what it may be.
    pub fn check(&self) -> Result<()> {
        self.latents.check()?;
        let decompressor = recipe::Recipe {
            network: self.network.clone(),
            training: self.training.clone(),
        };
        decompressor.check().map_err(S2sError::Network)?;
        if self.network.latents == 0 {
            let why = "network.latents is 0: the decompressor would read none";
            return Err(S2sError::Config(why.into()));
        }
        if self.training.cycles != 1 {
            let why = "training.cycles must be 1: rewards go on from one another";
            return Err(S2sError::Config(why.into()));
        }
        self.compressor_config(self.network.vocabulary)?;
        Ok(())
    }

    /// The decompressor's part.
    pub fn decompressor(&self) -> recipe::Recipe {
        let mut training = self.training.clone();
        training.sequence = self.latents.tokens_of_string();
        recipe::Recipe {
            network: self.network.clone(),
            training,
        }
    }

    /// The compressor for a vocabulary of this size.
    ///
    /// # Errors
    /// If a size is out of range.
    pub fn compressor_config(&self, vocabulary: usize) -> Result<Config> {
        let shape = &self.network;
        let sizes = self.compressor.clone();
        Config::new(vocabulary, shape.latent_vocabulary, shape.latents, sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_impossible_values_are_named() {
        Recipe::default().check().unwrap();
        let mut recipe = Recipe::default();
        recipe.latents.without = 1.5;
        assert!(recipe.check().unwrap_err().to_string().contains("without"));
        let mut recipe = Recipe::default();
        recipe.network.latents = 0;
        assert!(recipe.check().is_err());
        let mut recipe = Recipe::default();
        recipe.training.cycles = 2;
        assert!(recipe.check().unwrap_err().to_string().contains("cycles"));
    }

    #[test]
    fn a_string_is_for_a_chunk_or_for_all_of_an_extent() {
        let mut method = Method::default();
        assert_eq!(method.tokens_of_string(), 8192);
        method.purpose = Purpose::Chunk;
        assert_eq!(method.tokens_of_string(), 128);
    }
}
