//! The FUSE protocol: requests and replies. What they mean is in [`crate::volume`].

mod convert;
mod dirs;
mod groups;
mod held;
mod ops;
mod replies;

pub use convert::failures;

use crate::volume::{Volume, VolumeError};
use fuser::{Config, MountOption, Session, SessionACL};
use log::{error, warn};
use ops::Requests;
use parking_lot::{Condvar, Mutex};
use rustix::mount::UnmountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a busy mount is waited for when the daemon must go.
const BUSY_WAIT: Duration = Duration::from_secs(5);

/// Why mounting or unmounting failed.
#[derive(Debug, Error)]
pub enum MountError {
    #[error("mounting on {path}: {source}")]
    Mount { path: PathBuf, source: io::Error },
    #[error("unmounting {path}: {source}")]
    Unmount { path: PathBuf, source: io::Error },
    #[error("mount option '{0}' is not known")]
    UnknownFlag(String),
    #[error("{0}")]
    Volume(#[from] VolumeError),
    #[error("the file system ended abnormally: {0}")]
    Session(String),
}

impl MountError {
    /// True if something still uses the mount.
    pub fn is_busy(&self) -> bool {
        matches!(self, MountError::Unmount { source, .. }
            if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// What `mount` and `df` show as the source.
    pub source: String,
    pub read_only: bool,
    /// Let other users than the one who mounts use the mount.
    pub allow_other: bool,
    /// Threads that answer requests.
    pub threads: usize,
    /// Generic mount options by their names: dev, nodev, suid, nosuid, exec, noexec, atime, noatime,
    /// sync, async, dirsync, rw.
    pub flags: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            source: "s2sfs".into(),
            read_only: false,
            allow_other: is_root(),
            threads: 8,
            flags: Vec::new(),
        }
    }
}

impl MountOptions {
    /// The source for mount(2), or for the option string of fusermount3, which users mount through
    /// and where a comma would begin another option.
    fn quoted_source(&self) -> String {
        match is_root() {
            true => self.source.clone(),
            false => self.source.replace('\\', "\\\\").replace(',', "\\,"),
        }
    }

    fn config(&self) -> Result<Config, MountError> {
        let mut options = vec![
            MountOption::FSName(self.quoted_source()),
            // As a kernel option: fuser gives `Subtype` to fusermount3 only.
            MountOption::CUSTOM("subtype=s2sfs".into()),
            MountOption::DefaultPermissions,
        ];
        if self.read_only {
            options.push(MountOption::RO);
        }
        for flag in &self.flags {
            options.push(parse_flag(flag).ok_or_else(|| MountError::UnknownFlag(flag.clone()))?);
        }
        let mut config = Config::default();
        config.mount_options = options;
        config.acl = match self.allow_other {
            true => SessionACL::All,
            false => SessionACL::Owner,
        };
        config.n_threads = Some(self.threads.clamp(1, 64));
        config.clone_fd = true;
        Ok(config)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn parse_flag(flag: &str) -> Option<MountOption> {
    Some(match flag {
        "dev" => MountOption::Dev,
        "nodev" => MountOption::NoDev,
        "suid" => MountOption::Suid,
        "nosuid" => MountOption::NoSuid,
        "exec" => MountOption::Exec,
        "noexec" => MountOption::NoExec,
        "atime" => MountOption::Atime,
        "noatime" => MountOption::NoAtime,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        "dirsync" => MountOption::DirSync,
        "rw" => MountOption::RW,
        _ => return None,
    })
}

/// A mounted volume. Dropping the handle leaves it mounted.
#[derive(Debug)]
pub struct MountHandle {
    mountpoint: PathBuf,
    volume: VolumeRef,
    session: Arc<SessionEnd>,
}

/// How the session ended, once it has.
#[derive(Debug, Default)]
struct SessionEnd {
    result: Mutex<Option<Result<(), String>>>,
    ended: Condvar,
}

/// Reports a session that ends in any way, by a panic too.
struct Reporter {
    end: Arc<SessionEnd>,
    result: Result<(), String>,
}

impl Reporter {
    fn set(&mut self, result: Result<(), String>) {
        self.result = result;
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        *self.end.result.lock() = Some(result);
        self.end.ended.notify_all();
    }
}

struct VolumeRef(Arc<Volume>);

impl std::fmt::Debug for VolumeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Volume")
    }
}

/// Mounts a volume. Returns when the mount answers. When it is unmounted, by whomever, the volume is
/// shut down; [`MountHandle::wait`] waits for that.
pub fn mount(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
) -> Result<MountHandle, MountError> {
    let failed = |source| MountError::Mount {
        path: mountpoint.to_owned(),
        source,
    };
    let config = options.config()?;
    let path = mountpoint.canonicalize().map_err(failed)?;
    let session = Session::new(Requests::new(volume.clone()), &path, &config).map_err(failed)?;
    let served = volume.clone();
    let end = Arc::new(SessionEnd::default());
    let mut reporter = Reporter {
        end: end.clone(),
        result: Err("its thread panicked".into()),
    };
    std::thread::Builder::new()
        .name("session".into())
        .spawn(move || {
            let result = match session.run() {
                // A request was being read just when the unmount ended the connection (fs/fuse/dev.c).
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
                result => result.map_err(|e| e.to_string()),
            };
            let closed = served
                .shutdown()
                .map_err(|e| format!("closing the volume: {e}"));
            if let Err(error) = &closed {
                error!("{error}");
            }
            reporter.set(result.and(closed));
        })
        .map_err(failed)?;
    Ok(MountHandle {
        mountpoint: path,
        volume: VolumeRef(volume),
        session: end,
    })
}

impl MountHandle {
    /// Where the volume is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume.0
    }

    /// Returns when the volume is unmounted and its store is closed. Any number of threads may wait.
    pub fn wait(&self) -> Result<(), MountError> {
        let mut result = self.session.result.lock();
        loop {
            match &*result {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(MountError::Session(error.clone())),
                None => self.session.ended.wait(&mut result),
            }
        }
    }

    /// True once the volume is unmounted and its store is closed.
    pub fn is_finished(&self) -> bool {
        self.session.result.lock().is_some()
    }

    /// Unmounts; fails with a busy error while something uses the mount. Does not wait for the store
    /// to be closed.
    pub fn unmount(&self) -> Result<(), MountError> {
        self.detach(UnmountFlags::empty(), &["-u", "-q"])
    }

    /// What a daemon does that was told to end: unmounts, by detaching if the mount is busy, and
    /// closes the volume even if files are still open; what was written to them before is kept.
    pub fn terminate(&self) -> Result<(), MountError> {
        match self.unmount() {
            Err(error) if error.is_busy() => {
                warn!("{} is busy, detaching it", self.mountpoint.display());
                self.detach(UnmountFlags::DETACH, &["-u", "-q", "-z"])?;
            }
            // Somebody else unmounted it already.
            Err(_) if self.is_finished() => {}
            other => other?,
        }
        let deadline = Instant::now() + BUSY_WAIT;
        while !self.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.is_finished() {
            true => self.wait(),
            false => Ok(self.volume.0.shutdown()?),
        }
    }

    fn detach(&self, flags: UnmountFlags, helper: &[&str]) -> Result<(), MountError> {
        let failed = |source| MountError::Unmount {
            path: self.mountpoint.clone(),
            source,
        };
        match rustix::mount::unmount(&self.mountpoint, flags) {
            Ok(()) => Ok(()),
            // Only root may unmount; the helper may for the one who mounted.
            Err(rustix::io::Errno::PERM) => {
                let status = Command::new("fusermount3")
                    .args(helper)
                    .arg("--")
                    .arg(&self.mountpoint)
                    .stdin(Stdio::null())
                    .status()
                    .map_err(failed)?;
                match status.success() {
                    true => Ok(()),
                    false => Err(failed(io::Error::from_raw_os_error(libc::EBUSY))),
                }
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }
}
