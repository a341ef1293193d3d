//! Models on their way between files, stores and codecs.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{CodecError, Codecs, LatentWriter, Policy};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::{ModelChoice, Settings};
use crate::store::{MODEL_DIR, Store};
use crate::train::s2s::recipe::Purpose;
use crate::train::s2s::writer::Writer;

/// No model file is longer; a longer one in a store is not read.
const MAX_MODEL: u64 = 4 << 30;

/// Strings of latents that are tried for an extent where size is all that matters.
const RATIO_CANDIDATES: usize = 4;

/// The codecs with the model and the device that the settings name.
pub fn codecs(settings: &Settings) -> Outcome<Codecs> {
    let codecs = match &settings.model {
        ModelChoice::Embedded(name) => Codecs::with_embedded(name).context("built-in model")?,
        ModelChoice::File(path) => load(path, &read(path).context(path.display())?)?,
    };
    // what is on its way into the cache may take as much as what is in it
    let codecs = codecs
        .on(settings.device, settings.threads)
        .within(settings.cache_bytes);
    match &settings.compressor {
        Some(dir) => {
            let writer = writer(dir, settings)?;
            if !codecs.reads(&*writer) {
                return Err(unreadable(dir));
            }
            Ok(codecs.writing(writer))
        }
        None => Ok(codecs),
    }
}

/// What to say of a compressor whose latents the model does not read.
pub fn unreadable(dir: &Path) -> Failure {
    let why = "the model reads no such latents: it needs the network that the compressor was trained with";
    Failure::usage(format!("{}: {why}", dir.display()))
}

/// The compressor in a directory, at work as the settings want it.
fn writer(dir: &Path, settings: &Settings) -> Outcome<Arc<dyn LatentWriter>> {
    let purpose = match settings.own_latents {
        true => Purpose::Chunk,
        false => Purpose::Extent,
    };
    let candidates = match settings.policy {
        Policy::Ratio => RATIO_CANDIDATES,
        Policy::Balanced | Policy::Fast | Policy::Off => 1,
    };
    let writer = Writer::load(dir, purpose, candidates).context("compressor")?;
    Ok(Arc::new(writer))
}

/// The codecs for the blocks of the store at `path`, and for new blocks under the settings.
pub fn codecs_of_store(settings: &Settings, path: &Path) -> Outcome<Codecs> {
    let codecs = codecs(settings)?;
    let models = path.join(MODEL_DIR);
    codecs.set_model_source(Box::new(move |name| read_from_store(&models, name)));
    Ok(codecs)
}

/// Leaves copies of the encoding model and those beside it in the store, or repairs those that are there.
pub fn keep_model(settings: &Settings, store: &Store, codecs: &Codecs) -> Outcome<()> {
    let name = codecs.encoding_model_name();
    let Some(name) = name.filter(|_| !store.is_read_only()) else {
        return Ok(());
    };
    match &settings.model {
        ModelChoice::Embedded(_) => {
            let mut names = Codecs::names_beside(&name);
            names.push(name);
            let files = names
                .into_iter()
                .filter_map(|name| Some((Codecs::embedded_file(&name)?, name)));
            for (file, name) in files.filter(|(_, name)| kept(store, name).is_none()) {
                // Every program of this version has it, so a full disk is no reason to refuse the mount.
                if let Err(e) = store.put_model(&name, file) {
                    log::warn!("the store has no copy of the built-in model {name}: {e}");
                }
            }
            Ok(())
        }
        ModelChoice::File(path) => {
            let stored = kept(store, &name);
            let is_new = stored.is_none();
            let file = stored.map_or_else(|| read(path), Ok);
            let file = file.context(path.display())?;
            // the base first: a model is never there without it
            let base = Codecs::base_name(&file);
            if let Some(base) = base.filter(|base| kept(store, base).is_none()) {
                let file = base_file(path, &base).context(path.display())?;
                put(store, &base, &file, path)?;
            }
            match is_new {
                true => put(store, &name, &file, path),
                false => Ok(()),
            }
        }
    }
}

/// The model that the store has under this name, if it is undamaged.
fn kept(store: &Store, name: &str) -> Option<Vec<u8>> {
    let stored = store.get_model(name);
    let is_sound =
        |file: &[u8]| Codecs::model_of_name(name).is_some_and(|n| Codecs::is_model(&n, file));
    match stored {
        Ok(Some(file)) if is_sound(&file) => Some(file),
        Ok(None) => None,
        _ => {
            log::warn!("model {name} of the store is damaged: writing it again");
            None
        }
    }
}

fn put(store: &Store, name: &str, file: &[u8], path: &Path) -> Outcome<()> {
    store
        .put_model(name, file)
        .context(format!("keeping model {}", path.display()))
}

/// The file of a base: the built-in model, or a file beside `path` under the name that it would have in a store.
fn base_file(path: &Path, name: &str) -> io::Result<Cow<'static, [u8]>> {
    match Codecs::embedded_file(name) {
        Some(built_in) => Ok(Cow::Borrowed(built_in)),
        None => read(&path.with_file_name(name))
            .map(Cow::Owned)
            .map_err(|e| io::Error::new(e.kind(), format!("its base {name}: {e}"))),
    }
}

fn load(path: &Path, file: &[u8]) -> Outcome<Codecs> {
    let base = Codecs::base_name(file).map(|name| base_file(path, &name));
    let base = base.transpose().context(path.display())?;
    Codecs::with_model_and_base(file, base.as_deref()).map_err(|e| {
        let exit = match e {
            CodecError::BadModel(_) => Exit::Damaged,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("{}: {e}", path.display()))
    })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > MAX_MODEL {
        return Err(io::Error::other(format!(
            "{len} bytes are too long for a model"
        )));
    }
    let mut bytes = Vec::new();
    file.take(MAX_MODEL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_from_store(models: &Path, name: &str) -> Option<Vec<u8>> {
    let path: PathBuf = models.join(name);
    read(&path)
        .inspect_err(|e| log::error!("{}: {e}", path.display()))
        .ok()
}
