//! What the compressor reads of an extent, and what it copies of it.

use std::collections::HashMap;

use super::recipe::Copy;
use super::{Config, Result, S2sError};

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

/// How often each token usually occurs.
#[derive(Debug, Clone)]
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
    /// one occurs times the logarithm of how much more often than usual. At most `most`, and none that is not
    /// more frequent than usual.
    pub fn salient(&self, tokens: &[u16], most: usize) -> Vec<u16> {
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
        // a token that occurs once tells nothing of others
        let several = counts.into_iter().filter(|&(_, count)| count > 1);
        let mut scored: Vec<(u16, f64)> = several.map(score).filter(|s| s.1 > 0.0).collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored.truncate(most);
        scored.into_iter().map(|(token, _)| token).collect()
    }

    /// What the compressor is to write for an extent while it learns to copy.
    pub fn copied(&self, tokens: &[u16], copy: Copy, config: &Config) -> Vec<u16> {
        let most = config.max_latents;
        let chosen = match copy {
            Copy::First => tokens[..tokens.len().min(most)].to_vec(),
            Copy::Salient => self.salient(tokens, most),
        };
        let mut latents: Vec<u16> = chosen.iter().map(|&t| latent_of(t, config)).collect();
        if copy == Copy::Salient {
            latents.dedup();
        }
        latents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        tokens.extend([7; 12]);
        tokens.extend([3; 6]);
        tokens.extend([4, 5]);
        assert_eq!(usual.salient(&tokens, 5), [7, 3]);
        assert_eq!(usual.salient(&tokens, 1), [7]);
        assert!(usual.salient(&[], 5).is_empty());
    }
}
