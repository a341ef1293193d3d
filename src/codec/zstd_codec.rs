//! zstd at its strongest ordinary level, with the dictionary of the model where that is smaller.

use crate::model::Model;

use super::payload::{self, Layout};
use super::{CodecError, CodecId, Codecs, Encoded, Result};

/// The level that compressing file systems are compared at.
const LEVEL: i32 = 19;

fn cannot(error: std::io::Error) -> CodecError {
    CodecError::Damaged(format!("zstd: {error}"))
}

fn finish(raw: &[u8], model: Option<&Model>, body: &[u8]) -> Encoded {
    let mut payload = payload::start(CodecId::Zstd, raw, true);
    payload.push(u8::from(model.is_some()));
    if let Some(model) = model {
        payload.extend_from_slice(&model.hash[..8]);
    }
    payload.extend_from_slice(body);
    Encoded {
        codec: CodecId::Zstd,
        payload,
        anchor: None,
    }
}

/// Encodes at [`LEVEL`], with and without the dictionary.
pub(super) fn encode(codecs: &Codecs, raw: &[u8]) -> Result<Encoded> {
    let plain = finish(
        raw,
        None,
        &zstd::bulk::compress(raw, LEVEL).map_err(cannot)?,
    );
    // the base has the same dictionary, and every program has it sooner than the model on top of it
    let dictionary = codecs
        .encoding_model()
        .map(|model| codecs.base_of(&model).unwrap_or(model));
    let Some(model) = dictionary.filter(|model| !model.dictionary.is_empty()) else {
        return Ok(plain);
    };
    let mut compressor =
        zstd::bulk::Compressor::with_dictionary(LEVEL, &model.dictionary).map_err(cannot)?;
    let body = compressor.compress(raw).map_err(cannot)?;
    let primed = finish(raw, Some(&model), &body);
    Ok(if primed.payload.len() < plain.payload.len() {
        primed
    } else {
        plain
    })
}

/// Decodes a zstd body; `model` has the dictionary if the payload names one.
pub(super) fn decode(body: &[u8], layout: &Layout, model: Option<&Model>) -> Result<Vec<u8>> {
    let dictionary = model.map_or(&[] as &[u8], |model| &model.dictionary);
    let mut decompressor = zstd::bulk::Decompressor::with_dictionary(dictionary).map_err(cannot)?;
    let raw = decompressor
        .decompress(body, layout.raw_len as usize)
        .map_err(cannot)?;
    payload::verify(raw, layout)
}
