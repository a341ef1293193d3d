//! `model.safetensors`, or its parts and `model.safetensors.index.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::config::read as read_file;
use super::{Config, PublishedError, Result};
use crate::train::t5;

/// All tensors of a checkpoint by their published names.
pub(super) type Tensors = HashMap<String, Tensor>;

pub(super) const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

pub(super) const EMBEDDING: &str = "shared.weight";
pub(super) const HEAD: &str = "lm_head.weight";
/// Where some checkpoints keep the embedding instead.
const EMBEDDINGS: [&str; 3] = [
    EMBEDDING,
    "decoder.embed_tokens.weight",
    "encoder.embed_tokens.weight",
];

/// Every tensor that a T5 of this shape has, but its embedding, with its shape.
fn expected(config: &Config) -> Vec<(String, Vec<usize>)> {
    let mut all = Vec::new();
    if !config.tied {
        all.push((HEAD.into(), vec![config.vocab_size, config.d_model]));
    }
    let sizes = config.sizes();
    all.extend(t5::tensors(t5::ENCODER, config.num_layers, &sizes));
    all.extend(t5::tensors(t5::DECODER, config.num_decoder_layers, &sizes));
    all
}

/// The files of a checkpoint that hold tensors, and which holds which.
struct Files {
    contents: BTreeMap<String, Vec<u8>>,
    /// By tensor; empty if there is one file only.
    index: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

fn wrong(file: &str, what: impl ToString) -> PublishedError {
    PublishedError::File {
        file: file.into(),
        what: what.to_string(),
    }
}

impl Files {
    fn read(dir: &Path) -> Result<Files> {
        let mut contents = BTreeMap::new();
        if dir.join(WHOLE).exists() || !dir.join(INDEX).exists() {
            contents.insert(WHOLE.into(), read_file(dir, WHOLE)?);
            let index = HashMap::new();
            return Ok(Files { contents, index });
        }
        let index: Index =
            serde_json::from_slice(&read_file(dir, INDEX)?).map_err(|error| wrong(INDEX, error))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        for name in &names {
            let mut parts = Path::new(name).components();
            let first_two = (parts.next(), parts.next());
            if !matches!(first_two, (Some(Component::Normal(_)), None)) {
                return Err(wrong(INDEX, format!("{name:?} is not the name of a file")));
            }
        }
        for name in names {
            contents.insert(name.clone(), read_file(dir, name)?);
        }
        Ok(Files {
            contents,
            index: index.weight_map,
        })
    }

    /// The file that holds, or should hold, a tensor.
    fn holder(&self, tensor: &str) -> Option<&str> {
        match self.index.is_empty() {
            true => Some(WHOLE),
            false => self.index.get(tensor).map(String::as_str),
        }
    }
}

/// The files of a checkpoint, their headers read.
struct Views<'a> {
    files: &'a Files,
    parsed: HashMap<&'a str, SafeTensors<'a>>,
}

impl<'a> Views<'a> {
    fn new(files: &'a Files) -> Result<Views<'a>> {
        let mut parsed = HashMap::new();
        for (name, bytes) in &files.contents {
            let tensors = SafeTensors::deserialize(bytes).map_err(|error| {
                wrong(
                    name,
                    format!("truncated or damaged, copy it again: {error}"),
                )
            })?;
            parsed.insert(name.as_str(), tensors);
        }
        Ok(Views { files, parsed })
    }

    fn get(&self, tensor: &str) -> Option<(&'a str, TensorView<'_>)> {
        let holder = self.files.holder(tensor)?;
        let (name, tensors) = self.parsed.get_key_value(holder)?;
        Some((name, tensors.tensor(tensor).ok()?))
    }

    /// The tensor, if it has this shape and holds floats.
    fn checked(&self, tensor: &str, shape: &[usize]) -> Result<(&'a str, TensorView<'_>)> {
        let fail = |file: &str, what: String| PublishedError::Tensor {
            file: file.into(),
            tensor: tensor.into(),
            what,
        };
        let Some((file, view)) = self.get(tensor) else {
            let file = self.files.holder(tensor).unwrap_or(INDEX);
            return Err(fail(file, "missing".into()));
        };
        if view.shape() != shape {
            let what = format!(
                "has the shape {:?}, {} asks for {shape:?}",
                view.shape(),
                super::config::CONFIG
            );
            return Err(fail(file, what));
        }
        match view.dtype() {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok((file, view)),
            other => Err(fail(file, format!("is of type {other:?}, not floats"))),
        }
    }
}

/// Reads all tensors of a checkpoint, those of half precision into single. Tensors that a T5 does not use
/// are left alone: some checkpoints have them.
pub(super) fn read(dir: &Path, config: &Config, device: &Device) -> Result<Tensors> {
    let files = Files::read(dir)?;
    let views = Views::new(&files)?;
    let embedding = EMBEDDINGS
        .into_iter()
        .find(|name| views.get(name).is_some())
        .unwrap_or(EMBEDDING);
    let shape = vec![config.vocab_size, config.d_model];
    let mut found = vec![(EMBEDDING.to_owned(), views.checked(embedding, &shape)?)];
    for (name, shape) in expected(config) {
        let view = views.checked(&name, &shape)?;
        found.push((name, view));
    }
    let mut tensors = Tensors::with_capacity(found.len());
    for (name, (file, view)) in found {
        let tensor = view.load(device)?.to_dtype(DType::F32)?;
        if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(PublishedError::Tensor {
                file: file.into(),
                tensor: name,
                what: "holds values that are not finite".into(),
            });
        }
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}
