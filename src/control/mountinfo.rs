//! Finds s2sfs mounts in /proc/self/mountinfo.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// File system type as the kernel shows it.
pub const FS_TYPE: &str = "fuse.s2sfs";

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub fs_type: String,
    /// For s2sfs: the path of the store.
    pub source: OsString,
    /// Device number (major, minor), as in the `st_dev` of its files.
    pub device: (u32, u32),
}

impl Mount {
    pub fn is_s2sfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    pub fn store(&self) -> PathBuf {
        PathBuf::from(&self.source)
    }
}

/// All mounts that this process sees, in mount order.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse_line).collect())
}

/// The topmost mount at exactly `path`. Works for a mount whose daemon is gone, too.
pub fn mount_at(path: &Path) -> io::Result<Option<Mount>> {
    let path = resolve(path)?;
    Ok(mounts()?
        .into_iter()
        .rev()
        .find(|mount| mount.point == path))
}

/// The s2sfs mount that holds files of device number `device`.
pub fn mount_of_device(device: u64) -> io::Result<Option<Mount>> {
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    Ok(mounts()?
        .into_iter()
        .rev()
        .find(|mount| mount.device == device && mount.is_s2sfs()))
}

/// The absolute path without symbolic links; the last component is not touched if that fails, since
/// nothing under a dead mount can be looked at.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let direct = path.canonicalize();
    let (Err(error), Some(parent), Some(name)) = (&direct, path.parent(), path.file_name()) else {
        return direct;
    };
    if error.kind() == io::ErrorKind::NotFound {
        return direct;
    }
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    Ok(parent.canonicalize()?.join(name))
}

/// Format: id parent major:minor root point options [tags...] - type source super-options
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let device = fields.nth(2)?;
    let point = fields.nth(1)?;
    let mut fields = fields.skip_while(|&field| field != b"-");
    fields.next()?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    Some(Mount {
        point: PathBuf::from(unescape(point)),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: unescape(source),
        device: (major.parse().ok()?, minor.parse().ok()?),
    })
}

/// Turns the kernel's `\040` style escapes back into bytes.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_tags_and_escapes_are_understood() {
        let line = b"36 35 0:52 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.s2sfs /da\\134ta rw,user_id=0";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.source, "/da\\ta");
        assert_eq!(mount.device, (0, 52));
        assert!(mount.is_s2sfs());
    }

    #[test]
    fn broken_lines_are_skipped() {
        for line in [
            &b""[..],
            b"1 2",
            b"1 2 x:y / / rw - t s o",
            b"1 2 3:4 / /mnt rw",
        ] {
            assert_eq!(parse_line(line), None);
        }
        assert_eq!(unescape(b"a\\04"), "a\\04");
        assert_eq!(unescape(b"\\999"), "\\999");
    }

    #[test]
    fn the_root_mount_is_found() {
        assert!(mount_at(Path::new("/")).unwrap().is_some());
    }
}
