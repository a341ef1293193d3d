//! Sequences to train on: byte-balanced over the kinds of files, shuffled, and the same for the same seed.
//!
//! A sequence is a run of tokens of one piece of one file and starts afresh, as a group does when it is decoded; what
//! is left at the end of a piece is a shorter sequence. So files never mix, and nothing needs to be masked.

use serde::{Deserialize, Serialize};

use super::NetworkError;
use crate::model::tokenizer::Tokenizer;
use crate::train::corpus::{Corpus, Piece, Random};

/// Pieces whose sequences are shuffled together.
const POOL: usize = 64;

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
    tokenizer: &'a Tokenizer,
    /// Bytes of each token.
    widths: &'a [u32],
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
    kinds.into_iter().filter(|pieces| !pieces.is_empty()).map(shared).collect()
}

/// A generator for one purpose.
fn generator(seed: u64, kind: usize, number: u64) -> Random {
    let mut random = Random(seed ^ (kind as u64) << 48 ^ number << 16 ^ 0x5eed);
    Random(random.bits())
}

impl<'a> Source<'a> {
    /// Sequences of at most `sequence` tokens of these pieces.
    pub fn new(
        corpus: &'a Corpus,
        (tokenizer, widths): (&'a Tokenizer, &'a [u32]),
        pieces: &[Piece],
        (sequence, balance, seed): (usize, f64, u64),
    ) -> Source<'a> {
        let kinds = by_kind(corpus, pieces, balance).into_iter();
        let kinds: Vec<Kind> = kinds.map(|(pieces, share)| Kind { pieces, share, pool: None }).collect();
        let position = Position { kinds: vec![KindPosition::default(); kinds.len()] };
        Source { corpus, tokenizer, widths, kinds, sequence, seed, position }
    }

    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Goes on from where another source of the same data stood.
    ///
    /// # Errors
    /// If the position is not one of this data.
    pub fn seek(&mut self, position: Position) -> Result<(), NetworkError> {
        if position.kinds.len() != self.kinds.len() {
            return Err(NetworkError::Checkpoint("it is of other training data".into()));
        }
        self.position = position;
        Ok(())
    }

    /// Sequences of `tokens` tokens together, the last one shortened to fit.
    pub fn batch(&mut self, tokens: usize) -> Result<Vec<Vec<u16>>, NetworkError> {
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
    fn next(&mut self) -> Result<Vec<u16>, NetworkError> {
        let behind = |&kind: &usize| self.position.kinds[kind].bytes as f64 / self.kinds[kind].share;
        let kind = (0..self.kinds.len()).min_by(|a, b| behind(a).total_cmp(&behind(b)));
        let kind = kind.ok_or_else(|| NetworkError::Data("there is nothing to train on".into()))?;
        loop {
            let KindPosition { pools, given, .. } = self.position.kinds[kind];
            let sequence = self.pool(kind, pools)?.get(given).cloned();
            let position = &mut self.position.kinds[kind];
            if let Some(sequence) = sequence {
                position.given += 1;
                let bytes = sequence.iter().map(|&t| u64::from(self.widths[usize::from(t)]));
                position.bytes += bytes.sum::<u64>();
                return Ok(sequence);
            }
            position.pools += 1;
            position.given = 0;
        }
    }

    /// The shuffled sequences of a pool.
    fn pool(&mut self, index: usize, number: u64) -> Result<&[Vec<u16>], NetworkError> {
        let kind = &mut self.kinds[index];
        if kind.pool.as_ref().is_none_or(|(loaded, _)| *loaded != number) {
            let pools = kind.pieces.len().div_ceil(POOL) as u64;
            let (pass, pool) = (number / pools, (number % pools) as usize);
            let mut pieces = kind.pieces.clone();
            generator(self.seed, index, pass << 1).shuffle(&mut pieces);
            let mut sequences = Vec::new();
            for &piece in pieces.chunks(POOL).nth(pool).unwrap_or_default() {
                let tokens = self.tokenizer.token_ids(self.corpus.bytes(piece))?;
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
