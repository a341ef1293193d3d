//! Byte-level BPE: every byte string has a token string and back.
//!
//! Bytes become characters as in GPT-2's byte-level alphabet, so that any bytes, valid UTF-8 or not,
//! can be tokenised. Text is first split into words (runs of one kind of byte, a single space going
//! with what follows it), because merges never cross them.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::{Model as _, Token, Trainer as _};

use super::ModelError;

/// Most tokens of a chunk.
pub const CHUNK_TOKENS: usize = 128;
/// Words longer than this are split, so that no input makes tokenising slow.
pub(super) const WORD_MAX: usize = 24;

/// The bytes of two tokens that are merged.
pub(super) type TokenPair = (Vec<u8>, Vec<u8>);

/// A trained vocabulary.
#[derive(Debug, Clone)]
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

/// The words of `bytes`: merges never cross them.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
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

    /// The same tokens and merges with the ids in the order of the tokens' bytes, so that the tokens with a
    /// common beginning are one range of ids.
    ///
    /// # Errors
    /// If a token is not made of characters of the byte-level alphabet.
    pub fn sorted(self) -> Result<Tokenizer, ModelError> {
        let mut tokens = Vec::new();
        for (text, _) in self.bpe.get_vocab() {
            tokens.push((self.bytes_of(&text)?, text));
        }
        tokens.sort();
        let ids = tokens.into_iter().zip(0u32..);
        let vocab: serde_json::Map<String, serde_json::Value> =
            ids.map(|((_, text), id)| (text, id.into())).collect();
        let failed = |e: serde_json::Error| ModelError::Tokenizer(e.to_string());
        let mut json: serde_json::Value =
            serde_json::from_slice(&self.to_json()?).map_err(failed)?;
        json["vocab"] = vocab.into();
        Tokenizer::from_json(&serde_json::to_vec(&json).map_err(failed)?)
    }

    /// The bytes that a token's characters stand for.
    fn bytes_of(&self, text: &str) -> Result<Vec<u8>, ModelError> {
        let byte = |c: char| self.alphabet.iter().position(|&a| a == c);
        text.chars()
            .map(|c| byte(c).map(|byte| byte as u8))
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(|| ModelError::Tokenizer(format!("{text:?} does not stand for bytes")))
    }

    /// The bytes of all tokens, by id.
    ///
    /// # Errors
    /// If the ids are not 0, 1, 2 and so on, or a token does not stand for bytes.
    pub fn tokens(&self) -> Result<Vec<Vec<u8>>, ModelError> {
        let vocab = self.bpe.get_vocab();
        let mut tokens = vec![Vec::new(); vocab.len()];
        for (text, id) in vocab {
            let place = tokens.get_mut(id as usize);
            let place = place.filter(|token| token.is_empty());
            let gap = || ModelError::Tokenizer("the ids have gaps".into());
            *place.ok_or_else(gap)? = self.bytes_of(&text)?;
        }
        Ok(tokens)
    }

    /// The merges in their order, each as the bytes of its two tokens.
    ///
    /// # Errors
    /// If a token does not stand for bytes.
    pub(super) fn merges(&self) -> Result<Vec<TokenPair>, ModelError> {
        let plain: Plain = serde_json::from_slice(&self.to_json()?)
            .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let pair = |merge: &Merge| match merge {
            Merge::Pair(a, b) => Ok((self.bytes_of(a)?, self.bytes_of(b)?)),
            Merge::Line(line) => {
                let (a, b) = line.split_once(' ').unwrap_or((line, ""));
                Ok((self.bytes_of(a)?, self.bytes_of(b)?))
            }
        };
        plain.merges.iter().map(pair).collect()
    }

    /// The ids of the tokens of `bytes`.
    ///
    /// # Errors
    /// If there are more than 65,536 tokens, or tokens are not the bytes that they stand for.
    pub fn token_ids(&self, bytes: &[u8]) -> Result<Vec<u16>, ModelError> {
        let mut ids = Vec::with_capacity(bytes.len() / 3);
        self.tokenize(bytes, |token| {
            let id = u16::try_from(token.id);
            ids.push(
                id.map_err(|_| ModelError::Tokenizer("an id needs more than 16 bits".into()))?,
            );
            Ok(())
        })?;
        Ok(ids)
    }

    /// The lengths in bytes of the tokens of `bytes`.
    pub fn token_lengths(&self, bytes: &[u8]) -> Result<Vec<u32>, ModelError> {
        let mut lengths = Vec::with_capacity(bytes.len() / 3);
        self.tokenize(bytes, |token| {
            // one character stands for one byte
            lengths.push(token.value.chars().count() as u32);
            Ok(())
        })?;
        Ok(lengths)
    }

    /// Shows every token of `bytes` to `put`.
    fn tokenize(
        &self,
        bytes: &[u8],
        mut put: impl FnMut(&Token) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let mut text = String::with_capacity(2 * WORD_MAX);
        for word in words(bytes) {
            text.clear();
            text.extend(word.iter().map(|&b| self.alphabet[b as usize]));
            let tokens = self
                .bpe
                .tokenize(&text)
                .map_err(|e| ModelError::Tokenizer(e.to_string()))?;
            let mut rest = text.as_str();
            for token in &tokens {
                let tail = rest.strip_prefix(token.value.as_str());
                let tail = tail.filter(|_| !token.value.is_empty());
                let strange = "its tokens are not the bytes that they stand for";
                rest = tail.ok_or_else(|| ModelError::Tokenizer(strange.into()))?;
                put(token)?;
            }
            if !rest.is_empty() {
                return Err(ModelError::Tokenizer("its tokens leave bytes out".into()));
            }
        }
        Ok(())
    }

    /// The lengths in bytes of the chunks of `bytes`: up to `most` tokens each, at least 1.
    pub fn chunk_lengths(&self, bytes: &[u8], most: usize) -> Result<Vec<u32>, ModelError> {
        let lengths = self.token_lengths(bytes)?;
        Ok(lengths
            .chunks(most.max(1))
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
            let chunks = again.chunk_lengths(bytes, CHUNK_TOKENS).unwrap();
            assert_eq!(chunks.iter().sum::<u32>() as usize, bytes.len());
            assert_eq!(
                chunks,
                tokenizer.chunk_lengths(bytes, CHUNK_TOKENS).unwrap()
            );
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
