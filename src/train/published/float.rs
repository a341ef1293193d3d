//! The T5 architecture in floats, with parameters that can be trained: the model of the paper (Raffel et al.
//! 2020, section 2.1; GLU variants by Shazeer 2020), teacher-forced. No dropout.
//!
//! Unlike the network of [`crate::train::network`], which has the roundings of the exact engines, it is what
//! published weights were made for.

use candle_core::{D, Device, Result as CandleResult, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ops::softmax;

use super::tensors::{EMBEDDING, HEAD, bias_name, feed_forward_names};
use super::{Activation, Checkpoint, Config, PublishedError, Result};
use crate::model::network::exact;
use crate::train::network::float::Parameter;

/// Very low, but not so low that differences are lost.
const NEVER: f32 = -1e9;

/// One attention: of a stack to itself, or of the decoder to the memory.
#[derive(Debug)]
pub struct Attention {
    pub norm: Var,
    /// Queries, keys and values: inner x `d_model`.
    pub query: Var,
    pub key: Var,
    pub value: Var,
    /// `d_model` x inner.
    pub output: Var,
}

/// One layer of a stack.
#[derive(Debug)]
pub struct Layer {
    pub attention: Attention,
    /// The decoder's attention to the memory.
    pub cross: Option<Attention>,
    pub norm: Var,
    /// What reads the residual stream, `d_ff` x `d_model`: one matrix, or the gate and what it lets through.
    pub up: Vec<Var>,
    /// `d_model` x `d_ff`.
    pub down: Var,
}

/// The encoder or the decoder.
#[derive(Debug)]
pub struct Stack {
    pub layers: Vec<Layer>,
    /// Relative position biases, shared by all layers: buckets x heads.
    pub bias: Var,
    pub norm: Var,
    bidirectional: bool,
}

/// A whole T5.
#[derive(Debug)]
pub struct FloatT5 {
    config: Config,
    /// Vocabulary x `d_model`, shared by encoder and decoder.
    pub tokens: Var,
    /// Vocabulary x `d_model`; absent where it is the embedding.
    pub head: Option<Var>,
    pub encoder: Stack,
    pub decoder: Stack,
}

/// What all layers of a stack share.
struct Shared<'a> {
    /// heads x queries x keys.
    bias: Tensor,
    memory: Option<&'a Tensor>,
}

/// Copies tensors of a checkpoint into parameters.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
}

impl Loader<'_> {
    fn var(&self, name: &str) -> Result<Var> {
        Ok(Var::from_tensor(self.checkpoint.tensor(name)?)?)
    }

    fn attention(&self, block: &str, name: &str) -> Result<Attention> {
        let matrix = |matrix: &str| self.var(&format!("{block}.{name}.{matrix}.weight"));
        Ok(Attention {
            norm: self.var(&format!("{block}.layer_norm.weight"))?,
            query: matrix("q")?,
            key: matrix("k")?,
            value: matrix("v")?,
            output: matrix("o")?,
        })
    }

    fn layer(&self, stack: &str, layer: usize) -> Result<Layer> {
        let block = |at: usize| format!("{stack}.block.{layer}.layer.{at}");
        let decoder = stack == "decoder";
        let last = block(if decoder { 2 } else { 1 });
        let names = feed_forward_names(self.checkpoint.config.activation);
        let mut matrices = names
            .iter()
            .map(|name| self.var(&format!("{last}.DenseReluDense.{name}.weight")))
            .collect::<Result<Vec<_>>>()?;
        let down = matrices
            .pop()
            .ok_or_else(|| PublishedError::Input("a feed-forward layer without matrices".into()))?;
        let cross = decoder.then(|| self.attention(&block(1), "EncDecAttention"));
        Ok(Layer {
            attention: self.attention(&block(0), "SelfAttention")?,
            cross: cross.transpose()?,
            norm: self.var(&format!("{last}.layer_norm.weight"))?,
            up: matrices,
            down,
        })
    }

    fn stack(&self, stack: &str, layers: usize) -> Result<Stack> {
        let layers = (0..layers).map(|layer| self.layer(stack, layer));
        Ok(Stack {
            layers: layers.collect::<Result<_>>()?,
            bias: self.var(&bias_name(stack))?,
            norm: self.var(&format!("{stack}.final_layer_norm.weight"))?,
            bidirectional: stack == "encoder",
        })
    }
}

/// Collects parameters under their published names.
#[derive(Default)]
struct Collector {
    all: Vec<Parameter>,
}

impl Collector {
    fn add(&mut self, name: String, var: &Var, is_matrix: bool) {
        self.all.push(Parameter {
            is_embedding: name == EMBEDDING,
            name,
            var: var.clone(),
            is_matrix,
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
        self.attention(&format!("{block}.0"), "SelfAttention", &layer.attention);
        let mut last = 1;
        if let Some(cross) = &layer.cross {
            self.attention(&format!("{block}.1"), "EncDecAttention", cross);
            last = 2;
        }
        let block = format!("{block}.{last}");
        self.add(format!("{block}.layer_norm.weight"), &layer.norm, false);
        let matrices = layer.up.iter().chain([&layer.down]);
        for (name, var) in feed_forward_names(activation).iter().zip(matrices) {
            self.add(format!("{block}.DenseReluDense.{name}.weight"), var, true);
        }
    }
}

/// Rows times the transposed matrix, whatever shape the rows come in.
fn multiply(inputs: &Tensor, matrix: &Var) -> CandleResult<Tensor> {
    let mut shape = inputs.dims().to_vec();
    let columns = shape.pop().unwrap_or(1);
    let rows = inputs.reshape(((), columns))?.matmul(&matrix.t()?)?;
    shape.push(matrix.dim(0)?);
    rows.reshape(shape)
}

impl FloatT5 {
    /// A model that starts from a checkpoint, whose tensors it copies.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(checkpoint: &Checkpoint) -> Result<FloatT5> {
        let loader = Loader { checkpoint };
        let config = checkpoint.config.clone();
        let head = (!config.tied).then(|| checkpoint.head());
        let head = head.transpose()?.map(Var::from_tensor).transpose()?;
        Ok(FloatT5 {
            tokens: Var::from_tensor(checkpoint.embedding()?)?,
            head,
            encoder: loader.stack("encoder", config.num_layers)?,
            decoder: loader.stack("decoder", config.num_decoder_layers)?,
            config,
        })
    }

    /// All parameters under their published names, for [`crate::train::network::optimiser::Optimiser`].
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut collector = Collector::default();
        collector.add(EMBEDDING.into(), &self.tokens, false);
        if let Some(head) = &self.head {
            collector.add(HEAD.into(), head, false);
        }
        for (name, stack) in [("encoder", &self.encoder), ("decoder", &self.decoder)] {
            collector.add(bias_name(name), &stack.bias, false);
            collector.add(
                format!("{name}.final_layer_norm.weight"),
                &stack.norm,
                false,
            );
            for (index, layer) in stack.layers.iter().enumerate() {
                let block = format!("{name}.block.{index}.layer");
                collector.layer(&block, layer, self.config.activation);
            }
        }
        collector.all
    }

    /// What the encoder makes of inputs that all have `positions` pieces: batch x pieces x `d_model`.
    ///
    /// # Errors
    /// If a piece is not of the vocabulary, there are none, or the device fails.
    pub fn encode(&self, inputs: &[u32], positions: usize) -> Result<Tensor> {
        self.run(&self.encoder, inputs, positions, None)
    }

    /// Logits behind every piece of streams that all have `positions` pieces, the start among them: batch x
    /// pieces x vocabulary. `memory` is what the encoder made of each stream's input.
    ///
    /// # Errors
    /// As for [`FloatT5::encode`], or if the memory is of another batch.
    pub fn logits(&self, memory: &Tensor, pieces: &[u32], positions: usize) -> Result<Tensor> {
        let hidden = self.run(&self.decoder, pieces, positions, Some(memory))?;
        let logits = match &self.head {
            Some(head) => multiply(&hidden, head)?,
            None => {
                let scale = 1.0 / (self.config.d_model as f64).sqrt();
                multiply(&(hidden * scale)?, &self.tokens)?
            }
        };
        Ok(logits)
    }

    /// Mean cost in nats of the pieces of chunks that all have `positions` pieces; the decoder starts each
    /// from the start piece.
    ///
    /// # Errors
    /// As for [`FloatT5::logits`].
    pub fn loss(&self, memory: &Tensor, chunks: &[u32], positions: usize) -> Result<Tensor> {
        let inputs: Vec<u32> = (0..chunks.len())
            .map(|at| match at % positions {
                0 => self.config.start,
                _ => chunks[at - 1],
            })
            .collect();
        let logits = self.logits(memory, &inputs, positions)?;
        let targets = Tensor::new(chunks, logits.device())?;
        Ok(cross_entropy(&logits.flatten_to(1)?, &targets)?)
    }

    /// The largest value of the decoder's residual stream, up or down, when it reads one stream of pieces and
    /// no memory.
    ///
    /// # Errors
    /// As for [`FloatT5::encode`].
    pub fn peak(&self, pieces: &[u32]) -> Result<f32> {
        let mut most = 0f32;
        self.residual(&self.decoder, pieces, pieces.len(), None, &mut |x| {
            most = most.max(x.abs()?.max_all()?.to_scalar::<f32>()?);
            Ok(())
        })?;
        Ok(most)
    }

    fn run(
        &self,
        stack: &Stack,
        pieces: &[u32],
        positions: usize,
        memory: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x = self.residual(stack, pieces, positions, memory, &mut |_| Ok(()))?;
        Ok(self.normalise(&stack.norm, &x)?)
    }

    /// The residual stream behind the last layer; shows it to `look` before and behind every layer.
    fn residual(
        &self,
        stack: &Stack,
        pieces: &[u32],
        positions: usize,
        memory: Option<&Tensor>,
        look: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        if positions == 0 || pieces.is_empty() || !pieces.len().is_multiple_of(positions) {
            return Err(PublishedError::Input("streams of different lengths".into()));
        }
        if pieces
            .iter()
            .any(|&id| id as usize >= self.config.vocab_size)
        {
            return Err(PublishedError::Input(
                "a piece outside the vocabulary".into(),
            ));
        }
        let device = self.tokens.device();
        let bias = self.bias(stack, positions, device)?;
        let shared = Shared { bias, memory };
        let ids = Tensor::new(pieces, device)?;
        let x = self.tokens.index_select(&ids, 0)?;
        let mut x = x.reshape(((), positions, self.config.d_model))?;
        look(&x)?;
        for layer in &stack.layers {
            x = self.layer(layer, &x, &shared)?;
            look(&x)?;
        }
        Ok(x)
    }

    fn layer(&self, layer: &Layer, x: &Tensor, shared: &Shared) -> CandleResult<Tensor> {
        let inputs = self.normalise(&layer.attention.norm, x)?;
        let mut x = (x + self.attend(&layer.attention, &inputs, &inputs, Some(&shared.bias))?)?;
        if let (Some(cross), Some(memory)) = (&layer.cross, shared.memory) {
            let inputs = self.normalise(&cross.norm, &x)?;
            x = (x + self.attend(cross, &inputs, memory, None)?)?;
        }
        let inputs = self.normalise(&layer.norm, &x)?;
        let sums = layer
            .up
            .iter()
            .map(|matrix| multiply(&inputs, matrix))
            .collect::<CandleResult<Vec<_>>>()?;
        let hidden = match (self.config.activation, sums.as_slice()) {
            (Activation::GatedGelu, [gate, through]) => (gate.gelu()? * through)?,
            (_, sums) => Tensor::cat(sums, D::Minus1)?.relu()?,
        };
        x + multiply(&hidden, &layer.down)?
    }

    fn normalise(&self, gain: &Var, x: &Tensor) -> CandleResult<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + self.config.epsilon)?.sqrt()?)?
            .broadcast_mul(gain.as_tensor())
    }

    /// What the queries of `inputs` find among the keys of `others`.
    fn attend(
        &self,
        attention: &Attention,
        inputs: &Tensor,
        others: &Tensor,
        bias: Option<&Tensor>,
    ) -> CandleResult<Tensor> {
        let (heads, d_kv) = (self.config.num_heads, self.config.d_kv);
        let project = |rows: &Tensor, matrix: &Var| -> CandleResult<Tensor> {
            let (batch, positions, _) = rows.dims3()?;
            multiply(rows, matrix)?
                .reshape((batch, positions, heads, d_kv))?
                .transpose(1, 2)?
                .contiguous()
        };
        let queries = project(inputs, &attention.query)?;
        let keys = project(others, &attention.key)?;
        let values = project(others, &attention.value)?;
        // T5 does not divide scores by the root of d_kv
        let mut scores = queries.matmul(&keys.t()?)?;
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        let context = softmax(&scores, D::Minus1)?.matmul(&values)?;
        let (batch, positions, _) = inputs.dims3()?;
        let context = context.transpose(1, 2)?.contiguous()?;
        multiply(
            &context.reshape((batch, positions, heads * d_kv))?,
            &attention.output,
        )
    }

    /// The biases of all pairs of positions, and very low where a decoder would look ahead.
    fn bias(&self, stack: &Stack, positions: usize, device: &Device) -> CandleResult<Tensor> {
        let (buckets, distance) = (
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        );
        let n = positions as i64;
        let ahead = || (0..n * n).map(|at| at % n - at / n);
        let table: Vec<u32> = ahead()
            .map(|ahead| exact::bucket(ahead, stack.bidirectional, buckets, distance) as u32)
            .collect();
        let bias = stack
            .bias
            .index_select(&Tensor::new(table, device)?, 0)?
            .reshape((positions, positions, self.config.num_heads))?
            .permute((2, 0, 1))?;
        if stack.bidirectional {
            return bias.contiguous();
        }
        let future: Vec<f32> = ahead()
            .map(|ahead| if ahead > 0 { NEVER } else { 0.0 })
            .collect();
        bias.broadcast_add(&Tensor::from_vec(future, (positions, positions), device)?)
    }
}
