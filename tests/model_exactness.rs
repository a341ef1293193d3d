//! The model gives the same probabilities by every engine, and refuses files that could not.

use std::sync::{Arc, OnceLock};

use s2sfs::codec::Codecs;
use s2sfs::model::adaptive::Histories;
use s2sfs::model::predictor::{Adaptation, BitCoder, Predictor};
use s2sfs::model::{Cost, Model, ModelError};

fn file() -> &'static [u8] {
    let name = Codecs::with_embedded("full").unwrap().encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}

fn model() -> &'static Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| Arc::new(Model::from_bytes(file()).unwrap()))
}

fn lean_file() -> &'static [u8] {
    let name = Codecs::with_default_model().unwrap().encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}

/// The mixer with few histories, on the tables of the other model.
fn lean() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| on_base(lean_file()).unwrap())
}

fn on_base(file: &[u8]) -> Result<Model, ModelError> {
    Model::from_bytes_and(file, &|hash| {
        (*hash == model().hash).then(|| model().clone())
    })
}

/// Remembers every probability it was given.
#[derive(Default)]
struct Witness(Vec<u16>);

impl BitCoder for Witness {
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        self.0.push(p);
        bit
    }
}

fn probabilities(mut predictor: Predictor<&Model>, bytes: &[u8]) -> Vec<u16> {
    let mut witness = Witness::default();
    for &byte in bytes {
        predictor.byte(&mut witness, byte);
    }
    witness.0
}

fn samples() -> Vec<Vec<u8>> {
    let text = include_bytes!("model_exactness.rs").to_vec();
    let binary: Vec<u8> = (0..6000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    vec![
        text.clone(),
        binary.clone(),
        [text, binary].concat(),
        vec![0; 3000],
        vec![],
    ]
}

#[test]
fn portable_and_simd_builds_agree_on_every_probability() {
    for bytes in samples() {
        for model in [&**model(), lean()] {
            let fast = probabilities(Predictor::new(model, model.fresh(bytes.len())), &bytes);
            let plain = Predictor::new(model, model.fresh(bytes.len())).portable();
            assert_eq!(fast, probabilities(plain, &bytes));
            assert!(fast.iter().all(|&p| p > 0));
        }
    }
}

#[test]
fn fewer_histories_take_less_memory_and_cost_little() {
    let bytes = &samples()[0];
    let bits = |model: &Model| {
        let mut cost = Cost::default();
        let mut predictor = Predictor::new(model, model.fresh(bytes.len()));
        for &byte in bytes {
            predictor.byte(&mut cost, byte);
        }
        cost.bits
    };
    assert_eq!(lean().histories(), Histories::Lean);
    assert!(lean().fresh(16 << 10).size() < model().fresh(16 << 10).size() * 3 / 4);
    assert!(bits(lean()) < bits(model()) * 1.05);
}

#[test]
fn a_mixer_survives_its_file_and_needs_its_base() {
    let again = on_base(&lean().to_bytes().unwrap()).unwrap();
    assert_eq!((&again.info, again.hash), (&lean().info, lean().hash));
    let bytes = &samples()[0];
    let of = |m: &Model| probabilities(Predictor::new(m, m.fresh(bytes.len())), bytes);
    assert_eq!(of(&again), of(lean()));
    assert_ne!(of(&again), of(model()));
    // those of before 2026-11-22 have no runs
    let without = Adaptation {
        runs: None,
        ..lean().adaptation()
    };
    let without = model().with_mixer_for("old".into(), Histories::Lean, without);
    let without = without.unwrap();
    let again = on_base(&without.to_bytes().unwrap()).unwrap();
    assert_eq!(again.adaptation(), without.adaptation());
    assert_eq!(of(&again), of(&without));
    let alone = Model::from_bytes(lean_file());
    assert!(matches!(alone, Err(ModelError::NeedsBase(_))), "{alone:?}");
    let other = Model::from_bytes_and(lean_file(), &|_| {
        Some(Arc::new(on_base(lean_file()).unwrap()))
    });
    assert!(matches!(other, Err(ModelError::Damaged(_))), "{other:?}");
    assert!(
        lean()
            .with_mixer_for("again".into(), Histories::Lean, lean().adaptation())
            .is_err()
    );
}

#[test]
fn damaged_mixers_are_refused() {
    let good = lean_file();
    for at in (12..good.len()).step_by(7919) {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        assert!(on_base(&bad).is_err(), "a flip at {at} went unnoticed");
        assert!(on_base(&good[..at]).is_err(), "cut short at {at}");
    }
    let longer = [good, &[0]].concat();
    assert!(on_base(&longer).is_err());
}

#[test]
fn a_state_after_an_anchor_is_the_state_of_having_coded_it() {
    let bytes = &samples()[2];
    let (anchor, rest) = bytes.split_at(4000);
    let model = || &**model();
    let mut predictor = Predictor::new(model(), model().after(&[]));
    let mut ignored = Witness::default();
    // `after` sizes its tables by the anchor, so go the same way twice
    let twice = [model().after(anchor), model().after(anchor)]
        .map(|state| probabilities(Predictor::new(model(), state), rest));
    assert_eq!(twice[0], twice[1]);
    for &byte in anchor {
        predictor.byte(&mut ignored, byte);
    }
    assert_ne!(
        probabilities(predictor, rest)[..64],
        probabilities(Predictor::new(model(), model().fresh(rest.len())), rest)[..64]
    );
}

#[test]
fn a_model_survives_its_file() {
    let again = Model::from_bytes(&model().packed(1).unwrap()).unwrap();
    assert_eq!(again.info, model().info);
    let bytes = &samples()[0];
    let of = |m: &Model| probabilities(Predictor::new(m, m.fresh(bytes.len())), bytes);
    assert_eq!(of(&again), of(model()));
}

#[test]
fn damaged_model_files_are_refused() {
    let good = file();
    assert!(matches!(
        Model::from_bytes(b"hello"),
        Err(ModelError::NotAModel)
    ));
    let mut newer = good.to_vec();
    newer[8] = 99;
    assert!(matches!(
        Model::from_bytes(&newer),
        Err(ModelError::Version { found: 99, .. })
    ));
    assert!(Model::from_bytes(&good[..good.len() / 2]).is_err());
    assert!(Model::from_bytes(&good[..13]).is_err());
    for at in [20, 200, 5_000, good.len() / 2, good.len() - 1] {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        assert!(
            Model::from_bytes(&bad).is_err(),
            "a flip at {at} went unnoticed"
        );
    }
}
