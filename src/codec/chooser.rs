//! Chooses the codec of an extent by real size.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::model::Model;

use super::engines::Engines;
use super::latents::{LatentWriter, Latents};
use super::model_codec::{Beginning, Grouping, Sample};
use super::payload::AnchorRange;
use super::{
    AnchorSource, Codecs, EncodeOptions, Encoded, Policy, Result, Snapshot, fast, model_codec,
    network_codec, zstd_codec,
};

/// Group sizes in bytes where no option says otherwise.
const BALANCED_GROUP: u32 = 16 << 10;
const RATIO_GROUP: u32 = u32::MAX;
/// Most bytes of an anchor: they lie in the first group of the anchor's block.
pub const ANCHOR_BYTES: usize = 14 << 10;
/// Bytes coded on trial to see whether an anchor, or the network of the model, pays.
const SAMPLE: usize = 8 << 10;
/// An anchor must save this share of the size, because reading gets slower.
const ANCHOR_GAIN: f64 = 0.03;
/// The model must beat zstd by this share under the balanced policy, because reading gets slower.
const MODEL_GAIN: f64 = 0.02;
/// The slower of a model and its base must save this share of what the faster one needs under the balanced policy, likewise.
const SLOWER_GAIN: f64 = 0.01;

/// A fast level of zstd, and the least share of its size that the strongest level is hoped to reach.
const ZSTD_TRIAL_LEVEL: i32 = 3;
const ZSTD_TRIAL_PERCENT: usize = 60;

/// The smallest verified encoding that the policy allows.
pub(super) fn encode(
    codecs: &Codecs,
    raw: &[u8],
    options: &EncodeOptions,
    anchor: Option<&AnchorSource>,
) -> Result<Encoded> {
    let best = fast::encode_raw(raw);
    if raw.is_empty() || is_incompressible(raw) {
        return Ok(best);
    }
    if options.policy == Policy::Off {
        let quick = fast::encode(raw);
        let exact = is_exact(codecs, &quick, raw, None, options);
        return Ok(if exact { quick } else { best });
    }
    let model = codecs.encoding_model().filter(|_| options.policy.models());
    let modelled = match &model {
        Some(model) => {
            let model = paying_model(codecs, model, raw, options)?;
            encode_with(codecs, model, raw, options, anchor)?
        }
        None => None,
    };
    let gain = demanded(options, MODEL_GAIN);
    // what zstd must not exceed to be chosen instead of the model
    let limit = modelled
        .as_ref()
        .map(|m| (m.payload.len() as f64 / (1.0 - gain)) as usize);
    if limit.is_none_or(|limit| zstd_may_reach(raw, limit)) {
        let zstd = zstd_codec::encode(codecs, raw)?;
        let wins = zstd.payload.len() < best.payload.len()
            && limit.is_none_or(|limit| zstd.payload.len() <= limit);
        if wins && is_exact(codecs, &zstd, raw, None, options) {
            return Ok(zstd);
        }
    }
    Ok(modelled
        .filter(|m| m.payload.len() < best.payload.len())
        .unwrap_or(best))
}

/// The share of the size that a slower codec must save under a policy.
fn demanded(options: &EncodeOptions, gain: f64) -> f64 {
    match options.policy {
        Policy::Ratio => 0.0,
        Policy::Balanced | Policy::Fast | Policy::Off => gain,
    }
}

/// The model itself or the one beside it: the slower of them if a sample of the extent gets enough smaller by it. A network is
/// slower than its base, a lean mixer faster. Also what the sample costs with that model, where it is known.
fn paying_model(
    codecs: &Codecs,
    model: &Arc<Model>,
    raw: &[u8],
    options: &EncodeOptions,
) -> Result<(Arc<Model>, Option<f64>)> {
    let Some(other) = codecs.beside(model) else {
        return Ok((model.clone(), None));
    };
    let engines = codecs.engines.of(model);
    let sample = sample_of(raw);
    let own = Sample::new(model, engines.as_ref(), sample)?.cost(model, None)?;
    let of_other = Sample::new(&other, None, sample)?.cost(&other, None)?;
    let has_network = model.network().is_some();
    let (slower, faster) = match has_network {
        true => (own, of_other),
        false => (of_other, own),
    };
    let pays = slower < faster * (1.0 - demanded(options, SLOWER_GAIN));
    Ok(match pays == has_network {
        true => (model.clone(), Some(own)),
        false => (other, Some(of_other)),
    })
}

/// The bytes in the middle.
fn sample_of(raw: &[u8]) -> &[u8] {
    let start = raw.len().saturating_sub(SAMPLE) / 2;
    &raw[start..(start + SAMPLE).min(raw.len())]
}

/// Encodes with the model, from the anchor if that pays; None if it did not decode to the same. `fresh` is what
/// the sample costs with this model without an anchor, if that is known.
fn encode_with(
    codecs: &Codecs,
    (model, fresh): (Arc<Model>, Option<f64>),
    raw: &[u8],
    options: &EncodeOptions,
    anchor: Option<&AnchorSource>,
) -> Result<Option<Encoded>> {
    let engines = codecs.engines.of(&model);
    let anchor = match anchor.filter(|_| model.has_history()) {
        Some(source) => {
            let with = (&model, engines.as_ref());
            paying_anchor(codecs, with, raw, source, fresh)?
        }
        None => None,
    };
    let used = anchor
        .as_ref()
        .map(|(range, snapshot)| (range, snapshot.as_ref()));
    let group = Grouping::Bytes(group_bytes(options));
    let writer = codecs.writer.as_deref();
    let with = (model.as_ref(), engines.as_ref());
    let (coded, _) = smallest(with, raw, group, used, writer)?;
    let snapshot = used.map(|(_, snapshot)| snapshot);
    let exact = is_exact(codecs, &coded, raw, snapshot, options);
    Ok(exact.then_some(coded))
}

/// Encodes with a model without latents and with all that `writer` writes. The smallest, and its latents.
pub(super) fn smallest(
    (model, engines): (&Model, Option<&Engines>),
    raw: &[u8],
    grouping: Grouping,
    anchor: Option<(&AnchorRange, &Snapshot)>,
    writer: Option<&dyn LatentWriter>,
) -> Result<(Encoded, Option<Latents>)> {
    let with = |latents: Option<&Latents>| {
        let beginning = Beginning { anchor, latents };
        model_codec::encode(model, engines, raw, grouping, beginning)
    };
    let mut best = (with(None)?, None);
    for latents in written(model, raw, grouping, writer)? {
        let other = with(Some(&latents))?;
        if other.payload.len() < best.0.payload.len() {
            best = (other, Some(latents));
        }
    }
    Ok(best)
}

/// The latents that there are to try for an extent; none for a model that reads none.
fn written(
    model: &Model,
    raw: &[u8],
    grouping: Grouping,
    writer: Option<&dyn LatentWriter>,
) -> Result<Vec<Latents>> {
    let reads = model.network().is_some_and(|expert| expert.prior.is_some());
    let Some(writer) = writer.filter(|_| reads) else {
        return Ok(vec![]);
    };
    let groups = network_codec::cut(model, raw, grouping)?;
    let groups: Vec<Vec<u16>> = groups.into_iter().map(|(_, tokens)| tokens).collect();
    Ok(writer.write(&groups).unwrap_or_else(|why| {
        log::warn!("no latents are tried: {why}");
        vec![]
    }))
}

/// Whether the strongest level could get down to `limit` bytes, judging by a fast one: trying takes
/// longer than the model on some data, and is in vain on most text.
fn zstd_may_reach(raw: &[u8], limit: usize) -> bool {
    zstd::bulk::compress(raw, ZSTD_TRIAL_LEVEL)
        .is_ok_and(|packed| packed.len() * ZSTD_TRIAL_PERCENT / 100 <= limit)
}

fn group_bytes(options: &EncodeOptions) -> usize {
    let default = if options.policy == Policy::Ratio {
        RATIO_GROUP
    } else {
        BALANCED_GROUP
    };
    options.group.unwrap_or(default) as usize
}

/// Decodes what was encoded, if this one is to be verified. A codec that fails its own check is a bug, but not
/// one that loses data.
fn is_exact(
    codecs: &Codecs,
    encoded: &Encoded,
    raw: &[u8],
    snapshot: Option<&Snapshot>,
    options: &EncodeOptions,
) -> bool {
    if !codecs.verifies(raw, options.verify) {
        return true;
    }
    let why = match codecs.decode_all(&encoded.payload, snapshot) {
        Ok(decoded) if decoded == raw => return true,
        Ok(_) => "it decodes to other bytes".to_owned(),
        Err(error) => error.to_string(),
    };
    codecs.distrusted.store(true, Relaxed);
    let codec = encoded.codec.name();
    log::error!("codec {codec} failed to decode what it encoded ({why}); not used");
    false
}

/// Recognises data that is compressed or encrypted already, in about a millisecond: bytes nearly
/// uniform and nothing for a fast LZ to find.
fn is_incompressible(raw: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    for &byte in raw {
        counts[byte as usize] += 1;
    }
    let len = raw.len() as f64;
    let used = counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count));
    let entropy: f64 = used.map(|count| count / len * (len / count).log2()).sum();
    // even uniform noise stays below 8 bits in a short sample
    let noise = 8.0 - 184.0 / len;
    raw.len() >= 1024
        && entropy > noise.min(7.95) - 0.05
        && zstd::bulk::compress(raw, 1).is_ok_and(|packed| packed.len() + 16 >= raw.len())
}

/// The anchor with its state, if a sample of the extent gets smaller by it.
fn paying_anchor(
    codecs: &Codecs,
    (model, engines): (&Arc<Model>, Option<&Engines>),
    raw: &[u8],
    source: &AnchorSource,
    fresh: Option<f64>,
) -> Result<Option<(AnchorRange, Arc<Snapshot>)>> {
    let bytes = &source.bytes[..source.bytes.len().min(ANCHOR_BYTES)];
    if bytes.is_empty() {
        return Ok(None);
    }
    let end = source.start + bytes.len() as u32;
    let range = AnchorRange {
        block: source.block,
        range: source.start..end,
    };
    let snapshot = codecs.encoding_snapshot(model, bytes);
    let sample = Sample::new(model, engines, sample_of(raw))?;
    let fresh = fresh.map_or_else(|| sample.cost(model, None), Ok)?;
    let anchored = sample.cost(model, Some(&snapshot))?;
    Ok((anchored < fresh * (1.0 - ANCHOR_GAIN)).then_some((range, snapshot)))
}
