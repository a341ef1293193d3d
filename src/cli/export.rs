//! `s2sfs export`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};

use super::moving::{self, Copied, CopyArguments};
use crate::exit::{Context, Failure, Outcome};
use crate::mount;
use crate::options::Settings;
use crate::store::{RealStorage, carry};
use crate::transfer::{HostTree, Tree, VolumeTree};

/// In a directory that an export is not done with: it has the uuid of the store, and the directory is filled by
/// the next export of that. A number is added where the name is taken by something else.
const MARK: &str = ".s2sfs-export";
/// No mark is longer.
const MARK_BYTES: u64 = 4096;

/// What `--help` says besides.
const HELP: &str = "\
Everything in the store is copied, with the same attributes that import takes in. A store that is not mounted is
read as it is, and nothing in it is changed.

DIR must be empty or not exist, unless an earlier export of the same store to it was interrupted, which this
one then goes on with, or --force is given: then files of the same names are replaced, and others stay.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ExportArguments {
    /// Directory of the store, or where it is mounted
    store: PathBuf,
    /// Directory to copy to
    dir: PathBuf,
    /// Copy into a directory that is not empty
    #[arg(long)]
    force: bool,
    /// Mount options for a store that is not mounted, comma-separated
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    copy: CopyArguments,
}

pub fn run(arguments: &ExportArguments) -> Outcome<()> {
    let mut settings = Settings::parse(&arguments.options).map_err(Failure::usage)?;
    settings.read_only = true;
    let store = moving::absolute(&arguments.store)?;
    let dir = moving::absolute(&arguments.dir)?;
    moving::check_apart(&dir, &store)?;
    moving::raise_open_files();
    let stop = moving::stop_on_signals()?;
    let export = |store: &Path| Export {
        arguments,
        threads: settings.threads,
        store: store.to_owned(),
        dir: dir.clone(),
        stop: &stop,
    };
    let (copied, closed) = match moving::mount_of(&store)? {
        Some(mount) => {
            moving::check_apart(&dir, &mount.point)?;
            moving::check_apart(&dir, &mount.store())?;
            let source = HostTree::open(&mount.point).context(mount.point.display())?;
            (export(&mount.store()).copy(&source)?, Ok(()))
        }
        None => {
            let volume = mount::open_volume(&store, &settings)?.volume;
            let copied = export(&store).copy(&VolumeTree::new(volume.clone()));
            let closed = volume.shutdown();
            let closed = closed.map_err(|error| mount::volume_failure(&store, &error));
            (copied?, closed)
        }
    };
    moving::tell(&arguments.copy, copied, closed)
}

struct Export<'a> {
    arguments: &'a ExportArguments,
    threads: usize,
    store: PathBuf,
    dir: PathBuf,
    stop: &'a AtomicBool,
}

impl Export<'_> {
    fn copy<S: Tree>(&self, source: &S) -> Outcome<Copied> {
        let names = source.root().and_then(|root| source.names(&root));
        let names = names.context(self.store.display())?;
        let target = self.make_dir()?;
        let mark = self.make_mark(&target, &names)?;
        let options = self.arguments.copy.options(self.threads, false);
        let finish = || {
            let removed = unlinkat(target.directory(), &mark, AtFlags::empty());
            if let Err(error) = removed {
                log::warn!("{}: {error}", self.dir.join(&mark).display());
            }
        };
        Ok(moving::copy_tree(
            "exporting",
            source,
            &target,
            &options,
            self.stop,
            &finish,
        ))
    }

    fn make_dir(&self) -> Outcome<HostTree> {
        let dir = &self.dir;
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.context(dir.display())?,
        }
        HostTree::open(dir).context(dir.display())
    }

    /// Makes a mark in the directory, unless an interrupted export has left it, and returns its name. What the
    /// store has under such a name is copied like everything else, and what was there before stays.
    fn make_mark(&self, target: &HostTree, names: &[Vec<u8>]) -> Outcome<String> {
        let text = self.identity();
        let there = target.names(target.directory());
        let there = there.context(self.dir.display())?;
        let has = |names: &[Vec<u8>], name: &str| names.iter().any(|n| n == name.as_bytes());
        let mut number = 0u64;
        loop {
            let name = match number {
                0 => MARK.to_owned(),
                number => format!("{MARK}.{number}"),
            };
            number += 1;
            if has(names, &name) {
                continue;
            }
            let path = self.dir.join(&name);
            if has(&there, &name) {
                let found = read_mark(target.directory(), &name);
                if found.as_ref() == Some(&text) {
                    return Ok(name);
                }
                // Alone and empty it is of an export that was killed before it had written its mark.
                if there.len() > 1 || found.as_deref() != Some("") {
                    continue;
                }
                unlinkat(target.directory(), &name, AtFlags::empty()).context(path.display())?;
            } else {
                self.check_empty(&there)?;
            }
            write_mark(target.directory(), &name, &text).context(path.display())?;
            return Ok(name);
        }
    }

    fn check_empty(&self, there: &[Vec<u8>]) -> Outcome<()> {
        if there.is_empty() || self.arguments.force {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{} is not empty, and no export of {} was interrupted there (--force copies all the same)",
            self.dir.display(),
            self.store.display()
        )))
    }

    /// What tells the store from others: its uuid, or its path for who may not read its directory.
    fn identity(&self) -> String {
        let name = self.store.display().to_string();
        let description = carry::description_bytes(&RealStorage::new(&self.store));
        let uuid = description.and_then(|text| carry::uuid_of_description(&name, &text));
        uuid.map_or(name, |uuid| uuid.to_string())
    }
}

fn write_mark(dir: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// None: it is no file that can be read.
fn read_mark(dir: &OwnedFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(dir, name, flags, Mode::empty()).ok()?);
    let is_file = file.metadata().ok()?.is_file();
    let mut text = String::new();
    let read = is_file.then(|| file.take(MARK_BYTES).read_to_string(&mut text));
    read?.ok().map(|_| text)
}
