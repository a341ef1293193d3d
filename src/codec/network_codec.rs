//! Groups of a model with a network: encoding with the rows of the teacher-forced path, decoding step by
//! step, alone or in lockstep with other groups.

use std::sync::Arc;

use crate::model::network::{Batch, Engine, Memory, Sequence, Step};
use crate::model::predictor::{BitCoder, State};
use crate::model::tokenizer::CHUNK_TOKENS;
use crate::model::tokens::{Counts, Position, Tokens};
use crate::model::{Model, ModelError};

use super::model_codec::{Cut, SPAN, model_error, span_check, start_state};
use super::payload::Layout;
use super::range_coder::Decoder;
use super::{CodecError, Result, Snapshot};

/// The tokens of some bytes and the hidden rows that predict them.
pub(super) struct Predicted {
    tokens: Vec<u16>,
    rows: Vec<i8>,
}

/// Cuts an extent into groups of whole chunks of at most `group` bytes (but at least one chunk), each with
/// its tokens.
pub(super) fn cut(model: &Model, raw: &[u8], group: usize) -> Result<Vec<(Cut, Vec<u16>)>> {
    let expert = model.expert().map_err(model_error)?;
    let mut cuts: Vec<(Cut, Vec<u16>)> = Vec::new();
    for chunk in expert.merges.tokens(raw).chunks(CHUNK_TOKENS) {
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

/// The hidden rows of token strings, each a stream of its own.
pub(super) fn predict(engine: &dyn Engine, strings: Vec<Vec<u16>>) -> Result<Vec<Predicted>> {
    let memory = &Memory::default();
    let sequence = |tokens| Sequence { tokens, memory };
    let sequences: Vec<Sequence> = strings.iter().map(|tokens| sequence(tokens)).collect();
    let rows = engine.hidden(&sequences).map_err(model_error)?;
    Ok(strings
        .into_iter()
        .zip(rows)
        .map(|(tokens, rows)| Predicted { tokens, rows })
        .collect())
}

/// The tokens and hidden rows of bytes that are a group of their own.
pub(super) fn predict_bytes(model: &Model, engine: &dyn Engine, bytes: &[u8]) -> Result<Predicted> {
    let expert = model.expert().map_err(model_error)?;
    let mut found = predict(engine, vec![expert.merges.tokens(bytes)])?;
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
    let Predicted {
        tokens: known,
        rows,
    } = predicted;
    let width = rows.len() / known.len().max(1);
    let mut left = len;
    for (&token, row) in known.iter().zip(rows.chunks_exact(width.max(1))) {
        let position = Position {
            row,
            left,
            token: Some(token),
        };
        tokens.token(coder, engine, position).map_err(model_error)?;
        left -= tokens.bytes().len();
    }
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
    /// Tokens that the network has not seen.
    pending: Vec<u16>,
    group: usize,
}

impl GroupDecoder {
    /// Starts a group of a payload; `snapshot` is the state after its anchor, if it has one.
    pub fn start(
        model: &Arc<Model>,
        payload: &[u8],
        layout: &Layout,
        group: usize,
        snapshot: Option<&Snapshot>,
    ) -> Result<GroupDecoder> {
        let left = layout.groups[group].len();
        let part = &layout.parts[group];
        let checks = payload[part.checks.clone()].as_chunks::<2>().0.iter();
        let state = || start_state(model, left, snapshot);
        Ok(GroupDecoder {
            tokens: Tokens::new(model.clone(), state).map_err(model_error)?,
            decoder: Decoder::new(payload[part.code.clone()].to_vec()),
            checks: checks
                .rev()
                .map(|&check| u16::from_le_bytes(check))
                .collect(),
            span: Vec::with_capacity(SPAN.min(left)),
            left,
            pending: Vec::new(),
            group,
        })
    }

    /// The tokens that the network's next step sees.
    pub fn pending(&self) -> &[u16] {
        &self.pending
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
        self.pending.clear();
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
        let position = Position {
            row,
            left: self.left,
            token: None,
        };
        let token = self.tokens.token(&mut self.decoder, engine, position);
        self.pending.push(token.map_err(model_error)?);
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

/// A group on its way, and who gets its bytes.
pub(super) struct Flow<'a> {
    pub decoder: GroupDecoder,
    pub sink: Box<dyn FnMut(&[u8]) -> bool + 'a>,
}

/// Decodes groups in lockstep, at most `slots` at a time: the next one joins as soon as one has ended. What
/// becomes of a group does not depend on the others, unless the device fails.
pub(super) fn decode_together<'a>(
    engine: &dyn Engine,
    slots: usize,
    flows: impl Iterator<Item = Result<Flow<'a>>>,
) -> Result<()> {
    let mut flows = flows.fuse();
    let mut batch = engine.batch(slots.max(1)).map_err(model_error)?;
    let mut running: Vec<(usize, Flow)> = Vec::new();
    let mut free: Vec<usize> = (0..slots.max(1)).rev().collect();
    loop {
        while let Some(&slot) = free.last()
            && let Some(flow) = flows.next()
        {
            let mut flow = flow?;
            if flow.decoder.begin(engine, &mut *flow.sink)? == Progress::Step {
                batch.start(slot, &Memory::default()).map_err(model_error)?;
                running.push((slot, flow));
                free.pop();
            }
        }
        if running.is_empty() {
            return Ok(());
        }
        let rows = step(&mut *batch, &running).map_err(model_error)?;
        let width = rows.len() / running.len();
        let mut rows = rows.chunks_exact(width.max(1));
        let mut error = None;
        running.retain_mut(|(slot, flow)| {
            let row = rows.next().unwrap_or_default();
            match flow.decoder.advance(engine, row, &mut *flow.sink) {
                Ok(Progress::Step) => return true,
                Ok(Progress::Done) => {}
                Err(why) => error = error.take().or(Some(why)),
            }
            free.push(*slot);
            false
        });
        error.map_or(Ok(()), Err)?;
    }
}

/// One step of the network for all groups.
fn step(
    batch: &mut dyn Batch,
    running: &[(usize, Flow)],
) -> std::result::Result<Vec<i8>, ModelError> {
    let steps: Vec<Step> = running
        .iter()
        .map(|(slot, flow)| Step {
            slot: *slot,
            tokens: flow.decoder.pending(),
        })
        .collect();
    batch.step(&steps)
}
