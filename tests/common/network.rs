//! Random networks and inputs.
#![allow(dead_code)]

use super::random::Random;
use s2sfs::model::network::{Config, FeedForward, Network, Ngrams, Values, Weights};

/// A small shape, with and without encoder, n-grams and squares.
pub fn config(random: &mut Random) -> Config {
    let vocab_size = random.within(2, 90) as usize;
    let mut classes: Vec<u16> = (0..random.within(0, 5))
        .map(|_| random.within(0, vocab_size as i64 - 1) as u16)
        .chain([0])
        .collect();
    classes.sort_unstable();
    classes.dedup();
    let encoder = random.within(0, 2) > 0;
    let ngrams = Ngrams {
        slots: 1 << random.within(0, 6),
        lengths: vec![2, random.within(2, 4) as usize],
    };
    Config {
        vocab_size,
        latent_vocab: if encoder {
            random.within(1, 40) as usize
        } else {
            0
        },
        window: random.within(1, 24) as usize,
        max_latents: if encoder {
            random.within(1, 9) as usize
        } else {
            0
        },
        d_model: random.within(1, 70) as usize,
        d_kv: random.within(1, 40) as usize,
        d_ff: random.pick(&[1, 64, 200, 1100]),
        num_heads: random.within(1, 3) as usize,
        num_layers: if encoder {
            random.within(1, 2) as usize
        } else {
            0
        },
        num_decoder_layers: random.within(1, 3) as usize,
        relative_attention_num_buckets: random.pick(&[4, 8, 32]),
        relative_attention_max_distance: 128,
        feed_forward: random.pick(&[FeedForward::Relu, FeedForward::SquaredRelu]),
        ngrams: (random.within(0, 1) == 1).then_some(ngrams),
        classes,
    }
}

/// Random weights. With `extreme`, most values are at the ends of their ranges.
pub fn network(random: &mut Random, config: Config, extreme: bool) -> Network {
    let mut weights = Weights::shaped(&config);
    weights
        .visit(&config, &mut |name, shape, values| {
            let len = shape.iter().product();
            match values {
                Values::Bytes(values) => {
                    let value = |random: &mut Random| match extreme {
                        true => random.pick(&[-127, 127]),
                        false => random.within(-127, 127) as i8,
                    };
                    *values = (0..len).map(|_| value(random)).collect();
                }
                Values::Numbers(values) => {
                    let (least, most) = range(&name, extreme);
                    let value = |random: &mut Random| match extreme {
                        true => random.pick(&[least, most, most]) as i32,
                        false => random.within(least, most) as i32,
                    };
                    *values = (0..len).map(|_| value(random)).collect();
                }
            }
            Ok(())
        })
        .unwrap();
    Network::new(config, weights).unwrap()
}

/// Values that keep activations alive, or the full range.
fn range(name: &str, extreme: bool) -> (i64, i64) {
    let kind = name.rsplit('.').next().unwrap_or(name);
    match (kind, extreme) {
        ("norm", false) => (500, 4000),
        ("norm", true) => (0, 8191),
        ("bias", false) => (-200, 200),
        ("bias", true) => (-(1 << 20), 1 << 20),
        ("gain", false) => (200, 600),
        ("score", false) => (500, 60_000 >> 1),
        ("scale", _)
            if ["ngrams", "tokens", "latents"]
                .iter()
                .any(|e| name.starts_with(e)) =>
        {
            (1, 258)
        }
        ("scale", false) => (2000, 32_768),
        ("scale", true) => (0, 1 << 22),
        _ => (0, 1 << 20),
    }
}

/// A shape that has everything.
pub fn full_config() -> Config {
    Config {
        vocab_size: 60,
        latent_vocab: 20,
        window: 16,
        max_latents: 6,
        d_model: 48,
        d_kv: 16,
        d_ff: 96,
        num_heads: 3,
        num_layers: 2,
        num_decoder_layers: 2,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 16,
        feed_forward: FeedForward::SquaredRelu,
        ngrams: Some(Ngrams {
            slots: 64,
            lengths: vec![2, 3],
        }),
        classes: vec![0, 10, 31],
    }
}

/// A random string of `len` numbers below `below`.
pub fn string(random: &mut Random, len: usize, below: usize) -> Vec<u16> {
    (0..len)
        .map(|_| random.within(0, below as i64 - 1) as u16)
        .collect()
}

/// A small shape without encoder and n-grams.
pub fn config_without_encoder() -> Config {
    Config {
        latent_vocab: 0,
        max_latents: 0,
        num_layers: 0,
        ngrams: None,
        classes: vec![0],
        ..full_config()
    }
}

/// All weights 127, so that no term of a sum makes up for another; the scales bring sums of products back
/// into the range of activations, and all keys have the same score.
pub fn network_of_one_sign(random: &mut Random, config: Config) -> Network {
    let mut weights = Weights::shaped(&config);
    weights
        .visit(&config, &mut |name, shape, values| {
            let len = shape.iter().product();
            match values {
                Values::Bytes(values) => *values = vec![127; len],
                Values::Numbers(values) => {
                    let (least, most) = match name.rsplit('.').next() {
                        Some("norm") => (8191, 8191),
                        Some("bias") => (0, 0),
                        Some("gain") => (200, 256),
                        Some("score") => (0, 1 << 20),
                        _ if name == "tokens.scale" => (1, 258),
                        _ => (1 << 18, 1 << 22),
                    };
                    *values = (0..len)
                        .map(|_| random.within(least, most) as i32)
                        .collect();
                }
            }
            Ok(())
        })
        .unwrap();
    Network::new(config, weights).unwrap()
}

/// The shape of net-small.
pub fn net_small() -> Config {
    Config {
        vocab_size: 4096,
        latent_vocab: 0,
        window: 128,
        max_latents: 0,
        d_model: 256,
        d_kv: 64,
        d_ff: 1024,
        num_heads: 4,
        num_layers: 0,
        num_decoder_layers: 2,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        feed_forward: FeedForward::SquaredRelu,
        ngrams: None,
        classes: (0..64).map(|class| class * 64).collect(),
    }
}
