//! zstd at its strongest ordinary level: what the model has to beat.

use super::payload::{self, Layout};
use super::{CodecError, CodecId, Encoded, Result};

/// The level that compressing file systems are compared at.
const LEVEL: i32 = 19;

/// Encodes at [`LEVEL`].
pub(super) fn encode(raw: &[u8]) -> Result<Encoded> {
    let body = zstd::bulk::compress(raw, LEVEL)
        .map_err(|e| CodecError::Damaged(format!("zstd cannot encode: {e}")))?;
    let mut payload = payload::start(CodecId::Zstd, raw, true);
    payload.extend_from_slice(&body);
    Ok(Encoded {
        codec: CodecId::Zstd,
        payload,
        anchor: None,
    })
}

/// Decodes a zstd body.
pub(super) fn decode(body: &[u8], layout: &Layout) -> Result<Vec<u8>> {
    let raw = zstd::bulk::decompress(body, layout.raw_len as usize)
        .map_err(|e| CodecError::Damaged(format!("zstd: {e}")))?;
    payload::verify(raw, layout)
}
