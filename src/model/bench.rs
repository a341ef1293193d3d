//! Entry points for measuring the parts of a model. See [`crate::benching`].

use super::logistic::Logistic;
use super::mixer::{INPUTS, Inputs, Mix, Rates, SETS, Weights};
use super::overlay::{Overlay, lines_for};
use super::predictor::{average, has_avx2};
use super::states::states;
use super::tables::Tables;
use super::tokenizer;

pub use super::network::bench::Product;

/// Operations of one call of [`Form::run`].
pub const OPERATIONS: usize = 4096;

/// Look-ups between the prefetch of a line and its use, about as many as a nibble has contexts.
const AHEAD: usize = 16;

/// A build of the hot path that this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Private, so that the AVX2 build can only be had where the processor has AVX2.
    avx2: bool,
}

impl Form {
    /// All that run here.
    pub fn available() -> Vec<Form> {
        let avx2 = has_avx2().then_some(Form { avx2: true });
        [Form { avx2: false }].into_iter().chain(avx2).collect()
    }

    pub fn name(self) -> &'static str {
        match self.avx2 {
            true => "avx2",
            false => "scalar",
        }
    }

    /// Does the work once: [`OPERATIONS`] operations. What it returns depends on all of them.
    pub fn run(self, work: &mut impl Work) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: `avx2` is only set where the processor has all features of `run_avx2`.
            return unsafe { run_avx2(work) };
        }
        work.run::<false>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn run_avx2(work: &mut impl Work) -> u64 {
    work.run::<true>()
}

/// Something that exists in two builds.
pub trait Work {
    fn run<const SIMD: bool>(&mut self) -> u64;
}

/// The sequence of pseudo-random numbers that all inputs are made of (splitmix64).
pub fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Predictions of both layers of the mixer, and with `learns` the updates of the weights.
pub struct Mixing {
    weights: Weights,
    inputs: Vec<[[i16; 8]; INPUTS / 8]>,
    logistic: Logistic,
    learns: bool,
}

impl Mixing {
    pub fn new(learns: bool) -> Mixing {
        let value = |seed: u64| (mixed(seed) % 2048) as i16 - 1024;
        let row = |at: u64| {
            std::array::from_fn(|i| std::array::from_fn(|j| value(at * 32 + (i * 8 + j) as u64)))
        };
        Mixing {
            weights: Weights::default(),
            inputs: (0..256).map(row).collect(),
            logistic: Logistic::default(),
            learns,
        }
    }
}

impl Work for Mixing {
    #[inline(always)]
    fn run<const SIMD: bool>(&mut self) -> u64 {
        let (rates, mut mix, mut sum) = (
            Rates {
                first: 12,
                last: 12,
            },
            Mix::default(),
            0u64,
        );
        for at in 0..OPERATIONS {
            let inputs = Inputs::of::<SIMD>(self.inputs[at % 256]);
            let selectors: [usize; SETS] = std::array::from_fn(|set| at * (set + 3) % 256);
            let x = self
                .weights
                .mix::<SIMD, false>(&inputs, &selectors, None, at % 256, &mut mix);
            let p = self.logistic.squash(x);
            if self.learns {
                let seen = (p, u32::from(at % 3 == 0));
                self.weights.update::<SIMD, false, false>(
                    &inputs,
                    &mix,
                    seen,
                    rates,
                    self.logistic,
                );
            }
            sum = sum.wrapping_add(u64::from(p));
        }
        sum
    }
}

/// Look-ups of contexts in tables that are larger than the caches, prefetched as the predictor does.
pub struct LookUps {
    tables: Tables,
    hashes: Vec<u64>,
    round: u64,
}

impl LookUps {
    /// Tables of `lines` lines of 64 bytes for each of two contexts.
    pub fn new(lines: usize) -> LookUps {
        let counts = std::array::from_fn(|context| if context < 2 { lines } else { 0 });
        let mut tables = Tables::with_lines(&counts);
        for (at, line) in tables.lines_mut().iter_mut().enumerate() {
            for (way, bucket) in line.iter_mut().enumerate() {
                *bucket = u128::from(mixed((at * 4 + way) as u64)).to_le_bytes();
            }
        }
        LookUps {
            tables,
            hashes: vec![0; OPERATIONS],
            round: 0,
        }
    }
}

impl Work for LookUps {
    #[inline(always)]
    fn run<const SIMD: bool>(&mut self) -> u64 {
        new_hashes(&mut self.hashes, &mut self.round);
        let (view, mut sum) = (self.tables.view(), 0u64);
        for (at, &hash) in self.hashes.iter().enumerate() {
            if let Some(&soon) = self.hashes.get(at + AHEAD) {
                view.prefetch(at % 2, soon);
            }
            let (found, bucket) = view.find::<SIMD>(at % 2, hash);
            sum = sum.wrapping_add(u64::from(found) + u64::from(bucket[at % 15 + 1]));
        }
        sum
    }
}

#[inline(always)]
fn new_hashes(hashes: &mut [u64], round: &mut u64) {
    *round += 1;
    for (at, hash) in hashes.iter_mut().enumerate() {
        *hash = mixed(*round << 32 | at as u64);
    }
}

/// Learning of nibbles in the overlay of a group: a bucket is claimed, four histories in it move on, and it is put back.
pub struct Learning {
    overlay: Overlay,
    hashes: Vec<u64>,
    round: u64,
}

impl Learning {
    /// An overlay for a group of `bytes` bytes.
    pub fn new(bytes: usize) -> Learning {
        Learning {
            overlay: Overlay::with_lines(lines_for(bytes, super::contexts::CONTEXTS, false)),
            hashes: vec![0; OPERATIONS],
            round: 0,
        }
    }
}

impl Work for Learning {
    #[inline(always)]
    fn run<const SIMD: bool>(&mut self) -> u64 {
        new_hashes(&mut self.hashes, &mut self.round);
        let (states, mut sum) = (states(), 0u64);
        for (at, &hash) in self.hashes.iter().enumerate() {
            if let Some(&soon) = self.hashes.get(at + AHEAD) {
                self.overlay.prefetch(soon);
            }
            let (place, mut bucket) = self.overlay.claim::<SIMD>(hash, states);
            let mut node = 1;
            for bit in 0..4 {
                let seen = (hash >> (8 + bit) & 1) as u32;
                bucket[node] = states.next(bucket[node], seen);
                node = 2 * node + seen as usize;
            }
            self.overlay.put(place, &bucket);
            sum = sum.wrapping_add(u64::from(bucket[1]));
        }
        sum
    }
}

/// Bit histories and the probabilities that belong to them: read, moved towards the bit, next state.
pub struct Histories {
    states: Vec<u8>,
    probabilities: Vec<u16>,
}

impl Default for Histories {
    fn default() -> Histories {
        Histories {
            states: vec![0; 1024],
            probabilities: vec![1 << 15; 256],
        }
    }
}

impl Work for Histories {
    #[inline(always)]
    fn run<const SIMD: bool>(&mut self) -> u64 {
        let (table, mut sum) = (states(), 0u64);
        for at in 0..OPERATIONS {
            let state = &mut self.states[at % 1024];
            let p = &mut self.probabilities[usize::from(*state)];
            let bit = u32::from((at * 7 + at / 1024) % 5 == 0);
            sum = sum.wrapping_add(u64::from(*p));
            average(p, bit, 6);
            *state = table.next(*state, bit);
        }
        sum
    }
}

/// Splits bytes into words, which merges never cross; how many there are.
pub fn split(bytes: &[u8]) -> usize {
    tokenizer::words(bytes).count()
}
