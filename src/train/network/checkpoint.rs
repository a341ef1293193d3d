//! A training run on disk: everything that is needed to go on as if it had never stopped.
//!
//! One safetensors file: the parameters and what the optimisers remember as tensors, the rest as JSON in
//! its metadata. It is written beside its place, synced and renamed, so a crash leaves the old or the new one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::NetworkError;
use super::data::Position;
use super::recipe::Recipe;

const VERSION: u32 = 2;
/// Names in the metadata: the JSON, and the hash of it and of all tensors.
const STATE: &str = "s2sfs";
const HASH: &str = "hash";

/// All of a run but its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    pub recipe: Recipe,
    /// The tokenizer in the JSON of its library.
    pub tokenizer: String,
    /// Hash of the training data.
    pub data: String,
    pub position: Position,
    pub step: u64,
    pub tokens: u64,
    /// Seconds of training until now.
    pub seconds: f64,
    /// Networks of which the checkpoint has the mean.
    #[serde(default)]
    pub averaged: u32,
}

impl State {
    /// The state of a run that has not begun.
    pub fn new(recipe: Recipe, tokenizer: String, data: String, position: Position) -> State {
        State {
            version: VERSION,
            recipe,
            tokenizer,
            data,
            position,
            step: 0,
            tokens: 0,
            seconds: 0.0,
            averaged: 0,
        }
    }
}

/// The state of a kind of run, in the versions of its checkpoints.
pub trait Versioned: Serialize + DeserializeOwned {
    /// The one that this program reads.
    const VERSION: u32;

    fn version(&self) -> u32;
}

impl Versioned for State {
    const VERSION: u32 = VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

/// Hash of the state and of tensors in the order of their names.
fn hash_of<'a>(json: &'a str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in std::iter::once((STATE, json.as_bytes())).chain(tensors) {
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

/// Writes a file so that there is the old or the whole new one, whatever happens.
///
/// # Errors
/// If the disk refuses.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), NetworkError> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)?;
        match path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            Some(parent) => File::open(parent)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    };
    write().map_err(|source| {
        // what is left of a full disk's file is of no use
        let _ = std::fs::remove_file(&partial);
        NetworkError::File {
            path: path.display().to_string(),
            source,
        }
    })
}

/// Writes a checkpoint.
///
/// # Errors
/// If a tensor cannot be read from its device, or the disk refuses.
pub fn save<S: Versioned>(
    path: &Path,
    state: &S,
    tensors: &[(String, Tensor)],
) -> Result<(), NetworkError> {
    let json = serde_json::to_string(state).map_err(|e| NetworkError::Checkpoint {
        path: path.display().to_string(),
        what: e.to_string(),
    })?;
    save_tensors(path, json, tensors)
}

/// Writes tensors with what is said about them, and a hash of all.
///
/// # Errors
/// If a tensor cannot be read from its device, or the disk refuses.
pub(crate) fn save_tensors(
    path: &Path,
    json: String,
    tensors: &[(String, Tensor)],
) -> Result<(), NetworkError> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        data.push((name.as_str(), tensor.dims().to_vec(), bytes));
    }
    data.sort();
    let named = data
        .iter()
        .map(|(name, _, bytes)| (*name, bytes.as_slice()));
    let hash = hash_of(&json, named);
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        view.map(|view| (*name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let metadata = HashMap::from([(STATE.to_string(), json), (HASH.to_string(), hash)]);
    let bytes = views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|e| NetworkError::Checkpoint {
            path: path.display().to_string(),
            what: e.to_string(),
        })?;
    write_whole(path, &bytes)
}

/// A checkpoint that was read: its state, and its tensors by name.
#[derive(Debug)]
pub struct Checkpoint<S = State> {
    path: PathBuf,
    pub state: S,
    tensors: HashMap<String, Tensor>,
}

impl<S: Versioned> Checkpoint<S> {
    /// Reads a checkpoint.
    ///
    /// # Errors
    /// If there is none, it is damaged, or of another version.
    pub fn read(path: &Path, device: &Device) -> Result<Checkpoint<S>, NetworkError> {
        let bytes = std::fs::read(path).map_err(|source| NetworkError::File {
            path: path.display().to_string(),
            source,
        })?;
        let (state, tensors) = parse(&bytes, device).map_err(|what| NetworkError::Checkpoint {
            path: path.display().to_string(),
            what,
        })?;
        Ok(Checkpoint {
            path: path.to_owned(),
            state,
            tensors,
        })
    }

    /// Takes the tensor of this name, which must have the shape of `like`.
    ///
    /// # Errors
    /// If there is none.
    pub fn take(&mut self, name: &str, like: &Tensor) -> Result<Tensor, NetworkError> {
        match self.tensors.remove(name) {
            Some(tensor) if tensor.shape() == like.shape() => Ok(tensor),
            Some(tensor) => Err(self.refuse(format!(
                "{name} has the shape {:?} instead of {:?}",
                tensor.dims(),
                like.dims()
            ))),
            None => Err(self.refuse(format!("{name} is missing"))),
        }
    }

    /// An error about this checkpoint.
    pub fn refuse(&self, what: String) -> NetworkError {
        NetworkError::Checkpoint {
            path: self.path.display().to_string(),
            what,
        }
    }
}

fn damaged(what: &dyn std::fmt::Display) -> String {
    format!("the checkpoint is damaged: {what}")
}

/// The state and the tensors in a file.
fn parse<S: Versioned>(
    bytes: &[u8],
    device: &Device,
) -> Result<(S, HashMap<String, Tensor>), String> {
    let (json, tensors) = parse_tensors(bytes, device)?;
    let state: S = serde_json::from_str(&json).map_err(|e| damaged(&e))?;
    if state.version() != S::VERSION {
        return Err(format!(
            "the checkpoint has version {}, this program reads {}",
            state.version(),
            S::VERSION
        ));
    }
    Ok((state, tensors))
}

/// What [`save_tensors`] wrote; says what is wrong otherwise.
pub(crate) fn parse_tensors(
    bytes: &[u8],
    device: &Device,
) -> Result<(String, HashMap<String, Tensor>), String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
    let metadata = header.metadata().as_ref();
    let entry = |name| metadata.and_then(|metadata| metadata.get(name));
    let json = entry(STATE).ok_or("no checkpoint of s2sfs")?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
    let mut views = file.tensors();
    views.sort_by(|a, b| a.0.cmp(&b.0));
    let named = views
        .iter()
        .map(|(name, view)| (name.as_str(), view.data()));
    if entry(HASH) != Some(&hash_of(json, named)) {
        return Err(damaged(&"its contents do not match their hash"));
    }
    let mut tensors = HashMap::new();
    for (name, view) in views {
        if view.dtype() != Dtype::F32 {
            return Err(damaged(&format!("{name} is of type {:?}", view.dtype())));
        }
        let words = view.data().as_chunks::<4>().0;
        let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        let tensor = Tensor::from_vec(values, view.shape(), device).map_err(|e| damaged(&e))?;
        tensors.insert(name, tensor);
    }
    Ok((json.clone(), tensors))
}
