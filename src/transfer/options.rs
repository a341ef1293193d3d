//! How a tree is to be copied.

use super::Pattern;
use super::tree::Meta;

/// How much of what was written is read back and compared with what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Every file
    #[default]
    Full,
    /// One file out of 16
    Sample,
    /// No file; files that are there already are believed to be the same if size and time are
    Off,
}

/// How a tree is copied.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    pub threads: usize,
    pub verify: Verify,
    pub exclude: Vec<Pattern>,
    /// Directories of other file systems are made, but not entered.
    pub one_file_system: bool,
    /// Owners, devices and the attributes of root are kept. Without it, what is copied belongs to `owner`.
    pub as_root: bool,
    pub owner: (u32, u32),
}

impl CopyOptions {
    pub(super) fn leaves_out(&self, path: &[u8], meta: &Meta) -> bool {
        self.exclude
            .iter()
            .any(|pattern| pattern.matches(path, meta.is_dir()))
    }

    pub(super) fn enters(&self, meta: &Meta, device: u64) -> bool {
        !self.one_file_system || meta.id.0 == device
    }

    /// What the copy of something is to have. Setuid and setgid go with the owner that they were given for.
    pub(super) fn wanted(&self, original: &Meta) -> Meta {
        let mut wanted = original.clone();
        if !self.as_root {
            (wanted.uid, wanted.gid) = self.owner;
            if wanted.uid != original.uid {
                wanted.perm &= !libc::S_ISUID;
            }
            if wanted.gid != original.gid {
                wanted.perm &= !libc::S_ISGID;
            }
        }
        wanted
    }
}
