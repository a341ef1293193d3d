//! Products of 8-bit vectors, with a scalar twin for every vector kernel.

/// How products are computed on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// One number at a time, on any processor.
    Scalar,
    /// 32 numbers at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    /// The fastest kernel of this machine.
    pub fn detect() -> Kernel {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Kernel::Avx2;
        }
        Kernel::Scalar
    }

    /// All kernels that run on this machine.
    pub fn available() -> Vec<Kernel> {
        let mut kernels = vec![Kernel::Scalar];
        if Kernel::detect() != Kernel::Scalar {
            kernels.push(Kernel::detect());
        }
        kernels
    }

    /// The sum of products of two vectors of one length, at most 2^16, without -128.
    pub fn dot(self, a: &[i8], b: &[i8]) -> i32 {
        match self {
            Kernel::Scalar => dot_scalar(a, b),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Kernel::Avx2` is only made where the processor has AVX2.
            Kernel::Avx2 => unsafe { dot_avx2(a, b) },
        }
    }
}

fn dot_scalar(a: &[i8], b: &[i8]) -> i32 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| i32::from(a) * i32::from(b))
        .sum()
}

/// The twin of [`dot_scalar`]. `vpmaddubsw` adds two products of an unsigned and a signed byte and
/// saturates at 32767; with the magnitudes of `a` and the products' signs given to `b`, both at most 127,
/// the sum is at most 32258.
///
/// # Safety
/// The processor must have AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn dot_avx2(a: &[i8], b: &[i8]) -> i32 {
    use std::arch::x86_64::*;
    const LANES: usize = 32;
    let ones = _mm256_set1_epi16(1);
    let mut sums = _mm256_setzero_si256();
    let len = a.len().min(b.len());
    let whole = len / LANES * LANES;
    let mut at = 0;
    while at < whole {
        // SAFETY: `at + LANES <= len`, so both loads stay within their slices.
        let (x, y) = unsafe {
            (
                _mm256_loadu_si256(a.as_ptr().add(at).cast()),
                _mm256_loadu_si256(b.as_ptr().add(at).cast()),
            )
        };
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
        at += LANES;
    }
    let halves = _mm_add_epi32(
        _mm256_castsi256_si128(sums),
        _mm256_extracti128_si256(sums, 1),
    );
    let pairs = _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0b00_00_11_10));
    let sum = _mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0b00_00_00_01));
    _mm_cvtsi128_si32(sum) + dot_scalar(&a[whole..len], &b[whole..len])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_kernel_gives_the_sum_of_products(
            pairs in prop::collection::vec((-127i8..=127, -127i8..=127), 0..300)
        ) {
            let (a, b): (Vec<i8>, Vec<i8>) = pairs.into_iter().unzip();
            for kernel in Kernel::available() {
                prop_assert_eq!(kernel.dot(&a, &b), dot_scalar(&a, &b));
            }
        }
    }

    #[test]
    fn the_largest_products_do_not_saturate() {
        for (x, y) in [(127, 127), (-127, 127), (-127, -127)] {
            let (a, b) = (vec![x; 1000], vec![y; 1000]);
            for kernel in Kernel::available() {
                assert_eq!(kernel.dot(&a, &b), 1000 * i32::from(x) * i32::from(y));
            }
        }
    }
}
