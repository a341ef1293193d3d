//! Passages of an extent that come again in many of its chunks: what is worth telling to chunks that know nothing of
//! each other.
//!
//! As the cover algorithm makes dictionaries (Liao, Petri, Moffat and Wirth 2016): a passage is worth what its runs of
//! tokens are, a run as many other chunks as it occurs in, and what one passage has told counts no more for the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::model::tokenizer::CHUNK_TOKENS;

/// Tokens of a passage, and of a run.
const PASSAGE: usize = 16;
const RUN: usize = 3;
/// Runs that begin in a passage and end in it.
const RUNS: usize = PASSAGE - RUN + 1;
/// What a passage must be worth: as much as if each of its tokens came again in so many chunks.
const OCCURRENCES: usize = 2;

/// The passages of `tokens` that are worth most, one behind the other, at most `most` tokens; the best one last, nearest
/// to what is predicted.
pub fn recurring(tokens: &[u16], most: usize) -> Vec<u16> {
    if tokens.len() < PASSAGE {
        return vec![];
    }
    let mut runs = Runs::of(tokens);
    let mut starts: Vec<usize> = Vec::new();
    while (starts.len() + 1) * PASSAGE <= most {
        let (worth, start) = runs.best();
        if worth < OCCURRENCES * PASSAGE {
            break;
        }
        runs.tell(start);
        starts.push(start);
    }
    let passages = starts
        .iter()
        .rev()
        .map(|&start| &tokens[start..][..PASSAGE]);
    passages.flatten().copied().collect()
}

/// The runs of an extent, by the position where they begin.
struct Runs {
    /// Equal runs have equal numbers.
    numbers: Vec<usize>,
    /// Where the same run begins before and behind a position, if it does.
    previous: Vec<Option<usize>>,
    next: Vec<Option<usize>>,
    /// By number: chunks in which the run begins beside the first; 0 once it has been told.
    worth: Vec<usize>,
}

impl Runs {
    fn of(tokens: &[u16]) -> Runs {
        let count = tokens.len() - RUN + 1;
        let mut runs = Runs {
            numbers: Vec::with_capacity(count),
            previous: vec![None; count],
            next: vec![None; count],
            worth: Vec::new(),
        };
        let mut last: HashMap<&[u16], usize> = HashMap::new();
        for (at, run) in tokens.windows(RUN).enumerate() {
            match last.entry(run) {
                Entry::Vacant(entry) => {
                    entry.insert(at);
                    runs.numbers.push(runs.worth.len());
                    runs.worth.push(0);
                }
                Entry::Occupied(mut entry) => {
                    let before = entry.insert(at);
                    let number = runs.numbers[before];
                    runs.numbers.push(number);
                    (runs.previous[at], runs.next[before]) = (Some(before), Some(at));
                    runs.worth[number] += usize::from(before / CHUNK_TOKENS != at / CHUNK_TOKENS);
                }
            }
        }
        runs
    }

    /// What the passage that is worth most is worth, and the first place where it begins. A run counts once in a passage.
    fn best(&self) -> (usize, usize) {
        let worth = |at: usize| self.worth[self.numbers[at]];
        let mut sum = 0;
        let mut best = (0, 0);
        for end in 0..self.numbers.len() {
            let start = (end + 1).saturating_sub(RUNS);
            if let Some(left) = start.checked_sub(1)
                && self.next[left].is_none_or(|next| next >= end)
            {
                sum -= worth(left);
            }
            if self.previous[end].is_none_or(|previous| previous < start) {
                sum += worth(end);
            }
            if end + 1 >= RUNS && sum > best.0 {
                best = (sum, start);
            }
        }
        best
    }

    /// The runs of the passage that begins here have been told.
    fn tell(&mut self, start: usize) {
        for at in start..start + RUNS {
            self.worth[self.numbers[at]] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::corpus::Random;

    /// Tokens that hardly ever come twice, with a passage in some chunks.
    fn extent(passages: &[(&[u16], usize)]) -> Vec<u16> {
        let mut random = Random(1);
        let mut tokens: Vec<u16> = (0..40 * CHUNK_TOKENS)
            .map(|_| random.below(60_000) as u16)
            .collect();
        for (index, &(passage, chunks)) in passages.iter().enumerate() {
            for chunk in 0..chunks {
                tokens[chunk * CHUNK_TOKENS + 20 * index + 5..][..passage.len()]
                    .copy_from_slice(passage);
            }
        }
        tokens
    }

    #[test]
    fn what_comes_again_in_most_chunks_is_told_last() {
        let (often, seldom): (Vec<u16>, Vec<u16>) =
            ((60_100..60_116).collect(), (60_200..60_216).collect());
        let tokens = extent(&[(&seldom, 9), (&often, 30)]);
        assert_eq!(
            recurring(&tokens, 128),
            [seldom.clone(), often.clone()].concat()
        );
        assert_eq!(recurring(&tokens, 31), often);
        assert!(recurring(&tokens, 15).is_empty());
    }

    #[test]
    fn nothing_is_told_of_what_comes_once_or_again_in_its_own_chunk_only() {
        assert!(recurring(&extent(&[]), 128).is_empty());
        let passage: Vec<u16> = (60_100..60_116).collect();
        assert!(recurring(&extent(&[(&passage, 1), (&passage, 1)]), 128).is_empty());
        for len in 0..40 {
            assert!(recurring(&vec![7; len], 128).is_empty(), "{len}");
        }
    }

    #[test]
    fn a_run_counts_once_in_a_passage() {
        let mut tokens = extent(&[]);
        let varied: Vec<u16> = (60_100..60_116).collect();
        for chunk in 0..30 {
            tokens[chunk * CHUNK_TOKENS..][..40].fill(60_300);
        }
        for chunk in 0..12 {
            tokens[chunk * CHUNK_TOKENS + 60..][..16].copy_from_slice(&varied);
        }
        assert_eq!(recurring(&tokens, 16), varied);
    }

    #[test]
    fn the_sliding_sum_is_that_of_each_passage() {
        let mut random = Random(3);
        let tokens: Vec<u16> = (0..900).map(|_| random.below(5) as u16).collect();
        let runs = Runs::of(&tokens);
        let sums = (0..=tokens.len() - PASSAGE).map(|start| {
            let mut numbers = runs.numbers[start..start + RUNS].to_vec();
            numbers.sort_unstable();
            numbers.dedup();
            numbers.iter().map(|&n| runs.worth[n]).sum::<usize>()
        });
        let sums: Vec<usize> = sums.collect();
        let most = *sums.iter().max().unwrap();
        let first = sums.iter().position(|&sum| sum == most).unwrap();
        assert_eq!(runs.best(), (most, first));
    }
}
