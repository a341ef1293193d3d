//! The model gives the same probabilities by every engine, and refuses files that could not.

use s2sfs::codec::Codecs;
use s2sfs::model::predictor::{BitCoder, Predictor};
use s2sfs::model::{Model, ModelError};

fn file() -> &'static [u8] {
    let name = Codecs::with_default_model().unwrap().encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}

fn model() -> &'static Model {
    static MODEL: std::sync::OnceLock<Model> = std::sync::OnceLock::new();
    MODEL.get_or_init(|| Model::from_bytes(file()).unwrap())
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
        let fast = probabilities(Predictor::new(model(), model().fresh(bytes.len())), &bytes);
        let plain = Predictor::new(model(), model().fresh(bytes.len())).portable();
        assert_eq!(fast, probabilities(plain, &bytes));
        assert!(fast.iter().all(|&p| p > 0));
    }
}

#[test]
fn a_state_after_an_anchor_is_the_state_of_having_coded_it() {
    let bytes = &samples()[2];
    let (anchor, rest) = bytes.split_at(4000);
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
    let again = Model::from_bytes(&model().to_bytes().unwrap()).unwrap();
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
