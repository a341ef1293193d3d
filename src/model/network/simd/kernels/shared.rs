//! The operations in plain Rust around the products. Each processor has its own build, in which
//! the compiler makes vectors of the loops over [`LANES`] numbers.

use std::ops::Range;

use super::super::super::config::FeedForward;
use super::super::super::exact;
use super::super::layout::{Activations, GROUP, Head, LANES, Lanes, Packed, Quad};
use super::Products;

/// Keys of whole blocks among which those that a query sees lie.
const SPAN: usize = exact::KEYS_MAX + LANES;

/// What becomes of the sums of a product.
#[derive(Debug)]
pub(in super::super) enum Output<'a> {
    /// Scaled and clipped.
    Activations(&'a mut Activations),
    /// Hidden values of a feed-forward layer.
    Hidden(FeedForward, &'a mut Activations),
    /// Added to the residual stream, whose rows are padded.
    Residual(&'a mut [i32]),
    /// Scaled, in rows for all blocks of the product.
    Logits(&'a mut [i32]),
}

/// # Safety
/// The processor must have the instructions of `P`.
#[inline(always)]
pub(super) unsafe fn multiply<P: Products>(
    matrix: &Packed,
    blocks: Range<usize>,
    inputs: &Activations,
    mut output: Output,
) {
    let first = blocks.start;
    for number in blocks.clone() {
        let (block, scale) = (matrix.block(number), matrix.scale(number));
        let place = (number - first, blocks.len());
        let mut row = 0;
        macro_rules! rows {
            ($count:literal) => {
                while inputs.rows() - row >= $count {
                    let mut rows = [inputs.row(row); $count];
                    for (index, place) in rows.iter_mut().enumerate() {
                        *place = inputs.row(row + index);
                    }
                    // SAFETY: as above.
                    let sums = unsafe { P::signed::<$count>(block, rows) };
                    for (index, sums) in sums.iter().enumerate() {
                        output.put(row + index, place, &rescale(sums, scale));
                    }
                    row += $count;
                }
            };
        }
        if P::ROWS == 8 {
            rows!(8);
        }
        rows!(4);
        rows!(2);
        rows!(1);
    }
}

impl Output<'_> {
    /// Takes the scaled sums of a row for one block of the product, of so many.
    #[inline(always)]
    fn put(&mut self, row: usize, (block, blocks): (usize, usize), sums: &Lanes) {
        let start = row * blocks * LANES + block * LANES;
        match self {
            Output::Activations(out) => put(out.row_mut(row), block, &each(sums, activation)),
            Output::Hidden(FeedForward::Relu, out) => {
                put(out.row_mut(row), block, &each(sums, positive));
            }
            Output::Hidden(FeedForward::SquaredRelu, out) => {
                put(out.row_mut(row), block, &each(sums, square));
            }
            Output::Residual(residual) => {
                let values = &mut residual[start..start + LANES];
                for (value, sum) in values.iter_mut().zip(sums) {
                    *value = (*value + sum).clamp(-exact::RESIDUAL_MAX, exact::RESIDUAL_MAX);
                }
            }
            Output::Logits(out) => out[start..start + LANES].copy_from_slice(sums),
        }
    }
}

/// A function of every lane. (The compiler does not always inline `map` of an array, and then makes no
/// vectors of it.)
#[inline(always)]
fn each<T: Copy + Default>(lanes: &Lanes, function: impl Fn(i32) -> T) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    for (out, &lane) in out.iter_mut().zip(lanes) {
        *out = function(lane);
    }
    out
}

#[inline(always)]
fn put<T: Copy>(row: &mut [T], block: usize, values: &[T; LANES]) {
    row[block * LANES..(block + 1) * LANES].copy_from_slice(values);
}

/// [`exact::activation`] of what fits 32 bits.
#[inline(always)]
fn activation(value: i32) -> i8 {
    value.clamp(-exact::ACT_MAX, exact::ACT_MAX) as i8
}

/// [`exact::relu`] of a sum in its scale.
#[inline(always)]
fn positive(value: i32) -> i8 {
    value.clamp(0, exact::ACT_MAX) as i8
}

/// [`exact::squared_relu`] of a sum in its scale.
#[inline(always)]
fn square(value: i32) -> i8 {
    let root = value.clamp(0, exact::SQUARE_ROOT_MAX as i32);
    ((root * root + exact::SQUARE_HALF as i32) >> exact::SQUARE_BITS).min(exact::ACT_MAX) as i8
}

/// [`exact::rescale`], whose result is at most 2^30: the scale is at most 1.
#[inline(always)]
fn rescale(sums: &Lanes, scale: &Lanes) -> Lanes {
    let mut out = *sums;
    for (out, &scale) in out.iter_mut().zip(scale) {
        *out = exact::rescale(*out, scale) as i32;
    }
    out
}

/// One query's attention to keys of one head.
#[derive(Debug)]
pub(in super::super) struct Attend<'a> {
    pub(in super::super) query: &'a [Quad],
    pub(in super::super) head: Head<'a>,
    /// Positions whose keys the query sees: at least one, at most 128.
    pub(in super::super) seen: Range<usize>,
    /// Score biases of these keys; empty if they have none.
    pub(in super::super) bias: &'a [i32],
    /// Scale of the scores.
    pub(in super::super) score: i32,
    /// Gain of the output.
    pub(in super::super) gain: i32,
    /// Padded as the query is.
    pub(in super::super) out: &'a mut [i8],
}

/// Attention weights in two parts, so that each is a byte: weight = 8 * high + low.
const LOW_BITS: u32 = 3;

/// # Safety
/// The processor must have the instructions of `P`.
#[inline(always)]
pub(super) unsafe fn attend<P: Products>(job: Attend) {
    let first = job.seen.start / LANES * LANES;
    let mut scores = [0i32; SPAN];
    for block in job.seen.start / LANES..job.seen.end.div_ceil(LANES) {
        // SAFETY: as above.
        let [sums] = unsafe { P::signed(job.head.keys(block), [job.query]) };
        let sums = rescale(&sums, &[job.score; LANES]);
        put(&mut scores, block - first / LANES, &sums);
    }
    let seen = job.seen.start - first..job.seen.end - first;
    let mut parts = [[[0i8; GROUP]; SPAN / GROUP]; 2];
    let total = weigh(&mut scores[seen.clone()], job.bias, seen.start, &mut parts);
    let groups = seen.start / GROUP..seen.end.div_ceil(GROUP);
    let [high, low] = &parts;
    let (high, low) = (&high[groups.clone()], &low[groups.clone()]);
    let positions = groups.start + first / GROUP..groups.end + first / GROUP;
    for (block, out) in job.out.chunks_exact_mut(LANES).enumerate() {
        let values = job.head.values(block, positions.clone());
        // SAFETY: as above.
        let [high, low] = unsafe { P::unsigned(values, [high, low]) };
        let mut sums = low;
        for (sum, high) in sums.iter_mut().zip(high) {
            *sum += high << LOW_BITS;
        }
        out.copy_from_slice(&contexts(&sums, total, job.gain));
    }
}

/// Adds biases to scores, and writes the weights of the keys in two parts, the first at `start`; returns
/// the sum of the weights.
#[inline(always)]
fn weigh(
    scores: &mut [i32],
    bias: &[i32],
    start: usize,
    parts: &mut [[[i8; GROUP]; SPAN / GROUP]; 2],
) -> i32 {
    for (score, bias) in scores.iter_mut().zip(bias) {
        *score += bias;
    }
    let best = scores.iter().copied().max().unwrap_or(0);
    let weights = &*exact::ATTENTION_WEIGHTS;
    let [high, low] = parts;
    let (high, low) = (high.as_flattened_mut(), low.as_flattened_mut());
    let parts = high[start..].iter_mut().zip(&mut low[start..]);
    let mut total = 0;
    for (score, (high, low)) in scores.iter().zip(parts) {
        let weight = weights[(best - score).min(exact::ATTENTION_REACH) as usize];
        total += weight;
        *high = (weight >> LOW_BITS) as i8;
        *low = (weight & ((1 << LOW_BITS) - 1)) as i8;
    }
    total
}

/// [`exact::context`] in double precision, exact as docs/exactness.md shows.
#[inline(always)]
fn contexts(sums: &Lanes, total: i32, gain: i32) -> [i8; LANES] {
    let total = f64::from(total.max(1));
    let half = total * f64::from(1 << exact::CONTEXT_BITS);
    let below = half * 2.0;
    let gain = f64::from(2 * gain);
    let most = f64::from(exact::ACT_MAX);
    each(sums, |sum| {
        let above = f64::from(sum) * gain + half;
        (above / below).floor().clamp(-most, most) as i32 as i8
    })
}

/// A normalisation.
#[derive(Debug, Clone)]
pub(in super::super) struct Norm {
    /// Padded with zeros.
    gains: Vec<i32>,
    width: usize,
}

impl Norm {
    pub(in super::super) fn new(gains: &[i32]) -> Norm {
        let width = gains.len();
        let mut gains = gains.to_vec();
        gains.resize(super::super::layout::padded(width), 0);
        Norm { gains, width }
    }
}

/// [`exact::normalise`] in double precision, exact as docs/exactness.md shows.
#[inline(always)]
pub(super) fn normalise(norm: &Norm, residual: &[i32], out: &mut Activations) {
    let rows = residual.len() / norm.gains.len();
    out.shape(rows, norm.width);
    let most = f64::from(exact::ACT_MAX);
    for (index, row) in residual.chunks_exact(norm.gains.len()).enumerate() {
        let squares = row.iter().map(|&x| i64::from(x * x)).sum();
        let reciprocal = exact::reciprocal(squares, norm.width) as f64;
        let numbers = out
            .row_mut(index)
            .iter_mut()
            .zip(row.iter().zip(&norm.gains));
        for (out, (&value, &gain)) in numbers {
            let product = f64::from(value * gain) * reciprocal;
            let scaled = product * exact::power(exact::NORM_BITS) + 0.5;
            *out = scaled.floor().clamp(-most, most) as i32 as i8;
        }
    }
}
