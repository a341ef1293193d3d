//! What the compressor reads of an extent, and what it copies of it.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::recipe::{Copy, Purpose};
use super::recurring::recurring;
use super::{Config, Result, S2sError};
use crate::train::network::checkpoint::write_whole;

/// The file of a rule in the directory of a compressor.
const RULE: &str = "copying.json";

/// Tokens of a window where an extent is too long to be read as a whole.
const WINDOW: usize = 32;

/// What a compressor that reads `most` tokens sees of `tokens`: all, or windows at equal distances.
pub fn sampled(tokens: &[u16], most: usize) -> Vec<u16> {
    if tokens.len() <= most {
        return tokens.to_vec();
    }
    let width = WINDOW.min(most);
    let windows = most / width;
    let last = tokens.len() - width;
    let start = |window: usize| window * last / (windows - 1).max(1);
    (0..windows)
        .flat_map(|window| tokens[start(window)..][..width].iter().copied())
        .collect()
}

/// The latent that stands for a token: the vocabulary is in the order of its bytes, so where there are fewer
/// latents than tokens, neighbours that begin alike share one.
pub fn latent_of(token: u16, config: &Config) -> u16 {
    let (token, tokens) = (usize::from(token), config.vocab_size);
    match config.latent_vocab >= tokens {
        true => token as u16,
        false => (token * config.latent_vocab / tokens) as u16,
    }
}

/// The token that each latent stands for: the most usual of those whose latent it is. Latents beyond the vocabulary, which no
/// rule writes, stand for its last token.
pub fn glosses(config: &Config, usual: &Usual) -> Vec<u16> {
    let mut glosses = vec![config.vocab_size.saturating_sub(1) as u16; config.latent_vocab];
    let mut best = vec![None; config.latent_vocab];
    for (token, &count) in usual.counts.iter().enumerate().take(config.vocab_size) {
        let latent = usize::from(latent_of(token as u16, config));
        if best[latent].is_none_or(|most| count > most) {
            (best[latent], glosses[latent]) = (Some(count), token as u16);
        }
    }
    glosses
}

/// How often each token usually occurs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    counts: Vec<u64>,
    total: u64,
}

impl Usual {
    /// Nothing seen yet, of a vocabulary of this size.
    pub fn new(vocabulary: usize) -> Usual {
        Usual {
            counts: vec![0; vocabulary],
            total: 0,
        }
    }

    /// Counts tokens.
    ///
    /// # Errors
    /// If one is not of the vocabulary.
    pub fn add(&mut self, tokens: &[u16]) -> Result<()> {
        for &token in tokens {
            let count = self.counts.get_mut(usize::from(token));
            let outside = || S2sError::Input(format!("token {token} is not of the vocabulary"));
            *count.ok_or_else(outside)? += 1;
            self.total += 1;
        }
        Ok(())
    }

    /// The tokens of an extent by what knowing their number would save, as if they were drawn at random: how often
    /// one occurs times the logarithm of how much more often than usual. At most `most`, and none that would
    /// save less than `worth` nats.
    pub fn salient(&self, tokens: &[u16], most: usize, worth: f64) -> Vec<u16> {
        let mut counts: HashMap<u16, u64> = HashMap::new();
        for &token in tokens {
            *counts.entry(token).or_default() += 1;
        }
        let share = |count: u64, total: u64| (count as f64 + 0.5) / (total as f64 + 1.0);
        let score = |(token, count): (u16, u64)| {
            let usual = self.counts.get(usize::from(token)).copied().unwrap_or(0);
            let ratio = share(count, tokens.len() as u64) / share(usual, self.total);
            (token, count as f64 * ratio.ln())
        };
        let scored = counts.into_iter().map(score);
        let mut scored: Vec<(u16, f64)> = scored.filter(|s| s.1 >= worth).collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored.truncate(most);
        scored.into_iter().map(|(token, _)| token).collect()
    }
}

/// What there is to copy: a string that can be told without a compressor. One learns to write it, and it is tried for
/// every block beside what the compressor writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Who strings are for.
    pub purpose: Purpose,
    pub copy: Copy,
    /// What a token must save at least to be named, in nats as [`Usual::salient`] counts.
    pub worth: f64,
    pub usual: Usual,
}

impl Rule {
    /// The string for an extent.
    pub fn string(&self, tokens: &[u16], config: &Config) -> Vec<u16> {
        let most = config.max_latents;
        let latents = |tokens: &[u16]| -> Vec<u16> {
            let latents = tokens.iter().map(|&token| latent_of(token, config));
            latents.collect()
        };
        let first = |most: usize| latents(&tokens[..tokens.len().min(most)]);
        let salient = |most: usize| {
            let mut latents = latents(&self.usual.salient(tokens, most, self.worth));
            latents.dedup();
            latents
        };
        match self.copy {
            Copy::First => first(most),
            Copy::Salient => salient(most),
            Copy::Both => {
                let first = first(most / 2);
                let rest = most - first.len();
                [first, salient(rest)].concat()
            }
            Copy::Recurring => latents(&recurring(tokens, most)),
        }
    }

    /// Writes the rule to the directory of its compressor.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(RULE);
        let json = serde_json::to_vec(self).map_err(|e| damaged(&path, e.to_string()))?;
        Ok(write_whole(&path, &json)?)
    }

    /// The rule in the directory of a compressor for a vocabulary of so many tokens.
    ///
    /// # Errors
    /// If there is none, or it is damaged or for another vocabulary.
    pub fn load(dir: &Path, vocabulary: usize) -> Result<Rule> {
        let path = dir.join(RULE);
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(source) => return Err(S2sError::Read { path, source }),
        };
        let rule: Rule =
            serde_json::from_slice(&json).map_err(|e| damaged(&path, e.to_string()))?;
        let Usual { counts, total } = &rule.usual;
        let sum = counts.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
        match counts.len() == vocabulary && sum == Some(*total) {
            true => Ok(rule),
            false => Err(damaged(&path, "it is for another vocabulary".into())),
        }
    }
}

fn damaged(path: &Path, what: String) -> S2sError {
    S2sError::File {
        path: path.to_owned(),
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::s2s::Sizes;

    #[test]
    fn a_long_extent_is_read_in_windows_from_its_first_token_to_its_last() {
        let tokens: Vec<u16> = (0..1000).collect();
        assert_eq!(sampled(&tokens[..100], 100), tokens[..100]);
        let read = sampled(&tokens, 96);
        assert_eq!(read.len(), 96);
        assert_eq!((read[0], read[95]), (0, 999));
        assert_eq!(read[32..64], tokens[484..516]);
        assert_eq!(sampled(&tokens, 20), tokens[..20]);
    }

    #[test]
    fn salient_tokens_are_those_that_are_more_frequent_than_usual() {
        let mut usual = Usual::new(10);
        usual.add(&[0; 900]).unwrap();
        usual.add(&[1, 2, 3, 4, 5, 6, 7, 8, 9].repeat(10)).unwrap();
        assert!(usual.add(&[10]).is_err());
        let mut tokens = vec![0; 80];
        tokens.extend([7; 20]);
        tokens.extend([3; 15]);
        tokens.extend([4, 5]);
        assert_eq!(usual.salient(&tokens, 5, 24.0), [7, 3]);
        assert_eq!(usual.salient(&tokens, 1, 24.0), [7]);
        assert!(usual.salient(&[], 5, 0.0).is_empty());
    }

    #[test]
    fn a_latent_stands_for_the_most_usual_of_its_tokens() {
        let mut usual = Usual::new(6);
        usual.add(&[0, 1, 1, 4, 4, 5]).unwrap();
        let config = |latents| Config::new(6, latents, 4, Sizes::default()).unwrap();
        assert_eq!(glosses(&config(6), &usual), [0, 1, 2, 3, 4, 5]);
        assert_eq!(glosses(&config(3), &usual), [1, 2, 4]);
        assert_eq!(glosses(&config(8), &usual), [0, 1, 2, 3, 4, 5, 5, 5]);
        let three = config(3);
        for (latent, &token) in glosses(&three, &usual).iter().enumerate() {
            assert_eq!(usize::from(latent_of(token, &three)), latent);
        }
    }

    #[test]
    fn a_rule_tells_strings_and_is_read_back_for_its_vocabulary_only() {
        let mut usual = Usual::new(10);
        usual.add(&[0; 100]).unwrap();
        let config = Config::new(10, 10, 4, Sizes::default()).unwrap();
        let tokens = [&[1, 0][..], &[5; 12], &[0], &[6; 10]].concat();
        let rule = |copy| Rule {
            purpose: Purpose::Extent,
            copy,
            worth: 24.0,
            usual: usual.clone(),
        };
        let string = |copy| rule(copy).string(&tokens, &config);
        assert_eq!(string(Copy::First), [1, 0, 5, 5]);
        assert_eq!(string(Copy::Salient), [5, 6]);
        assert_eq!(string(Copy::Both), [1, 0, 5, 6]);
        let dir = tempfile::tempdir().unwrap();
        assert!(Rule::load(dir.path(), 10).is_err());
        let rule = rule(Copy::Both);
        rule.save(dir.path()).unwrap();
        assert_eq!(Rule::load(dir.path(), 10).unwrap(), rule);
        assert!(Rule::load(dir.path(), 11).is_err());
        std::fs::write(dir.path().join(RULE), "{}").unwrap();
        assert!(Rule::load(dir.path(), 10).is_err());
    }
}
