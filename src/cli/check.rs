//! `s2sfs check`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::output::{self, bytes};
use crate::codec::Codecs;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;
use crate::options::Settings;
use crate::store::{OpenOptions, Store};
use crate::volume::{self, CheckReport};

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Directory of the store, which must not be mounted
    store: PathBuf,
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
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let store = Arc::new(mount::open_store(&arguments.store, &options)?);
    let codecs = Arc::new(mount::codecs_of_store(&settings, &arguments.store)?);
    let report = check(&store, &codecs, settings.threads, arguments)?;
    if arguments.json {
        output::print_json(&report)?;
    } else {
        output::print(&describe(&report))?;
    }
    match report.damage.len() {
        0 => Ok(()),
        _ if arguments.json => Err(Failure::new(Exit::Damaged, "")),
        count => {
            let store = arguments.store.display();
            Err(Failure::new(
                Exit::Damaged,
                format!("{store} is damaged in {count} places"),
            ))
        }
    }
}

/// Opens the store for writing without the old index; closing it writes the new one.
fn rebuild_index(arguments: &CheckArguments) -> Outcome<()> {
    let options = OpenOptions {
        rebuild_index: true,
        ..OpenOptions::default()
    };
    let store = mount::open_store(&arguments.store, &options)?;
    store.close().context(arguments.store.display())
}

fn check(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    arguments: &CheckArguments,
) -> Outcome<CheckReport> {
    let bar = output::progress_bar("checking");
    let report = volume::check(store, codecs, threads, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report.context(arguments.store.display())
}

fn describe(report: &CheckReport) -> String {
    let mut text = String::new();
    for damage in &report.damage {
        text.push_str(&format!("DAMAGED {}\n", damage.what));
        for file in &damage.files {
            text.push_str(&format!("        hits {file}\n"));
        }
    }
    text.push_str(&format!(
        "{} files and {} directories with {} extents, {} records, {} blocks of {}\n",
        report.files,
        report.directories,
        report.extents,
        report.records,
        report.blocks,
        bytes(report.decoded_bytes),
    ));
    text.push_str(if report.damage.is_empty() {
        "no damage\n"
    } else {
        ""
    });
    text
}
