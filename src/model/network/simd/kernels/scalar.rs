//! One number at a time: what the vector instructions must equal.

use std::ops::Range;

use super::super::layout::{Activations, Block, Group, LANES, Lanes, Packed, Quad};
use super::shared::{self, Attend, Norm, Output};
use super::{Products, build};

build!(Scalar);

pub(super) struct Scalar;

impl Products for Scalar {
    const ROWS: usize = 4;

    #[inline]
    unsafe fn signed<const N: usize>(block: Block, inputs: [&[Quad]; N]) -> [Lanes; N] {
        inputs.map(|row| products(block.groups, row))
    }

    #[inline]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        inputs.map(|row| products(groups, row))
    }
}

fn products(groups: &[Group], row: &[Quad]) -> Lanes {
    let mut sums = [0; LANES];
    for (group, quad) in groups.iter().zip(row) {
        for (sum, weights) in sums.iter_mut().zip(&group.0) {
            let pairs = weights.iter().zip(quad);
            *sum += pairs
                .map(|(&w, &a)| i32::from(w) * i32::from(a))
                .sum::<i32>();
        }
    }
    sums
}
