//! From the network as it was trained to the exact one.

use candle_core::{Tensor, Var};

use super::float::{
    ACTIVATION_UNIT, FloatAttention, FloatLayer, FloatNetwork, RESIDUAL_UNIT, SQUARE_UNIT,
    hidden_unit, stored_scale,
};
use crate::model::ModelError;
use crate::model::network::{
    Attention, Config, Embedding, FeedForward, Layer, Linear, Network, Weights, exact,
};

type Result<T> = std::result::Result<T, ModelError>;

/// Logits of the exact network per nat.
pub const LOGIT_UNIT: f64 = 256.0;
/// Scores of the exact network per nat.
const SCORE_UNIT: f64 = 32.0;
/// A gain of 1 in the exact network.
const NORM_ONE: f64 = 2048.0;

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f64::from).collect())
}

fn largest(var: &Var) -> Result<f64> {
    let values = values(var)?;
    Ok(values.into_iter().fold(0.0, |most, x| most.max(x.abs())))
}

/// Units that training does not fix: the exact network computes the same in others, but not every scale fits in all.
#[derive(Debug, Clone, Copy)]
struct Units {
    /// Exact residual values per 1.0: every reader normalises, so nobody sees it.
    residual: f64,
    /// Exact hidden values per 1.0 in front of the heads: the last gains have it, and the heads take it away.
    hidden: f64,
}

impl Units {
    /// Those of training, or the nearest in which the scales of all rows fit.
    fn new(network: &FloatNetwork) -> Result<Units> {
        // the largest ratio of units for a matrix: rows are stored in steps of their largest value / 127
        let ratio = |var: &Var| -> Result<f64> {
            let steps = f64::from(exact::ACT_MAX) / largest(var)?.max(1e-8);
            Ok(steps * f64::from(exact::PRODUCT_SCALE_MAX) / f64::from(1u32 << exact::SCALE_BITS))
        };
        let hidden = hidden_unit(network.config.feed_forward);
        let mut most = f64::INFINITY;
        for layer in &network.layers {
            most = most.min(ratio(&layer.attention.output)? * ACTIVATION_UNIT);
            most = most.min(ratio(&layer.down)? * hidden);
        }
        let mut units = Units {
            residual: RESIDUAL_UNIT,
            hidden: ACTIVATION_UNIT,
        };
        while units.residual > most && units.residual > 1.0 {
            units.residual /= 2.0;
        }
        let heads = ratio(&network.class_head)?.min(ratio(&network.token_head)?);
        let gain = largest(&network.norm)? * NORM_ONE / ACTIVATION_UNIT;
        let fits = |hidden: f64| gain * hidden <= f64::from(exact::GAIN_MAX);
        while LOGIT_UNIT / units.hidden > heads && fits(2.0 * units.hidden) {
            units.hidden *= 2.0;
        }
        Ok(units)
    }
}

/// A matrix of which the exact network's is made.
struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

/// -1 for what is below 0, else 1, each `times` times.
fn signs(var: &Var, times: usize) -> Result<Vec<f64>> {
    let signs = values(var)?
        .into_iter()
        .map(|value| if value < 0.0 { -1.0 } else { 1.0 });
    Ok(signs
        .flat_map(|sign| std::iter::repeat_n(sign, times))
        .collect())
}

impl Matrix {
    fn new(var: &Var) -> Result<Matrix> {
        let (_, columns) = var.dims2()?;
        Ok(Matrix {
            columns,
            values: values(var)?,
        })
    }

    /// Takes over the signs of what the columns are multiplied by.
    fn by_columns(mut self, signs: &[f64]) -> Matrix {
        for row in self.values.chunks_exact_mut(self.columns) {
            row.iter_mut()
                .zip(signs)
                .for_each(|(value, sign)| *value *= sign);
        }
        self
    }

    /// Takes over the signs of what the rows are multiplied by.
    fn by_rows(mut self, signs: &[f64]) -> Matrix {
        for (row, sign) in self.values.chunks_exact_mut(self.columns).zip(signs) {
            row.iter_mut().for_each(|value| *value *= sign);
        }
        self
    }

    /// The exact matrix, whose inputs and outputs have these many exact values per 1.0.
    fn exact(&self, input_unit: f64, output_unit: f64) -> Linear {
        let mut linear = Linear {
            rows: self.values.len() / self.columns,
            columns: self.columns,
            ..Linear::default()
        };
        let unit = output_unit / input_unit * f64::from(1u32 << exact::SCALE_BITS);
        for row in self.values.chunks_exact(self.columns) {
            let largest = row.iter().fold(0f64, |most, value| most.max(value.abs()));
            // a row that its scale cannot reach loses its largest weights
            let most = f64::from(exact::PRODUCT_SCALE_MAX) / unit;
            let step = (largest / f64::from(exact::ACT_MAX)).max(1e-8).min(most);
            linear
                .weight
                .extend(row.iter().map(|value| byte(value / step)));
            linear
                .scale
                .push(integer(step * unit, 0, exact::PRODUCT_SCALE_MAX));
        }
        linear
    }
}

fn integer(value: f64, least: i32, most: i32) -> i32 {
    value.round().clamp(f64::from(least), f64::from(most)) as i32
}

fn byte(value: f64) -> i8 {
    integer(value, -exact::ACT_MAX, exact::ACT_MAX) as i8
}

fn embedding(var: &Var, units: Units) -> Result<Embedding> {
    let (rows, columns) = var.dims2()?;
    let scale = stored_scale(largest(var)? as f32, units.residual);
    let step = f64::from(scale) / units.residual;
    let weight = values(var)?
        .into_iter()
        .map(|value| byte(value / step))
        .collect();
    Ok(Embedding {
        rows,
        columns,
        weight,
        scale,
    })
}

fn numbers(var: &Var, unit: f64, least: i32, most: i32) -> Result<Vec<i32>> {
    let values = values(var)?;
    Ok(values
        .into_iter()
        .map(|value| integer(value * unit, least, most))
        .collect())
}

/// Numbers whose signs are elsewhere.
fn sizes(var: &Var, unit: f64, most: i32) -> Result<Vec<i32>> {
    let mut sizes = numbers(var, unit, -most, most)?;
    sizes.iter_mut().for_each(|size| *size = size.abs());
    Ok(sizes)
}

fn attention(from: &FloatAttention, d_kv: usize, units: Units) -> Result<Attention> {
    let score =
        SCORE_UNIT / (ACTIVATION_UNIT * ACTIVATION_UNIT) * f64::from(1u32 << exact::SCALE_BITS);
    let context = f64::from(1u32 << exact::CONTEXT_BITS);
    let inputs = signs(&from.norm, 1)?;
    let read = |var| Result::Ok(Matrix::new(var)?.by_columns(&inputs));
    let project = |matrix: Matrix| matrix.exact(ACTIVATION_UNIT, ACTIVATION_UNIT);
    let output = Matrix::new(&from.output)?.by_columns(&signs(&from.gain, d_kv)?);
    Ok(Attention {
        norm: sizes(&from.norm, NORM_ONE, exact::GAIN_MAX)?,
        query: project(read(&from.query)?.by_rows(&signs(&from.score, d_kv)?)),
        key: project(read(&from.key)?),
        value: project(read(&from.value)?),
        output: output.exact(ACTIVATION_UNIT, units.residual),
        score: sizes(&from.score, score, exact::SCALE_MAX)?,
        gain: sizes(&from.gain, context, exact::SCALE_MAX)?,
        bias: numbers(&from.bias, SCORE_UNIT, -exact::BIAS_MAX, exact::BIAS_MAX)?,
    })
}

fn layer(from: &FloatLayer, config: &Config, units: Units) -> Result<Layer> {
    let kind = config.feed_forward;
    let sums = match kind {
        FeedForward::Relu => ACTIVATION_UNIT,
        FeedForward::SquaredRelu => SQUARE_UNIT,
    };
    let up = Matrix::new(&from.up)?.by_columns(&signs(&from.norm, 1)?);
    Ok(Layer {
        attention: attention(&from.attention, config.d_kv, units)?,
        cross: None,
        norm: sizes(&from.norm, NORM_ONE, exact::GAIN_MAX)?,
        up: up.exact(ACTIVATION_UNIT, sums),
        down: Matrix::new(&from.down)?.exact(hidden_unit(kind), units.residual),
    })
}

/// The exact network of a trained one.
///
/// # Errors
/// If the device fails; values out of range are clipped.
pub fn export(network: &FloatNetwork) -> Result<Network> {
    let (config, units) = (&network.config, Units::new(network)?);
    let inputs = signs(&network.norm, 1)?;
    let head = |var| {
        let matrix = Matrix::new(var)?.by_columns(&inputs);
        Result::Ok(matrix.exact(units.hidden, LOGIT_UNIT))
    };
    let bias = |var| numbers(var, LOGIT_UNIT, -exact::BIAS_MAX, exact::BIAS_MAX);
    let layers = network.layers.iter().map(|from| layer(from, config, units));
    let ngrams = network.ngrams.iter().map(|table| embedding(table, units));
    let gain = NORM_ONE * units.hidden / ACTIVATION_UNIT;
    let weights = Weights {
        tokens: embedding(&network.tokens, units)?,
        ngrams: ngrams.collect::<Result<_>>()?,
        decoder: layers.collect::<Result<_>>()?,
        decoder_norm: sizes(&network.norm, gain, exact::GAIN_MAX)?,
        class_head: head(&network.class_head)?,
        class_bias: bias(&network.class_bias)?,
        token_head: head(&network.token_head)?,
        token_bias: bias(&network.token_bias)?,
        ..Weights::default()
    };
    Network::new(config.clone(), weights)
}
