//! The gradients that are written out by hand are those that candle derives.

#[path = "common/decoder.rs"]
mod decoder;

use candle_core::{Device, Tensor};
use decoder::decoder;
use s2sfs::model::network::FeedForward;
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

#[test]
fn gradients_by_hand_are_those_of_candle() {
    for (feed_forward, rounded) in [
        (FeedForward::SquaredRelu, true),
        (FeedForward::SquaredRelu, false),
        (FeedForward::Relu, true),
        (FeedForward::Relu, false),
    ] {
        let mut random = Random(3);
        let config = decoder(feed_forward);
        let mut network = FloatNetwork::new(config.clone(), &mut random, &Device::Cpu).unwrap();
        network.rounded = rounded;
        shaken(&network, &mut random);
        // more than one shard, more than one block of queries, and sequences within one pair
        let lens = [150, 7, 64, 1, 90, 330, 200, 150, 170, 160];
        let sequences: Vec<Vec<u16>> = lens
            .iter()
            .map(|&len| {
                (0..len)
                    .map(|_| random.below(config.vocab_size) as u16)
                    .collect()
            })
            .collect();
        let sequences: Vec<&[u16]> = sequences.iter().map(Vec::as_slice).collect();
        let samples: Vec<Sample> = sequences.iter().map(|&s| s.into()).collect();
        let loss = network.loss(&samples).unwrap();
        let expected = loss.backward().unwrap();
        let loss = f64::from(loss.to_scalar::<f32>().unwrap());
        let mut fused = Fused::new(2);
        let (cost, gradients) = fused.gradients(&network, &sequences).unwrap();
        assert!((cost / loss - 1.0).abs() < 2e-3, "{cost} instead of {loss}");
        for (parameter, gradient) in network.parameters().iter().zip(&gradients) {
            let expected = expected.get(parameter.var.as_tensor()).unwrap();
            let error = norm(&(expected - gradient).unwrap()) / norm(expected);
            println!("{feed_forward:?} {rounded} {}: {error}", parameter.name);
            // products are rounded to bf16; in the biases' gradients they nearly cancel out
            let most = match parameter.name.ends_with("attention.bias") {
                true => 0.1,
                false => 0.05,
            };
            assert!(error < most, "{}: {error}", parameter.name);
        }
        let (_, again) = Fused::new(1).gradients(&network, &sequences).unwrap();
        for (one, two) in gradients.iter().zip(&again) {
            assert_eq!(
                norm(&(one - two).unwrap()),
                0.0,
                "depends on the number of threads"
            );
        }
    }
}
