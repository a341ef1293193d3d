//! `s2sfs scrub`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::output::{self, bytes};
use super::target;
use crate::control::{ScrubAction, ScrubOptions, ScrubStatus};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::parse_size;

#[derive(Debug, Args)]
pub struct ScrubArguments {
    /// Mount point
    mountpoint: PathBuf,
    /// Verify only the checksums of the log, without decoding every block
    #[arg(long)]
    fast: bool,
    /// Read at most so many bytes per second, such as 20M
    #[arg(long, value_parser = rate)]
    rate: Option<u64>,
    /// Return at once, and leave the scrub running
    #[arg(long, group = "action")]
    start: bool,
    /// Interrupt the scrub; it keeps its place, over unmounting too
    #[arg(long, group = "action")]
    pause: bool,
    /// Go on with a scrub that was interrupted
    #[arg(long, group = "action")]
    resume: bool,
    /// End the scrub before its time
    #[arg(long, group = "action")]
    stop: bool,
    /// Show how the scrub stands, or how the last one ended
    #[arg(long, group = "action")]
    status: bool,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

impl ScrubArguments {
    /// What to ask for; None: a scrub, and to wait for it.
    fn action(&self) -> Option<ScrubAction> {
        [
            (self.start, ScrubAction::Start),
            (self.pause, ScrubAction::Pause),
            (self.resume, ScrubAction::Resume),
            (self.stop, ScrubAction::Stop),
            (self.status, ScrubAction::Status),
        ]
        .into_iter()
        .find_map(|(chosen, action)| chosen.then_some(action))
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = parse_size(text).filter(|&rate| rate > 0);
    rate.ok_or_else(|| "not a number above 0 (suffixes K, M, G and T are allowed)".into())
}

pub fn run(arguments: &ScrubArguments) -> Outcome<()> {
    let mount = target::mount(&arguments.mountpoint)?;
    let client = target::client(&mount)?;
    let options = ScrubOptions {
        fast: arguments.fast,
        rate: arguments.rate,
    };
    let point = mount.point.display();
    let Some(action) = arguments.action() else {
        let bar = output::progress_bar("scrubbing");
        let ended = client.scrub_to_end(options, |now| {
            bar.set_length(now.total_bytes);
            bar.set_position(now.done_bytes);
        });
        bar.finish_and_clear();
        return judge(arguments, &ended.context(point)?);
    };
    let status = client.scrub(action, options).context(point)?;
    match action {
        ScrubAction::Status => show(arguments, &status),
        _ if arguments.json => output::print_json(&status),
        _ => Ok(()),
    }
}

fn show(arguments: &ScrubArguments, status: &ScrubStatus) -> Outcome<()> {
    match arguments.json {
        true => output::print_json(status),
        false => output::print(&describe(status)),
    }
}

/// Prints how a scrub ended, and fails if it found anything or did not come to its end.
fn judge(arguments: &ScrubArguments, status: &ScrubStatus) -> Outcome<()> {
    show(arguments, status)?;
    let point = arguments.mountpoint.display();
    match (status.errors, &status.failed) {
        (0, None) => Ok(()),
        (0, Some(why)) => Err(Failure::failed(format!(
            "{point}: not all was verified: {why}"
        ))),
        (_, _) if arguments.json => Err(Failure::new(Exit::Damaged, "")),
        (count, _) => Err(Failure::new(
            Exit::Damaged,
            format!("{point} is damaged in {count} places"),
        )),
    }
}

fn describe(status: &ScrubStatus) -> String {
    let mut text = String::new();
    for finding in &status.findings {
        let block = finding.block.map(|block| format!(", block {block}"));
        let _ = writeln!(
            text,
            "DAMAGED segment {}, offset {}{}: {}",
            finding.segment,
            finding.offset,
            block.unwrap_or_default(),
            finding.what
        );
        for part in &finding.files {
            let end = part.offset + part.len;
            let _ = writeln!(
                text,
                "        hits {}, bytes {} to {end}",
                part.path, part.offset
            );
        }
        let listed = finding.files.len() as u64;
        if finding.parts > listed {
            let _ = writeln!(
                text,
                "        and {} more parts of files",
                finding.parts - listed
            );
        }
    }
    let _ = writeln!(text, "{}", line(status));
    text
}

/// One line for status pages.
pub fn line(status: &ScrubStatus) -> String {
    let last = match status.last_completed {
        Some(time) => format!(
            "last one finished {}, {} errors",
            output::utc(time),
            status.last_errors
        ),
        None => "none has finished yet".into(),
    };
    let counts = format!(
        "{} of {}, {} records, {} blocks, {} errors",
        bytes(status.done_bytes),
        bytes(status.total_bytes),
        status.records,
        status.blocks,
        status.errors
    );
    match status.is_active() {
        true => format!("{}: {counts}; {last}", status.state.name()),
        false if status.total_bytes > 0 => format!("{last} ({counts})"),
        false => last,
    }
}
