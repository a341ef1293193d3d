//! Sums over files, by type and codec.

use std::collections::BTreeMap;

use crate::control::{FileUsage, ratio};

/// Types beyond so many are counted together, so that a tree of odd names takes no more memory.
const TYPES_MAX: usize = 4096;
/// Stands for files whose names do not end in a type.
pub const NO_TYPE: &str = "(none)";
pub const OTHER_TYPES: &str = "(others)";

/// Sums over some files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub files: u64,
    pub extents: u64,
    /// Decoded bytes in blocks; neither holes nor dirty data.
    pub logical: u64,
    /// The shares of the files in the blocks that hold them.
    pub stored: u64,
    pub staged: u64,
    pub dirty: u64,
}

impl Sums {
    pub fn add(&mut self, other: &Sums) {
        self.files += other.files;
        self.extents += other.extents;
        self.logical += other.logical;
        self.stored += other.stored;
        self.staged += other.staged;
        self.dirty += other.dirty;
    }

    pub fn of(usage: &FileUsage) -> Sums {
        let mut sums = Sums {
            files: 1,
            staged: usage.staged_bytes,
            dirty: usage.dirty_bytes,
            ..Sums::default()
        };
        for codec in usage.codecs.values() {
            sums.extents += codec.extents;
            sums.logical += codec.logical_bytes;
            sums.stored += codec.stored_bytes;
        }
        sums
    }

    pub fn ratio(&self) -> f64 {
        ratio(self.logical, self.stored)
    }
}

/// Sums over everything, and by type and codec.
#[derive(Debug, Default)]
pub struct Counts {
    pub total: Sums,
    pub types: BTreeMap<String, Sums>,
    /// `files` counts those that have data in blocks of the codec.
    pub codecs: BTreeMap<String, Sums>,
}

impl Counts {
    /// Counts a file, and returns its own sums.
    pub fn add(&mut self, extension: &str, usage: &FileUsage) -> Sums {
        let sums = Sums::of(usage);
        self.total.add(&sums);
        let name = match extension {
            "" => NO_TYPE,
            name if self.types.len() < TYPES_MAX || self.types.contains_key(name) => name,
            _ => OTHER_TYPES,
        };
        self.types.entry(name.to_owned()).or_default().add(&sums);
        for (name, codec) in &usage.codecs {
            let one = Sums {
                files: 1,
                extents: codec.extents,
                logical: codec.logical_bytes,
                stored: codec.stored_bytes,
                ..Sums::default()
            };
            self.codecs.entry(name.clone()).or_default().add(&one);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_types_takes_bounded_memory_and_loses_nothing() {
        let mut counts = Counts::default();
        for number in 0..2 * TYPES_MAX {
            counts.add(&format!("t{number}"), &FileUsage::default());
        }
        counts.add("", &FileUsage::default());
        counts.add("t0", &FileUsage::default());
        // those without a type and the others besides
        assert_eq!(counts.types.len(), TYPES_MAX + 2);
        assert_eq!(counts.types["t0"].files, 2);
        let all: u64 = counts.types.values().map(|sums| sums.files).sum();
        assert_eq!((all, counts.total.files), (2 * TYPES_MAX as u64 + 2, all));
    }
}
