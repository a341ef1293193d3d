//! The reference engine gives the same numbers on CUDA devices: `make gpu-test`.

#[path = "common/engines.rs"]
mod engines;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::io::Write;

use candle_core::Device;
use engines::{Inputs, check_steps, random_network, teacher_forced};
use s2sfs::model::ModelError;
use s2sfs::model::network::Engine;
use s2sfs::model::network::reference::{Reference, cuda_devices};

/// The CUDA devices; without any, says that `test` has tested nothing, even if output is captured, and fails where
/// `S2SFS_NEEDS_CUDA` is set.
fn devices(test: &str) -> Vec<Device> {
    let devices = cuda_devices();
    if devices.is_empty() {
        let why = match candle_core::utils::cuda_is_available() {
            true => "there is no CUDA device",
            false => "built without --features cuda",
        };
        let line = format!("\n*** SKIPPED: {test}: {why} ***\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        let needed = std::env::var_os("S2SFS_NEEDS_CUDA").is_some();
        assert!(!needed, "S2SFS_NEEDS_CUDA is set, but {why}");
    }
    devices
}

#[test]
fn cuda_devices_agree_with_the_processor_bit_for_bit() {
    let devices = devices("cuda_devices_agree_with_the_processor_bit_for_bit");
    let Some(first) = devices.first() else {
        return;
    };
    let twice = vec![first.clone(); 2];
    for seed in 0..100 {
        let (mut random, network) = random_network(seed);
        let inputs = Inputs::new(&mut random, network.config());
        let processor = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
        let expected = teacher_forced(&processor, network.config(), &inputs);
        for devices in [devices.as_slice(), &twice] {
            let engine = Reference::new(network.clone(), devices).unwrap();
            let found = teacher_forced(&engine, network.config(), &inputs);
            let what = format!("{} devices, seed {seed}", devices.len());
            assert_eq!(found, expected, "{what}");
            check_steps(&engine, &inputs, &expected, &mut random, &what);
        }
    }
}

#[test]
fn a_device_that_is_full_is_named() {
    let devices = devices("a_device_that_is_full_is_named");
    if devices.is_empty() {
        return;
    }
    let engine = Reference::new(random_network(1).1, &devices[..1]).unwrap();
    match engine.batch(1 << 36).err() {
        Some(ModelError::Device(what)) => assert!(what.starts_with("cuda:0: "), "{what}"),
        other => panic!("a batch larger than any memory: {other:?}"),
    }
}
