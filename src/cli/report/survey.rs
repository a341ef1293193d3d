//! Sums over the files of a store, by type, codec, age and size.

use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::output::Patience;
use crate::cli::sums::{Counts, Sums};
use crate::cli::walk::{self, Item, Visitor};
use crate::control::FileUsage;
use crate::volume::{SurveyedFile, printable};

const DAY: i64 = 86_400;
/// Files younger than so many seconds, and what they are called.
const AGES: [(i64, &str); 6] = [
    (DAY, "a day"),
    (7 * DAY, "a week"),
    (30 * DAY, "a month"),
    (182 * DAY, "half a year"),
    (365 * DAY, "a year"),
    (i64::MAX, "more"),
];
/// Files shorter than so many bytes, and what they are called.
const SIZES: [(u64, &str); 8] = [
    (1, "empty"),
    (1 << 10, "1 KiB"),
    (4 << 10, "4 KiB"),
    (16 << 10, "16 KiB"),
    (128 << 10, "128 KiB"),
    (1 << 20, "1 MiB"),
    (16 << 20, "16 MiB"),
    (u64::MAX, "more"),
];

/// What a store holds.
pub struct Survey {
    pub counts: Counts,
    ages: [Sums; AGES.len()],
    sizes: [Sums; SIZES.len()],
    /// Files and directories that could not be read.
    pub failures: u64,
    now: i64,
    patience: Patience,
}

impl Survey {
    pub fn new(patience: Patience) -> Survey {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Survey {
            counts: Counts::default(),
            ages: Default::default(),
            sizes: Default::default(),
            failures: 0,
            now: now.map_or(0, |now| now.as_secs() as i64),
            patience,
        }
    }

    /// When the survey was made, in seconds since 1970.
    pub fn time(&self) -> u64 {
        self.now.max(0) as u64
    }

    pub fn finish(&self) {
        self.patience.finish();
    }

    pub fn add_surveyed(&mut self, file: &SurveyedFile) {
        let extension = walk::extension(Path::new(OsStr::from_bytes(&file.name)));
        self.add(&extension, file.size, file.modified, &file.usage);
    }

    fn add(&mut self, extension: &str, size: u64, modified: i64, usage: &FileUsage) {
        let sums = self.counts.add(extension, usage);
        let age = self.now.saturating_sub(modified);
        let place = AGES.iter().position(|(limit, _)| age < *limit);
        self.ages[place.unwrap_or(AGES.len() - 1)].add(&sums);
        let place = SIZES.iter().position(|(limit, _)| size < *limit);
        self.sizes[place.unwrap_or(SIZES.len() - 1)].add(&sums);
        self.patience.set(self.counts.total.files);
    }

    /// Sums by age, youngest first.
    pub fn by_age(&self) -> Vec<(String, Sums)> {
        named(AGES.map(|(_, name)| name), &self.ages)
    }

    /// Sums by size, smallest first.
    pub fn by_size(&self) -> Vec<(String, Sums)> {
        named(SIZES.map(|(_, name)| name), &self.sizes)
    }
}

fn named<const N: usize>(names: [&str; N], sums: &[Sums; N]) -> Vec<(String, Sums)> {
    let rows = names.into_iter().zip(sums);
    rows.map(|(name, sums)| (name.to_owned(), *sums)).collect()
}

impl Visitor for Survey {
    fn directory(&mut self, _path: &Path, _depth: usize, _parent: Option<usize>) -> usize {
        0
    }

    fn file(&mut self, item: &Item, usage: &FileUsage) {
        self.add(&item.extension, item.size, item.modified, usage);
    }

    fn failed(&mut self, path: &Path, error: &dyn Display) {
        self.failures += 1;
        let path = printable(&path.display().to_string());
        self.patience.say(&format!("s2sfs: {path}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_by_age_and_size() {
        let mut survey = Survey::new(Patience::counting("files"));
        let now = survey.now;
        for (size, age) in [
            (0, -5),
            (1, 0),
            (1023, 2 * DAY),
            (1024, 400 * DAY),
            (u64::MAX, i64::MAX),
        ] {
            let modified = now.saturating_sub(age);
            survey.add("txt", size, modified, &FileUsage::default());
        }
        let files =
            |rows: Vec<(String, Sums)>| rows.iter().map(|(_, s)| s.files).collect::<Vec<_>>();
        assert_eq!(files(survey.by_age()), [2, 1, 0, 0, 0, 2]);
        assert_eq!(files(survey.by_size()), [1, 2, 1, 0, 0, 0, 0, 1]);
    }
}
