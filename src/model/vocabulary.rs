//! The vocabulary of a network: tokens in the order of their bytes, as a binary trie.
//!
//! With the tokens sorted, those that begin with some bytes are one contiguous range of ids, and so are
//! those that begin with some bytes and some bits of the next one. A token is found by deciding, in
//! front of every byte but the first, whether it ends here, and then bit by bit what the byte is. Where
//! all tokens of the range agree there is nothing to decide; the other decisions are the inner nodes of a
//! binary tree whose leaves are the tokens.

use std::cmp::Ordering;
use std::ops::Range;

use super::ModelError;
use super::tokenizer::Tokenizer;

/// Most bytes of a token.
pub const TOKEN_BYTES_MAX: usize = 255;
/// Tokens are coded in 16 bits.
const VOCAB_MAX: usize = 1 << 16;
/// Decisions in front of and within a byte: whether the token ends, then eight bits.
pub const DECISIONS: usize = 9;

/// Where the tokens of a range part: the first id of the upper part, and the decision that parts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// First token of those that go on, or whose bit is 1.
    pub middle: u16,
    /// [`DECISIONS`] * number of bytes before + 0 for the end of the token, 1..=8 for a bit.
    pub decision: u16,
}

/// Tokens sorted by their bytes, ready to be walked.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// All tokens, one behind the other.
    bytes: Vec<u8>,
    /// Where each token begins in `bytes`, and the end of the last.
    starts: Vec<u32>,
    /// The inner nodes in preorder: a range of n tokens has n - 1 of them, one behind the other.
    forks: Vec<Fork>,
}

fn refuse<T>(why: &str) -> Result<T, ModelError> {
    Err(ModelError::Tokenizer(why.into()))
}

impl Vocabulary {
    /// The vocabulary of a tokenizer whose ids are sorted (see [`Tokenizer::sorted`]).
    ///
    /// # Errors
    /// If the ids are not the ranks of the tokens sorted by their bytes, or if there are too many tokens
    /// or too long ones.
    pub fn new(tokenizer: &Tokenizer) -> Result<Vocabulary, ModelError> {
        Vocabulary::of_tokens(&tokenizer.tokens()?)
    }

    /// The vocabulary of these tokens, which must be sorted, different and not empty, with every single
    /// byte among them.
    ///
    /// # Errors
    /// If they are not.
    pub fn of_tokens(tokens: &[Vec<u8>]) -> Result<Vocabulary, ModelError> {
        if !(2..=VOCAB_MAX).contains(&tokens.len()) {
            return refuse("a network needs 2 to 65,536 tokens");
        }
        if tokens.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse("the ids are not in the order of the tokens' bytes");
        }
        if tokens
            .iter()
            .any(|token| !(1..=TOKEN_BYTES_MAX).contains(&token.len()))
        {
            return refuse("a token has no bytes or more than 255");
        }
        if tokens.iter().filter(|token| token.len() == 1).count() != 256 {
            return refuse("not every byte is a token");
        }
        let mut starts = vec![0];
        let mut bytes = Vec::new();
        for token in tokens {
            bytes.extend_from_slice(token);
            starts.push(bytes.len() as u32);
        }
        let mut vocabulary = Vocabulary {
            bytes,
            starts,
            forks: Vec::with_capacity(tokens.len() - 1),
        };
        vocabulary.plant(0..tokens.len());
        Ok(vocabulary)
    }

    /// Appends the forks of a range of tokens in preorder.
    fn plant(&mut self, all: Range<usize>) {
        // a list of its own instead of recursion: long tokens make deep trees
        let mut ranges = vec![all];
        while let Some(range) = ranges.pop() {
            if range.len() < 2 {
                continue;
            }
            let fork = self.fork_of(&range);
            self.forks.push(fork);
            let middle = usize::from(fork.middle);
            ranges.push(middle..range.end);
            ranges.push(range.start..middle);
        }
    }

    /// The first decision on which the tokens of a range differ; the range has at least two.
    fn fork_of(&self, range: &Range<usize>) -> Fork {
        // sorted, so what the first and the last share is shared by all
        let (first, last) = (
            self.token(range.start as u16),
            self.token((range.end - 1) as u16),
        );
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let before = (shared * DECISIONS) as u16;
        let Some(&low) = first.get(shared) else {
            return Fork {
                middle: (range.start + 1) as u16,
                decision: before,
            };
        };
        let bit = (low ^ last[shared]).leading_zeros() as u16;
        let mask = 0x80u8 >> bit;
        let is_low = |id: &usize| self.token(*id as u16)[shared] & mask == 0;
        let middle = range.start + range.clone().take_while(is_low).count();
        Fork {
            middle: middle as u16,
            decision: before + 1 + bit,
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// False: every byte is a token.
    pub fn is_empty(&self) -> bool {
        self.starts.len() == 1
    }

    /// The bytes of a token, which must exist.
    #[inline]
    pub fn token(&self, id: u16) -> &[u8] {
        let id = usize::from(id);
        &self.bytes[self.starts[id] as usize..self.starts[id + 1] as usize]
    }

    /// The token with these bytes.
    pub fn find(&self, bytes: &[u8]) -> Option<u16> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.token(middle as u16).cmp(bytes) {
                Ordering::Equal => return Some(middle as u16),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The forks in preorder: the fork of all tokens comes first; the lower part of a fork's range, if it
    /// has two tokens or more, has its fork next, and the upper part after the forks of the lower part.
    #[inline]
    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }

    /// The first token of every class: the fewest subtrees of at most `most` tokens each that hold all
    /// tokens.
    ///
    /// Every class is a range of tokens that some run of decisions leaves, so that a walk is first among
    /// whole classes and then within one.
    pub fn classes(&self, most: usize) -> Vec<u16> {
        let mut classes = Vec::new();
        let mut nodes = vec![(0..self.len(), 0usize)];
        while let Some((range, fork)) = nodes.pop() {
            if range.len() <= most.max(1) {
                classes.push(range.start as u16);
                continue;
            }
            let middle = usize::from(self.forks[fork].middle);
            nodes.push((middle..range.end, fork + middle - range.start));
            nodes.push((range.start..middle, fork + 1));
        }
        classes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All bytes and `more` tokens, sorted.
    fn tokens(more: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.extend(more);
        tokens.sort();
        tokens.dedup();
        tokens
    }

    /// A fork as the definition has it: goes through the decisions until two tokens differ.
    fn fork_by_definition(tokens: &[Vec<u8>], range: Range<usize>) -> Fork {
        for decision in 0.. {
            let (byte, step) = (decision / DECISIONS, decision % DECISIONS);
            let outcome = |id: &usize| match step {
                0 => tokens[*id].len() > byte,
                bit => tokens[*id][byte] >> (8 - bit) & 1 == 1,
            };
            let upper: Vec<usize> = range.clone().filter(outcome).collect();
            if !upper.is_empty() && upper.len() < range.len() {
                assert_eq!(upper, (upper[0]..range.end).collect::<Vec<_>>());
                return Fork {
                    middle: upper[0] as u16,
                    decision: decision as u16,
                };
            }
        }
        unreachable!("tokens differ somewhere")
    }

    fn check_forks(tokens: &[Vec<u8>], vocabulary: &Vocabulary, range: Range<usize>, fork: usize) {
        if range.len() < 2 {
            return;
        }
        let expected = fork_by_definition(tokens, range.clone());
        assert_eq!(vocabulary.forks()[fork], expected, "{range:?}");
        let middle = usize::from(expected.middle);
        check_forks(tokens, vocabulary, range.start..middle, fork + 1);
        let upper = fork + middle - range.start;
        check_forks(tokens, vocabulary, middle..range.end, upper);
    }

    fn more_tokens() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let few = prop::collection::vec(prop::sample::select(vec![0u8, 1, 97, 98, 255]), 1..9);
        prop::collection::vec(few, 0..200)
    }

    proptest! {
        #[test]
        fn forks_are_the_decisions_on_which_tokens_differ(more in more_tokens()) {
            let tokens = tokens(more);
            let vocabulary = Vocabulary::of_tokens(&tokens).unwrap();
            prop_assert_eq!(vocabulary.forks().len(), tokens.len() - 1);
            check_forks(&tokens, &vocabulary, 0..tokens.len(), 0);
        }

        #[test]
        fn every_node_is_a_union_of_classes_or_inside_one(more in more_tokens(), most in 1usize..80) {
            let tokens = tokens(more);
            let vocabulary = Vocabulary::of_tokens(&tokens).unwrap();
            let classes = vocabulary.classes(most);
            prop_assert!(classes[0] == 0 && classes.windows(2).all(|pair| pair[0] < pair[1]));
            let end_of = |class: usize| classes.get(class + 1).map_or(tokens.len(), |&c| c.into());
            for (class, &first) in classes.iter().enumerate() {
                prop_assert!(end_of(class) - usize::from(first) <= most);
            }
            let mut nodes = vec![(0..tokens.len(), 0usize)];
            while let Some((range, fork)) = nodes.pop() {
                let class = classes.partition_point(|&c| usize::from(c) <= range.start) - 1;
                let is_boundary = |at: usize| at == tokens.len() || classes.contains(&(at as u16));
                let union = is_boundary(range.start) && is_boundary(range.end);
                prop_assert!(union || range.end <= end_of(class), "{:?}", range);
                if range.len() > 1 {
                    let middle = usize::from(vocabulary.forks()[fork].middle);
                    nodes.push((middle..range.end, fork + middle - range.start));
                    nodes.push((range.start..middle, fork + 1));
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_sorted_vocabulary_is_refused() {
        let good = tokens([b"ab".to_vec()]);
        assert!(Vocabulary::of_tokens(&good).is_ok());
        let mut unsorted = good.clone();
        unsorted.swap(3, 4);
        let mut lacking = good.clone();
        lacking.remove(7);
        let long = tokens([vec![b'x'; 256]]);
        let twice = [good.clone(), good[good.len() - 1..].to_vec()].concat();
        for bad in [unsorted, lacking, long, twice, vec![], vec![vec![]]] {
            assert!(Vocabulary::of_tokens(&bad).is_err());
        }
    }

    #[test]
    fn sorting_a_tokenizer_changes_ids_and_nothing_else() {
        let text = include_bytes!("../../README.md");
        let trained = Tokenizer::train(std::iter::once(text.as_slice()), 500).unwrap();
        assert!(
            Vocabulary::new(&trained).is_err(),
            "trained ids are not sorted"
        );
        let lengths = trained.token_lengths(text).unwrap();
        let sorted = trained.sorted().unwrap();
        assert_eq!(sorted.token_lengths(text).unwrap(), lengths);
        let vocabulary = Vocabulary::new(&sorted).unwrap();
        let ids = sorted.token_ids(text).unwrap();
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| vocabulary.token(id))
            .copied()
            .collect();
        assert_eq!(bytes, text);
        assert!(
            ids.iter()
                .zip(&lengths)
                .all(|(&id, &len)| vocabulary.token(id).len() == len as usize)
        );
        let again = Tokenizer::from_json(&sorted.to_json().unwrap()).unwrap();
        assert_eq!(again.token_ids(text).unwrap(), ids);
        assert_eq!(again.sorted().unwrap().token_ids(text).unwrap(), ids);
    }
}
