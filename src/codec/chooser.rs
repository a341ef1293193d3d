//! Chooses the codec of an extent by real size.

use super::{AnchorSource, Codecs, EncodeOptions, Encoded, Result, fast, zstd_codec};

/// The smallest verified encoding that the policy allows.
pub(super) fn encode(
    codecs: &Codecs,
    raw: &[u8],
    options: &EncodeOptions,
    anchor: Option<&AnchorSource>,
) -> Result<Encoded> {
    let _ = (options, anchor);
    let mut best = fast::encode_raw(raw);
    let zstd = zstd_codec::encode(raw)?;
    if zstd.payload.len() < best.payload.len() && codecs.decode_all(&zstd.payload, None)? == raw {
        best = zstd;
    }
    Ok(best)
}
