//! Goes over trees on mounts, and asks the daemon how their files are stored.
//!
//! Takes memory for the directories that wait to be read, for files with several names, and for one
//! batch of files, whatever the size of the tree.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::target;
use crate::control::client::{Client, ClientError};
use crate::control::mountinfo::{self, Mount};
use crate::control::{CodecUsage, FileUsage, MAX_INODES, USAGE_ATTRIBUTE};
use crate::exit::{Context, Exit, Failure, Outcome};

/// More than the attribute of any file takes.
const ATTRIBUTE_BYTES: usize = 8 << 10;
/// Longer ones are no types, but parts of a name after a dot.
const EXTENSION_MAX: usize = 12;
/// Name of the codec where a file may not be asked about.
pub const UNKNOWN: &str = "unknown";

/// A file that was found.
#[derive(Debug, Clone)]
pub struct Item {
    pub ino: u64,
    /// What [`Visitor::directory`] returned for the directory that it was found in.
    pub place: usize,
    pub extension: String,
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
}

/// Who wants to know what is in a tree.
pub trait Visitor {
    /// A directory, `depth` levels below the path that was asked for; `parent` is what this returned for
    /// the directory above. Called before anything in it.
    fn directory(&mut self, path: &Path, depth: usize, parent: Option<usize>) -> usize;

    fn file(&mut self, item: &Item, usage: &FileUsage);

    /// Something could not be read; the walk goes on.
    fn failed(&mut self, path: &Path, error: &dyn std::fmt::Display);
}

/// How figures of files are had.
enum Source {
    /// From the daemon, many at a time.
    Daemon(Mount),
    /// From an attribute of each file, for users who may not talk to the daemon.
    Attributes,
}

/// A walk over one or more trees.
pub struct Walk<'v, V: Visitor> {
    visitor: &'v mut V,
    source: Source,
    device: u64,
    batch: Vec<Item>,
    /// Device and inode of files with several names.
    seen: HashSet<(u64, u64)>,
}

/// A directory that is still to be read.
struct Waiting {
    path: PathBuf,
    depth: usize,
    parent: Option<usize>,
}

impl<'v, V: Visitor> Walk<'v, V> {
    pub fn new(visitor: &'v mut V) -> Self {
        Walk {
            visitor,
            source: Source::Attributes,
            device: 0,
            batch: Vec::with_capacity(MAX_INODES),
            seen: HashSet::new(),
        }
    }

    /// Visits everything under `root` that lies on the same mount. Symbolic links below are not followed.
    pub fn tree(&mut self, root: &Path) -> Outcome<()> {
        let meta = std::fs::metadata(root).context(root.display())?;
        let mount = mountinfo::mount_of_device(meta.dev()).context(root.display())?;
        let mount = mount.ok_or_else(|| {
            let message = format!("{} does not lie on an s2sfs mount", root.display());
            Failure::new(Exit::NotAStore, message)
        })?;
        self.device = meta.dev();
        self.source = match Client::of_mount(&mount) {
            Ok(_) => Source::Daemon(mount),
            Err(ClientError::Unreachable(_)) => Source::Attributes,
            Err(error) => return Err(error).context(mount.point.display()),
        };
        let mut waiting = Vec::new();
        if meta.is_dir() {
            waiting.push(Waiting {
                path: root.to_owned(),
                depth: 0,
                parent: None,
            });
        } else {
            let place = self.visitor.directory(root, 0, None);
            self.found(root, root.file_name().unwrap_or_default(), &meta, place)?;
        }
        while let Some(directory) = waiting.pop() {
            self.directory(directory, &mut waiting)?;
        }
        self.flush()
    }

    fn directory(&mut self, directory: Waiting, waiting: &mut Vec<Waiting>) -> Outcome<()> {
        let Waiting {
            path,
            depth,
            parent,
        } = directory;
        let place = self.visitor.directory(&path, depth, parent);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                self.visitor.failed(&path, &error);
                return Ok(());
            }
        };
        for entry in entries {
            let found = entry.and_then(|entry| Ok((entry.metadata()?, entry)));
            let (meta, entry) = match found {
                Ok(found) => found,
                // Removed since its name was read.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    self.visitor.failed(&path, &error);
                    continue;
                }
            };
            if meta.dev() != self.device {
                continue;
            }
            if meta.is_dir() {
                waiting.push(Waiting {
                    path: entry.path(),
                    depth: depth + 1,
                    parent: Some(place),
                });
            } else {
                self.found(&entry.path(), &entry.file_name(), &meta, place)?;
            }
        }
        Ok(())
    }

    fn found(&mut self, path: &Path, name: &OsStr, meta: &Metadata, place: usize) -> Outcome<()> {
        if meta.nlink() > 1 && !self.seen.insert((meta.dev(), meta.ino())) {
            return Ok(());
        }
        let item = Item {
            ino: meta.ino(),
            place,
            extension: extension(Path::new(name)),
            size: meta.len(),
            modified: meta.mtime(),
        };
        if !meta.is_file() {
            // Links, devices and the like have no data in blocks.
            self.visitor.file(&item, &FileUsage::default());
            return Ok(());
        }
        match self.source {
            Source::Attributes => {
                let usage = usage_attribute(path).unwrap_or_else(|| guess(meta));
                self.visitor.file(&item, &usage);
            }
            Source::Daemon(_) => {
                self.batch.push(item);
                if self.batch.len() == MAX_INODES {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    /// Asks about the files of the batch.
    fn flush(&mut self) -> Outcome<()> {
        let Source::Daemon(mount) = &self.source else {
            return Ok(());
        };
        if self.batch.is_empty() {
            return Ok(());
        }
        let inos = self.batch.iter().map(|item| item.ino).collect();
        let files = target::client(mount)?.usage(inos);
        let files = files.context(mount.point.display())?;
        for (item, usage) in self.batch.drain(..).zip(files) {
            match &usage.error {
                None => self.visitor.file(&item, &usage),
                Some(error) => {
                    let name = format!("inode {}", item.ino);
                    self.visitor.failed(Path::new(&name), error);
                }
            }
        }
        Ok(())
    }
}

/// The extension of a name in lower case, or nothing where it does not look like a type.
pub fn extension(name: &Path) -> String {
    match name.extension().and_then(OsStr::to_str) {
        Some(text)
            if text.len() <= EXTENSION_MAX && text.chars().all(|c| c.is_ascii_alphanumeric()) =>
        {
            text.to_ascii_lowercase()
        }
        _ => String::new(),
    }
}

fn usage_attribute(path: &Path) -> Option<FileUsage> {
    let mut value = vec![0u8; ATTRIBUTE_BYTES];
    let len = rustix::fs::lgetxattr(path, USAGE_ATTRIBUTE, value.as_mut_slice()).ok()?;
    serde_json::from_slice(value.get(..len)?).ok()
}

/// What stat says of a file that must not be read.
fn guess(meta: &Metadata) -> FileUsage {
    let mut usage = FileUsage::default();
    if meta.len() > 0 {
        let unknown = CodecUsage {
            extents: 0,
            logical_bytes: meta.len(),
            stored_bytes: meta.blocks() * 512,
        };
        usage.codecs.insert(UNKNOWN.into(), unknown);
    }
    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_extensions_that_look_like_one() {
        for (name, expected) in [
            ("a.TXT", "txt"),
            ("a.tar.gz", "gz"),
            (".bashrc", ""),
            ("Makefile", ""),
            ("a.", ""),
            ("mail.2024-01-01T00:00", ""),
            ("v1.extraordinarily", ""),
            ("a.<b>", ""),
        ] {
            assert_eq!(extension(Path::new(name)), expected, "{name}");
        }
    }
}
