//! What engines say about random inputs, by both paths.
#![allow(dead_code)]

use std::sync::Arc;

use super::networks::{self, string};
use super::random::Random;
use s2sfs::model::network::{Batch, Config, Engine, Memory, Network, Sequence, Step};

/// Inputs of one network: latents and sequences, some of them empty.
pub struct Inputs {
    pub latents: Vec<Vec<u16>>,
    pub sequences: Vec<Vec<u16>>,
}

impl Inputs {
    pub fn new(random: &mut Random, config: &Config) -> Inputs {
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
pub struct Answers {
    pub memories: Vec<Memory>,
    pub hidden: Vec<Vec<i8>>,
    pub classes: Vec<Vec<i32>>,
    pub tokens: Vec<Vec<i32>>,
}

pub fn teacher_forced(engine: &dyn Engine, config: &Config, inputs: &Inputs) -> Answers {
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
pub fn check_steps(
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

pub fn random_network(seed: u64) -> (Random, Arc<Network>) {
    let mut random = Random::new(seed);
    let config = networks::config(&mut random);
    let extreme = random.within(0, 3) == 0;
    let network = networks::network(&mut random, config, extreme);
    (random, Arc::new(network))
}
