//! Mounting: checks the request, starts the daemon and waits until the mount answers.
//!
//! The daemon is this program, executed again: no thread exists when it starts, and what it says on
//! standard error until it is ready goes to whoever asked for the mount.

mod daemon;
mod launch;
mod models;
mod namespace;
mod notify;
mod reload;
mod remount;
mod supervision;
mod unmount;
mod volume;

use std::io;
use std::path::{Path, PathBuf};

use crate::control::mountinfo;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::{ModelChoice, Settings};

pub use daemon::{Readiness, run};
pub use models::{codecs, codecs_of_store, unreadable};
pub use namespace::enter_namespace;
pub use remount::{check_remount, is_remount, remount};
pub use unmount::{detach, is_dead, unmount};
pub use volume::{
    Opened, open_damaged, open_store, open_volume, repair_store, store_failure, survey_unmounted,
    unmounted_status, volume_failure,
};

/// Hidden flag by which the daemon knows itself.
pub const DAEMON_FLAG: &str = "--daemon";
/// What the daemon writes to its standard output when the mount answers.
const READY: &str = "ready";

/// What to mount where, checked and with absolute paths.
#[derive(Debug)]
pub struct Request {
    pub store: PathBuf,
    pub mountpoint: PathBuf,
    pub settings: Settings,
    option_lists: Vec<String>,
    /// Where relative paths in options begin.
    directory: PathBuf,
    created_store: bool,
}

impl Request {
    /// Checks options and mount point and changes nothing, for mount(8)'s `-f`.
    pub fn check(store: &Path, mountpoint: &Path, option_lists: &[String]) -> Outcome<()> {
        Settings::of_store(store, option_lists).map_err(Failure::usage)?;
        check_mountpoint(mountpoint)?;
        match std::fs::metadata(store) {
            Ok(meta) if !meta.is_dir() => Err(not_a_directory(store)),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context(store.display()),
            _ => Ok(()),
        }
    }

    /// Checks everything that can be checked without opening the store; creates a missing STORE.
    pub fn new(store: &Path, mountpoint: &Path, option_lists: &[String]) -> Outcome<Request> {
        let directory = std::env::current_dir().context("working directory")?;
        let settings = settings(store, option_lists, &directory).map_err(Failure::usage)?;
        let mountpoint = check_mountpoint(mountpoint)?;
        let created_store = !settings.read_only && create_store_directory(store)?;
        let store = store.canonicalize().map_err(|e| {
            let exit = if e.kind() == io::ErrorKind::NotFound {
                Exit::NotAStore
            } else {
                Exit::Failed
            };
            Failure::new(exit, format!("store {}: {e}", store.display()))
        })?;
        if !store.is_dir() {
            return Err(not_a_directory(&store));
        }
        let request = Request {
            store,
            mountpoint,
            settings,
            option_lists: option_lists.to_vec(),
            directory,
            created_store,
        };
        request.check_apart().inspect_err(|_| request.undo())?;
        Ok(request)
    }

    /// A store under its own mount point could not be reached any more, and a mount point inside the
    /// store would become a part of it.
    fn check_apart(&self) -> Outcome<()> {
        if self.store.starts_with(&self.mountpoint) || self.mountpoint.starts_with(&self.store) {
            return Err(Failure::usage(format!(
                "store {} and mount point {} must not lie inside each other",
                self.store.display(),
                self.mountpoint.display()
            )));
        }
        Ok(())
    }

    /// Removes the directory that was created for a mount that failed, if it is still empty.
    fn undo(&self) {
        if self.created_store {
            let _ = std::fs::remove_dir(&self.store);
        }
    }
}

/// The settings for `store`, with absolute paths.
fn settings(store: &Path, lists: &[String], directory: &Path) -> Result<Settings, String> {
    let mut settings = Settings::of_store(store, lists)?;
    let model = match &mut settings.model {
        ModelChoice::File(path) => Some(path),
        ModelChoice::Embedded(_) => None,
    };
    let others = settings.log.iter_mut().chain(&mut settings.compressor);
    for path in model.into_iter().chain(others) {
        *path = directory.join(&*path);
    }
    Ok(settings)
}

fn check_mountpoint(mountpoint: &Path) -> Outcome<PathBuf> {
    let name = &mountpoint.display().to_string();
    if let Ok(Some(mount)) = mountinfo::mount_at(mountpoint)
        && mount.is_s2sfs()
    {
        if !is_dead(&mount.point) {
            let store = mount.store();
            let message = format!("{} is already mounted at {name}", store.display());
            return Err(Failure::new(Exit::Busy, message));
        }
        log::warn!("{name}: taking away a mount whose daemon is gone");
        detach(&mount.point).context(name)?;
    }
    let path = mountpoint
        .canonicalize()
        .context(format!("mount point {name}"))?;
    if !path.is_dir() {
        return Err(Failure::failed(format!(
            "mount point {name} is not a directory"
        )));
    }
    Ok(path)
}

fn not_a_directory(store: &Path) -> Failure {
    Failure::new(
        Exit::NotAStore,
        format!("store {} is not a directory", store.display()),
    )
}

/// Creates STORE if it is missing, for its owner alone; true if it did.
fn create_store_directory(store: &Path) -> Outcome<bool> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(store) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Failure::failed(format!(
            "cannot create store {}: {e}",
            store.display()
        ))),
    }
}
