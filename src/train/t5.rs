//! The layers of T5 in floats, with parameters that can be trained (Raffel et al. 2020, section 2.1; GLU variants
//! by Shazeer 2020): relative position biases, no biases else, no dropout. Published weights run on them, and the
//! compressor of Seq2Seq2Seq.

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops::softmax;

use super::network::float::Parameter;
use crate::model::network::exact;

/// Very low, but not so low that differences are lost.
pub const NEVER: f32 = -1e9;

/// What stands between the matrices of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Relu,
    SquaredRelu,
    /// gelu(gate) * x.
    GatedGelu,
}

impl Activation {
    /// The matrices of a feed-forward layer, those that read the residual stream first.
    pub fn matrices(self) -> &'static [&'static str] {
        match self {
            Activation::Relu | Activation::SquaredRelu => &["wi", "wo"],
            Activation::GatedGelu => &["wi_0", "wi_1", "wo"],
        }
    }
}

/// What all layers of a model share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub d_model: usize,
    /// Dimension of one head.
    pub d_kv: usize,
    pub d_ff: usize,
    pub heads: usize,
    /// Buckets of relative positions, and the distance that the last one begins with.
    pub buckets: usize,
    pub distance: usize,
    /// What a normalisation adds to the mean of squares.
    pub epsilon: f64,
    pub activation: Activation,
}

/// One attention: of a stack to itself, or of the decoder to the memory.
#[derive(Debug)]
struct Attention {
    norm: Var,
    /// Queries, keys and values: inner x `d_model`.
    query: Var,
    key: Var,
    value: Var,
    /// `d_model` x inner.
    output: Var,
}

/// One layer of a stack.
#[derive(Debug)]
struct Layer {
    attention: Attention,
    /// The decoder's attention to the memory.
    cross: Option<Attention>,
    norm: Var,
    /// What reads the residual stream, `d_ff` x `d_model`: one matrix, or the gate and what it lets through.
    up: Vec<Var>,
    /// `d_model` x `d_ff`.
    down: Var,
}

/// An encoder or a decoder.
#[derive(Debug)]
pub struct Stack {
    name: &'static str,
    layers: Vec<Layer>,
    /// Relative position biases, shared by all layers: buckets x heads.
    bias: Var,
    norm: Var,
    bidirectional: bool,
    sizes: Sizes,
}

/// What a decoder attends to.
#[derive(Debug, Clone)]
pub struct Memory {
    /// Batch x positions x `d_model`.
    pub rows: Tensor,
    /// Batch x 1 x 1 x positions: 0, or [`NEVER`] where there is only padding; None without padding.
    pub hidden: Option<Tensor>,
}

/// Names of the encoder and the decoder, which begin those of their tensors.
pub const ENCODER: &str = "encoder";
pub const DECODER: &str = "decoder";
const SELF: &str = "SelfAttention";
const CROSS: &str = "EncDecAttention";

/// Name of the relative position biases of a stack, buckets x heads.
pub fn bias_name(stack: &str) -> String {
    format!("{stack}.block.0.layer.0.{SELF}.relative_attention_bias.weight")
}

/// The attentions of each layer of a stack.
fn attentions(stack: &str) -> &'static [&'static str] {
    match stack == DECODER {
        true => &[SELF, CROSS],
        false => &[SELF],
    }
}

/// Every tensor of a stack under its published name, with its shape.
pub fn tensors(stack: &str, layers: usize, sizes: &Sizes) -> Vec<(String, Vec<usize>)> {
    let (d, ff) = (sizes.d_model, sizes.d_ff);
    let inner = sizes.heads * sizes.d_kv;
    let mut all = vec![
        (bias_name(stack), vec![sizes.buckets, sizes.heads]),
        (format!("{stack}.final_layer_norm.weight"), vec![d]),
    ];
    for layer in 0..layers {
        let block = format!("{stack}.block.{layer}.layer");
        for (at, attention) in attentions(stack).iter().enumerate() {
            all.push((format!("{block}.{at}.layer_norm.weight"), vec![d]));
            for matrix in ["q", "k", "v"] {
                let name = format!("{block}.{at}.{attention}.{matrix}.weight");
                all.push((name, vec![inner, d]));
            }
            all.push((format!("{block}.{at}.{attention}.o.weight"), vec![d, inner]));
        }
        let block = format!("{block}.{}", attentions(stack).len());
        all.push((format!("{block}.layer_norm.weight"), vec![d]));
        for &matrix in sizes.activation.matrices() {
            let shape = match matrix {
                "wo" => vec![d, ff],
                _ => vec![ff, d],
            };
            all.push((format!("{block}.DenseReluDense.{matrix}.weight"), shape));
        }
    }
    all
}

/// Collects parameters under their published names.
struct Collector {
    all: Vec<Parameter>,
}

impl Collector {
    fn add(&mut self, name: String, var: &Var, is_matrix: bool) {
        self.all.push(Parameter {
            name,
            var: var.clone(),
            is_matrix,
            is_embedding: false,
        });
    }

    fn attention(&mut self, block: &str, name: &str, attention: &Attention) {
        self.add(format!("{block}.layer_norm.weight"), &attention.norm, false);
        for (matrix, var) in [
            ("q", &attention.query),
            ("k", &attention.key),
            ("v", &attention.value),
            ("o", &attention.output),
        ] {
            self.add(format!("{block}.{name}.{matrix}.weight"), var, true);
        }
    }

    fn layer(&mut self, block: &str, layer: &Layer, activation: Activation) {
        self.attention(&format!("{block}.0"), SELF, &layer.attention);
        let mut last = 1;
        if let Some(cross) = &layer.cross {
            self.attention(&format!("{block}.1"), CROSS, cross);
            last = 2;
        }
        let block = format!("{block}.{last}");
        self.add(format!("{block}.layer_norm.weight"), &layer.norm, false);
        let matrices = layer.up.iter().chain([&layer.down]);
        for (name, var) in activation.matrices().iter().zip(matrices) {
            self.add(format!("{block}.DenseReluDense.{name}.weight"), var, true);
        }
    }
}

/// Rows times the transposed matrix, whatever shape the rows come in.
pub fn multiply(inputs: &Tensor, matrix: &Var) -> Result<Tensor> {
    let mut shape = inputs.dims().to_vec();
    let columns = shape.pop().unwrap_or(1);
    let rows = inputs.reshape(((), columns))?.matmul(&matrix.t()?)?;
    shape.push(matrix.dim(0)?);
    rows.reshape(shape)
}

/// Keys and values of an attention: batch x heads x positions x `d_kv`.
#[derive(Debug, Clone)]
struct Keys {
    keys: Tensor,
    values: Tensor,
}

/// What a layer keeps while a stack reads.
#[derive(Debug)]
struct Kept {
    own: Option<Keys>,
    memory: Option<Keys>,
}

impl Kept {
    /// The keys of all positions until now.
    fn with(&mut self, new: Keys, detached: bool) -> Result<Keys> {
        let all = match self.own.take() {
            Some(old) => Keys {
                keys: Tensor::cat(&[&old.keys, &new.keys], 2)?,
                values: Tensor::cat(&[&old.values, &new.values], 2)?,
            },
            None => new,
        };
        self.own = Some(match detached {
            true => Keys {
                keys: all.keys.detach(),
                values: all.values.detach(),
            },
            false => all.clone(),
        });
        Ok(all)
    }
}

/// A stack that reads a batch of streams, any number of positions at a time.
#[derive(Debug)]
pub struct Reader<'a> {
    stack: &'a Stack,
    layers: Vec<Kept>,
    /// As in [`Memory`].
    hidden: Option<Tensor>,
    /// Positions until now.
    read: usize,
    /// Whether gradients end between the calls.
    detached: bool,
}

impl Stack {
    /// A stack of parameters that `var` finds by their names, those of [`tensors`].
    ///
    /// # Errors
    /// Those of `var`.
    pub fn new<E>(
        name: &'static str,
        layers: usize,
        sizes: Sizes,
        var: &mut dyn FnMut(&str) -> std::result::Result<Var, E>,
    ) -> std::result::Result<Stack, E> {
        let layers = (0..layers).map(|at| Layer::new(name, at, sizes.activation, var));
        Ok(Stack {
            name,
            layers: layers.collect::<std::result::Result<_, E>>()?,
            bias: var(&bias_name(name))?,
            norm: var(&format!("{name}.final_layer_norm.weight"))?,
            bidirectional: name == ENCODER,
            sizes,
        })
    }

    /// All parameters under their published names.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut collector = Collector { all: Vec::new() };
        let name = self.name;
        collector.add(bias_name(name), &self.bias, false);
        let norm = format!("{name}.final_layer_norm.weight");
        collector.add(norm, &self.norm, false);
        for (index, layer) in self.layers.iter().enumerate() {
            let block = format!("{name}.block.{index}.layer");
            collector.layer(&block, layer, self.sizes.activation);
        }
        collector.all
    }

    /// Reads whole streams, batch x positions x `d_model`, and normalises what the last layer makes of them.
    /// Positions that `hidden` (as in [`Memory`]) hides are not attended to.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device fails.
    pub fn read(
        &self,
        x: &Tensor,
        hidden: Option<&Tensor>,
        memory: Option<&Memory>,
    ) -> Result<Tensor> {
        let x = self.residual(x, hidden, memory, &mut |_| Ok(()))?;
        self.normalise(&self.norm, &x)
    }

    /// The residual stream behind the last layer; shows it to `look` before and behind every layer.
    ///
    /// # Errors
    /// As for [`Stack::read`], or those of `look`.
    pub fn residual(
        &self,
        x: &Tensor,
        hidden: Option<&Tensor>,
        memory: Option<&Memory>,
        look: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        self.reader(memory, false)?.residual(x, hidden, look)
    }

    /// A decoder that will read streams bit by bit, without gradients.
    ///
    /// # Errors
    /// If the memory is of another shape, or the device fails.
    pub fn steps(&self, memory: Option<&Memory>) -> Result<Reader<'_>> {
        self.reader(memory, true)
    }

    fn reader(&self, memory: Option<&Memory>, detached: bool) -> Result<Reader<'_>> {
        let kept = |layer: &Layer| {
            let keys = match (&layer.cross, memory) {
                (Some(cross), Some(memory)) => Some(self.keys(cross, &memory.rows)?),
                _ => None,
            };
            let memory = keys.map(|keys| match detached {
                true => Keys {
                    keys: keys.keys.detach(),
                    values: keys.values.detach(),
                },
                false => keys,
            });
            Ok(Kept { own: None, memory })
        };
        Ok(Reader {
            stack: self,
            layers: self.layers.iter().map(kept).collect::<Result<_>>()?,
            hidden: memory.and_then(|memory| memory.hidden.clone()),
            read: 0,
            detached,
        })
    }

    /// Feed-forward layer, without the residual stream.
    fn feed_forward(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let inputs = self.normalise(&layer.norm, x)?;
        let sums = layer.up.iter().map(|matrix| multiply(&inputs, matrix));
        let sums = sums.collect::<Result<Vec<_>>>()?;
        let hidden = match (self.sizes.activation, sums.as_slice()) {
            (Activation::GatedGelu, [gate, through]) => (gate.gelu()? * through)?,
            (Activation::SquaredRelu, sums) => Tensor::cat(sums, D::Minus1)?.relu()?.sqr()?,
            (_, sums) => Tensor::cat(sums, D::Minus1)?.relu()?,
        };
        multiply(&hidden, &layer.down)
    }

    fn normalise(&self, gain: &Var, x: &Tensor) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + self.sizes.epsilon)?.sqrt()?)?
            .broadcast_mul(gain.as_tensor())
    }

    /// batch x heads x positions x `d_kv`.
    fn project(&self, rows: &Tensor, matrix: &Var) -> Result<Tensor> {
        let (batch, positions, _) = rows.dims3()?;
        multiply(rows, matrix)?
            .reshape((batch, positions, self.sizes.heads, self.sizes.d_kv))?
            .transpose(1, 2)?
            .contiguous()
    }

    fn keys(&self, attention: &Attention, rows: &Tensor) -> Result<Keys> {
        Ok(Keys {
            keys: self.project(rows, &attention.key)?,
            values: self.project(rows, &attention.value)?,
        })
    }

    /// What the queries of `inputs` find among keys.
    fn attend(
        &self,
        attention: &Attention,
        inputs: &Tensor,
        keys: &Keys,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let queries = self.project(inputs, &attention.query)?;
        // T5 does not divide scores by the root of d_kv
        let mut scores = queries.matmul(&keys.keys.t()?)?;
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        let context = softmax(&scores, D::Minus1)?.matmul(&keys.values)?;
        let (batch, positions, _) = inputs.dims3()?;
        let context = context.transpose(1, 2)?.contiguous()?;
        let inner = self.sizes.heads * self.sizes.d_kv;
        multiply(
            &context.reshape((batch, positions, inner))?,
            &attention.output,
        )
    }

    /// The biases of the last `queries` of all `keys` positions, and very low where a decoder would look ahead:
    /// heads x queries x keys.
    fn bias(&self, queries: usize, keys: usize, device: &Device) -> Result<Tensor> {
        let before = (keys - queries) as i64;
        let ahead = |at: usize| (at % keys) as i64 - (at / keys) as i64 - before;
        let (buckets, distance) = (self.sizes.buckets, self.sizes.distance);
        let bucket = |at| exact::bucket(ahead(at), self.bidirectional, buckets, distance) as u32;
        let table: Vec<u32> = (0..queries * keys).map(bucket).collect();
        let bias = self
            .bias
            .index_select(&Tensor::new(table, device)?, 0)?
            .reshape((queries, keys, self.sizes.heads))?
            .permute((2, 0, 1))?;
        if self.bidirectional {
            return bias.contiguous();
        }
        let future = |at| if ahead(at) > 0 { NEVER } else { 0.0 };
        let future: Vec<f32> = (0..queries * keys).map(future).collect();
        bias.broadcast_add(&Tensor::from_vec(future, (queries, keys), device)?)
    }
}

impl Layer {
    fn new<E>(
        stack: &str,
        layer: usize,
        activation: Activation,
        var: &mut dyn FnMut(&str) -> std::result::Result<Var, E>,
    ) -> std::result::Result<Layer, E> {
        let block = |at: usize| format!("{stack}.block.{layer}.layer.{at}");
        let mut of = |at: usize, name: &str| -> std::result::Result<Attention, E> {
            let mut matrix = |matrix: &str| var(&format!("{}.{name}.{matrix}.weight", block(at)));
            Ok(Attention {
                query: matrix("q")?,
                key: matrix("k")?,
                value: matrix("v")?,
                output: matrix("o")?,
                norm: var(&format!("{}.layer_norm.weight", block(at)))?,
            })
        };
        let attention = of(0, SELF)?;
        let cross = (stack == DECODER).then(|| of(1, CROSS)).transpose()?;
        let last = block(attentions(stack).len());
        let mut matrix = |name: &&str| var(&format!("{last}.DenseReluDense.{name}.weight"));
        let names = activation.matrices();
        let up = names[..names.len() - 1].iter().map(&mut matrix);
        Ok(Layer {
            attention,
            cross,
            up: up.collect::<std::result::Result<_, E>>()?,
            down: matrix(&names[names.len() - 1])?,
            norm: var(&format!("{last}.layer_norm.weight"))?,
        })
    }
}

impl Reader<'_> {
    /// Reads the next positions of every stream, batch x positions x `d_model`, and normalises what the last layer
    /// makes of them.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device fails.
    pub fn read(&mut self, x: &Tensor) -> Result<Tensor> {
        let x = self.residual(x, None, &mut |_| Ok(()))?;
        let rows = self.stack.normalise(&self.stack.norm, &x)?;
        Ok(match self.detached {
            true => rows.detach(),
            false => rows,
        })
    }

    fn residual(
        &mut self,
        x: &Tensor,
        hidden: Option<&Tensor>,
        look: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let queries = x.dim(1)?;
        self.read += queries;
        let mut bias = self.stack.bias(queries, self.read, x.device())?;
        if let Some(hidden) = hidden {
            bias = bias.unsqueeze(0)?.broadcast_add(hidden)?;
        }
        let mut x = x.clone();
        look(&x)?;
        for (layer, kept) in self.stack.layers.iter().zip(&mut self.layers) {
            let stack = self.stack;
            let inputs = stack.normalise(&layer.attention.norm, &x)?;
            let keys = stack.keys(&layer.attention, &inputs)?;
            let keys = kept.with(keys, self.detached)?;
            x = (x + stack.attend(&layer.attention, &inputs, &keys, Some(&bias))?)?;
            if let (Some(cross), Some(keys)) = (&layer.cross, &kept.memory) {
                let inputs = stack.normalise(&cross.norm, &x)?;
                x = (x + stack.attend(cross, &inputs, keys, self.hidden.as_ref())?)?;
            }
            let added = stack.feed_forward(layer, &x)?;
            x = (x + added)?;
            look(&x)?;
        }
        Ok(x)
    }
}
