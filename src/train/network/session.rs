//! A training run: from a directory of files and a recipe to an exact network.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;

use super::NetworkError;
use super::checkpoint::{Checkpoint, State, save, write_whole};
use super::data::{Language, Source, sample};
use super::evaluate::{Computer, best_export};
use super::float::{FloatNetwork, Sample};
use super::mean::{self, Mean};
use super::optimiser::{Optimiser, Rates};
use super::recipe::{Recipe, Training, multiply_adds};
use crate::model::ModelError;
use crate::model::network::{Config, Network};
use crate::model::tokenizer::Tokenizer;
use crate::model::vocabulary::Vocabulary;
use crate::train::corpus::{Corpus, Piece, Random};
use crate::train::{self, VOCABULARY_BYTES, published};

/// The checkpoint in the directory of the output.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// The files of a network, the one that readers begin with last.
pub const FILES: [&str; 3] = ["tokenizer.json", "model.safetensors", "config.json"];
/// Most that the exact network may lose.
pub const LOSS_MAX: f64 = 0.01;

/// What to train.
#[derive(Debug, Clone)]
pub struct Order<R = Recipe> {
    pub dir: PathBuf,
    /// The directory that gets the network.
    pub output: PathBuf,
    pub recipe: R,
    /// A vocabulary to use instead of training one.
    pub tokenizer: Option<PathBuf>,
    /// A directory to start from instead of from nothing: of a published T5, or with latents of a network without.
    pub from: Option<PathBuf>,
    pub resume: bool,
    pub device: Device,
    pub threads: usize,
}

impl<R> Order<R> {
    /// The same with another recipe.
    pub fn with<S>(&self, recipe: S) -> Order<S> {
        Order {
            dir: self.dir.clone(),
            output: self.output.clone(),
            recipe,
            tokenizer: self.tokenizer.clone(),
            from: self.from.clone(),
            resume: self.resume,
            device: self.device.clone(),
            threads: self.threads,
        }
    }
}

/// The time of a run, with that of the runs before that it goes on from.
#[derive(Debug)]
pub(crate) struct Watch {
    started: Instant,
    /// Seconds and tokens of the runs before.
    seconds: f64,
    tokens: u64,
    /// When the newest checkpoint was asked for.
    saved: f64,
}

impl Watch {
    pub fn new(seconds: f64, tokens: u64) -> Watch {
        Watch {
            started: Instant::now(),
            seconds,
            tokens,
            saved: seconds,
        }
    }

    /// Seconds of training, those before included.
    pub fn seconds(&self) -> f64 {
        self.seconds + self.started.elapsed().as_secs_f64()
    }

    /// Tokens per second of this run, when there are so many with those before.
    pub fn rate(&self, tokens: u64) -> f64 {
        (tokens - self.tokens) as f64 / self.started.elapsed().as_secs_f64()
    }

    /// True when the next checkpoint is due.
    pub fn wants_checkpoint(&mut self, training: &Training) -> bool {
        let seconds = self.seconds();
        let due = seconds - self.saved >= 60.0 * training.checkpoint_minutes;
        if due {
            self.saved = seconds;
        }
        due
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub step: u64,
    pub tokens: u64,
    /// Share that is done.
    pub done: f64,
    pub tokens_per_second: f64,
    /// Bits per byte of what was trained on last.
    pub training: f64,
    /// Bits per byte of held-out data, where it was just measured.
    pub held_out: Option<f64>,
}

/// What a run says while it goes on.
#[derive(Debug)]
pub enum News<'a> {
    Doing(&'a str),
    /// Something to know about the result.
    Note(&'a str),
    Progress(Report),
}

/// What came of a run, in bits per byte of held-out data.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub step: u64,
    pub tokens: u64,
    pub multiply_adds: usize,
    /// Ends of cycles whose mean the network is.
    pub averaged: u32,
    pub exact: f64,
    /// In floats that are rounded as in training.
    pub rounded: f64,
    /// In floats without rounding.
    pub plain: f64,
}

impl Outcome {
    /// How much more than the better one of the networks in floats the exact network costs.
    pub fn loss(&self) -> f64 {
        self.exact / self.rounded.min(self.plain) - 1.0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} steps, {:.1} M tokens, {:.2} M multiply-adds per token, mean of {}; bits per byte of held-out data: {:.4} exact, \
             {:.4} as trained, {:.4} without rounding; loss of quantisation {:.2} %",
            self.step,
            self.tokens as f64 / 1e6,
            self.multiply_adds as f64 / 1e6,
            self.averaged,
            self.exact,
            self.rounded,
            self.plain,
            self.loss() * 100.0,
        )
    }
}

/// Held-out sequences and the bytes that they stand for.
struct HeldOut {
    sequences: Vec<Vec<u16>>,
    bytes: f64,
}

/// What a run starts from.
struct Material<'a> {
    corpus: &'a Corpus,
    parts: train::Parts,
    /// Hash of the corpus.
    data: String,
    published: Option<published::Checkpoint>,
}

/// All that changes in a run.
struct Run<'a> {
    order: &'a Order,
    source: Source<'a>,
    language: &'a Language,
    held_out: HeldOut,
    network: FloatNetwork,
    optimiser: Optimiser,
    computer: Computer,
    /// Of the ends of cycles.
    mean: Mean,
    state: State,
}

fn samples(sequences: &[Vec<u16>]) -> Vec<Sample<'_>> {
    sequences
        .iter()
        .map(|tokens| tokens.as_slice().into())
        .collect()
}

fn bytes_of(sequences: &[Vec<u16>], language: &Language) -> f64 {
    let bytes = sequences.iter().map(|tokens| language.bytes(tokens));
    bytes.sum::<u64>() as f64
}

/// Bits per byte.
fn bits(nats: f64, bytes: f64) -> f64 {
    nats / std::f64::consts::LN_2 / bytes.max(1.0)
}

/// Hash of all files and their kinds.
pub(crate) fn hash_of(corpus: &Corpus) -> String {
    let mut hasher = blake3::Hasher::new();
    for piece in corpus.files() {
        hasher.update(&(corpus.kind(piece.file) as u64).to_le_bytes());
        hasher.update(&piece.len.to_le_bytes());
        hasher.update(corpus.bytes(piece));
    }
    hasher.finalize().to_hex().to_string()
}

/// Trains a network and writes it to the directory of the output.
///
/// # Errors
/// If the network is to have latents, there is too little data, a file cannot be read or written, a checkpoint does not fit, the loss diverges, or
/// the exact network would lose too much.
pub fn run(order: &Order, tell: &dyn Fn(News)) -> Result<Outcome, NetworkError> {
    order.recipe.check()?;
    if order.recipe.network.latents > 0 {
        return Err(NetworkError::Recipe(
            "latents must be 0: text alone teaches a network nothing about them".into(),
        ));
    }
    tell(News::Doing("reading"));
    let corpus = Corpus::read_at_least(&order.dir)?;
    let mut random = Random(order.recipe.training.seed);
    let material = Material {
        parts: train::divide(&corpus, &mut random),
        data: hash_of(&corpus),
        published: published_weights(order, tell)?,
        corpus: &corpus,
    };
    let checkpoint = order.resume.then(|| resumed(order, &material.data));
    let checkpoint = checkpoint.transpose()?;
    let pieces = &material.parts.tables;
    let language = language(order, checkpoint.as_ref(), &corpus, pieces, tell)?;
    let mut run = start(order, material, &language, &mut random, tell)?;
    if let Some(checkpoint) = checkpoint {
        run.restore(checkpoint)?;
    }
    prepare(order)?;
    run.train(tell)?;
    tell(News::Doing("exporting"));
    run.finish()
}

/// Makes the directory of the output; a run from the beginning takes away what an earlier one left there.
pub(crate) fn prepare(order: &Order) -> Result<(), NetworkError> {
    let failed = |path: &Path, source| NetworkError::File {
        path: path.display().to_string(),
        source,
    };
    let output = &order.output;
    std::fs::create_dir_all(output).map_err(|error| failed(output, error))?;
    for name in FILES.iter().chain([&CHECKPOINT]).filter(|_| !order.resume) {
        let path = output.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&path, error)),
            _ => (),
        }
    }
    Ok(())
}

/// The checkpoint to go on from, if it is one of such a run.
fn resumed(order: &Order, data: &str) -> Result<Checkpoint, NetworkError> {
    let file = order.output.join(CHECKPOINT);
    let checkpoint = Checkpoint::<State>::read(&file, &order.device)?;
    let other = |what| NetworkError::OtherRun {
        path: file.display().to_string(),
        what,
    };
    let state = &checkpoint.state;
    if !state.recipe.continues(&order.recipe) {
        return Err(other(
            "configuration: only durations and intervals may change",
        ));
    }
    if state.data != data {
        return Err(other("set of training data"));
    }
    Ok(checkpoint)
}

/// The vocabulary: that of the checkpoint, a given one, or one trained on a byte-balanced sample.
fn language(
    order: &Order,
    checkpoint: Option<&Checkpoint>,
    corpus: &Corpus,
    pieces: &[Piece],
    tell: &dyn Fn(News),
) -> Result<Language, NetworkError> {
    match checkpoint {
        Some(checkpoint) => language_from(&checkpoint.state.tokenizer)
            .map_err(|error| checkpoint.refuse(error.to_string())),
        None => new_language(order, corpus, pieces, tell),
    }
}

/// The vocabulary of a checkpoint.
pub(crate) fn language_from(tokenizer: &str) -> Result<Language, ModelError> {
    Tokenizer::from_json(tokenizer.as_bytes()).and_then(Language::new)
}

/// The vocabulary that the order names, or one trained on a byte-balanced sample.
pub(crate) fn new_language(
    order: &Order,
    corpus: &Corpus,
    pieces: &[Piece],
    tell: &dyn Fn(News),
) -> Result<Language, NetworkError> {
    if let Some(file) = &order.tokenizer {
        let path = file.display().to_string();
        let json = match std::fs::read(file) {
            Ok(json) => json,
            Err(source) => return Err(NetworkError::File { path, source }),
        };
        let sorted = || -> Result<Language, ModelError> {
            Language::new(Tokenizer::from_json(&json)?.sorted()?)
        };
        return sorted().map_err(|source| NetworkError::Tokenizer { path, source });
    }
    tell(News::Doing("training the vocabulary"));
    let balance = order.recipe.training.balance;
    let sample = sample(corpus, pieces, balance, VOCABULARY_BYTES);
    let samples = sample.iter().map(|&piece| corpus.bytes(piece));
    let tokenizer = Tokenizer::train(samples, order.recipe.network.vocabulary)?;
    Ok(Language::new(tokenizer.sorted()?)?)
}

/// A run at its beginning.
fn start<'a>(
    order: &'a Order,
    material: Material<'a>,
    language: &'a Language,
    random: &mut Random,
    tell: &dyn Fn(News),
) -> Result<Run<'a>, NetworkError> {
    let recipe = &order.recipe;
    let vocabulary = &language.vocabulary;
    let classes = vocabulary.classes(recipe.network.class_tokens);
    let config = recipe.config(vocabulary.len(), classes);
    config.check()?;
    let source = |pieces: &[Piece]| {
        Source::new(material.corpus, language, pieces, &recipe.training).ok_or_else(|| {
            NetworkError::Data {
                path: order.dir.display().to_string(),
                what: "too few files: some are set aside as a whole, to measure with".into(),
            }
        })
    };
    let sequences = source(&material.parts.measure)?.batch(recipe.training.held_out_tokens)?;
    let held_out = HeldOut {
        bytes: bytes_of(&sequences, language),
        sequences,
    };
    let source = source(&material.parts.tables)?;
    let network = match &material.published {
        Some(published) => begin(published, config, vocabulary, random, &order.device, tell)?,
        None => FloatNetwork::new(config, random, &order.device)?,
    };
    let json = language.tokenizer.to_json()?;
    let json = String::from_utf8_lossy(&json).into_owned();
    Ok(Run {
        optimiser: Optimiser::new(network.parameters(), order.threads)?,
        computer: Computer::new(&network, &order.device, order.threads),
        state: State::new(
            recipe.clone(),
            json,
            material.data,
            source.position().clone(),
        ),
        mean: Mean::default(),
        order,
        source,
        language,
        held_out,
        network,
    })
}

/// The published weights to start from, if there are any; read first, so that nothing is done in vain.
fn published_weights(
    order: &Order,
    tell: &dyn Fn(News),
) -> Result<Option<published::Checkpoint>, NetworkError> {
    let Some(from) = &order.from else {
        return Ok(None);
    };
    tell(News::Doing("reading published weights"));
    let published = published::Checkpoint::load(from, &order.device)?;
    published::check_width(&published, order.recipe.network.d_model)?;
    Ok(Some(published))
}

/// A network that starts from published weights; says what it has of them.
fn begin(
    published: &published::Checkpoint,
    config: Config,
    vocabulary: &Vocabulary,
    random: &mut Random,
    device: &Device,
    tell: &dyn Fn(News),
) -> Result<FloatNetwork, NetworkError> {
    let tokens: Vec<&[u8]> = (0..vocabulary.len())
        .map(|id| vocabulary.token(id as u16))
        .collect();
    let start = published::start(published, config, &tokens, random, device)?;
    for line in &start.taken {
        tell(News::Note(&format!("taken: {line}")));
    }
    for line in &start.left {
        tell(News::Note(&format!("not taken: {line}")));
    }
    Ok(start.network)
}

impl Run<'_> {
    fn restore(&mut self, mut checkpoint: Checkpoint) -> Result<(), NetworkError> {
        if !self.source.seek(checkpoint.state.position.clone()) {
            return Err(checkpoint.refuse("it stands in other training data".into()));
        }
        for parameter in self.network.parameters() {
            let saved = checkpoint.take(&parameter.name, parameter.var.as_tensor())?;
            parameter.var.set(&saved)?;
        }
        let averaged = checkpoint.state.averaged;
        if averaged > 0 {
            let parameters = self.network.parameters().into_iter();
            let mean = parameters.map(|p| {
                let saved = checkpoint.take(&mean_name(&p.name), p.var.as_tensor())?;
                Ok::<_, NetworkError>((p.name, saved))
            });
            self.mean = Mean::new(averaged, mean.collect::<Result<_, _>>()?);
        }
        let memory = self.optimiser.memory();
        let memory = memory
            .iter()
            .map(|(name, like)| checkpoint.take(&memory_name(name), like));
        let memory = memory.collect::<Result<Vec<_>, _>>()?;
        let steps = i32::try_from(checkpoint.state.step).unwrap_or(i32::MAX);
        self.optimiser.restore(steps, memory);
        self.state = checkpoint.state;
        self.state.recipe = self.order.recipe.clone();
        Ok(())
    }

    fn save(&mut self) -> Result<(), NetworkError> {
        self.state.position = self.source.position().clone();
        let parameters = self.network.parameters().into_iter();
        let mut tensors: Vec<_> = parameters
            .map(|p| (p.name, p.var.as_tensor().clone()))
            .collect();
        let memory = self.optimiser.memory().into_iter();
        tensors.extend(memory.map(|(name, tensor)| (memory_name(&name), tensor)));
        let mean = self.mean.tensors().iter();
        tensors.extend(mean.map(|(name, tensor)| (mean_name(name), tensor.clone())));
        self.state.averaged = self.mean.count();
        save(&self.order.output.join(CHECKPOINT), &self.state, &tensors)
    }

    /// The share of training that is over.
    fn done(&self) -> f64 {
        let training = &self.order.recipe.training;
        training.done(self.state.step, self.state.seconds)
    }

    fn train(&mut self, tell: &dyn Fn(News)) -> Result<(), NetworkError> {
        let training = self.order.recipe.training.clone();
        let mut watch = Watch::new(self.state.seconds, self.state.tokens);
        while self.done() < 1.0 {
            let done = self.done();
            self.network.rounded = done >= training.float_phase;
            let training_bits = self.step(training.rates_at(self.state.step, done))?;
            let held_out = match self.state.step.is_multiple_of(training.evaluate_steps) {
                true => Some(self.held_out()?),
                false => None,
            };
            self.state.seconds = watch.seconds();
            if training.ended_cycles(self.done()) > training.ended_cycles(done) {
                self.mean.add(&self.network)?;
            }
            tell(News::Progress(Report {
                step: self.state.step,
                tokens: self.state.tokens,
                done: self.done(),
                tokens_per_second: watch.rate(self.state.tokens),
                training: training_bits,
                held_out,
            }));
            if watch.wants_checkpoint(&training) {
                self.save()?;
            }
        }
        self.network.rounded = true;
        self.save()
    }

    /// One step; returns bits per byte of its batch.
    fn step(&mut self, rates: Rates) -> Result<f64, NetworkError> {
        let training = &self.order.recipe.training;
        let batch = self.source.batch(training.batch_tokens)?;
        let (nats, gradients) = self.computer.gradients(&self.network, &samples(&batch))?;
        if !nats.is_finite() {
            return Err(NetworkError::Diverged(self.state.step));
        }
        self.optimiser.step(&gradients, rates)?;
        self.state.step += 1;
        self.state.tokens += training.batch_tokens as u64;
        Ok(bits(
            nats * training.batch_tokens as f64,
            bytes_of(&batch, self.language),
        ))
    }

    /// Bits per byte of held-out data.
    fn held_out(&mut self) -> Result<f64, NetworkError> {
        let nats = self
            .computer
            .cost(&self.network, &samples(&self.held_out.sequences))?;
        Ok(bits(nats, self.held_out.bytes))
    }

    /// Takes the mean of the ends of cycles if it is better than the last one; returns bits per byte, and how many it is
    /// the mean of.
    fn choose(&mut self) -> Result<(f64, u32), NetworkError> {
        let last = self.held_out()?;
        if self.mean.count() < 2 {
            return Ok((last, 1));
        }
        let before = self.mean.replace(&self.network)?;
        let averaged = self.held_out()?;
        if averaged < last {
            return Ok((averaged, self.mean.count()));
        }
        mean::put(&self.network, &before)?;
        Ok((last, 1))
    }

    /// Exports the network, measures it and, if it is as good as it should be, writes it.
    fn finish(mut self) -> Result<Outcome, NetworkError> {
        let (rounded, averaged) = self.choose()?;
        self.network.rounded = false;
        let plain = self.held_out()?;
        let held_out = samples(&self.held_out.sequences);
        let (network, nats) = best_export(&self.network, &held_out, self.order.threads)?;
        let outcome = Outcome {
            step: self.state.step,
            tokens: self.state.tokens,
            multiply_adds: multiply_adds(network.config()),
            averaged,
            exact: bits(nats, self.held_out.bytes),
            rounded,
            plain,
        };
        if outcome.loss().is_nan() || outcome.loss() > LOSS_MAX {
            return Err(NetworkError::Lossy(outcome));
        }
        self.write(&network)?;
        Ok(outcome)
    }

    /// Writes the files of a network.
    fn write(&self, network: &Network) -> Result<(), NetworkError> {
        let (config, tensors) = network.to_bytes()?;
        let tokenizer = self.state.tokenizer.as_bytes();
        for (name, bytes) in FILES.iter().zip([tokenizer, &tensors, &config]) {
            write_whole(&self.order.output.join(name), bytes)?;
        }
        Ok(())
    }
}

/// The name in a checkpoint of the mean of a parameter.
pub(crate) fn mean_name(name: &str) -> String {
    format!("mean.{name}")
}

/// The name in a checkpoint of what the optimiser remembers.
fn memory_name(name: &str) -> String {
    format!("optimiser.{name}")
}
