//! With a network among the experts, whatever is encoded comes back: by every engine, in every company, and
//! from every way of leaving experts out.

#[path = "common/network_model.rs"]
mod network_model;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::Device;
use proptest::prelude::*;
use random::{Random, noise};
use s2sfs::codec::{AnchorSource, CodecError, CodecId, Codecs, Layout};
use s2sfs::model::matcher::LENGTH_BUCKETS;
use s2sfs::model::network::reference::Reference;
use s2sfs::model::network::simd::{Kernel, Simd};
use s2sfs::model::network::{Engine, Network};
use s2sfs::model::tokenizer::Tokenizer;
use s2sfs::model::vocabulary::Vocabulary;
use s2sfs::model::{Model, ModelHash};
use s2sfs::train::mixing::{self, MixingOptions, Trained};
use s2sfs::train::{Progress, TrainError};

/// Text that models are trained on and tried on.
const TEXT: &str = concat!(
    include_str!("../docs/exactness.md"),
    include_str!("network_codec.rs")
);

/// A random network and its vocabulary.
fn network() -> (Network, Tokenizer) {
    network_model::of_text(TEXT, 700, 24, 1)
}

fn base() -> Arc<Model> {
    static BASE: OnceLock<Arc<Model>> = OnceLock::new();
    let read = || Arc::new(Model::from_bytes(network_model::base_file()).unwrap());
    BASE.get_or_init(read).clone()
}

/// Trains the mixer for a moment.
fn mix(base: Option<&Model>, network: (Network, Tokenizer)) -> Result<Model, TrainError> {
    let options = MixingOptions {
        name: "test".into(),
        bytes: 96 << 10,
        seed: 1,
        threads: 1,
        mixer: None,
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model");
    let progress = Progress::new(&|_, _, _, _| ());
    let (network, tokenizer) = network;
    let trained = Trained {
        network,
        tokenizer,
        latents: None,
    };
    mixing::train(&source, base, Some(trained), &options, &progress)
}

fn train(base: Option<&Model>) -> Model {
    mix(base, network()).unwrap()
}

/// A model file with tables and a network, its mixer trained for a moment.
fn file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| train(Some(&base())).to_bytes().unwrap())
}

/// A model file with the network alone.
fn plain_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| train(None).to_bytes().unwrap())
}

fn model(file: &[u8]) -> Model {
    let find = |hash: &ModelHash| (*hash == base().hash).then(base);
    Model::from_bytes_and(file, &find).unwrap()
}

fn codecs() -> &'static Codecs {
    static CODECS: OnceLock<Codecs> = OnceLock::new();
    CODECS.get_or_init(|| Codecs::with_model(file()).unwrap())
}

fn plain_codecs() -> &'static Codecs {
    static CODECS: OnceLock<Codecs> = OnceLock::new();
    CODECS.get_or_init(|| Codecs::with_model(plain_file()).unwrap())
}

/// Codecs whose network is evaluated by an engine of our choice.
fn codecs_on(engine: impl Engine + 'static) -> Codecs {
    let codecs = Codecs::with_model(file()).unwrap();
    codecs.set_engine("test", Arc::new(engine));
    codecs
}

/// Groups of at most `group` bytes, with the network even where it does not pay.
fn encode(codecs: &Codecs, raw: &[u8], group: u32, anchor: Option<&AnchorSource>) -> Vec<u8> {
    let encoded = codecs.encode_by_model(raw, group as usize, anchor, None);
    let (encoded, _) = encoded.unwrap();
    assert_eq!(encoded.codec, CodecId::Model);
    encoded.payload
}

fn group_alone(codecs: &Codecs, payload: &[u8], layout: &Layout, group: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        true
    };
    codecs
        .decode_group(payload, layout, group, None, &mut sink)
        .unwrap();
    bytes
}

fn anchor_of(bytes: &[u8]) -> AnchorSource {
    AnchorSource {
        block: 3,
        start: 0,
        bytes: Arc::from(bytes),
    }
}

/// Bytes with some structure: slices of text, runs and noise.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let text = (0..TEXT.len(), 0..600usize)
        .prop_map(|(at, len)| TEXT.as_bytes()[at..(at + len).min(TEXT.len())].to_vec());
    let run = (any::<u8>(), 0..300usize).prop_map(|(byte, len)| vec![byte; len]);
    let part = prop_oneof![text, run, prop::collection::vec(any::<u8>(), 0..80)];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    // `measure` decodes in lockstep what it has encoded and compares
    #[test]
    fn any_bytes_come_back(raw in any_bytes(), group in 1usize..2000, anchored in any::<bool>()) {
        let anchor = anchor_of(&TEXT.as_bytes()[..5000]);
        let measured = codecs().measure(&raw, group, anchored.then_some(&anchor)).unwrap();
        prop_assert_eq!(measured.counts.bytes, raw.len() as u64);
        prop_assert_eq!(measured.raw_bytes, raw.len() as u64);
    }

    #[test]
    fn any_bytes_come_back_without_tables(raw in any_bytes(), group in 1usize..2000) {
        let measured = plain_codecs().measure(&raw, group, None).unwrap();
        prop_assert_eq!(measured.counts.bytes, raw.len() as u64);
    }
}

#[test]
fn extreme_lengths_come_back() {
    let everything: Vec<u8> = (0..=255).collect();
    let cases = [
        vec![],
        vec![0],
        vec![255],
        vec![b'a'; 70_000],
        vec![0; 4096],
        b" ".repeat(4097),
        everything.repeat(3),
        noise(5, 3000),
        TEXT.as_bytes()[..9000].to_vec(),
    ];
    for raw in &cases {
        for codecs in [codecs(), plain_codecs()] {
            for group in [1, 600, usize::MAX] {
                codecs.measure(raw, group, None).unwrap();
            }
        }
    }
}

/// Text with parts that are easy and hard, so that groups have very different numbers of tokens.
fn uneven(len: usize) -> Vec<u8> {
    let mut random = Random::new(9);
    let mut raw = Vec::new();
    while raw.len() < len {
        let at = random.below(TEXT.len() - 900);
        raw.extend_from_slice(&TEXT.as_bytes()[at..at + random.below(900)]);
        match random.below(3) {
            0 => raw.extend(std::iter::repeat_n(b'-', random.below(1500))),
            1 => raw.extend(random.bytes(40)),
            _ => {}
        }
    }
    raw.truncate(len);
    raw
}

#[test]
fn a_group_alone_is_the_group_in_company() {
    let raw = uneven(30_000);
    // more groups than there are slots, and fewer
    for group in [500, 1800, 4096, 12_000] {
        let payload = encode(codecs(), &raw, group, None);
        let layout = codecs().open(&payload).unwrap();
        assert_eq!(codecs().decode_all(&payload, None).unwrap(), raw);
        let count = layout.groups.len();
        for group in (0..count).rev().step_by(1 + count / 8) {
            let range = &layout.groups[group];
            let expected = &raw[range.start as usize..range.end as usize];
            assert_eq!(group_alone(codecs(), &payload, &layout, group), expected);
        }
    }
}

#[test]
fn chunks_are_counted_and_groups_end_with_them() {
    let raw = uneven(20_000);
    let model = model(file());
    let tokens = model.expert().unwrap().merges.tokens(&raw).len();
    let payload = encode(codecs(), &raw, 3000, None);
    let layout = codecs().open(&payload).unwrap();
    assert_eq!(layout.chunks as usize, tokens.div_ceil(128));
    assert!(layout.groups.len() > 5);
}

#[test]
fn a_group_stops_when_told() {
    let raw = uneven(20_000);
    let payload = encode(codecs(), &raw, 20_000, None);
    let layout = codecs().open(&payload).unwrap();
    let mut pieces = Vec::new();
    let mut sink = |piece: &[u8]| {
        pieces.push(piece.to_vec());
        pieces.len() < 2
    };
    codecs()
        .decode_group(&payload, &layout, 0, None, &mut sink)
        .unwrap();
    assert_eq!(pieces.concat(), raw[..8192]);
}

#[test]
fn an_anchor_helps_and_is_asked_for() {
    let text = TEXT.as_bytes();
    let (history, rest) = text.split_at(12_000);
    let related = [&history[3000..9000], &rest[..2000]].concat();
    let anchor = anchor_of(history);
    let alone = encode(codecs(), &related, 2000, None);
    let payload = encode(codecs(), &related, 2000, Some(&anchor));
    assert!(payload.len() < alone.len());
    let layout = codecs().open(&payload).unwrap();
    let named = layout.anchor.clone().unwrap();
    let refused = codecs().decode_all(&payload, None);
    assert!(matches!(refused, Err(CodecError::NeedsAnchor(3))));
    let range = named.range.start as usize..named.range.end as usize;
    let snapshot = codecs().snapshot(&layout, &history[range]).unwrap();
    let decoded = codecs().decode_all(&payload, Some(&snapshot)).unwrap();
    assert_eq!(decoded, related);
    assert!(codecs().decode_all(&alone, Some(&snapshot)).is_err());
}

#[test]
fn every_engine_writes_the_same_and_reads_the_others() {
    let raw = uneven(5000);
    let model = model(file());
    let network = &model.expert().unwrap().network;
    let reference = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
    let mut all = vec![codecs_on(reference)];
    for kernel in Kernel::available() {
        all.push(codecs_on(Simd::new(network.clone(), 2).with_kernel(kernel)));
    }
    let payload = encode(codecs(), &raw, 1500, None);
    for codecs in &all {
        assert_eq!(encode(codecs, &raw, 1500, None), payload);
        assert_eq!(codecs.decode_all(&payload, None).unwrap(), raw);
    }
}

#[test]
fn heads_that_are_skipped_are_skipped_on_both_sides() {
    let raw = uneven(12_000).repeat(2);
    let mut evaluated = Vec::new();
    for skip in [1, 5, LENGTH_BUCKETS] {
        let mut model = model(file());
        model.set_skip(skip);
        let codecs = Codecs::with_model(&model.to_bytes().unwrap()).unwrap();
        let measured = codecs.measure(&raw, 20_000, None).unwrap();
        evaluated.push(measured.counts.evaluated as f64 / measured.counts.tokens as f64);
    }
    assert!(
        evaluated[0] < evaluated[1] && evaluated[1] < 0.9,
        "{evaluated:?}"
    );
    assert_eq!(evaluated[2], 1.0);
}

#[test]
fn damaged_payloads_are_errors() {
    let raw = uneven(9000);
    let payload = encode(codecs(), &raw, 3000, None);
    let mut random = Random::new(3);
    let mut refused = 0;
    for round in 0..150 {
        let mut bad = payload.clone();
        if round % 5 == 0 {
            bad.truncate(random.below(payload.len()));
        } else {
            bad[random.below(payload.len())] ^= 1 << random.below(8);
        }
        match codecs().decode_all(&bad, None) {
            Err(_) => refused += 1,
            // zeros behind the end of a code may have been left out, and some header bits say nothing
            Ok(decoded) => assert!(decoded == raw, "wrong bytes in round {round}"),
        }
    }
    assert!(refused >= 145, "{refused} of 150");
}

#[test]
fn a_model_with_a_network_survives_its_file() {
    for file in [file(), plain_file()] {
        let again = model(file);
        assert_eq!(again.to_bytes().unwrap(), file);
    }
    let base = base();
    assert_eq!(model(file()).base(), Some(base.hash));
    assert!(model(file()).has_history() && !model(plain_file()).has_history());
    assert!(Model::from_bytes(file()).is_err(), "its base is missing");
    assert!(Model::from_bytes(plain_file()).is_ok(), "it needs no base");
}

#[test]
fn a_network_joins_no_tables_that_know_bytes_by_a_code() {
    let name = Codecs::with_embedded("full").unwrap().encoding_model_name();
    let coded = Model::from_bytes(Codecs::embedded_file(&name.unwrap()).unwrap()).unwrap();
    assert!(!coded.code().is_plain());
    let error = mix(Some(&coded), network()).unwrap_err();
    assert!(error.to_string().contains("--plain"), "{error}");
}

#[test]
fn damaged_network_models_are_refused() {
    let find = |hash: &ModelHash| (*hash == base().hash).then(base);
    for good in [file(), plain_file()] {
        let mut random = Random::new(4);
        for _ in 0..60 {
            let mut bad = good.to_vec();
            let at = 12 + random.below(good.len() - 12);
            bad[at] ^= 1 << random.below(8);
            assert!(Model::from_bytes_and(&bad, &find).is_err(), "byte {at}");
            bad.truncate(at);
            assert!(Model::from_bytes_and(&bad, &find).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn a_network_that_does_not_fit_its_vocabulary_is_refused() {
    let (network, tokenizer) = network();
    let text = TEXT.as_bytes();
    let other = Tokenizer::train(std::iter::once(text), 600).and_then(Tokenizer::sorted);
    let unsorted = Tokenizer::train(std::iter::once(text), 700);
    for wrong in [other.unwrap(), unsorted.unwrap()] {
        let trained = mix(None, (network.clone(), wrong));
        assert!(matches!(trained, Err(TrainError::Model(_))));
    }
    // a class boundary in the middle of a subtree of the vocabulary
    let mut config = network.config().clone();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    config.classes = vec![0, vocabulary.find(b"th").unwrap() + 1];
    let crooked = networks::network(&mut Random::new(2), config, false);
    let trained = mix(None, (crooked, tokenizer));
    assert!(matches!(trained, Err(TrainError::Model(_))));
}
