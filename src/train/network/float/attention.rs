//! Attention of positions to one another.

use candle_core::{Result, Tensor, Var};

use super::layer::{FloatAttention, FloatLayer};
use super::{FloatNetwork, NEVER};
use crate::model::network::exact;

/// What positions of a sequence see of each other, query by query.
pub(super) struct Seen {
    positions: usize,
    /// The bucket of every distance.
    buckets: Tensor,
    /// 0 where a query sees a key, else very low: queries x keys, or sequences x 1 x 1 x keys.
    mask: Tensor,
}

/// Queries, keys and values by heads: sequences x heads x positions x d_kv each.
pub(super) struct Projected {
    pub queries: Tensor,
    pub keys: Tensor,
    pub values: Tensor,
}

/// By how much the key of a pair lies behind its query in the text; pairs of `n` positions, query by query.
fn ahead(pair: usize, n: usize) -> i64 {
    (pair % n) as i64 - (pair / n) as i64
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let last = scores.dims().len() - 1;
    let weights = scores
        .broadcast_sub(&scores.max_keepdim(last)?.detach())?
        .exp()?;
    weights.broadcast_div(&weights.sum_keepdim(last)?)
}

impl FloatNetwork {
    /// What `n` positions of the decoder see of each other.
    pub(super) fn seen_before(&self, n: usize) -> Result<Seen> {
        let window = self.config.window as i64;
        let mask = |pair| match (1 - window..=0).contains(&ahead(pair, n)) {
            true => 0.0,
            false => NEVER,
        };
        let mask: Vec<f32> = (0..n * n).map(mask).collect();
        Ok(Seen {
            positions: n,
            buckets: self.buckets(n, false)?,
            mask: Tensor::from_vec(mask, (n, n), self.tokens.device())?,
        })
    }

    /// What `n` positions of the encoder see of each other: all that are not masked.
    pub(super) fn seen_around(&self, n: usize, mask: &Tensor) -> Result<Seen> {
        Ok(Seen {
            positions: n,
            buckets: self.buckets(n, true)?,
            mask: mask.clone(),
        })
    }

    fn buckets(&self, n: usize, bidirectional: bool) -> Result<Tensor> {
        let buckets = self.config.relative_attention_num_buckets;
        let most = self.config.relative_attention_max_distance;
        let bucket = |pair| exact::bucket(ahead(pair, n), bidirectional, buckets, most) as u32;
        let all: Vec<u32> = (0..n * n).map(bucket).collect();
        Tensor::from_vec(all, n * n, self.tokens.device())
    }

    /// Rows of a batch times a matrix, by heads.
    pub(super) fn project(&self, matrix: &Var, rows: &Tensor, batch: usize) -> Result<Tensor> {
        let (heads, d_kv) = (self.config.num_heads, self.config.d_kv);
        let positions = rows.dim(0)? / batch;
        let rows = self.activation(self.multiply(rows, matrix)?)?;
        rows.reshape((batch, positions, heads, d_kv))?
            .transpose(1, 2)?
            .contiguous()
    }

    /// Means of values, weighted by scores, on which biases are added.
    pub(super) fn context(
        &self,
        attention: &FloatAttention,
        projected: &Projected,
        bias: &Tensor,
    ) -> Result<Tensor> {
        let scores = projected
            .queries
            .matmul(&projected.keys.t()?)?
            .broadcast_mul(&attention.score)?;
        let weights = softmax(&scores.broadcast_add(bias)?)?;
        weights
            .matmul(&projected.values)?
            .broadcast_mul(&attention.gain)
    }

    /// Adds what an attention found to the residual stream.
    pub(super) fn put_context(
        &self,
        attention: &FloatAttention,
        context: Tensor,
        x: &Tensor,
    ) -> Result<Tensor> {
        let rows = (x.dim(0)?, self.config.inner());
        let context = self
            .activation(context)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape(rows)?;
        x + self.multiply(&context, &attention.output)?
    }

    /// Adds what the positions of `batch` sequences find in one another.
    pub(super) fn attend(
        &self,
        layer: &FloatLayer,
        x: &Tensor,
        batch: usize,
        seen: &Seen,
    ) -> Result<Tensor> {
        let (attention, n) = (&layer.attention, seen.positions);
        let inputs = self.normalise(&attention.norm, x)?;
        let projected = Projected {
            queries: self.project(&attention.query, &inputs, batch)?,
            keys: self.project(&attention.key, &inputs, batch)?,
            values: self.project(&attention.value, &inputs, batch)?,
        };
        let bias = layer.bias.index_select(&seen.buckets, 1)?;
        let bias = bias
            .reshape((self.config.num_heads, n, n))?
            .broadcast_add(&seen.mask)?;
        let context = self.context(attention, &projected, &bias)?;
        self.put_context(attention, context, x)
    }
}
