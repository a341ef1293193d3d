//! The network in floats, as it is trained: every value that the exact network rounds is rounded here too,
//! and gradients pass through the rounding as if it were not there (Bengio et al. 2013).
//!
//! Units: an activation of 1.0 is 32 in the exact network, a residual value of 1.0 is 512 or, where weights have outgrown
//! that, less.

mod attention;
mod encoder;
mod layer;
mod rounding;

use candle_core::{Device, Result, Tensor, Var};

use crate::model::network::{Config, FeedForward, exact};
use crate::train::corpus::Random;
pub use encoder::FloatEncoder;
use layer::constant;
pub(crate) use layer::normal;
pub use layer::{FloatAttention, FloatLayer};
pub use rounding::stored_scale;

/// Exact activations per 1.0.
pub const ACTIVATION_UNIT: f64 = 32.0;
/// Exact residual values per 1.0.
pub const RESIDUAL_UNIT: f64 = 512.0;
/// Exact values per 1.0 of what is squared in a feed-forward layer.
pub const SQUARE_UNIT: f64 = 48.0;
/// Deviation with which tables that are looked up begin.
const EMBEDDING_DEVIATION: f64 = 0.3;
/// Tokens that are computed at once when costs are only measured.
const COST_TOKENS: usize = 1 << 14;
/// Very low, but not so low that differences are lost.
const NEVER: f32 = -1e9;

/// Exact activations per 1.0 behind the first matrix of a feed-forward layer.
pub fn hidden_unit(kind: FeedForward) -> f64 {
    match kind {
        FeedForward::Relu => ACTIVATION_UNIT,
        FeedForward::SquaredRelu => SQUARE_UNIT * SQUARE_UNIT / f64::from(1 << exact::SQUARE_BITS),
    }
}

/// A sequence to learn from or to measure with.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Each below `vocab_size`.
    pub tokens: &'a [u16],
    /// What the encoder reads: at most `max_latents`, each below `latent_vocab`; none if empty.
    pub latents: &'a [u16],
}

impl<'a> From<&'a [u16]> for Sample<'a> {
    /// Tokens without latents.
    fn from(tokens: &'a [u16]) -> Sample<'a> {
        Sample {
            tokens,
            latents: &[],
        }
    }
}

/// A network in floats.
#[derive(Debug)]
pub struct FloatNetwork {
    pub config: Config,
    pub tokens: Var,
    pub ngrams: Vec<Var>,
    /// What reads latents, if anything does; then every layer of the decoder has a `cross`.
    pub encoder: Option<FloatEncoder>,
    /// Those of the decoder.
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

impl Parameter {
    /// True if only networks that read latents have it.
    pub fn is_for_latents(&self) -> bool {
        self.name.starts_with("encoder.")
            || self.name.starts_with("latents")
            || self.name.contains(".cross.")
    }

    fn other(name: String, var: &Var) -> Parameter {
        Parameter {
            name,
            var: var.clone(),
            is_matrix: false,
            is_embedding: false,
        }
    }

    fn matrix(name: String, var: &Var) -> Parameter {
        Parameter {
            is_matrix: true,
            ..Parameter::other(name, var)
        }
    }

    fn embedding(name: String, var: &Var) -> Parameter {
        Parameter {
            is_embedding: true,
            ..Parameter::other(name, var)
        }
    }
}

impl FloatNetwork {
    /// A network whose matrices that write into a residual stream, and whose heads, start at nothing. With or
    /// without an encoder, all other parameters begin the same.
    pub fn new(config: Config, random: &mut Random, device: &Device) -> Result<FloatNetwork> {
        let d = config.d_model;
        let layers = (0..config.num_decoder_layers)
            .map(|_| FloatLayer::new(&config, random, device))
            .collect::<Result<Vec<_>>>()?;
        let slots = config
            .ngrams
            .iter()
            .flat_map(|n| n.lengths.iter().map(|_| n.slots));
        let ngrams = slots
            .map(|slots| constant(0.0, &[slots, d], device))
            .collect::<Result<_>>()?;
        let rows = [config.vocab_size + 1, d];
        let mut network = FloatNetwork {
            tokens: normal(random, &rows, EMBEDDING_DEVIATION, device)?,
            ngrams,
            encoder: None,
            layers,
            norm: constant(1.0, &[d], device)?,
            class_head: constant(0.0, &[config.classes.len(), d], device)?,
            class_bias: constant(0.0, &[config.classes.len()], device)?,
            token_head: constant(0.0, &[config.vocab_size, d], device)?,
            token_bias: constant(0.0, &[config.vocab_size], device)?,
            rounded: true,
            outside: outside_table(&config, device)?,
            class_of: class_of(&config),
            config,
        };
        let config = &network.config;
        if config.max_latents > 0 {
            network.encoder = Some(FloatEncoder::new(config, random, device)?);
            for layer in &mut network.layers {
                layer.cross = Some(FloatAttention::new(config, random, device)?);
            }
        }
        Ok(network)
    }

    /// All parameters, in an order that depends on the shape only.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut all = vec![Parameter::embedding("tokens".into(), &self.tokens)];
        for (index, table) in self.ngrams.iter().enumerate() {
            all.push(Parameter::embedding(format!("ngrams.{index}"), table));
        }
        for (index, layer) in self.layers.iter().enumerate() {
            all.extend(layer.parameters(&format!("decoder.{index}")));
        }
        let others = [
            ("decoder.norm", &self.norm),
            ("class_head", &self.class_head),
            ("class_head.bias", &self.class_bias),
            ("token_head", &self.token_head),
            ("token_head.bias", &self.token_bias),
        ];
        all.extend(others.map(|(name, var)| Parameter::other(name.into(), var)));
        all.extend(self.encoder.iter().flat_map(FloatEncoder::parameters));
        all
    }

    /// Mean cost of a token in nats over sequences, each of which starts afresh.
    ///
    /// # Errors
    /// If latents are not of this network, or the device fails.
    pub fn loss(&self, samples: &[Sample]) -> Result<Tensor> {
        let (classes, tokens) = self.token_costs(samples)?;
        classes.mean_all()? + tokens.mean_all()?
    }

    /// Cost of each sequence in nats, without gradients.
    ///
    /// # Errors
    /// As for [`FloatNetwork::loss`].
    pub fn costs(&self, samples: &[Sample]) -> Result<Vec<f64>> {
        let mut costs = Vec::with_capacity(samples.len());
        let longest = samples.iter().map(|s| s.tokens.len()).max().unwrap_or(1);
        for part in samples.chunks((COST_TOKENS / longest.max(1)).max(1)) {
            let (classes, tokens) = self.token_costs(part)?;
            let each = (classes + tokens)?.to_vec1::<f32>()?;
            let mut rest = each.as_slice();
            for sample in part {
                let (own, others) = rest.split_at(sample.tokens.len());
                costs.push(own.iter().map(|&nats| f64::from(nats)).sum());
                rest = others;
            }
        }
        Ok(costs)
    }

    /// What the class of each token costs in nats, and the token among those of the class, one sequence behind the
    /// other.
    fn token_costs(&self, samples: &[Sample]) -> Result<(Tensor, Tensor)> {
        let device = self.tokens.device();
        let hidden = self.hidden(samples)?;
        let targets = samples.iter().flat_map(|sample| sample.tokens);
        let targets: Vec<u32> = targets.map(|&token| u32::from(token)).collect();
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
        let classes = nats(&class_logits, &classes)?;
        Ok((classes, nats(&token_logits, &targets)?))
    }

    /// Hidden rows of all tokens, without what sequences are filled up with.
    fn hidden(&self, samples: &[Sample]) -> Result<Tensor> {
        let batch = samples.len();
        let positions = samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let filled = |sample: &Sample| {
            let mut filled = sample.tokens.to_vec();
            filled.resize(positions, 0);
            filled
        };
        let tokens: Vec<u16> = samples.iter().flat_map(filled).collect();
        let memory = self.encode(samples)?;
        let mut x = self.embed(&tokens, positions)?;
        let seen = self.seen_before(positions)?;
        for layer in &self.layers {
            x = self.attend(layer, &x, batch, &seen)?;
            if let (Some(cross), Some(memory)) = (&layer.cross, &memory) {
                x = self.attend_latents(cross, &x, memory)?;
            }
            x = self.feed_forward(layer, &x)?;
        }
        let starts = (0..).step_by(positions.max(1));
        let real = samples
            .iter()
            .zip(starts)
            .flat_map(|(s, start)| start..start + s.tokens.len() as u32);
        let real: Vec<u32> = real.collect();
        let count = real.len();
        let real = Tensor::from_vec(real, count, x.device())?;
        self.normalise(&self.norm, &x.index_select(&real, 0)?)
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

/// -ln p of the target of each row.
fn nats(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let total = shifted.exp()?.sum_keepdim(1)?.log()?;
    let chosen = shifted.gather(&targets.unsqueeze(1)?, 1)?;
    (total - chosen)?.squeeze(1)
}
