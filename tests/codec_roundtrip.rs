//! Whatever is encoded comes back, by every codec, group size, anchor and engine.

#[path = "common/random.rs"]
mod random;

use random::noise;
use std::sync::Arc;

use proptest::prelude::*;
use s2sfs::codec::{AnchorSource, CodecId, Codecs, EncodeOptions, Encoded, Policy};

fn codecs() -> &'static Codecs {
    static CODECS: std::sync::OnceLock<Codecs> = std::sync::OnceLock::new();
    CODECS.get_or_init(|| Codecs::with_default_model().unwrap())
}

/// Text like that of a source file, different for every seed.
fn text(seed: u32, len: usize) -> Vec<u8> {
    let words = [
        "let",
        "value",
        "=",
        "the",
        "index",
        "of",
        "record",
        "(segment)",
        "return",
        "\n    ",
        "0x1f",
        ";",
    ];
    let mut state = seed | 1;
    let mut out = Vec::new();
    while out.len() < len {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        out.extend_from_slice(words[(state >> 24) as usize % words.len()].as_bytes());
        out.push(b' ');
    }
    out.truncate(len);
    out
}

fn options(policy: Policy, group: Option<u32>) -> EncodeOptions {
    EncodeOptions {
        policy,
        group,
        ..EncodeOptions::default()
    }
}

fn source(bytes: &[u8]) -> AnchorSource {
    AnchorSource {
        block: 7,
        start: 0,
        bytes: Arc::from(bytes),
    }
}

/// Decodes with the snapshot that the payload asks for.
fn decode(encoded: &Encoded, anchor: Option<&AnchorSource>) -> Vec<u8> {
    let layout = codecs().open(&encoded.payload).unwrap();
    let snapshot = layout.anchor.as_ref().map(|wanted| {
        let source = anchor.expect("only what was offered can be wanted");
        assert_eq!(wanted.block, source.block);
        let range = wanted.range.start as usize..wanted.range.end as usize;
        codecs().snapshot(&layout, &source.bytes[range]).unwrap()
    });
    codecs()
        .decode_all(&encoded.payload, snapshot.as_deref())
        .unwrap()
}

#[test]
fn text_is_coded_by_the_model_in_groups_of_the_size_asked_for() {
    let raw = text(1, 100_000);
    for group in [600, 4096, 32 << 10, 128 << 10] {
        let encoded = codecs()
            .encode(&raw, &options(Policy::Ratio, Some(group)), None)
            .unwrap();
        let layout = codecs().open(&encoded.payload).unwrap();
        assert_eq!(decode(&encoded, None), raw);
        if group >= 4096 {
            assert_eq!(encoded.codec, CodecId::Model);
            assert!(
                layout.groups.iter().all(|g| g.end - g.start <= group),
                "{:?}",
                layout.groups
            );
            assert!(layout.chunks as usize >= layout.groups.len());
        }
    }
}

#[test]
fn every_group_decodes_alone_and_stops_when_told() {
    let raw = text(2, 90_000);
    let encoded = codecs()
        .encode(&raw, &options(Policy::Balanced, None), None)
        .unwrap();
    let layout = codecs().open(&encoded.payload).unwrap();
    assert!(layout.groups.len() >= 3);
    for (index, range) in layout.groups.iter().enumerate().rev() {
        let expected = &raw[range.start as usize..range.end as usize];
        let mut pieces = Vec::new();
        let mut sink = |piece: &[u8]| {
            pieces.extend_from_slice(piece);
            pieces.len() < 5000
        };
        codecs()
            .decode_group(&encoded.payload, &layout, index, None, &mut sink)
            .unwrap();
        assert!(pieces.len() >= 5000.min(expected.len()) && pieces.len() < 5000 + 4096);
        assert_eq!(pieces, expected[..pieces.len()]);
    }
}

#[test]
fn an_anchor_is_used_only_where_it_pays() {
    let file = text(3, 60_000);
    let anchor = source(&file[..30_000]);
    let related = codecs()
        .encode(
            &file[30_000..],
            &options(Policy::Balanced, None),
            Some(&anchor),
        )
        .unwrap();
    assert_eq!(related.anchor, Some(7));
    assert_eq!(decode(&related, Some(&anchor)), file[30_000..]);
    let alone = codecs()
        .encode(&file[30_000..], &options(Policy::Balanced, None), None)
        .unwrap();
    assert!(related.payload.len() < alone.payload.len());

    let foreign = source(&noise(4, 30_000));
    let unrelated = codecs()
        .encode(
            &file[30_000..],
            &options(Policy::Balanced, None),
            Some(&foreign),
        )
        .unwrap();
    assert_eq!(unrelated.anchor, None);
}

#[test]
fn a_block_that_needs_its_anchor_says_so() {
    let file = text(5, 60_000);
    let anchor = source(&file[..30_000]);
    let encoded = codecs()
        .encode(
            &file[30_000..],
            &options(Policy::Balanced, None),
            Some(&anchor),
        )
        .unwrap();
    let error = codecs().decode_all(&encoded.payload, None).unwrap_err();
    assert!(error.to_string().contains("anchor"), "{error}");
}

#[test]
fn noise_is_stored_raw_and_grows_by_a_few_bytes_only() {
    for len in [1, 100, 5_000, 131_072] {
        let raw = noise(6, len);
        let encoded = codecs()
            .encode(&raw, &EncodeOptions::default(), None)
            .unwrap();
        assert!(
            encoded.payload.len() <= raw.len() + 5,
            "{} for {len}",
            encoded.payload.len()
        );
        assert_eq!(decode(&encoded, None), raw);
    }
}

#[test]
fn the_fast_policy_never_uses_the_model() {
    let encoded = codecs()
        .encode(&text(7, 50_000), &options(Policy::Fast, None), None)
        .unwrap();
    assert_eq!(encoded.codec, CodecId::Zstd);
}

#[test]
fn without_a_model_everything_still_works() {
    let raw = text(8, 50_000);
    let encoded = Codecs::without_model()
        .encode(&raw, &EncodeOptions::default(), None)
        .unwrap();
    assert_eq!(encoded.codec, CodecId::Zstd);
    assert_eq!(
        Codecs::without_model()
            .decode_all(&encoded.payload, None)
            .unwrap(),
        raw
    );
}

#[test]
fn flipped_bits_in_a_model_block_are_found() {
    let raw = text(9, 20_000);
    let encoded = codecs()
        .encode(&raw, &options(Policy::Balanced, Some(4096)), None)
        .unwrap();
    let mut found = 0;
    for at in (1..encoded.payload.len()).step_by(37) {
        let mut payload = encoded.payload.clone();
        payload[at] ^= 0x10;
        match codecs().decode_all(&payload, None) {
            Err(_) => found += 1,
            Ok(decoded) => assert_eq!(decoded, raw, "wrong bytes after a flip at {at}"),
        }
    }
    assert!(found > 20, "{found}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_come_back(
        raw in prop::collection::vec(any::<u8>(), 0..6000),
        repeat in 1usize..4,
        group in prop::option::of(1u32..9000),
        ratio in any::<bool>(),
    ) {
        let raw = raw.repeat(repeat);
        let policy = if ratio { Policy::Ratio } else { Policy::Balanced };
        let encoded = codecs().encode(&raw, &options(policy, group), None).unwrap();
        prop_assert!(encoded.payload.len() <= raw.len() + 5);
        prop_assert_eq!(decode(&encoded, None), raw.clone());
        prop_assert_eq!(decode(&codecs().encode_fast(&raw), None), raw);
    }

    #[test]
    fn any_payload_is_decoded_or_refused(mut payload in prop::collection::vec(any::<u8>(), 0..300), codec in 0u8..5) {
        if let Some(first) = payload.first_mut() {
            *first = codec;
        }
        let _ = codecs().decode_all(&payload, None);
    }

    #[test]
    fn a_damaged_header_is_decoded_or_refused(at in 1usize..60, value in any::<u8>()) {
        static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let good = GOOD.get_or_init(|| {
            codecs().encode(&text(10, 9_000), &options(Policy::Ratio, Some(2048)), None).unwrap().payload
        });
        let mut payload = good.clone();
        payload[at] = value;
        if let Ok(decoded) = codecs().decode_all(&payload, None) {
            prop_assert_eq!(decoded, text(10, 9_000));
        }
    }
}
