//! What the experts other than the network expect of the next byte as a whole, asked at the end of a token.
//!
//! Whether a token goes on is mostly a question about the next byte: is it one that a longer token has
//! there? The tables, histories and matches know nothing of tokens, but they predict bytes, so the answer is
//! the sum of what they give to all such bytes. It is added up along the vocabulary's trie, and branches that
//! can no longer matter are left out.

use std::ops::Deref;

use super::{Expected, Model, Nibble, Params, Predictor, next_nibble};
use crate::model::bytecode::Spot;
use crate::model::contexts::CONTEXTS;
use crate::model::vocabulary::Vocabulary;
use crate::model::walk::{Next, Walk};

/// Branches less probable than this (in units of 2^-16) are not followed.
const LEAST_MASS: u32 = 1 << 9;

/// Some bits of the next byte, behind a leading one, and how probable they are in units of 2^-16.
#[derive(Debug, Clone, Copy)]
struct Branch {
    walk: Walk,
    prefix: u32,
    mass: u32,
}

/// The prediction under way.
struct Outlook<'a> {
    params: &'a Params,
    expected: Expected,
    high: Nibble,
    /// The lower nibble behind a higher one, and that one.
    low: (u32, Nibble),
}

impl<M: Deref<Target = Model>> Predictor<M> {
    /// Log-odds that the next byte is one that some token of `walk` has behind its first `bytes` bytes, by all experts
    /// but the network. `params` are those of the base: the mixer at hand weighs the network, too.
    pub fn outlook(
        &self,
        params: &Params,
        vocabulary: &Vocabulary,
        walk: Walk,
        bytes: usize,
    ) -> i32 {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: `avx2` is only set where the processor has all features of `outlook_avx2`.
            return unsafe { self.outlook_avx2(params, vocabulary, walk, bytes) };
        }
        self.outlook_with::<false>(params, vocabulary, walk, bytes)
    }

    /// [`Predictor::outlook_with`] compiled for AVX2.
    ///
    /// # Safety
    /// The processor must have AVX2, BMI1, BMI2 and LZCNT.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    unsafe fn outlook_avx2(
        &self,
        params: &Params,
        vocabulary: &Vocabulary,
        walk: Walk,
        bytes: usize,
    ) -> i32 {
        self.outlook_with::<true>(params, vocabulary, walk, bytes)
    }

    #[inline(always)]
    fn outlook_with<const SIMD: bool>(
        &self,
        params: &Params,
        vocabulary: &Vocabulary,
        walk: Walk,
        bytes: usize,
    ) -> i32 {
        let mut outlook = Outlook {
            params,
            expected: self.expected(),
            high: self.peek::<SIMD>(&self.state.hashes),
            low: (u32::MAX, Nibble::default()),
        };
        let mut sum = 0;
        let mut branch = Branch {
            walk,
            prefix: 1,
            mass: 1 << 16,
        };
        // at most one for each bit
        let mut waiting = [branch; 8];
        let mut count = 0;
        loop {
            let step = branch.prefix.ilog2() as usize + 1;
            if step > 8 {
                sum += branch.mass;
            } else if branch.mass >= LEAST_MASS {
                let p = self.outlook_bit::<SIMD>(&mut outlook, branch.prefix);
                let ones = (branch.mass * p) >> 16;
                match branch.walk.next(vocabulary, bytes, step) {
                    Next::Forced(bit) => {
                        branch.mass = if bit == 1 { ones } else { branch.mass - ones };
                        branch.prefix = branch.prefix << 1 | bit;
                    }
                    Next::Open(middle) => {
                        let mut other = branch;
                        other.mass = ones;
                        other.prefix = branch.prefix << 1 | 1;
                        other.walk.take(middle, 1);
                        waiting[count] = other;
                        count += 1;
                        branch.mass -= ones;
                        branch.prefix <<= 1;
                        branch.walk.take(middle, 0);
                    }
                }
                continue;
            }
            if count == 0 {
                break;
            }
            count -= 1;
            branch = waiting[count];
        }
        i32::from(self.logistic.stretch(sum.clamp(1, 65535) as u16))
    }

    /// What the contexts know of a nibble, without a claim.
    #[inline(always)]
    fn peek<const SIMD: bool>(&self, hashes: &[u64; CONTEXTS]) -> Nibble {
        let mut nibble = Nibble::default();
        let tables = self.model.tables.view();
        for (context, &hash) in hashes.iter().enumerate() {
            nibble.add_trained(context, tables.find::<SIMD>(context, hash));
            nibble.add_learned(context, self.state.overlay.find::<SIMD>(hash));
        }
        nibble
    }

    /// The probability of a one behind the bits of `prefix`, in units of 2^-16.
    #[inline(always)]
    fn outlook_bit<const SIMD: bool>(&self, outlook: &mut Outlook, prefix: u32) -> u32 {
        let (node, nibble) = if prefix < 16 {
            (prefix as usize, &outlook.high)
        } else {
            let shift = prefix.ilog2() - 4;
            let high = prefix >> shift & 15;
            if outlook.low.0 != high {
                let hashes = self.state.hashes.map(|hash| next_nibble(hash, high));
                outlook.low = (high, self.peek::<SIMD>(&hashes));
            }
            let node = 1 << shift | prefix & ((1 << shift) - 1);
            (node as usize, &outlook.low.1)
        };
        let (params, expected) = (outlook.params, &outlook.expected);
        let spot = Spot::plain(node as u8, prefix as u8);
        self.predict::<SIMD, false>(params, nibble, spot, expected, None)
            .mean
    }
}
