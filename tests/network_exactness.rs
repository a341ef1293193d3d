//! The network gives the same numbers on every engine, by every path, in every batch.

#[path = "common/engines.rs"]
mod engines;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;
use engines::{Inputs, check_steps, random_network, teacher_forced};
use networks::string;
use random::Random;
use s2sfs::model::network::reference::Reference;
use s2sfs::model::network::simd::{Kernel, Simd};
use s2sfs::model::network::{Config, Engine, FeedForward, Memory, Network, SEQUENCE_MAX};
use s2sfs::model::network::{Sequence, Step, Values};

/// Random networks; more by S2SFS_NETWORK_CASES.
fn cases() -> u64 {
    let wanted = std::env::var("S2SFS_NETWORK_CASES");
    wanted.map_or(60, |n| n.parse().expect("S2SFS_NETWORK_CASES is a number"))
}

/// Compares everything on one random network; says whether its rows say something.
fn check_case(seed: u64) -> bool {
    let (mut random, network) = random_network(seed);
    let inputs = Inputs::new(&mut random, network.config());
    let reference = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
    let expected = teacher_forced(&reference, network.config(), &inputs);
    let what = format!("reference, step by step, seed {seed}");
    check_steps(&reference, &inputs, &expected, &mut random, &what);
    for kernel in Kernel::available() {
        let threads = random.pick(&[1, 2, 5]);
        let what = format!("{kernel:?}, {threads} threads, seed {seed}");
        let simd = Simd::new(network.clone(), threads).with_kernel(kernel);
        let found = teacher_forced(&simd, network.config(), &inputs);
        assert_eq!(found, expected, "{what}");
        check_steps(
            &simd,
            &inputs,
            &expected,
            &mut random,
            &format!("{what}, steps"),
        );
    }
    let mut rows = expected.hidden.iter().flatten();
    rows.any(|&a| a != 0 && a.abs() != 127)
}

#[test]
fn engines_paths_batches_and_threads_agree_bit_for_bit() {
    let next = AtomicU64::new(0);
    let work = || {
        let mut distinct = 0;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= cases() {
                return distinct;
            }
            distinct += u64::from(check_case(seed));
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let distinct: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    println!("{} networks, kernels {:?}", cases(), Kernel::available());
    assert!(
        distinct > cases() / 2,
        "most networks say nothing: {distinct}"
    );
}

/// Two replicas on the same device stand in for two devices.
#[test]
fn a_batch_split_over_devices_gives_the_same_rows() {
    for seed in 2000..2010 {
        let (mut random, network) = random_network(seed);
        let inputs = Inputs::new(&mut random, network.config());
        let one = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
        let three = Reference::new(network.clone(), &vec![Device::Cpu; 3]).unwrap();
        let expected = teacher_forced(&one, network.config(), &inputs);
        assert_eq!(teacher_forced(&three, network.config(), &inputs), expected);
        let what = format!("seed {seed}");
        check_steps(&three, &inputs, &expected, &mut random, &what);
    }
}

#[test]
fn a_sequence_gives_the_same_rows_alone_and_among_others() {
    for seed in 1000..1010 {
        let (mut random, network) = random_network(seed);
        let inputs = Inputs::new(&mut random, network.config());
        let engine = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
        let together = teacher_forced(&engine, network.config(), &inputs);
        for (index, (sequence, latents)) in inputs.sequences.iter().zip(&inputs.latents).enumerate()
        {
            let alone = Inputs {
                latents: vec![latents.clone()],
                sequences: vec![sequence.clone()],
            };
            let alone = teacher_forced(&engine, network.config(), &alone);
            assert_eq!(
                alone.hidden[0], together.hidden[index],
                "seed {seed}, sequence {index}"
            );
        }
    }
}

#[test]
fn a_network_comes_back_from_its_files() {
    for seed in 0..20 {
        let (_, network) = random_network(seed);
        let (config, tensors) = network.to_bytes().unwrap();
        assert_eq!(Network::from_bytes(&config, &tensors).unwrap(), *network);
    }
}

#[test]
fn damaged_files_are_refused() {
    let (_, network) = random_network(3);
    let (config, tensors) = network.to_bytes().unwrap();
    assert!(Network::from_bytes(b"{}", &tensors).is_err());
    for len in [0, 7, 100, tensors.len() - 1] {
        assert!(
            Network::from_bytes(&config, &tensors[..len]).is_err(),
            "cut to {len}"
        );
    }
    let other = random_network(4).1.to_bytes().unwrap();
    assert!(
        Network::from_bytes(&config, &other.1).is_err(),
        "tensors of another network"
    );
}

#[test]
fn values_that_could_overflow_are_refused() {
    let (_, network) = random_network(5);
    let refuse = |spoil: &dyn Fn(&mut Config, &mut s2sfs::model::network::Weights)| {
        let (mut config, mut weights) = (network.config().clone(), network.weights().clone());
        spoil(&mut config, &mut weights);
        Network::new(config, weights).unwrap_err().to_string()
    };
    assert!(refuse(&|_, w| w.decoder[0].up.weight[0] = -128).contains("-128"));
    assert!(refuse(&|_, w| w.decoder[0].down.scale[0] = (1 << 22) + 1).contains("4194305"));
    assert!(refuse(&|_, w| w.decoder_norm[0] = 8192).contains("8192"));
    assert!(refuse(&|_, w| w.token_bias[0] = 1 << 21).contains("token_bias"));
    assert!(refuse(&|c, _| c.window = 129).contains("size"));
    assert!(refuse(&|c, _| c.d_model = 5000).contains("size"));
    assert!(refuse(&|_, w| drop(w.decoder.pop())).contains("decoder"));
    assert!(refuse(&|c, _| c.classes = vec![1]).contains("classes"));
    assert!(refuse(&|c, _| c.d_kv = 513).contains("size"));
    assert!(refuse(&|c, _| c.d_ff = (1 << 16) + 1).contains("size"));
    let many = |c: &mut Config| (c.num_heads, c.num_decoder_layers) = (250, 5);
    assert!(refuse(&|c, _| many(c)).contains("heads"));
}

/// Spoils one tensor after another.
#[test]
fn a_value_out_of_range_is_refused_in_every_tensor() {
    let mut random = Random::new(9);
    let network = networks::network(&mut random, networks::full_config(), true);
    let config = network.config();
    let tensors = count_tensors(&network);
    for number in 0..tensors {
        for wrong in [(1 << 22) + 1, -(1 << 20) - 1] {
            let mut weights = network.weights().clone();
            let mut at = 0;
            let mut spoiled = String::new();
            let spoil = |name: String, _: Vec<usize>, values: Values| {
                if at == number {
                    match values {
                        Values::Bytes(values) => *values.last_mut().unwrap() = -128,
                        Values::Numbers(values) => *values.last_mut().unwrap() = wrong,
                    }
                    spoiled = name;
                }
                at += 1;
                Ok(())
            };
            weights.visit(config, &mut { spoil }).unwrap();
            assert!(Network::new(config.clone(), weights).is_err(), "{spoiled}");
        }
    }
}

fn count_tensors(network: &Network) -> usize {
    let mut count = 0;
    let mut add = |_: String, _: Vec<usize>, _: Values| {
        count += 1;
        Ok(())
    };
    let mut weights = network.weights().clone();
    weights.visit(network.config(), &mut add).unwrap();
    count
}

/// The longest sums that a network may have, all their terms as large as can be and of one sign: the inner
/// dimension of a feed-forward layer, of a head and of the model, and a full window of equal keys.
#[test]
fn the_largest_sums_are_the_same_on_both_engines() {
    let config = Config {
        vocab_size: 3,
        window: 128,
        d_model: 24,
        d_kv: 512,
        d_ff: 1 << 16,
        num_heads: 1,
        num_decoder_layers: 1,
        feed_forward: FeedForward::Relu,
        ..networks::config_without_encoder()
    };
    let wide = Config {
        d_model: 4096,
        d_ff: 16,
        d_kv: 16,
        ..config.clone()
    };
    for (seed, config) in [(1, config.clone()), (2, config), (3, wide)] {
        let mut random = Random::new(seed);
        let network = networks::network_of_one_sign(&mut random, config.clone());
        let network = Arc::new(network);
        let inputs = Inputs {
            latents: vec![Vec::new()],
            sequences: vec![string(&mut random, 150, 3)],
        };
        let reference = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
        let expected = teacher_forced(&reference, &config, &inputs);
        let mut rows = expected.hidden[0].iter();
        assert!(rows.any(|&a| a != 0), "the rows say nothing");
        for kernel in Kernel::available() {
            let simd = Simd::new(network.clone(), 1).with_kernel(kernel);
            let found = teacher_forced(&simd, &config, &inputs);
            assert_eq!(found, expected, "{kernel:?}, network {seed}");
        }
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (_, network) = random_network(8);
    let config = network.config();
    let empty = Memory::default();
    let reference = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
    let simd = Simd::new(network.clone(), 1);
    for engine in [&reference as &dyn Engine, &simd] {
        let long = vec![0; SEQUENCE_MAX + 1];
        let unknown = [config.vocab_size as u16];
        for tokens in [long.as_slice(), &unknown] {
            let sequence = Sequence {
                tokens,
                memory: &empty,
            };
            assert!(engine.hidden(&[sequence]).is_err());
        }
        assert!(engine.encode(&[&vec![0; config.max_latents + 1]]).is_err());
        assert!(engine.token_logits(&[], config.classes.len()).is_err());
        let mut batch = engine.batch(2).unwrap();
        assert!(batch.start(2, &empty).is_err());
        batch.start(0, &empty).unwrap();
        let step = |slot, tokens| Step { slot, tokens };
        assert!(
            batch.step(&[step(1, &[])]).is_err(),
            "a slot that nothing started"
        );
        assert!(
            batch.step(&[step(0, &unknown)]).is_err(),
            "a token outside the vocabulary"
        );
        assert!(
            batch.step(&[step(0, &[]), step(0, &[])]).is_err(),
            "a slot twice"
        );
        batch.step(&[step(0, &[])]).unwrap();
        assert!(
            batch.step(&[step(0, &[])]).is_err(),
            "no token behind the start"
        );
    }
}
