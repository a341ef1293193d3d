//! Groups of a model with a network: encoding with the rows of the teacher-forced path, decoding step by
//! step.

use std::sync::Arc;

use crate::model::Model;
use crate::model::network::{Engine, Memory, Sequence};
use crate::model::predictor::{BitCoder, State};
use crate::model::tokens::{Counts, Position, Tokens};

use super::engines::Evaluator;
use super::model_codec::{Cut, Grouping, SPAN, model_error, span_check, start_state};
use super::payload::Layout;
use super::range_coder::Decoder;
use super::{CodecError, Result, Snapshot};

/// Tokens that a step shows the network at most, so that a group that goes on in another place does not
/// hold up those beside it.
const STEP_TOKENS: usize = 256;

/// The tokens of some bytes and the hidden rows that predict them.
pub(super) struct Predicted {
    tokens: Vec<u16>,
    rows: Vec<i8>,
}

/// Cuts an extent into groups, each with its tokens.
pub(super) fn cut(model: &Model, raw: &[u8], grouping: Grouping) -> Result<Vec<(Cut, Vec<u16>)>> {
    let (most, group) = grouping.limits();
    let expert = model.expert().map_err(model_error)?;
    let mut cuts: Vec<(Cut, Vec<u16>)> = Vec::new();
    for chunk in expert.merges.tokens(raw).chunks(most) {
        let len = chunk
            .iter()
            .map(|&token| expert.vocabulary.token(token).len())
            .sum();
        match cuts.last_mut() {
            Some((cut, tokens)) if cut.len + len <= group => {
                cut.len += len;
                cut.chunks += 1;
                tokens.extend_from_slice(chunk);
            }
            _ => cuts.push((Cut { len, chunks: 1 }, chunk.to_vec())),
        }
    }
    Ok(cuts)
}

/// The hidden rows of token strings, each a stream of its own; `memory` gives what the encoder made of the latents
/// of each.
pub(super) fn predict<'a>(
    evaluator: &Evaluator,
    strings: Vec<Vec<u16>>,
    memory: impl Fn(usize) -> &'a Memory,
) -> Result<Vec<Predicted>> {
    let sequence = |(index, tokens)| Sequence {
        tokens,
        memory: memory(index),
    };
    let each = strings.iter().map(Vec::as_slice).enumerate();
    let sequences: Vec<Sequence> = each.map(sequence).collect();
    let rows = evaluator.hidden(&sequences).map_err(model_error)?;
    let pairs = strings.into_iter().zip(rows);
    Ok(pairs
        .map(|(tokens, rows)| Predicted { tokens, rows })
        .collect())
}

/// The tokens and hidden rows of bytes that are a group of their own.
pub(super) fn predict_bytes(
    model: &Model,
    evaluator: &Evaluator,
    bytes: &[u8],
) -> Result<Predicted> {
    let expert = model.expert().map_err(model_error)?;
    let memory = Memory::default();
    let mut found = predict(evaluator, vec![expert.merges.tokens(bytes)], |_| &memory)?;
    found
        .pop()
        .ok_or_else(|| CodecError::Damaged("the engine made no rows".into()))
}

/// Codes a group of `len` bytes that starts from `state`.
pub(super) fn code(
    model: &Model,
    engine: &dyn Engine,
    predicted: &Predicted,
    len: usize,
    state: impl FnOnce() -> State,
    coder: &mut impl BitCoder,
) -> Result<Counts> {
    let mut tokens = Tokens::new(model, state).map_err(model_error)?;
    let group = (&predicted.tokens[..], &predicted.rows[..]);
    let coded = tokens.group(coder, engine, group, len);
    coded.map_err(model_error)?;
    Ok(tokens.counts())
}

/// What a group needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// A step of the network over [`GroupDecoder::pending`], and its hidden row.
    Step,
    /// Nothing: the group has ended, or its sink wants no more.
    Done,
}

/// A group that is decoded token by token. Whoever drives it evaluates the network's steps, alone or together
/// with those of other groups.
pub(super) struct GroupDecoder {
    tokens: Tokens<Arc<Model>>,
    decoder: Decoder<Vec<u8>>,
    /// The checksums of the spans that are not complete yet, the next one last.
    checks: Vec<u16>,
    span: Vec<u8>,
    /// Bytes that are left in the group.
    left: usize,
    /// All tokens so far, and how many of them the network has seen.
    known: Vec<u16>,
    seen: usize,
    /// What the encoder made of the group's latents.
    memory: Memory,
    group: usize,
}

impl GroupDecoder {
    /// Starts a group of a payload; `snapshot` is the state after its anchor, if it has one, and `encoder` reads its
    /// latents.
    pub fn start(
        model: &Arc<Model>,
        encoder: &dyn Engine,
        payload: &[u8],
        layout: &Layout,
        group: usize,
        snapshot: Option<&Snapshot>,
    ) -> Result<Box<GroupDecoder>> {
        let left = layout.groups[group].len();
        let part = &layout.parts[group];
        let checks = payload[part.checks.clone()].as_chunks::<2>().0.iter();
        let (latents, memory) = match &layout.latents {
            None => Default::default(),
            Some(latents) => {
                let place = (group, layout.groups.len());
                let bytes = &payload[latents.clone()];
                layout.reading.of_group(model, encoder, bytes, place)?
            }
        };
        let state = || start_state(model, left, snapshot, &latents);
        Ok(Box::new(GroupDecoder {
            tokens: Tokens::new(model.clone(), state).map_err(model_error)?,
            decoder: Decoder::new(payload[part.code.clone()].to_vec()),
            checks: checks
                .rev()
                .map(|&check| u16::from_le_bytes(check))
                .collect(),
            span: Vec::with_capacity(SPAN.min(left)),
            left,
            known: Vec::new(),
            seen: 0,
            memory,
            group,
        }))
    }

    /// What every position attends to.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The tokens that the network's next step sees.
    pub fn pending(&self) -> &[u16] {
        let unseen = &self.known[self.seen..];
        &unseen[..unseen.len().min(STEP_TOKENS)]
    }

    /// Shows the network everything again, because it goes on in another place.
    pub fn rewind(&mut self) {
        self.seen = 0;
    }

    /// Decodes tokens as far as the network is not needed; before the first step.
    pub fn begin(
        &mut self,
        engine: &dyn Engine,
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Progress> {
        while !self.tokens.needs_row() {
            if self.token(engine, &[], sink)? == Progress::Done {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Step)
    }

    /// Takes the hidden row of a step, and decodes as far as it leads; `sink` gets verified spans in order until
    /// it returns false.
    pub fn advance(
        &mut self,
        engine: &dyn Engine,
        row: &[i8],
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Progress> {
        self.seen += self.pending().len();
        if self.seen < self.known.len() {
            return Ok(Progress::Step);
        }
        match self.token(engine, row, sink)? {
            Progress::Step => self.begin(engine, sink),
            Progress::Done => Ok(Progress::Done),
        }
    }

    fn token(
        &mut self,
        engine: &dyn Engine,
        row: &[i8],
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Progress> {
        if self.left == 0 {
            return Ok(Progress::Done);
        }
        let position = Position {
            row,
            left: self.left,
            token: None,
        };
        let token = self.tokens.token(&mut self.decoder, engine, position);
        self.known.push(token.map_err(model_error)?);
        self.left -= self.tokens.bytes().len();
        self.span.extend_from_slice(self.tokens.bytes());
        // a token has at most 255 bytes, so it completes at most one span, and the last one perhaps
        while self.span.len() >= SPAN || (self.left == 0 && !self.span.is_empty()) {
            let rest = self.span.split_off(SPAN.min(self.span.len()));
            let span = std::mem::replace(&mut self.span, rest);
            if self.checks.pop() != Some(span_check(&span)) {
                let group = self.group;
                let why = format!("checksum of decoded bytes in group {group}");
                return Err(CodecError::Damaged(why));
            }
            if !sink(&span) {
                return Ok(Progress::Done);
            }
        }
        Ok(match self.left {
            0 => Progress::Done,
            _ => Progress::Step,
        })
    }
}
