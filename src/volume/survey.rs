//! All files of a store that is not mounted, with how they are stored.

use std::collections::HashSet;

use super::namespace::Dirent;
use super::status::for_each;
use super::usage::usage_of;
use super::{Attr, FileKind, Result, VolumeError, keys};
use crate::control::FileUsage;
use crate::store::Store;

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SurveyedFile {
    /// One of its names.
    pub name: Vec<u8>,
    pub size: u64,
    /// When it was last written to, in seconds since 1970.
    pub modified: i64,
    pub usage: FileUsage,
}

/// Visits every regular file that has a name, once. Takes memory only for files with several names.
///
/// # Errors
/// If metadata cannot be read or is damaged.
pub fn survey(store: &Store, mut visit: impl FnMut(SurveyedFile)) -> Result<()> {
    let mut seen = HashSet::new();
    for_each(store, b"D", b"E", |key, value| {
        let entry = Dirent::decode(value)?;
        if entry.kind != FileKind::Regular {
            return Ok(());
        }
        let stored = store.get(&keys::inode(entry.ino))?;
        let attr = Attr::decode(&stored.ok_or(VolumeError::Stale(entry.ino))?)?;
        if attr.nlink > 1 && !seen.insert(entry.ino) {
            return Ok(());
        }
        visit(SurveyedFile {
            name: key.get(9..).unwrap_or_default().to_vec(),
            size: attr.size,
            modified: attr.mtime.secs,
            usage: usage_of(store, entry.ino)?,
        });
        Ok(())
    })
}
