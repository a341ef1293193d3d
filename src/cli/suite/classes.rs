//! One class of files in a store of its own: size against squashfs, and the speeds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::compare;
use super::files::{self, Entry};
use super::mounted::{Bed, Bench};
use super::speeds::{self, Mounted, Speeds};
use crate::control::ratio;
use crate::exit::{Context, Exit, Failure, Outcome};

#[derive(Debug, Serialize)]
pub struct ClassResult {
    pub class: String,
    pub files: usize,
    pub raw_bytes: u64,
    pub squashfs_bytes: u64,
    /// After a clean unmount: everything in the store but models, as allocated on disk.
    pub stored_bytes: u64,
    pub log_bytes: u64,
    pub index_bytes: u64,
    /// stored_bytes / squashfs_bytes.
    pub of_squashfs: f64,
    pub ratio: f64,
    pub squashfs_ratio: f64,
    /// Share of the bytes that the model codes.
    pub model_share: f64,
    pub copy_in_mb_per_second: f64,
    pub settle_kb_per_second: f64,
    pub speeds: Speeds,
    pub peak_rss_bytes: u64,
}

/// The mount of a class while it is read.
struct Own<'a> {
    bed: &'a Bed,
    class: &'a str,
}

impl Mounted for Own<'_> {
    fn root(&self) -> PathBuf {
        self.bed.mountpoint.join(self.class)
    }

    fn restart_cold(&mut self) -> Outcome<()> {
        self.bed.restart_cold()
    }

    fn daemon(&self) -> Outcome<Option<u32>> {
        self.bed.daemon().map(Some)
    }

    fn is_writable(&self) -> bool {
        true
    }
}

pub fn measure(
    bench: &Bench,
    class: &Path,
    entries: &[Entry],
    reads: usize,
) -> Outcome<ClassResult> {
    let name = class
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    eprintln!("class {name}");
    let raw_bytes: u64 = entries.iter().map(|entry| entry.len).sum();
    let squashfs_bytes = compare::squashfs(class, &bench.work)?;

    let bed = bench.fresh(&name)?;
    let copy_time = bed.copy_in(class)?;
    let settle_time = bed.settle()?;
    let settled = bed.status()?;
    let rss_writing = bed.peak_rss()?;
    bed.umount()?;
    let stored = bed.store_status()?;

    bed.mount()?;
    let mut own = Own {
        bed: &bed,
        class: &name,
    };
    let speeds = speeds::measure(&mut own, class, entries, reads)?;
    bed.umount()?;

    let model = settled
        .codecs
        .get("model")
        .map_or(0, |usage| usage.logical_bytes);
    Ok(ClassResult {
        class: name,
        files: entries.len(),
        raw_bytes,
        squashfs_bytes,
        stored_bytes: stored.stored_bytes,
        log_bytes: stored.log_bytes,
        index_bytes: stored.index_bytes,
        of_squashfs: ratio(stored.stored_bytes, squashfs_bytes),
        ratio: ratio(raw_bytes, stored.stored_bytes),
        squashfs_ratio: ratio(raw_bytes, squashfs_bytes),
        model_share: ratio(model, raw_bytes),
        copy_in_mb_per_second: rate(raw_bytes, copy_time) / 1e6,
        settle_kb_per_second: rate(raw_bytes, settle_time) / 1e3,
        peak_rss_bytes: rss_writing.max(speeds.daemon_peak_rss_bytes.unwrap_or(0)),
        speeds,
    })
}

/// Bytes per second.
pub fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64().max(1e-9)
}

/// Reads all files one after the other and compares them with their originals.
pub fn read_and_compare(copy: &Path, original: &Path, entries: &[Entry]) -> Outcome<()> {
    for entry in entries {
        let (copy, original) = (copy.join(&entry.path), original.join(&entry.path));
        if !files::same(&copy, &original).context(copy.display())? {
            return Err(Failure::new(
                Exit::Damaged,
                format!("{} differs from {}", copy.display(), original.display()),
            ));
        }
    }
    Ok(())
}

/// Status of a store that has been unmounted, after copying `tree` into it and settling.
pub fn settled_store(
    bench: &Bench,
    name: &str,
    tree: &Path,
) -> Outcome<(Bed, crate::control::Status)> {
    let bed = bench.fresh(name)?;
    bed.copy_in(tree)?;
    bed.settle()?;
    bed.umount()?;
    let status = bed.store_status()?;
    Ok((bed, status))
}
