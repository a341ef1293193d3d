//! Speed of the network on this processor: `make bench-network`.

#[path = "common/clock.rs"]
mod clock;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;
use std::time::Duration;

use clock::on_processor;
use networks::string;
use random::Random;
use s2sfs::model::network::simd::{Kernel, Simd};
use s2sfs::model::network::{Config, Engine, Memory, Sequence, Step};
use s2sfs::train::network::recipe::multiply_adds;

/// How long each way is measured.
const LENGTH: Duration = Duration::from_secs(1);

/// Tokens per second of something that does some tokens at a time.
fn rate(mut work: impl FnMut() -> usize) -> f64 {
    work();
    let (start, mut tokens) = (on_processor(), 0);
    while on_processor() - start < LENGTH {
        for _ in 0..10 {
            tokens += work();
        }
    }
    tokens as f64 / (on_processor() - start).as_secs_f64()
}

fn heads(engine: &Simd, rows: &[i8], config: &Config, classes: &mut Random) {
    engine.class_logits(rows).unwrap();
    for row in rows.chunks_exact(config.d_model) {
        let class = classes.below(config.classes.len());
        engine.token_logits(row, class).unwrap();
    }
}

/// Streams in lockstep, one token each at a time, both heads included.
fn stepped(engine: &Simd, config: &Config, streams: usize) -> f64 {
    let mut random = Random::new(3);
    let mut batch = engine.batch(streams).unwrap();
    for slot in 0..streams {
        batch.start(slot, &Memory::default()).unwrap();
    }
    let start: Vec<Vec<u16>> = (0..streams)
        .map(|_| string(&mut random, config.window, config.vocab_size))
        .collect();
    let steps = |tokens: &[Vec<u16>], batch: &mut dyn s2sfs::model::network::Batch| {
        let steps: Vec<Step> = tokens
            .iter()
            .enumerate()
            .map(|(slot, tokens)| Step { slot, tokens })
            .collect();
        batch.step(&steps).unwrap()
    };
    steps(&start, &mut *batch);
    rate(|| {
        let tokens: Vec<Vec<u16>> = (0..streams)
            .map(|_| string(&mut random, 1, config.vocab_size))
            .collect();
        let rows = steps(&tokens, &mut *batch);
        heads(engine, &rows, config, &mut random);
        streams
    })
}

/// Whole sequences of four windows, without the heads.
fn teacher_forced(engine: &Simd, config: &Config) -> f64 {
    let tokens = string(&mut Random::new(2), 4 * config.window, config.vocab_size);
    let sequence = Sequence {
        tokens: &tokens,
        memory: &Memory::default(),
    };
    rate(|| {
        engine.hidden(&[sequence]).unwrap();
        tokens.len()
    })
}

#[test]
#[ignore = "a measurement"]
fn speed_of_every_kernel() {
    let config = networks::net_small();
    let network = networks::network(&mut Random::new(1), config.clone(), false);
    let network = Arc::new(network);
    println!("{} multiply-adds per token", multiply_adds(&config));
    println!("kernel, way, streams: tokens per second of processor time");
    for kernel in Kernel::available() {
        let engine = Simd::new(network.clone(), 1).with_kernel(kernel);
        let rate = teacher_forced(&engine, &config);
        println!("{kernel:?}, teacher-forced, 1: {rate:.0}");
        for streams in [1, 4, 8, 16] {
            let rate = stepped(&engine, &config, streams);
            println!("{kernel:?}, step by step, {streams}: {rate:.0}");
        }
    }
}
