//! The network in floats, as it is trained: every value that the exact network rounds is rounded here too,
//! and gradients pass through the rounding as if it were not there (Bengio et al. 2013).
//!
//! Units: an activation of 1.0 is 32 in the exact network, a residual value of 1.0 is 512 or, where weights have outgrown
//! that, less.

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
    /// False while it is trained in plain floats: nothing is rounded or clipped.
    pub rounded: bool,
    /// classes x tokens: 0 for the tokens of a class, else very low.
    outside: Tensor,
    /// By token.
    pub(super) class_of: Vec<u32>,
}

/// A parameter with its name, by which checkpoints know it.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub name: String,
    pub var: Var,
    /// True for the matrices of layers, which Muon trains.
    pub is_matrix: bool,
    /// True for tables of which each token reads a row.
    pub is_embedding: bool,
}

/// Normally distributed values.
pub(crate) fn normal(
    random: &mut Random,
    shape: &[usize],
    deviation: f64,
    device: &Device,
) -> Result<Var> {
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
            rounded: true,
            outside: outside_table(&config, device)?,
            class_of: class_of(&config),
            config,
        })
    }

    /// All parameters, in an order that depends on the shape only.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut all = Vec::new();
        let mut add = |name: String, var: &Var, is_matrix, is_embedding| {
            let var = var.clone();
            all.push(Parameter {
                name,
                var,
                is_matrix,
                is_embedding,
            });
        };
        add("tokens".into(), &self.tokens, false, true);
        for (index, table) in self.ngrams.iter().enumerate() {
            add(format!("ngrams.{index}"), table, false, true);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let attention = &layer.attention;
            for (name, var, is_matrix) in [
                ("attention.norm", &attention.norm, false),
                ("attention.query", &attention.query, true),
                ("attention.key", &attention.key, true),
                ("attention.value", &attention.value, true),
                ("attention.output", &attention.output, true),
                ("attention.score", &attention.score, false),
                ("attention.gain", &attention.gain, false),
                ("attention.bias", &attention.bias, false),
                ("norm", &layer.norm, false),
                ("up", &layer.up, true),
                ("down", &layer.down, true),
            ] {
                add(format!("decoder.{index}.{name}"), var, is_matrix, false);
            }
        }
        for (name, var) in [
            ("decoder.norm", &self.norm),
            ("class_head", &self.class_head),
            ("class_head.bias", &self.class_bias),
            ("token_head", &self.token_head),
            ("token_head.bias", &self.token_bias),
        ] {
            add(name.into(), var, false, false);
        }
        all
    }

    /// Mean cost of a token in nats over sequences, each of which starts afresh.
    pub fn loss(&self, sequences: &[&[u16]]) -> Result<Tensor> {
        let device = self.tokens.device();
        let hidden = self.hidden(sequences)?;
        let targets: Vec<u32> = sequences.concat().into_iter().map(u32::from).collect();
        let classes: Vec<u32> = targets.iter().map(|&t| self.class_of[t as usize]).collect();
        let count = targets.len();
        let targets = Tensor::from_vec(targets, count, device)?;
        let classes = Tensor::from_vec(classes, count, device)?;
        let class_logits = self
            .multiply(&hidden, &self.class_head)?
            .broadcast_add(&self.class_bias)?;
        let token_logits = self
            .multiply(&hidden, &self.token_head)?
            .broadcast_add(&self.token_bias)?;
        let token_logits = (token_logits + self.outside.index_select(&classes, 0)?)?;
        cross_entropy(&class_logits, &classes)? + cross_entropy(&token_logits, &targets)?
    }

    /// Hidden rows of all tokens, without what sequences are filled up with.
    fn hidden(&self, sequences: &[&[u16]]) -> Result<Tensor> {
        let positions = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
        let filled = |sequence: &&[u16]| {
            let mut filled = sequence.to_vec();
            filled.resize(positions, 0);
            filled
        };
        let tokens: Vec<u16> = sequences.iter().flat_map(filled).collect();
        let mut x = self.embed(&tokens, positions)?;
        let seen = self.seen(positions)?;
        for layer in &self.layers {
            x = self.attend(&layer.attention, &x, sequences.len(), &seen)?;
            let inputs = self.normalise(&layer.norm, &x)?;
            let hidden = self.feed_forward(&self.multiply(&inputs, &layer.up)?)?;
            x = (x + self.multiply(&hidden, &layer.down)?)?;
        }
        let starts = (0..).step_by(positions.max(1));
        let real = sequences
            .iter()
            .zip(starts)
            .flat_map(|(s, start)| start..start + s.len() as u32);
        let real: Vec<u32> = real.collect();
        let count = real.len();
        let real = Tensor::from_vec(real, count, x.device())?;
        self.normalise(&self.norm, &x.index_select(&real, 0)?)
    }

    fn activation(&self, x: Tensor) -> Result<Tensor> {
        if self.rounded { activation(&x) } else { Ok(x) }
    }

    fn multiply(&self, inputs: &Tensor, matrix: &Var) -> Result<Tensor> {
        match self.rounded {
            true => inputs.matmul(&stored_rows(matrix.as_tensor())?.t()?),
            false => inputs.matmul(&matrix.t()?),
        }
    }

    fn normalise(&self, gain: &Var, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(1)?;
        let scaled = x.broadcast_div(&(mean + 1e-9)?.sqrt()?)?;
        self.activation(scaled.broadcast_mul(gain.as_tensor())?)
    }

    fn feed_forward(&self, sums: &Tensor) -> Result<Tensor> {
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

    fn attend(
        &self,
        attention: &FloatAttention,
        x: &Tensor,
        batch: usize,
        seen: &Seen,
    ) -> Result<Tensor> {
        let (heads, d_kv) = (self.config.num_heads, self.config.d_kv);
        let positions = x.dim(0)? / batch;
        let inputs = self.normalise(&attention.norm, x)?;
        let project = |matrix: &Var| -> Result<Tensor> {
            let rows = self.activation(self.multiply(&inputs, matrix)?)?;
            rows.reshape((batch, positions, heads, d_kv))?
                .transpose(1, 2)?
                .contiguous()
        };
        let (queries, keys) = (project(&attention.query)?, project(&attention.key)?);
        let values = project(&attention.value)?;
        let bias = attention.bias.index_select(&seen.buckets, 1)?;
        let bias = bias
            .reshape((heads, positions, positions))?
            .broadcast_add(&seen.mask)?;
        let scores = queries
            .matmul(&keys.t()?)?
            .broadcast_mul(&attention.score)?;
        let weights = softmax(&scores.broadcast_add(&bias)?)?;
        let context = weights.matmul(&values)?.broadcast_mul(&attention.gain)?;
        let rows = (batch * positions, heads * d_kv);
        let context = self
            .activation(context)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape(rows)?;
        x + self.multiply(&context, &attention.output)?
    }

    fn embedding(&self, table: &Var, rows: &Tensor) -> Result<Tensor> {
        match self.rounded {
            true => stored_embedding(table)?.index_select(rows, 0),
            false => table.index_select(rows, 0),
        }
    }

    /// What enters the residual stream: token t of a sequence is predicted from those before it.
    fn embed(&self, tokens: &[u16], positions: usize) -> Result<Tensor> {
        let device = self.tokens.device();
        let start = self.config.vocab_size as u32;
        let newest: Vec<u32> = (0..tokens.len())
            .map(|at| match at % positions {
                0 => start,
                _ => u32::from(tokens[at - 1]),
            })
            .collect();
        let newest = Tensor::from_vec(newest, tokens.len(), device)?;
        let mut x = self.embedding(&self.tokens, &newest)?;
        let Some(ngrams) = &self.config.ngrams else {
            return Ok(x);
        };
        for (&length, table) in ngrams.lengths.iter().zip(&self.ngrams) {
            let (mut slots, mut known) = (Vec::new(), Vec::new());
            for at in 0..tokens.len() {
                let enough = at % positions >= length;
                let newest_first =
                    (0..length).map(|back| if enough { tokens[at - 1 - back] } else { 0 });
                slots.push(exact::ngram_slot(newest_first, ngrams.slots) as u32);
                known.push(f32::from(u8::from(enough)));
            }
            let slots = Tensor::from_vec(slots, tokens.len(), device)?;
            let known = Tensor::from_vec(known, (tokens.len(), 1), device)?;
            x = (x + self.embedding(table, &slots)?.broadcast_mul(&known)?)?;
        }
        Ok(x)
    }

    /// What positions see of each other.
    fn seen(&self, n: usize) -> Result<Seen> {
        let (device, config) = (self.tokens.device(), &self.config);
        let (buckets, most) = (
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        );
        let ahead = |at: usize| (at % n) as i64 - (at / n) as i64;
        let bucket = |at| exact::bucket(ahead(at), false, buckets, most) as u32;
        let window = config.window as i64;
        let mask = |at| {
            if (1 - window..=0).contains(&ahead(at)) {
                0.0
            } else {
                NEVER
            }
        };
        Ok(Seen {
            buckets: Tensor::from_vec((0..n * n).map(bucket).collect::<Vec<_>>(), n * n, device)?,
            mask: Tensor::from_vec((0..n * n).map(mask).collect::<Vec<_>>(), (n, n), device)?,
        })
    }
}

/// What positions of a sequence see of each other, query by query.
struct Seen {
    /// The bucket of every distance.
    buckets: Tensor,
    /// queries x keys: 0 where the query sees the key, else very low.
    mask: Tensor,
}

/// Very low, but not so low that differences are lost.
const NEVER: f32 = -1e9;

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
