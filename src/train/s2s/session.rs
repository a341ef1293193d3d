//! A training run of compressor and decompressor: from a directory of files and a recipe to a network that reads
//! latents, the prior of these, and who writes them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::judge::{self, Judge};
use super::log::{Line, Log};
use super::reading::{Rule, Usual, glosses, latent_of};
use super::recipe::Recipe;
use super::steps::Stepped;
use super::{Compressor, Config, Result, S2sError};
use crate::model::latents::{LatentCounts, LatentPrior};
use crate::model::{Model, hex};
use crate::train::corpus::{Corpus, PIECE, Piece, Random, joined};
use crate::train::network::checkpoint::{self, Checkpoint, Versioned, write_whole};
use crate::train::network::data::{Language, Position, Source, sample};
use crate::train::network::evaluate::{Computer, best_export};
use crate::train::network::float::{FloatNetwork, Parameter, Sample};
use crate::train::network::optimiser::Optimiser;
use crate::train::network::session::{self, CHECKPOINT, LOSS_MAX, News, Report, Watch};
use crate::train::{self, network};

/// The compressor's directory in that of the output, and the file of the prior.
pub const COMPRESSOR: &str = "compressor";
pub const PRIOR: &str = "latents.prior";
/// Bytes that tell how often tokens usually occur.
const USUAL_BYTES: usize = 4 << 20;
/// Strings that the shipped prior is made of, at least.
const PRIOR_STRINGS: usize = 512;
/// Held-out chunks by which the units of the judge's network are chosen.
const JUDGED_CHUNKS: usize = 64;

/// What to train; the directory of the output gets network, prior and compressor.
pub type Order = session::Order<Recipe>;

/// All of a run but its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    recipe: Recipe,
    tokenizer: String,
    data: String,
    position: Position,
    pub(super) step: u64,
    pub(super) tokens: u64,
    seconds: f64,
    /// The prior in force, and the strings that will make the next.
    prior: Vec<u8>,
    recent: Vec<Vec<u16>>,
    random: u64,
    /// Hash of the model that says what latents save, if it is not the decompressor alone.
    judge: Option<String>,
}

impl Versioned for State {
    const VERSION: u32 = 1;

    fn version(&self) -> u32 {
        self.version
    }
}

/// What came of a run, on held-out data.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub line: Line,
    pub tokens: u64,
    /// How much more than the network as it was trained the exact one costs.
    pub loss: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let line = &self.line;
        write!(
            f,
            "{} steps, {:.1} M tokens; bits per byte of held-out data: {:.4} without latents, {:.4} with and {:.4} with what they \
             cost; ",
            line.step,
            self.tokens as f64 / 1e6,
            line.without,
            line.residual,
            line.total,
        )?;
        match line.latents > 0.0 {
            true => {
                let each = line.latent_bits / line.latents;
                write!(
                    f,
                    "{:.1} latents of {each:.1} bits in a string",
                    line.latents
                )?;
            }
            false => f.write_str("no string has a latent")?,
        }
        write!(f, "; loss of quantisation {:.2} %", self.loss * 100.0)
    }
}

/// All that changes in a run.
pub(super) struct Run<'a> {
    pub order: &'a Order,
    pub source: Source<'a>,
    pub language: &'a Language,
    /// What there is to copy.
    pub rule: Rule,
    /// Held-out extents.
    pub held_out: Vec<Vec<u16>>,
    pub compressor: Compressor,
    pub compressor_optimiser: Optimiser,
    pub decompressor: FloatNetwork,
    pub decompressor_optimiser: Optimiser,
    pub computer: Computer,
    pub prior: LatentPrior,
    /// The model that rewards are measured with, and this model with the decompressor as it was lately.
    pub known: Option<Arc<Model>>,
    pub judge: Option<Judge>,
    pub random: Random,
    pub state: State,
}

/// Trains, and writes what came of it to the directory of the output. `order.from` is the directory of a network
/// without latents that the decompressor starts from; latents are worth what they save in `judge`, a model with
/// a network of the same vocabulary, or to the decompressor alone if there is none.
///
/// # Errors
/// If there is too little data, a file cannot be read or written, a checkpoint, the network to start from or the
/// judge does not fit, a loss diverges, or the exact network would lose too much.
pub fn run(order: &Order, judge: Option<Arc<Model>>, tell: &dyn Fn(News)) -> Result<Outcome> {
    order.recipe.check()?;
    if order.from.is_some() && order.tokenizer.is_some() {
        let why = "the vocabulary is that of the network to start from: leave out --tokenizer";
        return Err(S2sError::Config(why.into()));
    }
    tell(News::Doing("reading"));
    let network = order.with(order.recipe.decompressor());
    let corpus = Corpus::read_at_least(&order.dir).map_err(session_error)?;
    let mut random = Random(order.recipe.training.seed);
    let parts = train::divide(&corpus, &mut random);
    let data = session::hash_of(&corpus);
    let name = judge.as_ref().map(|model| hex(&model.hash));
    let checkpoint = match order.resume {
        true => Some(resumed(order, &data, name.as_deref())?),
        false => None,
    };
    let first = order
        .from
        .as_ref()
        .map(|dir| first_network(dir, &order.device));
    let first = first.transpose()?;
    let language = match (&checkpoint, &first) {
        (Some(checkpoint), _) => session::language_from(&checkpoint.state.tokenizer)?,
        (None, Some(first)) => session::language_from(&first.state.tokenizer)?,
        (None, None) => session::new_language(&network, &corpus, &parts.tables, tell)?,
    };
    if let Some(model) = &judge {
        judge::check(model, &language)?;
    }
    tell(News::Doing("counting"));
    let mut run = Run::start(order, (&corpus, &parts), data, &language, &mut random)?;
    (run.known, run.state.judge) = (judge, name);
    session::prepare(&network)?;
    match (checkpoint, first) {
        (Some(checkpoint), _) => run.restore(checkpoint)?,
        (None, Some(first)) => run.take_over(first)?,
        (None, None) => {}
    }
    run.train(tell)?;
    tell(News::Doing("exporting"));
    run.finish()
}

fn session_error(error: train::TrainError) -> S2sError {
    S2sError::Network(error.into())
}

/// The checkpoint of a network without latents, to start from.
fn first_network(dir: &Path, device: &Device) -> Result<Checkpoint<network::checkpoint::State>> {
    Ok(Checkpoint::read(&dir.join(CHECKPOINT), device)?)
}

/// The checkpoint to go on from, if it is one of such a run.
fn resumed(order: &Order, data: &str, judge: Option<&str>) -> Result<Checkpoint<State>> {
    let checkpoint = Checkpoint::<State>::read(&order.output.join(CHECKPOINT), &order.device)?;
    let state = &checkpoint.state;
    let mut asked = order.recipe.clone();
    let known = &state.recipe.training;
    asked.training.steps = known.steps;
    asked.training.minutes = known.minutes;
    if asked != state.recipe {
        let why = "was made with another configuration: only its duration may change";
        return Err(checkpoint.refuse(why.into()).into());
    }
    if state.data != data {
        let why = "was made with another set of training data";
        return Err(checkpoint.refuse(why.into()).into());
    }
    if state.judge.as_deref() != judge {
        let why = "was made with another judge";
        return Err(checkpoint.refuse(why.into()).into());
    }
    Ok(checkpoint)
}

impl<'a> Run<'a> {
    fn start(
        order: &'a Order,
        (corpus, parts): (&'a Corpus, &train::Parts),
        data: String,
        language: &'a Language,
        random: &mut Random,
    ) -> Result<Run<'a>> {
        let recipe = order.recipe.decompressor();
        let vocabulary = &language.vocabulary;
        let classes = vocabulary.classes(recipe.network.class_tokens);
        let config = recipe.config(vocabulary.len(), classes);
        let source = |pieces: &[Piece]| {
            let found = Source::new(corpus, language, pieces, &recipe.training);
            found.ok_or_else(|| S2sError::Config("too few files to set some aside".into()))
        };
        let held_out = source(&parts.measure)?.batch(recipe.training.held_out_tokens)?;
        // four bytes are less than most tokens have, so most of what is cut is as long as it may be
        let longest = (4 * recipe.training.sequence).max(PIECE);
        let source = source(&joined(&parts.tables, longest))?;
        let compressor = order.recipe.compressor_config(vocabulary.len())?;
        let compressor = Compressor::new(compressor, random, &order.device)?;
        let decompressor = FloatNetwork::new(config, random, &order.device)?;
        let shape = compressor.config();
        let counts = LatentCounts::new(shape.latent_vocab, shape.max_latents)?;
        let prior = LatentPrior::new(&counts);
        let json = language.tokenizer.to_json()?;
        let adam = |parameter| Parameter {
            is_matrix: false,
            ..parameter
        };
        let parameters = compressor.parameters().into_iter().map(adam).collect();
        Ok(Run {
            rule: Rule {
                purpose: order.recipe.latents.purpose,
                copy: order.recipe.latents.copy,
                worth: order.recipe.latents.worth,
                usual: usual(corpus, parts, language, recipe.training.balance)?,
            },
            compressor_optimiser: Optimiser::new(parameters, order.threads)?,
            decompressor_optimiser: Optimiser::new(decompressor.parameters(), order.threads)?,
            computer: Computer::new(&decompressor, &order.device, order.threads),
            state: State {
                version: State::VERSION,
                recipe: order.recipe.clone(),
                tokenizer: String::from_utf8_lossy(&json).into_owned(),
                data,
                position: source.position().clone(),
                step: 0,
                tokens: 0,
                seconds: 0.0,
                prior: prior.to_bytes(),
                recent: vec![],
                random: 0,
                judge: None,
            },
            known: None,
            judge: None,
            random: Random(random.bits()),
            order,
            source,
            language,
            held_out,
            compressor,
            decompressor,
            prior,
        })
    }

    /// Parameters and what the optimisers remember, by name.
    fn tensors(&self) -> Vec<(String, Tensor)> {
        let named = |part: &str, all: Vec<Parameter>, optimiser: &Optimiser| {
            let own = all.into_iter().map(|p| (p.name, p.var.as_tensor().clone()));
            let memory = optimiser.memory().into_iter();
            let memory = memory.map(|(name, tensor)| (format!("optimiser.{name}"), tensor));
            let all = own.chain(memory);
            all.map(|(name, tensor)| (format!("{part}.{name}"), tensor))
                .collect::<Vec<_>>()
        };
        let compressor = self.compressor.parameters();
        let mut all = named(COMPRESSOR, compressor, &self.compressor_optimiser);
        let decompressor = self.decompressor.parameters();
        all.extend(named(
            "decompressor",
            decompressor,
            &self.decompressor_optimiser,
        ));
        all
    }

    /// Lets the decompressor start from a network that reads no latents; what reads them adds nothing yet. Latents begin
    /// as what the tokens that they stand for in copying are to the network, so that one map from a latent to its token
    /// is learned for all of them.
    fn take_over(&mut self, mut first: Checkpoint<network::checkpoint::State>) -> Result<()> {
        for parameter in self.decompressor.parameters() {
            if parameter.is_for_latents() {
                continue;
            }
            let name = match first.state.averaged {
                0 => parameter.name,
                _ => session::mean_name(&parameter.name),
            };
            let saved = first.take(&name, parameter.var.as_tensor())?;
            parameter.var.set(&saved)?;
        }
        let Some(encoder) = &self.decompressor.encoder else {
            return Ok(());
        };
        let tokens = self.decompressor.tokens.to_vec2::<f32>()?;
        let means = means_of_latents(&tokens, self.compressor.config());
        let means = Tensor::from_vec(means, encoder.latents.shape(), &self.order.device)?;
        Ok(encoder.latents.set(&means)?)
    }

    fn restore(&mut self, mut checkpoint: Checkpoint<State>) -> Result<()> {
        if !self.source.seek(checkpoint.state.position.clone()) {
            let why = "it stands in other training data";
            return Err(checkpoint.refuse(why.into()).into());
        }
        let steps = i32::try_from(checkpoint.state.step).unwrap_or(i32::MAX);
        for (part, parameters, optimiser) in [
            (
                COMPRESSOR,
                self.compressor.parameters(),
                &mut self.compressor_optimiser,
            ),
            (
                "decompressor",
                self.decompressor.parameters(),
                &mut self.decompressor_optimiser,
            ),
        ] {
            for parameter in parameters {
                let name = format!("{part}.{}", parameter.name);
                let saved = checkpoint.take(&name, parameter.var.as_tensor())?;
                parameter.var.set(&saved)?;
            }
            let mut memory = Vec::new();
            for (name, like) in optimiser.memory() {
                memory.push(checkpoint.take(&format!("{part}.optimiser.{name}"), &like)?);
            }
            optimiser.restore(steps, memory);
        }
        self.prior = LatentPrior::from_bytes(&checkpoint.state.prior)?;
        self.random = Random(checkpoint.state.random);
        self.state = checkpoint.state;
        self.state.recipe = self.order.recipe.clone();
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.state.position = self.source.position().clone();
        self.state.prior = self.prior.to_bytes();
        self.state.random = self.random.0;
        let path = self.order.output.join(CHECKPOINT);
        checkpoint::save(&path, &self.state, &self.tensors())?;
        Ok(())
    }

    /// The share of training that is over.
    fn done(&self) -> f64 {
        let training = &self.order.recipe.training;
        training.done(self.state.step, self.state.seconds)
    }

    fn train(&mut self, tell: &dyn Fn(News)) -> Result<()> {
        let training = self.order.recipe.training.clone();
        let mut log = Log::open(&self.order.output, self.state.step)?;
        let mut watch = Watch::new(self.state.seconds, self.state.tokens);
        while self.done() < 1.0 {
            let Stepped { bits, line } = self.step()?;
            line.map_or(Ok(()), |line| log.write(&line))?;
            let held_out = match self.state.step.is_multiple_of(training.evaluate_steps) {
                true => Some(self.held_out()?.total),
                false => None,
            };
            self.state.seconds = watch.seconds();
            tell(News::Progress(Report {
                step: self.state.step,
                tokens: self.state.tokens,
                done: self.done(),
                tokens_per_second: watch.rate(self.state.tokens),
                training: bits,
                held_out,
            }));
            if watch.wants_checkpoint(&training) {
                self.save()?;
            }
        }
        self.save()
    }

    /// One step of whichever phase it is.
    fn step(&mut self) -> Result<Stepped> {
        let done = self.done();
        let (training, method) = (&self.order.recipe.training, &self.order.recipe.latents);
        self.decompressor.rounded = done >= training.float_phase;
        let rates = training.rates_at(self.state.step, done);
        let stepped = match done < method.copy_share {
            true => self.copy_step(rates)?,
            false => {
                let rewarded = (done - method.copy_share) / (1.0 - method.copy_share).max(1e-9);
                self.reward_step(method.cost.factor(rewarded), rates)?
            }
        };
        self.state.step += 1;
        if self.state.step.is_multiple_of(method.prior_steps) {
            self.renew_prior()?;
        }
        Ok(stepped)
    }

    /// Remembers strings for the next prior.
    pub(super) fn note<'s>(&mut self, strings: impl Iterator<Item = &'s [u16]>) {
        self.state.recent.extend(strings.map(<[u16]>::to_vec));
    }

    fn renew_prior(&mut self) -> Result<()> {
        let strings = std::mem::take(&mut self.state.recent);
        self.prior = self.prior_of(&strings)?;
        // it codes with the next prior and the decompressor as it is then
        self.judge = None;
        Ok(())
    }

    /// The model that says what latents save, if it is not the decompressor alone. It is made anew as often as the
    /// prior is, and where a run goes on.
    pub(super) fn judge(&mut self) -> Result<Option<&Judge>> {
        if let (None, Some(known)) = (&self.judge, &self.known) {
            let samples = chunks_of(&self.held_out, self.order.recipe.latents.chunk);
            let samples = &samples[..samples.len().min(JUDGED_CHUNKS)];
            let threads = self.order.threads;
            let judge = Judge::new(known, &self.decompressor, &self.prior, samples, threads)?;
            self.judge = Some(judge);
        }
        Ok(self.judge.as_ref())
    }

    fn prior_of(&self, strings: &[Vec<u16>]) -> Result<LatentPrior> {
        let config = self.compressor.config();
        let mut counts = LatentCounts::new(config.latent_vocab, config.max_latents)?;
        for string in strings {
            counts.add(string)?;
        }
        let prior = LatentPrior::new(&counts);
        match self.order.recipe.latents.gloss {
            true => Ok(prior.with_glosses(glosses(config, &self.rule.usual))?),
            false => Ok(prior),
        }
    }

    /// Makes the shipped prior, exports the network, measures all and, if it is as good as it should be, writes it.
    fn finish(mut self) -> Result<Outcome> {
        self.decompressor.rounded = true;
        let batches = PRIOR_STRINGS.div_ceil(self.order.recipe.latents.batch);
        let strings = self.likeliest(batches)?;
        self.prior = self.prior_of(&strings)?;
        let held_out = self.held_out()?;
        let samples = chunks_of(&self.held_out, self.order.recipe.latents.chunk);
        let (network, exact) = best_export(&self.decompressor, &samples, self.order.threads)?;
        let rounded = self.computer.cost(&self.decompressor, &samples)?;
        let outcome = Outcome {
            line: Line {
                step: self.state.step,
                ..held_out
            },
            tokens: self.state.tokens,
            loss: exact / rounded - 1.0,
        };
        if outcome.loss.is_nan() || outcome.loss > LOSS_MAX {
            return Err(S2sError::Lossy(outcome));
        }
        let network = session::FILES.iter().zip(self.files(&network)?);
        for (name, bytes) in network.map(|(name, bytes)| (*name, bytes)) {
            write_whole(&self.order.output.join(name), &bytes)?;
        }
        let dir = self.order.output.join(COMPRESSOR);
        self.compressor.save(&dir)?;
        self.rule.save(&dir)?;
        write_whole(&self.order.output.join(PRIOR), &self.prior.to_bytes())?;
        Ok(outcome)
    }

    /// The files of the exact network, in the order of [`session::FILES`].
    fn files(&self, network: &crate::model::network::Network) -> Result<[Vec<u8>; 3]> {
        let (config, tensors) = network.to_bytes()?;
        Ok([self.state.tokenizer.clone().into_bytes(), tensors, config])
    }
}

/// For each latent the mean of the rows of the tokens that it stands for.
fn means_of_latents(tokens: &[Vec<f32>], config: &Config) -> Vec<f32> {
    let width = tokens.first().map_or(0, Vec::len);
    let mut sums = vec![vec![0f32; width]; config.latent_vocab];
    let mut counts = vec![0f32; config.latent_vocab];
    for (token, row) in tokens.iter().take(config.vocab_size).enumerate() {
        let latent = usize::from(latent_of(token as u16, config));
        counts[latent] += 1.0;
        let sum = sums[latent].iter_mut().zip(row);
        sum.for_each(|(sum, value)| *sum += value);
    }
    let means = sums.into_iter().zip(counts);
    means
        .flat_map(|(sum, count)| sum.into_iter().map(move |value| value / count.max(1.0)))
        .collect()
}

fn chunks_of(extents: &[Vec<u16>], chunk: usize) -> Vec<Sample<'_>> {
    let chunks = extents.iter().flat_map(|tokens| tokens.chunks(chunk));
    chunks.map(Sample::from).collect()
}

/// How often tokens occur in a balanced sample of the training data.
fn usual(
    corpus: &Corpus,
    parts: &train::Parts,
    language: &Language,
    balance: f64,
) -> Result<Usual> {
    let mut usual = Usual::new(language.vocabulary.len());
    for piece in sample(corpus, &parts.tables, balance, USUAL_BYTES) {
        usual.add(&language.tokenizer.token_ids(corpus.bytes(piece))?)?;
    }
    Ok(usual)
}

/// Reads the prior that a run has left in a directory.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn read_prior(dir: &Path) -> Result<LatentPrior> {
    let path = dir.join(PRIOR);
    let bytes = std::fs::read(&path).map_err(|source| S2sError::Read { path, source })?;
    Ok(LatentPrior::from_bytes(&bytes)?)
}
