//! Finds the mount or store that a command's argument means.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::control::Status;
use crate::control::client::{Client, ClientError};
use crate::control::mountinfo::{self, Mount};
use crate::exit::{Context, Exit, Failure, Outcome};

/// The s2sfs mount at `path`, or the one that holds it.
pub fn mount(path: &Path) -> Outcome<Mount> {
    find_mount(path)?.ok_or_else(|| {
        Failure::new(
            Exit::NotAStore,
            format!("{}: no s2sfs is mounted here", path.display()),
        )
    })
}

/// Like [`mount`], with None where there is none.
pub fn find_mount(path: &Path) -> Outcome<Option<Mount>> {
    let name = path.display();
    if let Some(mount) = mountinfo::mount_at(path).context(name)? {
        return Ok(mount.is_s2sfs().then_some(mount));
    }
    let device = std::fs::metadata(path).context(path.display())?.dev();
    mountinfo::mount_of_device(device).context(path.display())
}

/// Connects to the daemon of a mount.
pub fn client(mount: &Mount) -> Outcome<Client> {
    Client::of_mount(mount).map_err(|e| {
        let point = mount.point.display();
        match &e {
            ClientError::Unreachable(io) if io.kind() == std::io::ErrorKind::PermissionDenied => {
                Failure::failed(format!(
                    "{point}: only the user who mounted it (or root) may do this"
                ))
            }
            _ => Failure::failed(format!("{point}: {e}")),
        }
    })
}

/// A daemon that can be asked again and again, also after its mount has died.
#[derive(Debug, Clone)]
pub enum Daemon {
    Mount(Mount),
    Store(PathBuf),
}

impl Daemon {
    /// The daemon of the mount at or around `path`, or of the store there.
    pub fn find(path: &Path) -> Outcome<Daemon> {
        if let Some(mount) = find_mount(path)? {
            return Ok(Daemon::Mount(mount));
        }
        let store = path.canonicalize().context(path.display())?;
        match Client::of_store(&store) {
            Err(ClientError::Unreachable(error)) if error.kind() != ErrorKind::PermissionDenied => {
                let message = format!("{}: no s2sfs is mounted here, or from here", path.display());
                Err(Failure::new(Exit::NotAStore, message))
            }
            _ => Ok(Daemon::Store(store)),
        }
    }

    pub fn status(&self) -> Outcome<Status> {
        match self {
            Daemon::Mount(mount) => client(mount)?.status().context(mount.point.display()),
            Daemon::Store(store) => Client::of_store(store)
                .and_then(Client::status)
                .context(store.display()),
        }
    }
}
