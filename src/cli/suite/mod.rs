//! `s2sfs bench-store`: the figures of docs/benchmarks.md, measured on real mounts.
//!
//! Every store has the default options, or the one set given with `-o` for all.

mod classes;
mod compare;
pub(super) mod figures;
pub(super) mod files;
pub(super) mod machine;
pub(super) mod mounted;
pub(super) mod report;
mod rivals;
mod special;
pub(super) mod speeds;

use std::path::PathBuf;

use clap::Args;

use super::peers;
use crate::exit::{Context, Failure, Outcome};

#[derive(Debug, Args)]
pub struct SuiteArguments {
    /// Directory with one directory per class of files; without it, the project's own text
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Directory of the results: results.json, results.md and plots/
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// Directory for stores and mounts; deleted afterwards [default: a new one under TMPDIR]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Markdown files whose marked sections are replaced by the new tables, with plots/ beside them
    #[arg(long, value_name = "FILE")]
    splice: Vec<PathBuf>,
    /// Mount options of all stores
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Option<String>,
    /// Measure only this class; may be given more than once
    #[arg(long, value_name = "NAME")]
    class: Vec<String>,
    /// Cold random reads per class
    #[arg(long, default_value_t = 40)]
    reads: usize,
    /// Leave out the small-files, expansion and copy-in measurements
    #[arg(long)]
    classes_only: bool,
    /// Leave out the other file systems and programs
    #[arg(long)]
    alone: bool,
}

pub fn run(arguments: &SuiteArguments) -> Outcome<()> {
    std::fs::create_dir_all(&arguments.results).context(arguments.results.display())?;
    let work = match &arguments.work {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("s2sfs-bench-{}", std::process::id())),
    };
    std::fs::create_dir_all(&work).context(work.display())?;
    let outcome = measure(arguments, &work);
    let _ = std::fs::remove_dir_all(&work);
    let results = outcome?;
    report::write(&results, &arguments.results, &arguments.splice)
}

fn measure(arguments: &SuiteArguments, work: &std::path::Path) -> Outcome<report::Results> {
    let bench = mounted::Bench {
        work: work.to_owned(),
        options: arguments.options.clone(),
    };
    let own_text = work.join("own-text");
    let corpus = match &arguments.corpus {
        Some(corpus) => corpus.canonicalize().context(corpus.display())?,
        None => {
            files::copy_own_text(&own_text)?;
            own_text
        }
    };
    let classes = files::classes(&corpus, &arguments.class)?;
    if classes.is_empty() {
        return Err(Failure::usage(format!(
            "{} has no class directories",
            corpus.display()
        )));
    }
    let mut results = report::Results::new(machine::describe(), &arguments.options);
    for class in &classes {
        let reads = arguments.reads;
        let entries = files::tree(class)?;
        let own = classes::measure(&bench, class, &entries, reads)?;
        if !arguments.alone {
            let rivals = rivals::measure(work, class, &entries, reads);
            results.rivals.extend(rivals);
            let all = files::joined(class, &entries)?;
            results.programs.extend(peers::measure(&own.class, &all)?);
        }
        results.classes.push(own);
    }
    if !arguments.classes_only {
        results.copy_in = Some(special::copy_in(&bench, &corpus)?);
        results.small_files = Some(special::small_files(&bench, &corpus)?);
        results.expansion = Some(special::expansion(&bench, &corpus)?);
    }
    Ok(results)
}
