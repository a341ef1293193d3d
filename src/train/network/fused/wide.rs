//! Which instructions the processor has, and functions that are compiled for them.

/// True if products of bf16 can use AVX-512.
#[cfg(target_arch = "x86_64")]
pub fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// True if [`vectorised`] functions can use AVX-512.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512() -> bool {
    #[cfg(test)]
    if tests::MOST.get() < Width::Avx512 {
        return false;
    }
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// True if [`vectorised`] functions can use AVX2.
#[cfg(target_arch = "x86_64")]
pub fn has_avx2() -> bool {
    #[cfg(test)]
    if tests::MOST.get() < Width::Avx2 {
        return false;
    }
    is_x86_feature_detected!("avx2")
}

/// Compiles a function for every processor, for AVX2 and for AVX-512, and picks at run time. The source is
/// the same and nothing is re-associated or contracted, so all give the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        pub fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn half_as_wide($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                if $crate::train::network::fused::wide::has_avx512() {
                    // SAFETY: the processor has these instructions.
                    return unsafe { wide($($arg),*) };
                }
                if $crate::train::network::fused::wide::has_avx2() {
                    // SAFETY: the processor has these instructions.
                    return unsafe { half_as_wide($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
pub(super) use vectorised;

/// What a thread of a test lets [`vectorised`] functions use.
#[cfg(all(test, target_arch = "x86_64"))]
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Width {
    Plain,
    Avx2,
    Avx512,
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::cell::Cell;

    use super::{Width, has_avx2, has_avx512};
    use crate::model::network::FeedForward;
    use crate::train::corpus::Random;
    use crate::train::network::fused::product::{PANEL, tile_scalar};
    use crate::train::network::fused::{pack, rows};

    thread_local! {
        pub static MOST: Cell<Width> = const { Cell::new(Width::Avx512) };
    }

    /// Columns: whole vectors and a rest.
    const COLUMNS: usize = 77;
    const ROWS: usize = 3;

    fn numbers(random: &mut Random, len: usize, size: f32) -> Vec<f32> {
        let number = |random: &mut Random| random.below(20_001) as f32 / 10_000.0 - 1.0;
        (0..len).map(|_| number(random) * size).collect()
    }

    /// What the functions make of the same random numbers, as bits.
    fn results(rounded: bool) -> Vec<u32> {
        let random = &mut Random(7);
        let many = ROWS * COLUMNS;
        let [x, mut dy, mut dx] = [1.0, 3.0, 2.0].map(|size| numbers(random, many, size));
        let gain = numbers(random, COLUMNS, 2.0);
        let mut all = Vec::new();
        let (mut out, mut reciprocals) = (vec![0f32; many], vec![0f32; ROWS]);
        rows::normalise(&x, &gain, rounded, &mut out, &mut reciprocals);
        let mut dgain = vec![0f32; COLUMNS];
        rows::normalise_back(
            &x,
            &gain,
            &reciprocals,
            rounded,
            &mut dy,
            &mut dx,
            &mut dgain,
        );
        all.extend(
            [&out, &reciprocals, &dy, &dx, &dgain]
                .into_iter()
                .flatten()
                .copied(),
        );
        for kind in [FeedForward::Relu, FeedForward::SquaredRelu] {
            let mut sums = numbers(random, many, 500.0);
            rows::hidden(&mut sums, &gain, kind, rounded, &mut out);
            all.extend(sums.iter().chain(&out));
            rows::hidden_back(&sums, kind, rounded, &gain, &mut out);
            all.extend(&out);
        }
        rows::store(&mut dy, &gain, rounded);
        rows::add_scaled(&mut dx, &dy, &gain);
        rows::scale_columns(&x, &gain, &mut out);
        all.extend(dy.iter().chain(&dx).chain(&out));
        let mut scores = numbers(random, COLUMNS, 9.0);
        rows::softmax(&mut scores, 0.5, &gain);
        rows::softmax_back(&scores, 0.5, &mut dy[..COLUMNS], &mut dgain);
        all.extend(scores.iter().chain(&dy).chain(&dgain));
        let mut logits = numbers(random, COLUMNS, 9.0);
        all.push(rows::cross_entropy(&mut logits, 5, 0.1));
        all.extend(&logits);
        all.push(rows::largest(&x));
        rows::divide(&x, 0.01, rounded, &mut out);
        rows::add_embedding(&mut dx, &out, 0.3, rounded);
        rows::blend(&mut dx, 0.9, &x, 0.1);
        all.extend(out.iter().chain(&dx));
        let [mut mean, mut square] = [vec![0.1f32; many], vec![0.2f32; many]];
        let with = rows::Adam {
            betas: [0.9, 0.95],
            corrections: [0.3, 0.2],
            epsilon: 1e-8,
            rate: 0.01,
        };
        rows::adam(&mut out, &mut mean, &mut square, &x, with);
        rows::dots(&gain, &x, &mut reciprocals);
        all.extend(out.iter().chain(&mean).chain(&square).chain(&reciprocals));
        let scales = [0.5; ROWS];
        rows::dots_back(&reciprocals, &scales, &x, &gain, 0.2, &mut dgain, &mut dx);
        all.extend(dgain.iter().chain(&dx));
        let left = pack::rows(&numbers(random, 8 * 20, 1.0), 20);
        let panel = pack::rows(&numbers(random, PANEL * 20, 1.0), 20);
        let places = std::array::from_fn(|i| i * 10);
        all.extend(tile_scalar(&left, places, 1, &panel).as_flattened());
        all.iter().map(|number| number.to_bits()).collect()
    }

    #[test]
    fn every_width_gives_the_same_bits() {
        let (avx2, avx512) = (has_avx2(), has_avx512());
        let of = |width, rounded| {
            MOST.set(width);
            let results = results(rounded);
            MOST.set(Width::Avx512);
            results
        };
        for rounded in [false, true] {
            let plain = of(Width::Plain, rounded);
            for (width, has) in [(Width::Avx2, avx2), (Width::Avx512, avx512)] {
                match has {
                    true => assert!(of(width, rounded) == plain, "{width:?}, {rounded}"),
                    false => eprintln!("skipped: this processor has no {width:?}"),
                }
            }
        }
    }
}
