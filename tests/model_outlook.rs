//! The outlook: what the experts of bytes expect of the next byte as a whole.

use proptest::prelude::*;
use s2sfs::codec::Codecs;
use s2sfs::model::Model;
use s2sfs::model::logistic::Logistic;
use s2sfs::model::mixer::Rates;
use s2sfs::model::predictor::{Adaptation, BitCoder, Params, Predictor, State};
use s2sfs::model::vocabulary::Vocabulary;
use s2sfs::model::walk::{Next, Walk};
use std::sync::OnceLock;

const TEXT: &[u8] = include_bytes!("model_outlook.rs");

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let name = Codecs::with_embedded("plain")
            .unwrap()
            .encoding_model_name();
        Model::from_bytes(Codecs::embedded_file(&name.unwrap()).unwrap()).unwrap()
    })
}

fn params() -> Params {
    model().fresh(0).params
}

/// Multiplies the probabilities of the decisions that it was given.
struct Probability(f64);

impl BitCoder for Probability {
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        let p = f64::from(p) / 65536.0;
        self.0 *= if bit == 1 { p } else { 1.0 - p };
        bit
    }
}

/// The state after some of the text.
fn after(len: usize) -> State {
    let mut predictor = Predictor::new(model(), model().fresh(1 << 14));
    for &byte in &TEXT[..len] {
        predictor.byte(&mut Probability(1.0), byte);
    }
    // the outlook is asked with the parameters that groups start from, and does not learn from bit to bit
    let mut state = predictor.into_state();
    state.params = params();
    state.adaptation = Adaptation {
        mixer: Rates { first: 0, last: 0 },
        histories: 15,
        curves: 15,
        least_error: 0,
        runs: None,
    };
    state
}

fn probability_of(state: &State, byte: u8) -> f64 {
    let mut p = Probability(1.0);
    Predictor::new(model(), state.clone()).byte(&mut p, byte);
    p.0
}

/// A vocabulary in which exactly these bytes follow "x", and the walk to the tokens that have one.
fn following(bytes: &[u8]) -> (Vocabulary, Walk) {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend(bytes.iter().map(|&byte| vec![b'x', byte]));
    tokens.sort();
    tokens.dedup();
    let vocabulary = Vocabulary::of_tokens(&tokens).unwrap();
    let mut walk = Walk::new(&vocabulary);
    let decisions = (1..=8).map(|step| (0, step, u32::from(b'x') >> (8 - step) & 1));
    for (at, step, bit) in decisions.chain([(1, 0, 1)]) {
        if let Next::Open(middle) = walk.next(&vocabulary, at, step) {
            walk.take(middle, bit);
        }
    }
    (vocabulary, walk)
}

fn outlook(state: &State, bytes: &[u8], portable: bool) -> i32 {
    let (vocabulary, walk) = following(bytes);
    let predictor = Predictor::new(model(), state.clone());
    let predictor = match portable {
        true => predictor.portable(),
        false => predictor,
    };
    predictor.outlook(&params(), &vocabulary, walk, 1)
}

#[test]
fn any_byte_at_all_is_nearly_certain() {
    let all: Vec<u8> = (0..=255).collect();
    for len in [0, 50, 700, 2000] {
        let p = Logistic::default().squash(outlook(&after(len), &all, false));
        // branches that are not followed may be many where all are improbable
        assert!(p > 45_000, "{p} behind {len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_outlook_is_the_sum_of_what_coding_each_byte_would_take(
        len in 0..TEXT.len(),
        bytes in prop::collection::vec(32u8..127, 1..12),
    ) {
        let state = after(len);
        let next = TEXT[len..].first().copied();
        let bytes: Vec<u8> = bytes.into_iter().chain(next).collect();
        let mut distinct = bytes.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let sum: f64 = distinct.iter().map(|&byte| probability_of(&state, byte)).sum();
        let p = f64::from(Logistic::default().squash(outlook(&state, &bytes, false))) / 65536.0;
        // each byte less probable than 1/128 may be left out
        let left_out = distinct.len() as f64 / 128.0;
        prop_assert!(p < sum + 0.01 && p > sum - left_out - 0.01, "{} of {}", p, sum);
    }

    #[test]
    fn portable_and_simd_builds_agree(
        len in 0..TEXT.len(),
        bytes in prop::collection::vec(any::<u8>(), 1..60),
    ) {
        let state = after(len);
        prop_assert_eq!(outlook(&state, &bytes, false), outlook(&state, &bytes, true));
    }
}
