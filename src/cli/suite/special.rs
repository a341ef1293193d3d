//! Copying in at length, ten thousand tiny files, and data that cannot be compressed.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::classes::{rate, read_and_compare, settled_store};
use super::compare;
use super::files::{self, Random};
use super::mounted::{Bench, timed};
use crate::control::ratio;
use crate::exit::{Context, Failure, Outcome};

/// Data of the copy-in measurement.
const COPY_IN_BYTES: u64 = 256 << 20;
const SMALL_FILES: usize = 10_000;
const SMALL_FILE_LEN: usize = 500;
const RANDOM_BYTES: usize = 32 << 20;

#[derive(Debug, Serialize)]
pub struct CopyIn {
    pub bytes: u64,
    pub mb_per_second: f64,
    /// The same with `sync` of the mount counted.
    pub mb_per_second_with_sync: f64,
}

/// Copies a quarter of a gigabyte of the corpus into a store with default options.
pub fn copy_in(bench: &Bench, corpus: &Path) -> Outcome<CopyIn> {
    eprintln!("copying in");
    let source = bench.work.join("copy-in");
    let mut bytes = 0;
    let entries = files::tree(corpus)?;
    let mut round = 0;
    while bytes < COPY_IN_BYTES {
        for entry in entries.iter().filter(|entry| entry.len > 0) {
            let to = source.join(round.to_string()).join(&entry.path);
            let dir = to.parent().unwrap_or(&source);
            std::fs::create_dir_all(dir).context(dir.display())?;
            bytes += std::fs::copy(corpus.join(&entry.path), &to).context(to.display())?;
            if bytes >= COPY_IN_BYTES {
                break;
            }
        }
        round += 1;
        if bytes == 0 {
            return Err(Failure::usage(format!("{} has no data", corpus.display())));
        }
    }
    let bed = bench.fresh("copy-in")?;
    let copy_time = bed.copy_in(&source)?;
    let mountpoint = std::fs::File::open(&bed.mountpoint).context(bed.mountpoint.display())?;
    let ((), sync_time) = timed(|| rustix::fs::syncfs(&mountpoint).context("sync"))?;
    drop(mountpoint);
    std::fs::remove_dir_all(&source).context(source.display())?;
    Ok(CopyIn {
        bytes,
        mb_per_second: rate(bytes, copy_time) / 1e6,
        mb_per_second_with_sync: rate(bytes, copy_time + sync_time) / 1e6,
    })
}

#[derive(Debug, Serialize)]
pub struct SmallFiles {
    pub files: usize,
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    pub log_bytes: u64,
    pub index_bytes: u64,
    /// What the same files take where the benchmark keeps its work, usually ext4.
    pub ordinary_bytes: u64,
    pub of_raw: f64,
}

/// Files of 500 bytes of the corpus' text, 100 to a directory.
pub fn small_files(bench: &Bench, corpus: &Path) -> Outcome<SmallFiles> {
    eprintln!("small files");
    let source = bench.work.join("small");
    write_small_files(&source, &text_of(corpus)?)?;
    let (bed, status) = settled_store(bench, "small-files", &source)?;
    bed.mount()?;
    let entries = files::tree(&source)?;
    read_and_compare(&bed.mountpoint.join("small"), &source, &entries)?;
    let result = SmallFiles {
        files: entries.len(),
        raw_bytes: entries.iter().map(|entry| entry.len).sum(),
        stored_bytes: status.stored_bytes,
        log_bytes: status.log_bytes,
        index_bytes: status.index_bytes,
        ordinary_bytes: compare::allocated(&source)?,
        of_raw: ratio(status.stored_bytes, (SMALL_FILES * SMALL_FILE_LEN) as u64),
    };
    std::fs::remove_dir_all(&source).context(source.display())?;
    Ok(result)
}

/// Enough text for the small files: prose if the corpus has it, then whatever there is.
fn text_of(corpus: &Path) -> Outcome<Vec<u8>> {
    let mut entries = files::tree(corpus)?;
    entries.retain(|entry| entry.len >= SMALL_FILE_LEN as u64);
    entries.sort_by_key(|entry| !entry.path.starts_with("prose"));
    let mut text = Vec::new();
    while text.len() < SMALL_FILES * SMALL_FILE_LEN {
        let before = text.len();
        for entry in &entries {
            let bytes = std::fs::read(corpus.join(&entry.path)).context(entry.path.display())?;
            if std::str::from_utf8(&bytes).is_ok() {
                text.extend_from_slice(&bytes);
            }
            if text.len() >= SMALL_FILES * SMALL_FILE_LEN {
                break;
            }
        }
        if text.len() == before {
            return Err(Failure::usage(format!("{} has no text", corpus.display())));
        }
    }
    Ok(text)
}

fn write_small_files(target: &Path, text: &[u8]) -> Outcome<()> {
    for (number, piece) in text
        .chunks_exact(SMALL_FILE_LEN)
        .take(SMALL_FILES)
        .enumerate()
    {
        let dir = target.join(format!("{:03}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir_all(&dir).context(dir.display())?;
        }
        std::fs::write(dir.join(format!("{:02}.txt", number % 100)), piece)
            .context(dir.display())?;
    }
    Ok(())
}

#[derive(Debug, Serialize)]
pub struct Expansion {
    pub random_raw_bytes: u64,
    pub random_stored_bytes: u64,
    /// Growth in percent; negative if the store is smaller.
    pub random_percent: f64,
    pub compressed_raw_bytes: u64,
    pub compressed_stored_bytes: u64,
    pub compressed_percent: f64,
}

/// Random bytes, and a zstd stream of the corpus.
pub fn expansion(bench: &Bench, corpus: &Path) -> Outcome<Expansion> {
    eprintln!("data that cannot be compressed");
    let random = bench.work.join("random");
    write_one(&random, "random.bin", &Random::new(1).bytes(RANDOM_BYTES))?;
    let (random_raw_bytes, random_stored_bytes) = store_size(bench, "random", &random)?;
    let compressed = bench.work.join("compressed");
    let all = files::joined(corpus, &files::tree(corpus)?)?;
    let stream = zstd::bulk::compress(&all, 3).context("zstd")?;
    write_one(&compressed, "corpus.zst", &stream)?;
    let (compressed_raw_bytes, compressed_stored_bytes) =
        store_size(bench, "compressed", &compressed)?;
    Ok(Expansion {
        random_raw_bytes,
        random_stored_bytes,
        random_percent: growth(random_raw_bytes, random_stored_bytes),
        compressed_raw_bytes,
        compressed_stored_bytes,
        compressed_percent: growth(compressed_raw_bytes, compressed_stored_bytes),
    })
}

fn write_one(dir: &PathBuf, name: &str, bytes: &[u8]) -> Outcome<()> {
    std::fs::create_dir_all(dir).context(dir.display())?;
    std::fs::write(dir.join(name), bytes).context(dir.display())
}

/// Raw and stored bytes of a tree that is deleted afterwards.
fn store_size(bench: &Bench, name: &str, tree: &Path) -> Outcome<(u64, u64)> {
    let (_bed, status) = settled_store(bench, name, tree)?;
    let raw = files::tree(tree)?.iter().map(|entry| entry.len).sum();
    std::fs::remove_dir_all(tree).context(tree.display())?;
    Ok((raw, status.stored_bytes))
}

fn growth(raw: u64, stored: u64) -> f64 {
    (ratio(stored, raw) - 1.0) * 100.0
}
