//! A training run: from a directory of files and a recipe to an exact network.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;

use super::NetworkError;
use super::checkpoint::{Checkpoint, State, save, write_whole};
use super::data::{Source, sample};
use super::evaluate::{Computer, exact_cost};
use super::export::export;
use super::float::FloatNetwork;
use super::optimiser::{Optimiser, Rates};
use super::recipe::{Recipe, multiply_adds};
use crate::model::network::simd::Simd;
use crate::model::network::{Config, Network};
use crate::model::tokenizer::Tokenizer;
use crate::model::vocabulary::Vocabulary;
use crate::train::corpus::{Corpus, Piece, Random};
use crate::train::{self, VOCABULARY_BYTES, published};

/// The checkpoint in the directory of the output.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// Most that the exact network may lose.
pub const LOSS_MAX: f64 = 0.01;

/// What to train.
#[derive(Debug, Clone)]
pub struct Order {
    pub dir: PathBuf,
    /// The directory that gets the network.
    pub output: PathBuf,
    pub recipe: Recipe,
    /// A vocabulary to use instead of training one.
    pub tokenizer: Option<PathBuf>,
    /// The directory of a published T5 to start from instead of from nothing.
    pub from: Option<PathBuf>,
    pub resume: bool,
    pub device: Device,
    pub threads: usize,
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

/// Held-out sequences and the bytes that they stand for.
struct HeldOut {
    sequences: Vec<Vec<u16>>,
    bytes: f64,
}

/// All that changes in a run.
struct Run<'a> {
    order: &'a Order,
    source: Source<'a>,
    widths: &'a [u32],
    held_out: HeldOut,
    network: FloatNetwork,
    optimiser: Optimiser,
    computer: Computer,
    state: State,
}

fn views(sequences: &[Vec<u16>]) -> Vec<&[u16]> {
    sequences.iter().map(Vec::as_slice).collect()
}

fn bytes_of(sequences: &[Vec<u16>], widths: &[u32]) -> f64 {
    let bytes = sequences
        .iter()
        .flatten()
        .map(|&token| f64::from(widths[usize::from(token)]));
    bytes.sum()
}

/// Bits per byte.
fn bits(nats: f64, bytes: f64) -> f64 {
    nats / std::f64::consts::LN_2 / bytes.max(1.0)
}

fn hash_of(corpus: &Corpus) -> String {
    let mut hasher = blake3::Hasher::new();
    for piece in corpus.files() {
        hasher.update(&piece.len.to_le_bytes());
        hasher.update(corpus.bytes(piece));
    }
    hasher.finalize().to_hex().to_string()
}

/// Trains a network and writes it to the directory of the output.
///
/// # Errors
/// If there is too little data, a file cannot be read or written, a checkpoint does not fit, or the loss diverges.
pub fn run(order: &Order, tell: &dyn Fn(News)) -> Result<Outcome, NetworkError> {
    tell(News::Doing("reading"));
    let corpus = read(&order.dir)?;
    let mut random = Random(order.recipe.training.seed);
    let parts = train::divide(&corpus, &mut random);
    let mut checkpoint = match order.resume {
        true => Some(Checkpoint::read(
            &order.output.join(CHECKPOINT),
            &order.device,
        )?),
        false => None,
    };
    let data = hash_of(&corpus);
    if let Some(checkpoint) = &checkpoint {
        check_fits(&checkpoint.state, order, &data)?;
    }
    let tokenizer = tokenizer(order, checkpoint.as_ref(), &corpus, &parts.tables, tell)?;
    let vocabulary = Vocabulary::new(&tokenizer)?;
    let widths: Vec<u32> = (0..vocabulary.len())
        .map(|id| vocabulary.token(id as u16).len() as u32)
        .collect();
    let mut run = start(
        order,
        (&corpus, &tokenizer, &vocabulary, &widths),
        &parts,
        data,
        (&mut random, tell),
    )?;
    if let Some(checkpoint) = &mut checkpoint {
        run.restore(checkpoint)?;
    }
    drop(checkpoint);
    create_dir(&order.output)?;
    run.train(tell)?;
    tell(News::Doing("exporting"));
    run.finish()
}

fn read(dir: &Path) -> Result<Corpus, NetworkError> {
    let path = dir.display().to_string();
    let corpus = Corpus::read(dir).map_err(|source| NetworkError::File { path, source })?;
    match corpus.len() >= train::LEAST {
        true => Ok(corpus),
        false => Err(NetworkError::Data(format!(
            "{} holds {} bytes; training needs at least {}",
            dir.display(),
            corpus.len(),
            train::LEAST
        ))),
    }
}

fn create_dir(path: &Path) -> Result<(), NetworkError> {
    std::fs::create_dir_all(path).map_err(|source| NetworkError::File {
        path: path.display().to_string(),
        source,
    })
}

fn check_fits(state: &State, order: &Order, data: &str) -> Result<(), NetworkError> {
    let refuse = |what: &str| Err(NetworkError::Checkpoint(what.into()));
    if !state.recipe.continues(&order.recipe) {
        return refuse(
            "it was made with another configuration; only durations and intervals may change",
        );
    }
    if state.data != data {
        return refuse("it was made with other training data");
    }
    Ok(())
}

/// The vocabulary: that of the checkpoint, a given one, or one trained on a byte-balanced sample.
fn tokenizer(
    order: &Order,
    checkpoint: Option<&Checkpoint>,
    corpus: &Corpus,
    pieces: &[Piece],
    tell: &dyn Fn(News),
) -> Result<Tokenizer, NetworkError> {
    if let Some(checkpoint) = checkpoint {
        return Ok(Tokenizer::from_json(checkpoint.state.tokenizer.as_bytes())?);
    }
    if let Some(path) = &order.tokenizer {
        let json = std::fs::read(path).map_err(|source| NetworkError::File {
            path: path.display().to_string(),
            source,
        })?;
        return Ok(Tokenizer::from_json(&json)?.sorted()?);
    }
    tell(News::Doing("training the vocabulary"));
    let balance = order.recipe.training.balance;
    let sample = sample(corpus, pieces, balance, VOCABULARY_BYTES);
    let samples = sample.iter().map(|&piece| corpus.bytes(piece));
    Ok(Tokenizer::train(samples, order.recipe.network.vocabulary)?.sorted()?)
}

type Language<'a> = (&'a Corpus, &'a Tokenizer, &'a Vocabulary, &'a [u32]);

/// A run at its beginning.
fn start<'a>(
    order: &'a Order,
    (corpus, tokenizer, vocabulary, widths): Language<'a>,
    parts: &train::Parts,
    data: String,
    (random, tell): (&mut Random, &dyn Fn(News)),
) -> Result<Run<'a>, NetworkError> {
    let recipe = &order.recipe;
    let training = &recipe.training;
    let config = recipe.config(
        vocabulary.len(),
        vocabulary.classes(recipe.network.class_tokens),
    );
    config.check()?;
    let how = (training.sequence, training.balance, training.seed);
    let source = |pieces: &[Piece]| Source::new(corpus, (tokenizer, widths), pieces, how);
    let sequences = source(&parts.measure).batch(training.held_out_tokens)?;
    let held_out = HeldOut {
        bytes: bytes_of(&sequences, widths),
        sequences,
    };
    let network = match &order.from {
        Some(from) => begin(from, config, vocabulary, (random, &order.device), tell)?,
        None => FloatNetwork::new(config, random, &order.device)?,
    };
    let source = source(&parts.tables);
    let json =
        String::from_utf8(tokenizer.to_json()?).map_err(|e| NetworkError::Data(e.to_string()))?;
    Ok(Run {
        optimiser: Optimiser::new(network.parameters(), order.threads)?,
        computer: Computer::new(&network, &order.device, order.threads),
        state: State::new(recipe.clone(), json, data, source.position().clone()),
        order,
        source,
        widths,
        held_out,
        network,
    })
}

/// A network that starts from the published weights in `from`; says what it has of them.
fn begin(
    from: &Path,
    config: Config,
    vocabulary: &Vocabulary,
    (random, device): (&mut Random, &Device),
    tell: &dyn Fn(News),
) -> Result<FloatNetwork, NetworkError> {
    tell(News::Doing("reading published weights"));
    let tokens: Vec<&[u8]> = (0..vocabulary.len())
        .map(|id| vocabulary.token(id as u16))
        .collect();
    let start = published::start(from, config, &tokens, random, device)?;
    for line in &start.taken {
        tell(News::Note(&format!("taken: {line}")));
    }
    for line in &start.left {
        tell(News::Note(&format!("not taken: {line}")));
    }
    Ok(start.network)
}

impl Run<'_> {
    fn restore(&mut self, checkpoint: &mut Checkpoint) -> Result<(), NetworkError> {
        self.source.seek(checkpoint.state.position.clone())?;
        for parameter in self.network.parameters() {
            let saved = checkpoint.take(&parameter.name, parameter.var.as_tensor())?;
            parameter.var.set(&saved)?;
        }
        let memory = self.optimiser.memory();
        let memory = memory
            .iter()
            .map(|(name, like)| checkpoint.take(&memory_name(name), like));
        let memory = memory.collect::<Result<Vec<_>, _>>()?;
        self.optimiser.restore(checkpoint.state.step as i32, memory);
        self.state = checkpoint.state.clone();
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
        save(
            &self.order.output.join(CHECKPOINT),
            self.state.clone(),
            &tensors,
        )
    }

    /// The share of training that is over.
    fn done(&self) -> f64 {
        let training = &self.order.recipe.training;
        let done = match training.steps {
            Some(steps) => self.state.step as f64 / steps as f64,
            None => self.state.seconds / 60.0 / training.minutes,
        };
        done.min(1.0)
    }

    fn train(&mut self, tell: &dyn Fn(News)) -> Result<(), NetworkError> {
        let training = self.order.recipe.training.clone();
        let (started, before) = (Instant::now(), self.state.seconds);
        let tokens_before = self.state.tokens;
        let mut saved = before;
        while self.done() < 1.0 {
            let done = self.done();
            self.network.rounded = done >= training.float_phase;
            let training_bits = self.step(training.rate_at(self.state.step, done))?;
            let held_out = match self.state.step.is_multiple_of(training.evaluate_steps) {
                true => Some(self.held_out()?),
                false => None,
            };
            let seconds = started.elapsed().as_secs_f64();
            self.state.seconds = before + seconds;
            tell(News::Progress(Report {
                step: self.state.step,
                tokens: self.state.tokens,
                done: self.done(),
                tokens_per_second: (self.state.tokens - tokens_before) as f64 / seconds,
                training: training_bits,
                held_out,
            }));
            if self.state.seconds - saved >= 60.0 * training.checkpoint_minutes {
                self.save()?;
                saved = self.state.seconds;
            }
        }
        self.network.rounded = true;
        self.save()
    }

    /// One step; returns bits per byte of its batch.
    fn step(&mut self, share: f64) -> Result<f64, NetworkError> {
        let training = &self.order.recipe.training;
        let batch = self.source.batch(training.batch_tokens)?;
        let (nats, gradients) = self.computer.gradients(&self.network, &views(&batch))?;
        if !nats.is_finite() {
            return Err(NetworkError::Diverged(self.state.step));
        }
        let (matrices, others) = (training.matrix_rate * share, training.rate * share);
        self.optimiser
            .step(&gradients, Rates { matrices, others })?;
        self.state.step += 1;
        self.state.tokens += training.batch_tokens as u64;
        Ok(bits(
            nats * training.batch_tokens as f64,
            bytes_of(&batch, self.widths),
        ))
    }

    /// Bits per byte of held-out data.
    fn held_out(&mut self) -> Result<f64, NetworkError> {
        let nats = self
            .computer
            .cost(&self.network, &views(&self.held_out.sequences))?;
        Ok(bits(nats, self.held_out.bytes))
    }

    /// Exports the network, measures it and writes it.
    fn finish(mut self) -> Result<Outcome, NetworkError> {
        let rounded = self.held_out()?;
        self.network.rounded = false;
        let plain = self.held_out()?;
        let network = Arc::new(export(&self.network)?);
        let engine = Simd::new(network.clone(), self.order.threads);
        let nats = exact_cost(&engine, &network, &views(&self.held_out.sequences))?;
        self.write(&network)?;
        Ok(Outcome {
            step: self.state.step,
            tokens: self.state.tokens,
            multiply_adds: multiply_adds(network.config()),
            exact: bits(nats, self.held_out.bytes),
            rounded,
            plain,
        })
    }

    /// Writes the three files of a network; the configuration comes last.
    fn write(&self, network: &Network) -> Result<(), NetworkError> {
        let (config, tensors) = network.to_bytes()?;
        let output = &self.order.output;
        write_whole(
            &output.join("tokenizer.json"),
            self.state.tokenizer.as_bytes(),
        )?;
        write_whole(&output.join("model.safetensors"), &tensors)?;
        write_whole(&output.join("config.json"), &config)
    }
}

/// The name in a checkpoint of what the optimiser remembers.
fn memory_name(name: &str) -> String {
    format!("optimiser.{name}")
}
