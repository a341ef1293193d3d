//! The models that payloads name, loaded when they are first needed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;

use crate::model::{Model, ModelError, ModelHash, base_of, hash_of, hex};

use super::{CodecError, Result};

/// A model that every program carries.
struct Embedded {
    name: &'static str,
    file: &'static [u8],
    hash: LazyLock<ShortHash>,
    /// The model that codes what it makes enough smaller, instead of the base.
    slower: Option<&'static str>,
}

/// The first one encodes if nothing else is said.
static EMBEDDED: [Embedded; 5] = [
    Embedded {
        name: "default",
        file: LEAN,
        hash: LazyLock::new(|| short(&hash_of(LEAN))),
        slower: Some("thorough"),
    },
    Embedded {
        name: "thorough",
        file: THOROUGH,
        hash: LazyLock::new(|| short(&hash_of(THOROUGH))),
        slower: None,
    },
    Embedded {
        name: "full",
        file: FULL,
        hash: LazyLock::new(|| short(&hash_of(FULL))),
        slower: None,
    },
    Embedded {
        name: "plain",
        file: PLAIN,
        hash: LazyLock::new(|| short(&hash_of(PLAIN))),
        slower: None,
    },
    Embedded {
        name: "net-small",
        file: NET_SMALL,
        hash: LazyLock::new(|| short(&hash_of(NET_SMALL))),
        slower: None,
    },
];
static LEAN: &[u8] = include_bytes!("../../models/default.s2m");
static THOROUGH: &[u8] = include_bytes!("../../models/thorough.s2m");
/// The base of the two above.
static FULL: &[u8] = include_bytes!("../../models/full.s2m");
/// The base of `net-small`.
static PLAIN: &[u8] = include_bytes!("../../models/plain.s2m");
static NET_SMALL: &[u8] = include_bytes!("../../models/net-small.s2m");

/// Reads a model file by the name that [`file_name`] gives it; None if there is no such file.
pub type ModelSource = Box<dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync>;

/// How a payload names a model: the first half of its hash.
pub(super) type ShortHash = [u8; 8];

pub(super) fn short(hash: &ModelHash) -> ShortHash {
    let mut short = ShortHash::default();
    short.copy_from_slice(&hash[..8]);
    short
}

/// The name of a model's file in a store.
pub fn file_name(short: &[u8; 8]) -> String {
    format!("{}.s2m", hex(short))
}

/// The inverse of [`file_name`].
pub(super) fn parse_name(name: &str) -> Option<ShortHash> {
    let stem = name.strip_suffix(".s2m")?;
    let mut short = ShortHash::default();
    if stem.len() != 2 * short.len() || !stem.is_ascii() {
        return None;
    }
    for (byte, digits) in short.iter_mut().zip(stem.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    (file_name(&short) == name).then_some(short)
}

/// A model that is being loaded, was loaded, or cannot be for want of a file: its own or that of its base.
type Slot = Arc<OnceLock<std::result::Result<Arc<Model>, ShortHash>>>;

/// Loaded models and where to find more.
#[derive(Default)]
pub(super) struct Registry {
    loaded: Mutex<HashMap<ShortHash, Slot>>,
    source: OnceLock<ModelSource>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

/// The names of the embedded models.
pub(super) fn embedded_names() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|model| model.name)
}

/// The embedded model of this name.
pub(super) fn embedded_named(name: &str) -> Option<ShortHash> {
    let model = EMBEDDED.iter().find(|model| model.name == name);
    model.map(|model| *model.hash)
}

/// The file of the embedded model with this hash.
pub(super) fn embedded_file(hash: &ShortHash) -> Option<&'static [u8]> {
    let model = EMBEDDED.iter().find(|model| *model.hash == *hash);
    model.map(|model| model.file)
}

/// The embedded model that is slower than the one with this hash, and codes what it makes enough smaller.
pub(super) fn slower_than(hash: &ShortHash) -> Option<ShortHash> {
    let model = EMBEDDED.iter().find(|model| *model.hash == *hash)?;
    embedded_named(model.slower?)
}

impl Registry {
    /// Where to look for models that the program does not carry. Only the first call counts.
    pub fn set_source(&self, source: ModelSource) {
        let _ = self.source.set(source);
    }

    /// Adds a model that was read already.
    pub fn add(&self, model: Model) -> ShortHash {
        let name = short(&model.hash);
        let cell = OnceLock::from(Ok(Arc::new(model)));
        self.loaded.lock().insert(name, Arc::new(cell));
        name
    }

    /// The model of this name. Loading happens once, outside of the lock.
    pub fn get(&self, name: &ShortHash) -> Result<Arc<Model>> {
        let cell = self.loaded.lock().entry(*name).or_default().clone();
        let model = cell.get_or_init(|| self.load(name).map(Arc::new));
        model
            .clone()
            .map_err(|lacking| CodecError::NoModel(hex(&lacking)))
    }

    /// The model of this name if it has been loaded.
    pub fn loaded(&self, name: &ShortHash) -> Option<Arc<Model>> {
        let cell = self.loaded.lock().get(name)?.clone();
        cell.get()?.clone().ok()
    }

    /// What is missing of a model that cannot be loaded: itself, or its base. Nothing if it can be.
    pub fn lacking(&self, name: &ShortHash) -> Option<ShortHash> {
        let cell = self.loaded.lock().entry(*name).or_default().clone();
        let model = cell.get_or_init(|| self.load(name).map(Arc::new));
        model.as_ref().err().copied()
    }

    fn load(&self, name: &ShortHash) -> std::result::Result<Model, ShortHash> {
        let file = self.file(name).ok_or(*name)?;
        let model = self.check(name, self.read(&file, Some(name)));
        model.ok_or_else(|| {
            let base = base_name(&file).filter(|base| base != name);
            base.filter(|base| self.base(base).is_none())
                .unwrap_or(*name)
        })
    }

    /// The file of a model.
    fn file(&self, name: &ShortHash) -> Option<Cow<'static, [u8]>> {
        if let Some(file) = embedded_file(name) {
            return Some(Cow::Borrowed(file));
        }
        (self.source.get()?)(&file_name(name)).map(Cow::Owned)
    }

    /// Reads a model file, with its base if it names one. `name` is the model that is being loaded, which
    /// cannot be its own base.
    pub fn read(
        &self,
        file: &[u8],
        name: Option<&ShortHash>,
    ) -> std::result::Result<Model, ModelError> {
        Model::from_bytes_and(file, &|base| {
            let base = short(base);
            (Some(&base) != name).then(|| self.base(&base)).flatten()
        })
    }

    /// A model that another one names as its base. It is kept like any other, but read on its own: a base has
    /// no base, so that nothing that is being loaded waits for itself.
    fn base(&self, name: &ShortHash) -> Option<Arc<Model>> {
        let cell = self.loaded.lock().entry(*name).or_default().clone();
        if let Some(found) = cell.get() {
            return found.clone().ok();
        }
        let file = self.file(name)?;
        let model = Arc::new(self.check(name, Model::from_bytes(&file))?);
        // whoever was faster has the same
        let _ = cell.set(Ok(model.clone()));
        Some(model)
    }

    /// Logs why a model cannot be used.
    fn check(
        &self,
        name: &ShortHash,
        model: std::result::Result<Model, ModelError>,
    ) -> Option<Model> {
        match model {
            Ok(model) if short(&model.hash) == *name => Some(model),
            Ok(_) => {
                log::error!(
                    "model file {} is damaged: its hash differs",
                    file_name(name)
                );
                None
            }
            Err(error) => {
                log::error!("model file {}: {error}", file_name(name));
                None
            }
        }
    }
}

/// The name of the base that a model file names, if any.
pub(super) fn base_name(file: &[u8]) -> Option<ShortHash> {
    base_of(file).ok().flatten().map(|hash| short(&hash))
}
