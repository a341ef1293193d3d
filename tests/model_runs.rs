//! Runs: what a match is sure of is one decision, and decodes to the same on every machine.

use proptest::prelude::*;
use s2sfs::codec::Codecs;
use s2sfs::model::adaptive::Histories;
use s2sfs::model::predictor::{BitCoder, Predictor};
use s2sfs::model::{Cost, Model};
use std::sync::{Arc, LazyLock};

fn embedded(name: &str) -> &'static [u8] {
    let name = Codecs::with_embedded(name).unwrap().encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}

static FULL: LazyLock<Arc<Model>> =
    LazyLock::new(|| Arc::new(Model::from_bytes(embedded("full")).unwrap()));
static LEAN: LazyLock<Model> = LazyLock::new(|| on_full(embedded("default")));
static THOROUGH: LazyLock<Model> = LazyLock::new(|| on_full(embedded("thorough")));

fn on_full(file: &[u8]) -> Model {
    Model::from_bytes_and(file, &|_| Some(FULL.clone())).unwrap()
}

/// Counts decisions beside their cost.
#[derive(Default)]
struct Count(usize, Cost);

impl BitCoder for Count {
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        self.0 += 1;
        self.1.code(p, bit)
    }
}

/// Decisions and bits.
fn cost(model: &Model, bytes: &[u8]) -> (usize, f64) {
    let mut count = Count::default();
    let mut predictor = Predictor::new(model, model.fresh(bytes.len()));
    for &byte in bytes {
        predictor.byte(&mut count, byte);
    }
    (count.0, count.1.bits)
}

/// Lines that differ in a few columns.
fn log() -> Vec<u8> {
    let line = |i: u32| {
        let (second, port) = (i * 7 % 60, 1024 + i.wrapping_mul(2_654_435_761) % 60_000);
        format!(
            "Nov 22 12:{:02}:{second:02} host sshd[{}]: Connection closed by 10.0.3.7 port {port}\n",
            i / 9,
            700 + i / 5
        )
    };
    (0..200).map(line).collect::<String>().into_bytes()
}

#[test]
fn what_repeats_itself_takes_few_decisions_and_hardly_more_room() {
    let log = log();
    for model in [&*LEAN, &*THOROUGH] {
        assert!(model.adaptation().runs.is_some());
        let (decisions, bits) = cost(model, &log);
        let (all, without) = cost(&FULL, &log);
        assert!(
            decisions * 3 < all * 2,
            "{decisions} decisions instead of {all} for {} bytes",
            log.len()
        );
        // half of the histories know less of such data, with runs and without
        let most = match model.histories() {
            Histories::All => 1.05,
            Histories::Lean => 1.4,
        };
        assert!(bits < without * most, "{bits} bits instead of {without}");
    }
    assert_eq!(THOROUGH.histories(), Histories::All);
}

#[test]
fn what_never_repeats_itself_has_no_runs() {
    let mut state = 7u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(4000)
    .collect();
    let (decisions, bits) = cost(&LEAN, &noise);
    assert!(decisions > 4000 * 4 && bits > 4000.0 * 7.9);
}

/// Every decision with its probability, as an encoder gets them.
#[derive(Default)]
struct Record(Vec<(u16, u32)>);

impl BitCoder for Record {
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        assert!(p > 0);
        self.0.push((p, bit));
        bit
    }
}

/// Gives the decisions back, as a decoder does, and compares what they were predicted with.
struct Replay<'a>(std::slice::Iter<'a, (u16, u32)>);

impl BitCoder for Replay<'_> {
    fn code(&mut self, p: u16, _: u32) -> u32 {
        let &(expected, bit) = self.0.next().expect("no more decisions than there were");
        assert_eq!(p, expected);
        bit
    }
}

#[test]
fn a_state_in_memory_that_was_used_is_as_good_as_new() {
    let log = log();
    let (anchor, text) = (&log[..4000], include_bytes!("model_runs.rs"));
    let models = [&*LEAN, &*THOROUGH, &**FULL];
    for (used, model) in models
        .iter()
        .flat_map(|used| models.map(|model| (*used, model)))
    {
        for used_for in [300, 40_000] {
            let spare = || {
                let mut predictor = Predictor::new(used, used.fresh(used_for));
                log[5000..8000].iter().for_each(|&byte| {
                    predictor.byte(&mut Record::default(), byte);
                });
                predictor.into_state()
            };
            let new = encoded(Predictor::new(model, model.fresh(text.len())), text);
            let again = encoded(
                Predictor::new(model, model.fresh_in(spare(), text.len())),
                text,
            );
            assert!(new == again);
            let after = model.after(anchor);
            let copied = encoded(Predictor::new(model, after.copied_into(spare())), text);
            assert!(encoded(Predictor::new(model, after), text) == copied);
        }
    }
}

fn encoded(mut predictor: Predictor<&Model>, bytes: &[u8]) -> Vec<(u16, u32)> {
    let mut record = Record::default();
    for &byte in bytes {
        predictor.byte(&mut record, byte);
    }
    record.0
}

fn decoded(mut predictor: Predictor<&Model>, code: &[(u16, u32)], len: usize) -> Vec<u8> {
    let mut replay = Replay(code.iter());
    let bytes = (0..len).map(|_| predictor.byte(&mut replay, 0)).collect();
    assert!(replay.0.next().is_none());
    bytes
}

/// Pieces of a small text over and over, with bytes changed here and there.
fn repeats() -> impl Strategy<Value = Vec<u8>> {
    let piece = (
        0usize..160,
        1usize..60,
        prop::option::of((0usize..60, any::<u8>())),
    );
    prop::collection::vec(piece, 1..80).prop_map(|pieces| {
        let text = include_bytes!("model_runs.rs");
        let mut bytes = Vec::new();
        for (from, len, change) in pieces {
            let start = bytes.len();
            bytes.extend_from_slice(&text[from..from + len]);
            if let Some((at, byte)) = change
                && at < len
            {
                bytes[start + at] = byte;
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn runs_decode_to_what_was_encoded_by_every_build(bytes in repeats(), anchor in repeats()) {
        for model in [&*LEAN, &*THOROUGH] {
            for anchored in [false, true] {
                let state = || match anchored {
                    true => model.after(&anchor),
                    false => model.fresh(bytes.len()),
                };
                let code = encoded(Predictor::new(model, state()), &bytes);
                let portable = encoded(Predictor::new(model, state()).portable(), &bytes);
                prop_assert_eq!(&code, &portable);
                prop_assert_eq!(&decoded(Predictor::new(model, state()), &code, bytes.len()), &bytes);
                let portable = Predictor::new(model, state()).portable();
                prop_assert_eq!(&decoded(portable, &code, bytes.len()), &bytes);
            }
        }
    }
}
