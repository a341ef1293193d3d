//! `s2sfs status`.

use std::fmt::Write;
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

fn describe(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14} {value}");
    };
    line("store", format!("{} ({})", status.store, status.uuid));
    line(
        "mounted",
        match (&status.mountpoint, status.pid) {
            (Some(point), Some(pid)) => format!("{point} (pid {pid})"),
            _ => "no".into(),
        },
    );
    if let Some(frozen) = &status.frozen {
        line(
            "FROZEN",
            format!(
                "for {:.0} s, thaws by itself in {:.0} s",
                frozen.seconds, frozen.seconds_left
            ),
        );
    }
    if let Some(why) = &status.failed {
        line("FAILED", why.clone());
    }
    line(
        "version",
        format!("{}, format {}", status.version, status.format_version),
    );
    line(
        "content",
        format!("{} files, {} directories", status.files, status.directories),
    );
    line("logical", bytes(status.logical_bytes));
    line(
        "stored",
        format!("{} (ratio {:.2})", bytes(status.stored_bytes), status.ratio),
    );
    line(
        "  log",
        format!(
            "{} ({} of it dead)",
            bytes(status.log_bytes),
            bytes(status.dead_bytes)
        ),
    );
    line("  index", bytes(status.index_bytes));
    let encoder = match status.model.as_str() {
        "" => String::new(),
        name => format!(" (encoding with {name})"),
    };
    line("models", format!("{}{encoder}", bytes(status.model_bytes)));
    line("staged", bytes(status.staged_bytes));
    line("dirty", bytes(status.dirty_bytes));
    for (name, usage) in &status.codecs {
        line(
            &format!("codec {name}"),
            format!(
                "{} extents, {} ({}) stored as {}",
                usage.extents,
                bytes(usage.logical_bytes),
                percent(usage.logical_bytes, status.logical_bytes),
                bytes(usage.stored_bytes),
            ),
        );
    }
    if status.mounted {
        describe_activity(status, &mut line);
    }
    text
}

fn describe_activity(status: &Status, line: &mut impl FnMut(&str, String)) {
    let (cache, settle, io) = (&status.cache, &status.settle, &status.io);
    line(
        "cache",
        format!(
            "{} of {}, {} hits, {} misses",
            bytes(cache.bytes),
            bytes(cache.limit_bytes),
            cache.hits,
            cache.misses
        ),
    );
    line(
        "settling",
        format!(
            "{} extents ({}) wait, {} done at {}/s",
            settle.queue_length,
            bytes(settle.queue_bytes),
            bytes(settle.settled_bytes),
            bytes(settle.bytes_per_second as u64)
        ),
    );
    if let Some(again) = &status.again {
        line(
            "coding again",
            format!(
                "{} of {}, stored as {} before, {} now{}",
                bytes(again.done_bytes),
                bytes(again.total_bytes),
                bytes(again.before_bytes),
                bytes(again.after_bytes),
                match again.waiting {
                    0 => String::new(),
                    more => format!("; {more} more requests wait"),
                }
            ),
        );
    }
    line(
        "traffic",
        format!(
            "{} read, {} written, {} decoded at {}/s",
            bytes(io.read_bytes),
            bytes(io.written_bytes),
            bytes(io.decoded_bytes),
            bytes(io.decode_bytes_per_second as u64)
        ),
    );
    for (name, latency) in status.latency.all() {
        if latency.count > 0 {
            line(
                &name.replace('_', " "),
                format!(
                    "{} times, half of them in {}, 99 % in {}, the longest took {}",
                    latency.count,
                    micros(latency.p50_micros),
                    micros(latency.p99_micros),
                    micros(latency.max_micros)
                ),
            );
        }
    }
    let errors = &status.errors;
    line(
        "errors",
        format!(
            "{} EIO, {} disk full, {} of settling",
            errors.io, errors.no_space, errors.settle
        ),
    );
    if let Some(why) = &errors.last_settle {
        line("last failure", printable(why));
    }
    line("scrub", scrub::line(&status.scrub));
    let reclaim = &status.reclaim;
    line(
        "reclaim",
        format!(
            "{}{} given back, {} copied for it",
            if reclaim.running { "running, " } else { "" },
            bytes(reclaim.freed_bytes),
            bytes(reclaim.copied_bytes)
        ),
    );
    line(
        "engine",
        format!("{}, {} threads", status.engine, status.threads),
    );
    line("uptime", format!("{:.0} s", status.uptime_seconds));
}
