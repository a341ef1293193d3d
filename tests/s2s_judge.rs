//! The judge of latents says what a store would write, and knows whom it cannot judge.

#[path = "common/moment.rs"]
mod moment;
#[path = "common/network_model.rs"]
mod network_model;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;

use candle_core::Device;
use network_model::TEXT;
use s2sfs::codec::{Codecs, Latents};
use s2sfs::model::latents::{LatentCounts, LatentPrior};
use s2sfs::model::tokenizer::Tokenizer;
use s2sfs::model::{Model, NetworkParts};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::data::Language;
use s2sfs::train::network::evaluate::{Computer, best_export};
use s2sfs::train::network::float::{FloatNetwork, Sample};
use s2sfs::train::s2s::judge::{self, Judge};

const LATENTS: (usize, usize) = (20, 6);

/// Latents stand for tokens, so they change histories as well as what the network says.
fn prior() -> LatentPrior {
    let prior = LatentPrior::new(&LatentCounts::new(LATENTS.0, LATENTS.1).unwrap());
    let tokens = (0..LATENTS.0 as u16).map(|latent| 200 + 7 * latent);
    prior.with_glosses(tokens.collect()).unwrap()
}

fn base() -> Model {
    Model::from_bytes(network_model::base_file()).unwrap()
}

/// A model with tables whose network reads no latents, and its vocabulary.
fn known() -> (Model, Tokenizer) {
    let (network, tokenizer) = network_model::network(5);
    let parts = NetworkParts {
        name: "known".into(),
        tokenizer: tokenizer.clone(),
        network,
        prior: None,
        adaptation: base().fresh(0).adaptation,
    };
    (
        Model::with_network(Some(&base()), parts).unwrap(),
        tokenizer,
    )
}

/// A decompressor that has learned a little.
fn decompressor(tokenizer: &Tokenizer) -> FloatNetwork {
    let (network, _) = network_model::with_latents(TEXT, (400, 16), LATENTS, 5);
    let floats = FloatNetwork::new(network.config().clone(), &mut Random(3), &Device::Cpu);
    let floats = floats.unwrap();
    let tokens = tokenizer.token_ids(TEXT.as_bytes()).unwrap();
    let latents = [3, 1];
    let samples: Vec<Sample> = (tokens.chunks(60).take(6))
        .map(|tokens| Sample {
            tokens,
            latents: &latents,
        })
        .collect();
    moment::train(&floats, &mut Computer::Candle, &samples, 12);
    floats
}

#[test]
fn it_counts_the_bits_that_the_model_would_write() {
    let (known, tokenizer) = known();
    let floats = decompressor(&tokenizer);
    let language = Language::new(tokenizer.clone()).unwrap();
    let texts: Vec<&[u8]> = TEXT.as_bytes()[3000..].chunks(150).take(5).collect();
    let tokens: Vec<Vec<u16>> = texts
        .iter()
        .map(|t| tokenizer.token_ids(t).unwrap())
        .collect();
    let latents: [&[u16]; 5] = [&[], &[3, 1], &[3, 1], &[2], &[]];
    let samples: Vec<Sample> = (tokens.iter().zip(latents))
        .map(|(tokens, latents)| Sample { tokens, latents })
        .collect();
    let judge = Judge::new(&known, &floats, &prior(), &samples, 2).unwrap();
    let bits = judge.bits(&language, &samples).unwrap();

    let network = best_export(&floats, &samples, 1).unwrap().0;
    let file = known.with_other_network(network, Some(prior())).unwrap();
    let file = file.to_bytes().unwrap();
    let codecs = Codecs::with_model_and_base(&file, Some(network_model::base_file())).unwrap();
    let len = |text: &[u8], latents: &[u16]| {
        let latents = Latents {
            shared: latents.to_vec(),
            own: vec![],
        };
        let coded = codecs.encode_by_model(text, text.len(), None, Some(&latents));
        coded.unwrap().0.payload.len() as f64
    };
    // what stands around the code is the same for all strings of as many latents
    for (a, b) in [(0, 4), (1, 2)] {
        let bytes = len(texts[a], latents[a]) - len(texts[b], latents[b]);
        let judged = (bits[a] - bits[b]) / 8.0;
        assert!((bytes - judged).abs() <= 3.0, "{bytes} {judged}");
    }
    let codes: f64 = bits.iter().sum::<f64>() / 8.0;
    let payloads: f64 = texts.iter().zip(latents).map(|(t, l)| len(t, l)).sum();
    assert!(
        (5.0 * 10.0..5.0 * 40.0).contains(&(payloads - codes)),
        "{payloads} {codes}"
    );
    assert_ne!(
        bits[1],
        judge
            .bits(&language, &[Sample::from(&tokens[1][..])])
            .unwrap()[0]
    );
}

#[test]
fn a_model_without_network_or_with_another_vocabulary_cannot_judge() {
    let (known, tokenizer) = known();
    let language = Language::new(tokenizer).unwrap();
    judge::check(&known, &language).unwrap();
    let error = judge::check(&base(), &language).unwrap_err().to_string();
    assert!(error.contains("no network"), "{error}");
    let (_, other) = network_model::of_text(include_str!("s2s_judge.rs"), 400, 16, 5);
    let other = Language::new(other).unwrap();
    let error = judge::check(&known, &other).unwrap_err().to_string();
    assert!(error.contains("vocabulary"), "{error}");
    let network = Arc::new(network_model::with_latents(TEXT, (400, 16), LATENTS, 5).0);
    assert!(known.with_other_network(network.clone(), None).is_err());
    assert!(base().with_other_network(network, Some(prior())).is_err());
}
