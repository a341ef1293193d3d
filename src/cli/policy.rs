//! `s2sfs policy`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::Serialize;

use super::output;
use crate::codec::Policy;
use crate::exit::{Context, Exit, Failure, Outcome};

const OWN: &str = "user.s2sfs.policy";
const EFFECTIVE: &str = "user.s2sfs.effective_policy";

#[derive(Debug, Args)]
pub struct PolicyArguments {
    /// Files and directories on a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Give them a policy of their own, for all below that has none: ratio, balanced, fast or off
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    set: Option<Policy>,
    /// Take their own policy away, so that they have that of the directory above them
    #[arg(long, conflicts_with = "set")]
    unset: bool,
    /// List all below that have a policy of their own
    #[arg(short = 'R', long, conflicts_with_all = ["set", "unset"])]
    recursive: bool,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

fn policy(name: &str) -> Result<Policy, String> {
    let known = Policy::parse(name.as_bytes());
    known.ok_or_else(|| "it is ratio, balanced, fast or off".into())
}

/// What a file or directory has, and what counts for it.
#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    own: Option<String>,
    effective: String,
}

pub fn run(arguments: &PolicyArguments) -> Outcome<()> {
    let mut shown = Vec::new();
    for path in &arguments.paths {
        // First of all: elsewhere the attribute would only be a word.
        show(path)?;
        match (&arguments.set, arguments.unset) {
            (Some(policy), _) => {
                let value = policy.name().as_bytes();
                rustix::fs::setxattr(path, OWN, value, XattrFlags::empty())
                    .context(path.display())?;
            }
            (None, true) => match rustix::fs::removexattr(path, OWN) {
                // It has none, which is what was wanted.
                Err(Errno::NODATA) => {}
                other => other.context(path.display())?,
            },
            (None, false) => {}
        }
        shown.push(show(path)?);
        if arguments.recursive {
            list_below(path, &mut shown)?;
        }
    }
    let changes = arguments.set.is_some() || arguments.unset;
    match arguments.json {
        true => output::print_json(&shown),
        false if changes => Ok(()),
        false => output::print(&describe(&shown)),
    }
}

fn show(path: &Path) -> Outcome<Shown> {
    let effective = attribute(path, EFFECTIVE)?.ok_or_else(|| {
        let name = path.display();
        Failure::new(
            Exit::NotAStore,
            format!("{name} does not lie on an s2sfs mount"),
        )
    })?;
    Ok(Shown {
        path: path.display().to_string(),
        own: attribute(path, OWN)?,
        effective,
    })
}

/// An attribute; `None` where there is none, or attributes are not known.
fn attribute(path: &Path, name: &str) -> Outcome<Option<String>> {
    let mut value = [0; 256];
    match rustix::fs::getxattr(path, name, &mut value[..]) {
        Ok(len) => Ok(Some(String::from_utf8_lossy(&value[..len]).into_owned())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(Failure::failed(format!("{}: {e}", path.display()))),
    }
}

/// Adds what lies below a directory on the same mount and has a policy of its own, sorted by path.
fn list_below(top: &Path, shown: &mut Vec<Shown>) -> Outcome<()> {
    let bar = output::counter("looked at");
    let found = walk(top, &bar);
    bar.finish_and_clear();
    shown.extend(found?.into_values());
    Ok(())
}

fn walk(top: &Path, bar: &ProgressBar) -> Outcome<BTreeMap<PathBuf, Shown>> {
    let top_meta = std::fs::metadata(top).context(top.display())?;
    let (mut found, mut todo) = (BTreeMap::new(), Vec::new());
    if top_meta.is_dir() {
        todo.push(top.to_owned());
    }
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).context(dir.display())? {
            let path = entry.context(dir.display())?.path();
            let meta = match std::fs::symlink_metadata(&path) {
                // Removed meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                meta => meta.context(path.display())?,
            };
            bar.inc(1);
            if meta.dev() != top_meta.dev() || !(meta.is_dir() || meta.is_file()) {
                continue;
            }
            if attribute(&path, OWN)?.is_some() {
                found.insert(path.clone(), show(&path)?);
            }
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    Ok(found)
}

fn describe(shown: &[Shown]) -> String {
    let mut text = format!("{:<10} {:<10} path\n", "effective", "own");
    for Shown {
        path,
        own,
        effective,
    } in shown
    {
        let own = own.as_deref().unwrap_or("-");
        let _ = writeln!(text, "{effective:<10} {own:<10} {path}");
    }
    text
}
