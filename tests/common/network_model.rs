//! Small models with random networks.
#![allow(dead_code)]

use std::sync::Arc;

use s2sfs::codec::Codecs;
use s2sfs::model::network::{Config, FeedForward, Network};
use s2sfs::model::tokenizer::Tokenizer;
use s2sfs::model::vocabulary::Vocabulary;
use s2sfs::model::{Model, NetworkParts};

use super::networks;
use super::random::Random;

/// Text of the project, for tokens and for tests.
pub const TEXT: &str = include_str!("../../docs/durability.md");

/// A network of two layers that sees 16 tokens, and its vocabulary of so many tokens of `text`, in classes of
/// at most `class`.
pub fn of_text(text: &str, tokens: usize, class: usize, seed: u64) -> (Network, Tokenizer) {
    with_latents(text, (tokens, class), (0, 0), seed)
}

/// [`of_text`] with an encoder for strings of at most `latents.1` latents of `latents.0` different ones.
pub fn with_latents(
    text: &str,
    (tokens, class): (usize, usize),
    latents: (usize, usize),
    seed: u64,
) -> (Network, Tokenizer) {
    let tokenizer = Tokenizer::train(std::iter::once(text.as_bytes()), tokens);
    let tokenizer = tokenizer.and_then(Tokenizer::sorted).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let config = Config {
        vocab_size: vocabulary.len(),
        latent_vocab: latents.0,
        window: 16,
        max_latents: latents.1,
        d_model: 32,
        d_kv: 16,
        d_ff: 64,
        num_heads: 2,
        num_layers: usize::from(latents.1 > 0),
        num_decoder_layers: 2,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 16,
        feed_forward: FeedForward::SquaredRelu,
        ngrams: None,
        classes: vocabulary.classes(class),
    };
    let network = networks::network(&mut Random::new(seed), config, false);
    (network, tokenizer)
}

/// Such a network for [`TEXT`].
pub fn network(seed: u64) -> (Arc<Network>, Tokenizer) {
    let (network, tokenizer) = of_text(TEXT, 400, 16, seed);
    (Arc::new(network), tokenizer)
}

/// The file of a model whose tables a network can join.
pub fn base_file() -> &'static [u8] {
    let name = Codecs::with_embedded("plain")
        .unwrap()
        .encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}

/// The file of a model with such a network and without tables, untrained.
pub fn file(seed: u64) -> Vec<u8> {
    let (network, tokenizer) = network(seed);
    let parts = NetworkParts {
        name: "tiny".into(),
        tokenizer,
        network,
        prior: None,
        adaptation: Model::from_bytes(base_file()).unwrap().fresh(0).adaptation,
    };
    let model = Model::with_network(None, parts).unwrap();
    model.to_bytes().unwrap()
}
