//! One class of files in a store of its own: size against squashfs, and the speeds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::compare;
use super::files::{self, Entry, Random};
use super::mounted::{Bed, Bench, timed};
use crate::control::ratio;
use crate::exit::{Context, Exit, Failure, Outcome};

/// Size of a random read.
const READ_LEN: u64 = 4096;

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
    pub cold_read_kb_per_second: f64,
    pub random_read_ms_median: f64,
    pub random_read_ms_p99: f64,
    pub random_reads: usize,
    pub peak_rss_bytes: u64,
}

pub fn measure(bench: &Bench, class: &Path, reads: usize) -> Outcome<ClassResult> {
    let name = class
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    eprintln!("class {name}");
    let entries = files::tree(class)?;
    let raw_bytes: u64 = entries.iter().map(|entry| entry.len).sum();
    let squashfs_bytes = compare::squashfs(class, &bench.work)?;

    let bed = bench.fresh(&name)?;
    let copy_time = bed.copy_in(class)?;
    let settle_time = bed.settle()?;
    let settled = bed.status()?;
    let rss_writing = bed.peak_rss()?;
    bed.umount()?;
    let stored = bed.store_status()?;

    files::forget_cached(&bed.store)?;
    bed.mount()?;
    let ((), read_time) = timed(|| read_and_compare(&bed.mountpoint.join(&name), class, &entries))?;
    let rss_reading = bed.peak_rss()?;
    let latencies = random_reads(&bed, &name, &entries, reads)?;
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
        cold_read_kb_per_second: rate(raw_bytes, read_time) / 1e3,
        random_read_ms_median: percentile(&latencies, 50),
        random_read_ms_p99: percentile(&latencies, 99),
        random_reads: latencies.len(),
        peak_rss_bytes: rss_writing.max(rss_reading),
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

/// Times of 4 KiB reads at random places, in milliseconds, sorted. Each is the first read of a new
/// daemon whose store is in no cache, so anchors are cold too.
fn random_reads(bed: &Bed, class: &str, entries: &[Entry], count: usize) -> Outcome<Vec<f64>> {
    let large: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.len >= READ_LEN)
        .collect();
    let total: u64 = large.iter().map(|entry| entry.len).sum();
    let mut random = Random::new(0x5253_4653);
    let mut times = Vec::new();
    for _ in 0..if total == 0 { 0 } else { count } {
        let mut place = random.below(total);
        let Some(entry) = large.iter().find(|entry| {
            let here = place < entry.len;
            place -= if here { 0 } else { entry.len };
            here
        }) else {
            continue;
        };
        bed.restart_cold()?;
        let path = bed.mountpoint.join(class).join(&entry.path);
        times.push(timed_read(
            &path,
            place.min(entry.len - READ_LEN) / READ_LEN * READ_LEN,
        )?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn timed_read(path: &Path, offset: u64) -> Outcome<f64> {
    let file = File::open(path).context(path.display())?;
    let mut buffer = [0; READ_LEN as usize];
    let start = Instant::now();
    file.read_exact_at(&mut buffer, offset)
        .context(path.display())?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The nearest-rank percentile of sorted values; 0 without values.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
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

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 50.0);
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&values[..1], 99), 1.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }
}
