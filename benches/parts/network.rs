//! The network: products alone, one step of one or several streams, and the teacher-forced path, with every kernel.

#[path = "../../tests/common/network.rs"]
mod networks;
#[path = "../../tests/common/random.rs"]
mod random;

use std::sync::Arc;

use random::Random;
use s2sfs::benching::Product;
use s2sfs::model::network::simd::{Kernel, Simd};
use s2sfs::model::network::{Engine, Memory, Sequence, Step};

use super::{Amount, Part, Run};

/// Shape of the largest matrix of net-small.
const OUTPUTS: usize = 1024;
const COLUMNS: usize = 256;
/// Tokens of a stream before its step is measured, and of a teacher-forced sequence.
const TOKENS: usize = 128;

pub fn parts() -> Vec<Part> {
    let mut parts = Vec::new();
    for kernel in Kernel::available() {
        let name = |what: &str| format!("{what}, {kernel:?}");
        for rows in [1, 8] {
            let amount = Amount::Elements((OUTPUTS * COLUMNS * rows) as u64);
            let what = format!("products of {OUTPUTS} x {COLUMNS} with {rows} rows");
            parts.push(Part::new("network", name(&what), amount, move || {
                let mut product = Product::new(OUTPUTS, COLUMNS, rows);
                Box::new(move || product.run(kernel) as u64)
            }));
        }
        for streams in [1, 8] {
            let what = format!("step of {streams} streams");
            let amount = Amount::Elements(streams as u64);
            parts.push(Part::new("network", name(&what), amount, move || {
                step(kernel, streams)
            }));
        }
        let amount = Amount::Elements(TOKENS as u64);
        parts.push(Part::new(
            "network",
            name("teacher-forced"),
            amount,
            move || teacher_forced(kernel),
        ));
    }
    parts
}

fn engine(kernel: Kernel) -> Simd {
    let network = networks::network(&mut Random::new(1), networks::net_small(), false);
    Simd::new(Arc::new(network), 1).with_kernel(kernel)
}

/// A step of streams that have seen a whole window; they see one more token in every run.
fn step(kernel: Kernel, streams: usize) -> Run {
    let engine: &'static Simd = Box::leak(Box::new(engine(kernel)));
    let mut batch = engine.batch(streams).expect("room for streams");
    let window = networks::string(&mut Random::new(3), TOKENS, 4096);
    for slot in 0..streams {
        batch.start(slot, &Memory::default()).expect("a slot");
        let tokens = &window;
        batch.step(&[Step { slot, tokens }]).expect("a step");
    }
    let mut at = 0;
    Box::new(move || {
        at = (at + 1) % TOKENS;
        let tokens = &window[at..=at];
        let steps: Vec<Step> = (0..streams).map(|slot| Step { slot, tokens }).collect();
        batch.step(&steps).expect("a step")[0] as u64
    })
}

fn teacher_forced(kernel: Kernel) -> Run {
    let engine = engine(kernel);
    let tokens = networks::string(&mut Random::new(2), TOKENS, 4096);
    Box::new(move || {
        let memory = &Memory::default();
        let sequence = Sequence {
            tokens: &tokens,
            memory,
        };
        engine.hidden(&[sequence]).expect("rows")[0][0] as u64
    })
}
