//! `s2sfs status`.

use std::fmt::{Display, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{self, Patience, bytes, micros, percent};
use super::{scrub, target};
use crate::control::Status;
use crate::control::client::Client;
use crate::exit::{Context, Outcome};
use crate::mount;
use crate::volume::printable;

#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Mount point, or directory of a store
    path: PathBuf,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &StatusArguments) -> Outcome<()> {
    let status = query(&arguments.path)?;
    if arguments.json {
        output::print_json(&status)
    } else {
        output::print(&describe(&status))
    }
}

/// The status of a mount or of a store, mounted or not.
pub fn query(path: &Path) -> Outcome<Status> {
    if let Some(mount) = target::find_mount(path)? {
        return target::client(&mount)?.status().context(path.display());
    }
    if let Ok(client) = Client::of_store(path)
        && let Ok(status) = client.status()
    {
        return Ok(status);
    }
    let _waiting = Patience::waiting("reading the store");
    mount::unmounted_status(path)
}

/// Names and values, one a line.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name:<14} {value}");
    }
}

fn describe(status: &Status) -> String {
    let mut lines = Lines::default();
    describe_mount(status, &mut lines);
    describe_space(status, &mut lines);
    if status.mounted {
        describe_work(status, &mut lines);
        describe_traffic(status, &mut lines);
        describe_health(status, &mut lines);
    }
    lines.0
}

fn describe_mount(status: &Status, lines: &mut Lines) {
    lines.add("store", format!("{} ({})", status.store, status.uuid));
    let mounted = match (&status.mountpoint, status.pid) {
        (Some(point), Some(pid)) => format!("{point} (pid {pid})"),
        _ => "no".into(),
    };
    lines.add("mounted", mounted);
    if let Some(frozen) = &status.frozen {
        let (since, left) = (frozen.seconds, frozen.seconds_left);
        let times = format!("for {since:.0} s, thaws by itself in {left:.0} s");
        lines.add("FROZEN", times);
    }
    if let Some(why) = &status.failed {
        lines.add("FAILED", why);
    }
    let (version, format) = (&status.version, status.format_version);
    lines.add("version", format!("{version}, format {format}"));
}

fn describe_space(status: &Status, lines: &mut Lines) {
    let (files, directories) = (status.files, status.directories);
    lines.add(
        "content",
        format!("{files} files, {directories} directories"),
    );
    lines.add("logical", bytes(status.logical_bytes));
    let stored = bytes(status.stored_bytes);
    lines.add("stored", format!("{stored} (ratio {:.2})", status.ratio));
    let (log, dead) = (bytes(status.log_bytes), bytes(status.dead_bytes));
    lines.add("  log", format!("{log} ({dead} of it dead)"));
    lines.add("  index", bytes(status.index_bytes));
    let encoder = match status.model.as_str() {
        "" => String::new(),
        name => format!(" (encoding with {name})"),
    };
    lines.add("models", bytes(status.model_bytes) + &encoder);
    lines.add("staged", bytes(status.staged_bytes));
    lines.add("dirty", bytes(status.dirty_bytes));
    for (name, usage) in &status.codecs {
        let value = format!(
            "{} extents, {} ({}) stored as {}",
            usage.extents,
            bytes(usage.logical_bytes),
            percent(usage.logical_bytes, status.logical_bytes),
            bytes(usage.stored_bytes),
        );
        lines.add(&format!("codec {name}"), value);
    }
}

fn describe_work(status: &Status, lines: &mut Lines) {
    let cache = &status.cache;
    let value = format!(
        "{} of {}, {} hits, {} misses",
        bytes(cache.bytes),
        bytes(cache.limit_bytes),
        cache.hits,
        cache.misses
    );
    lines.add("cache", value);
    let settle = &status.settle;
    let value = format!(
        "{} extents ({}) wait, {} done at {}/s",
        settle.queue_length,
        bytes(settle.queue_bytes),
        bytes(settle.settled_bytes),
        bytes(settle.bytes_per_second as u64)
    );
    lines.add("settling", value);
    if let Some(again) = &status.again {
        let waiting = match again.waiting {
            0 => String::new(),
            more => format!("; {more} more requests wait"),
        };
        let value = format!(
            "{} of {}, stored as {} before, {} now{waiting}",
            bytes(again.done_bytes),
            bytes(again.total_bytes),
            bytes(again.before_bytes),
            bytes(again.after_bytes),
        );
        lines.add("coding again", value);
    }
}

fn describe_traffic(status: &Status, lines: &mut Lines) {
    let io = &status.io;
    let value = format!(
        "{} read, {} written, {} decoded at {}/s",
        bytes(io.read_bytes),
        bytes(io.written_bytes),
        bytes(io.decoded_bytes),
        bytes(io.decode_bytes_per_second as u64)
    );
    lines.add("traffic", value);
    let timed = status.latency.all().into_iter();
    for (name, latency) in timed.filter(|(_, latency)| latency.count > 0) {
        let value = format!(
            "{} times, half of them in {}, 99 % in {}, the longest took {}",
            latency.count,
            micros(latency.p50_micros),
            micros(latency.p99_micros),
            micros(latency.max_micros)
        );
        lines.add(&name.replace('_', " "), value);
    }
}

fn describe_health(status: &Status, lines: &mut Lines) {
    let errors = &status.errors;
    let value = format!(
        "{} EIO, {} disk full, {} of settling",
        errors.io, errors.no_space, errors.settle
    );
    lines.add("errors", value);
    if let Some(why) = &errors.last_settle {
        lines.add("last failure", printable(why));
    }
    lines.add("scrub", scrub::line(&status.scrub));
    let reclaim = &status.reclaim;
    let running = if reclaim.running { "running, " } else { "" };
    let value = format!(
        "{running}{} given back, {} copied for it",
        bytes(reclaim.freed_bytes),
        bytes(reclaim.copied_bytes)
    );
    lines.add("reclaim", value);
    let (engine, threads) = (&status.engine, status.threads);
    lines.add("engine", format!("{engine}, {threads} threads"));
    lines.add("uptime", format!("{:.0} s", status.uptime_seconds));
}
