//! Policies of directories and files.
//!
//! The extended attribute `user.s2sfs.policy` of a file or directory says under which policy data is
//! settled: the file's own counts, otherwise that of the nearest directory above it that has one,
//! otherwise the mount's. A file with several names lies where it was last linked or renamed to.
//!
//! What a directory inherits is remembered until any directory gets another policy or another place, so
//! that a file costs one look-up, and a directory one for each level above it that is not known yet.

use super::{FileKind, ROOT, Result, Volume, VolumeError};
use crate::codec::Policy;
use log::warn;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;

/// Name of the attribute.
pub const POLICY: &[u8] = b"user.s2sfs.policy";
/// Directories whose policy is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1 << 14).unwrap();
/// No directory is deeper; a damaged tree may have loops.
const DEEPEST: usize = 1 << 16;

/// What is known of directories. See the module.
#[derive(Debug)]
pub struct Policies {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Moves when anything is forgotten, so that nobody adds what was looked up before.
    generation: u64,
    /// `None`: that of the mount.
    directories: LruCache<u64, Option<Policy>>,
}

impl Default for Policies {
    fn default() -> Policies {
        Policies {
            known: Mutex::new(Known {
                generation: 0,
                directories: LruCache::new(REMEMBERED),
            }),
        }
    }
}

impl Policies {
    /// Directories have other policies, or lie elsewhere, from now on.
    pub fn forget(&self) {
        let mut known = self.known.lock();
        known.generation += 1;
        known.directories.clear();
    }

    /// A directory is removed, which was empty.
    pub fn forget_one(&self, dir: u64) {
        let mut known = self.known.lock();
        known.generation += 1;
        known.directories.pop(&dir);
    }

    fn generation(&self) -> u64 {
        self.known.lock().generation
    }

    fn get(&self, dir: u64) -> Option<Option<Policy>> {
        self.known.lock().directories.get(&dir).copied()
    }

    fn remember(&self, generation: u64, dirs: &[u64], policy: Option<Policy>) {
        let mut known = self.known.lock();
        if known.generation == generation {
            for dir in dirs {
                known.directories.put(*dir, policy);
            }
        }
    }
}

/// Checks the value of the attribute for an inode of this kind.
pub(super) fn check_value(kind: FileKind, value: &[u8]) -> Result<()> {
    if !matches!(kind, FileKind::Regular | FileKind::Directory) {
        return Err(VolumeError::NotPermitted);
    }
    match Policy::parse(value) {
        Some(_) => Ok(()),
        None => Err(VolumeError::Invalid(
            "policy: it is ratio, balanced, fast or off",
        )),
    }
}

impl Volume {
    /// The policy that a file or directory has itself. A value that a later version may have set counts
    /// as none.
    pub fn own_policy(&self, ino: u64) -> Result<Option<Policy>> {
        let value = self.attribute(ino, POLICY)?;
        Ok(value.and_then(|value| Policy::parse(&value)))
    }

    /// The policy under which data of a file, or of files in a directory, is settled.
    pub fn effective_policy(&self, ino: u64) -> Result<Policy> {
        let attr = self.getattr(ino)?.attr;
        match attr.is_dir() {
            true => Ok(self.policy_of_dir(ino)?.unwrap_or(*self.policy.lock())),
            false => self.policy_of_file(ino, attr.parent),
        }
    }

    pub(super) fn policy_of_file(&self, ino: u64, parent: u64) -> Result<Policy> {
        let policy = match self.own_policy(ino)? {
            Some(own) => Some(own),
            None => self.policy_of_dir(parent)?,
        };
        Ok(policy.unwrap_or(*self.policy.lock()))
    }

    /// What a directory has or inherits; `None` if only the mount has a policy. Takes no lock of an inode:
    /// the place and the policy of a directory are in the store as soon as they change.
    fn policy_of_dir(&self, dir: u64) -> Result<Option<Policy>> {
        let generation = self.policies.generation();
        let (mut at, mut passed) = (dir, Vec::new());
        let policy = loop {
            if let Some(known) = self.policies.get(at) {
                break known;
            }
            passed.push(at);
            if passed.len() > DEEPEST {
                warn!("directory {dir} lies in itself: its policy is that of the mount");
                break None;
            }
            if let Some(own) = self.own_policy(at)? {
                break Some(own);
            }
            at = match self.load_attr(at) {
                _ if at == ROOT => break None,
                Ok(attr) => attr.parent,
                // The file was linked elsewhere before the directory was removed.
                Err(VolumeError::Stale(_)) => break None,
                Err(error) => return Err(error),
            };
        };
        self.policies.remember(generation, &passed, policy);
        Ok(policy)
    }
}
