//! The gradients that are written out by hand are those that candle derives.

#[path = "common/decoder.rs"]
mod decoder;

use candle_core::{Device, Tensor};
use decoder::decoder;
use s2sfs::model::network::{Config, FeedForward};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::float::{FloatNetwork, Sample};
use s2sfs::train::network::fused::Fused;

/// Moves every parameter a little, so that none is at a special value.
fn shaken(network: &FloatNetwork, random: &mut Random) {
    for parameter in network.parameters() {
        let count = parameter.var.elem_count();
        let noise = |_| random.below(2001) as f32 / 1000.0 - 1.0;
        let noise: Vec<f32> = (0..count).map(noise).collect();
        let noise = Tensor::from_vec(noise, parameter.var.shape(), &Device::Cpu).unwrap();
        let moved = (parameter.var.as_tensor() + (noise * 0.05).unwrap()).unwrap();
        parameter.var.set(&moved).unwrap();
    }
}

fn norm(tensor: &Tensor) -> f32 {
    tensor
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .to_scalar::<f32>()
        .unwrap()
        .sqrt()
}

/// A network at no special place.
fn network(config: &Config, rounded: bool, random: &mut Random) -> FloatNetwork {
    let mut network = FloatNetwork::new(config.clone(), random, &Device::Cpu).unwrap();
    network.rounded = rounded;
    shaken(&network, random);
    network
}

fn sequences(config: &Config, lens: &[usize], random: &mut Random) -> Vec<Vec<u16>> {
    let mut token = |_| random.below(config.vocab_size) as u16;
    lens.iter()
        .map(|&len| (0..len).map(&mut token).collect())
        .collect()
}

/// Compares mean cost and gradients by hand with candle's, and with those by one thread.
fn compare(network: &FloatNetwork, samples: &[Sample], fused: &mut Fused) {
    let loss = network.loss(samples).unwrap();
    let expected = loss.backward().unwrap();
    let loss = f64::from(loss.to_scalar::<f32>().unwrap());
    let (cost, gradients) = fused.gradients(network, samples).unwrap();
    assert!((cost / loss - 1.0).abs() < 2e-3, "{cost} instead of {loss}");
    let parameters = network.parameters();
    assert_eq!(parameters.len(), gradients.len());
    for (parameter, gradient) in parameters.iter().zip(&gradients) {
        let expected = expected.get(parameter.var.as_tensor());
        let Some(expected) = expected.filter(|expected| norm(expected) > 0.0) else {
            assert_eq!(norm(gradient), 0.0, "{}", parameter.name);
            continue;
        };
        let error = norm(&(expected - gradient).unwrap()) / norm(expected);
        println!("{} {}: {error}", network.rounded, parameter.name);
        // products are rounded to bf16; in the biases' gradients they nearly cancel out
        let most = match parameter.name.ends_with("attention.bias") {
            true => 0.1,
            false => 0.05,
        };
        assert!(error < most, "{}: {error}", parameter.name);
    }
    let (_, again) = Fused::new(1).gradients(network, samples).unwrap();
    for (one, two) in gradients.iter().zip(&again) {
        let off = norm(&(one - two).unwrap());
        assert_eq!(off, 0.0, "depends on the number of threads");
    }
}

#[test]
fn gradients_by_hand_are_those_of_candle() {
    for (feed_forward, rounded) in [
        (FeedForward::SquaredRelu, true),
        (FeedForward::SquaredRelu, false),
        (FeedForward::Relu, true),
        (FeedForward::Relu, false),
    ] {
        println!("{feed_forward:?}");
        let config = decoder(feed_forward);
        let mut random = Random(3);
        let network = network(&config, rounded, &mut random);
        // more than one shard, more than one block of queries, and sequences within one pair
        let lens = [150, 7, 64, 1, 90, 330, 200, 150, 170, 160];
        let sequences = sequences(&config, &lens, &mut random);
        let samples: Vec<Sample> = sequences.iter().map(|s| s.as_slice().into()).collect();
        compare(&network, &samples, &mut Fused::new(2));
    }
}

/// The small decoder with an encoder, whose latents fill more than a panel of a product.
fn reader() -> Config {
    Config {
        latent_vocab: 23,
        max_latents: 37,
        num_layers: 2,
        ..decoder(FeedForward::SquaredRelu)
    }
}

/// Lists of latents of odd and even lengths, up to the most that there can be; the first is empty.
fn lists(config: &Config) -> Vec<Vec<u16>> {
    let mut random = Random(5);
    let mut latent = |_| random.below(config.latent_vocab) as u16;
    let lens = [0, 1, 2, 7, 32, 37].into_iter();
    lens.map(|len| (0..len).map(&mut latent).collect())
        .collect()
}

/// Sequences and their lists of latents: neighbours that share some, others that do, none in between; no tokens at all,
/// fewer and more than a window; a shard in which nothing is read, and one without tokens.
const MIXED: [(usize, usize); 22] = [
    (150, 5),
    (7, 5),
    (0, 3),
    (64, 0),
    (1, 1),
    (90, 5),
    (300, 2),
    (200, 4),
    (300, 0),
    // a shard
    (300, 0),
    (300, 0),
    (300, 0),
    (300, 0),
    // another
    (160, 3),
    (39, 3),
    (40, 1),
    (41, 4),
    (300, 3),
    (300, 5),
    (300, 3),
    // and the last
    (0, 2),
    (0, 0),
];

fn mixed<'a>(sequences: &'a [Vec<u16>], lists: &'a [Vec<u16>]) -> Vec<Sample<'a>> {
    let each = sequences.iter().zip(MIXED);
    each.map(|(tokens, (_, list))| Sample {
        tokens,
        latents: &lists[list],
    })
    .collect()
}

#[test]
fn gradients_by_hand_are_those_of_candle_with_latents() {
    let config = reader();
    let lists = lists(&config);
    let sequences = sequences(&config, &MIXED.map(|(len, _)| len), &mut Random(4));
    let samples = mixed(&sequences, &lists);
    let unread: Vec<Sample> = sequences.iter().map(|s| s.as_slice().into()).collect();
    for rounded in [true, false] {
        let network = network(&config, rounded, &mut Random(3));
        let mut fused = Fused::new(2);
        compare(&network, &samples, &mut fused);
        // nothing is left of what was read before
        compare(&network, &unread, &mut fused);
    }
}

#[test]
fn costs_by_hand_are_those_of_candle_sample_by_sample() {
    let config = reader();
    let lists = lists(&config);
    let sequences = sequences(&config, &MIXED.map(|(len, _)| len), &mut Random(4));
    let samples = mixed(&sequences, &lists);
    for rounded in [true, false] {
        let network = network(&config, rounded, &mut Random(3));
        let expected = network.costs(&samples).unwrap();
        let costs = Fused::new(2).costs(&network, &samples).unwrap();
        assert_eq!(costs.len(), expected.len());
        for ((cost, expected), sample) in costs.iter().zip(&expected).zip(&samples) {
            let (tokens, latents) = (sample.tokens.len(), sample.latents.len());
            let off = (cost - expected).abs() / tokens.max(1) as f64;
            assert!(
                off < 0.01,
                "{tokens} tokens, {latents} latents: {cost} instead of {expected}"
            );
        }
        assert_eq!(Fused::new(1).costs(&network, &samples).unwrap(), costs);
        let read: f64 = costs.iter().sum();
        let unread: Vec<Sample> = sequences.iter().map(|s| s.as_slice().into()).collect();
        let unread: f64 = Fused::new(2).costs(&network, &unread).unwrap().iter().sum();
        assert!((read / unread - 1.0).abs() > 1e-3, "{read} {unread}");
    }
}
