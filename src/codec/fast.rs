//! The staging codecs: raw and LZ4.

use super::payload::{self, Layout};
use super::{CodecError, CodecId, Encoded, Result};

/// The smaller of raw and LZ4.
pub(super) fn encode(raw: &[u8]) -> Encoded {
    let mut payload = payload::start(CodecId::Lz4, raw, true);
    payload.extend_from_slice(&lz4_flex::block::compress(raw));
    if payload.len() < raw.len() {
        return Encoded {
            codec: CodecId::Lz4,
            payload,
            anchor: None,
        };
    }
    encode_raw(raw)
}

/// The bytes as they are.
pub(super) fn encode_raw(raw: &[u8]) -> Encoded {
    let mut payload = payload::start(CodecId::Raw, raw, false);
    payload.extend_from_slice(raw);
    Encoded {
        codec: CodecId::Raw,
        payload,
        anchor: None,
    }
}

/// Decodes an LZ4 body.
pub(super) fn decode(body: &[u8], layout: &Layout) -> Result<Vec<u8>> {
    let raw = lz4_flex::block::decompress(body, layout.raw_len as usize)
        .map_err(|e| CodecError::Damaged(format!("lz4: {e}")))?;
    payload::verify(raw, layout)
}
