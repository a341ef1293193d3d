//! Sequences to train on: byte-balanced over the kinds of files, shuffled, and the same for the same seed.
//!
//! A sequence is a run of tokens of one piece of one file and starts afresh, as a group does when it is decoded; what
//! is left at the end of a piece is a shorter sequence. So files never mix, and nothing needs to be masked.

use serde::{Deserialize, Serialize};

use super::recipe::Training;
use crate::model::ModelError;
use crate::model::tokenizer::Tokenizer;
use crate::model::vocabulary::Vocabulary;
use crate::train::corpus::{Corpus, Piece, Random};

/// Pieces whose sequences are shuffled together.
const POOL: usize = 64;

/// A vocabulary as training needs it.
#[derive(Debug)]
pub struct Language {
    pub tokenizer: Tokenizer,
    pub vocabulary: Vocabulary,
    /// Bytes of each token.
    widths: Vec<u32>,
}

impl Language {
    /// # Errors
    /// If the tokenizer's ids are not in the order of their bytes.
    pub fn new(tokenizer: Tokenizer) -> Result<Language, ModelError> {
        let vocabulary = Vocabulary::new(&tokenizer)?;
        let widths = (0..vocabulary.len())
            .map(|id| vocabulary.token(id as u16).len() as u32)
            .collect();
        Ok(Language {
            tokenizer,
            vocabulary,
            widths,
        })
    }

    /// Bytes that tokens stand for.
    pub fn bytes(&self, tokens: &[u16]) -> u64 {
        let widths = tokens.iter().map(|&token| self.widths[usize::from(token)]);
        widths.map(u64::from).sum()
    }
}

/// Where a source stands: enough to go on from there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Position {
    kinds: Vec<KindPosition>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct KindPosition {
    /// Pools that have been used up, over all passes.
    pools: u64,
    /// Sequences of the pool in use that have been given.
    given: usize,
    /// Bytes of all sequences that have been given.
    bytes: u64,
}

/// The pieces of one kind of file.
#[derive(Debug)]
struct Kind {
    pieces: Vec<Piece>,
    /// Share of the bytes to give; only ratios matter.
    share: f64,
    /// Number of the pool that is loaded, and its sequences.
    pool: Option<(u64, Vec<Vec<u16>>)>,
}

/// Gives sequences without end.
#[derive(Debug)]
pub struct Source<'a> {
    corpus: &'a Corpus,
    language: &'a Language,
    kinds: Vec<Kind>,
    sequence: usize,
    seed: u64,
    position: Position,
}

/// The pieces by kind, and the share of bytes that each kind gets: equal shares, but no kind is read more than
/// `balance` times as often as the largest one.
pub fn by_kind(corpus: &Corpus, pieces: &[Piece], balance: f64) -> Vec<(Vec<Piece>, f64)> {
    let mut kinds: Vec<Vec<Piece>> = Vec::new();
    for &piece in pieces {
        let kind = corpus.kind(piece.file);
        kinds.resize_with(kinds.len().max(kind + 1), Vec::new);
        kinds[kind].push(piece);
    }
    let bytes = |pieces: &Vec<Piece>| pieces.iter().map(|p| f64::from(p.len)).sum::<f64>();
    let largest = kinds.iter().map(bytes).fold(0.0, f64::max);
    let shared = |pieces: Vec<Piece>| {
        let share = largest.min(balance * bytes(&pieces));
        (pieces, share)
    };
    kinds
        .into_iter()
        .filter(|pieces| !pieces.is_empty())
        .map(shared)
        .collect()
}

/// A generator for one purpose.
fn generator(seed: u64, kind: usize, number: u64) -> Random {
    let mut random = Random(seed ^ (kind as u64) << 48 ^ number << 16 ^ 0x5eed);
    Random(random.bits())
}

impl<'a> Source<'a> {
    /// Sequences of these pieces as the recipe wants them. None if there are no pieces.
    pub fn new(
        corpus: &'a Corpus,
        language: &'a Language,
        pieces: &[Piece],
        training: &Training,
    ) -> Option<Source<'a>> {
        let kinds = by_kind(corpus, pieces, training.balance).into_iter();
        let kinds: Vec<Kind> = kinds
            .map(|(pieces, share)| Kind {
                pieces,
                share,
                pool: None,
            })
            .collect();
        let position = Position {
            kinds: vec![KindPosition::default(); kinds.len()],
        };
        (!kinds.is_empty()).then_some(Source {
            corpus,
            language,
            kinds,
            sequence: training.sequence,
            seed: training.seed,
            position,
        })
    }

    /// Where the next batch begins.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Goes on from where another source of the same data stood; false if it was one of other data.
    #[must_use]
    pub fn seek(&mut self, position: Position) -> bool {
        let fits = position.kinds.len() == self.kinds.len();
        if fits {
            self.position = position;
        }
        fits
    }

    /// Sequences of `tokens` tokens together, the last one shortened to fit.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn batch(&mut self, tokens: usize) -> Result<Vec<Vec<u16>>, ModelError> {
        let (mut batch, mut left) = (Vec::new(), tokens);
        while left > 0 {
            let mut sequence = self.next()?;
            sequence.truncate(left);
            left -= sequence.len();
            batch.push(sequence);
        }
        Ok(batch)
    }

    /// The next sequence, of the kind that is farthest behind its share.
    fn next(&mut self) -> Result<Vec<u16>, ModelError> {
        let behind =
            |&kind: &usize| self.position.kinds[kind].bytes as f64 / self.kinds[kind].share;
        let kinds = 0..self.kinds.len();
        let kind = kinds.min_by(|a, b| behind(a).total_cmp(&behind(b)));
        // there is a kind, and each has a token
        let kind = kind.unwrap_or_default();
        loop {
            let KindPosition { pools, given, .. } = self.position.kinds[kind];
            let sequence = self.pool(kind, pools)?.get(given).cloned();
            let position = &mut self.position.kinds[kind];
            if let Some(sequence) = sequence {
                position.given += 1;
                position.bytes += self.language.bytes(&sequence);
                return Ok(sequence);
            }
            position.pools += 1;
            position.given = 0;
        }
    }

    /// The shuffled sequences of a pool.
    fn pool(&mut self, index: usize, number: u64) -> Result<&[Vec<u16>], ModelError> {
        let kind = &mut self.kinds[index];
        if kind
            .pool
            .as_ref()
            .is_none_or(|(loaded, _)| *loaded != number)
        {
            let pools = kind.pieces.len().div_ceil(POOL) as u64;
            let (pass, pool) = (number / pools, (number % pools) as usize);
            let mut pieces = kind.pieces.clone();
            generator(self.seed, index, pass << 1).shuffle(&mut pieces);
            let mut sequences = Vec::new();
            for &piece in pieces.chunks(POOL).nth(pool).unwrap_or_default() {
                let tokens = self
                    .language
                    .tokenizer
                    .token_ids(self.corpus.bytes(piece))?;
                sequences.extend(tokens.chunks(self.sequence).map(<[u16]>::to_vec));
            }
            generator(self.seed, index, number << 1 | 1).shuffle(&mut sequences);
            kind.pool = Some((number, sequences));
        }
        Ok(kind.pool.as_ref().map_or(&[], |(_, sequences)| sequences))
    }
}

/// A byte-balanced sample of pieces of about `bytes` bytes in all.
pub fn sample(corpus: &Corpus, pieces: &[Piece], balance: f64, bytes: usize) -> Vec<Piece> {
    let kinds = by_kind(corpus, pieces, balance);
    let total: f64 = kinds.iter().map(|(_, share)| share).sum();
    let mut sample = Vec::new();
    for (pieces, share) in kinds {
        let mut left = (bytes as f64 * share / total) as i64;
        for piece in pieces {
            if left <= 0 {
                break;
            }
            left -= i64::from(piece.len);
            sample.push(piece);
        }
    }
    sample
}
