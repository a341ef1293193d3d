//! `s2sfs import`.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::moving::{self, Copied, CopyArguments};
use super::{output, target};
use crate::control::mountinfo::Mount;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;
use crate::options::Settings;
use crate::transfer::{CopyError, HostTree, VolumeTree};

/// What `--help` says besides.
const HELP: &str = "\
Everything under DIR is copied: files with their holes, hard links, symlinks, fifos, sockets, permissions,
times and extended attributes with access control lists; for root owners, devices, and the attributes
of root, too. What is in the store already stays, unless DIR has a file of the same name.

A file gets its name when it is complete and verified. If the command is interrupted, the same command goes
on: files of the same size, modification time and contents are left alone.

A store that is mounted is written through its mount, any other under its lock. A store that does not exist
is made.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ImportArguments {
    /// Directory to copy
    dir: PathBuf,
    /// Directory of the store, or where it is mounted
    store: PathBuf,
    /// Directory in the store to copy to, which is made if it is missing
    #[arg(long, value_name = "PATH")]
    into: Option<PathBuf>,
    /// Do not enter directories on other file systems
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Wait until everything is settled into its final codec
    #[arg(long)]
    settle: bool,
    /// Mount options for a store that is not mounted, comma-separated
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    #[command(flatten)]
    copy: CopyArguments,
}

pub fn run(arguments: &ImportArguments) -> Outcome<()> {
    let dir = arguments.dir.canonicalize();
    let dir = dir.context(arguments.dir.display())?;
    let into = inside(arguments.into.as_deref().unwrap_or(Path::new("")))?;
    let source = HostTree::open(&dir).context(dir.display())?;
    let store = moving::absolute(&arguments.store)?;
    moving::check_apart(&dir, &store)?;
    moving::raise_open_files();
    let stop = moving::stop_on_signals()?;
    let (copied, after) = match moving::mount_of(&store)? {
        Some(mount) => into_mount(arguments, &dir, &source, &mount, &into, &stop)?,
        None => into_store(arguments, &source, &store, &into, &stop)?,
    };
    moving::tell(&arguments.copy, copied, after)
}

/// A path in the store, as one under its root.
fn inside(path: &Path) -> Outcome<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let message = format!("{}: '..' has no meaning here", path.display());
                return Err(Failure::usage(message));
            }
        }
    }
    Ok(inside)
}

fn into_mount(
    arguments: &ImportArguments,
    dir: &Path,
    source: &HostTree,
    mount: &Mount,
    into: &Path,
    stop: &AtomicBool,
) -> Outcome<(Copied, Outcome<()>)> {
    let point = mount.point.display();
    if moving::is_read_only(mount) {
        let message = format!("the store is mounted read-only at {point}; unmount it first");
        return Err(Failure::new(Exit::Busy, message));
    }
    if !arguments.options.is_empty() {
        let message = format!("the store is mounted at {point}: its mount has its own options");
        return Err(Failure::usage(message));
    }
    moving::check_apart(dir, &mount.point)?;
    moving::check_apart(dir, &mount.store())?;
    let path = mount.point.join(into);
    let target = HostTree::within(&mount.point, into).context(path.display())?;
    let options = arguments
        .copy
        .options(Settings::default().threads, arguments.one_file_system);
    let copied = moving::copy_tree("importing", source, &target, &options, stop, &|| {});
    let settled = match arguments.settle && copied.is_ok() {
        true => settle_mount(mount),
        false => Ok(()),
    };
    Ok((copied, settled))
}

fn settle_mount(mount: &Mount) -> Outcome<()> {
    let client = target::client(mount)?;
    let bar = output::progress_bar("settling");
    let settled = client.settle(|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    settled.context(mount.point.display()).map(|_| ())
}

fn into_store(
    arguments: &ImportArguments,
    source: &HostTree,
    store: &Path,
    into: &Path,
    stop: &AtomicBool,
) -> Outcome<(Copied, Outcome<()>)> {
    let mut settings = Settings::parse(&arguments.options).map_err(Failure::usage)?;
    if settings.read_only {
        return Err(Failure::usage("a store that is read-only takes nothing in"));
    }
    // Settling beside copying would only make both slower.
    settings.settle_after = None;
    let options = arguments
        .copy
        .options(settings.threads, arguments.one_file_system);
    let volume = mount::open_volume(store, &settings)?.volume;
    let failed = |error| mount::volume_failure(store, &error);
    let target = VolumeTree::within(volume.clone(), into, options.owner);
    let copied = target
        .map_err(CopyError::Target)
        .and_then(|target| moving::copy_tree("importing", source, &target, &options, stop, &|| {}));
    let settled = match arguments.settle && copied.is_ok() {
        true => {
            let bar = output::progress_bar("settling");
            let settled = volume.settle(&|done, total| {
                bar.set_length(total);
                bar.set_position(done);
            });
            bar.finish_and_clear();
            settled
        }
        false => Ok(()),
    };
    let closed = volume.shutdown();
    Ok((copied, settled.and(closed).map_err(failed)))
}
