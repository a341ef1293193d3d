//! The operations of the network on tensors that hold integers in floats.
//!
//! Every constant is a tensor: candle computes an operation with a number as multiplication and addition,
//! or as multiplication by a reciprocal, which need not be exact.

use candle_core::{DType, Device, DeviceLocation, Tensor};

use super::super::config::FeedForward;
use super::super::exact;
use super::super::weights::{Embedding, Linear};
use crate::model::ModelError;

pub(super) type Result<T> = std::result::Result<T, ModelError>;

/// Columns of one single-precision product: 127 * 127 * 1040 < 2^24.
const PART: usize = 1040;
/// Added to the score of a key that is not there: below every score, all of which lie within +-2^22.
pub(super) const HIDDEN: f64 = -((1u64 << 40) as f64);

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> ModelError {
        // behind the first line there may be a backtrace
        let text = error.to_string();
        ModelError::Device(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// What a device is called in messages and in the option `device`.
pub(super) fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// A [`Linear`] as tensors.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    /// Parts of at most [`PART`] inputs, each inputs x outputs, single precision.
    parts: Vec<Tensor>,
    /// Of each output, double precision.
    scale: Tensor,
}

pub(super) fn vector(values: &[i32], device: &Device) -> Result<Tensor> {
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let len = values.len();
    Ok(Tensor::from_vec(values, len, device)?)
}

/// Activations as a tensor of `columns` columns, single precision.
pub(super) fn activations(values: &[i8], columns: usize, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
    let rows = values.len() / columns;
    Ok(Tensor::from_vec(values, (rows, columns), device)?)
}

/// The values of a tensor of activations.
pub(super) fn to_activations(tensor: &Tensor) -> Result<Vec<i8>> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|v| v as i8).collect())
}

/// Rows as they enter the residual stream, double precision.
pub(super) fn embedding(embedding: &Embedding, device: &Device) -> Result<Tensor> {
    let scale = f64::from(embedding.scale);
    let values: Vec<f64> = embedding
        .weight
        .iter()
        .map(|&w| f64::from(w) * scale)
        .collect();
    let shape = (embedding.rows, embedding.columns);
    Ok(Tensor::from_vec(values, shape, device)?)
}

impl Matrix {
    pub(super) fn new(
        linear: &Linear,
        rows: std::ops::Range<usize>,
        device: &Device,
    ) -> Result<Matrix> {
        let columns = linear.columns;
        let weight = &linear.weight[rows.start * columns..rows.end * columns];
        let weight = activations(weight, columns, device)?;
        let mut parts = Vec::new();
        for start in (0..columns).step_by(PART) {
            let part = weight.narrow(1, start, PART.min(columns - start))?;
            parts.push(part.t()?.contiguous()?);
        }
        let scale = vector(&linear.scale[rows], device)?;
        Ok(Matrix { parts, scale })
    }

    pub(super) fn all(linear: &Linear, device: &Device) -> Result<Matrix> {
        Matrix::new(linear, 0..linear.rows, device)
    }

    /// Sums of products of rows x inputs, in double precision.
    fn sums(&self, inputs: &Tensor) -> Result<Tensor> {
        let mut start = 0;
        let mut sums: Option<Tensor> = None;
        for part in &self.parts {
            let columns = part.dim(0)?;
            let products = inputs
                .narrow(1, start, columns)?
                .contiguous()?
                .matmul(part)?;
            let products = products.to_dtype(DType::F64)?;
            sums = Some(match sums {
                Some(sums) => (sums + products)?,
                None => products,
            });
            start += columns;
        }
        sums.ok_or_else(|| ModelError::Damaged("network: a matrix without columns".into()))
    }
}

/// The operations of [`exact`] on whole tensors.
#[derive(Debug)]
pub(super) struct Arithmetic {
    half: Tensor,
    one: Tensor,
    two: Tensor,
    scale: Tensor,
    norm: Tensor,
    root: Tensor,
    reciprocal: Tensor,
    reach: Tensor,
    context: Tensor,
    context_twice: Tensor,
    square: Tensor,
    attention_weights: Tensor,
}

impl Arithmetic {
    pub(super) fn new(device: &Device) -> Result<Arithmetic> {
        let number = |value: f64| Tensor::new(value, device);
        let weights: Vec<f64> = exact::ATTENTION_WEIGHTS
            .iter()
            .map(|&w| f64::from(w))
            .collect();
        Ok(Arithmetic {
            half: number(0.5)?,
            one: number(1.0)?,
            two: number(2.0)?,
            scale: number(exact::power(exact::SCALE_BITS))?,
            norm: number(exact::power(exact::NORM_BITS))?,
            root: number(f64::from(1 << (2 * exact::ROOT_BITS)))?,
            reciprocal: number((1u64 << exact::RECIPROCAL_BITS) as f64)?,
            reach: number(f64::from(exact::ATTENTION_REACH))?,
            context: number(f64::from(1 << exact::CONTEXT_BITS))?,
            context_twice: number(f64::from(1 << (exact::CONTEXT_BITS + 1)))?,
            square: number(exact::power(exact::SQUARE_BITS))?,
            attention_weights: Tensor::new(weights, device)?,
        })
    }

    /// [`exact::rescale`].
    pub(super) fn rescale(&self, sums: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let scaled = sums.broadcast_mul(scale)?.broadcast_mul(&self.scale)?;
        Ok(scaled.broadcast_add(&self.half)?.floor()?)
    }

    /// The scaled products of rows of activations with a matrix, double precision.
    pub(super) fn multiply(&self, matrix: &Matrix, inputs: &Tensor) -> Result<Tensor> {
        self.rescale(&matrix.sums(inputs)?, &matrix.scale)
    }

    /// [`exact::activation`]; the result is in single precision.
    pub(super) fn activation(&self, values: &Tensor) -> Result<Tensor> {
        let most = f64::from(exact::ACT_MAX);
        Ok(values.clamp(-most, most)?.to_dtype(DType::F32)?)
    }

    /// [`exact::residual`].
    pub(super) fn residual(&self, values: &Tensor, update: &Tensor) -> Result<Tensor> {
        let most = f64::from(exact::RESIDUAL_MAX);
        Ok((values + update)?.clamp(-most, most)?)
    }

    /// Normalises each row: [`exact::reciprocal`] and [`exact::normalise`].
    pub(super) fn normalise(&self, gains: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let width = Tensor::new(rows.dim(1)? as f64, rows.device())?;
        let squares = rows.sqr()?.sum_keepdim(1)?;
        let mean = squares.broadcast_mul(&self.root)?.broadcast_div(&width)?;
        let root = mean
            .floor()?
            .sqrt()?
            .floor()?
            .broadcast_maximum(&self.one)?;
        let reciprocal = self.reciprocal.broadcast_div(&root)?.floor()?;
        let product = rows.broadcast_mul(gains)?.broadcast_mul(&reciprocal)?;
        let scaled = product.broadcast_mul(&self.norm)?;
        self.activation(&scaled.broadcast_add(&self.half)?.floor()?)
    }

    /// [`exact::relu`] or [`exact::squared_relu`].
    pub(super) fn hidden(
        &self,
        kind: FeedForward,
        matrix: &Matrix,
        inputs: &Tensor,
    ) -> Result<Tensor> {
        let values = self.multiply(matrix, inputs)?;
        let values = match kind {
            FeedForward::Relu => values.clamp(0f64, f64::from(exact::ACT_MAX))?,
            FeedForward::SquaredRelu => {
                let root = values.clamp(0f64, exact::SQUARE_ROOT_MAX as f64)?;
                let scaled = root.sqr()?.broadcast_mul(&self.square)?;
                scaled.broadcast_add(&self.half)?.floor()?
            }
        };
        self.activation(&values)
    }

    /// Attention of `queries` to `keys`, all batch x heads x positions x d_kv. `score` and `gain` are
    /// heads x 1 x 1; `bias` and `visible` (1 where there is a key, 0 elsewhere) must broadcast to
    /// batch x heads x queries x keys. Every query must see a key, or `visible` must be given.
    pub(super) fn attend(
        &self,
        (queries, keys, values): (&Tensor, &Tensor, &Tensor),
        (score, gain): (&Tensor, &Tensor),
        bias: Option<&Tensor>,
        visible: Option<&Tensor>,
    ) -> Result<Tensor> {
        let products = queries.matmul(&keys.t()?.contiguous()?)?;
        let mut scores = self.rescale(&products.to_dtype(DType::F64)?, score)?;
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        if let Some(visible) = visible {
            let hidden = Tensor::new(HIDDEN, scores.device())?;
            let absent = self.one.broadcast_sub(visible)?.broadcast_mul(&hidden)?;
            scores = scores.broadcast_add(&absent)?;
        }
        let best = scores.max_keepdim(3)?;
        let distance = best
            .broadcast_sub(&scores)?
            .broadcast_minimum(&self.reach)?;
        let index = distance.flatten_all()?.to_dtype(DType::U32)?;
        let weights = self.attention_weights.index_select(&index, 0)?;
        let mut weights = weights.reshape(scores.shape())?;
        if let Some(visible) = visible {
            weights = weights.broadcast_mul(visible)?;
        }
        let total = weights.sum_keepdim(3)?;
        let sums = weights
            .to_dtype(DType::F32)?
            .matmul(values)?
            .to_dtype(DType::F64)?;
        self.context(&sums, &total, gain)
    }

    /// [`exact::context`].
    fn context(&self, sums: &Tensor, total: &Tensor, gain: &Tensor) -> Result<Tensor> {
        let total = total.broadcast_maximum(&self.one)?;
        let twice = sums.broadcast_mul(gain)?.broadcast_mul(&self.two)?;
        let above = twice.broadcast_add(&total.broadcast_mul(&self.context)?)?;
        let below = total.broadcast_mul(&self.context_twice)?;
        self.activation(&above.broadcast_div(&below)?.floor()?)
    }
}
