//! Entry points for fuzzing the decoders of models. See [`crate::fuzzing`].

use super::contexts::CONTEXTS;
use super::file::{join_sections, split_sections};
use super::mixer::Rates;
use super::predictor::{Adaptation, Params};
use super::tables::Tables;
use super::tokenizer::Tokenizer;
use super::{Model, ModelInfo};

/// Bytes that a model that could be read is tried on.
const SAMPLE: &[u8] = b"some text, 1234; {\"and\": [more]}\n\x00\xff\xfe end of the text";

/// A model that knows next to nothing, and is quick to load.
pub(crate) fn tiny_model() -> Model {
    let text = SAMPLE.repeat(8);
    let tokenizer = Tokenizer::train(std::iter::once(text.as_slice()), 280);
    let adaptation = Adaptation {
        mixer: Rates { first: 2, last: 2 },
        histories: 4,
        curves: 6,
    };
    Model::from_parts(
        ModelInfo::default(),
        tokenizer.expect("a small vocabulary"),
        text,
        Tables::with_lines(&[2; CONTEXTS]),
        [0; 256],
        Params::default(),
        adaptation,
    )
}

/// A model file: `data` as it is, or one section of a good file replaced or changed by it, with right
/// checksums.
pub(crate) fn model_file(good: &[u8], data: &[u8]) {
    try_model(data);
    let [which, mode, rest @ ..] = data else {
        return;
    };
    let mut sections = split_sections(good).expect("a good file");
    let count = sections.len();
    let (_, raw) = &mut sections[usize::from(*which) % count];
    match mode % 3 {
        0 => *raw = rest.to_vec(),
        1 => {
            // Pairs of a position and a byte.
            for change in rest.chunks_exact(4) {
                let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
                if let Some(byte) = raw.get_mut(at) {
                    *byte ^= change[3];
                }
            }
        }
        _ => raw.truncate(
            rest.iter()
                .fold(0, |at, b| (at << 8 | usize::from(*b)) & 0xff_ffff),
        ),
    }
    try_model(&join_sections(&sections).expect("compressing in memory"));
}

fn try_model(file: &[u8]) {
    let Ok(model) = Model::from_bytes(file) else {
        return;
    };
    try_tokenizer(&model.tokenizer);
    let state = model.after(SAMPLE);
    assert!(state.size() > 0);
}

/// A vocabulary.
pub(crate) fn tokenizer(data: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json(data) {
        try_tokenizer(&tokenizer);
    }
}

/// Whatever a vocabulary makes of bytes: all of them, or an error.
fn try_tokenizer(tokenizer: &Tokenizer) {
    if let Ok(chunks) = tokenizer.chunk_lengths(SAMPLE) {
        let sum: u64 = chunks.iter().map(|len| u64::from(*len)).sum();
        assert_eq!(sum, SAMPLE.len() as u64);
        assert!(chunks.iter().all(|len| *len > 0));
    }
}

/// Files to start from: a good model and its sections.
pub(crate) fn model_seeds(good: &[u8]) -> Vec<Vec<u8>> {
    let sections = split_sections(good).expect("a good file");
    let small = sections
        .iter()
        .enumerate()
        .filter(|(_, s)| s.1.len() < 4096);
    let mut seeds: Vec<Vec<u8>> = small
        .map(|(number, (_, raw))| [&[number as u8, 0][..], raw].concat())
        .collect();
    seeds.push([&[4, 1][..], &[0, 16, 0, 255, 4, 0, 0, 1]].concat());
    seeds
}

pub(crate) fn tokenizer_seeds() -> Vec<Vec<u8>> {
    vec![tiny_model().tokenizer.to_json().expect("JSON")]
}
