//! `s2sfs export`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::moving::{self, Copied, CopyArguments};
use crate::exit::{Context, Failure, Outcome};
use crate::mount;
use crate::options::Settings;
use crate::transfer::{HostTree, Tree, VolumeTree};

/// In a directory that an export is not done with: it is filled by the next export of the same store.
const MARK: &str = ".s2sfs-export";

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
    let copied = match moving::mount_of(&store)? {
        Some(mount) => {
            moving::check_apart(&dir, &mount.point)?;
            moving::check_apart(&dir, &mount.store())?;
            let source = HostTree::open(&mount.point).context(mount.point.display())?;
            let name = mount.store().display().to_string();
            export(arguments, &settings, &source, &name, &dir, &stop)?
        }
        None => {
            let volume = mount::open_volume(&store, &settings)?.volume;
            let source = VolumeTree::new(volume.clone());
            let name = store.display().to_string();
            let copied = export(arguments, &settings, &source, &name, &dir, &stop);
            let closed = volume.shutdown();
            let copied = copied?;
            closed.map_err(|error| mount::volume_failure(&store, &error))?;
            copied
        }
    };
    moving::tell(&arguments.copy, copied)
}

fn export<S: Tree>(
    arguments: &ExportArguments,
    settings: &Settings,
    source: &S,
    store: &str,
    dir: &Path,
    stop: &AtomicBool,
) -> Outcome<Copied> {
    let mark = dir.join(MARK);
    prepare(dir, &mark, store, arguments.force)?;
    let target = HostTree::open(dir).context(dir.display())?;
    let options = arguments.copy.options(settings.threads, false);
    let finish = || {
        if let Err(error) = fs::remove_file(&mark) {
            log::warn!("{}: {error}", mark.display());
        }
    };
    Ok(moving::copy_tree(
        "exporting",
        source,
        &target,
        &options,
        stop,
        &finish,
    ))
}

/// Makes the directory, and a mark in it.
fn prepare(dir: &Path, mark: &Path, store: &str, force: bool) -> Outcome<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.context(dir.display())?,
    }
    let mut names = fs::read_dir(dir).context(dir.display())?;
    let is_resumed = || fs::read(mark).is_ok_and(|text| text == store.as_bytes());
    if !force && names.next().is_some() && !is_resumed() {
        return Err(Failure::usage(format!(
            "{} is not empty, and no export of {store} was interrupted there (--force copies all the same)",
            dir.display()
        )));
    }
    fs::write(mark, store).context(mark.display())
}
