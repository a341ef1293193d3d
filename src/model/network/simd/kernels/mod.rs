//! The operations that take the time, built for several kinds of processors.
//!
//! Only [`Products`] differs between processors: a few lines of vector instructions with a scalar twin. All
//! else is one source, [`shared`], that the compiler vectorises for each processor.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
mod scalar;
mod shared;

pub(super) use shared::{Attend, Norm, Output};

use super::layout::{Activations, Group, Lanes, Packed, Quad};
use std::ops::Range;

/// Sums of products of one block with several rows of inputs.
trait Products {
    /// Rows of inputs that the registers have room for, 4 or 8.
    const ROWS: usize;

    /// Sums of products of all numbers of a block with each row of inputs, of which as many quads are
    /// read as the block has groups. All are within +-127, and all sums within i32.
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn signed<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N];

    /// The same for inputs that are not negative.
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn unsigned<const N: usize>(groups: &[Group], inputs: [&[Quad]; N]) -> [Lanes; N];
}

/// How products are computed on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Kind);

/// Private, so that a [`Kernel`] can only be had for instructions that the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One number at a time, on any processor.
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with its instructions for neural networks.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with products of four.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Kernel {
    /// The fastest kernel of this machine.
    pub fn detect() -> Kernel {
        Kernel::available().pop().unwrap_or(Kernel(Kind::Scalar))
    }

    /// All kernels that run on this machine, the fastest last.
    pub fn available() -> Vec<Kernel> {
        let mut kinds = vec![Kind::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            kinds.extend(avx2::present().then_some(Kind::Avx2));
            kinds.extend(avx512::present().then_some(Kind::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        {
            kinds.push(Kind::Neon);
            kinds.extend(neon_dot::present().then_some(Kind::NeonDot));
        }
        kinds.into_iter().map(Kernel).collect()
    }
}

/// Defines an operation of [`Kernel`] that runs as the build of `shared` for the processor.
macro_rules! operation {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*)) => {
        impl Kernel {
            $(#[$doc])*
            pub(super) fn $name(self, $($argument: $type),*) {
                // SAFETY: a `Kernel` of a kind is only made where the processor has its instructions.
                unsafe {
                    match self.0 {
                        Kind::Scalar => scalar::$name($($argument),*),
                        #[cfg(target_arch = "x86_64")]
                        Kind::Avx2 => avx2::$name($($argument),*),
                        #[cfg(target_arch = "x86_64")]
                        Kind::Avx512 => avx512::$name($($argument),*),
                        #[cfg(target_arch = "aarch64")]
                        Kind::Neon => neon::$name($($argument),*),
                        #[cfg(target_arch = "aarch64")]
                        Kind::NeonDot => neon_dot::$name($($argument),*),
                    }
                }
            }
        }
    };
}

operation! {
    /// Multiplies all rows of `inputs` with some blocks of outputs of a matrix.
    multiply(matrix: &Packed, blocks: Range<usize>, inputs: &Activations, output: Output)
}
operation! {
    /// Attention of one query in one head.
    attend(job: Attend)
}
operation! {
    /// Normalises rows of the residual stream.
    normalise(norm: &Norm, residual: &[i32], out: &mut Activations)
}

/// Builds every operation of `shared` with the instructions of a processor.
macro_rules! build {
    ($(#[$features:meta])? $products:ty) => {
        /// # Safety
        /// The processor must have the instructions.
        $(#[$features])?
        pub(super) unsafe fn multiply(
            matrix: &Packed,
            blocks: Range<usize>,
            inputs: &Activations,
            output: Output,
        ) {
            // SAFETY: as above.
            unsafe { shared::multiply::<$products>(matrix, blocks, inputs, output) }
        }

        /// # Safety
        /// The processor must have the instructions.
        $(#[$features])?
        pub(super) unsafe fn attend(job: Attend) {
            // SAFETY: as above.
            unsafe { shared::attend::<$products>(job) }
        }

        /// # Safety
        /// The processor must have the instructions.
        $(#[$features])?
        pub(super) unsafe fn normalise(norm: &Norm, residual: &[i32], out: &mut Activations) {
            shared::normalise(norm, residual, out);
        }
    };
}
use build;

/// Rows cut to the quads that are read, so that the compiler knows it.
#[inline(always)]
fn cut<const N: usize>(mut rows: [&[Quad]; N], quads: usize) -> [&[Quad]; N] {
    for row in &mut rows {
        *row = &row[..quads];
    }
    rows
}

/// The four bytes of a quad as one number.
#[inline(always)]
fn word([a, b, c, d]: Quad) -> i32 {
    i32::from_ne_bytes([a as u8, b as u8, c as u8, d as u8])
}

#[cfg(test)]
mod tests;
