//! Byte pair encoding with the merges of a vocabulary.
//!
//! Where a token begins influences probabilities, also within anchors, which the decoder splits itself. So
//! this part of the tokenizer is written out here: no library's next version can change it.

use super::ModelError;
use super::tokenizer::{Tokenizer, WORD_MAX, words};
use super::vocabulary::Vocabulary;

/// One merge: a pair of tokens, its place in the order of merges, and what becomes of it.
#[derive(Debug, Clone, Copy)]
struct Merge {
    pair: u32,
    rank: u32,
    token: u16,
}

/// No merge: an empty slot, or a pair that does not merge.
const NONE: Merge = Merge {
    pair: 0,
    rank: u32::MAX,
    token: 0,
};

/// The merges of a vocabulary, ready to be looked up.
#[derive(Debug, Clone)]
pub struct Merges {
    /// A hash table with open addressing, at most half full.
    slots: Vec<Merge>,
    /// The token of each byte.
    bytes: [u16; 256],
}

fn slot_of(pair: u32, slots: usize) -> usize {
    (u64::from(pair).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize & (slots - 1)
}

impl Merges {
    /// The merges of a tokenizer with a sorted vocabulary.
    ///
    /// # Errors
    /// If a merge names tokens that are not there.
    pub fn new(tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> Result<Merges, ModelError> {
        let missing = || ModelError::Tokenizer("a merge of tokens that are not there".into());
        let id = |bytes: &[u8]| vocabulary.find(bytes).ok_or_else(missing);
        let merges = tokenizer.merges()?;
        let mut bytes = [0; 256];
        for (byte, token) in bytes.iter_mut().enumerate() {
            *token = id(&[byte as u8])?;
        }
        let slots = vec![NONE; (2 * merges.len()).next_power_of_two().max(2)];
        let mut found = Merges { slots, bytes };
        for (rank, (left, right)) in merges.iter().enumerate() {
            let pair = u32::from(id(left)?) << 16 | u32::from(id(right)?);
            let token = id(&[left.as_slice(), right].concat())?;
            let slot = found.slot(pair);
            found.slots[slot] = Merge {
                pair,
                rank: rank as u32,
                token,
            };
        }
        Ok(found)
    }

    /// Where a pair is, or would be.
    fn slot(&self, pair: u32) -> usize {
        let mut slot = slot_of(pair, self.slots.len());
        while self.slots[slot].rank != NONE.rank && self.slots[slot].pair != pair {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }

    fn of(&self, left: u16, right: u16) -> Merge {
        self.slots[self.slot(u32::from(left) << 16 | u32::from(right))]
    }

    /// The tokens of `bytes`: within each word the merge that was learned first is done first, and of
    /// equal ones the leftmost.
    pub fn tokens(&self, bytes: &[u8]) -> Vec<u16> {
        let mut tokens = Vec::with_capacity(bytes.len() / 3);
        let mut word: Vec<u16> = Vec::with_capacity(WORD_MAX + 1);
        let mut merges: Vec<Merge> = Vec::with_capacity(WORD_MAX + 1);
        for bytes in words(bytes) {
            word.clear();
            word.extend(bytes.iter().map(|&byte| self.bytes[usize::from(byte)]));
            merges.clear();
            merges.extend(word.windows(2).map(|pair| self.of(pair[0], pair[1])));
            // `min_by_key` takes the first of equal ones
            while let Some((at, merge)) = merges
                .iter()
                .copied()
                .enumerate()
                .min_by_key(|(_, merge)| merge.rank)
                .filter(|(_, merge)| merge.rank != NONE.rank)
            {
                word[at] = merge.token;
                word.remove(at + 1);
                merges.remove(at);
                if at > 0 {
                    merges[at - 1] = self.of(word[at - 1], word[at]);
                }
                if at + 1 < word.len() {
                    merges[at] = self.of(word[at], word[at + 1]);
                }
            }
            tokens.extend_from_slice(&word);
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let text = concat!(include_str!("../../README.md"), include_str!("merges.rs"));
        let trained = Tokenizer::train(std::iter::once(text.as_bytes()), 900);
        trained.and_then(Tokenizer::sorted).unwrap()
    });

    fn check(bytes: &[u8]) {
        let vocabulary = Vocabulary::new(&TOKENIZER).unwrap();
        let merges = Merges::new(&TOKENIZER, &vocabulary).unwrap();
        assert_eq!(merges.tokens(bytes), TOKENIZER.token_ids(bytes).unwrap());
    }

    #[test]
    fn text_is_split_as_by_the_library() {
        check(include_bytes!("tokenizer.rs"));
        check(include_bytes!("../../docs/exactness.md"));
        check(b"");
        check(&b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa         x".repeat(3));
    }

    proptest! {
        #[test]
        fn anything_is_split_as_by_the_library(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check(&bytes);
        }

        #[test]
        fn words_are_split_as_by_the_library(text in "[a-e tionr]{0,80}") {
            check(text.as_bytes());
        }
    }
}
