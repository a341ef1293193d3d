//! `s2sfs top`: what a daemon is doing, live.

mod rates;
mod screen;
mod view;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use clap::Args;
use rates::History;

use super::output;
use super::target::Daemon;
use crate::control::Status;
use crate::exit::{Context, Failure, Outcome};

/// Size of the frame that `--once` prints.
const FRAME: (u16, u16) = (100, 34);
/// A daemon that is silent for less than this may just be busy.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub struct TopArguments {
    /// Mount point, or directory of a mounted store
    path: PathBuf,
    /// Seconds between two looks, from 0.1 to 3600
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    interval: f64,
    /// Print one frame as plain text and end, as without a terminal
    #[arg(long)]
    once: bool,
}

/// What was seen of the daemon, and when.
struct Sample {
    at: Instant,
    status: Result<Status, String>,
}

pub fn run(arguments: &TopArguments) -> Outcome<()> {
    if !(0.1..=3600.0).contains(&arguments.interval) {
        return Err(Failure::usage("--interval must be between 0.1 and 3600"));
    }
    let interval = Duration::from_secs_f64(arguments.interval);
    let daemon = Daemon::find(&arguments.path)?;
    // Says at once, and on the plain screen, if the daemon cannot be asked.
    let first = Sample {
        at: Instant::now(),
        status: Ok(daemon.status()?),
    };
    let mut history = History::default();
    history.add(first);
    let samples = watch(daemon, interval).context("thread")?;
    let terminal = std::io::stdout().is_terminal();
    if terminal && !arguments.once {
        let patience = (3 * interval).max(PATIENCE);
        return screen::run(&mut history, &samples, patience).context("terminal");
    }
    history.add(samples.recv().context("sampling")?);
    let shown = view::View::new(&history);
    output::print(&view::plain(&shown, FRAME))
}

/// Asks the daemon at every interval, on a thread of its own, so that one that hangs does not keep the
/// keys from working. Ends when nobody listens any more.
fn watch(daemon: Daemon, interval: Duration) -> std::io::Result<Receiver<Sample>> {
    let (sender, receiver) = sync_channel(1);
    std::thread::Builder::new()
        .name("samples".into())
        .spawn(move || {
            loop {
                std::thread::sleep(interval);
                let status = daemon.status().map_err(|failure| failure.message);
                let at = Instant::now();
                if sender.send(Sample { at, status }).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}
