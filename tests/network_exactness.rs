//! The network gives the same numbers on every engine, by every path, in every batch.

#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::Arc;

use candle_core::Device;
use networks::string;
use random::Random;
use s2sfs::model::network::reference::Reference;
use s2sfs::model::network::simd::{Kernel, Simd};
use s2sfs::model::network::{Batch, Config, Engine, Memory, Network, SEQUENCE_MAX};
use s2sfs::model::network::{Sequence, Step};

/// Random networks; more by S2SFS_NETWORK_CASES.
fn cases() -> u64 {
    let wanted = std::env::var("S2SFS_NETWORK_CASES");
    wanted.map_or(60, |n| n.parse().expect("S2SFS_NETWORK_CASES is a number"))
}

/// Inputs of one network: latents and sequences, some of them empty.
struct Inputs {
    latents: Vec<Vec<u16>>,
    sequences: Vec<Vec<u16>>,
}

impl Inputs {
    fn new(random: &mut Random, config: &Config) -> Inputs {
        let count = random.within(1, 6) as usize;
        // up to several windows and blocks
        let lengths = random.pick(&[config.window, 5 * config.window, 150]);
        let mut strings = |most: usize, below: usize| -> Vec<Vec<u16>> {
            let one = |_| {
                let len = random.within(0, most as i64) as usize;
                string(random, len, below)
            };
            (0..count).map(one).collect()
        };
        Inputs {
            latents: strings(config.max_latents, config.latent_vocab),
            sequences: strings(lengths, config.vocab_size),
        }
    }
}

/// Everything that an engine says about some inputs.
#[derive(Debug, PartialEq)]
struct Answers {
    memories: Vec<Memory>,
    hidden: Vec<Vec<i8>>,
    classes: Vec<Vec<i32>>,
    tokens: Vec<Vec<i32>>,
}

fn teacher_forced(engine: &dyn Engine, config: &Config, inputs: &Inputs) -> Answers {
    let latents: Vec<&[u16]> = inputs.latents.iter().map(Vec::as_slice).collect();
    let memories = engine.encode(&latents).unwrap();
    let sequences: Vec<Sequence> = inputs
        .sequences
        .iter()
        .zip(&memories)
        .map(|(tokens, memory)| Sequence { tokens, memory })
        .collect();
    let hidden = engine.hidden(&sequences).unwrap();
    let classes = hidden.iter().map(|rows| engine.class_logits(rows).unwrap());
    let logits = |rows: &Vec<i8>| {
        let classes = 0..config.classes.len();
        classes
            .flat_map(|class| engine.token_logits(rows, class).unwrap())
            .collect()
    };
    Answers {
        classes: classes.collect(),
        tokens: hidden.iter().map(logits).collect(),
        hidden,
        memories,
    }
}

/// A stream on its way: its sequence, and how many of its tokens the engine knows if it has started.
#[derive(Clone, Copy)]
struct Place {
    sequence: usize,
    known: Option<usize>,
}

/// Decodes all sequences in some slots: streams join when a slot is free and leave at their end, and at
/// each step only some of them move, by one token or by several. Checks the row of every step.
fn check_steps(
    engine: &dyn Engine,
    inputs: &Inputs,
    expected: &Answers,
    random: &mut Random,
    what: &str,
) {
    let slots = random.within(1, 4) as usize;
    let strides = random.pick(&[1, 1, 40]);
    let mut batch = engine.batch(slots).unwrap();
    let mut waiting: Vec<usize> = (0..inputs.sequences.len()).collect();
    let mut running: Vec<Option<Place>> = vec![None; slots];
    let mut checked = 0;
    while !waiting.is_empty() || running.iter().any(Option::is_some) {
        for (slot, place) in running.iter_mut().enumerate() {
            let ended =
                |p: &Place| p.known.map_or(0, |n| n + 1) == inputs.sequences[p.sequence].len();
            if place.as_ref().is_some_and(ended) {
                *place = None;
            }
            if place.is_none()
                && let Some(sequence) = waiting.pop()
            {
                batch.start(slot, &expected.memories[sequence]).unwrap();
                let known = None;
                *place = Some(Place { sequence, known });
            }
        }
        checked += step(
            &mut *batch,
            inputs,
            &mut running,
            (expected, strides),
            random,
            what,
        );
    }
    let positions: usize = inputs.sequences.iter().map(Vec::len).sum();
    assert!(
        strides > 1 || checked == positions,
        "{what}: rows are missing"
    );
}

/// Moves some streams and checks their rows; returns how many these were.
fn step(
    batch: &mut dyn Batch,
    inputs: &Inputs,
    running: &mut [Option<Place>],
    (expected, strides): (&Answers, i64),
    random: &mut Random,
    what: &str,
) -> usize {
    let mut steps = Vec::new();
    let mut rows = Vec::new();
    for (slot, place) in running.iter_mut().enumerate() {
        let Some(Place { sequence, known }) = place else {
            continue;
        };
        let tokens = &inputs.sequences[*sequence];
        let from = known.unwrap_or(0);
        let least = from + usize::from(known.is_some());
        let to = least + random.within(0, strides - 1) as usize;
        // the last token is predicted, not put in
        let to = to.min(tokens.len().saturating_sub(1));
        if to < least || tokens.is_empty() || random.within(0, 3) == 0 {
            continue;
        }
        let tokens = &tokens[from..to];
        steps.push(Step { slot, tokens });
        let width = expected.hidden[*sequence].len() / inputs.sequences[*sequence].len();
        rows.extend_from_slice(&expected.hidden[*sequence][to * width..(to + 1) * width]);
        *known = Some(to);
    }
    assert_eq!(batch.step(&steps).unwrap(), rows, "{what}");
    steps.len()
}

fn random_network(seed: u64) -> (Random, Arc<Network>) {
    let mut random = Random::new(seed);
    let config = networks::config(&mut random);
    let extreme = random.within(0, 3) == 0;
    let network = networks::network(&mut random, config, extreme);
    (random, Arc::new(network))
}

#[test]
fn engines_paths_batches_and_threads_agree_bit_for_bit() {
    let mut distinct = 0;
    for seed in 0..cases() {
        let (mut random, network) = random_network(seed);
        let inputs = Inputs::new(&mut random, network.config());
        let reference = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
        let expected = teacher_forced(&reference, network.config(), &inputs);
        let what = format!("reference, step by step, seed {seed}");
        check_steps(&reference, &inputs, &expected, &mut random, &what);
        for kernel in Kernel::available() {
            for threads in [1, 3] {
                let what = format!("{kernel:?}, {threads} threads, seed {seed}");
                let simd = Simd::new(network.clone(), threads).with_kernel(kernel);
                let found = teacher_forced(&simd, network.config(), &inputs);
                assert_eq!(found, expected, "{what}");
                let what = format!("{what}, step by step");
                check_steps(&simd, &inputs, &expected, &mut random, &what);
            }
        }
        let rows = expected.hidden.concat();
        distinct += usize::from(rows.iter().any(|&a| a != 0 && a.abs() != 127));
    }
    assert!(
        distinct as u64 > cases() / 2,
        "most networks say nothing: {distinct}"
    );
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
