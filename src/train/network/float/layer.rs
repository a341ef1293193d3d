//! The layers of encoder and decoder: what they are trained by, and their feed-forward part.

use candle_core::{Device, Result, Tensor, Var};

use super::{FloatNetwork, Parameter};
use crate::model::network::Config;
use crate::train::corpus::Random;

/// One attention, its normalisation included.
#[derive(Debug)]
pub struct FloatAttention {
    pub norm: Var,
    pub query: Var,
    pub key: Var,
    pub value: Var,
    pub output: Var,
    /// Scale of the scores, by head.
    pub score: Var,
    /// Gain of the output, by head.
    pub gain: Var,
}

/// One layer of encoder or decoder.
#[derive(Debug)]
pub struct FloatLayer {
    pub attention: FloatAttention,
    /// Biases of the scores of `attention`: heads x buckets, in nats.
    pub bias: Var,
    /// Attention to the latents, behind `attention`; in the decoder of a network with an encoder.
    pub cross: Option<FloatAttention>,
    pub norm: Var,
    pub up: Var,
    pub down: Var,
}

/// Normally distributed values.
pub(crate) fn normal(
    random: &mut Random,
    shape: &[usize],
    deviation: f64,
    device: &Device,
) -> Result<Var> {
    let value = |random: &mut Random| {
        let (u, v) = (random.share().max(1e-12), random.share());
        let radius = (-2.0 * u.ln()).sqrt() * deviation;
        (radius * (v * std::f64::consts::TAU).cos()) as f32
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(random)).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, device)?)
}

pub(super) fn constant(value: f64, shape: &[usize], device: &Device) -> Result<Var> {
    Var::from_tensor(&Tensor::full(value as f32, shape, device)?)
}

/// Deviation of the values of a matrix whose inputs are normalised.
fn deviation(config: &Config) -> f64 {
    1.0 / (config.d_model as f64).sqrt()
}

impl FloatAttention {
    /// An attention that adds nothing yet.
    pub(super) fn new(config: &Config, random: &mut Random, device: &Device) -> Result<Self> {
        let (d, inner, heads) = (config.d_model, config.inner(), config.num_heads);
        let mut project = || normal(random, &[inner, d], deviation(config), device);
        Ok(FloatAttention {
            norm: constant(1.0, &[d], device)?,
            query: project()?,
            key: project()?,
            value: project()?,
            output: constant(0.0, &[d, inner], device)?,
            score: constant(1.0 / (config.d_kv as f64).sqrt(), &[heads, 1, 1], device)?,
            gain: constant(1.0, &[heads, 1, 1], device)?,
        })
    }

    fn parameters(&self, place: &str) -> Vec<Parameter> {
        let matrices = [
            ("query", &self.query),
            ("key", &self.key),
            ("value", &self.value),
            ("output", &self.output),
        ];
        let named = |name: &str| format!("{place}.{name}");
        let mut all = vec![Parameter::other(named("norm"), &self.norm)];
        all.extend(matrices.map(|(name, var)| Parameter::matrix(named(name), var)));
        all.push(Parameter::other(named("score"), &self.score));
        all.push(Parameter::other(named("gain"), &self.gain));
        all
    }
}

impl FloatLayer {
    /// A layer that adds nothing yet and does not look at latents.
    pub(super) fn new(config: &Config, random: &mut Random, device: &Device) -> Result<Self> {
        let (d, d_ff) = (config.d_model, config.d_ff);
        let biases = [config.num_heads, config.relative_attention_num_buckets];
        Ok(FloatLayer {
            attention: FloatAttention::new(config, random, device)?,
            bias: constant(0.0, &biases, device)?,
            cross: None,
            norm: constant(1.0, &[d], device)?,
            up: normal(random, &[d_ff, d], deviation(config), device)?,
            down: constant(0.0, &[d, d_ff], device)?,
        })
    }

    pub(super) fn parameters(&self, place: &str) -> Vec<Parameter> {
        let mut all = self.attention.parameters(&format!("{place}.attention"));
        all.push(Parameter::other(
            format!("{place}.attention.bias"),
            &self.bias,
        ));
        if let Some(cross) = &self.cross {
            all.extend(cross.parameters(&format!("{place}.cross")));
        }
        all.push(Parameter::other(format!("{place}.norm"), &self.norm));
        all.push(Parameter::matrix(format!("{place}.up"), &self.up));
        all.push(Parameter::matrix(format!("{place}.down"), &self.down));
        all
    }
}

impl FloatNetwork {
    /// Adds what the feed-forward part of a layer makes of each position.
    pub(super) fn feed_forward(&self, layer: &FloatLayer, x: &Tensor) -> Result<Tensor> {
        let inputs = self.normalise(&layer.norm, x)?;
        let hidden = self.let_through(&self.multiply(&inputs, &layer.up)?)?;
        x + self.multiply(&hidden, &layer.down)?
    }
}
