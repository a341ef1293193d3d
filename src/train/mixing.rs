//! Trains the mixer again: for a network that joins the tables of another model, for a network alone, or for
//! the tables as they were, so that all of them can be compared on equal terms.
//!
//! The data must be what the tables were trained on, with the same seed: then the parameters are trained on
//! files that the tables never saw.

use std::path::Path;
use std::sync::Arc;

use crate::codec::LatentWriter;
use crate::model::adaptive::Histories;
use crate::model::bytecode::ByteCode;
use crate::model::latents::LatentPrior;
use crate::model::matcher::LENGTH_BUCKETS;
use crate::model::network::simd::Simd;
use crate::model::network::{Engine, Memory, Network, Sequence};
use crate::model::predictor::{Adaptation, BitCoder, Params};
use crate::model::runs::Runs;
use crate::model::tokenizer::Tokenizer;
use crate::model::tokens::Tokens;
use crate::model::{Cost, Model, ModelError, NetworkParts};

use super::corpus::{Corpus, Piece, Random};
use super::params::{self, GROUPS, adaptation, rates_at};
use super::{MEASURED_GROUP, Progress, TrainError, check_parts, divide, measure};

/// What to train.
#[derive(Debug, Clone)]
pub struct MixingOptions {
    /// Name that the model carries.
    pub name: String,
    /// Bytes of held-out data to train on, at most.
    pub bytes: usize,
    /// For tables alone: with these histories and with runs, as a model that names `base` instead of containing its tables.
    pub mixer: Option<Histories>,
    /// The seed of the base.
    pub seed: u64,
    pub threads: usize,
}

/// A network as training left it.
#[derive(Debug)]
pub struct Trained {
    pub network: Network,
    pub tokenizer: Tokenizer,
    /// What latents cost, and who writes them, if the network reads any.
    pub latents: Option<(LatentPrior, Arc<dyn LatentWriter>)>,
}

/// Groups whose hidden rows are made together.
const BATCH: usize = 32;
/// Bytes that decide from which match length on the heads are not evaluated.
const SKIP_BYTES: usize = 1 << 20;
/// Length classes of matches to choose from, and what not evaluating the heads may cost.
const SKIPS: [usize; 6] = [3, 5, 7, 9, 11, 13];
const SKIP_LOSS: f64 = 0.001;

/// Trains the mixer of a model that joins `network` with the tables of `base`; one of them may be missing.
///
/// # Errors
/// If the data cannot be read or is too little, or base, network and tokenizer do not fit each other.
pub fn train(
    dir: &Path,
    base: Option<&Model>,
    network: Option<Trained>,
    options: &MixingOptions,
    progress: &Progress,
) -> Result<Model, TrainError> {
    progress.say("reading");
    let corpus = Corpus::read_at_least(dir)?;
    let mut random = Random(options.seed);
    let mut parts = divide(&corpus, &mut random);
    check_parts(dir, &[&parts.params, &parts.measure])?;
    let mut bytes = 0;
    parts.params.retain(|piece| {
        bytes += piece.len as usize;
        bytes <= options.bytes
    });
    if parts.params.is_empty() {
        return Err(TrainError::MixerBytes(options.bytes));
    }
    let Some(trained) = network else {
        let none = || ModelError::Input("neither tables nor a network".into());
        let base = base.ok_or_else(none)?;
        let name = options.name.clone();
        let mut model = match options.mixer {
            Some(histories) => {
                let adaptation = Adaptation {
                    runs: Some(Runs::USUAL),
                    ..adaptation(base.code(), histories)
                };
                base.with_mixer_for(name, histories, adaptation)?
            }
            None => {
                let adaptation = adaptation(base.code(), Histories::All);
                base.with_params(name, Params::default(), adaptation)
            }
        };
        let trained = params::train(&model, &corpus, &parts.params, &mut random, progress);
        model.set_params(trained);
        model.info.held_out_bits_per_byte = measure(&model, &corpus, &parts.measure, progress);
        return Ok(model);
    };
    let network = Arc::new(trained.network);
    let (prior, writer) = trained.latents.unzip();
    let engine = Simd::new(network.clone(), options.threads);
    let network_parts = NetworkParts {
        name: options.name.clone(),
        tokenizer: trained.tokenizer,
        network,
        prior,
        adaptation: adaptation(&ByteCode::plain(), Histories::All),
    };
    let mut model = Model::with_network(base, network_parts)?;
    model.info.trained_bytes = corpus.len() as u64;
    let trainer = Trainer {
        corpus: &corpus,
        engine: &engine,
        writer: writer.as_deref(),
        progress,
    };
    let groups = trainer.cut(&parts.params, &mut random);
    match model.has_history() {
        true => {
            let trained = trainer.train_params(&model, &groups)?;
            model.set_params(trained);
            trainer.choose_skip(&mut model, &parts.measure)?;
        }
        false => trainer.train_plain(&mut model, &groups)?,
    }
    model.info.held_out_bits_per_byte = trainer.measure(&model, &parts.measure)?;
    Ok(model)
}

struct Trainer<'a> {
    corpus: &'a Corpus,
    engine: &'a Simd,
    /// Writes latents for every other extent that is trained on.
    writer: Option<&'a dyn LatentWriter>,
    progress: &'a Progress<'a>,
}

/// The tokens of a group with its latents, and the hidden rows of both.
struct Group<'a> {
    bytes: &'a [u8],
    tokens: Vec<u16>,
    latents: Vec<u16>,
    rows: Vec<i8>,
}

impl Group<'_> {
    /// Codes the group.
    fn code(
        &self,
        tokens: &mut Tokens<&Model>,
        engine: &Simd,
        coder: &mut impl BitCoder,
    ) -> Result<(), ModelError> {
        tokens.group(coder, engine, (&self.tokens, &self.rows), self.bytes.len())
    }
}

impl<'a> Trainer<'a> {
    /// Cuts pieces into groups of the sizes that are trained on.
    fn cut(&self, pieces: &[Piece], random: &mut Random) -> Vec<Piece> {
        let mut groups = Vec::new();
        for &piece in pieces {
            let mut rest = piece;
            while rest.len > 0 {
                let len = (GROUPS[random.below(GROUPS.len())] as u32).min(rest.len);
                groups.push(Piece { len, ..rest });
                rest.start += len;
                rest.len -= len;
            }
        }
        groups
    }

    /// Shows all groups with their hidden rows to `visit`, in order; the next rows are made meanwhile.
    fn each(
        &self,
        model: &Model,
        pieces: &[Piece],
        writer: Option<&dyn LatentWriter>,
        mut visit: impl FnMut(&Group) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        let mut batches = pieces.chunks(BATCH);
        let mut ready = self.predict(model, batches.next().unwrap_or_default(), writer)?;
        std::thread::scope(|scope| {
            loop {
                let next = batches.next();
                let coming =
                    next.map(|batch| scope.spawn(move || self.predict(model, batch, writer)));
                ready.iter().try_for_each(&mut visit)?;
                let Some(coming) = coming else { return Ok(()) };
                let panicked = |_| ModelError::Device("a thread panicked".into());
                ready = coming.join().map_err(panicked)??;
            }
        })
    }

    fn predict(
        &self,
        model: &Model,
        pieces: &[Piece],
        writer: Option<&dyn LatentWriter>,
    ) -> Result<Vec<Group<'a>>, ModelError> {
        let expert = model.expert()?;
        let bytes: Vec<&[u8]> = pieces
            .iter()
            .map(|&piece| self.corpus.bytes(piece))
            .collect();
        let tokens: Vec<Vec<u16>> = bytes.iter().map(|b| expert.merges.tokens(b)).collect();
        let told = self.told(pieces, &tokens, writer)?;
        let pairs = tokens.iter().zip(&told);
        let sequences: Vec<Sequence> = pairs
            .map(|(tokens, (_, memory))| Sequence { tokens, memory })
            .collect();
        let rows = self.engine.hidden(&sequences)?;
        let groups = bytes.into_iter().zip(tokens).zip(told).zip(rows);
        Ok(groups
            .map(|(((bytes, tokens), (latents, _)), rows)| Group {
                bytes,
                tokens,
                latents,
                rows,
            })
            .collect())
    }

    /// The latents of groups and what the encoder makes of them. Neighbours in a file are the groups of one extent;
    /// every other extent has latents, if there is who writes them.
    fn told(
        &self,
        pieces: &[Piece],
        groups: &[Vec<u16>],
        writer: Option<&dyn LatentWriter>,
    ) -> Result<Vec<(Vec<u16>, Memory)>, ModelError> {
        let mut told = vec![Default::default(); groups.len()];
        let Some(writer) = writer else {
            return Ok(told);
        };
        let touch = |a: &Piece, b: &Piece| (a.file, a.start + a.len) == (b.file, b.start);
        let mut start = 0;
        for (number, extent) in pieces.chunk_by(touch).enumerate() {
            let range = start..start + extent.len();
            start = range.end;
            if number % 2 == 1 {
                continue;
            }
            let written = writer.write(&groups[range.clone()]);
            let written = written.map_err(ModelError::Input)?;
            let Some(latents) = written.first() else {
                continue;
            };
            let memories = latents.memories(self.engine, range.len())?;
            for (at, memory) in memories.into_iter().enumerate() {
                told[range.start + at] = (latents.of_group(at), memory);
            }
        }
        Ok(told)
    }

    /// Trains everything that adapts, one group after the other. Half of the groups skip the heads at some match
    /// length, so that both ways are known.
    fn train_params(&self, model: &Model, groups: &[Piece]) -> Result<Params, ModelError> {
        let total: usize = groups.iter().map(|piece| piece.len as usize).sum();
        let mut trained = Some(Params::with_network(model.expert()?.vocabulary.len()));
        let (mut done, mut count, mut cost) = (0, 0, Cost::default());
        self.each(model, groups, self.writer, |group| {
            let len = group.bytes.len();
            let params = trained.take().unwrap_or_default();
            let rates = rates_at(done as f64 / total as f64, model.adaptation());
            let skip = match count % 2 {
                0 => LENGTH_BUCKETS,
                _ => SKIPS[count / 2 % SKIPS.len()],
            };
            let fresh = |more| model.starting_with(params, rates, len + more);
            let state = || model.begin(&group.latents, fresh);
            let mut tokens = Tokens::new(model, state)?.with_skip(skip);
            group.code(&mut tokens, self.engine, &mut cost)?;
            trained = tokens.into_state().map(|state| state.params);
            (done, count) = (done + len, count + 1);
            self.report("training the mixer", done, total, cost);
            Ok(())
        })?;
        Ok(trained.unwrap_or_default())
    }

    fn report(&self, what: &str, done: usize, total: usize, cost: Cost) {
        self.progress
            .step(what, done, total, cost.bits / done.max(1) as f64);
    }

    /// Trains the refinement of a model with the network alone.
    fn train_plain(&self, model: &mut Model, groups: &[Piece]) -> Result<(), ModelError> {
        let total: usize = groups.iter().map(|piece| piece.len as usize).sum();
        let mut curves = None;
        let (mut done, mut cost) = (0, Cost::default());
        let known: &Model = model;
        self.each(known, groups, self.writer, |group| {
            let rate = if done < total / 10 { 7 } else { 10 };
            let mut tokens = Tokens::new(known, || known.fresh(0))?.learning(rate);
            if let Some(curves) = curves.take() {
                tokens = tokens.with_plain(curves);
            }
            group.code(&mut tokens, self.engine, &mut cost)?;
            curves = Some(tokens.into_plain());
            done += group.bytes.len();
            self.report("training the refinement", done, total, cost);
            Ok(())
        })?;
        if let Some(curves) = curves {
            model.set_plain(*curves);
        }
        Ok(())
    }

    /// Skips the heads from the shortest matches on that cost next to nothing.
    fn choose_skip(&self, model: &mut Model, pieces: &[Piece]) -> Result<(), ModelError> {
        let mut bytes = 0;
        let groups: Vec<Piece> = pieces
            .iter()
            .flat_map(|piece| piece.cut(MEASURED_GROUP))
            .take_while(|piece| {
                bytes += piece.len as usize;
                bytes <= SKIP_BYTES
            })
            .collect();
        let choices: Vec<usize> = SKIPS.into_iter().chain([LENGTH_BUCKETS]).collect();
        let mut costs = vec![Cost::default(); choices.len()];
        let (mut done, known) = (0, &*model);
        self.each(known, &groups, None, |group| {
            for (&skip, cost) in choices.iter().zip(&mut costs) {
                let state = || known.fresh(group.bytes.len());
                let mut tokens = Tokens::new(known, state)?.with_skip(skip);
                group.code(&mut tokens, self.engine, cost)?;
            }
            done += group.bytes.len();
            self.report(
                "choosing what to skip",
                done,
                bytes,
                costs[choices.len() - 1],
            );
            Ok(())
        })?;
        let always = costs.last().map_or(0.0, |cost| cost.bits);
        let cheap = |cost: &Cost| cost.bits <= always * (1.0 + SKIP_LOSS);
        let chosen = costs.iter().position(cheap).map(|index| choices[index]);
        model.set_skip(chosen.unwrap_or(LENGTH_BUCKETS));
        Ok(())
    }

    /// Mean cost in bits per byte.
    fn measure(&self, model: &Model, pieces: &[Piece]) -> Result<f64, ModelError> {
        let cut = pieces.iter().flat_map(|piece| piece.cut(MEASURED_GROUP));
        let groups: Vec<Piece> = cut.collect();
        let total: usize = groups.iter().map(|piece| piece.len as usize).sum();
        let (mut done, mut cost) = (0, Cost::default());
        self.each(model, &groups, None, |group| {
            let state = || model.fresh(group.bytes.len());
            group.code(&mut Tokens::new(model, state)?, self.engine, &mut cost)?;
            done += group.bytes.len();
            self.report("measuring", done, total, cost);
            Ok(())
        })?;
        Ok(cost.bits / total.max(1) as f64)
    }
}
