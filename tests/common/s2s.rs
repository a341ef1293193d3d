//! Small runs of training with latents, and the models that they make.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use s2sfs::codec::Codecs;
use s2sfs::model::Model;
use s2sfs::model::network::Network;
use s2sfs::model::tokenizer::Tokenizer;
use s2sfs::train::Progress;
use s2sfs::train::mixing::{self, MixingOptions, Trained};
use s2sfs::train::s2s::S2sError;
use s2sfs::train::s2s::recipe::Recipe;
use s2sfs::train::s2s::session::{COMPRESSOR, Order, Outcome, read_prior, run};
use s2sfs::train::s2s::writer::Writer;

pub fn recipe(steps: u64) -> Recipe {
    let mut recipe = Recipe::default();
    let (network, training) = (&mut recipe.network, &mut recipe.training);
    network.d_model = 32;
    network.layers = 1;
    network.heads = 2;
    network.d_ff = 64;
    network.window = 32;
    network.vocabulary = 400;
    network.class_tokens = 32;
    network.latents = 6;
    network.latent_vocabulary = 40;
    training.steps = Some(steps);
    training.evaluate_steps = 4;
    training.held_out_tokens = 512;
    training.warm_up = 4;
    // the rates must not depend on how long the run is to be
    training.decay_from = 1.0;
    recipe.compressor.input = 48;
    recipe.compressor.d_model = 16;
    recipe.compressor.layers = 1;
    recipe.compressor.heads = 2;
    recipe.compressor.d_ff = 32;
    let method = &mut recipe.latents;
    method.chunk = 24;
    method.chunks = 3;
    method.batch = 3;
    method.copy_share = 0.5;
    method.cost.share = 0.0;
    method.log_steps = 1;
    method.prior_steps = 3;
    recipe
}

pub fn order(output: &Path, recipe: Recipe) -> Order {
    Order {
        dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model"),
        output: output.join("out"),
        recipe,
        tokenizer: None,
        from: None,
        resume: false,
        device: Device::Cpu,
        threads: 1,
    }
}

pub fn trained(order: &Order) -> Result<Outcome, S2sError> {
    run(order, None, &|_| ())
}

/// A model of the network in a directory, with the tables of the default model or alone.
pub fn model_of(dir: &Path, tables: bool) -> Vec<u8> {
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let writer = Writer::as_trained(&dir.join(COMPRESSOR)).unwrap();
    let trained = Trained {
        network: Network::from_bytes(&read("config.json"), &read("model.safetensors")).unwrap(),
        tokenizer: Tokenizer::from_json(&read("tokenizer.json")).unwrap(),
        latents: Some((read_prior(dir).unwrap(), Arc::new(writer))),
    };
    let options = MixingOptions {
        name: "s2s".into(),
        bytes: 80 << 10,
        seed: 1,
        threads: 1,
        mixer: None,
    };
    let base = tables.then(|| Model::from_bytes(base_file()).unwrap());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model");
    let progress = Progress::new(&|_, _, _, _| ());
    let model = mixing::train(&source, base.as_ref(), Some(trained), &options, &progress);
    model.unwrap().to_bytes().unwrap()
}

pub fn base_file() -> &'static [u8] {
    let name = Codecs::with_embedded("plain")
        .unwrap()
        .encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}
