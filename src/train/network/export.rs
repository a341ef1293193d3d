//! From the network as it was trained to the exact one.

use candle_core::{Tensor, Var};

use super::float::{
    ACTIVATION_UNIT, FloatAttention, FloatLayer, FloatNetwork, RESIDUAL_UNIT, SQUARE_UNIT,
    embedding_scale, hidden_unit,
};
use crate::model::ModelError;
use crate::model::network::{
    Attention, Embedding, FeedForward, Layer, Linear, Network, Weights, exact,
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

fn integer(value: f64, least: i32, most: i32) -> i32 {
    value.round().clamp(f64::from(least), f64::from(most)) as i32
}

fn byte(value: f64) -> i8 {
    integer(value, -exact::ACT_MAX, exact::ACT_MAX) as i8
}

/// A matrix whose inputs and outputs have these many exact values per 1.0.
fn linear(var: &Var, input_unit: f64, output_unit: f64) -> Result<Linear> {
    let (rows, columns) = var.dims2().map_err(ModelError::from)?;
    let values = values(var)?;
    let mut linear = Linear {
        rows,
        columns,
        ..Linear::default()
    };
    let unit = output_unit / input_unit * f64::from(1u32 << exact::SCALE_BITS);
    for row in values.chunks_exact(columns) {
        let largest = row.iter().fold(0f64, |most, value| most.max(value.abs()));
        // a row that its scale cannot reach loses its largest weights
        let most = f64::from(exact::PRODUCT_SCALE_MAX) / unit;
        let step = (largest / f64::from(exact::ACT_MAX)).clamp(1e-8, most);
        linear
            .weight
            .extend(row.iter().map(|value| byte(value / step)));
        linear.scale.push(integer(step * unit, 0, exact::PRODUCT_SCALE_MAX));
    }
    Ok(linear)
}

fn embedding(var: &Var) -> Result<Embedding> {
    let (rows, columns) = var.dims2().map_err(ModelError::from)?;
    let scale = embedding_scale(var)?;
    let step = f64::from(scale) / RESIDUAL_UNIT;
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

fn gains(var: &Var) -> Result<Vec<i32>> {
    numbers(var, NORM_ONE, 0, exact::GAIN_MAX)
}

fn attention(from: &FloatAttention) -> Result<Attention> {
    let score =
        SCORE_UNIT / (ACTIVATION_UNIT * ACTIVATION_UNIT) * f64::from(1u32 << exact::SCALE_BITS);
    let context = f64::from(1u32 << exact::CONTEXT_BITS);
    let project = |var| linear(var, ACTIVATION_UNIT, ACTIVATION_UNIT);
    Ok(Attention {
        norm: gains(&from.norm)?,
        query: project(&from.query)?,
        key: project(&from.key)?,
        value: project(&from.value)?,
        output: linear(&from.output, ACTIVATION_UNIT, RESIDUAL_UNIT)?,
        score: numbers(&from.score, score, 0, exact::SCALE_MAX)?,
        gain: numbers(&from.gain, context, 0, exact::SCALE_MAX)?,
        bias: numbers(&from.bias, SCORE_UNIT, -exact::BIAS_MAX, exact::BIAS_MAX)?,
    })
}

fn layer(from: &FloatLayer, kind: FeedForward) -> Result<Layer> {
    let up = match kind {
        FeedForward::Relu => ACTIVATION_UNIT,
        FeedForward::SquaredRelu => SQUARE_UNIT,
    };
    Ok(Layer {
        attention: attention(&from.attention)?,
        cross: None,
        norm: gains(&from.norm)?,
        up: linear(&from.up, ACTIVATION_UNIT, up)?,
        down: linear(&from.down, hidden_unit(kind), RESIDUAL_UNIT)?,
    })
}

/// The exact network of a trained one.
///
/// # Errors
/// If the device fails; values out of range are clipped.
pub fn export(network: &FloatNetwork) -> Result<Network> {
    let head = |var| linear(var, ACTIVATION_UNIT, LOGIT_UNIT);
    let bias = |var| numbers(var, LOGIT_UNIT, -exact::BIAS_MAX, exact::BIAS_MAX);
    let kind = network.config.feed_forward;
    let layers = network.layers.iter().map(|from| layer(from, kind));
    let weights = Weights {
        tokens: embedding(&network.tokens)?,
        ngrams: network
            .ngrams
            .iter()
            .map(embedding)
            .collect::<Result<_>>()?,
        decoder: layers.collect::<Result<_>>()?,
        decoder_norm: gains(&network.norm)?,
        class_head: head(&network.class_head)?,
        class_bias: bias(&network.class_bias)?,
        token_head: head(&network.token_head)?,
        token_bias: bias(&network.token_bias)?,
        ..Weights::default()
    };
    Network::new(network.config.clone(), weights)
}
