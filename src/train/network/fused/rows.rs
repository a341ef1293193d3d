//! What happens to rows of numbers between products.

use super::wide::vectorised;
use crate::model::network::{FeedForward, exact};
use crate::train::network::float::{ACTIVATION_UNIT, SQUARE_UNIT};

/// Exact activations per 1.0.
pub const UNIT: f32 = ACTIVATION_UNIT as f32;
const ACT_MAX: f32 = exact::ACT_MAX as f32;
const ROOT_MAX: f32 = exact::SQUARE_ROOT_MAX as f32;
/// Adding and subtracting it rounds a number below 2^22 to an integer.
const ROUNDER: f32 = 12_582_912.0;
const LANES: usize = 16;

/// The nearest integer within these limits.
#[inline(always)]
fn clipped(value: f32, least: f32, most: f32) -> f32 {
    value.clamp(least, most) + ROUNDER - ROUNDER
}

/// True if an activation lost its gradient because it was clipped.
#[inline(always)]
pub fn is_clipped(stored: f32) -> bool {
    stored.abs() >= ACT_MAX
}

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of `term(i)` for all i, in an order that suits vectors.
#[inline(always)]
fn sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let mut total = sum_lanes(lanes);
    for at in whole..len {
        total += term(at);
    }
    total
}

/// The sum of products of two rows.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum(a.len(), |i| a[i] * b[i])
}

/// e^x to seven digits for x <= 0 (and up to 80).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.max(-80.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    // ln 2 in two parts
    let rest = x - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut series = 1.0 / 5040.0;
    for inverse in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * rest + inverse;
    }
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    series * f32::from_bits(exponent)
}

vectorised! {
/// Normalises rows of `gain.len()` numbers: activations in their exact unit, and the reciprocal root mean squares.
pub fn normalise(x: &[f32], gain: &[f32], rounded: bool, out: &mut [f32], reciprocals: &mut [f32]) {
    let d = gain.len();
    for ((x, out), reciprocal) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).zip(reciprocals) {
        let mean = dot(x, x) / d as f32;
        *reciprocal = 1.0 / (mean + 1e-9).sqrt();
        let scale = *reciprocal * UNIT;
        for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain) {
            let value = x * gain * scale;
            *out = if rounded { clipped(value, -ACT_MAX, ACT_MAX) } else { value };
        }
    }
}
}

vectorised! {
/// The way back through [`normalise`]: adds to the gradients of `x` and of the gain; changes `dy`.
pub fn normalise_back(
    x: &[f32],
    gain: &[f32],
    reciprocals: &[f32],
    rounded: bool,
    dy: &mut [f32],
    dx: &mut [f32],
    dgain: &mut [f32],
) {
    let d = gain.len();
    let dgain = &mut dgain[..d];
    let rows = x.chunks_exact(d).zip(dy.chunks_exact_mut(d)).zip(dx.chunks_exact_mut(d));
    for (((x, dy), dx), &reciprocal) in rows.zip(reciprocals) {
        for i in 0..d {
            let value = x[i] * gain[i] * reciprocal * UNIT;
            let lost = rounded && value.abs() >= ACT_MAX - 0.5;
            let gradient = if lost { 0.0 } else { dy[i] };
            dgain[i] += gradient * x[i] * reciprocal;
            dy[i] = gradient * gain[i];
        }
        let along = dot(x, dy) * reciprocal * reciprocal * reciprocal / d as f32;
        for i in 0..d {
            dx[i] += dy[i] * reciprocal - x[i] * along;
        }
    }
}
}

vectorised! {
/// Sums of products to activations in their exact unit: each column has a scale.
pub fn store(sums: &mut [f32], scale: &[f32], rounded: bool) {
    for row in sums.chunks_exact_mut(scale.len()) {
        for (value, &scale) in row.iter_mut().zip(scale) {
            let scaled = *value * scale;
            *value = if rounded { clipped(scaled, -ACT_MAX, ACT_MAX) } else { scaled };
        }
    }
}
}

vectorised! {
/// Adds sums of products, scaled by column, to `x`.
pub fn add_scaled(x: &mut [f32], sums: &[f32], scale: &[f32]) {
    let columns = scale.len();
    for (x, sums) in x.chunks_exact_mut(columns).zip(sums.chunks_exact(columns)) {
        for ((x, &sum), &scale) in x.iter_mut().zip(sums).zip(scale) {
            *x += sum * scale;
        }
    }
}
}

vectorised! {
/// out = rows * scale, by column.
pub fn scale_columns(rows: &[f32], scale: &[f32], out: &mut [f32]) {
    let columns = scale.len();
    for (row, out) in rows.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
        for ((out, &value), &scale) in out.iter_mut().zip(row).zip(scale) {
            *out = value * scale;
        }
    }
}
}

vectorised! {
/// The hidden values of a feed-forward layer in their exact unit. `sums` become what the way back needs: for
/// squares the roots, scaled by column, else the values themselves.
pub fn hidden(sums: &mut [f32], scale: &[f32], kind: FeedForward, rounded: bool, out: &mut [f32]) {
    let columns = scale.len();
    for (sums, out) in sums.chunks_exact_mut(columns).zip(out.chunks_exact_mut(columns)) {
        for ((value, &scale), out) in sums.iter_mut().zip(scale).zip(out.iter_mut()) {
            let scaled = *value * scale;
            (*value, *out) = match (kind, rounded) {
                (FeedForward::SquaredRelu, true) => {
                    let root = clipped(scaled, 0.0, ROOT_MAX);
                    (root, clipped(root * root * SQUARE, 0.0, ACT_MAX))
                }
                (FeedForward::SquaredRelu, false) => {
                    let root = scaled.max(0.0);
                    (root, root * root * SQUARE)
                }
                (FeedForward::Relu, true) => {
                    let kept = clipped(scaled, 0.0, ACT_MAX);
                    (kept, kept)
                }
                (FeedForward::Relu, false) => (scaled.max(0.0), scaled.max(0.0)),
            };
        }
    }
}
}

const SQUARE: f32 = 1.0 / (1 << exact::SQUARE_BITS) as f32;

vectorised! {
/// The way back through [`hidden`]: from gradients of hidden values in 1.0 to those of the sums in 1.0, times `scale`.
pub fn hidden_back(kept: &[f32], kind: FeedForward, rounded: bool, scale: &[f32], gradient: &mut [f32]) {
    let columns = scale.len();
    // the root is SQUARE_UNIT times the sum, the hidden value SQUARE_UNIT^2 / 2^8 times its square
    const TWICE: f32 = 2.0 / SQUARE_UNIT as f32;
    // the hidden value of a root is clipped from 126.5 on
    const LOST: f32 = (ACT_MAX - 0.5) * (1 << exact::SQUARE_BITS) as f32;
    for (kept, gradient) in kept.chunks_exact(columns).zip(gradient.chunks_exact_mut(columns)) {
        for ((gradient, &kept), &scale) in gradient.iter_mut().zip(kept).zip(scale) {
            *gradient *= scale * match kind {
                FeedForward::SquaredRelu => {
                    let lost = rounded && kept * kept >= LOST;
                    if lost { 0.0 } else { kept * TWICE }
                }
                FeedForward::Relu => {
                    let lost = kept <= 0.0 || rounded && kept >= ACT_MAX;
                    if lost { 0.0 } else { 1.0 }
                }
            };
        }
    }
}
}

vectorised! {
/// The largest magnitude of some numbers.
pub fn largest(values: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = lane.max(value.abs());
        }
    }
    lanes.iter().chain(rest).fold(0f32, |most, value| most.max(value.abs()))
}
}

vectorised! {
/// A row of a matrix in steps, rounded or not.
pub fn divide(row: &[f32], step: f32, rounded: bool, out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(row) {
        let steps = value / step;
        *out = if rounded { clipped(steps, -ACT_MAX, ACT_MAX) } else { steps };
    }
}
}

vectorised! {
/// Adds a row of an embedding to `x`, as it is when it is stored in `step`s.
pub fn add_embedding(x: &mut [f32], row: &[f32], step: f32, rounded: bool) {
    let inverse = 1.0 / step;
    for (x, &value) in x.iter_mut().zip(row) {
        *x += if rounded { clipped(value * inverse, -ACT_MAX, ACT_MAX) * step } else { value };
    }
}
}

vectorised! {
/// Softmax in place of scores * scale + bias.
pub fn softmax(scores: &mut [f32], scale: f32, bias: &[f32]) {
    let mut most = f32::MIN;
    let bias = &bias[..scores.len()];
    for (score, &bias) in scores.iter_mut().zip(bias) {
        *score = *score * scale + bias;
        most = most.max(*score);
    }
    for score in scores.iter_mut() {
        *score = exp(*score - most);
    }
    let total = sum(scores.len(), |i| scores[i]);
    let share = 1.0 / total;
    for score in scores.iter_mut() {
        *score *= share;
    }
}
}

vectorised! {
/// The way back through a softmax with these outputs: `gradient` times `scale` becomes that of the scores, which is added
/// to `bias` as well.
pub fn softmax_back(shares: &[f32], scale: f32, gradient: &mut [f32], bias: &mut [f32]) {
    let mean = dot(shares, gradient);
    let bias = &mut bias[..shares.len()];
    for ((gradient, &share), bias) in gradient.iter_mut().zip(shares).zip(bias) {
        *gradient = share * (*gradient - mean) * scale;
        *bias += *gradient;
    }
}
}

vectorised! {
/// Cost in nats of choosing `chosen` by logits, which become the gradient of `weight` times this cost.
pub fn cross_entropy(logits: &mut [f32], chosen: usize, weight: f32) -> f32 {
    let mut most = f32::MIN;
    for &logit in logits.iter() {
        most = most.max(logit);
    }
    let own = logits[chosen] - most;
    for logit in logits.iter_mut() {
        *logit = exp(*logit - most);
    }
    let total = sum(logits.len(), |i| logits[i]);
    let share = weight / total;
    for logit in logits.iter_mut() {
        *logit *= share;
    }
    logits[chosen] -= weight;
    total.ln() - own
}
}

vectorised! {
/// values = values * own + others * other.
pub fn blend(values: &mut [f32], own: f32, others: &[f32], other: f32) {
    for (value, &from) in values.iter_mut().zip(others) {
        *value = *value * own + from * other;
    }
}
}

/// One step of AdamW: its rates and the corrections of its first steps.
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    pub betas: [f32; 2],
    pub corrections: [f32; 2],
    pub epsilon: f32,
    pub rate: f32,
}

vectorised! {
/// Moves parameters by AdamW without decay; `mean` and `square` are what it remembers.
pub fn adam(values: &mut [f32], mean: &mut [f32], square: &mut [f32], gradient: &[f32], with: Adam) {
    let Adam { betas, corrections, epsilon, rate } = with;
    let (mean_share, square_share) = (1.0 / corrections[0], 1.0 / corrections[1]);
    let memory = mean.iter_mut().zip(square.iter_mut());
    for ((value, (mean, square)), &gradient) in values.iter_mut().zip(memory).zip(gradient) {
        *mean = *mean * betas[0] + gradient * (1.0 - betas[0]);
        *square = *square * betas[1] + gradient * gradient * (1.0 - betas[1]);
        *value -= rate * (*mean * mean_share) / ((*square * square_share).sqrt() + epsilon);
    }
}
}

vectorised! {
/// sums[i] = row * weights[i] for rows of `row.len()` weights.
pub fn dots(row: &[f32], weights: &[f32], sums: &mut [f32]) {
    for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact(row.len())) {
        *sum = dot(row, weights);
    }
}
}

vectorised! {
/// For each factor i: adds factor * own_scale[i] * weights[i] to `row`, and factor * gradient_scale * input to gradients[i].
pub fn dots_back(
    factors: &[f32],
    own_scale: &[f32],
    weights: &[f32],
    input: &[f32],
    gradient_scale: f32,
    row: &mut [f32],
    gradients: &mut [f32],
) {
    let d = input.len();
    let row = &mut row[..d];
    let all = weights.chunks_exact(d).zip(gradients.chunks_exact_mut(d));
    for ((&factor, &scale), (weights, gradients)) in factors.iter().zip(own_scale).zip(all) {
        let (down, up) = (factor * scale, factor * gradient_scale);
        for i in 0..d {
            row[i] += down * weights[i];
            gradients[i] += up * input[i];
        }
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_function_has_seven_digits() {
        for i in 0..4000 {
            let x = -(i as f32) / 50.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(error < 3e-7, "{x}: {error}");
        }
    }

    #[test]
    fn a_softmax_adds_up_to_one_and_its_gradient_to_nothing() {
        let mut shares: Vec<f32> = (0..45).map(|i| (i as f32).sin()).collect();
        softmax(&mut shares, 2.0, &[0.5; 45]);
        assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let mut gradient: Vec<f32> = (0..45).map(|i| (i as f32).cos()).collect();
        softmax_back(&shares, 1.0, &mut gradient, &mut [0.0; 45]);
        assert!(gradient.iter().sum::<f32>().abs() < 1e-6);
    }
}
