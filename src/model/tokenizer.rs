//! Byte-level BPE: every byte string has a token string and back.
//!
//! Bytes become characters as in GPT-2's byte-level alphabet, so that any bytes, valid UTF-8 or not,
//! can be tokenised. Text is first split into words (runs of one kind of byte, a single space going
//! with what follows it), because merges never cross them.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::{Model as _, Trainer as _};

use super::ModelError;

/// Most tokens of a chunk.
pub const CHUNK_TOKENS: usize = 128;
/// Words longer than this are split, so that no input makes tokenising slow.
const WORD_MAX: usize = 24;

/// A trained vocabulary.
#[derive(Debug)]
pub struct Tokenizer {
    bpe: BPE,
    alphabet: [char; 256],
}

/// The byte-level alphabet: printable Latin-1 stands for itself, the rest for U+0100 and on.
fn alphabet() -> [char; 256] {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

/// What of a vocabulary's JSON must be looked at before the library reads it.
#[derive(Deserialize)]
struct Plain {
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

/// Refuses what `Tokenizer::train` never makes. With a prefix, or a merge into a token that is not
/// there, the library reads past its buffers; with dropout it is not the same twice.
fn check_plain(json: &[u8]) -> Result<(), ModelError> {
    let refuse = |why: &str| Err(ModelError::Tokenizer(why.into()));
    let plain: Plain =
        serde_json::from_slice(json).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
    let extras = [
        &plain.unk_token,
        &plain.continuing_subword_prefix,
        &plain.end_of_word_suffix,
    ];
    if plain.dropout.is_some() || plain.byte_fallback || extras.iter().any(|e| e.is_some()) {
        return refuse("it is more than plain byte pairs");
    }
    for merge in &plain.merges {
        let merged = match merge {
            Merge::Pair(a, b) => format!("{a}{b}"),
            Merge::Line(line) => match line.split_once(' ') {
                Some((a, b)) => format!("{a}{b}"),
                None => return refuse("a merge that is no pair"),
            },
        };
        if !plain.vocab.contains_key(&merged) {
            return refuse("a merge into a token that is not in the vocabulary");
        }
    }
    Ok(())
}

#[derive(PartialEq, Clone, Copy)]
enum Kind {
    Letter,
    Digit,
    Space,
    Other,
}

fn kind(byte: u8) -> Kind {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | 0x80..=0xff => Kind::Letter,
        b'0'..=b'9' => Kind::Digit,
        b' ' | b'\t' | b'\n' | b'\r' => Kind::Space,
        _ => Kind::Other,
    }
}

/// Length of the word at the start of `bytes`, which are not empty.
fn word_len(bytes: &[u8]) -> usize {
    let lead =
        usize::from(bytes[0] == b' ' && bytes.get(1).is_some_and(|&b| kind(b) != Kind::Space));
    let first = kind(bytes[lead]);
    let run = bytes[lead..]
        .iter()
        .take(WORD_MAX)
        .take_while(|&&b| kind(b) == first)
        .count();
    lead + run
}

fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (word, tail) = rest.split_at(word_len(rest));
        rest = tail;
        Some(word)
    })
}

impl Tokenizer {
    /// Trains a vocabulary of `size` tokens (at least the 256 bytes) on samples.
    pub fn train<'a>(
        samples: impl Iterator<Item = &'a [u8]> + Send,
        size: usize,
    ) -> Result<Tokenizer, ModelError> {
        let alphabet = alphabet();
        let mut trainer = BpeTrainer::builder()
            .vocab_size(size)
            .show_progress(false)
            .initial_alphabet(alphabet.iter().copied().collect())
            .build();
        let texts = samples.flat_map(words).map(|word| {
            word.iter()
                .map(|&b| alphabet[b as usize])
                .collect::<String>()
        });
        trainer
            .feed(texts, |word| Ok(vec![word.to_owned()]))
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let mut bpe = BPE::default();
        trainer
            .train(&mut bpe)
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(Tokenizer { bpe, alphabet })
    }

    /// The form that [`Tokenizer::from_json`] reads.
    pub fn to_json(&self) -> Result<Vec<u8>, ModelError> {
        serde_json::to_vec(&self.bpe).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }

    /// Reads a vocabulary in the JSON of the `tokenizers` library.
    pub fn from_json(json: &[u8]) -> Result<Tokenizer, ModelError> {
        check_plain(json)?;
        let bpe = serde_json::from_slice(json).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let tokenizer = Tokenizer {
            bpe,
            alphabet: alphabet(),
        };
        match tokenizer
            .alphabet
            .iter()
            .find(|c| tokenizer.bpe.token_to_id(&c.to_string()).is_none())
        {
            Some(c) => Err(ModelError::Tokenizer(format!("the vocabulary lacks {c:?}"))),
            None => Ok(tokenizer),
        }
    }

    /// The lengths in bytes of the tokens of `bytes`.
    pub fn token_lengths(&self, bytes: &[u8]) -> Result<Vec<u32>, ModelError> {
        let mut lengths = Vec::with_capacity(bytes.len() / 3);
        let mut text = String::with_capacity(2 * WORD_MAX);
        for word in words(bytes) {
            text.clear();
            text.extend(word.iter().map(|&b| self.alphabet[b as usize]));
            let tokens = self
                .bpe
                .tokenize(&text)
                .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
            // one character stands for one byte
            let before = lengths.len();
            lengths.extend(
                tokens
                    .iter()
                    .map(|token| token.value.chars().count() as u32),
            );
            let covered: u64 = lengths[before..].iter().map(|len| u64::from(*len)).sum();
            if covered != word.len() as u64 || lengths[before..].contains(&0) {
                return Err(ModelError::Tokenizer(
                    "its tokens are not the bytes that they stand for".into(),
                ));
            }
        }
        Ok(lengths)
    }

    /// The lengths in bytes of the chunks of `bytes`: up to 128 tokens each.
    pub fn chunk_lengths(&self, bytes: &[u8]) -> Result<Vec<u32>, ModelError> {
        let lengths = self.token_lengths(bytes)?;
        Ok(lengths
            .chunks(CHUNK_TOKENS)
            .map(|chunk| chunk.iter().sum())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_bytes_of_any_input() {
        let text = b"the quick brown fox; the lazy dog. \xff\xfe\x00 12345 \n\n  indent".repeat(40);
        let tokenizer = Tokenizer::train(std::iter::once(text.as_slice()), 300).unwrap();
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        let noise: Vec<u8> = (0..5000u32)
            .map(|i| (i.wrapping_mul(2654435761) >> 13) as u8)
            .collect();
        for bytes in [text.as_slice(), noise.as_slice(), b"", b" "] {
            let chunks = again.chunk_lengths(bytes).unwrap();
            assert_eq!(chunks.iter().sum::<u32>() as usize, bytes.len());
            assert_eq!(chunks, tokenizer.chunk_lengths(bytes).unwrap());
        }
    }

    #[test]
    fn a_json_without_all_bytes_is_refused() {
        assert!(Tokenizer::from_json(b"{}").is_err());
        assert!(Tokenizer::from_json(br#"{"type":"BPE","vocab":{"a":0},"merges":[]}"#).is_err());
    }

    #[test]
    fn what_would_make_the_library_read_past_its_buffers_is_refused() {
        let text = b"aaaa bbbb abab".repeat(9);
        let tokenizer = Tokenizer::train(std::iter::once(text.as_slice()), 270).unwrap();
        let good: serde_json::Value =
            serde_json::from_slice(&tokenizer.to_json().unwrap()).unwrap();
        let refused = |field: &str, value: serde_json::Value| {
            let mut json = good.clone();
            json[field] = value;
            Tokenizer::from_json(&serde_json::to_vec(&json).unwrap()).is_err()
        };
        assert!(!refused("fuse_unk", true.into()));
        assert!(refused("merges", serde_json::json!([["a", "zzzzzz"]])));
        assert!(refused("continuing_subword_prefix", "##".into()));
        assert!(refused("dropout", 0.5.into()));
    }
}
