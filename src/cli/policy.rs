//! `s2sfs policy`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::Serialize;

use super::output::{self, Patience};
use crate::codec::Policy;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::volume::printable;

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
    let mut failures = 0;
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
            let mut search = Search::new();
            shown.extend(search.below(path)?.into_values());
            failures += search.failures;
        }
    }
    let changes = arguments.set.is_some() || arguments.unset;
    match arguments.json {
        true => output::print_json(&shown)?,
        false if changes => {}
        false => output::print(&describe(&shown))?,
    }
    match failures {
        0 => Ok(()),
        1 => Err(Failure::failed("one file or directory was not looked at")),
        count => Err(Failure::failed(format!(
            "{count} files or directories were not looked at"
        ))),
    }
}

fn show(path: &Path) -> Outcome<Shown> {
    let name = path.display();
    policies_of(path).context(&name)?.ok_or_else(|| {
        Failure::new(
            Exit::NotAStore,
            format!("{name} does not lie on an s2sfs mount"),
        )
    })
}

/// `None` elsewhere than on a mount.
fn policies_of(path: &Path) -> io::Result<Option<Shown>> {
    let Some(effective) = attribute(path, EFFECTIVE)? else {
        return Ok(None);
    };
    Ok(Some(Shown {
        path: path.display().to_string(),
        own: attribute(path, OWN)?,
        effective,
    }))
}

/// An attribute; `None` where there is none, or attributes are not known.
fn attribute(path: &Path, name: &str) -> io::Result<Option<String>> {
    let mut value = [0; 256];
    match rustix::fs::getxattr(path, name, &mut value[..]) {
        Ok(len) => Ok(Some(String::from_utf8_lossy(&value[..len]).into_owned())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Looks for what has a policy of its own.
struct Search {
    looked_at: u64,
    failures: u64,
    patience: Patience,
}

impl Search {
    fn new() -> Search {
        Search {
            looked_at: 0,
            failures: 0,
            patience: Patience::counting("looked at"),
        }
    }

    /// What there is below a directory on the same mount, sorted by path.
    fn below(&mut self, top: &Path) -> Outcome<BTreeMap<PathBuf, Shown>> {
        let top_meta = std::fs::metadata(top).context(top.display())?;
        let (mut found, mut todo) = (BTreeMap::new(), Vec::new());
        if top_meta.is_dir() {
            todo.push(top.to_owned());
        }
        while let Some(dir) = todo.pop() {
            let entries = self.readable(&dir, std::fs::read_dir(&dir));
            for entry in entries.into_iter().flatten() {
                let Some(entry) = self.readable(&dir, entry) else {
                    continue;
                };
                let path = entry.path();
                self.looked_at += 1;
                self.patience.set(self.looked_at);
                let Some((shown, is_dir)) = self.readable(&path, look(&path, top_meta.dev()))
                else {
                    continue;
                };
                found.extend(shown.map(|shown| (path.clone(), shown)));
                if is_dir {
                    todo.push(path);
                }
            }
        }
        self.patience.finish();
        Ok(found)
    }

    /// Says what could not be read, unless it was removed meanwhile.
    fn readable<T>(&mut self, path: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                self.failures += 1;
                let path = printable(&path.display().to_string());
                self.patience.say(&format!("s2sfs: {path}: {e}"));
            }
        }
        None
    }
}

/// What has a policy of its own, and whether it is a directory, on this device.
fn look(path: &Path, device: u64) -> io::Result<(Option<Shown>, bool)> {
    let meta = std::fs::symlink_metadata(path)?;
    if meta.dev() != device || !(meta.is_dir() || meta.is_file()) {
        return Ok((None, false));
    }
    let shown = match attribute(path, OWN)? {
        Some(_) => policies_of(path)?,
        None => None,
    };
    Ok((shown, meta.is_dir()))
}

fn describe(shown: &[Shown]) -> String {
    let mut text = format!("{:<10} {:<10} path\n", "effective", "own");
    for Shown {
        path,
        own,
        effective,
    } in shown
    {
        let (own, path) = (own.as_deref().unwrap_or("-"), printable(path));
        let _ = writeln!(text, "{effective:<10} {own:<10} {path}");
    }
    text
}
