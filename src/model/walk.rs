//! The walk from the start of a token to its end, one binary decision after the other.
//!
//! The encoder and the decoder walk the same way: what there is to decide depends only on the vocabulary and
//! on the decisions before. Above the classes of the factored head, the odds of a decision come from the
//! masses of the classes; below, from the masses of the tokens of one class, which are asked for only
//! when a walk gets there.

use super::ModelError;
use super::masses::Masses;
use super::network::{Config, Engine};
use super::vocabulary::{DECISIONS, Vocabulary};

/// The tokens that are still possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    low: u32,
    high: u32,
    /// The fork of this range, if it has two tokens or more.
    fork: u32,
}

/// What a decision is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// All tokens of the range agree.
    Forced(u32),
    /// 1 leads to the tokens from this one on.
    Open(u16),
}

impl Walk {
    /// All tokens.
    pub fn new(vocabulary: &Vocabulary) -> Walk {
        Walk {
            low: 0,
            high: vocabulary.len() as u32,
            fork: 0,
        }
    }

    /// The first of the tokens that are still possible: the only one at the end of the walk, and the one
    /// that ends where the bytes so far are a token.
    #[inline]
    pub fn token(&self) -> u16 {
        self.low as u16
    }

    /// Number of the tokens that are still possible.
    #[inline]
    pub fn count(&self) -> usize {
        (self.high - self.low) as usize
    }

    /// The next decision behind `bytes` bytes: step 0 is whether the token goes on, steps 1 to 8 are the bits
    /// of its next byte, the highest first. Decisions must be taken in order.
    #[inline]
    pub fn next(&self, vocabulary: &Vocabulary, bytes: usize, step: usize) -> Next {
        if self.count() > 1 {
            let fork = vocabulary.forks()[self.fork as usize];
            if usize::from(fork.decision) == bytes * DECISIONS + step {
                return Next::Open(fork.middle);
            }
        }
        let token = vocabulary.token(self.low as u16);
        Next::Forced(match step {
            0 => u32::from(token.len() > bytes),
            _ => token
                .get(bytes)
                .map_or(0, |byte| u32::from(byte >> (8 - step) & 1)),
        })
    }

    /// Takes a branch of an open decision.
    #[inline]
    pub fn take(&mut self, middle: u16, bit: u32) {
        let middle = u32::from(middle);
        if bit == 0 {
            self.high = middle;
            self.fork += 1;
        } else {
            // behind the fork itself and the forks of the lower part
            self.fork += middle - self.low;
            self.low = middle;
        }
    }

    /// True if some token that goes on behind `bytes` bytes has `byte` next.
    pub fn may_go_on_with(&self, vocabulary: &Vocabulary, bytes: usize, byte: u8) -> bool {
        let next = |id: u32| vocabulary.token(id as u16).get(bytes).copied();
        let (mut low, mut high) = (self.low, self.high);
        while low < high {
            let middle = low + (high - low) / 2;
            // a token that ends here comes before all others
            match next(middle) {
                Some(found) if found >= byte => high = middle,
                _ => low = middle + 1,
            }
        }
        low < self.high && next(low) == Some(byte)
    }
}

/// How the classes of a factored head divide a vocabulary.
#[derive(Debug, Clone)]
pub struct Division {
    /// The first token of each class, and the number of tokens.
    starts: Vec<u32>,
    class_of: Vec<u16>,
}

impl Division {
    /// The division by the classes of a network's configuration.
    ///
    /// # Errors
    /// If the network is for another number of tokens, or a class is not what some decisions leave.
    pub fn new(vocabulary: &Vocabulary, config: &Config) -> Result<Division, ModelError> {
        if config.vocab_size != vocabulary.len() {
            let sizes = (config.vocab_size, vocabulary.len());
            let why = format!("{} tokens for a vocabulary of {}", sizes.0, sizes.1);
            return Err(ModelError::Damaged(format!("network: {why}")));
        }
        let mut starts: Vec<u32> = config.classes.iter().map(|&c| u32::from(c)).collect();
        starts.push(vocabulary.len() as u32);
        let mut class_of = Vec::with_capacity(vocabulary.len());
        for (class, pair) in starts.windows(2).enumerate() {
            class_of.resize(pair[1] as usize, class as u16);
        }
        let division = Division { starts, class_of };
        division.check(vocabulary)?;
        Ok(division)
    }

    /// Every node must be a union of classes or within one.
    fn check(&self, vocabulary: &Vocabulary) -> Result<(), ModelError> {
        let mut nodes = vec![Walk::new(vocabulary)];
        while let Some(walk) = nodes.pop() {
            if self.class_of[walk.low as usize] == self.class_of[walk.high as usize - 1] {
                continue;
            }
            let middle = vocabulary.forks()[walk.fork as usize].middle;
            if self.class_of[usize::from(middle)] == self.class_of[usize::from(middle) - 1] {
                let why = "network: a class is not a part of the vocabulary's trie";
                return Err(ModelError::Damaged(why.into()));
            }
            for bit in 0..2 {
                let mut part = walk;
                part.take(middle, bit);
                nodes.push(part);
            }
        }
        Ok(())
    }
}

/// What the network says about one token: masses of classes, and of the tokens of the class that the walk
/// is in.
#[derive(Debug, Clone, Default)]
pub struct Opinion {
    classes: Masses,
    tokens: Masses,
    /// The class whose tokens have masses.
    class: Option<u16>,
}

impl Opinion {
    /// Starts a token: evaluates the class head on its hidden row.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn start(&mut self, engine: &dyn Engine, row: &[i8]) -> Result<(), ModelError> {
        self.classes.fill(&engine.class_logits(row)?);
        self.class = None;
        Ok(())
    }

    /// Log-odds of the upper branch of an open decision; evaluates the token head if need be.
    ///
    /// # Errors
    /// Those of the engine.
    #[inline]
    pub fn odds(
        &mut self,
        engine: &dyn Engine,
        row: &[i8],
        division: &Division,
        walk: &Walk,
        middle: u16,
    ) -> Result<i32, ModelError> {
        let middle = usize::from(middle);
        let (low, last) = (walk.low as usize, walk.high as usize - 1);
        let (first, class) = (division.class_of[low], division.class_of[last]);
        if first != class {
            let upper = usize::from(division.class_of[middle]);
            return Ok(self
                .classes
                .odds(usize::from(first), upper, usize::from(class) + 1));
        }
        if self.class != Some(class) {
            self.tokens
                .fill(&engine.token_logits(row, usize::from(class))?);
            self.class = Some(class);
        }
        let start = division.starts[usize::from(class)] as usize;
        Ok(self
            .tokens
            .odds(low - start, middle - start, last + 1 - start))
    }
}
