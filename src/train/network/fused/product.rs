//! Products of matrices of bf16 with sums in single precision.
//!
//! A bf16 holds integers up to 256 exactly, so the products of stored activations and weights are exact;
//! gradients lose the precision that mixed-precision training does without. Numbers are kept in pairs along
//! the dimension that is summed up, as the instruction of AVX-512 wants them: the first of a pair in
//! the low half of a `u32`.

/// Columns of a panel.
pub const PANEL: usize = 32;
/// Rows that are computed together; divides [`PANEL`].
const TILE: usize = 8;

/// The sums of a tile: a row of [`PANEL`] columns for each of its rows.
pub type Sums = [[f32; PANEL]; TILE];

/// The bf16 nearest to a finite number, in the low half.
#[inline(always)]
pub fn bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

/// Both numbers of a pair.
#[inline(always)]
pub fn unpack(pair: u32) -> (f32, f32) {
    (
        f32::from_bits(pair << 16),
        f32::from_bits(pair & 0xffff_0000),
    )
}

/// A matrix whose rows lie one behind the other, pairs along the columns.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [u32],
    /// Distance of rows.
    pub stride: usize,
    /// Pairs of a row that take part.
    pub pairs: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `pairs` pairs, all of which take part.
    pub fn whole(data: &'a [u32], pairs: usize) -> Left<'a> {
        let stride = pairs;
        Left::Rows(Rows {
            data,
            stride,
            pairs,
        })
    }
}

/// A matrix in panels of [`PANEL`] columns, pairs along the rows: `data[panel][pair][column]`.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    pub data: &'a [u32],
    /// Pairs in each panel of `data`.
    pub depth: usize,
    /// The first pair that takes part, and how many do.
    pub first: usize,
    pub pairs: usize,
}

impl<'a> Panels<'a> {
    /// Panels of `pairs` pairs, all of which take part.
    pub fn whole(data: &'a [u32], pairs: usize) -> Panels<'a> {
        Panels {
            data,
            depth: pairs,
            first: 0,
            pairs,
        }
    }
}

/// The left factor.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a> {
    Rows(Rows<'a>),
    /// The columns of the panels are the rows of the factor.
    Transposed(Panels<'a>),
}

impl Left<'_> {
    /// Numbers, and the places of the first pair of some rows, and the distance of pairs.
    fn tile(&self, row: usize, rows: usize) -> (&[u32], [usize; TILE], usize) {
        let clip = |i: usize| row + i.min(rows - row - 1);
        match self {
            Left::Rows(from) => {
                let places = std::array::from_fn(|i| clip(i) * from.stride);
                (from.data, places, 1)
            }
            Left::Transposed(from) => {
                let place = |at: usize| (at / PANEL * from.depth + from.first) * PANEL + at % PANEL;
                (from.data, std::array::from_fn(|i| place(clip(i))), PANEL)
            }
        }
    }

    fn pairs(&self) -> usize {
        match self {
            Left::Rows(from) => from.pairs,
            Left::Transposed(from) => from.pairs,
        }
    }
}

/// Where a product goes.
#[derive(Debug)]
pub struct Output<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    /// Adds to what is there.
    pub add: bool,
}

impl<'a> Output<'a> {
    /// Rows one behind the other, which are overwritten.
    pub fn rows(data: &'a mut [f32], rows: usize, columns: usize) -> Output<'a> {
        Output {
            data,
            stride: columns,
            rows,
            columns,
            add: false,
        }
    }
}

/// Multiplies `left` with `right`, whose pairs must be as many.
pub fn product(left: Left, right: Panels, out: Output) {
    assert_eq!(left.pairs(), right.pairs);
    for column in (0..out.columns).step_by(PANEL) {
        let start = (column / PANEL * right.depth + right.first) * PANEL;
        let panel = &right.data[start..][..right.pairs * PANEL];
        let width = PANEL.min(out.columns - column);
        for row in (0..out.rows).step_by(TILE) {
            let (data, places, step) = left.tile(row, out.rows);
            let sums = tile(data, places, step, panel);
            for (i, sums) in sums.iter().enumerate().take(out.rows - row) {
                let to = &mut out.data[(row + i) * out.stride + column..][..width];
                if out.add {
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                } else {
                    to.copy_from_slice(&sums[..width]);
                }
            }
        }
    }
}

/// Sums of products of the rows that start at `places` with all columns of a panel.
fn tile(left: &[u32], places: [usize; TILE], step: usize, panel: &[u32]) -> Sums {
    let pairs = panel.len() / PANEL;
    let last = places
        .iter()
        .max()
        .map_or(0, |place| place + pairs.saturating_sub(1) * step);
    assert!(last < left.len() && panel.len() == pairs * PANEL);
    #[cfg(target_arch = "x86_64")]
    if super::wide::has_bf16() {
        // SAFETY: the processor has the instructions, and all places were checked above.
        return unsafe { tile_avx512(left, places, step, panel) };
    }
    tile_scalar(left, places, step, panel)
}

super::wide::vectorised! {
/// As the AVX-512 tile: any order of sums is good enough.
pub fn tile_scalar(left: &[u32], places: [usize; TILE], step: usize, panel: &[u32]) -> Sums {
    let mut sums = [[0f32; PANEL]; TILE];
    for (k, columns) in panel.as_chunks::<PANEL>().0.iter().enumerate() {
        for (sums, place) in sums.iter_mut().zip(places) {
            let (low, high) = unpack(left[place + k * step]);
            for (sum, &column) in sums.iter_mut().zip(columns) {
                let (first, second) = unpack(column);
                *sum += low * first + high * second;
            }
        }
    }
    sums
}
}

/// # Safety
/// The processor has AVX-512 F and BF16; with `pairs = panel.len() / PANEL`, `panel` is a multiple of
/// [`PANEL`] long and `places[i] + (pairs - 1) * step` is inside `left` for every i.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_avx512(left: &[u32], places: [usize; TILE], step: usize, panel: &[u32]) -> Sums {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    let mut sums = [[_mm512_setzero_ps(); 2]; TILE];
    for k in 0..panel.len() / PANEL {
        // SAFETY: the contract above; a __m512bh is sixteen pairs in any registers.
        unsafe {
            let at = panel.as_ptr().add(k * PANEL);
            let first: __m512bh = transmute(_mm512_loadu_si512(at.cast()));
            let second: __m512bh = transmute(_mm512_loadu_si512(at.add(16).cast()));
            for (sums, place) in sums.iter_mut().zip(places) {
                let pair = *left.get_unchecked(place + k * step);
                let pair: __m512bh = transmute(_mm512_set1_epi32(pair as i32));
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, first);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, second);
            }
        }
    }
    // SAFETY: two registers of sixteen floats are a row of thirty-two.
    unsafe { transmute::<[[__m512; 2]; TILE], Sums>(sums) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::corpus::Random;
    use crate::train::network::fused::pack;

    fn integers(random: &mut Random, len: usize) -> Vec<f32> {
        (0..len).map(|_| random.below(255) as f32 - 127.0).collect()
    }

    /// Integers are exact, so every order of summing gives the same.
    #[test]
    fn products_of_all_shapes_are_those_of_the_definition() {
        let mut random = Random(5);
        for (rows, inner, columns) in [(1, 2, 1), (8, 32, 32), (13, 70, 40), (70, 64, 100)] {
            let a = integers(&mut random, rows * inner);
            let b = integers(&mut random, inner * columns);
            let expected: Vec<f32> = (0..rows * columns)
                .map(|at| {
                    let (row, column) = (at / columns, at % columns);
                    (0..inner)
                        .map(|k| a[row * inner + k] * b[k * columns + column])
                        .sum()
                })
                .collect();
            let left = pack::rows(&a, inner);
            let right = pack::interleave(&pack::rows(&b, columns), columns.div_ceil(2));
            let transposed =
                pack::interleave(&pack::rows(&transpose(&a, inner), rows), rows.div_ceil(2));
            let pairs = inner / 2;
            for left in [
                Rows::whole(&left, pairs),
                Left::Transposed(Panels::whole(&transposed, pairs)),
            ] {
                let mut data = vec![1f32; rows * columns];
                let out = Output::rows(&mut data, rows, columns);
                product(left, Panels::whole(&right, pairs), out);
                assert_eq!(data, expected);
            }
        }
    }

    fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
        let rows = values.len() / columns;
        (0..values.len())
            .map(|at| values[at % rows * columns + at / rows])
            .collect()
    }

    /// A product of the tile by the definition, in double precision.
    fn definition(row: &[u32], panel: &[u32], column: usize) -> f64 {
        let columns = panel.iter().skip(column).step_by(PANEL);
        let terms = row.iter().zip(columns).map(|(&a, &b)| {
            let ((a, b), (c, d)) = (unpack(a), unpack(b));
            f64::from(a) * f64::from(c) + f64::from(b) * f64::from(d)
        });
        terms.sum()
    }

    #[test]
    fn the_tiles_agree_with_the_definition() {
        let mut random = Random(6);
        let value = |random: &mut Random| random.below(2001) as f32 / 1000.0 - 1.0;
        let pair = |random: &mut Random| bf16(value(random)) | bf16(value(random)) << 16;
        for pairs in [1, 2, 33] {
            let left: Vec<u32> = (0..TILE * pairs).map(|_| pair(&mut random)).collect();
            let panel: Vec<u32> = (0..PANEL * pairs).map(|_| pair(&mut random)).collect();
            let places = std::array::from_fn(|i| i * pairs);
            for found in [
                tile(&left, places, 1, &panel),
                tile_scalar(&left, places, 1, &panel),
            ] {
                for (row, sums) in left.chunks_exact(pairs).zip(&found) {
                    for (column, &sum) in sums.iter().enumerate() {
                        let expected = definition(row, &panel, column);
                        let off = (f64::from(sum) - expected).abs();
                        assert!(off < 1e-4, "{sum} instead of {expected}");
                    }
                }
            }
        }
    }
}
