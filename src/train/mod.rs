//! Training: from a directory of files to a model.
//!
//! The data is cut into pieces, shuffled with a fixed seed and divided: nearly all of it trains the
//! tables, a part that the tables never see trains what adapts, a last part measures the result.

pub mod corpus;
pub mod mixing;
pub mod network;
pub mod params;
pub mod published;
pub mod s2s;
pub mod t5;
pub mod tables;

use std::path::Path;

use thiserror::Error;

use crate::model::adaptive::Histories;
use crate::model::bytecode::ByteCode;
use crate::model::contexts::CONTEXTS;
use crate::model::predictor::{Params, State};
use crate::model::tables::Tables;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Model, ModelError, ModelInfo};
use corpus::{Corpus, PIECE, Piece, Random};

/// What can go wrong in training.
#[derive(Debug, Error)]
pub enum TrainError {
    #[error("cannot read {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} holds {bytes} bytes; training needs at least {least}")]
    TooLittle {
        path: String,
        bytes: usize,
        least: usize,
    },
    /// A part of the data that is needed got nothing.
    #[error(
        "{0}: too few files: some are set aside as a whole, to train the mixer on and to measure with"
    )]
    TooFew(String),
    /// The mixer may be trained on less than one piece of the data.
    #[error("{0} bytes are too few to train the mixer on; {HELD_OUT_PIECE} are enough")]
    MixerBytes(usize),
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// What to train.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Name that the model carries.
    pub name: String,
    /// Buckets of all tables together: about 5 bytes each in the file, 24 in memory.
    pub buckets: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Bytes of the zstd dictionary.
    pub dictionary: usize,
    pub seed: u64,
    /// Whether the tables know bytes by their bits, which a network needs, instead of by a code that is short for texts.
    pub plain: bool,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            name: "default".into(),
            buckets: 3_850_000,
            vocabulary: 4096,
            dictionary: 112 << 10,
            seed: 1,
            plain: false,
        }
    }
}

/// Called with what is being done, how much of how much is done, and bits per byte so far.
pub type Sink<'a> = dyn Fn(&str, usize, usize, Option<f64>) + Sync + 'a;

/// Where training reports to.
pub struct Progress<'a> {
    sink: &'a Sink<'a>,
}

impl<'a> Progress<'a> {
    /// Reports to `sink`.
    pub fn new(sink: &'a Sink<'a>) -> Progress<'a> {
        Progress { sink }
    }

    fn say(&self, what: &str) {
        (self.sink)(what, 0, 0, None);
    }

    fn step(&self, what: &str, done: usize, total: usize, bits_per_byte: f64) {
        (self.sink)(what, done, total, Some(bits_per_byte));
    }
}

/// Least training data.
const LEAST: usize = 64 << 10;
/// Pieces that are held out are longer, so that groups of all sizes can be cut from them.
const HELD_OUT_PIECE: usize = 64 << 10;
/// Pieces of one file that are held out, so that no large file dominates.
const HELD_OUT_PIECES: usize = 4;
/// Bytes that train what adapts and that measure, unless the corpus is small.
const PARAMS_BYTES: usize = 16 << 20;
const MEASURE_BYTES: usize = 2 << 20;
/// Group size that models are measured with.
const MEASURED_GROUP: usize = 32 << 10;
/// Bytes that the vocabulary is trained on.
const VOCABULARY_BYTES: usize = 12 << 20;

/// The three parts of the training data.
struct Parts {
    tables: Vec<Piece>,
    params: Vec<Piece>,
    measure: Vec<Piece>,
}

/// Refuses data in `dir` that left one of these parts empty.
fn check_parts(dir: &Path, parts: &[&[Piece]]) -> Result<(), TrainError> {
    match parts.iter().any(|part| part.is_empty()) {
        true => Err(TrainError::TooFew(dir.display().to_string())),
        false => Ok(()),
    }
}

/// Divides by whole files: pieces of a file that the tables know would look too predictable.
fn divide(corpus: &Corpus, random: &mut Random) -> Parts {
    let mut files = corpus.files();
    random.shuffle(&mut files);
    let mut files = files.into_iter();
    let mut take = |bytes: usize| {
        let mut taken = Vec::new();
        let mut sum = 0;
        while sum < bytes {
            let Some(file) = files.next() else { break };
            let pieces: Vec<Piece> = file.cut(HELD_OUT_PIECE).take(HELD_OUT_PIECES).collect();
            sum += pieces.iter().map(|piece| piece.len as usize).sum::<usize>();
            taken.extend(pieces);
        }
        random.shuffle(&mut taken);
        taken
    };
    let params = take(PARAMS_BYTES.min(corpus.len() / 8));
    let measure = take(MEASURE_BYTES.min(corpus.len() / 32));
    let mut tables: Vec<Piece> = files.flat_map(|file| file.cut(PIECE)).collect();
    random.shuffle(&mut tables);
    Parts {
        tables,
        params,
        measure,
    }
}

/// The value of every slot code in nats: code 128 is 0, finer near it; code 0 is never looked up.
fn levels() -> [f32; 256] {
    std::array::from_fn(|code| {
        let step = code as f32 - 128.0;
        (0.2 * step + 0.004 * step * step.abs()).clamp(-8.0, 8.0)
    })
}

/// A zstd dictionary; empty where the data is too little or too uniform for one.
fn dictionary(corpus: &Corpus, pieces: &[Piece], bytes: usize) -> Vec<u8> {
    // the trainer wants about a hundred times the dictionary, in samples of a few KiB
    let samples: Vec<&[u8]> = pieces
        .iter()
        .flat_map(|&piece| corpus.bytes(piece).chunks(4096))
        .take(bytes * 100 / 4096)
        .collect();
    zstd::dict::from_samples(&samples, bytes).unwrap_or_else(|error| {
        log::warn!("no zstd dictionary can be made of this data: {error}");
        Vec::new()
    })
}

impl Corpus {
    /// Reads all files below `dir`, which must be enough for training.
    fn read_at_least(dir: &Path) -> Result<Corpus, TrainError> {
        let path = dir.display().to_string();
        let corpus = match Corpus::read(dir) {
            Ok(corpus) => corpus,
            Err(source) => return Err(TrainError::Read { path, source }),
        };
        let bytes = corpus.len();
        match bytes < LEAST {
            true => Err(TrainError::TooLittle {
                path,
                bytes,
                least: LEAST,
            }),
            false => Ok(corpus),
        }
    }
}

/// Trains a model on all files below `dir`. The same files give the same model.
///
/// # Errors
/// If the data cannot be read or is too little.
pub fn train(dir: &Path, options: &TrainOptions, progress: &Progress) -> Result<Model, TrainError> {
    progress.say("reading");
    let corpus = Corpus::read_at_least(dir)?;
    let mut random = Random(options.seed);
    let parts = divide(&corpus, &mut random);
    check_parts(dir, &[&parts.tables, &parts.params, &parts.measure])?;
    progress.say("training the vocabulary");
    let samples = parts
        .tables
        .iter()
        .take(VOCABULARY_BYTES / PIECE)
        .map(|&p| corpus.bytes(p));
    let tokenizer = Tokenizer::train(samples, options.vocabulary)?;
    progress.say("training the dictionary");
    let dictionary = dictionary(&corpus, &parts.tables, options.dictionary);
    let code = match options.plain {
        true => ByteCode::plain(),
        false => code(&corpus, &parts.tables),
    };
    let tables = train_tables(&corpus, &parts.tables, &code, options, progress);
    let info = ModelInfo {
        name: options.name.clone(),
        experts: ["tables", "match", "adaptive"].map(String::from).to_vec(),
        trained_bytes: corpus.len() as u64,
        ..ModelInfo::default()
    };
    let mut logits = levels().map(|level| (level * 256.0).round() as i16);
    logits[0] = 0;
    let adaptation = params::adaptation(&code, Histories::All);
    let mut model = Model::from_parts(
        info,
        tokenizer,
        dictionary,
        (code, tables),
        logits,
        Params::default(),
        adaptation,
    );
    let trained = params::train(&model, &corpus, &parts.params, &mut random, progress);
    model.set_params(trained);
    model.info.held_out_bits_per_byte = measure(&model, &corpus, &parts.measure, progress);
    Ok(model)
}

/// The code in which these pieces take the fewest decisions.
fn code(corpus: &Corpus, pieces: &[Piece]) -> ByteCode {
    let mut counts = [0u64; 256];
    for &piece in pieces {
        for &byte in corpus.bytes(piece) {
            counts[usize::from(byte)] += 1;
        }
    }
    ByteCode::for_counts(&counts)
}

fn train_tables(
    corpus: &Corpus,
    pieces: &[Piece],
    code: &ByteCode,
    options: &TrainOptions,
    progress: &Progress,
) -> Tables {
    // a small corpus cannot fill a large table
    let bytes: usize = pieces.iter().map(|piece| piece.len as usize).sum();
    let buckets = options.buckets.min(bytes * 2 * CONTEXTS / 4);
    let mut trainer = tables::Trainer::select(corpus, pieces, code.clone(), buckets, progress);
    trainer.pass(corpus, pieces, progress);
    trainer.finish(&levels())
}

/// Mean cost in bits per byte of groups of [`MEASURED_GROUP`] bytes.
fn measure(model: &Model, corpus: &Corpus, pieces: &[Piece], progress: &Progress) -> f64 {
    let cut = pieces.iter().flat_map(|piece| piece.cut(MEASURED_GROUP));
    let groups: Vec<Piece> = cut.collect();
    let total: usize = groups.iter().map(|piece| piece.len as usize).sum();
    let (mut bits, mut done) = (0f64, 0);
    for group in groups {
        let bytes = corpus.bytes(group);
        let state: State = model.fresh(bytes.len());
        bits += params::cost_of(model, state, bytes).0;
        done += bytes.len();
        progress.step("measuring", done, total, bits / done as f64);
    }
    bits / total.max(1) as f64
}
