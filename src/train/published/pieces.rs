//! The pieces that a published model reads and writes: SentencePiece's, or bytes.

use std::path::Path;

use serde::Deserialize;
use tokenizers::tokenizer::Model as _;

use super::config::read as read_file;
use super::{Config, PublishedError, Result};

pub(super) const TOKENIZER: &str = "tokenizer.json";
/// ByT5's first pieces: padding, end and unknown.
const BYTES_FROM: u32 = 3;
const UNKNOWN: &str = "<unk>";
/// What stands for a space in pieces of SentencePiece.
const SPACE: &str = "\u{2581}";

/// The model of SentencePiece that T5 has. The library does not check the others well.
const UNIGRAM: &str = "Unigram";

/// What of a tokenizer must be looked at before the library reads it.
#[derive(Deserialize)]
struct Kind {
    model: KindOfModel,
}

#[derive(Deserialize)]
struct KindOfModel {
    #[serde(rename = "type")]
    kind: String,
}

/// The tokenizer of a published model.
#[derive(Debug)]
pub enum Pieces {
    /// A byte b is the piece b + 3 (ByT5).
    Bytes,
    /// What `tokenizer.json` says.
    File {
        tokenizer: Box<tokenizers::Tokenizer>,
        unknown: Option<u32>,
    },
}

/// Data as pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// How many of them stand for something that the vocabulary lacks.
    pub unknown: usize,
}

fn wrong(what: impl ToString) -> PublishedError {
    PublishedError::File {
        file: TOKENIZER.into(),
        what: what.to_string(),
    }
}

impl Pieces {
    /// Reads the tokenizer in `dir`, whose pieces must fit the vocabulary of `config`.
    pub(super) fn read(dir: &Path, config: &Config) -> Result<Pieces> {
        let (pieces, len) = if config.bytes && !dir.join(TOKENIZER).exists() {
            (Pieces::Bytes, BYTES_FROM as usize + 256)
        } else {
            Pieces::parse(&read_file(dir, TOKENIZER)?)?
        };
        if len > config.vocab_size {
            return Err(wrong(format!(
                "{len} pieces, but {} says {}",
                super::config::CONFIG,
                config.vocab_size
            )));
        }
        Ok(pieces)
    }

    /// A tokenizer, and one more than its highest piece.
    fn parse(json: &[u8]) -> Result<(Pieces, usize)> {
        let kind = serde_json::from_slice::<Kind>(json)
            .map_err(wrong)?
            .model
            .kind;
        if kind != UNIGRAM {
            return Err(wrong(format!("a model of type {kind}; T5 has {UNIGRAM}")));
        }
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(wrong)?;
        tokenizer.with_truncation(None).map_err(wrong)?;
        tokenizer.with_padding(None);
        let highest = tokenizer.get_vocab(true).into_values().max();
        let pieces = Pieces::File {
            unknown: tokenizer.token_to_id(UNKNOWN),
            tokenizer: Box::new(tokenizer),
        };
        Ok((pieces, highest.map_or(0, |id| id as usize + 1)))
    }

    /// Data as pieces, as the model was trained on them. Only bytes keep everything: SentencePiece
    /// normalises letters and spaces, and what is no UTF-8 becomes unknown.
    ///
    /// # Errors
    /// If the library fails.
    pub fn encode(&self, bytes: &[u8]) -> Result<Encoded> {
        let (tokenizer, unknown) = match self {
            Pieces::Bytes => {
                let ids = bytes.iter().map(|&b| u32::from(b) + BYTES_FROM).collect();
                return Ok(Encoded { ids, unknown: 0 });
            }
            Pieces::File { tokenizer, unknown } => (tokenizer, unknown),
        };
        let text = String::from_utf8_lossy(bytes);
        let encoding = tokenizer.encode_fast(text.as_ref(), false).map_err(wrong)?;
        let ids = encoding.get_ids().to_vec();
        let unknown = ids.iter().filter(|&&id| Some(id) == *unknown).count();
        Ok(Encoded { ids, unknown })
    }

    /// The pieces of a token of another vocabulary, without what the vocabulary lacks. A token is a part of
    /// a text: nothing is put in front of it, and its spaces count.
    ///
    /// # Errors
    /// If the library fails.
    pub fn of_token(&self, token: &[u8]) -> Result<Vec<u32>> {
        let Pieces::File { tokenizer, unknown } = self else {
            return Ok(self.encode(token)?.ids);
        };
        let Ok(text) = std::str::from_utf8(token) else {
            return Ok(Vec::new());
        };
        let text = text.replace(' ', SPACE);
        let pieces = tokenizer.get_model().tokenize(&text).map_err(wrong)?;
        let ids = pieces.into_iter().map(|piece| piece.id);
        Ok(ids.filter(|&id| Some(id) != *unknown).collect())
    }
}
