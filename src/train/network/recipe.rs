//! What to train and how: the configuration file of `s2sfs train --network`.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::NetworkError;
use super::optimiser::Rates;
use crate::model::network::{Config, FeedForward, Ngrams, exact};

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    pub network: Shape,
    pub training: Training,
}

/// The shape of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    pub d_model: usize,
    pub layers: usize,
    pub heads: usize,
    /// Dimension of a head; without it `d_model / heads`.
    pub d_kv: Option<usize>,
    pub d_ff: usize,
    pub feed_forward: FeedForward,
    /// Tokens that a position sees, itself included.
    pub window: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Most tokens of a class of the output head.
    pub class_tokens: usize,
    pub buckets: usize,
    pub max_distance: usize,
    /// Hashed n-gram embeddings, if any.
    pub ngrams: Option<Ngrams>,
    /// Most latents of a sequence; 0 for a network without encoder.
    pub latents: usize,
    /// The alphabet of the latents, if there are any.
    pub latent_vocabulary: usize,
    /// Layers of the encoder, if there are latents.
    pub encoder_layers: usize,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            d_model: 256,
            layers: 2,
            heads: 4,
            d_kv: None,
            d_ff: 1024,
            feed_forward: FeedForward::SquaredRelu,
            window: 128,
            vocabulary: 4096,
            class_tokens: 64,
            buckets: 32,
            max_distance: 128,
            ngrams: None,
            latents: 0,
            latent_vocabulary: 1024,
            encoder_layers: 1,
        }
    }
}

/// How it is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    /// Tokens of a step.
    pub batch_tokens: usize,
    /// Most tokens of a sequence.
    pub sequence: usize,
    /// How long: this many steps, or this many minutes if `steps` is not given.
    pub steps: Option<u64>,
    pub minutes: f64,
    /// Learning rates of Muon, for the matrices of the layers, and of AdamW, for the rest.
    pub matrix_rate: f64,
    pub rate: f64,
    /// Steps in which the rates rise from nothing.
    pub warm_up: u64,
    /// How often the rates fall: then they begin anew, and at the end the mean of all ends is tried.
    pub cycles: u32,
    /// Share of a cycle after which the rates fall, and the share of them that is left at its end.
    pub decay_from: f64,
    pub last_rate: f64,
    /// Share of training before anything is rounded.
    pub float_phase: f64,
    /// How many times more often a rare kind of file may be read than the most common one.
    pub balance: f64,
    pub seed: u64,
    /// Steps between looks at held-out data, and the tokens of it.
    pub evaluate_steps: u64,
    pub held_out_tokens: usize,
    /// Minutes between checkpoints.
    pub checkpoint_minutes: f64,
}

impl Default for Training {
    fn default() -> Training {
        Training {
            batch_tokens: 8192,
            sequence: 256,
            steps: None,
            minutes: 60.0,
            matrix_rate: 0.02,
            rate: 0.01,
            warm_up: 50,
            cycles: 1,
            decay_from: 0.4,
            last_rate: 0.02,
            float_phase: 0.0,
            balance: 4.0,
            seed: 1,
            evaluate_steps: 200,
            held_out_tokens: 1 << 16,
            checkpoint_minutes: 5.0,
        }
    }
}

/// What a configuration file says: TOML, or JSON if its name ends so.
pub(crate) fn read_configuration<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    match path.extension().is_some_and(|e| e == "json") {
        true => serde_json::from_str(&text).map_err(|e| e.to_string()),
        false => toml::from_str(&text).map_err(|e| e.to_string()),
    }
}

impl Recipe {
    /// Reads a configuration file: TOML, or JSON if its name ends so.
    ///
    /// # Errors
    /// If it cannot be read, has unknown fields or impossible values.
    pub fn read(path: &Path) -> Result<Recipe, NetworkError> {
        let read = || -> Result<Recipe, String> {
            let recipe: Recipe = read_configuration(path)?;
            recipe.check().map_err(|e| e.to_string())?;
            Ok(recipe)
        };
        read().map_err(|why| NetworkError::Recipe(format!("{}: {why}", path.display())))
    }

    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// If there is one; the error names it and what it may be.
    pub fn check(&self) -> Result<(), NetworkError> {
        let (shape, training) = (&self.network, &self.training);
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let heads = 1..=shape.d_kv.map_or(shape.d_model, |_| usize::MAX);
        let most = 1 << 24;
        for (name, sound, allowed) in [
            ("heads", heads.contains(&shape.heads), "1 to d_model"),
            (
                "vocabulary",
                (257..=65_536).contains(&shape.vocabulary),
                "257 to 65536",
            ),
            ("class_tokens", shape.class_tokens > 0, "1 or more"),
            ("latents", shape.latents <= exact::KEYS_MAX, "0 to 128"),
            (
                "latent_vocabulary",
                (1..=65_536).contains(&shape.latent_vocabulary),
                "1 to 65536",
            ),
            (
                "encoder_layers",
                (1..=64).contains(&shape.encoder_layers),
                "1 to 64",
            ),
            (
                "batch_tokens",
                (1..=most).contains(&training.batch_tokens),
                "1 to 2^24",
            ),
            (
                "sequence",
                (2..=1 << 16).contains(&training.sequence),
                "2 to 65536",
            ),
            ("steps", training.steps != Some(0), "1 or more"),
            ("minutes", positive(training.minutes), "more than 0"),
            ("matrix_rate", positive(training.matrix_rate), "more than 0"),
            ("rate", positive(training.rate), "more than 0"),
            ("cycles", (1..=1000).contains(&training.cycles), "1 to 1000"),
            ("decay_from", share(training.decay_from), "0 to 1"),
            ("last_rate", share(training.last_rate), "0 to 1"),
            ("float_phase", share(training.float_phase), "0 to 1"),
            (
                "balance",
                training.balance >= 1.0 && training.balance.is_finite(),
                "1 or more",
            ),
            ("evaluate_steps", training.evaluate_steps > 0, "1 or more"),
            (
                "held_out_tokens",
                (1..=most).contains(&training.held_out_tokens),
                "1 to 2^24",
            ),
            (
                "checkpoint_minutes",
                positive(training.checkpoint_minutes),
                "more than 0",
            ),
        ] {
            if !sound {
                return Err(NetworkError::Recipe(format!("{name} must be {allowed}")));
            }
        }
        self.config(shape.vocabulary, vec![0]).check()?;
        Ok(())
    }

    /// The shape of the network with a vocabulary of this size, divided into these classes.
    pub fn config(&self, vocab_size: usize, classes: Vec<u16>) -> Config {
        let shape = &self.network;
        let if_latents = |size| if shape.latents > 0 { size } else { 0 };
        Config {
            vocab_size,
            latent_vocab: if_latents(shape.latent_vocabulary),
            window: shape.window,
            max_latents: shape.latents,
            d_model: shape.d_model,
            d_kv: shape.d_kv.unwrap_or(shape.d_model / shape.heads.max(1)),
            d_ff: shape.d_ff,
            num_heads: shape.heads,
            num_layers: if_latents(shape.encoder_layers),
            num_decoder_layers: shape.layers,
            relative_attention_num_buckets: shape.buckets,
            relative_attention_max_distance: shape.max_distance,
            feed_forward: shape.feed_forward,
            ngrams: shape.ngrams.clone(),
            classes,
        }
    }

    /// True if a run with `other` can go on with this one: they differ in nothing but how long and how often.
    pub fn continues(&self, other: &Recipe) -> bool {
        let what = |recipe: &Recipe| {
            let defaults = Training::default();
            let training = Training {
                steps: None,
                minutes: defaults.minutes,
                evaluate_steps: defaults.evaluate_steps,
                held_out_tokens: defaults.held_out_tokens,
                checkpoint_minutes: defaults.checkpoint_minutes,
                ..recipe.training.clone()
            };
            (recipe.network.clone(), training)
        };
        what(self) == what(other)
    }
}

impl Training {
    /// The share of training that is over, after so many steps and seconds.
    pub fn done(&self, step: u64, seconds: f64) -> f64 {
        let done = match self.steps {
            Some(steps) => step as f64 / steps as f64,
            None => seconds / 60.0 / self.minutes,
        };
        done.min(1.0)
    }

    /// The learning rates at `step`, when a share `done` of training is over.
    pub fn rates_at(&self, step: u64, done: f64) -> Rates {
        let share = self.rate_at(step, done);
        Rates {
            matrices: self.matrix_rate * share,
            others: self.rate * share,
        }
    }

    /// The share of the learning rates in force at `step`, when a share `done` of training is over.
    pub fn rate_at(&self, step: u64, done: f64) -> f64 {
        let rising = (step + 1) as f64 / self.warm_up.max(1) as f64;
        let over = match done < 1.0 {
            true => (done * f64::from(self.cycles)).fract(),
            false => 1.0,
        };
        let left = (1.0 - over) / (1.0 - self.decay_from).max(1e-9);
        rising.min(1.0) * left.clamp(self.last_rate, 1.0)
    }

    /// Cycles that have ended when a share `done` of training is over.
    pub fn ended_cycles(&self, done: f64) -> u32 {
        (done * f64::from(self.cycles)) as u32
    }
}

/// Multiply-adds of one step of a network: what a token costs, given that a class of average size is evaluated and, in a
/// network with an encoder, that there are as many latents as there can be. The encoder, and the keys and values of
/// the latents, are computed once for a sequence and do not count.
pub fn multiply_adds(config: &Config) -> usize {
    let (d, inner) = (config.d_model, config.inner());
    let cross = match config.max_latents {
        0 => 0,
        latents => 2 * d * inner + 2 * latents * inner,
    };
    let layer = 4 * d * inner + 2 * d * config.d_ff + 2 * config.window * inner + cross;
    let members = config.vocab_size / config.classes.len().max(1);
    config.num_decoder_layers * layer + d * (config.classes.len() + members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_stay_and_fall() {
        let training = Training::default();
        assert!(training.rate_at(0, 0.0) < 0.05);
        assert_eq!(training.rate_at(60, 0.3), 1.0);
        assert!((training.rate_at(600, 0.7) - 0.5).abs() < 1e-9);
        assert_eq!(training.rate_at(900, 1.0), 0.02);
        let cycles = Training {
            cycles: 2,
            ..training
        };
        assert_eq!(cycles.rate_at(60, 0.15), 1.0);
        assert!((cycles.rate_at(600, 0.35) - 0.5).abs() < 1e-9);
        assert_eq!(cycles.rate_at(600, 0.5), 1.0);
        assert_eq!(cycles.rate_at(900, 1.0), 0.02);
        let ended = [0.0, 0.49, 0.5, 0.99, 1.0].map(|done| cycles.ended_cycles(done));
        assert_eq!(ended, [0, 0, 1, 1, 2]);
    }

    #[test]
    fn latents_are_those_of_the_configuration_and_cost_each_token() {
        let mut recipe = Recipe::default();
        let config = |recipe: &Recipe| recipe.config(4096, vec![0]);
        let without = config(&recipe);
        let encoder = |c: &Config| (c.max_latents, c.latent_vocab, c.num_layers);
        assert_eq!(encoder(&without), (0, 0, 0));
        recipe.network.latents = 32;
        recipe.network.encoder_layers = 3;
        recipe.check().unwrap();
        let with = config(&recipe);
        assert_eq!(encoder(&with), (32, 1024, 3));
        // in each of 2 layers query and output, scores and means of values
        let more = 2 * (2 * 256 * 256 + 2 * 32 * 256);
        assert_eq!(multiply_adds(&with), multiply_adds(&without) + more);
        recipe.network.latents = 129;
        let error = recipe.check().unwrap_err().to_string();
        assert!(error.contains("latents must be 0 to 128"), "{error}");
    }

    #[test]
    fn the_shipped_recipes_are_sound_and_as_small_as_they_should_be() {
        for (name, most) in [("net-small", 2_000_000), ("net-base", 13_000_000)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("models")
                .join(name);
            let recipe = Recipe::read(&path.with_extension("toml")).unwrap();
            let size = recipe.network.vocabulary;
            let classes = (0..size).step_by(recipe.network.class_tokens / 2);
            let classes = classes.map(|first| first as u16).collect();
            let cost = multiply_adds(&recipe.config(size, classes));
            assert!((most / 2..=most).contains(&cost), "{name}: {cost}");
        }
    }
}
