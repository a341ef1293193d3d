//! The bytes of a corpus that models are measured on.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::suite::files;
use crate::codec::{ANCHOR_BYTES, AnchorSource};
use crate::exit::{Context, Outcome};
use crate::options::Settings;

#[derive(Debug, Args)]
pub struct CorpusArguments {
    /// Corpus: a directory with a subdirectory for each class
    corpus: PathBuf,
    /// Classes to measure [default: all]
    #[arg(long = "class", value_name = "NAME")]
    classes: Vec<String>,
    /// Bytes of each class, spread over its files
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    bytes: usize,
}

/// A class directory and its name.
pub struct Class {
    dir: PathBuf,
    pub name: String,
}

/// An extent, and the beginning of its file if it is a later one.
pub struct Extent {
    pub raw: Vec<u8>,
    pub anchor: Option<AnchorSource>,
}

impl CorpusArguments {
    /// The classes that are wanted.
    pub fn classes(&self) -> Outcome<Vec<Class>> {
        let dirs = files::classes(&self.corpus, &self.classes)?.into_iter();
        let named = |dir: PathBuf| {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let name = name.into_owned();
            Class { dir, name }
        };
        Ok(dirs.map(named).collect())
    }

    /// Extents from all files of a class in turn: the beginning, and if anchors are wanted also what follows.
    pub fn extents(&self, class: &Class, anchors: bool) -> Outcome<Vec<Extent>> {
        let entries = files::tree(&class.dir)?;
        let total: u64 = entries.iter().map(|entry| entry.len).sum();
        let share = self.bytes as f64 / total.max(1) as f64;
        let extent = Settings::default().extent as usize;
        let mut extents = Vec::new();
        // a part of every file in proportion to its length, the remainders handed on
        let mut due = 0.0;
        for entry in &entries {
            due += entry.len as f64 * share.min(1.0);
            let len = (due as usize).min(entry.len as usize);
            if len == 0 {
                continue;
            }
            due -= len as f64;
            let path = class.dir.join(&entry.path);
            let raw = std::fs::read(&path).context(path.display())?;
            let raw = &raw[..len.min(raw.len())];
            let head: Arc<[u8]> = Arc::from(&raw[..raw.len().min(ANCHOR_BYTES)]);
            let mut parts: Vec<&[u8]> = raw.chunks(extent).collect();
            if anchors && raw.len() > ANCHOR_BYTES && parts.len() == 1 {
                parts = vec![&raw[..ANCHOR_BYTES], &raw[ANCHOR_BYTES..]];
            }
            for (number, raw) in parts.into_iter().enumerate() {
                let anchor = (anchors && number > 0).then(|| AnchorSource {
                    block: 0,
                    start: 0,
                    bytes: head.clone(),
                });
                let raw = raw.to_vec();
                extents.push(Extent { raw, anchor });
            }
        }
        Ok(extents)
    }
}
