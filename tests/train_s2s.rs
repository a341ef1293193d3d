//! Training of compressor and decompressor: it goes from copying to rewards, writes all its files, keeps a log, goes on
//! where it stopped, and refuses what does not fit.

#[path = "common/s2s.rs"]
mod s2s;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use s2s::{base_file, model_of, order, recipe, trained};
use s2sfs::codec::{Codecs, EncodeOptions, Policy};
use s2sfs::model::Model;
use s2sfs::model::network::Network;
use s2sfs::train::network::{self, session::CHECKPOINT};
use s2sfs::train::s2s::log::LOG;
use s2sfs::train::s2s::recipe::{Copy, Purpose};
use s2sfs::train::s2s::session::{COMPRESSOR, Order, PRIOR, read_prior, run};
use s2sfs::train::s2s::writer::Writer;
use s2sfs::train::s2s::{Compressor, S2sError};
use tempfile::TempDir;

fn log_of(order: &Order) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(order.output.join(LOG)).unwrap();
    let fields = |line: &str| line.split(',').map(String::from).collect();
    text.lines().skip(1).map(fields).collect()
}

fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for name in ["config.json", "model.safetensors", "tokenizer.json", PRIOR] {
        all.push((name.into(), std::fs::read(dir.join(name)).unwrap()));
    }
    let path = dir.join(COMPRESSOR).join("config.json");
    all.push((path.clone(), std::fs::read(path).unwrap()));
    all
}

/// The compressor's parameters; its file also has a header whose entries come in any order.
fn parameters(order: &Order) -> Vec<(String, Vec<f32>)> {
    let compressor = Compressor::load(&order.output.join(COMPRESSOR), &Device::Cpu).unwrap();
    let parameters = compressor.parameters().into_iter();
    let values = parameters.map(|p| {
        let values = p.var.flatten_all().unwrap().to_vec1().unwrap();
        (p.name, values)
    });
    values.collect()
}

#[test]
fn a_run_copies_then_is_rewarded_and_leaves_files_that_fit_each_other() {
    let dir = TempDir::new().unwrap();
    let order = order(dir.path(), recipe(8));
    let outcome = trained(&order).unwrap();
    assert!(outcome.loss.abs() < 0.01);
    let line = outcome.line;
    assert!(line.total >= line.residual && line.without > 0.5 && line.without < 9.0);
    let log = log_of(&order);
    assert_eq!(log.len(), 8);
    let phases: Vec<&str> = log.iter().map(|line| line[1].as_str()).collect();
    assert_eq!(phases, [["copy"; 4], ["a2c"; 4]].concat());
    for line in &log {
        let numbers = line[2..].iter().map(|field| field.parse::<f64>().unwrap());
        assert!(numbers.into_iter().all(f64::is_finite), "{line:?}");
    }
    let read = |name: &str| std::fs::read(order.output.join(name)).unwrap();
    let network = Network::from_bytes(&read("config.json"), &read("model.safetensors")).unwrap();
    let config = network.config();
    assert_eq!((config.latent_vocab, config.max_latents), (40, 6));
    let prior = read_prior(&order.output).unwrap();
    assert_eq!((prior.alphabet(), prior.most()), (40, 6));
    let compressor = Compressor::load(&order.output.join(COMPRESSOR), &Device::Cpu).unwrap();
    assert_eq!(compressor.config().vocab_size, config.vocab_size);
}

#[test]
fn every_way_of_using_latents_can_be_trained() {
    for (purpose, copy, again) in [
        (Purpose::Chunk, Copy::First, 0),
        (Purpose::Chunk, Copy::Salient, 1),
        (Purpose::Extent, Copy::First, 1),
    ] {
        let dir = TempDir::new().unwrap();
        let mut recipe = recipe(4);
        recipe.latents.purpose = purpose;
        recipe.latents.copy = copy;
        recipe.latents.again = again;
        let outcome = trained(&order(dir.path(), recipe)).unwrap();
        assert!(outcome.line.total.is_finite());
    }
}

#[test]
fn a_run_that_goes_on_is_a_run_that_never_stopped() {
    let dir = TempDir::new().unwrap();
    let mut recipe = recipe(6);
    // all of it copies, so that the phases do not depend on the length either
    recipe.latents.copy_share = 1.0;
    let whole = order(&dir.path().join("whole"), recipe.clone());
    trained(&whole).unwrap();
    let mut part = order(&dir.path().join("part"), recipe.clone());
    part.recipe.training.steps = Some(3);
    trained(&part).unwrap();
    part.recipe.training.steps = Some(6);
    part.resume = true;
    trained(&part).unwrap();
    assert_eq!(log_of(&whole), log_of(&part));
    let names = |order: &Order| {
        let files = files(&order.output).into_iter();
        files
            .map(|(_, bytes)| blake3::hash(&bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&whole), names(&part));
    assert_eq!(parameters(&whole), parameters(&part));
    // another configuration
    part.recipe.latents.without = 0.5;
    part.recipe.training.steps = Some(8);
    let error = trained(&part).unwrap_err().to_string();
    assert!(error.contains("another configuration"), "{error}");
    // a damaged checkpoint
    let path = part.output.join(CHECKPOINT);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 9;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    part.recipe.latents.without = recipe.latents.without;
    assert!(trained(&part).is_err());
}

#[test]
fn latents_are_tried_and_never_cost_a_byte() {
    let dir = TempDir::new().unwrap();
    let order = order(dir.path(), recipe(8));
    trained(&order).unwrap();
    let files = [true, false].map(|tables| model_of(&order.output, tables));
    let text = include_bytes!("train_s2s.rs");
    for (file, (purpose, group)) in [
        (&files[0], (Purpose::Extent, 2048)),
        (&files[0], (Purpose::Chunk, 512)),
        (&files[1], (Purpose::Extent, 2048)),
        (&files[1], (Purpose::Chunk, 512)),
    ] {
        let codecs = || Codecs::with_model_and_base(file, Some(base_file())).unwrap();
        let plain = codecs();
        let writer = Writer::load(&order.output.join(COMPRESSOR), purpose, 2).unwrap();
        assert!(plain.reads(&writer));
        let with = codecs().writing(Arc::new(writer));
        let options = EncodeOptions {
            policy: Policy::Ratio,
            group: Some(group),
            ..EncodeOptions::default()
        };
        for raw in [&text[..6000], &text[..10], &[7; 5000], b""] {
            let expected = plain.encode(raw, &options, None).unwrap();
            let encoded = with.encode(raw, &options, None).unwrap();
            assert!(encoded.payload.len() <= expected.payload.len());
            // whoever reads needs no compressor
            assert_eq!(plain.decode_all(&encoded.payload, None).unwrap(), raw);
        }
    }
    assert!(
        !Codecs::with_default_model()
            .unwrap()
            .reads(&Writer::load(&order.output.join(COMPRESSOR), Purpose::Extent, 1).unwrap())
    );
}

#[test]
fn latents_are_worth_what_they_save_the_judge() {
    let dir = TempDir::new().unwrap();
    let first = order(&dir.path().join("first"), recipe(4));
    trained(&first).unwrap();
    let judge = Model::from_bytes_and(&model_of(&first.output, true), &|_| {
        Some(Arc::new(Model::from_bytes(base_file()).unwrap()))
    });
    let judge = Arc::new(judge.unwrap());
    let mut alone = order(&dir.path().join("alone"), recipe(24));
    let mut judged = order(&dir.path().join("judged"), recipe(24));
    trained(&alone).unwrap();
    run(&judged, Some(judge.clone()), &|_| ()).unwrap();
    let (a, b) = (log_of(&alone), log_of(&judged));
    // until the first reward only what is measured differs; the first strings are the same, but not what they save
    for (a, b) in a[..12].iter().zip(&b[..12]) {
        assert_eq!(a[..6], b[..6]);
        assert_ne!(a[8], b[8]);
    }
    assert_eq!((&a[12][3], &a[12][5]), (&b[12][3], &b[12][5]));
    assert!((12..24).any(|line| a[line][2] != b[line][2]));
    // who judges must not change when a run goes on
    judged.resume = true;
    judged.recipe.training.steps = Some(26);
    let error = trained(&judged).unwrap_err().to_string();
    assert!(error.contains("another judge"), "{error}");
    run(&judged, Some(judge.clone()), &|_| ()).unwrap();
    alone.resume = true;
    alone.recipe.training.steps = Some(26);
    assert!(run(&alone, Some(judge), &|_| ()).is_err());
}

#[test]
fn the_decompressor_starts_from_a_network_without_latents() {
    let dir = TempDir::new().unwrap();
    let recipe = recipe(1);
    let mut decompressor = recipe.decompressor();
    decompressor.network.latents = 0;
    decompressor.training.steps = Some(40);
    decompressor.training.batch_tokens = 600;
    decompressor.training.sequence = 24;
    let whole = order(&dir.path().join("network"), recipe.clone());
    network::session::run(&whole.with(decompressor), &|_| ()).unwrap();
    let without = |order: &Order| log_of(order)[0][8].parse::<f64>().unwrap();
    let fresh = order(&dir.path().join("fresh"), recipe.clone());
    trained(&fresh).unwrap();
    let mut from = order(&dir.path().join("from"), recipe.clone());
    from.from = Some(whole.output.clone());
    trained(&from).unwrap();
    assert!(without(&from) < 0.9 * without(&fresh));
    let vocabulary = |order: &Order| std::fs::read(order.output.join("tokenizer.json")).unwrap();
    assert_eq!(vocabulary(&from), vocabulary(&whole));
    // one of another shape, and none at all
    let mut other = order(&dir.path().join("other"), recipe.clone());
    other.from = Some(whole.output.clone());
    other.recipe.network.d_ff = 96;
    let error = trained(&other).unwrap_err().to_string();
    assert!(error.contains(CHECKPOINT), "{error}");
    other.from = Some(dir.path().join("nowhere"));
    assert!(trained(&other).is_err());
    from.tokenizer = Some(whole.output.join("tokenizer.json"));
    let error = trained(&from).unwrap_err().to_string();
    assert!(error.contains("--tokenizer"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut without = recipe(2);
    without.network.latents = 0;
    let error = trained(&order(dir.path(), without)).unwrap_err();
    assert!(matches!(error, S2sError::Config(_)), "{error}");
    let mut wild = recipe(40);
    wild.latents.rate = 1e30;
    let error = trained(&order(dir.path(), wild)).unwrap_err();
    assert!(matches!(error, S2sError::Diverged(_)), "{error}");
}
