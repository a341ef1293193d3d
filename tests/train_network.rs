//! Training of the network: it learns, and what is exported is what was trained.

use std::sync::Arc;

use candle_core::Device;
use s2sfs::model::network::simd::Simd;
use s2sfs::model::network::{Config, Engine, FeedForward, Memory, Ngrams, Sequence};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::export::export;
use s2sfs::train::network::float::FloatNetwork;
use s2sfs::train::network::optimiser::Optimiser;

/// A small decoder.
fn config(feed_forward: FeedForward) -> Config {
    Config {
        vocab_size: 60,
        latent_vocab: 0,
        window: 16,
        max_latents: 0,
        d_model: 48,
        d_kv: 16,
        d_ff: 96,
        num_heads: 3,
        num_layers: 0,
        num_decoder_layers: 2,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 16,
        feed_forward,
        ngrams: Some(Ngrams {
            slots: 64,
            lengths: vec![2, 3],
        }),
        classes: vec![0, 10, 31],
    }
}

/// Text as tokens: the letters of this file's own source, folded to the vocabulary.
fn tokens(below: usize) -> Vec<u16> {
    let text = include_str!("train_network.rs");
    text.bytes().map(|b| u16::from(b) % below as u16).collect()
}

/// Mean cost of a token in nats by the logits of the exact network.
fn exact_cost(engine: &dyn Engine, config: &Config, chunks: &[&[u16]]) -> f64 {
    let memory = Memory::default();
    let asked: Vec<Sequence> = chunks
        .iter()
        .map(|tokens| Sequence {
            tokens,
            memory: &memory,
        })
        .collect();
    let rows = engine.hidden(&asked).unwrap();
    let (mut cost, mut count) = (0f64, 0);
    for (rows, tokens) in rows.iter().zip(chunks) {
        for (row, &token) in rows.chunks_exact(config.d_model).zip(*tokens) {
            let class = config.classes.partition_point(|&first| first <= token) - 1;
            let classes = engine.class_logits(row).unwrap();
            let members = engine.token_logits(row, class).unwrap();
            let member = usize::from(token - config.classes[class]);
            cost += nats(&classes, class) + nats(&members, member);
            count += 1;
        }
    }
    cost / f64::from(count)
}

fn nats(logits: &[i32], chosen: usize) -> f64 {
    let of = |x: i32| f64::from(x) / 256.0;
    let most = of(*logits.iter().max().unwrap());
    let total: f64 = logits.iter().map(|&x| (of(x) - most).exp()).sum();
    total.ln() + most - of(logits[chosen])
}

#[test]
fn a_network_learns_and_its_exact_form_costs_at_most_one_percent_more() {
    for feed_forward in [FeedForward::Relu, FeedForward::SquaredRelu] {
        let config = config(feed_forward);
        let data = tokens(config.vocab_size);
        let chunks: Vec<&[u16]> = data.chunks_exact(config.window).collect();
        let network = FloatNetwork::new(config.clone(), &mut Random(1), &Device::Cpu).unwrap();
        let mut optimiser = Optimiser::new(network.matrices(), network.others()).unwrap();
        let mut random = Random(2);
        let steps = 150;
        for step in 0..steps {
            let batch: Vec<u16> = (0..32)
                .flat_map(|_| chunks[random.below(chunks.len())].iter().copied())
                .collect();
            let loss = network.loss(&batch, config.window).unwrap();
            let rate = 1.0 - f64::from(step) / f64::from(steps);
            optimiser
                .step(&loss.backward().unwrap(), 0.02 * rate, 0.01 * rate)
                .unwrap();
        }
        let loss = network.loss(&chunks.concat(), config.window).unwrap();
        let float = f64::from(loss.to_scalar::<f32>().unwrap());
        let uniform = (config.vocab_size as f64).ln();
        assert!(
            float < 0.6 * uniform,
            "{float} nats; without learning {uniform}"
        );
        let exact = Arc::new(export(&network).unwrap());
        let cost = exact_cost(&Simd::new(exact, 1), &config, &chunks);
        assert!(
            (cost / float - 1.0).abs() < 0.01,
            "exact {cost}, float {float}"
        );
    }
}
