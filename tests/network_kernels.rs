//! Every kernel of this machine gives the same numbers on whole networks, today's and for ever. Needs nothing
//! but the network itself, so that `make neon` can build it for other processors.

#[path = "common/engines.rs"]
mod engines;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;

use engines::{Inputs, check_steps, random_network, teacher_forced};
use networks::string;
use random::Random;
use s2sfs::model::network::simd::{Kernel, Simd};

/// Random networks; more by S2SFS_NETWORK_CASES.
fn cases() -> u64 {
    let wanted = std::env::var("S2SFS_NETWORK_CASES");
    wanted.map_or(20, |n| n.parse().expect("S2SFS_NETWORK_CASES is a number"))
}

#[test]
fn every_kernel_gives_the_numbers_of_the_scalar_one() {
    let kernels = Kernel::available();
    for seed in 5000..5000 + cases() {
        let (mut random, network) = random_network(seed);
        let inputs = Inputs::new(&mut random, network.config());
        let engine = |&kernel| Simd::new(network.clone(), 1).with_kernel(kernel);
        let expected = teacher_forced(&engine(&kernels[0]), network.config(), &inputs);
        for kernel in &kernels {
            let what = format!("{kernel:?}, seed {seed}");
            let engine = engine(kernel);
            if kernel != &kernels[0] {
                let found = teacher_forced(&engine, network.config(), &inputs);
                assert_eq!(found, expected, "{what}");
            }
            check_steps(&engine, &inputs, &expected, &mut random, &what);
        }
    }
    println!("{} networks, kernels {kernels:?}", cases());
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
    for kernel in Kernel::available() {
        let simd = Simd::new(network.clone(), 1).with_kernel(kernel);
        let answers = teacher_forced(&simd, network.config(), &inputs);
        let mut hasher = blake3::Hasher::new();
        for logit in answers.classes.iter().chain(&answers.tokens).flatten() {
            hasher.update(&logit.to_le_bytes());
        }
        let hash = hasher.finalize().to_hex();
        assert_eq!(
            &hash[..16],
            "2659c248dc28222e",
            "the arithmetic of the network has changed ({kernel:?})"
        );
    }
}
