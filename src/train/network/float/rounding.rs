//! What the exact network rounds and clips, in floats. Gradients pass through the rounding as if it were not there.

use candle_core::{Result, Tensor, Var};

use super::{ACTIVATION_UNIT, FloatNetwork, RESIDUAL_UNIT, SQUARE_UNIT, hidden_unit};
use crate::model::network::{FeedForward, exact};

const ACT_MAX: f64 = exact::ACT_MAX as f64;

/// Rounds, with the gradient of the identity.
fn round(x: &Tensor) -> Result<Tensor> {
    let fixed = x.detach();
    x + (fixed.round()? - &fixed)?.detach()
}

/// Rounds and clips to `least..=most`. The gradient is that of the identity where the result is above `open` and
/// below `most`, else nothing.
fn limit(x: &Tensor, least: f64, most: f64, open: f64) -> Result<Tensor> {
    let stored = x.detach().round()?.clamp(least, most)?;
    let inside = (stored.gt(open)? * stored.lt(most)?)?.to_dtype(x.dtype())?;
    let kept = (x * inside)?;
    &kept + (stored - kept.detach())?
}

/// What an activation is after it was stored in 8 bits.
fn activation(x: &Tensor) -> Result<Tensor> {
    limit(&(x * ACTIVATION_UNIT)?, -ACT_MAX, ACT_MAX, -ACT_MAX)? / ACTIVATION_UNIT
}

/// What a matrix is after its rows were stored in 8 bits each.
fn stored_rows(matrix: &Tensor) -> Result<Tensor> {
    let step = (matrix.detach().abs()?.max_keepdim(1)? / ACT_MAX)?.clamp(1e-8, f64::MAX)?;
    round(&matrix.broadcast_div(&step)?)?.broadcast_mul(&step)
}

/// Exact scale of an embedding with this largest magnitude, with `unit` exact residual values per 1.0.
pub fn stored_scale(largest: f32, unit: f64) -> i32 {
    let scale = (f64::from(largest) * unit / ACT_MAX).ceil() as i32;
    scale.clamp(1, exact::EMBEDDING_SCALE_MAX)
}

/// What an embedding is after it was stored in 8 bits.
fn stored_embedding(matrix: &Tensor) -> Result<Tensor> {
    let largest = matrix.detach().abs()?.max_all()?.to_scalar::<f32>()?;
    let step = f64::from(stored_scale(largest, RESIDUAL_UNIT)) / RESIDUAL_UNIT;
    round(&(matrix / step)?)?.clamp(-ACT_MAX, ACT_MAX)? * step
}

impl FloatNetwork {
    pub(super) fn activation(&self, x: Tensor) -> Result<Tensor> {
        if self.rounded { activation(&x) } else { Ok(x) }
    }

    pub(super) fn multiply(&self, inputs: &Tensor, matrix: &Var) -> Result<Tensor> {
        match self.rounded {
            true => inputs.matmul(&stored_rows(matrix.as_tensor())?.t()?),
            false => inputs.matmul(&matrix.t()?),
        }
    }

    pub(super) fn embedding(&self, table: &Var, rows: &Tensor) -> Result<Tensor> {
        match self.rounded {
            true => stored_embedding(table)?.index_select(rows, 0),
            false => table.index_select(rows, 0),
        }
    }

    pub(super) fn normalise(&self, gain: &Var, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(1)?;
        let scaled = x.broadcast_div(&(mean + 1e-9)?.sqrt()?)?;
        self.activation(scaled.broadcast_mul(gain.as_tensor())?)
    }

    /// Hidden values of a feed-forward layer.
    pub(super) fn let_through(&self, sums: &Tensor) -> Result<Tensor> {
        match (self.config.feed_forward, self.rounded) {
            (FeedForward::Relu, false) => sums.relu(),
            (FeedForward::SquaredRelu, false) => sums.relu()?.sqr(),
            (FeedForward::Relu, true) => {
                limit(&(sums * ACTIVATION_UNIT)?, 0.0, ACT_MAX, 0.0)? / ACTIVATION_UNIT
            }
            (FeedForward::SquaredRelu, true) => {
                let root = limit(
                    &(sums * SQUARE_UNIT)?,
                    0.0,
                    exact::SQUARE_ROOT_MAX as f64,
                    0.0,
                )?;
                let square = (root.sqr()? / f64::from(1 << exact::SQUARE_BITS))?;
                limit(&square, 0.0, ACT_MAX, -1.0)? / hidden_unit(FeedForward::SquaredRelu)
            }
        }
    }
}
