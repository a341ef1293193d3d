//! What a copy has done.

use serde::Serialize;

/// Failures that are listed; more are only counted.
const LISTED: usize = 10_000;

/// Something that was not copied, or not with all its attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Under the root of what was copied; bytes that are no text are shown as replacement characters.
    pub path: String,
    pub why: String,
}

/// Counts of a copy. Field names are used by scripts: add, never rename.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Regular files that were written.
    pub files: u64,
    /// Regular files that were there already, with the same contents.
    pub unchanged: u64,
    /// Directories, new or not.
    pub directories: u64,
    pub symlinks: u64,
    /// Fifos, sockets and devices.
    pub special: u64,
    /// Further names of files with several.
    pub hard_links: u64,
    /// Names that a pattern left out, and mount points that were not entered.
    pub excluded: u64,
    /// Bytes of data that were written, holes not counted.
    pub bytes: u64,
    /// Files that were read back and compared.
    pub verified: u64,
    pub failures: u64,
    /// The first failures.
    pub failed: Vec<Failed>,
}

impl Report {
    /// Notes a failure.
    pub fn fail(&mut self, path: &[u8], why: impl ToString) {
        self.failures += 1;
        if self.failed.len() < LISTED {
            let path = match path {
                b"" => ".".into(),
                path => String::from_utf8_lossy(path).into_owned(),
            };
            self.failed.push(Failed {
                path,
                why: why.to_string(),
            });
        }
    }
}
