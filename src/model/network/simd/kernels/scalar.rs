//! One number at a time: what the vector instructions must equal.

use std::ops::Range;

use super::super::layout::{Activations, Group, LANES, Lanes, Packed, Quad};
use super::shared::{self, Attend, Norm, Output};
use super::{Products, build, cut};

build!(Scalar);

pub(super) struct Scalar;

impl Products for Scalar {
    const ROWS: usize = 4;

    #[inline]
    unsafe fn signed<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        products(groups, inputs)
    }

    #[inline]
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
        products(groups, inputs)
    }
}

#[inline]
fn products<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N] {
    let inputs = cut(inputs, groups.len());
    let mut all = [[0; LANES]; N];
    for (at, group) in groups.iter().enumerate() {
        for (sums, row) in all.iter_mut().zip(inputs) {
            let quad = row[at];
            for (sum, weights) in sums.iter_mut().zip(&group.0) {
                for (&weight, input) in weights.iter().zip(quad) {
                    *sum += i32::from(weight) * i32::from(input);
                }
            }
        }
    }
    all
}
