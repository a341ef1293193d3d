//! How fast the files of a mounted file system are read, looked up and changed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use super::files::{Entry, Random};
use super::mounted::timed;
use crate::cli::output::percentile;
use crate::exit::{Context, Exit, Failure, Outcome};

/// Size of a random read.
const READ_LEN: u64 = 4096;
/// Bytes that are asked for at a time when files are read as a whole.
const BUFFER: usize = 128 << 10;
/// Rounds of reading what is cached, of which the best counts.
const HOT_ROUNDS: usize = 5;
/// Files that are made, renamed and removed.
const CHANGED_FILES: usize = 500;

/// A mounted file system with the files of a class.
pub trait Mounted {
    /// The directory of these files.
    fn root(&self) -> PathBuf;

    /// Mounts it anew, with nothing of it cached.
    ///
    /// # Errors
    /// If that fails.
    fn restart_cold(&mut self) -> Outcome<()>;

    /// The process that serves it, if it is not the kernel.
    ///
    /// # Errors
    /// If it cannot be found out.
    fn daemon(&self) -> Outcome<Option<u32>>;

    fn is_writable(&self) -> bool;
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Speeds {
    /// All files one after the other.
    pub cold_read_mb_per_second: f64,
    /// CPU time of reader and daemon for that.
    pub cpu_ms_per_mb: f64,
    /// The same again, from the page cache.
    pub hot_read_mb_per_second: f64,
    pub random_read_ms_median: f64,
    pub random_read_ms_p99: f64,
    pub random_reads: usize,
    /// The first `lstat` of a file.
    pub look_up_us: f64,
    /// Making, renaming or removing an empty file, in the mean.
    pub change_us: Option<f64>,
    pub daemon_peak_rss_bytes: Option<u64>,
}

/// Measures all there is; files are compared with those of `original`.
///
/// # Errors
/// If a file differs or cannot be read, or mounting anew fails.
pub fn measure(
    mounted: &mut dyn Mounted,
    original: &Path,
    entries: &[Entry],
    reads: usize,
) -> Outcome<Speeds> {
    let bytes: u64 = entries.iter().map(|entry| entry.len).sum();
    let megabytes = bytes as f64 / 1e6;
    let expected = digests(original, entries)?;
    mounted.restart_cold()?;
    let root = mounted.root();
    let daemon = mounted.daemon()?;
    let before = cpu_time(daemon)?;
    let (found, cold) = timed(|| digests(&root, entries))?;
    let cpu = cpu_time(daemon)?.saturating_sub(before);
    for ((entry, found), expected) in entries.iter().zip(found).zip(expected) {
        if found != expected {
            let path = root.join(&entry.path);
            let what = format!("{} differs from its original", path.display());
            return Err(Failure::new(Exit::Damaged, what));
        }
    }
    let mut hot = Duration::MAX;
    for _ in 0..HOT_ROUNDS {
        hot = hot.min(timed(|| digests(&root, entries))?.1);
    }
    let daemon_peak_rss_bytes = daemon.map(peak_rss).transpose()?;
    mounted.restart_cold()?;
    let look_ups = timed(|| look_up_all(&root, entries))?.1;
    let change_us = match mounted.is_writable() {
        true => Some(change(&root)?),
        false => None,
    };
    let random = random_reads(mounted, entries, reads)?;
    let per_second = |time: Duration| megabytes / time.as_secs_f64().max(1e-9);
    Ok(Speeds {
        cold_read_mb_per_second: per_second(cold),
        cpu_ms_per_mb: cpu.as_secs_f64() * 1e3 / megabytes.max(1e-9),
        hot_read_mb_per_second: per_second(hot),
        random_read_ms_median: percentile(&random, 50),
        random_read_ms_p99: percentile(&random, 99),
        random_reads: random.len(),
        look_up_us: look_ups.as_secs_f64() * 1e6 / entries.len().max(1) as f64,
        change_us,
        daemon_peak_rss_bytes,
    })
}

/// Reads all files; a digest of each.
fn digests(root: &Path, entries: &[Entry]) -> Outcome<Vec<u128>> {
    let mut buffer = vec![0; BUFFER];
    let digest = |entry: &Entry| {
        let path = root.join(&entry.path);
        let mut file = File::open(&path).context(path.display())?;
        let mut hash = Xxh3::new();
        loop {
            match file.read(&mut buffer).context(path.display())? {
                0 => return Ok(hash.digest128()),
                count => hash.update(&buffer[..count]),
            }
        }
    };
    entries.iter().map(digest).collect()
}

fn look_up_all(root: &Path, entries: &[Entry]) -> Outcome<()> {
    entries.iter().try_for_each(|entry| {
        let path = root.join(&entry.path);
        path.symlink_metadata().context(path.display()).map(drop)
    })
}

/// Microseconds that making, renaming or removing an empty file takes.
fn change(root: &Path) -> Outcome<f64> {
    let dir = root.join("s2sfs-bench-changes");
    std::fs::create_dir(&dir).context(dir.display())?;
    let name = |what: &str, number: usize| dir.join(format!("{what}-{number}"));
    let work = || -> std::io::Result<()> {
        for number in 0..CHANGED_FILES {
            File::create(name("new", number))?;
        }
        for number in 0..CHANGED_FILES {
            std::fs::rename(name("new", number), name("old", number))?;
        }
        (0..CHANGED_FILES).try_for_each(|number| std::fs::remove_file(name("old", number)))
    };
    let ((), time) = timed(|| work().context(dir.display()))?;
    std::fs::remove_dir(&dir).context(dir.display())?;
    Ok(time.as_secs_f64() * 1e6 / (3 * CHANGED_FILES) as f64)
}

/// Times of 4 KiB reads at random places, in milliseconds, sorted. Each is the first read of a file system that was
/// mounted anew and of which nothing is cached, so anchors are cold too.
///
/// # Errors
/// If mounting anew or reading fails.
pub fn random_reads(
    mounted: &mut dyn Mounted,
    entries: &[Entry],
    count: usize,
) -> Outcome<Vec<f64>> {
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
        mounted.restart_cold()?;
        let path = mounted.root().join(&entry.path);
        let offset = place.min(entry.len - READ_LEN) / READ_LEN * READ_LEN;
        times.push(timed_read(&path, offset)?);
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

/// CPU time of this process and of a daemon, as the scheduler counts it.
fn cpu_time(daemon: Option<u32>) -> Outcome<Duration> {
    let daemon = daemon.map(|pid| pid.to_string());
    let mut sum = 0;
    for process in std::iter::once("self".to_owned()).chain(daemon) {
        let tasks = PathBuf::from(format!("/proc/{process}/task"));
        for task in std::fs::read_dir(&tasks).context(tasks.display())? {
            let path = task.context(tasks.display())?.path().join("schedstat");
            // a thread may have ended meanwhile
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let first = text.split_whitespace().next().unwrap_or("0");
            sum += first.parse::<u64>().context(path.display())?;
        }
    }
    Ok(Duration::from_nanos(sum))
}

/// Most memory that a process has had, as the kernel counts it.
///
/// # Errors
/// If there is no such process.
pub fn peak_rss(pid: u32) -> Outcome<u64> {
    memory_of(pid).map(|memory| memory.peak)
}

/// Resident memory of a process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub now: u64,
    /// The most it has had.
    pub peak: u64,
}

/// What memory a process has, as the kernel counts it.
///
/// # Errors
/// If there is no such process.
pub fn memory_of(pid: u32) -> Outcome<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context("/proc")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| {
            let number = line.trim().trim_end_matches("kB").trim();
            number.parse::<u64>().ok()
        });
        kib.map(|kib| kib << 10)
            .ok_or_else(|| Failure::failed(format!("/proc shows no {name}")))
    };
    Ok(Memory {
        now: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::suite::files;

    /// A directory that is no mount at all.
    struct Plain(PathBuf, usize);

    impl Mounted for Plain {
        fn root(&self) -> PathBuf {
            self.0.clone()
        }

        fn restart_cold(&mut self) -> Outcome<()> {
            self.1 += 1;
            Ok(())
        }

        fn daemon(&self) -> Outcome<Option<u32>> {
            Ok(Some(std::process::id()))
        }

        fn is_writable(&self) -> bool {
            true
        }
    }

    #[test]
    fn everything_is_measured_and_a_file_that_differs_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (original, copy) = (dir.path().join("a"), dir.path().join("b"));
        for side in [&original, &copy] {
            std::fs::create_dir(side).unwrap();
            std::fs::write(side.join("large"), vec![7; 300_000]).unwrap();
            std::fs::write(side.join("small"), b"x").unwrap();
        }
        let entries = files::tree(&original).unwrap();
        let mut plain = Plain(copy.clone(), 0);
        let speeds = measure(&mut plain, &original, &entries, 3).unwrap();
        assert_eq!((speeds.random_reads, plain.1), (3, 5));
        assert!(speeds.cold_read_mb_per_second > 0.0 && speeds.hot_read_mb_per_second > 0.0);
        assert!(speeds.change_us.unwrap() > 0.0 && speeds.daemon_peak_rss_bytes.unwrap() > 0);
        assert_eq!(files::tree(&copy).unwrap().len(), 2, "changes were undone");
        std::fs::write(copy.join("large"), vec![8; 300_000]).unwrap();
        let error = measure(&mut plain, &original, &entries, 0).unwrap_err();
        assert!(format!("{error:?}").contains("large"), "{error:?}");
    }
}
