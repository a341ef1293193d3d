//! `s2sfs du`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::{self, Patience, bytes};
use super::sums::{Counts, Sums};
use super::walk::{Item, Visitor, Walk};
use crate::control::FileUsage;
use crate::exit::{Context, Failure, Outcome};
use crate::volume::printable;

#[derive(Debug, Args)]
pub struct DuArguments {
    /// Files and directories on s2sfs mounts
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
    /// What comes first: the most stored bytes, the best ratio, or names in order
    #[arg(long, value_enum, default_value_t = Sort::Size)]
    sort: Sort,
    /// Show directories down to this many levels below PATHS
    #[arg(long, value_name = "N", default_value_t = 1)]
    depth: usize,
    /// Show only figures by directory, by type (extension) or by codec
    #[arg(long, value_enum)]
    by: Option<By>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    Size,
    Ratio,
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    Dir,
    Type,
    Codec,
}

struct Directory {
    path: PathBuf,
    /// The directory above it that is shown, too.
    parent: Option<usize>,
    sums: Sums,
}

/// What was found so far.
struct Tally {
    depth: usize,
    directories: Vec<Directory>,
    counts: Counts,
    failures: u64,
    patience: Patience,
}

impl Visitor for Tally {
    fn directory(&mut self, path: &Path, depth: usize, parent: Option<usize>) -> usize {
        match parent {
            Some(parent) if depth > self.depth => parent,
            _ => {
                self.directories.push(Directory {
                    path: path.to_owned(),
                    parent,
                    sums: Sums::default(),
                });
                self.directories.len() - 1
            }
        }
    }

    fn file(&mut self, item: &Item, usage: &FileUsage) {
        let sums = self.counts.add(&item.extension, usage);
        if let Some(directory) = self.directories.get_mut(item.place) {
            directory.sums.add(&sums);
        }
        self.patience.set(self.counts.total.files);
    }

    fn failed(&mut self, path: &Path, error: &dyn std::fmt::Display) {
        self.failures += 1;
        let path = printable(&path.display().to_string());
        self.patience.say(&format!("s2sfs: {path}: {error}"));
    }
}

/// One line of output.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    files: u64,
    extents: u64,
    logical_bytes: u64,
    stored_bytes: u64,
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dirty_bytes: Option<u64>,
}

impl Row {
    /// Codecs have no staged and dirty bytes.
    fn new(name: impl Into<String>, sums: &Sums, by_file: bool) -> Row {
        Row {
            name: name.into(),
            files: sums.files,
            extents: sums.extents,
            logical_bytes: sums.logical,
            stored_bytes: sums.stored,
            ratio: sums.ratio(),
            staged_bytes: by_file.then_some(sums.staged),
            dirty_bytes: by_file.then_some(sums.dirty),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    directories: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    types: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    codecs: Option<Vec<Row>>,
    total: Row,
    /// Files and directories that could not be read.
    failures: u64,
}

pub fn run(arguments: &DuArguments) -> Outcome<()> {
    let mut tally = Tally {
        depth: arguments.depth,
        directories: Vec::new(),
        counts: Counts::default(),
        failures: 0,
        patience: Patience::counting("files"),
    };
    let roots = distinct(&arguments.paths)?;
    let mut walk = Walk::new(&mut tally);
    for root in &roots {
        walk.tree(root)?;
    }
    tally.patience.finish();
    let failures = tally.failures;
    let report = report(tally, arguments);
    match arguments.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    match failures {
        0 => Ok(()),
        1 => Err(Failure::failed("one file or directory was not counted")),
        count => Err(Failure::failed(format!(
            "{count} files or directories were not counted"
        ))),
    }
}

/// The paths without those that lie in another one, so that nothing is counted twice.
fn distinct(paths: &[PathBuf]) -> Outcome<Vec<PathBuf>> {
    let mut real = Vec::new();
    for path in paths {
        real.push(path.canonicalize().context(path.display())?);
    }
    let covered = |at: usize| {
        real.iter().enumerate().any(|(other, path)| {
            other != at && real[at].starts_with(path) && (*path != real[at] || other < at)
        })
    };
    let kept = (0..paths.len()).filter(|&at| !covered(at));
    Ok(kept.map(|at| paths[at].clone()).collect())
}

fn report(mut tally: Tally, arguments: &DuArguments) -> Report {
    // Children come after their parents.
    for at in (0..tally.directories.len()).rev() {
        let Directory { parent, sums, .. } = tally.directories[at];
        if let Some(parent) = parent {
            tally.directories[parent].sums.add(&sums);
        }
    }
    let wanted = |by| arguments.by.is_none_or(|only| only == by);
    let sorted = |mut rows: Vec<Row>| {
        match arguments.sort {
            Sort::Size => rows.sort_by_key(|row| std::cmp::Reverse(row.stored_bytes)),
            Sort::Ratio => rows.sort_by(|a, b| b.ratio.total_cmp(&a.ratio)),
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
        rows
    };
    let named = |sums: &BTreeMap<String, Sums>, by_file| {
        let rows = sums.iter();
        sorted(rows.map(|(name, s)| Row::new(name, s, by_file)).collect())
    };
    let directories = tally.directories.iter();
    let directories = directories.map(|d| Row::new(d.path.display().to_string(), &d.sums, true));
    Report {
        directories: wanted(By::Dir).then(|| sorted(directories.collect())),
        types: wanted(By::Type).then(|| named(&tally.counts.types, true)),
        codecs: wanted(By::Codec).then(|| named(&tally.counts.codecs, false)),
        total: Row::new("total", &tally.counts.total, true),
        failures: tally.failures,
    }
}

fn describe(report: &Report) -> String {
    let mut text = String::new();
    let sections = [
        ("directory", &report.directories),
        ("type", &report.types),
        ("codec", &report.codecs),
    ];
    for (what, rows) in sections {
        let Some(rows) = rows else { continue };
        let _ = writeln!(
            text,
            "{:>10} {:>10} {:>7} {:>10} {:>9}  {what}",
            "logical", "stored", "ratio", "extents", "files"
        );
        for row in rows {
            text.push_str(&line(row));
        }
        text.push('\n');
    }
    text.push_str(&line(&report.total));
    let hint = |text: &mut String, count: Option<u64>, what: &str| {
        if let Some(count) = count.filter(|&count| count > 0) {
            let _ = writeln!(text, "{:>10} {what}", bytes(count));
        }
    };
    let staged = "of the stored bytes are staged and will be settled";
    hint(&mut text, report.total.staged_bytes, staged);
    let dirty = "are not in the store yet and not counted";
    hint(&mut text, report.total.dirty_bytes, dirty);
    text
}

fn line(row: &Row) -> String {
    let ratio = match row.stored_bytes {
        0 => "-".into(),
        _ => format!("{:.2}", row.ratio),
    };
    format!(
        "{:>10} {:>10} {ratio:>7} {:>10} {:>9}  {}\n",
        bytes(row.logical_bytes),
        bytes(row.stored_bytes),
        row.extents,
        row.files,
        printable(&row.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_twice() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a");
        std::fs::create_dir(&inner).unwrap();
        std::fs::create_dir(dir.path().join("ab")).unwrap();
        let paths = [
            inner.join("."),
            dir.path().join("ab"),
            inner.clone(),
            dir.path().join("ab/../a"),
        ];
        assert_eq!(distinct(&paths).unwrap(), paths[..2]);
        let all = [inner.clone(), dir.path().to_owned()];
        assert_eq!(distinct(&all).unwrap(), all[1..]);
    }
}
