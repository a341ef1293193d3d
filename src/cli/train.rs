//! `s2sfs train`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::output::{self, bytes, share_bar};
use super::train_network::{self, NetworkArguments};
use super::train_s2s;
use crate::codec::LatentWriter;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::model::adaptive::Histories;
use crate::model::network::Network;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Model, hash_of, hex};
use crate::train::mixing::{self, MixingOptions, Trained};
use crate::train::s2s::session;
use crate::train::s2s::writer::Writer;
use crate::train::{self, Progress, TrainError, TrainOptions};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("mixer").args(["base", "with_network"]).multiple(true))]
pub struct TrainArguments {
    /// Directory of training files, with subdirectories
    dir: PathBuf,
    /// Where to write the model, or, with --network or --s2s, the directory of the network
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Name that the model carries [default: name of the output without its extension]
    #[arg(long)]
    name: Option<String>,
    /// Size of the tables: buckets of 24 bytes in memory and about 5 in the file
    #[arg(long, value_name = "N", conflicts_with = "mixer")]
    buckets: Option<usize>,
    /// Know bytes by their eight bits instead of by a code that is short for texts: slower, and what a network can join
    #[arg(long, conflicts_with = "mixer")]
    plain: bool,
    /// Seed of everything that is shuffled; the same files and seed give the same model
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Keep the tables of this model and train only the mixer, on the same files and with the same seed
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Train a mixer that is faster and asks half of the histories; the model names the base and is only good with it
    #[arg(long, requires = "base", conflicts_with = "with_network")]
    lean: bool,
    /// As --lean, with all histories
    #[arg(long, requires = "base", conflicts_with_all = ["with_network", "lean"])]
    thorough: bool,
    /// Directory of a trained network that joins the base, or codes alone if there is none
    #[arg(long, value_name = "DIR")]
    with_network: Option<PathBuf>,
    /// Bytes to train the mixer on, with --base or --with-network
    #[arg(long, value_name = "N", default_value_t = 16 << 20, requires = "mixer")]
    mixer_bytes: usize,
    /// Replace an existing output
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

pub fn run(arguments: &TrainArguments) -> Outcome<()> {
    let output = &arguments.output;
    if let Some(config) = arguments.network.config() {
        check_dir(&arguments.dir)?;
        let paths = (arguments.dir.as_path(), output.as_path());
        let how = (arguments.seed, arguments.force);
        return train_network::run(&arguments.network, config, paths, how);
    }
    if let Some(config) = arguments.network.s2s_config() {
        check_dir(&arguments.dir)?;
        let paths = (arguments.dir.as_path(), output.as_path());
        let how = (arguments.seed, arguments.force);
        return train_s2s::run(&arguments.network, config, paths, how);
    }
    if !arguments.force && output.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!(
            "{} exists: use --force",
            output.display()
        )));
    }
    check_dir(&arguments.dir)?;
    let reporter = Reporter::new();
    let sink = |what: &str, done, total, bits| reporter.report(what, done, total, bits);
    let progress = Progress::new(&sink);
    let model = match arguments.base.is_some() || arguments.with_network.is_some() {
        true => train_mixer(arguments, &progress)?,
        false => train::train(&arguments.dir, &options(arguments), &progress),
    };
    reporter.finish();
    save(&model.map_err(explain)?, output)
}

/// Trains the mixer of a model whose tables or network are there already.
fn train_mixer(
    arguments: &TrainArguments,
    progress: &Progress,
) -> Outcome<Result<Model, TrainError>> {
    let base = arguments.base.as_ref().map(|path| {
        let file = std::fs::read(path).context(path.display())?;
        Model::from_bytes(&file).context(path.display())
    });
    let network = arguments.with_network.as_deref().map(read_network);
    let TrainOptions { name, seed, .. } = options(arguments);
    let options = MixingOptions {
        name,
        bytes: arguments.mixer_bytes,
        mixer: match (arguments.lean, arguments.thorough) {
            (true, _) => Some(Histories::Lean),
            (_, true) => Some(Histories::All),
            _ => None,
        },
        seed,
        threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let (base, network) = (base.transpose()?, network.transpose()?);
    let dir = &arguments.dir;
    Ok(mixing::train(
        dir,
        base.as_ref(),
        network,
        &options,
        progress,
    ))
}

/// The network that training has left in a directory, with what it needs for latents if it reads any.
fn read_network(dir: &Path) -> Outcome<Trained> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).context(path.display())
    };
    let (config, tensors) = (read("config.json")?, read("model.safetensors")?);
    let network = Network::from_bytes(&config, &tensors).context(dir.display())?;
    let tokenizer = Tokenizer::from_json(&read("tokenizer.json")?).context(dir.display())?;
    let latents = match network.config().max_latents {
        0 => None,
        _ => {
            let prior = session::read_prior(dir).map_err(train_s2s::explain)?;
            let writer = Writer::as_trained(&dir.join(session::COMPRESSOR));
            let writer: Arc<dyn LatentWriter> = Arc::new(writer.map_err(train_s2s::explain)?);
            Some((prior, writer))
        }
    };
    Ok(Trained {
        network,
        tokenizer,
        latents,
    })
}

fn check_dir(dir: &Path) -> Outcome<()> {
    match dir.is_dir() {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "{} is not a directory",
            dir.display()
        ))),
    }
}

fn options(arguments: &TrainArguments) -> TrainOptions {
    let defaults = TrainOptions::default();
    let stem = arguments
        .output
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    TrainOptions {
        name: arguments.name.clone().unwrap_or(stem),
        buckets: arguments.buckets.unwrap_or(defaults.buckets),
        seed: arguments.seed.unwrap_or(defaults.seed),
        plain: arguments.plain,
        ..defaults
    }
}

fn explain(error: TrainError) -> Failure {
    Failure::new(exit_of(&error), error)
}

/// How a command ends whose training failed.
pub fn exit_of(error: &TrainError) -> Exit {
    match error {
        TrainError::TooLittle { .. } | TrainError::TooFew(_) | TrainError::MixerBytes(_) => {
            Exit::Usage
        }
        _ => Exit::Failed,
    }
}

/// Writes the model and says what it is.
fn save(model: &Model, output: &Path) -> Outcome<()> {
    let file = model.to_bytes().context("model")?;
    output::replace(output, |target| target.write_all(&file)).context(output.display())?;
    let hash = hex(&hash_of(&file));
    eprintln!(
        "{}: {}, trained on {}, {:.4} bits per byte of held-out data, hash {hash}",
        output.display(),
        bytes(file.len() as u64),
        bytes(model.info.trained_bytes),
        model.info.held_out_bits_per_byte,
    );
    Ok(())
}

/// Shows progress as a bar on a terminal, and as a line per step elsewhere.
struct Reporter {
    bar: ProgressBar,
    step: Mutex<String>,
}

impl Reporter {
    fn new() -> Reporter {
        Reporter {
            bar: share_bar(0),
            step: Mutex::new(String::new()),
        }
    }

    fn report(&self, what: &str, done: usize, total: usize, bits_per_byte: Option<f64>) {
        let mut step = self.step.lock();
        if *step != what {
            *step = what.to_string();
            if self.bar.is_hidden() {
                eprintln!("{what}");
            }
        }
        self.bar.set_message(match bits_per_byte {
            Some(bits) => format!("{what}, {bits:.4} bits per byte"),
            None => what.to_string(),
        });
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
