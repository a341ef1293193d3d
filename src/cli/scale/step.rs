//! One phase of one store, in a process of its own: so memory is that of the phase, and a kill is a kill.
//!
//! Times are those of all items of the store: where only some are measured, the time is scaled up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::output;
use crate::cli::suite::speeds::memory_of;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;
use crate::options::Settings;
use crate::volume::{self, Caller, FileKind, ROOT, Volume, VolumeError, WriteMode};

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Small files, a thousand to a directory
    Files,
    /// Entries of one directory
    Directory,
    /// Extents of 4 KiB of one file
    Extents,
    /// Files of 4 MiB with extents of 128 KiB; the size is counted in these
    Bytes,
    /// Small files, through a mount
    Mounted,
}

/// What is done with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// Make it, settle it, and close it
    Fill,
    /// Open and read it, change something, and be killed
    Serve,
    /// Open it after the kill
    Recover,
    /// Check it
    Check,
    /// Remove names
    Unlink,
}

/// Measured values by name. Seconds, or bytes where the name ends so.
pub type Values = BTreeMap<String, f64>;

#[derive(Debug, Args)]
pub struct StepArguments {
    kind: Kind,
    phase: Phase,
    /// Items of the store
    #[arg(long)]
    count: u64,
    #[arg(long)]
    store: PathBuf,
    #[arg(short = 'o')]
    options: Vec<String>,
}

/// Items that are looked at or removed one by one.
const SAMPLE: u64 = 20_000;
const FILES_PER_DIR: u64 = 1000;
const FILE_BYTES: usize = 512;
const ENTRY_BYTES: usize = 64;
/// Bytes of an extent in [`Kind::Extents`].
pub const SMALL_EXTENT: u64 = 4 << 10;
/// Bytes of an extent in [`Kind::Bytes`], which leaves the default.
pub const EXTENT: u64 = 128 << 10;
const EXTENTS_PER_FILE: u64 = 32;

pub fn run(arguments: &StepArguments) -> Outcome<()> {
    let step = Step {
        kind: arguments.kind,
        count: arguments.count.max(1),
        settings: Settings::parse(&arguments.options).map_err(Failure::usage)?,
        store: arguments.store.clone(),
    };
    let mut values = Values::new();
    match arguments.phase {
        Phase::Fill => step.fill(&mut values)?,
        Phase::Serve => step.serve(&mut values)?,
        Phase::Recover => step.recover(&mut values)?,
        Phase::Check => step.check(&mut values)?,
        Phase::Unlink => step.unlink(&mut values)?,
    }
    output::print_json(&values)?;
    if arguments.phase == Phase::Serve {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).context("kill")?;
    }
    Ok(())
}

/// Name and contents of an item of [`Kind::Files`] and [`Kind::Mounted`].
pub fn small_file(number: u64) -> (String, String, Vec<u8>) {
    let (dir, name) = (number / FILES_PER_DIR, number % FILES_PER_DIR);
    let bytes = contents(number, FILE_BYTES);
    (format!("{dir:06}"), format!("{name:03}.txt"), bytes)
}

/// How many directories so many small files have.
pub fn directories(count: u64) -> u64 {
    count.div_ceil(FILES_PER_DIR)
}

/// Numbers of the items that are looked at one by one, evenly spread, and by how much they are fewer than all.
pub fn sample(count: u64) -> (impl Iterator<Item = u64>, f64) {
    let taken = count.min(SAMPLE);
    // wide: counts may be large
    let place = move |at: u64| (u128::from(at) * u128::from(count) / u128::from(taken)) as u64;
    ((0..taken).map(place), count as f64 / taken as f64)
}

/// Text that halves when it is compressed, other for each seed.
fn contents(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 16);
    let mut at = seed << 24;
    while bytes.len() < len {
        bytes.extend_from_slice(format!("{:08x} lorem ", mixed(at) as u32).as_bytes());
        at += 1;
    }
    bytes.truncate(len);
    bytes
}

/// A pseudo-random number (splitmix64).
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Names of a large directory are in another order than they were made in.
fn entry_name(number: u64) -> String {
    format!("{:016x}", mixed(number))
}

fn failed(error: VolumeError) -> Failure {
    Failure::failed(error)
}

fn wrong(place: &str, message: String) -> VolumeError {
    VolumeError::Unreadable {
        place: place.into(),
        message,
    }
}

fn seconds(since: Instant) -> f64 {
    since
        .elapsed()
        .as_secs_f64()
        .max(Duration::from_nanos(1).as_secs_f64())
}

struct Step {
    kind: Kind,
    count: u64,
    settings: Settings,
    store: PathBuf,
}

impl Step {
    fn open(&self) -> Outcome<Arc<Volume>> {
        mount::open_volume(&self.store, &self.settings).map(|opened| opened.volume)
    }

    fn fill(&self, values: &mut Values) -> Outcome<()> {
        let volume = self.open()?;
        let begun = Instant::now();
        self.make(&volume).map_err(failed)?;
        volume.sync_everything().map_err(failed)?;
        values.insert("create".into(), seconds(begun));
        memory(values, "filled", "peak_filling")?;
        let begun = Instant::now();
        volume.settle(&|_, _| ()).map_err(failed)?;
        values.insert("settle".into(), seconds(begun));
        memory(values, "settled", "peak_settling")?;
        let begun = Instant::now();
        volume.shutdown().map_err(failed)?;
        drop(volume);
        values.insert("unmount".into(), seconds(begun));
        let status = mount::unmounted_status(&self.store)?;
        let index = status.index_bytes as f64;
        values.insert("index_bytes".into(), index);
        values.insert("log_bytes".into(), status.log_bytes as f64);
        let metadata = status.stored_bytes.saturating_sub(status.log_bytes) as f64;
        values.insert("snapshot_bytes".into(), metadata - index);
        Ok(())
    }

    fn make(&self, volume: &Volume) -> volume::Result<()> {
        match self.kind {
            Kind::Files | Kind::Mounted => self.make_files(volume),
            Kind::Directory => {
                let dir = volume.mkdir(ROOT, b"dir", 0o755, Caller::default())?.ino;
                (0..self.count).try_for_each(|number| {
                    let bytes = contents(number, ENTRY_BYTES);
                    write_file(volume, dir, &entry_name(number), [bytes])
                })
            }
            Kind::Extents => {
                let extent = |number| contents(number, SMALL_EXTENT as usize);
                write_file(volume, ROOT, "file", (0..self.count).map(extent))
            }
            Kind::Bytes => (0..self.count.div_ceil(EXTENTS_PER_FILE)).try_for_each(|file| {
                let first = file * EXTENTS_PER_FILE;
                let numbers = first..self.count.min(first + EXTENTS_PER_FILE);
                let extent = |number| contents(number, EXTENT as usize);
                write_file(volume, ROOT, &file.to_string(), numbers.map(extent))
            }),
        }
    }

    fn make_files(&self, volume: &Volume) -> volume::Result<()> {
        let mut parent = ROOT;
        for number in 0..self.count {
            let (dir, name, bytes) = small_file(number);
            if number % FILES_PER_DIR == 0 {
                parent = volume
                    .mkdir(ROOT, dir.as_bytes(), 0o755, Caller::default())?
                    .ino;
            }
            write_file(volume, parent, &name, [bytes])?;
        }
        Ok(())
    }

    fn serve(&self, values: &mut Values) -> Outcome<()> {
        let begun = Instant::now();
        let volume = self.open()?;
        values.insert("mount".into(), seconds(begun));
        memory(values, "mounted", "peak_mounting")?;
        self.measure_names(&volume, values).map_err(failed)?;
        let begun = Instant::now();
        let part = self.read(&volume).map_err(failed)?;
        values.insert("read".into(), seconds(begun) * part);
        memory(values, "serving", "peak_serving")?;
        // something to recover
        let made = volume.mkdir(ROOT, b"killed", 0o755, Caller::default());
        made.and_then(|_| volume.sync_everything()).map_err(failed)
    }

    fn measure_names(&self, volume: &Volume, values: &mut Values) -> volume::Result<()> {
        if !matches!(self.kind, Kind::Files | Kind::Directory) {
            return Ok(());
        }
        let (numbers, part) = sample(self.count);
        let begun = Instant::now();
        for number in numbers {
            self.find(volume, number)?;
        }
        values.insert("lookup".into(), seconds(begun) * part);
        let begun = Instant::now();
        let mut found = 0;
        for entry in list(volume, ROOT)? {
            found += list(volume, entry)?.len() as u64;
        }
        if found != self.count {
            return Err(wrong(
                "directories",
                format!("{found} entries of {}", self.count),
            ));
        }
        values.insert("readdir".into(), seconds(begun));
        Ok(())
    }

    /// Directory, name and inode of an item.
    fn find(&self, volume: &Volume, number: u64) -> volume::Result<(u64, String, u64)> {
        let (dir, name) = match self.kind {
            Kind::Directory => ("dir".into(), entry_name(number)),
            _ => {
                let (dir, name, _) = small_file(number);
                (dir, name)
            }
        };
        let parent = volume.lookup(ROOT, dir.as_bytes())?.ino;
        let ino = volume.lookup(parent, name.as_bytes())?.ino;
        Ok((parent, name, ino))
    }

    /// Reads some of the items and compares them; by how much they are fewer than all.
    fn read(&self, volume: &Volume) -> volume::Result<f64> {
        let (numbers, part): (Vec<u64>, f64) = match self.kind {
            // front to back
            Kind::Bytes => ((0..self.count).collect(), 1.0),
            _ => {
                let (numbers, part) = sample(self.count);
                (numbers.collect(), part)
            }
        };
        for number in numbers {
            let (ino, offset, expected) = match self.kind {
                Kind::Files | Kind::Mounted => {
                    let ino = self.find(volume, number)?.2;
                    (ino, 0, small_file(number).2)
                }
                Kind::Directory => {
                    let ino = self.find(volume, number)?.2;
                    (ino, 0, contents(number, ENTRY_BYTES))
                }
                Kind::Extents => {
                    let ino = volume.lookup(ROOT, b"file")?.ino;
                    let expected = contents(number, SMALL_EXTENT as usize);
                    (ino, number * SMALL_EXTENT, expected)
                }
                Kind::Bytes => {
                    let (file, at) = (number / EXTENTS_PER_FILE, number % EXTENTS_PER_FILE);
                    let ino = volume.lookup(ROOT, file.to_string().as_bytes())?.ino;
                    (ino, at * EXTENT, contents(number, EXTENT as usize))
                }
            };
            if volume.read(ino, offset, expected.len())? != expected {
                let what = "other bytes than were written".into();
                return Err(wrong(&format!("item {number}"), what));
            }
        }
        Ok(part)
    }

    fn recover(&self, values: &mut Values) -> Outcome<()> {
        let begun = Instant::now();
        let volume = self.open()?;
        values.insert("recover".into(), seconds(begun));
        memory(values, "recovered", "peak_recovering")?;
        volume.lookup(ROOT, b"killed").map_err(failed)?;
        volume.shutdown().map_err(failed)
    }

    fn check(&self, values: &mut Values) -> Outcome<()> {
        let begun = Instant::now();
        let codecs = Arc::new(mount::codecs_of_store(&self.settings, &self.store)?);
        let store = Arc::new(mount::open_damaged(&self.store)?);
        let report = volume::check(&store, &codecs, self.settings.threads, &|_, _| ());
        let report = report.map_err(failed)?;
        if let Some(damage) = report.damage.first() {
            return Err(Failure::new(Exit::Damaged, &damage.what));
        }
        values.insert("check".into(), seconds(begun));
        memory(values, "checked", "peak_checking")
    }

    fn unlink(&self, values: &mut Values) -> Outcome<()> {
        let volume = self.open()?;
        let begun = Instant::now();
        let part = self.remove(&volume).map_err(failed)?;
        volume.sync_everything().map_err(failed)?;
        values.insert("unlink".into(), seconds(begun) * part);
        volume.shutdown().map_err(failed)
    }

    fn remove(&self, volume: &Volume) -> volume::Result<f64> {
        match self.kind {
            Kind::Extents => volume.unlink(ROOT, b"file").map(|()| 1.0),
            Kind::Bytes => {
                for file in 0..self.count.div_ceil(EXTENTS_PER_FILE) {
                    volume.unlink(ROOT, file.to_string().as_bytes())?;
                }
                Ok(1.0)
            }
            _ => {
                let (numbers, part) = sample(self.count);
                for number in numbers {
                    let (parent, name, _) = self.find(volume, number)?;
                    volume.unlink(parent, name.as_bytes())?;
                }
                Ok(part)
            }
        }
    }
}

/// Makes a file of these pieces.
fn write_file(
    volume: &Volume,
    parent: u64,
    name: &str,
    pieces: impl IntoIterator<Item = Vec<u8>>,
) -> volume::Result<()> {
    let mode = FileKind::Regular.mode_bits() | 0o644;
    let ino = volume
        .create(parent, name.as_bytes(), mode, Caller::default())?
        .ino;
    let mut offset = 0;
    for piece in pieces {
        volume.write(ino, offset, &piece, WriteMode::default())?;
        offset += piece.len() as u64;
    }
    // as closing it does
    volume.flush(ino)?;
    volume.release(ino);
    Ok(())
}

/// The inodes in a directory, read as the kernel does; none if it is none.
fn list(volume: &Volume, dir: u64) -> volume::Result<Vec<u64>> {
    let mut stream = match volume.open_dir(dir) {
        Err(VolumeError::NotDirectory) => return Ok(Vec::new()),
        stream => stream?,
    };
    let mut inodes = Vec::new();
    while let Some(entry) = stream.entry(volume, inodes.len() + 2)? {
        inodes.push(entry.ino);
    }
    Ok(inodes)
}

/// Notes what this process has in memory, and the most it has had.
fn memory(values: &mut Values, now: &str, peak: &str) -> Outcome<()> {
    let used = memory_of(std::process::id())?;
    values.insert(format!("{now}_rss_bytes"), used.now as f64);
    values.insert(format!("{peak}_rss_bytes"), used.peak as f64);
    Ok(())
}
