//! Every kernel gives what the scalar twin and [`exact`] give.

use proptest::prelude::*;

use super::super::super::config::FeedForward;
use super::super::super::exact;
use super::super::super::weights::Linear;
use super::super::layout::{KeyValues, LANES, Parts, padded};
use super::*;

/// Numbers within +-127, with the ends often.
fn bytes(len: usize) -> impl Strategy<Value = Vec<i8>> {
    let byte = prop_oneof![3 => -127i8..=127, 1 => Just(127), 1 => Just(-127)];
    prop::collection::vec(byte, len)
}

/// A matrix and some rows of inputs.
fn product() -> impl Strategy<Value = (Linear, Vec<i8>)> {
    (1usize..40, 1usize..300, 0usize..20).prop_flat_map(|(rows, columns, count)| {
        let scales = prop::collection::vec(0..=exact::PRODUCT_SCALE_MAX, rows);
        (bytes(rows * columns), scales, bytes(count * columns)).prop_map(
            move |(weight, scale, inputs)| {
                let linear = Linear {
                    rows,
                    columns,
                    weight,
                    scale,
                };
                (linear, inputs)
            },
        )
    })
}

/// Sums of products in their scales, one number at a time.
fn expected(linear: &Linear, inputs: &[i8]) -> Vec<(i32, i32)> {
    let outputs = |input: &[i8]| -> Vec<(i32, i32)> {
        let rows = linear.weight.chunks_exact(linear.columns);
        rows.zip(&linear.scale)
            .map(|(row, &scale)| {
                let products = row.iter().zip(input);
                let sum = products.map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
                (sum, scale)
            })
            .collect()
    };
    inputs
        .chunks_exact(linear.columns)
        .flat_map(outputs)
        .collect()
}

/// A product with its outputs as activations, padding cut off.
fn activations(
    (kernel, packed, inputs): (Kernel, &Packed, &Activations),
    rows: usize,
    output: impl FnOnce(&mut Activations) -> Output<'_>,
) -> Vec<i8> {
    let mut out = Activations::default();
    out.shape(inputs.rows(), rows);
    let blocks = 0..packed.outputs / LANES;
    kernel.multiply(packed, blocks, inputs, output(&mut out));
    let all = (0..out.rows()).flat_map(|row| out.numbers(row, rows).to_vec());
    all.collect()
}

proptest! {
    #[test]
    fn products_are_those_of_single_numbers((linear, numbers) in product()) {
        let (rows, columns) = (linear.rows, linear.columns);
        let packed = Packed::new(&linear, Parts::one(rows), Parts::one(columns));
        let mut inputs = Activations::default();
        inputs.copy(&numbers, columns);
        let sums = expected(&linear, &numbers);
        let of = |put: fn(i32, i32) -> i8| sums.iter().map(|&(s, c)| put(s, c)).collect::<Vec<_>>();
        for kernel in Kernel::available() {
            let product = (kernel, &packed, &inputs);
            let clipped = activations(product, rows, |out| Output::Activations(out));
            prop_assert_eq!(clipped, of(|s, c| exact::activation(exact::rescale(s, c))), "{:?}", kernel);
            let relu = activations(product, rows, |out| Output::Hidden(FeedForward::Relu, out));
            prop_assert_eq!(relu, of(exact::relu), "{:?}", kernel);
            let square = activations(product, rows, |out| {
                Output::Hidden(FeedForward::SquaredRelu, out)
            });
            prop_assert_eq!(square, of(exact::squared_relu), "{:?}", kernel);
        }
    }

    #[test]
    fn residuals_and_logits_are_those_of_single_numbers(
        (linear, numbers) in product(),
        before in -32767i32..=32767,
        cut in 0usize..3,
    ) {
        let (rows, columns) = (linear.rows, linear.columns);
        let packed = Packed::new(&linear, Parts::one(rows), Parts::one(columns));
        let mut inputs = Activations::default();
        inputs.copy(&numbers, columns);
        let sums = expected(&linear, &numbers);
        let width = packed.outputs;
        let blocks = cut.min(width / LANES - 1)..width / LANES;
        for kernel in Kernel::available() {
            let mut residual = vec![before; inputs.rows() * width];
            kernel.multiply(&packed, 0..width / LANES, &inputs, Output::Residual(&mut residual));
            let mut logits = vec![0; inputs.rows() * blocks.len() * LANES];
            kernel.multiply(&packed, blocks.clone(), &inputs, Output::Logits(&mut logits));
            let rescaled = sums.iter().map(|&(sum, scale)| exact::rescale(sum, scale));
            for (at, update) in rescaled.enumerate() {
                let (row, output) = (at / rows, at % rows);
                let found = residual[row * width + output];
                prop_assert_eq!(found, exact::residual(before, update), "{:?}", kernel);
                if let Some(output) = output.checked_sub(blocks.start * LANES) {
                    let found = logits[row * blocks.len() * LANES + output];
                    prop_assert_eq!(i64::from(found), update, "{:?}", kernel);
                }
            }
        }
    }

    #[test]
    fn attention_is_that_of_single_numbers(
        (count, width) in (1usize..170, 1usize..40),
        start in 0usize..200,
        seed in bytes(64),
        (score, gain) in (0..=exact::SCALE_MAX, 0..=exact::SCALE_MAX),
    ) {
        let heads = Parts { count: 2, width };
        let number = |at: usize| seed[(at * 7 + at / 64 * 13) % 64];
        let mut known = KeyValues::new(heads, count);
        let mut row = Activations::default();
        for position in 0..count {
            // the padding of heads is no different from that of rows
            let numbers: Vec<i8> = (0..heads.padded()).map(|at| number(position * 91 + at)).collect();
            let mut numbers = numbers;
            for head in numbers.chunks_exact_mut(padded(width)) {
                head[width..].fill(0);
            }
            row.copy(&numbers, heads.padded());
            known.push(row.row(0), row.row(0));
        }
        let seen = start % count..count.min(start % count + exact::KEYS_MAX);
        let bias: Vec<i32> = seen.clone().map(|at| i32::from(number(at))).collect();
        let query: Vec<i8> = (0..padded(width)).map(|at| if at < width { number(at + 5) } else { 0 }).collect();
        row.copy(&query, padded(width));
        for kernel in Kernel::available() {
            for head in 0..heads.count {
                let mut out = vec![0; padded(width)];
                kernel.attend(Attend {
                    query: row.row(0),
                    head: known.head(head),
                    seen: seen.clone(),
                    bias: &bias,
                    score,
                    gain,
                    out: &mut out,
                });
                let key = |position: usize, at: usize| number(position * 91 + head * padded(width) + at);
                let scores: Vec<i64> = seen.clone().zip(&bias).map(|(position, &bias)| {
                    let products = (0..width).map(|at| i32::from(query[at]) * i32::from(key(position, at)));
                    exact::rescale(products.sum(), score) + i64::from(bias)
                }).collect();
                let best = scores.iter().copied().max().unwrap_or(0);
                let reach = i64::from(exact::ATTENTION_REACH);
                let weight = |s: &i64| exact::ATTENTION_WEIGHTS[(best - s).min(reach) as usize];
                let weights: Vec<i32> = scores.iter().map(weight).collect();
                let total = weights.iter().sum();
                for (at, &found) in out.iter().take(width).enumerate() {
                    let values = seen.clone().zip(&weights);
                    let sum = values.map(|(position, w)| w * i32::from(key(position, at))).sum();
                    prop_assert_eq!(found, exact::context(sum, total, gain), "{:?}", kernel);
                }
            }
        }
    }

    #[test]
    fn normalisations_are_those_of_single_numbers(
        (row, gains) in (1usize..80).prop_flat_map(|width| (
            prop::collection::vec(prop_oneof![-32767i32..=32767, -9i32..=9, Just(32767)], width),
            prop::collection::vec(0..=exact::GAIN_MAX, width),
        )),
    ) {
        let width = row.len();
        let mut residual = row.clone();
        residual.resize(padded(width), 0);
        let squares = row.iter().map(|&x| i64::from(x) * i64::from(x)).sum();
        let reciprocal = exact::reciprocal(squares, width);
        let numbers = row.iter().zip(&gains);
        let expected: Vec<i8> = numbers.map(|(&x, &g)| exact::normalise(x, g, reciprocal)).collect();
        for kernel in Kernel::available() {
            let mut out = Activations::default();
            kernel.normalise(&Norm::new(&gains), &residual, &mut out);
            prop_assert_eq!(out.numbers(0, width), &expected, "{:?}", kernel);
        }
    }
}

#[test]
fn the_largest_products_do_not_saturate() {
    const K: usize = 1 << 16;
    for (weight, input) in [(127i8, 127i8), (-127, 127), (127, -127), (-127, -127)] {
        let linear = Linear {
            rows: 1,
            columns: K,
            weight: vec![weight; K],
            scale: vec![exact::PRODUCT_SCALE_MAX],
        };
        let packed = Packed::new(&linear, Parts::one(1), Parts::one(K));
        let mut inputs = Activations::default();
        inputs.copy(&[vec![input; K], vec![input; K]].concat(), K);
        for kernel in Kernel::available() {
            let mut logits = vec![0; 2 * LANES];
            kernel.multiply(&packed, 0..1, &inputs, Output::Logits(&mut logits));
            let expected = i32::from(weight) * i32::from(input) * K as i32;
            assert_eq!([logits[0], logits[LANES]], [expected; 2], "{kernel:?}");
        }
    }
}
