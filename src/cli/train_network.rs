//! `s2sfs train --network`.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use clap::{ArgGroup, Args};
use indicatif::ProgressBar;
use parking_lot::Mutex;

use super::models::codecs_of;
use super::output::share_bar;
use super::{measure, memory, train};
use crate::exit::{Exit, Failure, Outcome};
use crate::model::Model;
use crate::train::network::NetworkError;
use crate::train::network::recipe::{Recipe, Training};
use crate::train::network::session::{self, News, Order, Report};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("networks").args(["network", "s2s"]))]
pub struct NetworkArguments {
    /// Train a network of this configuration (TOML or JSON); the output is then a directory
    #[arg(
        long,
        value_name = "CONFIG",
        conflicts_with_all = ["base", "with_network", "name", "buckets", "mixer_bytes"]
    )]
    network: Option<PathBuf>,
    /// Train a network that reads latents, and the compressor that writes them, by this configuration (TOML or
    /// JSON); the output is then a directory
    #[arg(
        long,
        value_name = "CONFIG",
        conflicts_with_all = ["base", "with_network", "name", "buckets", "mixer_bytes"]
    )]
    s2s: Option<PathBuf>,
    /// With --network or --s2s: go on from the checkpoint in the output
    #[arg(long, requires = "networks", conflicts_with = "force")]
    resume: bool,
    /// With --network or --s2s: use this vocabulary (the JSON of the tokenizers library) instead of training one
    #[arg(
        long,
        value_name = "FILE",
        requires = "networks",
        conflicts_with = "resume"
    )]
    tokenizer: Option<PathBuf>,
    /// Start from the published T5 in this directory (with --network), or from the network that --network left in it
    /// (with --s2s), instead of from nothing
    #[arg(
        long,
        value_name = "DIR",
        requires = "networks",
        conflicts_with = "resume"
    )]
    from: Option<PathBuf>,
    /// With --s2s: latents are worth what they save in this model, whose network may be another of the same vocabulary;
    /// else what they save the network alone
    #[arg(long, value_name = "NAME|FILE", requires = "s2s")]
    judge: Option<PathBuf>,
    /// With --network or --s2s: train for N minutes in all, whatever the configuration says
    #[arg(
        long,
        value_name = "N",
        requires = "networks",
        conflicts_with = "steps"
    )]
    minutes: Option<f64>,
    /// With --network or --s2s: train for N steps in all, whatever the configuration says
    #[arg(long, value_name = "N", requires = "networks")]
    steps: Option<u64>,
    /// With --network or --s2s: where to compute: cpu or cuda:N
    #[arg(
        long,
        value_name = "DEVICE",
        requires = "networks",
        default_value = "cpu"
    )]
    device: String,
    /// With --network or --s2s: threads on the processor [default: one for each core]
    #[arg(
        long,
        value_name = "N",
        requires = "networks",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    threads: Option<u16>,
}

impl NetworkArguments {
    /// The configuration file, if a network is asked for.
    pub fn config(&self) -> Option<&Path> {
        self.network.as_deref()
    }

    /// The configuration file, if a network with a compressor is asked for.
    pub fn s2s_config(&self) -> Option<&Path> {
        self.s2s.as_deref()
    }

    /// The model that says what latents save, if one does.
    pub(super) fn judge(&self) -> Outcome<Option<Arc<Model>>> {
        let load = |path: &PathBuf| {
            let none = || Failure::usage(format!("{}: no model", path.display()));
            codecs_of(path)?.encoding_model().ok_or_else(none)
        };
        self.judge.as_ref().map(load).transpose()
    }

    /// Puts what the command line says in place of what the configuration says.
    pub(super) fn change(&self, training: &mut Training, seed: Option<u64>) {
        training.seed = seed.unwrap_or(training.seed);
        training.minutes = self.minutes.unwrap_or(training.minutes);
        if self.minutes.is_some() {
            training.steps = None;
        }
        training.steps = self.steps.or(training.steps);
    }

    /// What is to be trained by a recipe.
    pub(super) fn order<R>(&self, recipe: R, dir: &Path, output: &Path) -> Outcome<Order<R>> {
        let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Ok(Order {
            dir: dir.to_owned(),
            output: output.to_owned(),
            recipe,
            tokenizer: self.tokenizer.clone(),
            from: self.from.clone(),
            resume: self.resume,
            device: device(&self.device)?,
            threads: self.threads.map_or_else(cores, usize::from),
        })
    }
}

/// Trains a network and says what came of it.
pub fn run(
    arguments: &NetworkArguments,
    config: &Path,
    (dir, output): (&Path, &Path),
    (seed, force): (Option<u64>, bool),
) -> Outcome<()> {
    check_output(arguments, output, force)?;
    let mut recipe = Recipe::read(config).map_err(explain)?;
    arguments.change(&mut recipe.training, seed);
    let order = arguments.order(recipe, dir, output)?;
    report(output, |tell| session::run(&order, tell).map_err(explain))
}

/// Trains, shows how it goes on and says what came of it.
pub(super) fn report<O: Display>(
    output: &Path,
    train: impl FnOnce(&dyn Fn(News)) -> Outcome<O>,
) -> Outcome<()> {
    memory::keep_memory();
    let reporter = Reporter::new();
    let result = train(&|news| reporter.tell(news));
    reporter.bar.finish_and_clear();
    eprintln!("{}: {}", output.display(), result?);
    Ok(())
}

pub(super) fn check_output(
    arguments: &NetworkArguments,
    output: &Path,
    force: bool,
) -> Outcome<()> {
    let checkpoint = output.join(session::CHECKPOINT);
    match arguments.resume {
        true if !checkpoint.is_file() => Err(Failure::usage(format!(
            "there is no {} to go on from",
            checkpoint.display()
        ))),
        false if !force && output.symlink_metadata().is_ok() => Err(Failure::usage(format!(
            "{} exists: use --resume to go on, or --force to begin again",
            output.display()
        ))),
        _ => Ok(()),
    }
}

fn device(name: &str) -> Outcome<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let number = name
        .strip_prefix("cuda:")
        .and_then(|number| number.parse().ok());
    let number =
        number.ok_or_else(|| Failure::usage(format!("{name} is no device: use cpu or cuda:N")))?;
    if !candle_core::utils::cuda_is_available() {
        return Err(Failure::usage(format!(
            "{name}: this program was built without CUDA (cargo build --release --features cuda)"
        )));
    }
    Device::new_cuda(number).map_err(|error| Failure::failed(format!("{name}: {error}")))
}

pub(super) fn explain(error: NetworkError) -> Failure {
    use NetworkError::{Checkpoint, Corpus, Data, OtherRun, Published, Recipe, Tokenizer};
    let exit = match &error {
        Recipe(_) | Data { .. } | OtherRun { .. } => Exit::Usage,
        Checkpoint { .. } | Tokenizer { .. } => Exit::Damaged,
        Corpus(error) => train::exit_of(error),
        Published(error) => measure::exit_of(error),
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// Shows progress as a bar on a terminal, and as a line now and then elsewhere.
struct Reporter {
    bar: ProgressBar,
    held_out: Mutex<Option<f64>>,
    is_terminal: bool,
}

/// Steps of the bar.
const STEPS: u64 = 10_000;

impl Reporter {
    fn new() -> Reporter {
        let is_terminal = std::io::stderr().is_terminal();
        Reporter {
            bar: share_bar(STEPS),
            held_out: Mutex::new(None),
            is_terminal,
        }
    }

    fn tell(&self, news: News) {
        match news {
            News::Doing(what) if self.is_terminal => self.bar.set_message(what.to_string()),
            News::Doing(what) => eprintln!("{what}"),
            News::Note(line) => self.bar.suspend(|| eprintln!("{line}")),
            News::Progress(report) => self.progress(&report),
        }
    }

    fn progress(&self, report: &Report) {
        let mut held_out = self.held_out.lock();
        *held_out = report.held_out.or(*held_out);
        let held_out = held_out.map_or("?".to_string(), |bits| format!("{bits:.4}"));
        let line = format!(
            "step {}, {:.2} M tokens, {:.0} tokens/s, {:.3} bits per byte, held-out {held_out}",
            report.step,
            report.tokens as f64 / 1e6,
            report.tokens_per_second,
            report.training,
        );
        if self.is_terminal {
            self.bar.set_position((report.done * STEPS as f64) as u64);
            self.bar.set_message(line);
        } else if report.held_out.is_some() {
            eprintln!("{line}, {:.1} %", report.done * 100.0);
        }
    }
}
