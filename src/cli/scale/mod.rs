//! `s2sfs bench scale`: what a store costs as it grows, and how the cost grows.
//!
//! Stores of growing size are made through the volume layer, each phase in a process of its own; small files also
//! through a mount. Sizes grow until time, disk or memory would run out, and the report says which.

mod fit;
mod mounted;
mod report;
mod step;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;

use super::output;
use super::suite::machine;
use crate::exit::{Context, Failure, Outcome};
use report::{Dimension, Point, Results};
use step::{Kind, Phase, Values};

pub use step::{StepArguments, run as run_step};

#[derive(Debug, Args)]
pub struct ScaleArguments {
    /// Directory of the results: scale.json, scale.md and plots/
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// Begin nothing that would not be done after so many minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0)]
    limit_minutes: f64,
    /// Directory for stores and mounts; what is made there is deleted afterwards [default: a new one under TMPDIR]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Markdown file whose marked section is replaced by the new tables, and beside which plots/ gets the figures
    #[arg(long, value_name = "FILE")]
    splice: Vec<PathBuf>,
    /// Measure only this; may be given more than once
    #[arg(long, value_name = "KIND", value_enum)]
    only: Vec<Kind>,
    /// Items of the smallest store
    #[arg(long, value_name = "N", default_value_t = 1000)]
    smallest: u64,
    /// Items of the largest store
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    largest: u64,
    /// Mount options, in addition to policy=fast and settle_after=never
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

/// What every store is mounted with: the file system is measured, not the model.
const OPTIONS: &str = "policy=fast,settle_after=never";
/// All kinds with their shares of the time.
const KINDS: [(Kind, f64); 5] = [
    (Kind::Files, 0.40),
    (Kind::Directory, 0.15),
    (Kind::Extents, 0.15),
    (Kind::Bytes, 0.15),
    (Kind::Mounted, 0.15),
];
const PHASES: [(Phase, &str); 5] = [
    (Phase::Fill, "making"),
    (Phase::Serve, "reading"),
    (Phase::Recover, "recovering"),
    (Phase::Check, "checking"),
    (Phase::Unlink, "removing from"),
];
/// What a larger store may take beyond its share of the last one.
const CAUTION: f64 = 1.3;
/// A phase that takes so much longer than all was to take is ended.
const PATIENCE: f64 = 1.5;
const PATIENCE_AT_LEAST: Duration = Duration::from_secs(60);

pub fn run(arguments: &ScaleArguments) -> Outcome<()> {
    let limit = arguments.limit_minutes * 60.0;
    if !(limit > 0.0 && limit < 1e6 && arguments.smallest > 0) {
        return Err(Failure::usage("limit and sizes must be above 0"));
    }
    std::fs::create_dir_all(&arguments.results).context(arguments.results.display())?;
    let work = match &arguments.work {
        Some(dir) => dir.join(format!("s2sfs-scale-{}", std::process::id())),
        None => std::env::temp_dir().join(format!("s2sfs-scale-{}", std::process::id())),
    };
    std::fs::create_dir_all(&work).context(work.display())?;
    let wanted = |kind: &Kind| arguments.only.is_empty() || arguments.only.contains(kind);
    let kinds: Vec<(Kind, f64)> = KINDS.into_iter().filter(|(kind, _)| wanted(kind)).collect();
    let mut scale = Scale {
        arguments,
        work: &work,
        begun: Instant::now(),
        limit: Duration::from_secs_f64(limit),
        bar: output::share_bar(1000),
    };
    let outcome = scale.measure(&kinds);
    scale.bar.finish_and_clear();
    let _ = std::fs::remove_dir_all(&work);
    let results = Results {
        machine: machine::describe(),
        options: scale.options(),
        limit_minutes: arguments.limit_minutes,
        minutes: scale.begun.elapsed().as_secs_f64() / 60.0,
        dimensions: outcome?,
    };
    report::write(&results, &arguments.results, &arguments.splice)
}

struct Scale<'a> {
    arguments: &'a ScaleArguments,
    work: &'a Path,
    begun: Instant,
    limit: Duration,
    bar: ProgressBar,
}

impl Scale<'_> {
    fn options(&self) -> String {
        let all = std::iter::once(OPTIONS).chain(self.arguments.options.iter().map(String::as_str));
        all.collect::<Vec<_>>().join(",")
    }

    fn options_of(&self, kind: Kind) -> String {
        match kind {
            Kind::Extents => format!("{},extent={}K", self.options(), step::SMALL_EXTENT >> 10),
            _ => self.options(),
        }
    }

    /// Each kind may go on until its share of the time, and what others have left, is used up.
    fn measure(&mut self, kinds: &[(Kind, f64)]) -> Outcome<Vec<Dimension>> {
        let all: f64 = kinds.iter().map(|(_, share)| share).sum();
        let mut until = 0.0;
        let mut dimensions = Vec::new();
        for &(kind, share) in kinds {
            until += share / all;
            dimensions.push(self.dimension(kind, self.limit.mul_f64(until))?);
        }
        Ok(dimensions)
    }

    /// Stores of one kind, until something is used up.
    fn dimension(&self, kind: Kind, until: Duration) -> Outcome<Dimension> {
        let mut points: Vec<Point> = Vec::new();
        let mut stopped = None;
        for count in sizes(kind, self.arguments.smallest, self.arguments.largest) {
            let begun = Instant::now();
            stopped = self.why_not(points.last(), count, until);
            if stopped.is_some() {
                break;
            }
            let values = match kind {
                Kind::Mounted => {
                    self.show(kind, "mounting", count);
                    mounted::measure(self.work, &self.options_of(kind), count)
                }
                _ => self.phases(kind, count),
            };
            match values {
                Ok(values) => points.push(Point {
                    count,
                    seconds: begun.elapsed().as_secs_f64(),
                    values,
                }),
                // the smaller ones are worth something
                Err(failure) if !points.is_empty() || kind == Kind::Mounted => {
                    stopped = Some(format!("{} failed: {failure}", report::grouped(count)));
                    break;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(Dimension::new(kind, points, stopped))
    }

    fn show(&self, kind: Kind, what: &str, count: u64) {
        let share = self.begun.elapsed().as_secs_f64() / self.limit.as_secs_f64();
        self.bar.set_position((share.min(1.0) * 1000.0) as u64);
        let name = report::name(kind);
        self.bar
            .set_message(format!("{what} {} {name}", report::grouped(count)));
    }

    /// What would be used up by a store of `count` items, judged by the last one.
    fn why_not(&self, last: Option<&Point>, count: u64, until: Duration) -> Option<String> {
        let last = last?;
        let times = CAUTION * count as f64 / last.count as f64;
        let next = report::grouped(count);
        let seconds = last.seconds * times;
        if self.begun.elapsed().as_secs_f64() + seconds > until.as_secs_f64() {
            return Some(format!(
                "time: {next} would take {:.1} minutes",
                seconds / 60.0
            ));
        }
        let bytes = |name: &str| last.values.get(name).copied().unwrap_or(0.0);
        // settled blocks beside the staged ones, and the index being compacted
        let room =
            3.0 * times * (bytes("log_bytes") + bytes("index_bytes") + bytes("snapshot_bytes"));
        let disk = rustix::fs::statvfs(self.work).ok();
        let free = disk.map_or(f64::MAX, |disk| (disk.f_bavail * disk.f_frsize) as f64);
        if room > 0.8 * free {
            return Some(format!(
                "disk: {next} would need {}",
                output::bytes(room as u64)
            ));
        }
        let peaks = last
            .values
            .iter()
            .filter(|(name, _)| name.ends_with("rss_bytes"));
        let memory = times * peaks.map(|(_, bytes)| *bytes).fold(0.0, f64::max);
        if memory > 0.8 * machine::available_memory() as f64 {
            return Some(format!(
                "memory: {next} might need {}",
                output::bytes(memory as u64)
            ));
        }
        None
    }

    fn phases(&self, kind: Kind, count: u64) -> Outcome<Values> {
        let store = self.work.join(format!("{count}.store"));
        let mut values = Values::new();
        let outcome = PHASES.iter().try_for_each(|&(phase, what)| {
            self.show(kind, what, count);
            values.extend(self.phase(kind, phase, &store, count)?);
            Ok(())
        });
        let _ = std::fs::remove_dir_all(&store);
        outcome.map(|()| values)
    }

    /// One phase, in a process of its own.
    fn phase(&self, kind: Kind, phase: Phase, store: &Path, count: u64) -> Outcome<Values> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let (kind_name, phase_name) = (
            name(kind.to_possible_value()),
            name(phase.to_possible_value()),
        );
        let what = format!("{phase_name} {} {kind_name}", report::grouped(count));
        // a file, because nobody reads a pipe while waiting
        let messages = self.work.join("messages");
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["bench", "scale-step", &kind_name, &phase_name])
            .arg("--count")
            .arg(count.to_string())
            .arg("--store")
            .arg(store)
            .arg("-o")
            .arg(self.options_of(kind))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&messages).context(messages.display())?);
        let mut child = command.spawn().context(&what)?;
        if !self.wait(&mut child).context(&what)? {
            let why = "it takes too long, and was ended";
            return Err(Failure::failed(format!("{what}: {why}")));
        }
        let output = child.wait_with_output().context(&what)?;
        let killed = phase == Phase::Serve;
        if output.status.success() || killed && !output.stdout.is_empty() {
            return serde_json::from_slice(&output.stdout).context(&what);
        }
        let said = std::fs::read_to_string(&messages).unwrap_or_default();
        Err(Failure::failed(format!(
            "{what}: {}: {}",
            output.status,
            said.trim()
        )))
    }

    /// Waits for the end of a process, but not for ever; false if it had to be killed.
    fn wait(&self, child: &mut Child) -> std::io::Result<bool> {
        let patience = self
            .limit
            .mul_f64(PATIENCE)
            .max(self.limit + PATIENCE_AT_LEAST);
        while child.try_wait()?.is_none() {
            if self.begun.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }
}

/// About two sizes for each power of ten.
fn sizes(kind: Kind, smallest: u64, largest: u64) -> Vec<u64> {
    // a tenth, because each is large or slow
    let (smallest, largest) = match kind {
        Kind::Bytes => (smallest / 10, largest / 10),
        Kind::Mounted => (smallest, largest / 10),
        _ => (smallest, largest),
    };
    let mut sizes = vec![smallest.max(1)];
    loop {
        let next = match sizes.as_slice() {
            [.., before, _] if sizes.len().is_multiple_of(2) => before.saturating_mul(10),
            [.., last] => last.saturating_mul(3),
            [] => return sizes,
        };
        if next > largest {
            return sizes;
        }
        sizes.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_even_on_a_logarithmic_scale() {
        let all = [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000];
        assert_eq!(sizes(Kind::Files, 1000, 1_000_000), all);
        assert_eq!(sizes(Kind::Files, 1000, 999_999), all[..6]);
        assert_eq!(sizes(Kind::Bytes, 50, 100), [5]);
        assert_eq!(sizes(Kind::Files, 7, 1), [7]);
    }
}
