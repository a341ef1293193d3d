//! From the network as it was trained to the exact one.

use candle_core::{Tensor, Var};

use super::float::{
    ACTIVATION_UNIT, FloatAttention, FloatEncoder, FloatLayer, FloatNetwork, RESIDUAL_UNIT,
    SQUARE_UNIT, hidden_unit, stored_scale,
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

/// Halvings of the unit of residual streams that are worth trying.
pub const HALVINGS: u32 = 4;

/// Units that training does not fix: the exact network computes the same in others, but not every scale fits in all.
#[derive(Debug, Clone, Copy)]
struct Units {
    /// Exact residual values per 1.0 in the decoder: every reader normalises, so nobody sees it.
    decoder: f64,
    /// The same in the encoder, which has a residual stream of its own.
    encoder: f64,
    /// Exact hidden values per 1.0 in front of the heads: the last gains have it, and the heads take it away.
    hidden: f64,
}

/// The largest ratio of units for a matrix: rows are stored in steps of their largest value / 127.
fn ratio(var: &Var) -> Result<f64> {
    let steps = f64::from(exact::ACT_MAX) / largest(var)?.max(1e-8);
    Ok(steps * f64::from(exact::PRODUCT_SCALE_MAX) / f64::from(1u32 << exact::SCALE_BITS))
}

/// Exact values per 1.0 of a residual stream that these layers write into: `unit`, or what the scales allow.
fn residual_unit(layers: &[FloatLayer], hidden: f64, mut unit: f64) -> Result<f64> {
    let mut most = f64::INFINITY;
    for layer in layers {
        let attentions = std::iter::once(&layer.attention).chain(&layer.cross);
        for attention in attentions {
            most = most.min(ratio(&attention.output)? * ACTIVATION_UNIT);
        }
        most = most.min(ratio(&layer.down)? * hidden);
    }
    while unit > most && unit > 1.0 {
        unit /= 2.0;
    }
    Ok(unit)
}

impl Units {
    /// Those of training with residual streams in smaller units by so many halvings, or the nearest in which the scales of all rows
    /// fit.
    fn new(network: &FloatNetwork, halvings: u32) -> Result<Units> {
        let unit = RESIDUAL_UNIT / f64::from(1 << halvings);
        let hidden = hidden_unit(network.config.feed_forward);
        let encoder = network.encoder.as_ref();
        let encoder = encoder.map_or(&[][..], |encoder| &encoder.layers);
        let mut units = Units {
            decoder: residual_unit(&network.layers, hidden, unit)?,
            encoder: residual_unit(encoder, hidden, unit)?,
            hidden: ACTIVATION_UNIT,
        };
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

/// A table whose rows enter a residual stream with this unit.
fn embedding(var: &Var, residual_unit: f64) -> Result<Embedding> {
    let (rows, columns) = var.dims2()?;
    let scale = stored_scale(largest(var)? as f32, residual_unit);
    let step = f64::from(scale) / residual_unit;
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

/// An attention that adds to a residual stream with this unit. Its keys and values are made of what `memory_norm`
/// has normalised.
fn attention(
    from: &FloatAttention,
    memory_norm: &Var,
    d_kv: usize,
    residual_unit: f64,
) -> Result<Attention> {
    let score =
        SCORE_UNIT / (ACTIVATION_UNIT * ACTIVATION_UNIT) * f64::from(1u32 << exact::SCALE_BITS);
    let context = f64::from(1u32 << exact::CONTEXT_BITS);
    let (inputs, memory) = (signs(&from.norm, 1)?, signs(memory_norm, 1)?);
    let query = Matrix::new(&from.query)?.by_columns(&inputs);
    let read = |var| Result::Ok(Matrix::new(var)?.by_columns(&memory));
    let project = |matrix: Matrix| matrix.exact(ACTIVATION_UNIT, ACTIVATION_UNIT);
    let output = Matrix::new(&from.output)?.by_columns(&signs(&from.gain, d_kv)?);
    Ok(Attention {
        norm: sizes(&from.norm, NORM_ONE, exact::GAIN_MAX)?,
        query: project(query.by_rows(&signs(&from.score, d_kv)?)),
        key: project(read(&from.key)?),
        value: project(read(&from.value)?),
        output: output.exact(ACTIVATION_UNIT, residual_unit),
        score: sizes(&from.score, score, exact::SCALE_MAX)?,
        gain: sizes(&from.gain, context, exact::SCALE_MAX)?,
        bias: Vec::new(),
    })
}

/// A layer of a residual stream with this unit; `encoder` is what its cross-attention attends to.
fn layer(
    from: &FloatLayer,
    encoder: Option<&FloatEncoder>,
    config: &Config,
    residual_unit: f64,
) -> Result<Layer> {
    let kind = config.feed_forward;
    let sums = match kind {
        FeedForward::Relu => ACTIVATION_UNIT,
        FeedForward::SquaredRelu => SQUARE_UNIT,
    };
    let up = Matrix::new(&from.up)?.by_columns(&signs(&from.norm, 1)?);
    let own = &from.attention;
    let cross = from.cross.as_ref().zip(encoder);
    let cross =
        cross.map(|(cross, encoder)| attention(cross, &encoder.norm, config.d_kv, residual_unit));
    Ok(Layer {
        attention: Attention {
            bias: numbers(&from.bias, SCORE_UNIT, -exact::BIAS_MAX, exact::BIAS_MAX)?,
            ..attention(own, &own.norm, config.d_kv, residual_unit)?
        },
        cross: cross.transpose()?,
        norm: sizes(&from.norm, NORM_ONE, exact::GAIN_MAX)?,
        up: up.exact(ACTIVATION_UNIT, sums),
        down: Matrix::new(&from.down)?.exact(hidden_unit(kind), residual_unit),
    })
}

/// The parts of the exact network that read latents, in an otherwise empty one.
fn encoder(from: &FloatEncoder, config: &Config, residual_unit: f64) -> Result<Weights> {
    let layers = from.layers.iter();
    let layers = layers.map(|from| layer(from, None, config, residual_unit));
    Ok(Weights {
        latents: Some(embedding(&from.latents, residual_unit)?),
        encoder: layers.collect::<Result<_>>()?,
        encoder_norm: sizes(&from.norm, NORM_ONE, exact::GAIN_MAX)?,
        ..Weights::default()
    })
}

/// The exact network of a trained one.
///
/// # Errors
/// If the device fails; values out of range are clipped.
pub fn export(network: &FloatNetwork) -> Result<Network> {
    export_halved(network, 0)
}

/// [`export`] with `halvings` (up to [`HALVINGS`]) halvings of the unit of residual streams: what clips them lies twice as
/// far with each, and what rounds them is twice as coarse.
///
/// # Errors
/// As for [`export`].
pub fn export_halved(network: &FloatNetwork, halvings: u32) -> Result<Network> {
    let (config, units) = (&network.config, Units::new(network, halvings)?);
    let inputs = signs(&network.norm, 1)?;
    let head = |var| {
        let matrix = Matrix::new(var)?.by_columns(&inputs);
        Result::Ok(matrix.exact(units.hidden, LOGIT_UNIT))
    };
    let bias = |var| numbers(var, LOGIT_UNIT, -exact::BIAS_MAX, exact::BIAS_MAX);
    let reader = network.encoder.as_ref();
    let layers = network.layers.iter();
    let layers = layers.map(|from| layer(from, reader, config, units.decoder));
    let ngrams = network.ngrams.iter();
    let ngrams = ngrams.map(|table| embedding(table, units.decoder));
    let gain = NORM_ONE * units.hidden / ACTIVATION_UNIT;
    let reading = reader.map(|from| encoder(from, config, units.encoder));
    let weights = Weights {
        tokens: embedding(&network.tokens, units.decoder)?,
        ngrams: ngrams.collect::<Result<_>>()?,
        decoder: layers.collect::<Result<_>>()?,
        decoder_norm: sizes(&network.norm, gain, exact::GAIN_MAX)?,
        class_head: head(&network.class_head)?,
        class_bias: bias(&network.class_bias)?,
        token_head: head(&network.token_head)?,
        token_bias: bias(&network.token_bias)?,
        ..reading.transpose()?.unwrap_or_default()
    };
    Network::new(config.clone(), weights)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::train::corpus::Random;
    use crate::train::network::recipe::Recipe;

    #[test]
    fn every_matrix_that_outgrows_a_residual_stream_shrinks_its_unit() {
        let mut recipe = Recipe::default();
        recipe.network.d_model = 8;
        recipe.network.latents = 2;
        let config = recipe.config(300, vec![0]);
        let network = FloatNetwork::new(config, &mut Random(1), &Device::Cpu).unwrap();
        let units = || {
            let units = Units::new(&network, 0).unwrap();
            (units.decoder, units.encoder)
        };
        assert_eq!(units(), (RESIDUAL_UNIT, RESIDUAL_UNIT));
        let (decoder, encoder) = (&network.layers[1], network.encoder.as_ref().unwrap());
        let (cross, encoder) = (decoder.cross.as_ref().unwrap(), &encoder.layers[0]);
        // 127 steps of 16 / 127 are 254 to 32 as 1 to 16, or less where hidden values have another unit
        for (var, expected) in [
            (&decoder.attention.output, (128.0, 512.0)),
            (&cross.output, (128.0, 512.0)),
            (&decoder.down, (64.0, 512.0)),
            (&encoder.attention.output, (512.0, 128.0)),
            (&encoder.down, (512.0, 64.0)),
        ] {
            let nothing = var.zeros_like().unwrap();
            var.set(&(&nothing + 16.0).unwrap()).unwrap();
            assert_eq!(units(), expected);
            var.set(&nothing).unwrap();
        }
    }
}
