//! A network for the exact engines that starts from published weights.
//!
//! What fits is taken over so that it computes the same, but in ranges that 8 bits hold well: the published
//! scale of a matrix moves to where the exact network has a scale. With g the gains before it, c their root
//! mean square, and s, a, b, v, u numbers chosen below, all of these leave the function unchanged:
//!
//! | ours | published | why |
//! |---|---|---|
//! | embedding, residual stream | s * embedding | a normalisation undoes s |
//! | gains | g / c, between bounds; the rest goes to the columns of the matrices | |
//! | query, key, score of a head | query * c / a, key * c / b, a * b | T5 has no scale of scores |
//! | value, output of a head | value * c / v, output * s * v | |
//! | up, down | up * c / u, down * s * u | ReLU commutes with u |
//! | biases of every layer | those of the first, which T5 shares | |

use candle_core::{DType, Device, Tensor, Var};

use super::{Activation, Checkpoint, Config, FloatT5, PublishedError, Result};
use crate::model::ModelError;
use crate::model::network::{self, FeedForward};
use crate::train::corpus::Random;
use crate::train::network::float::{FloatAttention, FloatLayer, FloatNetwork};
use crate::train::t5::bias_name;

/// Root mean square of the embedding's values, as in a network that starts from nothing.
const EMBEDDING_SIZE: f64 = 0.3;
/// Largest value of the residual stream over a sample: half of what the exact network can hold.
const RESIDUAL_MOST: f64 = 32.0;
/// Pieces of the sample.
const SAMPLE: usize = 128;
/// Least and largest gain: below 8191 / 2048, which is the largest that the exact network has.
const GAINS: [f32; 2] = [1.0 / 64.0, 3.9];

/// A network to train, and what it has from the checkpoint.
#[derive(Debug)]
pub struct Start {
    pub network: FloatNetwork,
    /// What was taken over, a line each.
    pub taken: Vec<String>,
    /// What was not, and why, a line each.
    pub left: Vec<String>,
    /// The factor s between the published residual stream and ours.
    pub residual: f64,
}

/// A network of the shape `config` that starts from `checkpoint`; what the checkpoint does not have
/// starts as in [`FloatNetwork::new`]. `vocabulary` has the bytes of every token: its row of the embedding and of
/// the head is the mean of the rows of the published pieces of these bytes.
///
/// The decoder's attention with its biases is taken if heads have the same number and size, its feed-forward
/// layers if both are ReLU of the same size. The exact network has no gated GELU. Layers are taken from the
/// first on, as many as both have.
///
/// # Errors
/// If `d_model` differs, so that nothing could be taken, or if the vocabulary is not of `config`.
pub fn start(
    checkpoint: &Checkpoint,
    config: network::Config,
    vocabulary: &[&[u8]],
    random: &mut Random,
    device: &Device,
) -> Result<Start> {
    check_width(checkpoint, config.d_model)?;
    if vocabulary.len() != config.vocab_size {
        return Err(PublishedError::Mismatch(format!(
            "a vocabulary of {} tokens for a network of {}",
            vocabulary.len(),
            config.vocab_size
        )));
    }
    let mismatch = |error: ModelError| PublishedError::Mismatch(error.to_string());
    config.check().map_err(mismatch)?;
    let network = FloatNetwork::new(config, random, device)?;
    let pieces = vocabulary
        .iter()
        .map(|token| checkpoint.pieces().of_token(token))
        .collect::<Result<Vec<_>>>()?;
    let residual = residual_scale(checkpoint, &pieces)?;
    let mut start = Start {
        network,
        taken: Vec::new(),
        left: Vec::new(),
        residual,
    };
    start.take_vocabulary(checkpoint, &pieces)?;
    start.take_layers(checkpoint)?;
    start
        .left
        .push("encoder and cross-attention: the network has no encoder to attend to".into());
    Ok(start)
}

/// Refuses a checkpoint that has nothing for a network of width `d_model`.
///
/// # Errors
/// If it has another width.
pub fn check_width(checkpoint: &Checkpoint, d_model: usize) -> Result<()> {
    let published = checkpoint.config().d_model;
    match published == d_model {
        true => Ok(()),
        false => Err(PublishedError::Mismatch(format!(
            "its d_model is {published}, that of the network {d_model}"
        ))),
    }
}

/// The factor between the published residual stream and ours.
fn residual_scale(checkpoint: &Checkpoint, pieces: &[Vec<u32>]) -> Result<f64> {
    let every = (pieces.len() / SAMPLE).max(1);
    let mut sample = vec![checkpoint.config().start];
    sample.extend(pieces.iter().step_by(every).flatten().take(SAMPLE - 1));
    let peak = f64::from(FloatT5::new(checkpoint)?.peak(&sample)?);
    let wanted = EMBEDDING_SIZE / f64::from(size(checkpoint.embedding()?)?).max(1e-9);
    Ok(wanted.min(RESIDUAL_MOST / peak.max(1e-9)))
}

/// Root mean square of all values.
fn size(x: &Tensor) -> Result<f32> {
    Ok(x.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?)
}

/// The gains of a normalisation as ours, and what the columns of the matrices behind it must be multiplied by.
struct Gains {
    ours: Tensor,
    columns: Tensor,
}

impl Gains {
    fn new(published: &Tensor) -> Result<Gains> {
        let size = f64::from(size(published)?).max(1e-9);
        let ours = (published.abs()? / size)?.clamp(GAINS[0], GAINS[1])?;
        let columns = (published / &ours)?;
        Ok(Gains { ours, columns })
    }

    fn fold(&self, matrix: &Tensor) -> Result<Tensor> {
        Ok(matrix.broadcast_mul(&self.columns)?)
    }
}

/// A matrix as groups of rows of root mean square length 1, and the lengths: groups x 1 x 1.
fn unit_rows(matrix: &Tensor, groups: usize) -> Result<(Tensor, Tensor)> {
    let (rows, columns) = matrix.dims2()?;
    let parts = matrix.reshape((groups, rows / groups, columns))?;
    let lengths = parts.sqr()?.sum_keepdim(2)?.mean_keepdim(1)?.sqrt()?;
    let lengths = lengths.clamp(1e-9, f64::MAX)?;
    let unit = parts.broadcast_div(&lengths)?.reshape((rows, columns))?;
    Ok((unit, lengths))
}

fn set(var: &Var, value: &Tensor) -> Result<()> {
    Ok(var.set(&value.detach().contiguous()?)?)
}

impl Start {
    fn take_vocabulary(&mut self, checkpoint: &Checkpoint, pieces: &[Vec<u32>]) -> Result<()> {
        let network = &self.network;
        let embedding = checkpoint.embedding()?;
        let first = embedding.narrow(0, checkpoint.config().start as usize, 1)?;
        let tokens = Tensor::cat(&[&means(embedding, pieces)?, &first], 0)?;
        set(&network.tokens, &(tokens * self.residual)?)?;

        let gains = Gains::new(checkpoint.tensor("decoder.final_layer_norm.weight")?)?;
        set(&network.norm, &gains.ours)?;
        let head = match checkpoint.config().tied {
            true => (checkpoint.head()? / (network.config.d_model as f64).sqrt())?,
            false => checkpoint.head()?.clone(),
        };
        let rows = means(&gains.fold(&head)?, pieces)?;
        set(&network.token_head, &rows)?;
        self.take_classes(&rows)?;

        let found = pieces.iter().filter(|pieces| !pieces.is_empty()).count();
        let of = pieces.len();
        self.taken.push(format!(
            "embedding and head of {found} of {of} tokens, final normalisation"
        ));
        if found < of {
            let missing = of - found;
            self.left.push(format!(
                "{missing} tokens that no published piece stands for: they start from the mean of all"
            ));
        }
        Ok(())
    }

    /// A class starts as the mean of its tokens, times their number.
    fn take_classes(&self, rows: &Tensor) -> Result<()> {
        let network = &self.network;
        let classes = network.config.classes.len();
        let (mut heads, mut biases) = (Vec::new(), Vec::new());
        for class in 0..classes {
            let range = network.config.class_range(class);
            heads.push(rows.narrow(0, range.start, range.len())?.mean_keepdim(0)?);
            biases.push((range.len() as f32).ln());
        }
        set(&network.class_head, &Tensor::cat(&heads, 0)?)?;
        let biases = Tensor::new(biases.as_slice(), rows.device())?;
        set(&network.class_bias, &biases)
    }

    fn take_layers(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let (theirs, ours) = (checkpoint.config(), &self.network.config);
        let layers = theirs.num_decoder_layers.min(ours.num_decoder_layers);
        let attention = attention_fits(theirs, ours);
        let feed_forward = feed_forward_fits(theirs, ours);
        for (index, layer) in self.network.layers.iter().take(layers).enumerate() {
            let block = format!("decoder.block.{index}.layer");
            if attention.is_ok() {
                self.take_attention(checkpoint, &format!("{block}.0"), &layer.attention)?;
            }
            if feed_forward.is_ok() {
                self.take_feed_forward(checkpoint, &format!("{block}.2"), layer)?;
            }
        }
        let biases = take_biases(checkpoint, &self.network.layers[..layers], ours)?;
        for (what, fits) in [
            ("attention", attention),
            ("relative position biases", biases),
            ("feed-forward", feed_forward),
        ] {
            match fits {
                Ok(()) => self.taken.push(format!("{what} of {layers} layers")),
                Err(why) => self.left.push(format!("{what}: {why}")),
            }
        }
        for (have, more) in [
            ("the checkpoint", theirs.num_decoder_layers),
            ("the network", ours.num_decoder_layers),
        ] {
            if more > layers {
                let only = more - layers;
                self.left
                    .push(format!("{only} layers that only {have} has"));
            }
        }
        Ok(())
    }

    fn take_attention(&self, from: &Checkpoint, block: &str, to: &FloatAttention) -> Result<()> {
        let heads = self.network.config.num_heads;
        let tensor = |name: &str| from.tensor(&format!("{block}.SelfAttention.{name}.weight"));
        let gains = Gains::new(from.tensor(&format!("{block}.layer_norm.weight"))?)?;
        let (query, query_lengths) = unit_rows(&gains.fold(tensor("q")?)?, heads)?;
        let (key, key_lengths) = unit_rows(&gains.fold(tensor("k")?)?, heads)?;
        let (value, value_lengths) = unit_rows(&gains.fold(tensor("v")?)?, heads)?;
        let output = tensor("o")?;
        let (d, inner) = output.dims2()?;
        let output = output
            .reshape((d, heads, inner / heads))?
            .broadcast_mul(&value_lengths.reshape((1, heads, 1))?)?
            .reshape((d, inner))?;
        set(&to.norm, &gains.ours)?;
        set(&to.query, &query)?;
        set(&to.key, &key)?;
        set(&to.value, &value)?;
        set(&to.score, &(query_lengths * key_lengths)?)?;
        set(&to.output, &(output * self.residual)?)
    }

    fn take_feed_forward(&self, from: &Checkpoint, block: &str, to: &FloatLayer) -> Result<()> {
        let tensor = |name: &str| from.tensor(&format!("{block}.DenseReluDense.{name}.weight"));
        let gains = Gains::new(from.tensor(&format!("{block}.layer_norm.weight"))?)?;
        let (up, length) = unit_rows(&gains.fold(tensor("wi")?)?, 1)?;
        let down = tensor("wo")?.broadcast_mul(&length.reshape((1, 1))?)?;
        set(&to.norm, &gains.ours)?;
        set(&to.up, &up)?;
        set(&to.down, &(down * self.residual)?)
    }
}

type Fit = std::result::Result<(), String>;

fn attention_fits(theirs: &Config, ours: &network::Config) -> Fit {
    let of = |heads, d_kv| format!("{heads} heads of {d_kv}");
    match (theirs.num_heads, theirs.d_kv) == (ours.num_heads, ours.d_kv) {
        true => Ok(()),
        false => Err(format!(
            "{} in the checkpoint, {} in the network",
            of(theirs.num_heads, theirs.d_kv),
            of(ours.num_heads, ours.d_kv)
        )),
    }
}

fn feed_forward_fits(theirs: &Config, ours: &network::Config) -> Fit {
    match (theirs.activation, ours.feed_forward) {
        (Activation::GatedGelu, _) => {
            Err("gated GELU, which the exact network does not have".into())
        }
        (Activation::Relu, FeedForward::SquaredRelu) => {
            Err("ReLU, which the network squares".into())
        }
        (Activation::Relu, FeedForward::Relu) if theirs.d_ff != ours.d_ff => Err(format!(
            "d_ff is {} in the checkpoint, {} in the network",
            theirs.d_ff, ours.d_ff
        )),
        (Activation::Relu, FeedForward::Relu) => Ok(()),
    }
}

/// Gives every layer the biases that T5 shares.
fn take_biases(from: &Checkpoint, to: &[FloatLayer], ours: &network::Config) -> Result<Fit> {
    let theirs = from.config();
    let buckets = (
        theirs.relative_attention_num_buckets,
        theirs.relative_attention_max_distance,
    );
    let same = buckets
        == (
            ours.relative_attention_num_buckets,
            ours.relative_attention_max_distance,
        );
    if let Err(why) = attention_fits(theirs, ours) {
        return Ok(Err(why));
    }
    if !same {
        return Ok(Err("other buckets of positions than the network's".into()));
    }
    let bias = from.tensor(&bias_name("decoder"))?.t()?;
    for layer in to {
        set(&layer.bias, &bias)?;
    }
    Ok(Ok(()))
}

/// The mean of some rows for each list of them; where a list is empty, the mean of all rows.
fn means(rows: &Tensor, lists: &[Vec<u32>]) -> Result<Tensor> {
    let (_, columns) = rows.dims2()?;
    let all = rows.mean_keepdim(0)?;
    let mut out = Vec::with_capacity(lists.len());
    for list in lists {
        out.push(match list.as_slice() {
            [] => all.clone(),
            [id] => rows.narrow(0, *id as usize, 1)?,
            list => rows
                .index_select(&Tensor::new(list, rows.device())?, 0)?
                .mean_keepdim(0)?,
        });
    }
    match out.is_empty() {
        true => Ok(Tensor::zeros((0, columns), DType::F32, rows.device())?),
        false => Ok(Tensor::cat(&out, 0)?),
    }
}
