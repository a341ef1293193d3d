//! `s2sfs check`.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::output::{self, Patience, bytes};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;
use crate::options::Settings;
use crate::store::OpenOptions;
use crate::volume::{self, CheckReport, Damage, RepairReport, printable};

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Directory of the store, which must not be mounted
    store: PathBuf,
    /// Keep all that is intact, move aside what is not, and list what is lost
    #[arg(long, conflicts_with = "rebuild_index")]
    repair: bool,
    /// Make the index anew from the log first
    #[arg(long)]
    rebuild_index: bool,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &CheckArguments) -> Outcome<()> {
    if arguments.rebuild_index {
        rebuild_index(arguments)?;
    }
    let settings = Settings {
        read_only: true,
        ..Settings::default()
    };
    let codecs = Arc::new(mount::codecs_of_store(&settings, &arguments.store)?);
    let bar = output::progress_bar("checking");
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    if arguments.repair {
        let report = mount::repair_store(&arguments.store, &codecs, settings.threads, &progress);
        bar.finish_and_clear();
        return tell_repair(arguments, &report?);
    }
    let store = Arc::new(mount::open_damaged(&arguments.store)?);
    let report = volume::check(&store, &codecs, settings.threads, &progress);
    bar.finish_and_clear();
    let report = report.map_err(|e| mount::volume_failure(&arguments.store, &e))?;
    tell_check(arguments, &report)
}

/// Opens the store for writing without the old index; closing it writes the new one.
fn rebuild_index(arguments: &CheckArguments) -> Outcome<()> {
    let options = OpenOptions {
        rebuild_index: true,
        ..OpenOptions::default()
    };
    let _waiting = Patience::waiting("making the index anew");
    let store = mount::open_store(&arguments.store, &options)?;
    store.close().context(arguments.store.display())
}

fn tell_check(arguments: &CheckArguments, report: &CheckReport) -> Outcome<()> {
    if arguments.json {
        output::print_json(report)?;
    } else {
        output::print(&describe(report))?;
    }
    match report.damage.len() {
        0 => Ok(()),
        _ if arguments.json => Err(Failure::new(Exit::Damaged, "")),
        count => {
            let store = arguments.store.display();
            let repair = "check --repair mends what can be mended";
            Err(Failure::new(
                Exit::Damaged,
                format!("{store} is damaged in {count} places; {repair}"),
            ))
        }
    }
}

fn tell_repair(arguments: &CheckArguments, report: &RepairReport) -> Outcome<()> {
    if arguments.json {
        output::print_json(report)?;
    } else {
        output::print(&report.text())?;
        output::print(&match &report.aside {
            Some(dir) => format!(
                "mended; {} ranges of files are lost; what was replaced is in {}\n",
                report.lost.len(),
                arguments.store.join(dir).display()
            ),
            None => "nothing to mend\n".into(),
        })?;
    }
    if !report.remaining.is_empty() {
        let left = report.remaining.len();
        let store = arguments.store.display();
        let message = match arguments.json {
            true => String::new(),
            false => format!("{store}: {left} problems are left that a repair cannot mend"),
        };
        return Err(Failure::new(Exit::Damaged, message));
    }
    match report.changed {
        true => Err(Failure::new(Exit::Repaired, "")),
        false => Ok(()),
    }
}

fn describe(report: &CheckReport) -> String {
    let mut text = String::new();
    for damage in &report.damage {
        describe_damage(&mut text, damage);
    }
    for range in &report.lost {
        let _ = writeln!(text, "LOST {}", range.text());
    }
    let _ = writeln!(
        text,
        "{} files and {} directories with {} extents, {} records, {} blocks of {}",
        report.files,
        report.directories,
        report.extents,
        report.records,
        report.blocks,
        bytes(report.decoded_bytes),
    );
    text.push_str(match (report.damage.is_empty(), report.lost.is_empty()) {
        (true, true) => "no damage\n",
        (true, false) => "no damage but what an earlier repair has marked as lost\n",
        _ => "",
    });
    text
}

fn describe_damage(text: &mut String, damage: &Damage) {
    let _ = writeln!(text, "DAMAGED {}", printable(&damage.what));
    for range in &damage.ranges {
        let _ = writeln!(text, "        hits {}", range.text());
    }
}
