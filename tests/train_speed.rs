//! Speed of gradients on this processor, of networks that read latents and by both ways: `make bench-training`.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Device;
use s2sfs::train::corpus::Random;
use s2sfs::train::network::evaluate::Computer;
use s2sfs::train::network::float::{FloatNetwork, Sample};
use s2sfs::train::network::recipe::Recipe;

/// Chunks of a step, those of an extent, and tokens of each.
const CHUNKS: usize = 64;
const EXTENT: usize = 16;
const CHUNK: usize = 128;
const LATENTS: usize = 32;
const STEPS: usize = 2;

/// The shape of models/net-small, with an encoder.
fn network() -> FloatNetwork {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/net-small.toml");
    let mut recipe = Recipe::read(&path).unwrap();
    recipe.network.latents = LATENTS;
    let size = recipe.network.vocabulary;
    let classes = (0..size).step_by(recipe.network.class_tokens / 2);
    let classes = classes.map(|first| first as u16).collect();
    FloatNetwork::new(recipe.config(size, classes), &mut Random(1), &Device::Cpu).unwrap()
}

/// Time that all threads of this process have had a processor.
fn of_process() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(10 * ticks)
}

/// Tokens per second of time, and of time on processors, of gradients.
fn rates(network: &FloatNetwork, computer: &mut Computer, samples: &[Sample]) -> [f64; 2] {
    computer.gradients(network, samples).unwrap();
    let (start, used) = (Instant::now(), of_process());
    for _ in 0..STEPS {
        computer.gradients(network, samples).unwrap();
    }
    let tokens = (STEPS * samples.len() * CHUNK) as f64;
    [start.elapsed(), of_process() - used].map(|time| tokens / time.as_secs_f64())
}

#[test]
#[ignore = "a measurement"]
fn gradients_by_hand_are_several_times_faster_than_candles() {
    let mut random = Random(2);
    let mut list = |len: usize, below: usize| -> Vec<u16> {
        (0..len).map(|_| random.below(below) as u16).collect()
    };
    let network = network();
    let config = &network.config;
    let texts: Vec<Vec<u16>> = (0..CHUNKS)
        .map(|_| list(CHUNK, config.vocab_size))
        .collect();
    let lists: Vec<Vec<u16>> = (0..CHUNKS)
        .map(|_| list(LATENTS, config.latent_vocab))
        .collect();
    let reading = |of: &dyn Fn(usize) -> usize, latents: usize| -> Vec<Sample> {
        let sample = |at: usize| Sample {
            tokens: &texts[at],
            latents: &lists[of(at)][..latents],
        };
        (0..CHUNKS).map(sample).collect()
    };
    let ways = [
        ("no latents", reading(&|at| at, 0)),
        ("latents of an extent", reading(&|at| at / EXTENT, LATENTS)),
        ("latents of a chunk", reading(&|at| at, LATENTS)),
    ];
    for (name, samples) in ways {
        let by_hand = rates(
            &network,
            &mut Computer::new(&network, &Device::Cpu, 2),
            &samples,
        );
        // a step of all would take minutes
        let candle = rates(&network, &mut Computer::Candle, &samples[..EXTENT]);
        for (by, [rate, used]) in [("by hand", by_hand), ("candle", candle)] {
            println!("{name}, {by}: {rate:.0} tokens/s, {used:.0} a second on a processor");
        }
        assert!(
            by_hand[1] > 2.0 * candle[1],
            "{name}: {by_hand:?} {candle:?}"
        );
    }
}
