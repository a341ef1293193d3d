//! The shape of a small decoder, odd in every dimension that can be.

use s2sfs::model::network::{Config, FeedForward, Ngrams};

pub fn decoder(feed_forward: FeedForward) -> Config {
    Config {
        vocab_size: 61,
        latent_vocab: 0,
        window: 40,
        max_latents: 0,
        d_model: 48,
        d_kv: 10,
        d_ff: 97,
        num_heads: 3,
        num_layers: 0,
        num_decoder_layers: 2,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 16,
        feed_forward,
        ngrams: Some(Ngrams {
            slots: 64,
            lengths: vec![2, 3],
        }),
        classes: vec![0, 10, 31],
    }
}
