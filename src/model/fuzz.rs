//! Entry points for fuzzing the decoders of models. See [`crate::fuzzing`].

use std::sync::Arc;

use super::adaptive::Histories;
use super::bytecode::ByteCode;
use super::contexts::CONTEXTS;
use super::file::{join_sections, split_sections};
use super::mixer::Rates;
use super::network::{Config, FeedForward, Network, Values, Weights};
use super::predictor::{Adaptation, Params};
use super::runs::Runs;
use super::tables::Tables;
use super::tokenizer::{CHUNK_TOKENS, Tokenizer};
use super::vocabulary::Vocabulary;
use super::{Model, ModelHash, ModelInfo, NetworkParts};

/// Bytes that a model that could be read is tried on.
const SAMPLE: &[u8] = b"some text, 1234; {\"and\": [more]}\n\x00\xff\xfe end of the text";

const ADAPTATION: Adaptation = Adaptation {
    mixer: Rates { first: 2, last: 2 },
    histories: 4,
    curves: 6,
    least_error: 0,
    runs: None,
};

/// A model that knows next to nothing, and is quick to load.
pub(crate) fn tiny_model() -> Model {
    tiny_model_of(ByteCode::plain())
}

/// [`tiny_model`] with a code of bytes.
pub(crate) fn tiny_coded_model() -> Model {
    let mut counts = [0; 256];
    SAMPLE
        .iter()
        .for_each(|&byte| counts[usize::from(byte)] += 1);
    tiny_model_of(ByteCode::for_counts(&counts))
}

fn tiny_model_of(code: ByteCode) -> Model {
    Model::from_parts(
        ModelInfo::default(),
        tiny_tokenizer(),
        SAMPLE.repeat(8),
        (code, Tables::with_lines(&[2; CONTEXTS])),
        [0; 256],
        Params::default(),
        ADAPTATION,
    )
}

/// A mixer with runs for the tables of `base`.
pub(crate) fn tiny_running_model(base: &Model) -> Model {
    let adaptation = Adaptation {
        runs: Some(Runs {
            sure: 50_000,
            ..Runs::USUAL
        }),
        ..ADAPTATION
    };
    let model = base.with_mixer_for("runs".into(), Histories::Lean, adaptation);
    model.expect("a base")
}

fn tiny_tokenizer() -> Tokenizer {
    let text = SAMPLE.repeat(8);
    let tokenizer = Tokenizer::train(std::iter::once(text.as_slice()), 280);
    tokenizer.expect("a small vocabulary")
}

/// A model with a network that knows nothing, on top of `base` or alone.
pub(crate) fn tiny_network_model(base: Option<&Model>) -> Model {
    let tokenizer = tiny_tokenizer().sorted().expect("a vocabulary");
    let vocabulary = Vocabulary::new(&tokenizer).expect("a sorted vocabulary");
    let config = Config {
        vocab_size: vocabulary.len(),
        latent_vocab: 0,
        window: 8,
        max_latents: 0,
        d_model: 8,
        d_kv: 4,
        d_ff: 8,
        num_heads: 2,
        num_layers: 0,
        num_decoder_layers: 1,
        relative_attention_num_buckets: 4,
        relative_attention_max_distance: 8,
        feed_forward: FeedForward::Relu,
        ngrams: None,
        classes: vocabulary.classes(16),
    };
    let mut weights = Weights::shaped(&config);
    let filled = weights.visit(&config, &mut |_, shape, values| {
        let len = shape.iter().product::<usize>();
        match values {
            Values::Bytes(bytes) => *bytes = (0..len).map(|i| (i * 37 % 255) as i8 / 2).collect(),
            Values::Numbers(numbers) => *numbers = (0..len).map(|i| i as i32 % 200 + 50).collect(),
        }
        Ok(())
    });
    filled.expect("every tensor has a shape");
    let parts = NetworkParts {
        name: "tiny".into(),
        tokenizer,
        network: Arc::new(Network::new(config, weights).expect("values within bounds")),
        prior: None,
        adaptation: ADAPTATION,
    };
    Model::with_network(base, parts).expect("parts that fit")
}

/// A model file: `data` as it is, or one section of a good file replaced or changed by it, with right
/// checksums. `base` is what the good file may name as its base.
pub(crate) fn model_file(good: &[u8], base: &Arc<Model>, data: &[u8]) {
    try_model(data, base);
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
    let file = join_sections(&sections).expect("compressing in memory");
    try_model(&file, base);
}

fn try_model(file: &[u8], base: &Arc<Model>) {
    let find = |hash: &ModelHash| (*hash == base.hash).then(|| base.clone());
    let Ok(model) = Model::from_bytes_and(file, &find) else {
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
    if let Ok(chunks) = tokenizer.chunk_lengths(SAMPLE, CHUNK_TOKENS) {
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
