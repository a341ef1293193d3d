//! The network in floats, as it is trained: every value that the exact network rounds is rounded here too,
//! and gradients pass through the rounding as if it were not there (Bengio et al. 2013).
//!
//! Units: an activation of 1.0 is 32 in the exact network, a residual value of 1.0 is 512.

use candle_core::{Device, Result, Tensor, Var};

use crate::model::network::{Config, FeedForward, exact};
use crate::train::corpus::Random;

/// Exact activations per 1.0.
pub const ACTIVATION_UNIT: f64 = 32.0;
/// Exact residual values per 1.0.
pub const RESIDUAL_UNIT: f64 = 512.0;
/// Exact values per 1.0 of what is squared in a feed-forward layer.
pub const SQUARE_UNIT: f64 = 48.0;
const ACT_MAX: f64 = exact::ACT_MAX as f64;

/// Exact activations per 1.0 behind the first matrix of a feed-forward layer.
pub fn hidden_unit(kind: FeedForward) -> f64 {
    match kind {
        FeedForward::Relu => ACTIVATION_UNIT,
        FeedForward::SquaredRelu => SQUARE_UNIT * SQUARE_UNIT / f64::from(1 << exact::SQUARE_BITS),
    }
}

/// One attention of the decoder.
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
    /// heads x buckets, in nats.
    pub bias: Var,
}

/// One layer of the decoder.
#[derive(Debug)]
pub struct FloatLayer {
    pub attention: FloatAttention,
    pub norm: Var,
    pub up: Var,
    pub down: Var,
}

/// A decoder in floats.
#[derive(Debug)]
pub struct FloatNetwork {
    pub config: Config,
    pub tokens: Var,
    pub ngrams: Vec<Var>,
    pub layers: Vec<FloatLayer>,
    pub norm: Var,
    pub class_head: Var,
    pub class_bias: Var,
    pub token_head: Var,
    pub token_bias: Var,
    /// queries x keys: the bucket of their distance.
    buckets: Tensor,
    /// queries x keys: 0 where the key is behind the query, else very low.
    future: Tensor,
    /// classes x tokens: 0 for the tokens of a class, else very low.
    outside: Tensor,
    /// By token.
    class_of: Vec<u32>,
}

/// Normally distributed values.
fn normal(random: &mut Random, shape: &[usize], deviation: f64, device: &Device) -> Result<Var> {
    let uniform = |random: &mut Random| (random.bits() >> 11) as f64 / (1u64 << 53) as f64;
    let value = |random: &mut Random| {
        let (u, v) = (uniform(random).max(1e-12), uniform(random));
        let radius = (-2.0 * u.ln()).sqrt() * deviation;
        (radius * (v * std::f64::consts::TAU).cos()) as f32
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(random)).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, device)?)
}

fn constant(value: f64, shape: &[usize], device: &Device) -> Result<Var> {
    Var::from_tensor(&Tensor::full(value as f32, shape, device)?)
}

/// Rounds, with the gradient of the identity.
fn round(x: &Tensor) -> Result<Tensor> {
    let fixed = x.detach();
    x + (fixed.round()? - &fixed)?.detach()
}

/// What an activation is after it was stored in 8 bits.
fn activation(x: &Tensor) -> Result<Tensor> {
    round(&(x * ACTIVATION_UNIT)?)?.clamp(-ACT_MAX, ACT_MAX)? / ACTIVATION_UNIT
}

/// What a matrix is after its rows were stored in 8 bits each.
pub fn stored_rows(matrix: &Tensor) -> Result<Tensor> {
    let step = (matrix.detach().abs()?.max_keepdim(1)? / ACT_MAX)?.clamp(1e-8, f64::MAX)?;
    round(&matrix.broadcast_div(&step)?)?.broadcast_mul(&step)
}

/// Exact scale of an embedding.
pub fn embedding_scale(matrix: &Tensor) -> Result<i32> {
    let largest = f64::from(matrix.detach().abs()?.max_all()?.to_scalar::<f32>()?);
    let scale = (largest * RESIDUAL_UNIT / ACT_MAX).ceil() as i32;
    Ok(scale.clamp(1, exact::EMBEDDING_SCALE_MAX))
}

/// What an embedding is after it was stored in 8 bits.
fn stored_embedding(matrix: &Tensor) -> Result<Tensor> {
    let step = f64::from(embedding_scale(matrix)?) / RESIDUAL_UNIT;
    round(&(matrix / step)?)?.clamp(-ACT_MAX, ACT_MAX)? * step
}

fn multiply(inputs: &Tensor, matrix: &Var) -> Result<Tensor> {
    inputs.matmul(&stored_rows(matrix.as_tensor())?.t()?)
}

fn normalise(gain: &Var, x: &Tensor) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(1)?;
    let scaled = x.broadcast_div(&(mean + 1e-9)?.sqrt()?)?;
    activation(&scaled.broadcast_mul(gain.as_tensor())?)
}

impl FloatNetwork {
    /// A network whose matrices that write into the residual stream, and whose heads, start at nothing.
    pub fn new(config: Config, random: &mut Random, device: &Device) -> Result<FloatNetwork> {
        let (d, inner, heads) = (config.d_model, config.inner(), config.num_heads);
        let deviation = 1.0 / (d as f64).sqrt();
        let ones = || constant(1.0, &[d], device);
        let buckets = config.relative_attention_num_buckets;
        let mut layers = Vec::new();
        for _ in 0..config.num_decoder_layers {
            let attention = FloatAttention {
                norm: ones()?,
                query: normal(random, &[inner, d], deviation, device)?,
                key: normal(random, &[inner, d], deviation, device)?,
                value: normal(random, &[inner, d], deviation, device)?,
                output: constant(0.0, &[d, inner], device)?,
                score: constant(1.0 / (config.d_kv as f64).sqrt(), &[heads, 1, 1], device)?,
                gain: constant(1.0, &[heads, 1, 1], device)?,
                bias: constant(0.0, &[heads, buckets], device)?,
            };
            layers.push(FloatLayer {
                attention,
                norm: ones()?,
                up: normal(random, &[config.d_ff, d], deviation, device)?,
                down: constant(0.0, &[d, config.d_ff], device)?,
            });
        }
        let slots = config
            .ngrams
            .iter()
            .flat_map(|n| n.lengths.iter().map(|_| n.slots));
        let ngrams = slots
            .map(|slots| constant(0.0, &[slots, d], device))
            .collect::<Result<_>>()?;
        Ok(FloatNetwork {
            tokens: normal(random, &[config.vocab_size + 1, d], 0.3, device)?,
            ngrams,
            layers,
            norm: ones()?,
            class_head: constant(0.0, &[config.classes.len(), d], device)?,
            class_bias: constant(0.0, &[config.classes.len()], device)?,
            token_head: constant(0.0, &[config.vocab_size, d], device)?,
            token_bias: constant(0.0, &[config.vocab_size], device)?,
            buckets: bucket_table(&config, device)?,
            future: future_table(config.window, device)?,
            outside: outside_table(&config, device)?,
            class_of: class_of(&config),
            config,
        })
    }

    /// The matrices of the layers, which Muon trains.
    pub fn matrices(&self) -> Vec<Var> {
        let of = |layer: &FloatLayer| {
            let attention = &layer.attention;
            [
                attention.query.clone(),
                attention.key.clone(),
                attention.value.clone(),
                attention.output.clone(),
                layer.up.clone(),
                layer.down.clone(),
            ]
        };
        self.layers.iter().flat_map(of).collect()
    }

    /// All other parameters.
    pub fn others(&self) -> Vec<Var> {
        let mut vars = vec![
            self.tokens.clone(),
            self.norm.clone(),
            self.class_head.clone(),
            self.class_bias.clone(),
            self.token_head.clone(),
            self.token_bias.clone(),
        ];
        vars.extend(self.ngrams.iter().cloned());
        for layer in &self.layers {
            let attention = &layer.attention;
            vars.extend([
                attention.norm.clone(),
                attention.score.clone(),
                attention.gain.clone(),
                attention.bias.clone(),
                layer.norm.clone(),
            ]);
        }
        vars
    }

    /// Mean cost of a token in nats, over chunks that all have `positions` tokens.
    pub fn loss(&self, chunks: &[u16], positions: usize) -> Result<Tensor> {
        let device = self.tokens.device();
        let hidden = self.hidden(chunks, positions)?;
        let targets: Vec<u32> = chunks.iter().map(|&t| u32::from(t)).collect();
        let targets = Tensor::from_vec(targets, chunks.len(), device)?;
        let classes: Vec<u32> = chunks
            .iter()
            .map(|&t| self.class_of[usize::from(t)])
            .collect();
        let classes = Tensor::from_vec(classes, chunks.len(), device)?;
        let class_logits = multiply(&hidden, &self.class_head)?.broadcast_add(&self.class_bias)?;
        let token_logits = multiply(&hidden, &self.token_head)?.broadcast_add(&self.token_bias)?;
        let token_logits = (token_logits + self.outside.index_select(&classes, 0)?)?;
        cross_entropy(&class_logits, &classes)? + cross_entropy(&token_logits, &targets)?
    }

    /// Hidden rows of all positions.
    fn hidden(&self, chunks: &[u16], positions: usize) -> Result<Tensor> {
        let mut x = self.embed(chunks, positions)?;
        let batch = chunks.len() / positions;
        for layer in &self.layers {
            x = self.attend(&layer.attention, &x, batch, positions)?;
            let inputs = normalise(&layer.norm, &x)?;
            let hidden = self.feed_forward(&multiply(&inputs, &layer.up)?)?;
            x = (x + multiply(&hidden, &layer.down)?)?;
        }
        normalise(&self.norm, &x)
    }

    fn feed_forward(&self, sums: &Tensor) -> Result<Tensor> {
        match self.config.feed_forward {
            FeedForward::Relu => activation(&sums.relu()?),
            FeedForward::SquaredRelu => {
                let most = exact::SQUARE_ROOT_MAX as f64;
                let root = round(&(sums * SQUARE_UNIT)?)?.clamp(0f64, most)?;
                let square = (root.sqr()? / f64::from(1 << exact::SQUARE_BITS))?;
                let stored = round(&square)?.clamp(0f64, ACT_MAX)?;
                stored / hidden_unit(FeedForward::SquaredRelu)
            }
        }
    }

    fn attend(
        &self,
        attention: &FloatAttention,
        x: &Tensor,
        batch: usize,
        positions: usize,
    ) -> Result<Tensor> {
        let (heads, d_kv) = (self.config.num_heads, self.config.d_kv);
        let inputs = normalise(&attention.norm, x)?;
        let project = |matrix: &Var| -> Result<Tensor> {
            let rows = activation(&multiply(&inputs, matrix)?)?;
            rows.reshape((batch, positions, heads, d_kv))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (queries, keys) = (project(&attention.query)?, project(&attention.key)?);
        let values = project(&attention.value)?;
        let buckets = self
            .buckets
            .narrow(0, 0, positions)?
            .narrow(1, 0, positions)?;
        let bias = attention
            .bias
            .index_select(&buckets.contiguous()?.flatten_all()?, 1)?;
        let bias = bias.reshape((heads, positions, positions))?;
        let future = self
            .future
            .narrow(0, 0, positions)?
            .narrow(1, 0, positions)?;
        let bias = bias.broadcast_add(&future)?;
        let scores = queries
            .matmul(&keys.t()?)?
            .broadcast_mul(&attention.score)?;
        let weights = softmax(&scores.broadcast_add(&bias)?)?;
        let context = activation(&weights.matmul(&values)?.broadcast_mul(&attention.gain)?)?;
        let rows = (batch * positions, heads * d_kv);
        let context = context.transpose(1, 2)?.contiguous()?.reshape(rows)?;
        x + multiply(&context, &attention.output)?
    }

    /// What enters the residual stream: token t of a chunk is predicted from those before it.
    fn embed(&self, chunks: &[u16], positions: usize) -> Result<Tensor> {
        let device = self.tokens.device();
        let start = self.config.vocab_size as u32;
        let newest: Vec<u32> = (0..chunks.len())
            .map(|at| {
                if at % positions == 0 {
                    start
                } else {
                    u32::from(chunks[at - 1])
                }
            })
            .collect();
        let newest = Tensor::from_vec(newest, chunks.len(), device)?;
        let mut x = stored_embedding(&self.tokens)?.index_select(&newest, 0)?;
        let Some(ngrams) = &self.config.ngrams else {
            return Ok(x);
        };
        for (&length, table) in ngrams.lengths.iter().zip(&self.ngrams) {
            let (mut slots, mut known) = (Vec::new(), Vec::new());
            for at in 0..chunks.len() {
                let enough = at % positions >= length;
                let newest_first =
                    (0..length).map(|back| if enough { chunks[at - 1 - back] } else { 0 });
                slots.push(exact::ngram_slot(newest_first, ngrams.slots) as u32);
                known.push(f32::from(u8::from(enough)));
            }
            let slots = Tensor::from_vec(slots, chunks.len(), device)?;
            let known = Tensor::from_vec(known, (chunks.len(), 1), device)?;
            let rows = stored_embedding(table)?.index_select(&slots, 0)?;
            x = (x + rows.broadcast_mul(&known)?)?;
        }
        Ok(x)
    }
}

/// Very low, but not so low that differences are lost.
const NEVER: f32 = -1e9;

fn bucket_table(config: &Config, device: &Device) -> Result<Tensor> {
    let n = config.window as i64;
    let buckets = config.relative_attention_num_buckets;
    let distance = config.relative_attention_max_distance;
    let bucket = |at: i64| exact::bucket(at % n - at / n, false, buckets, distance) as u32;
    let table: Vec<u32> = (0..n * n).map(bucket).collect();
    Tensor::from_vec(table, (n as usize, n as usize), device)
}

fn future_table(n: usize, device: &Device) -> Result<Tensor> {
    let table: Vec<f32> = (0..n * n)
        .map(|at| if at % n > at / n { NEVER } else { 0.0 })
        .collect();
    Tensor::from_vec(table, (n, n), device)
}

fn class_of(config: &Config) -> Vec<u32> {
    let tokens =
        (0..config.classes.len()).flat_map(|c| config.class_range(c).map(move |_| c as u32));
    tokens.collect()
}

fn outside_table(config: &Config, device: &Device) -> Result<Tensor> {
    let class_of = class_of(config);
    let mut table = Vec::with_capacity(config.classes.len() * config.vocab_size);
    for class in 0..config.classes.len() as u32 {
        table.extend(
            class_of
                .iter()
                .map(|&c| if c == class { 0.0 } else { NEVER }),
        );
    }
    Tensor::from_vec(table, (config.classes.len(), config.vocab_size), device)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let last = scores.dims().len() - 1;
    let weights = scores
        .broadcast_sub(&scores.max_keepdim(last)?.detach())?
        .exp()?;
    weights.broadcast_div(&weights.sum_keepdim(last)?)
}

/// Mean of -ln p over rows.
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let total = shifted.exp()?.sum_keepdim(1)?.log()?;
    let chosen = shifted.gather(&targets.unsqueeze(1)?, 1)?;
    (total - chosen)?.mean_all()
}
