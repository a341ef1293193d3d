//! Unmounting, with the help of fusermount3 where the kernel wants a privileged process.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Unmounts like umount(8). Fails with `ResourceBusy` while files are open.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    run(mountpoint, UnmountFlags::NOFOLLOW, "-u")
}

/// Takes the mount out of the tree at once; it ends when the last file is closed.
pub fn detach(mountpoint: &Path) -> io::Result<()> {
    run(
        mountpoint,
        UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        "-uz",
    )
}

/// True if the daemon of the mount is gone, so that nobody can answer for it. Asks for statistics
/// because the kernel never answers that from what it remembers.
pub fn is_dead(mountpoint: &Path) -> bool {
    rustix::fs::statvfs(mountpoint).is_err_and(|e| e == Errno::NOTCONN)
}

fn run(mountpoint: &Path, flags: UnmountFlags, fusermount_flag: &str) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => fusermount(mountpoint, fusermount_flag),
        other => other.map_err(io::Error::from),
    }
}

fn fusermount(mountpoint: &Path, flag: &str) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .arg(flag)
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("fusermount3: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
    let kind = if message.contains("busy") {
        io::ErrorKind::ResourceBusy
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, message))
}
