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
use s2sfs::model::network::{Config, Engine, Memory, Network, SEQUENCE_MAX, Sequence, Step};

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
fn golden_logits_never_change() {
    let mut random = Random::new(7);
    let network = Arc::new(networks::network(
        &mut random,
        networks::full_config(),
        false,
    ));
    let inputs = Inputs {
        latents: vec![string(&mut random, 6, 20), string(&mut random, 3, 20)],
        sequences: vec![string(&mut random, 16, 60), string(&mut random, 11, 60)],
    };
    let simd = Simd::new(network.clone(), 1);
    let answers = teacher_forced(&simd, network.config(), &inputs);
    let mut hasher = blake3::Hasher::new();
    for logit in answers.classes.iter().chain(&answers.tokens).flatten() {
        hasher.update(&logit.to_le_bytes());
    }
    let hash = hasher.finalize().to_hex();
    assert_eq!(
        &hash[..16],
        "2659c248dc28222e",
        "the arithmetic of the network has changed"
    );
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
    assert!(refuse(&|_, w| w.decoder[0].down.scale[0] = (1 << 20) + 1).contains("1048577"));
    assert!(refuse(&|_, w| w.decoder_norm[0] = 8192).contains("8192"));
    assert!(refuse(&|_, w| w.token_bias[0] = 1 << 21).contains("token_bias"));
    assert!(refuse(&|c, _| c.window = 129).contains("size"));
    assert!(refuse(&|c, _| c.d_model = 5000).contains("size"));
    assert!(refuse(&|_, w| drop(w.decoder.pop())).contains("decoder"));
    assert!(refuse(&|c, _| c.classes = vec![1]).contains("classes"));
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
