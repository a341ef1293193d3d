//! Stores of the benchmark, mounted and unmounted by this program's own commands.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::Status;
use crate::exit::{Context, Failure, Outcome};

/// Where and how stores are made.
pub struct Bench {
    pub work: PathBuf,
    pub options: Option<String>,
}

/// One store and its mount point. Unmounted and deleted when dropped.
pub struct Bed {
    pub store: PathBuf,
    pub mountpoint: PathBuf,
    options: Option<String>,
}

impl Bench {
    /// An empty store, mounted.
    pub fn fresh(&self, name: &str) -> Outcome<Bed> {
        let bed = Bed {
            store: self.work.join(format!("{name}.store")),
            mountpoint: self.work.join(format!("{name}.mnt")),
            options: self.options.clone(),
        };
        std::fs::create_dir_all(&bed.mountpoint).context(bed.mountpoint.display())?;
        bed.mount()?;
        Ok(bed)
    }
}

impl Bed {
    pub fn mount(&self) -> Outcome<()> {
        let mut command = own_program(OsStr::new("mount.s2sfs"));
        command.arg(&self.store).arg(&self.mountpoint);
        if let Some(options) = &self.options {
            command.arg("-o").arg(options);
        }
        run(&mut command).map(drop)
    }

    pub fn umount(&self) -> Outcome<()> {
        run(own_program(OsStr::new("s2sfs"))
            .arg("umount")
            .arg(&self.mountpoint))
        .map(drop)
    }

    /// Settles everything; returns the time it took.
    pub fn settle(&self) -> Outcome<Duration> {
        timed(|| {
            run(own_program(OsStr::new("s2sfs"))
                .arg("settle")
                .arg(&self.mountpoint))
            .map(drop)
        })
        .map(|((), time)| time)
    }

    /// The status of the mount.
    pub fn status(&self) -> Outcome<Status> {
        status(&self.mountpoint)
    }

    /// The status of the unmounted store.
    pub fn store_status(&self) -> Outcome<Status> {
        status(&self.store)
    }

    /// The process that serves the mount.
    pub fn daemon(&self) -> Outcome<u32> {
        let none = || Failure::failed("status has no pid");
        self.status()?.pid.ok_or_else(none)
    }

    /// Most memory that the daemon has had.
    pub fn peak_rss(&self) -> Outcome<u64> {
        super::speeds::peak_rss(self.daemon()?)
    }

    /// Unmounts, forgets everything that is cached of the store, and mounts with a new daemon.
    pub fn restart_cold(&self) -> Outcome<()> {
        self.umount()?;
        super::files::forget_cached(&self.store)?;
        self.mount()
    }

    /// Copies a tree into the mount, as a user would; returns the time it took.
    pub fn copy_in(&self, tree: &Path) -> Outcome<Duration> {
        let copy = || run(Command::new("cp").arg("-r").arg(tree).arg(&self.mountpoint)).map(drop);
        timed(copy).map(|((), time)| time)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if matches!(crate::control::mountinfo::mount_at(&self.mountpoint), Ok(Some(mount)) if mount.is_s2sfs())
        {
            let _ = self.umount();
        }
        let _ = std::fs::remove_dir(&self.mountpoint);
        let _ = std::fs::remove_dir_all(&self.store);
    }
}

fn status(path: &Path) -> Outcome<Status> {
    let output = run(own_program(OsStr::new("s2sfs"))
        .args(["status", "--json"])
        .arg(path))?;
    serde_json::from_slice(&output).context("status --json")
}

/// This program under one of its names.
fn own_program(name: &OsStr) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name);
    command
}

/// Runs a command to its end; what it prints is the result.
pub fn run(command: &mut Command) -> Outcome<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(format!("{command:?}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Failure::failed(format!(
        "{command:?}: {}: {}",
        output.status,
        message.trim()
    )))
}

/// Runs `f` and takes the time.
pub fn timed<T>(f: impl FnOnce() -> Outcome<T>) -> Outcome<(T, Duration)> {
    let start = Instant::now();
    let value = f()?;
    Ok((value, start.elapsed()))
}
