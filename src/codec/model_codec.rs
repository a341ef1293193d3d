//! The model codec: groups of chunks, arithmetic-coded with the probabilities of a model.
//!
//! A group is a run of whole chunks (up to 128 tokens each) that share adaptive state; it is decoded
//! from its start. Every [`SPAN`] bytes of a group carry a checksum, so that a part can be verified
//! without the rest. docs/format.md has the byte table.

use std::cell::Cell;

use crate::model::predictor::{Predictor, State};
use crate::model::tokenizer::CHUNK_TOKENS;
use crate::model::{Cost, Model, ModelError};

use super::engines::Engines;
use super::latents::{self, Latents};
use super::network_codec::{self, Predicted};
use super::payload::{self, ANCHOR, AnchorRange, LATENTS, Layout};
use super::range_coder::{Decoder, Encoder};
use super::{CodecError, CodecId, Encoded, Result, Snapshot};

/// Bytes that one checksum covers.
pub(super) const SPAN: usize = 4096;

/// The checksum of a span: the low 16 bits of its CRC-32C.
pub(super) fn span_check(span: &[u8]) -> u16 {
    crc32c::crc32c(span) as u16
}

pub(super) fn model_error(error: ModelError) -> CodecError {
    match error {
        ModelError::Device(_) => CodecError::Unavailable(error.to_string()),
        error => CodecError::Damaged(error.to_string()),
    }
}

/// How an extent is cut into groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Whole chunks of up to 128 tokens, together at most so many bytes (but at least one chunk).
    Bytes(usize),
    /// One chunk of so many tokens, 1 to 128: for measuring what short chunks cost.
    Tokens(usize),
}

impl Grouping {
    /// Most tokens of a chunk, and most bytes of a group of several.
    pub(super) fn limits(self) -> (usize, usize) {
        match self {
            Grouping::Bytes(bytes) => (CHUNK_TOKENS, bytes),
            Grouping::Tokens(tokens) => (tokens.clamp(1, CHUNK_TOKENS), 0),
        }
    }
}

impl From<usize> for Grouping {
    fn from(bytes: usize) -> Grouping {
        Grouping::Bytes(bytes)
    }
}

/// A group as the encoder cuts it.
pub(super) struct Cut {
    pub len: usize,
    pub chunks: u32,
}

/// Cuts an extent into groups.
fn cut(model: &Model, raw: &[u8], grouping: Grouping) -> Result<Vec<Cut>> {
    let (chunk, group) = grouping.limits();
    let lengths = model.tokenizer.chunk_lengths(raw, chunk);
    let mut cuts: Vec<Cut> = Vec::new();
    for chunk in lengths.map_err(model_error)? {
        let chunk = chunk as usize;
        match cuts.last_mut() {
            Some(cut) if cut.len + chunk <= group => {
                cut.len += chunk;
                cut.chunks += 1;
            }
            _ => cuts.push(Cut {
                len: chunk,
                chunks: 1,
            }),
        }
    }
    Ok(cuts)
}

/// The state at the start of a group of `len` bytes with these latents, after its anchor if it has one.
pub(super) fn start_state(
    model: &Model,
    len: usize,
    snapshot: Option<&Snapshot>,
    latents: &[u16],
) -> State {
    model.begin(latents, |more| match (snapshot, SPARE.take()) {
        (None, None) => model.fresh(len + more),
        (None, Some(spare)) => model.fresh_in(spare, len + more),
        (Some(snapshot), None) => State::clone(&snapshot.state),
        (Some(snapshot), Some(spare)) => snapshot.state.copied_into(spare),
    })
}

thread_local! {
    /// A state that is not needed any more: it has megabytes, and new pages for every group take their time.
    static SPARE: Cell<Option<State>> = const { Cell::new(None) };
}

/// What the groups of an extent begin with.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beginning<'a> {
    pub anchor: Option<(&'a AnchorRange, &'a Snapshot)>,
    pub latents: Option<&'a Latents>,
}

/// Codes the groups of an extent.
fn code_groups(
    model: &Model,
    engines: Option<&Engines>,
    raw: &[u8],
    grouping: Grouping,
    beginning: Beginning,
) -> Result<(Vec<Cut>, Vec<Vec<u8>>)> {
    let snapshot = beginning.anchor.map(|(_, snapshot)| snapshot);
    let mut codes = Vec::new();
    let Some(Engines { evaluator, .. }) = engines else {
        let cuts = cut(model, raw, grouping)?;
        let mut rest = raw;
        for cut in &cuts {
            let (bytes, tail) = rest.split_at(cut.len);
            let mut predictor =
                Predictor::new(model, start_state(model, bytes.len(), snapshot, &[]));
            let mut encoder = Encoder::default();
            for &byte in bytes {
                predictor.byte(&mut encoder, byte);
            }
            SPARE.set(Some(predictor.into_state()));
            codes.push(encoder.finish());
            rest = tail;
        }
        return Ok((cuts, codes));
    };
    let cuts = network_codec::cut(model, raw, grouping)?;
    let (cuts, tokens): (Vec<Cut>, Vec<Vec<u16>>) = cuts.into_iter().unzip();
    let none = Latents::default();
    let latents = beginning.latents.unwrap_or(&none);
    let memories = latents.memories(&*evaluator.cpu, cuts.len());
    let memories = memories.map_err(model_error)?;
    let predicted = network_codec::predict(evaluator, tokens, |group| &memories[group])?;
    for (group, (cut, predicted)) in cuts.iter().zip(&predicted).enumerate() {
        let mut encoder = Encoder::default();
        let latents = latents.of_group(group);
        let state = || start_state(model, cut.len, snapshot, &latents);
        let heads = &*evaluator.cpu;
        network_codec::code(model, heads, predicted, cut.len, state, &mut encoder)?;
        codes.push(encoder.finish());
    }
    Ok((cuts, codes))
}

/// Encodes an extent in groups. Models with a network need their engines, and latents a
/// network with an encoder.
pub(super) fn encode(
    model: &Model,
    engines: Option<&Engines>,
    raw: &[u8],
    grouping: Grouping,
    beginning: Beginning,
) -> Result<Encoded> {
    let anchor = beginning.anchor;
    let latents = beginning.latents.filter(|latents| !latents.is_empty());
    let (cuts, codes) = code_groups(model, engines, raw, grouping, beginning)?;
    let mut checks = Vec::new();
    let mut rest = raw;
    for cut in &cuts {
        let (bytes, tail) = rest.split_at(cut.len);
        checks.extend(bytes.chunks(SPAN).map(span_check));
        rest = tail;
    }
    let mut payload = payload::start(CodecId::Model, raw, false);
    payload.extend_from_slice(&model.hash[..8]);
    let flags = [(anchor.is_some(), ANCHOR), (latents.is_some(), LATENTS)];
    payload.push(
        flags
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, flag)| flag)
            .sum(),
    );
    if let Some((anchor, _)) = anchor {
        payload::put_varint(&mut payload, anchor.block);
        payload::put_varint(&mut payload, u64::from(anchor.range.start));
        payload::put_varint(
            &mut payload,
            u64::from(anchor.range.end - anchor.range.start),
        );
    }
    if let Some(latents) = latents {
        let coded = latents::coded(model, latents, cuts.len())?;
        payload::put_varint(&mut payload, coded.len() as u64);
        payload.extend(coded);
    }
    payload::put_varint(&mut payload, cuts.len() as u64);
    for (index, (cut, code)) in cuts.iter().zip(&codes).enumerate() {
        payload::put_varint(&mut payload, u64::from(cut.chunks));
        // the last group takes what is left
        if index + 1 < cuts.len() {
            payload::put_varint(&mut payload, cut.len as u64);
            payload::put_varint(&mut payload, code.len() as u64);
        }
    }
    payload.extend(checks.iter().flat_map(|check| check.to_le_bytes()));
    payload.extend(codes.iter().flatten());
    Ok(Encoded {
        codec: CodecId::Model,
        payload,
        anchor: anchor.map(|(anchor, _)| anchor.block),
    })
}

/// Decodes one group of a model without a network; `sink` gets verified spans in order until it returns false.
pub(super) fn decode(
    model: &Model,
    payload: &[u8],
    layout: &Layout,
    group: usize,
    snapshot: Option<&Snapshot>,
    sink: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<()> {
    let range = &layout.groups[group];
    let len = (range.end - range.start) as usize;
    let part = &layout.parts[group];
    let mut predictor = Predictor::new(model, start_state(model, len, snapshot, &[]));
    let mut decoder = Decoder::new(&payload[part.code.clone()]);
    let mut span = Vec::with_capacity(SPAN.min(len));
    let mut left = len;
    for check in payload[part.checks.clone()].chunks_exact(2) {
        span.clear();
        for _ in 0..SPAN.min(left) {
            span.push(predictor.byte(&mut decoder, 0));
        }
        left -= span.len();
        if span_check(&span).to_le_bytes() != check {
            return Err(CodecError::Damaged(format!(
                "checksum of decoded bytes in group {group}"
            )));
        }
        if !sink(&span) {
            break;
        }
    }
    SPARE.set(Some(predictor.into_state()));
    Ok(())
}

/// Bytes to be coded on trial.
pub(super) struct Sample<'a> {
    bytes: &'a [u8],
    /// For models with a network.
    predicted: Option<(&'a Engines, Predicted)>,
}

impl<'a> Sample<'a> {
    pub fn new(model: &Model, engines: Option<&'a Engines>, bytes: &'a [u8]) -> Result<Sample<'a>> {
        let predicted = engines.map(|engines| {
            let found = network_codec::predict_bytes(model, &engines.evaluator, bytes);
            found.map(|predicted| (engines, predicted))
        });
        Ok(Sample {
            bytes,
            predicted: predicted.transpose()?,
        })
    }

    /// What the sample costs to code in bits, without writing the code.
    pub fn cost(&self, model: &Model, snapshot: Option<&Snapshot>) -> Result<f64> {
        let mut cost = Cost::default();
        let len = self.bytes.len();
        let state = || start_state(model, len, snapshot, &[]);
        match &self.predicted {
            Some((engines, predicted)) => {
                let heads = &*engines.evaluator.cpu;
                network_codec::code(model, heads, predicted, len, state, &mut cost)?;
            }
            None => {
                let mut predictor = Predictor::new(model, state());
                for &byte in self.bytes {
                    predictor.byte(&mut cost, byte);
                }
                SPARE.set(Some(predictor.into_state()));
            }
        }
        Ok(cost.bits)
    }
}
