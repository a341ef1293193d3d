//! Whole groups and extents through the codecs, and the checksums.

use std::sync::Arc;

use s2sfs::benching::{Decoder, Encoder};
use s2sfs::codec::{Codecs, EncodeOptions, Policy};
use s2sfs::model::Model;
use s2sfs::model::predictor::Predictor;

use super::{Amount, Part, Run, noise, text};

const GROUP: usize = 16 << 10;
const EXTENT: usize = 128 << 10;

/// Makes so many bytes.
type Input = fn(usize) -> Vec<u8>;

pub fn parts() -> Vec<Part> {
    let mut parts = groups();
    parts.extend(extents());
    parts.extend(checksums());
    parts
}

fn codecs() -> Codecs {
    Codecs::with_default_model().expect("the default model")
}

fn model() -> Arc<Model> {
    codecs().encoding_model().expect("the default model")
}

fn group_encoded(model: &Model, raw: &[u8]) -> Vec<u8> {
    let mut predictor = Predictor::new(model, model.fresh(raw.len()));
    let mut encoder = Encoder::default();
    for &byte in raw {
        predictor.byte(&mut encoder, byte);
    }
    encoder.finish()
}

fn group_decoded(model: &Model, code: &[u8]) -> Vec<u8> {
    let mut predictor = Predictor::new(model, model.fresh(GROUP));
    let mut decoder = Decoder::new(code);
    (0..GROUP)
        .map(|_| predictor.byte(&mut decoder, 0))
        .collect()
}

/// One group, one stream, with the tables of the default model.
fn groups() -> Vec<Part> {
    let amount = Amount::Bytes(GROUP as u64);
    let encode = || -> Run {
        let (model, raw) = (model(), text(GROUP));
        Box::new(move || group_encoded(&model, &raw).len() as u64)
    };
    let decode = || -> Run {
        let (model, raw) = (model(), text(GROUP));
        let code = group_encoded(&model, &raw);
        assert_eq!(group_decoded(&model, &code), raw);
        Box::new(move || u64::from(group_decoded(&model, &code)[GROUP - 1]))
    };
    vec![
        Part::new("model", "encode a group of 16 KiB", amount, encode),
        Part::new("model", "decode a group of 16 KiB", amount, decode),
    ]
}

/// An extent as writing, settling and reading do it.
fn extents() -> Vec<Part> {
    let amount = Amount::Bytes(EXTENT as u64);
    let mut parts = Vec::new();
    let inputs: [(&str, Input); 2] = [("text", text), ("noise", noise)];
    for (what, input) in inputs {
        let stage = move || -> Run {
            let (codecs, raw) = (codecs(), input(EXTENT));
            Box::new(move || codecs.encode_fast(&raw).payload.len() as u64)
        };
        parts.push(Part::new(
            "staging",
            format!("encode {what}"),
            amount,
            stage,
        ));
        let zstd = move || -> Run {
            let (codecs, raw) = (codecs(), input(EXTENT));
            Box::new(move || settled(&codecs, &raw, Policy::Fast).len() as u64)
        };
        parts.push(Part::new("zstd", format!("encode {what}"), amount, zstd));
    }
    parts.push(Part::new("staging", "decode text", amount, || {
        decoding(|codecs, raw| codecs.encode_fast(raw).payload)
    }));
    parts.push(Part::new("zstd", "decode text", amount, || {
        decoding(|codecs, raw| settled(codecs, raw, Policy::Fast))
    }));
    parts.push(Part::new(
        "model",
        "choose and encode an extent",
        amount,
        || {
            let (codecs, raw) = (codecs(), text(EXTENT));
            Box::new(move || settled(&codecs, &raw, Policy::Balanced).len() as u64)
        },
    ));
    parts.push(Part::new("model", "decode an extent", amount, || {
        decoding(|codecs, raw| settled(codecs, raw, Policy::Balanced))
    }));
    parts
}

fn settled(codecs: &Codecs, raw: &[u8], policy: Policy) -> Vec<u8> {
    let options = EncodeOptions {
        policy,
        group: None,
        ..EncodeOptions::default()
    };
    let encoded = codecs.encode(raw, &options, None);
    encoded.expect("everything can be encoded").payload
}

fn decoding(encode: impl Fn(&Codecs, &[u8]) -> Vec<u8>) -> Run {
    let (codecs, raw) = (codecs(), text(EXTENT));
    let payload = encode(&codecs, &raw);
    let decode = move || codecs.decode_all(&payload, None).expect("what was encoded");
    assert_eq!(decode(), raw);
    Box::new(move || decode().len() as u64)
}

fn checksums() -> Vec<Part> {
    let mut parts = Vec::new();
    for len in [4 << 10, EXTENT] {
        let amount = Amount::Bytes(len as u64);
        let name = format!("CRC-32C of {} KiB", len >> 10);
        parts.push(Part::new("checksums", name, amount, move || {
            let raw = noise(len);
            Box::new(move || u64::from(crc32c::crc32c(&raw)))
        }));
    }
    parts.push(Part::new(
        "checksums",
        "BLAKE3 of 128 KiB",
        Amount::Bytes(EXTENT as u64),
        || {
            let raw = noise(EXTENT);
            Box::new(move || u64::from(blake3::hash(&raw).as_bytes()[0]))
        },
    ));
    parts
}
