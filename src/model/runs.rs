//! Runs: where a match is nearly sure of the next byte, that byte is one decision, and the other experts are asked only if it
//! does not come. So what repeats itself is coded many times as fast.
//!
//! Every byte of a group remembers what came of the match that foresaw it. A later match that points to this byte then tells
//! the columns that change from those that do not, as in the lines of a log.

use super::ModelError;
use super::bytecode::kind_of;
use super::file::damaged;
use super::matcher::LENGTH_BUCKETS;

/// Probabilities that what a match foresees comes: by the length class of the match, what came of the byte in front, what
/// came of the byte that the match points to, what the other match expert says, and the kind of byte.
pub const RUN_SLOTS: usize = LENGTH_BUCKETS << 9;
/// What an untrained probability is.
const UNTRAINED: u16 = 60_000;
/// Most and fewest bytes that a match must have.
const LEASTS: std::ops::RangeInclusive<u8> = 3..=32;

/// What came of the match that foresaw a byte.
const WRONG: u8 = 0;
/// There was no match.
const NONE: u8 = 1;
const RIGHT: u8 = 2;
/// Right, as it was for the byte that the match pointed to.
const ALWAYS: u8 = 3;

/// When a byte is a single decision; part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    /// Least probability that what is foreseen comes, in units of 2^-16.
    pub sure: u16,
    /// Least lengths of the matches that the match experts look for.
    pub leasts: [u8; 2],
}

impl Runs {
    /// What shipped models use. Surer is slower and smaller; measured in docs/benchmarks.md.
    pub const USUAL: Runs = Runs {
        sure: 64_000,
        leasts: [5, 20],
    };

    /// Probabilities to be trained.
    pub fn untrained() -> Vec<u16> {
        vec![UNTRAINED; RUN_SLOTS]
    }

    pub(super) fn to_bytes(self, probabilities: &[u16]) -> Vec<u8> {
        let mut out = self.sure.to_le_bytes().to_vec();
        out.extend(self.leasts);
        out.extend(probabilities.iter().flat_map(|p| p.to_le_bytes()));
        out
    }

    /// The inverse of [`Runs::to_bytes`].
    pub(super) fn from_bytes(section: &[u8]) -> Result<(Runs, Vec<u16>), ModelError> {
        let Some((&[a, b, c, d], probabilities)) = section.split_first_chunk() else {
            return Err(damaged("runs are cut short"));
        };
        let (words, []) = probabilities.as_chunks::<2>() else {
            return Err(damaged("runs have the wrong size"));
        };
        let runs = Runs {
            sure: u16::from_le_bytes([a, b]),
            leasts: [c, d],
        };
        if words.len() != RUN_SLOTS || runs.leasts.iter().any(|least| !LEASTS.contains(least)) {
            return Err(damaged("runs of a kind that does not exist"));
        }
        // a decision that costs no code could not be decoded
        let probabilities = words.iter().map(|&word| u16::from_le_bytes(word).max(1));
        Ok((runs, probabilities.collect()))
    }
}

/// A byte that a match foresees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Foreseen {
    pub byte: u8,
    /// Where the probability is that it comes, below [`RUN_SLOTS`].
    pub slot: usize,
    /// What is remembered of the byte if it comes.
    right: u8,
}

/// What came of the matches of a group, byte by byte.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcomes(Vec<u8>);

impl Outcomes {
    /// Memory in bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// What a match of this length class foresees that points to the byte at `at`, which is `byte`; `other` is what the other
    /// match expert foresees.
    #[inline(always)]
    pub fn foresee(&self, byte: u8, at: usize, length: usize, other: Option<u8>) -> Foreseen {
        let before = self.0.get(at).copied().unwrap_or(NONE);
        let last = self.0.last().copied().unwrap_or(NONE);
        let agrees = match other {
            None => 0,
            Some(other) => 1 + usize::from(other == byte),
        };
        let slot = (length % LENGTH_BUCKETS) << 9 | usize::from(last) << 7;
        Foreseen {
            byte,
            slot: slot | usize::from(before) << 5 | agrees << 3 | usize::from(kind_of(byte)),
            right: if before >= RIGHT { ALWAYS } else { RIGHT },
        }
    }

    /// Remembers what came of what was foreseen.
    #[inline(always)]
    pub fn push(&mut self, foreseen: Option<Foreseen>, byte: u8) {
        self.0.push(match foreseen {
            None => NONE,
            Some(foreseen) if foreseen.byte == byte => foreseen.right,
            Some(_) => WRONG,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_of_runs_is_read_as_it_was_written() {
        let mut probabilities = Runs::untrained();
        probabilities[77] = 5;
        let bytes = Runs::USUAL.to_bytes(&probabilities);
        assert_eq!(
            Runs::from_bytes(&bytes).unwrap(),
            (Runs::USUAL, probabilities)
        );
        for wrong in [&bytes[..3], &bytes[..bytes.len() - 1], &bytes[..100], &[]] {
            assert!(Runs::from_bytes(wrong).is_err());
        }
        for least in [0, 2, 33] {
            let mut wrong = bytes.clone();
            wrong[3] = least;
            assert!(Runs::from_bytes(&wrong).is_err(), "{least}");
        }
    }

    #[test]
    fn a_byte_remembers_what_came_of_its_match() {
        let mut outcomes = Outcomes::default();
        outcomes.push(None, b'a');
        for (at, right) in [(0, RIGHT), (1, ALWAYS), (2, ALWAYS)] {
            let foreseen = outcomes.foresee(b'a', at, 3, None);
            outcomes.push(Some(foreseen), b'a');
            assert_eq!(outcomes.0.last(), Some(&right));
        }
        let foreseen = outcomes.foresee(b'a', 3, 3, None);
        outcomes.push(Some(foreseen), b'b');
        assert_eq!(outcomes.0, [NONE, RIGHT, ALWAYS, ALWAYS, WRONG]);
    }

    #[test]
    fn every_match_has_a_probability_of_its_own_kind() {
        let mut outcomes = Outcomes::default();
        let mut seen = std::collections::HashSet::new();
        for last in [WRONG, NONE, RIGHT, ALWAYS] {
            outcomes.0 = vec![WRONG, NONE, RIGHT, ALWAYS, last];
            for (at, length) in (0..4).flat_map(|at| (0..LENGTH_BUCKETS).map(move |n| (at, n))) {
                for other in [None, Some(b'x'), Some(b'a')] {
                    let slot = outcomes.foresee(b'a', at, length, other).slot;
                    assert!(slot < RUN_SLOTS && seen.insert(slot));
                }
            }
        }
    }
}
