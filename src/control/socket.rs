//! Where the control socket lies, and how to reach it under a path of any length.
//!
//! A writable mount has it at STORE/control.sock, where the store's writer lock guarantees that there
//! is one daemon. A read-only mount must not change STORE, so it has it in the runtime directory
//! under a name made from the mount point.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Name of the socket inside a store.
pub const SOCKET_NAME: &str = "control.sock";

/// Socket of a writable mount.
pub fn store_socket(store: &Path) -> PathBuf {
    store.join(SOCKET_NAME)
}

/// Socket of a read-only mount.
pub fn read_only_socket(mountpoint: &Path) -> PathBuf {
    let name = blake3::hash(mountpoint.as_os_str().as_bytes()).to_hex();
    runtime_dir().join(format!("{}.sock", &name[..16]))
}

fn runtime_dir() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/s2sfs");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("s2sfs"),
        _ => PathBuf::from(format!("/tmp/s2sfs-{}", user.as_raw())),
    }
}

/// Makes the directory of a read-only mount's socket, for its owner alone.
pub fn prepare_runtime_dir(socket: &Path) -> io::Result<()> {
    let Some(dir) = socket.parent() else {
        return Ok(());
    };
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    check_owner(dir)
}

/// Fails if somebody else could have put a socket into `dir`.
fn check_owner(dir: &Path) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(dir)?;
    if !meta.is_dir()
        || meta.uid() != rustix::process::geteuid().as_raw()
        || meta.mode() & 0o022 != 0
    {
        let message = format!("{} is not a directory of this user alone", dir.display());
        return Err(io::Error::other(message));
    }
    Ok(())
}

/// Connects to the socket of a read-only mount.
pub fn connect_read_only(mountpoint: &Path) -> io::Result<UnixStream> {
    let path = read_only_socket(mountpoint);
    check_owner(path.parent().unwrap_or(Path::new("/")))?;
    connect(&path)
}

/// Binds a socket that only its owner (and root) can connect to. A stale one is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = with_short_path(path, |short| UnixListener::bind(short))?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to a socket.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    with_short_path(path, |short| UnixStream::connect(short))
}

/// Socket addresses are limited to 108 bytes: goes through the open directory instead of its path.
fn with_short_path<T>(path: &Path, f: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let dir = File::from(rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?);
    f(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}
