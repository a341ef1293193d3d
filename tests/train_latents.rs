//! A network learns to read latents: what it costs follows them, and its exact form reads them alike.

#[path = "common/moment.rs"]
mod moment;

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use moment::{by_columns, train};
use s2sfs::model::network::simd::Simd;
use s2sfs::model::network::{Config, FeedForward};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::evaluate::{Computer, exact_cost};
use s2sfs::train::network::export::export;
use s2sfs::train::network::float::{FloatNetwork, Sample};

/// Texts that latents name, and how long they are: longer than the window.
const TEXTS: usize = 8;
const LENGTH: usize = 20;
/// A latent that names no text, behind those that do.
const SILENT: u16 = TEXTS as u16;

fn shape() -> Config {
    Config {
        vocab_size: 40,
        latent_vocab: TEXTS + 1,
        window: 12,
        max_latents: 5,
        d_model: 32,
        d_kv: 16,
        d_ff: 64,
        num_heads: 2,
        num_layers: 1,
        num_decoder_layers: 2,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 16,
        feed_forward: FeedForward::SquaredRelu,
        ngrams: None,
        classes: vec![0, 13, 30],
    }
}

fn network(config: Config) -> FloatNetwork {
    FloatNetwork::new(config, &mut Random(1), &Device::Cpu).unwrap()
}

/// Texts of random tokens of a few.
fn texts() -> Vec<Vec<u16>> {
    let mut random = Random(7);
    let mut text = || (0..LENGTH).map(|_| 10 + random.below(6) as u16).collect();
    (0..TEXTS).map(|_| text()).collect()
}

/// As many latents as there can be for each text: its own number, the others' in turn.
fn lists() -> Vec<Vec<u16>> {
    let list = |text| (0..5).map(|i| ((text + i * i) % TEXTS) as u16).collect();
    (0..TEXTS).map(list).collect()
}

/// Texts of different lengths with none, one and more latents.
fn mixed<'a>(texts: &'a [Vec<u16>], lists: &'a [Vec<u16>]) -> Vec<Sample<'a>> {
    let sample = |at: usize| Sample {
        tokens: &texts[at % TEXTS][..LENGTH - at % 7],
        latents: &lists[at % TEXTS][..at % 6],
    };
    (0..3 * TEXTS).map(sample).collect()
}

/// A network that was trained for a moment on samples with any number of latents.
fn begun() -> FloatNetwork {
    let (texts, lists) = (texts(), lists());
    let network = network(shape());
    let samples = mixed(&texts, &lists);
    train(&network, &mut Computer::Candle, &samples, 40);
    network
}

fn cost(network: &FloatNetwork, samples: &[Sample]) -> f64 {
    Computer::Candle.cost(network, samples).unwrap()
}

fn cost_of_exact(network: &FloatNetwork, samples: &[Sample]) -> f64 {
    let exact = Arc::new(export(network).unwrap());
    let engine = Simd::new(exact.clone(), 1);
    exact_cost(&engine, &exact, samples).unwrap()
}

#[test]
fn the_exact_network_reads_latents_as_the_floats_do() {
    let (texts, lists) = (texts(), lists());
    let network = begun();
    for latents in 0..=5 {
        let every_pair = texts
            .iter()
            .flat_map(|text| lists.iter().map(move |list| (text, list)));
        let samples: Vec<Sample> = every_pair
            .map(|(tokens, list)| Sample {
                tokens,
                latents: &list[..latents],
            })
            .collect();
        let float = cost(&network, &samples);
        let exact = cost_of_exact(&network, &samples);
        println!("{latents} latents: exact {exact}, float {float}");
        assert!(
            (exact / float - 1.0).abs() < 0.01,
            "{latents} latents: exact {exact}, float {float}"
        );
        let unread: Vec<Sample> = samples.iter().map(|s| s.tokens.into()).collect();
        let unread = cost(&network, &unread);
        assert_eq!(latents == 0, unread == float, "{latents} latents: {unread}");
    }
}

#[test]
fn a_batch_costs_what_its_sequences_cost_one_by_one() {
    let (texts, lists) = (texts(), lists());
    let network = begun();
    let samples = mixed(&texts, &lists);
    let together = cost(&network, &samples);
    let alone: f64 = samples.iter().map(|&s| cost(&network, &[s])).sum();
    assert!(
        (together / alone - 1.0).abs() < 1e-4,
        "{together} together, {alone} alone"
    );
}

#[test]
fn without_latents_a_network_is_what_it_is_without_encoder() {
    let network = begun();
    let plain = self::network(Config {
        latent_vocab: 0,
        max_latents: 0,
        num_layers: 0,
        ..shape()
    });
    let known = network.parameters();
    for parameter in plain.parameters() {
        let same = known.iter().find(|p| p.name == parameter.name).unwrap();
        parameter.var.set(same.var.as_tensor()).unwrap();
    }
    let texts = texts();
    let samples: Vec<Sample> = texts.iter().map(|text| text.as_slice().into()).collect();
    assert_eq!(cost(&network, &samples), cost(&plain, &samples));
    // the same parameters, but for those that read latents
    let fresh = |network: &FloatNetwork| {
        let named = network.parameters().into_iter();
        let named = named.map(|p| (p.name, p.var.flatten_all().unwrap()));
        named
            .map(|(name, values)| (name, values.to_vec1::<f32>().unwrap()))
            .collect::<Vec<_>>()
    };
    let with: Vec<_> = fresh(&self::network(shape()));
    let without = fresh(&self::network(plain.config.clone()));
    assert!(without.len() + 20 < with.len());
    assert!(without.iter().all(|parameter| with.contains(parameter)));
}

fn largest(gradient: &Tensor) -> f32 {
    let values = gradient.abs().unwrap().max_all().unwrap();
    values.to_scalar::<f32>().unwrap()
}

#[test]
fn every_parameter_that_reads_latents_is_trained() {
    let (texts, lists) = (texts(), lists());
    let network = begun();
    let samples = mixed(&texts, &lists);
    let mut computer = Computer::new(&network, &Device::Cpu, 2);
    assert!(matches!(computer, Computer::Fused(_)));
    let (_, gradients) = computer.gradients(&network, &samples).unwrap();
    let parameters = network.parameters();
    let mut names = HashSet::new();
    for (parameter, gradient) in parameters.iter().zip(&gradients) {
        let name = parameter.name.as_str();
        assert!(names.insert(name), "{name} twice");
        assert!(largest(gradient) > 1e-7, "{name} gets no gradient");
    }
    for name in [
        "latents",
        "encoder.norm",
        "encoder.0.attention.bias",
        "encoder.0.down",
        "decoder.1.cross.key",
        "decoder.1.cross.score",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
}

#[test]
fn the_right_latents_save_most_of_the_cost_and_wrong_ones_add_to_it() {
    let texts = texts();
    let names: Vec<[u16; 2]> = (0..SILENT).map(|text| [text, SILENT]).collect();
    let named = |off: usize, latents: usize| -> Vec<Sample> {
        let sample = |text: usize| Sample {
            tokens: &texts[text],
            latents: &names[(text + off) % TEXTS][..latents],
        };
        (0..TEXTS).map(sample).collect()
    };
    let samples = [named(0, 0), named(0, 1), named(0, 2)].concat();
    for by_hand in [true, false] {
        let network = network(shape());
        let mut computer = match by_hand {
            true => Computer::new(&network, &Device::Cpu, 2),
            false => Computer::Candle,
        };
        train(&network, &mut computer, &samples, 300);
        let none = cost(&network, &named(0, 0));
        for latents in 1..=2 {
            let right = cost(&network, &named(0, latents));
            let wrong = cost(&network, &named(3, latents));
            println!("{latents} latents: right {right}, none {none}, wrong {wrong}");
            assert!(right < 0.3 * none, "right {right}, none {none}");
            assert!(wrong > 1.5 * none, "wrong {wrong}, none {none}");
        }
    }
}

/// Changes a network so that it computes the same in floats, but with weights that no scale of the exact network holds in
/// the units of training, and with negative gains, wherever latents are read.
fn outgrow(network: &FloatNetwork) {
    let encoder = network.encoder.as_ref().unwrap();
    let signs = [1.0, -1.0, -1.0];
    by_columns(&encoder.latents, &[64.0]);
    by_columns(&encoder.norm, &signs);
    for layer in &encoder.layers {
        by_columns(&layer.attention.output, &[64.0]);
        by_columns(&layer.down, &[64.0]);
    }
    by_columns(&network.tokens, &[64.0]);
    for layer in &network.layers {
        let cross = layer.cross.as_ref().unwrap();
        for var in [&cross.norm, &cross.query, &cross.key, &cross.value] {
            by_columns(var, &signs);
        }
        // negative scores with keys that are turned, negative gains with outputs that are
        for var in [&cross.score, &cross.gain, &cross.key, &cross.output] {
            by_columns(var, &[-1.0]);
        }
        for var in [&layer.attention.output, &cross.output, &layer.down] {
            by_columns(var, &[64.0]);
        }
    }
}

#[test]
fn weights_that_outgrow_the_units_of_training_are_exported_in_others() {
    let (texts, lists) = (texts(), lists());
    let mut network = begun();
    network.rounded = false;
    let samples = mixed(&texts, &lists);
    let both = |network: &FloatNetwork| (cost(network, &samples), cost_of_exact(network, &samples));
    let before = both(&network);
    outgrow(&network);
    let after = both(&network);
    for (one, two, most) in [(before.0, after.0, 2e-3), (before.1, after.1, 0.02)] {
        assert!((two / one - 1.0).abs() < most, "{before:?} {after:?}");
    }
}

#[test]
fn latents_that_no_encoder_knows_are_refused() {
    let tokens = [1, 2, 3];
    let plain = network(Config {
        latent_vocab: 0,
        max_latents: 0,
        num_layers: 0,
        ..shape()
    });
    let [of_text, by_hand, too] = std::array::from_fn(|_| Computer::new(&plain, &Device::Cpu, 1));
    assert!(matches!(of_text, Computer::Fused(_)));
    for (network, mut computer, latents) in [
        (network(shape()), Computer::Candle, &[SILENT + 1][..]),
        (network(shape()), Computer::Candle, &[0; 6]),
        (network(shape()), by_hand, &[SILENT + 1]),
        (network(shape()), too, &[0; 6]),
        (plain, of_text, &[0]),
    ] {
        let samples = [Sample {
            tokens: &tokens,
            latents,
        }];
        let refused = |result: Result<(), String>| {
            let error = result.unwrap_err();
            assert!(error.contains("not of this network"), "{error}");
        };
        let cost = computer.cost(&network, &samples);
        refused(cost.map(|_| ()).map_err(|e| e.to_string()));
        let gradients = computer.gradients(&network, &samples);
        refused(gradients.map(|_| ()).map_err(|e| e.to_string()));
        let exact = Arc::new(export(&network).unwrap());
        let exact = exact_cost(&Simd::new(exact.clone(), 1), &exact, &samples);
        refused(exact.map(|_| ()).map_err(|e| e.to_string()));
    }
}
