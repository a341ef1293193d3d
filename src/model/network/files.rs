//! Networks as files: `config.json` and `model.safetensors`. docs/format.md lists the tensors.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::Network;
use super::config::Config;
use super::weights::{Attention, Embedding, Layer, Linear, Weights};
use crate::model::ModelError;

/// The values of one tensor.
#[derive(Debug)]
pub enum Values<'a> {
    Bytes(&'a mut Vec<i8>),
    Numbers(&'a mut Vec<i32>),
}

type Visit<'a> = &'a mut dyn FnMut(String, Vec<usize>, Values) -> Result<(), ModelError>;

impl Weights {
    /// Weights with all shapes of `config` and no values yet.
    pub fn shaped(config: &Config) -> Weights {
        let (d, inner, ff) = (config.d_model, config.inner(), config.d_ff);
        let linear = |rows, columns| Linear {
            rows,
            columns,
            ..Linear::default()
        };
        let embedding = |rows| Embedding {
            rows,
            columns: d,
            ..Embedding::default()
        };
        let attention = || Attention {
            query: linear(inner, d),
            key: linear(inner, d),
            value: linear(inner, d),
            output: linear(d, inner),
            ..Attention::default()
        };
        let layer = |cross: bool| Layer {
            attention: attention(),
            cross: cross.then(attention),
            up: linear(ff, d),
            down: linear(d, ff),
            ..Layer::default()
        };
        let has_encoder = config.max_latents > 0;
        let tables = config
            .ngrams
            .iter()
            .flat_map(|n| n.lengths.iter().map(|_| n.slots));
        Weights {
            tokens: embedding(config.vocab_size + 1),
            ngrams: tables.map(embedding).collect(),
            latents: has_encoder.then(|| embedding(config.latent_vocab)),
            encoder: (0..config.num_layers).map(|_| layer(false)).collect(),
            decoder: (0..config.num_decoder_layers)
                .map(|_| layer(has_encoder))
                .collect(),
            class_head: linear(config.classes.len(), d),
            token_head: linear(config.vocab_size, d),
            ..Weights::default()
        }
    }

    /// Shows every tensor with its name and the shape that `config` gives it.
    ///
    /// # Errors
    /// Those of `visit`.
    pub fn visit(&mut self, config: &Config, visit: Visit) -> Result<(), ModelError> {
        let d = config.d_model;
        visit_embedding("tokens", &mut self.tokens, visit)?;
        for (index, table) in self.ngrams.iter_mut().enumerate() {
            visit_embedding(&format!("ngrams.{index}"), table, visit)?;
        }
        if let Some(latents) = &mut self.latents {
            visit_embedding("latents", latents, visit)?;
            visit(
                "encoder.norm".into(),
                vec![d],
                Values::Numbers(&mut self.encoder_norm),
            )?;
        }
        for (index, layer) in self.encoder.iter_mut().enumerate() {
            visit_layer(&format!("encoder.{index}"), layer, config, visit)?;
        }
        for (index, layer) in self.decoder.iter_mut().enumerate() {
            visit_layer(&format!("decoder.{index}"), layer, config, visit)?;
        }
        visit(
            "decoder.norm".into(),
            vec![d],
            Values::Numbers(&mut self.decoder_norm),
        )?;
        for (name, head, bias) in [
            ("class_head", &mut self.class_head, &mut self.class_bias),
            ("token_head", &mut self.token_head, &mut self.token_bias),
        ] {
            let rows = head.rows;
            visit_linear(name, head, visit)?;
            visit(format!("{name}.bias"), vec![rows], Values::Numbers(bias))?;
        }
        Ok(())
    }
}

fn visit_linear(name: &str, linear: &mut Linear, visit: Visit) -> Result<(), ModelError> {
    let (rows, columns) = (linear.rows, linear.columns);
    let weight = Values::Bytes(&mut linear.weight);
    visit(format!("{name}.weight"), vec![rows, columns], weight)?;
    visit(
        format!("{name}.scale"),
        vec![rows],
        Values::Numbers(&mut linear.scale),
    )
}

fn visit_embedding(name: &str, embedding: &mut Embedding, visit: Visit) -> Result<(), ModelError> {
    let shape = vec![embedding.rows, embedding.columns];
    visit(
        format!("{name}.weight"),
        shape,
        Values::Bytes(&mut embedding.weight),
    )?;
    let mut scale = vec![embedding.scale];
    visit(
        format!("{name}.scale"),
        vec![1],
        Values::Numbers(&mut scale),
    )?;
    embedding.scale = scale.first().copied().unwrap_or(-1);
    Ok(())
}

fn visit_attention(
    name: &str,
    attention: &mut Attention,
    config: &Config,
    buckets: usize,
    visit: Visit,
) -> Result<(), ModelError> {
    let heads = config.num_heads;
    visit(
        format!("{name}.norm"),
        vec![config.d_model],
        Values::Numbers(&mut attention.norm),
    )?;
    visit_linear(&format!("{name}.query"), &mut attention.query, visit)?;
    visit_linear(&format!("{name}.key"), &mut attention.key, visit)?;
    visit_linear(&format!("{name}.value"), &mut attention.value, visit)?;
    visit_linear(&format!("{name}.output"), &mut attention.output, visit)?;
    visit(
        format!("{name}.score"),
        vec![heads],
        Values::Numbers(&mut attention.score),
    )?;
    visit(
        format!("{name}.gain"),
        vec![heads],
        Values::Numbers(&mut attention.gain),
    )?;
    match buckets {
        0 => Ok(()),
        _ => visit(
            format!("{name}.bias"),
            vec![heads, buckets],
            Values::Numbers(&mut attention.bias),
        ),
    }
}

fn visit_layer(
    name: &str,
    layer: &mut Layer,
    config: &Config,
    visit: Visit,
) -> Result<(), ModelError> {
    let buckets = config.relative_attention_num_buckets;
    let attention = format!("{name}.attention");
    visit_attention(&attention, &mut layer.attention, config, buckets, visit)?;
    if let Some(cross) = &mut layer.cross {
        visit_attention(&format!("{name}.cross"), cross, config, 0, visit)?;
    }
    let width = vec![config.d_model];
    visit(
        format!("{name}.norm"),
        width,
        Values::Numbers(&mut layer.norm),
    )?;
    visit_linear(&format!("{name}.up"), &mut layer.up, visit)?;
    visit_linear(&format!("{name}.down"), &mut layer.down, visit)
}

fn damaged(what: impl std::fmt::Display) -> ModelError {
    ModelError::Damaged(format!("network: {what}"))
}

impl Network {
    /// Reads a network from the bytes of `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous, of another shape or type, or has values out of bounds.
    pub fn from_bytes(config: &[u8], tensors: &[u8]) -> Result<Network, ModelError> {
        let config: Config = serde_json::from_slice(config).map_err(damaged)?;
        config.check()?;
        let tensors = SafeTensors::deserialize(tensors).map_err(damaged)?;
        let mut weights = Weights::shaped(&config);
        let mut found = 0;
        weights.visit(&config, &mut |name, shape, values| {
            let tensor = tensors.tensor(&name).map_err(damaged)?;
            if tensor.shape() != shape {
                return Err(damaged(format!(
                    "{name} has the shape {:?} instead of {shape:?}",
                    tensor.shape()
                )));
            }
            found += 1;
            match (values, tensor.dtype()) {
                (Values::Bytes(values), Dtype::I8) => {
                    values.extend(tensor.data().iter().map(|&b| b as i8));
                }
                (Values::Numbers(values), Dtype::I32) => {
                    values.clear();
                    let words = tensor.data().as_chunks::<4>().0;
                    values.extend(words.iter().map(|&b| i32::from_le_bytes(b)));
                }
                (_, other) => return Err(damaged(format!("{name} is of type {other:?}"))),
            }
            Ok(())
        })?;
        if found != tensors.len() {
            return Err(damaged(format!(
                "{} tensors, of which only {found} belong to a network of this shape",
                tensors.len()
            )));
        }
        Network::new(config, weights)
    }

    /// The bytes of `config.json` and of `model.safetensors`.
    ///
    /// # Errors
    /// If the library refuses, which it has no reason to.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, Vec<u8>), ModelError> {
        let config = serde_json::to_vec_pretty(self.config()).map_err(damaged)?;
        let mut copies: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        self.weights()
            .clone()
            .visit(self.config(), &mut |name, shape, values| {
                let (dtype, bytes) = match values {
                    Values::Bytes(values) => (Dtype::I8, values.iter().map(|&v| v as u8).collect()),
                    Values::Numbers(values) => {
                        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                        (Dtype::I32, bytes)
                    }
                };
                copies.push((name, dtype, shape, bytes));
                Ok(())
            })?;
        let views = copies
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(damaged)?;
        let tensors = safetensors::serialize(views, None).map_err(damaged)?;
        Ok((config, tensors))
    }
}
