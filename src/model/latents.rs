//! The prior of latents: what a string of latents costs, and the binary decisions by which it is coded.
//!
//! In front of every latent stands the decision whether the string ends there, with a probability for each
//! position; behind the last latent that a string can have there is nothing to decide. A latent is coded by the
//! decisions of a balanced binary tree over the alphabet. All probabilities are integers, so that every machine
//! decodes the same (docs/exactness.md).
//!
//! A latent may stand for a token, its gloss. What the latents of a group stand for is a text that the match and
//! adaptive experts know before the group begins.

use super::network::exact::KEYS_MAX;
use super::predictor::BitCoder;
use super::{Cost, ModelError};

/// The frequencies of all latents add up to 2^24.
const TOTAL: u32 = 1 << 24;
/// Latents are coded in 16 bits.
const ALPHABET_MAX: usize = 1 << 16;

/// How often each latent was written, and how long the strings were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentCounts {
    /// By latent.
    symbols: Vec<u64>,
    /// Strings by their length, 0 to the most latents of one.
    lengths: Vec<u64>,
}

/// Frequencies of latents and of the ends of their strings, in integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentPrior {
    /// Probability that a string ends in front of each position, in units of 2^-16, within 1..=65535.
    ends: Vec<u16>,
    /// By latent, at least 1 each, [`TOTAL`] together.
    frequencies: Vec<u32>,
    /// Probability of the upper part of each node of the tree, by the first latent of that part less 1: a tree
    /// parts the alphabet in front of each latent but the first exactly once.
    forks: Vec<u16>,
    /// The token that each latent stands for; empty if they stand for none.
    glosses: Vec<u16>,
}

fn damaged(what: &str) -> ModelError {
    ModelError::Damaged(format!("prior of latents: {what}"))
}

/// A share of a whole that is not 0, in units of 2^-16, never 0 and never 1.
fn probability(part: u128, whole: u128) -> u16 {
    (((part << 16) + whole / 2) / whole).clamp(1, 65535) as u16
}

/// Where a node of the tree that has two latents or more is parted.
fn middle(low: usize, high: usize) -> usize {
    low + (high - low) / 2
}

/// The probabilities of the tree's nodes.
fn forks(frequencies: &[u32]) -> Vec<u16> {
    let mut sums = vec![0u64];
    for &frequency in frequencies {
        sums.push(sums[sums.len() - 1] + u64::from(frequency));
    }
    let of = |low: usize, high: usize| u128::from(sums[high] - sums[low]);
    let mut forks = vec![0; frequencies.len() - 1];
    let mut nodes = vec![(0, frequencies.len())];
    while let Some((low, high)) = nodes.pop() {
        if high - low < 2 {
            continue;
        }
        let middle = middle(low, high);
        forks[middle - 1] = probability(of(middle, high), of(low, high));
        nodes.extend([(low, middle), (middle, high)]);
    }
    forks
}

fn check_sizes(alphabet: usize, most: usize) -> Result<(), ModelError> {
    match (1..=ALPHABET_MAX).contains(&alphabet) && (1..=KEYS_MAX).contains(&most) {
        true => Ok(()),
        false => Err(damaged(&format!(
            "an alphabet of {alphabet} and strings of {most} latents"
        ))),
    }
}

impl LatentCounts {
    /// No counts yet, for an alphabet of 1 to 65,536 latents and strings of at most `most` latents, 1 to 128.
    ///
    /// # Errors
    /// If a size is out of range.
    pub fn new(alphabet: usize, most: usize) -> Result<LatentCounts, ModelError> {
        check_sizes(alphabet, most)?;
        Ok(LatentCounts {
            symbols: vec![0; alphabet],
            lengths: vec![0; most + 1],
        })
    }

    /// Counts one string of latents.
    ///
    /// # Errors
    /// If it is too long or has a latent that is not of the alphabet.
    pub fn add(&mut self, latents: &[u16]) -> Result<(), ModelError> {
        check(latents, self.symbols.len(), self.lengths.len() - 1)?;
        for &latent in latents {
            self.symbols[usize::from(latent)] += 1;
        }
        self.lengths[latents.len()] += 1;
        Ok(())
    }
}

/// Refuses latents that are too many or not of the alphabet.
fn check(latents: &[u16], alphabet: usize, most: usize) -> Result<(), ModelError> {
    if latents.len() > most {
        let what = format!("{} latents, the most are {most}", latents.len());
        return Err(ModelError::Input(what));
    }
    match latents.iter().find(|&&l| usize::from(l) >= alphabet) {
        Some(latent) => Err(ModelError::Input(format!(
            "latent {latent} of an alphabet of {alphabet}"
        ))),
        None => Ok(()),
    }
}

impl LatentPrior {
    /// The prior that fits what was counted, every latent and every end as if it had been seen half a time more
    /// (Krichevsky and Trofimov 1981). Without counts all latents are equally likely, and ends as likely as not.
    pub fn new(counts: &LatentCounts) -> LatentPrior {
        let doubled = |count: u64| 2 * u128::from(count) + 1;
        let whole: u128 = counts.symbols.iter().map(|&count| doubled(count)).sum();
        let free = u128::from(TOTAL) - counts.symbols.len() as u128;
        let share = |&count: &u64| 1 + (doubled(count) * free / whole) as u32;
        let mut frequencies: Vec<u32> = counts.symbols.iter().map(share).collect();
        // what rounding down left, less than 1 for each latent: to the first ones
        let left = TOTAL - frequencies.iter().sum::<u32>();
        for frequency in &mut frequencies[..left as usize] {
            *frequency += 1;
        }
        let most = counts.lengths.len() - 1;
        let ends = (0..most).map(|position| {
            let reached: u128 = counts.lengths[position..]
                .iter()
                .map(|&strings| u128::from(strings))
                .sum();
            probability(doubled(counts.lengths[position]), 2 * reached + 2)
        });
        LatentPrior {
            ends: ends.collect(),
            forks: forks(&frequencies),
            frequencies,
            glosses: vec![],
        }
    }

    /// Says which token each latent stands for.
    ///
    /// # Errors
    /// If there are more or fewer of them than latents.
    pub fn with_glosses(mut self, glosses: Vec<u16>) -> Result<LatentPrior, ModelError> {
        if glosses.len() != self.alphabet() {
            let what = format!("{} glosses for {} latents", glosses.len(), self.alphabet());
            return Err(ModelError::Input(what));
        }
        self.glosses = glosses;
        Ok(self)
    }

    /// The token that each latent stands for; empty if they stand for none.
    pub fn glosses(&self) -> &[u16] {
        &self.glosses
    }

    /// The tokens that latents stand for, if they do; latents that are not of the alphabet are left out.
    pub fn text(&self, latents: &[u16]) -> Vec<u16> {
        let gloss = |&latent: &u16| self.glosses.get(usize::from(latent)).copied();
        latents.iter().filter_map(gloss).collect()
    }

    /// Number of different latents.
    pub fn alphabet(&self) -> usize {
        self.frequencies.len()
    }

    /// Most latents of a string.
    pub fn most(&self) -> usize {
        self.ends.len()
    }

    /// Codes a string of latents.
    ///
    /// # Errors
    /// If it is too long or has a latent that is not of the alphabet; then nothing was coded.
    pub fn encode(&self, coder: &mut impl BitCoder, latents: &[u16]) -> Result<(), ModelError> {
        check(latents, self.alphabet(), self.most())?;
        for (position, &latent) in latents.iter().enumerate() {
            self.end(coder, position, false);
            self.latent(coder, latent);
        }
        self.end(coder, latents.len(), true);
        Ok(())
    }

    /// The string of latents that a decoder reads; whatever it reads, it is one.
    pub fn decode(&self, coder: &mut impl BitCoder) -> Vec<u16> {
        let mut latents = Vec::new();
        while !self.end(coder, latents.len(), false) {
            latents.push(self.latent(coder, 0));
        }
        latents
    }

    /// What coding a string costs in bits: by latent, the decision that there is one included, and at last its
    /// end, which is none behind the most latents.
    ///
    /// # Errors
    /// If it is too long or has a latent that is not of the alphabet.
    pub fn costs(&self, latents: &[u16]) -> Result<Vec<f64>, ModelError> {
        check(latents, self.alphabet(), self.most())?;
        let cost_of = |(position, &latent): (usize, &u16)| {
            let mut cost = Cost::default();
            self.end(&mut cost, position, false);
            self.latent(&mut cost, latent);
            cost.bits
        };
        let mut costs: Vec<f64> = latents.iter().enumerate().map(cost_of).collect();
        if latents.len() < self.most() {
            let mut cost = Cost::default();
            self.end(&mut cost, latents.len(), true);
            costs.push(cost.bits);
        }
        Ok(costs)
    }

    /// The decision whether a string ends in front of a position.
    fn end(&self, coder: &mut impl BitCoder, position: usize, ends: bool) -> bool {
        match self.ends.get(position) {
            Some(&p) => coder.code(p, u32::from(ends)) == 1,
            None => true,
        }
    }

    /// The decisions of one latent.
    fn latent(&self, coder: &mut impl BitCoder, latent: u16) -> u16 {
        let (mut low, mut high) = (0, self.alphabet());
        while high - low > 1 {
            let middle = middle(low, high);
            let upper = u32::from(usize::from(latent) >= middle);
            match coder.code(self.forks[middle - 1], upper) {
                1 => low = middle,
                _ => high = middle,
            }
        }
        low as u16
    }

    /// The prior as it stands in a file, all numbers little-endian: the size of the alphabet (u32), the most
    /// latents of a string (u16), the probability of the end in front of each position (u16), the frequency of each
    /// latent (u32), and, if latents stand for tokens, the token of each (u16).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(6 + 2 * self.most() + 6 * self.alphabet());
        bytes.extend((self.alphabet() as u32).to_le_bytes());
        bytes.extend((self.most() as u16).to_le_bytes());
        bytes.extend(self.ends.iter().flat_map(|p| p.to_le_bytes()));
        bytes.extend(self.frequencies.iter().flat_map(|f| f.to_le_bytes()));
        bytes.extend(self.glosses.iter().flat_map(|token| token.to_le_bytes()));
        bytes
    }

    /// Reads what [`LatentPrior::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are too few or too many, a size or a probability is out of range, or the frequencies do not
    /// add up.
    pub fn from_bytes(bytes: &[u8]) -> Result<LatentPrior, ModelError> {
        let truncated = || damaged("truncated");
        let (alphabet, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
        let (most, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
        let alphabet = u32::from_le_bytes(*alphabet) as usize;
        let most = usize::from(u16::from_le_bytes(*most));
        check_sizes(alphabet, most)?;
        let without = 2 * most + 4 * alphabet;
        if rest.len() != without && rest.len() != without + 2 * alphabet {
            return Err(damaged("not as long as its sizes say"));
        }
        let words = |bytes: &[u8]| -> Vec<u16> {
            let words = bytes.as_chunks().0.iter();
            words.map(|&word| u16::from_le_bytes(word)).collect()
        };
        let (rest, glosses) = rest.split_at(without);
        let (ends, frequencies) = rest.split_at(2 * most);
        let ends = words(ends);
        let frequencies = frequencies.as_chunks().0.iter();
        let frequencies: Vec<u32> = frequencies.map(|&f| u32::from_le_bytes(f)).collect();
        if ends.contains(&0) || frequencies.contains(&0) {
            return Err(damaged("something has no probability"));
        }
        let sum: u64 = frequencies.iter().map(|&f| u64::from(f)).sum();
        if sum != u64::from(TOTAL) {
            return Err(damaged("the frequencies do not add up"));
        }
        Ok(LatentPrior {
            ends,
            forks: forks(&frequencies),
            frequencies,
            glosses: words(glosses),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::range_coder::{Decoder, Encoder};
    use proptest::prelude::*;

    fn prior(alphabet: usize, most: usize, strings: &[&[u16]]) -> LatentPrior {
        let mut counts = LatentCounts::new(alphabet, most).unwrap();
        for string in strings {
            counts.add(string).unwrap();
        }
        LatentPrior::new(&counts)
    }

    #[test]
    fn costs_are_what_was_counted() {
        // lengths 0, 1, 2, 2; latents 0 four times, 3 once
        let prior = prior(4, 2, &[&[], &[0], &[0, 0], &[0, 3]]);
        assert_eq!(prior.ends[0], (65536 * 3 / 10 + 1) as u16);
        assert_eq!(prior.ends[1], 3 << 13);
        // (2 * 4 + 1) of 14 parts, and 1, 1 and 3
        let expected: [f64; 4] = [9.0 / 14.0, 1.0 / 14.0, 1.0 / 14.0, 3.0 / 14.0];
        for (latent, share) in expected.iter().enumerate() {
            let costs = prior.costs(&[latent as u16]).unwrap();
            let cost = -(0.7 * share).log2();
            assert!((costs[0] - cost).abs() < 1e-3, "{latent}: {costs:?}");
            assert!((costs[1] + (3f64 / 8.0).log2()).abs() < 1e-9);
        }
        assert_eq!(prior.costs(&[0, 0]).unwrap().len(), 2);
        assert!((prior.costs(&[]).unwrap()[0] + 0.3f64.log2()).abs() < 1e-3);
    }

    #[test]
    fn without_counts_latents_are_uniform() {
        for alphabet in [1, 2, 1024, 1 << 16] {
            let prior = prior(alphabet, 32, &[]);
            for latent in [0, alphabet / 3, alphabet - 1] {
                let cost = prior.costs(&[latent as u16]).unwrap()[0];
                let expected = 1.0 + (alphabet as f64).log2();
                assert!((cost - expected).abs() < 1e-3, "{alphabet}: {cost}");
            }
        }
    }

    #[test]
    fn strings_and_files_that_do_not_fit_are_errors() {
        let prior = prior(5, 3, &[&[1, 2]]);
        assert!(prior.costs(&[5]).is_err());
        assert!(prior.costs(&[0; 4]).is_err());
        assert!(prior.encode(&mut Encoder::default(), &[5]).is_err());
        for (alphabet, most) in [(0, 3), (65537, 3), (5, 0), (5, 129)] {
            assert!(LatentCounts::new(alphabet, most).is_err());
        }
        let bytes = prior.to_bytes();
        assert_eq!(LatentPrior::from_bytes(&bytes).unwrap(), prior);
        for len in 0..bytes.len() {
            assert!(LatentPrior::from_bytes(&bytes[..len]).is_err(), "{len}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(LatentPrior::from_bytes(&longer).is_err());
        // sizes, an end, a frequency
        for (at, value) in [(0, 0), (2, 2), (4, 0), (5, 1)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(LatentPrior::from_bytes(&wrong).is_err(), "{at}");
        }
        let mut wrong = bytes.clone();
        wrong[6..8].fill(0);
        assert!(LatentPrior::from_bytes(&wrong).is_err());
        let mut wrong = bytes;
        wrong[12] ^= 1;
        assert!(LatentPrior::from_bytes(&wrong).is_err());
    }

    #[test]
    fn what_latents_stand_for_stays_with_the_prior() {
        let plain = prior(3, 2, &[&[1, 2]]);
        assert!(plain.text(&[0, 1, 2]).is_empty());
        assert!(plain.clone().with_glosses(vec![7, 8]).is_err());
        let prior = plain.with_glosses(vec![7, 900, 8]).unwrap();
        assert_eq!(prior.text(&[1, 0, 1, 3]), [900, 7, 900]);
        let bytes = prior.to_bytes();
        assert_eq!(LatentPrior::from_bytes(&bytes).unwrap(), prior);
        for len in (0..bytes.len()).filter(|len| len + 6 != bytes.len()) {
            assert!(LatentPrior::from_bytes(&bytes[..len]).is_err(), "{len}");
        }
    }

    /// An alphabet, the most latents of a string, strings, and those of them that are counted.
    fn case() -> impl Strategy<Value = (usize, usize, Vec<Vec<u16>>, usize)> {
        (1usize..300, 1usize..33).prop_flat_map(|(alphabet, most)| {
            // most strings prefer few latents, as trained ones do
            let latent = (0..alphabet, 0..alphabet).prop_map(|(a, b)| (a * b / 300) as u16);
            let string = prop::collection::vec(latent, 0..=most);
            let strings = prop::collection::vec(string, 1..60);
            (Just(alphabet), Just(most), strings, 0usize..60)
        })
    }

    proptest! {
        #[test]
        fn strings_come_back_and_cost_what_was_said((alphabet, most, strings, counted) in case()) {
            let mut counts = LatentCounts::new(alphabet, most).unwrap();
            for string in strings.iter().take(counted) {
                counts.add(string).unwrap();
            }
            let prior = LatentPrior::new(&counts);
            prop_assert_eq!(prior.frequencies.iter().sum::<u32>(), TOTAL);
            let mut encoder = Encoder::default();
            let mut cost = 0f64;
            for string in &strings {
                prior.encode(&mut encoder, string).unwrap();
                let costs = prior.costs(string).unwrap();
                prop_assert_eq!(costs.len(), most.min(string.len() + 1));
                cost += costs.iter().sum::<f64>();
            }
            let code = encoder.finish();
            let bits = 8.0 * code.len() as f64;
            prop_assert!(bits < cost + 16.0, "{} bits cost {}", bits, cost);
            prop_assert!(bits > cost - 64.0, "{} bits cost {}", bits, cost);
            let read = LatentPrior::from_bytes(&prior.to_bytes()).unwrap();
            prop_assert_eq!(&read, &prior);
            let mut decoder = Decoder::new(&code);
            for string in &strings {
                prop_assert_eq!(&read.decode(&mut decoder), string);
            }
        }

        #[test]
        fn any_bytes_are_a_prior_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(prior) = LatentPrior::from_bytes(&bytes) {
                prop_assert_eq!(prior.to_bytes(), bytes);
            }
        }

        #[test]
        fn any_code_is_a_string(code in prop::collection::vec(any::<u8>(), 0..40)) {
            let prior = prior(7, 4, &[&[1, 2, 3], &[]]);
            let mut decoder = Decoder::new(&code);
            for _ in 0..20 {
                let latents = prior.decode(&mut decoder);
                prop_assert!(prior.costs(&latents).is_ok());
            }
        }
    }
}
