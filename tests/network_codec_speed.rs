//! What coding with a network costs, part by part: `make bench-network`.
//!
//! `S2SFS_MODEL` names a model file with a network on top of the built-in model, and `S2SFS_TEXT` what to code
//! (its first 256 KiB). Without a model a random network of net-small's shape is measured, which costs
//! the same and predicts nothing, on sources of the project.

#[path = "common/clock.rs"]
mod clock;
#[path = "common/network_model.rs"]
mod network_model;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::path::Path;
use std::sync::Arc;

use clock::on_processor;
use random::Random;
use s2sfs::codec::{Codecs, EncodeOptions, Policy};
use s2sfs::model::network::simd::Simd;
use s2sfs::model::network::{Config, Engine, Memory, Sequence};
use s2sfs::model::tokenizer::Tokenizer;
use s2sfs::model::tokens::{Position, Tokens};
use s2sfs::model::vocabulary::Vocabulary;
use s2sfs::model::{Cost, Model};
use s2sfs::train::Progress;
use s2sfs::train::mixing::{self, MixingOptions, Trained};

/// Bytes that are coded.
const BYTES: usize = 256 << 10;
/// Tokens of net-small.
const VOCABULARY: usize = 4096;
/// How often each way is measured; the fastest counts, for the machine is noisy.
const ROUNDS: usize = 3;

fn source() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

/// The files of a directory, one behind the other.
fn read_all(dir: &Path, out: &mut Vec<u8>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    entries.sort_by_key(|entry| entry.path());
    for entry in entries {
        match entry.file_type().unwrap().is_dir() {
            true => read_all(&entry.path(), out),
            false => out.extend(std::fs::read(entry.path()).unwrap()),
        }
    }
}

fn text() -> Vec<u8> {
    let mut text = Vec::new();
    match std::env::var_os("S2SFS_TEXT") {
        Some(path) => text = std::fs::read(path).unwrap(),
        None => read_all(source(), &mut text),
    }
    text.truncate(BYTES);
    text
}

fn base() -> Model {
    Model::from_bytes(network_model::base_file()).unwrap()
}

/// A model file with a random network.
fn random_model() -> Vec<u8> {
    let mut text = Vec::new();
    read_all(source(), &mut text);
    let tokenizer = Tokenizer::train(std::iter::once(text.as_slice()), VOCABULARY);
    let tokenizer = tokenizer.and_then(Tokenizer::sorted).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let config = Config {
        vocab_size: vocabulary.len(),
        classes: vocabulary.classes(64),
        ..networks::net_small()
    };
    let network = networks::network(&mut Random::new(1), config, false);
    let options = MixingOptions {
        name: "random".into(),
        bytes: 256 << 10,
        seed: 1,
        threads: 1,
        mixer: None,
    };
    let progress = Progress::new(&|_, _, _, _| ());
    let trained = Trained {
        network,
        tokenizer,
        latents: None,
    };
    let model = mixing::train(source(), Some(&base()), Some(trained), &options, &progress);
    model.unwrap().to_bytes().unwrap()
}

/// Nanoseconds per byte, and what was made.
fn cost<T>(bytes: usize, mut work: impl FnMut() -> T) -> (f64, T) {
    let mut timed = || {
        let start = on_processor();
        let made = work();
        (on_processor() - start, made)
    };
    let (mut best, mut made) = timed();
    for _ in 1..ROUNDS {
        let (time, again) = timed();
        best = best.min(time);
        made = again;
    }
    (best.as_nanos() as f64 / bytes as f64, made)
}

#[test]
#[ignore = "a measurement"]
fn cost_of_every_part_of_coding() {
    let file = match std::env::var_os("S2SFS_MODEL") {
        Some(path) => std::fs::read(path).unwrap(),
        None => random_model(),
    };
    let base = Arc::new(base());
    let model = Model::from_bytes_and(&file, &|_| Some(base.clone())).unwrap();
    let expert = model.expert().unwrap();
    let engine = Simd::new(expert.network.clone(), 1);
    let raw = text();
    let report = |what: &str, cost: f64| {
        println!("{what}: {cost:.0} ns/byte, {:.1} KB/s", 1e6 / cost);
    };

    let (segmentation, tokens) = cost(raw.len(), || expert.merges.tokens(&raw));
    report("segmentation", segmentation);
    let memory = Memory::default();
    let sequence = Sequence {
        tokens: &tokens,
        memory: &memory,
    };
    let (network, rows) = cost(raw.len(), || engine.hidden(&[sequence]).unwrap());
    report("network, teacher-forced", network);
    let width = expert.network.config().d_model;
    let code = |skip: Option<usize>| {
        let mut coder = Cost::default();
        let mut coding = Tokens::new(&model, || model.fresh(raw.len())).unwrap();
        if let Some(skip) = skip {
            coding = coding.with_skip(skip);
        }
        let mut left = raw.len();
        for (&token, row) in tokens.iter().zip(rows[0].chunks_exact(width)) {
            let token = Some(token);
            let position = Position { row, left, token };
            coding.token(&mut coder, &engine, position).unwrap();
            left -= coding.bytes().len();
        }
        (coding.counts(), coder.bits)
    };
    let (mixing, (counts, bits)) = cost(raw.len(), || code(None));
    report("heads, mixing, tables", mixing);
    println!(
        "{:.2} bytes per token, heads evaluated for {:.1} % of the tokens, ratio {:.3} in one group",
        counts.bytes as f64 / counts.tokens as f64,
        100.0 * counts.evaluated as f64 / counts.tokens as f64,
        8.0 * raw.len() as f64 / bits
    );
    let (heads, _) = cost(raw.len(), || {
        rows[0].chunks_exact(width).for_each(|row| {
            engine.class_logits(row).unwrap();
            engine.token_logits(row, 5).unwrap();
        });
    });
    report("of this, logits of a class head and a token head", heads);

    let codecs = Codecs::with_model(&file).unwrap();
    for slots in [1, 2, 4, 8, 16] {
        // as many groups as slots
        let group = Some((raw.len().div_ceil(slots) + 1500) as u32);
        let policy = Policy::Ratio;
        let encoded = codecs
            .encode(
                &raw,
                &EncodeOptions {
                    policy,
                    group,
                    ..EncodeOptions::default()
                },
                None,
            )
            .unwrap();
        let groups = codecs.open(&encoded.payload).unwrap().groups.len();
        let (decoding, back) = cost(raw.len(), || {
            codecs.decode_all(&encoded.payload, None).unwrap()
        });
        assert_eq!(back, raw);
        let codec = encoded.codec.name();
        report(
            &format!("decoding, {codec}, {groups} groups at a time"),
            decoding,
        );
    }
}
