//! The trees of files that are measured.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exit::{Context, Failure, Outcome};

/// One regular file of a tree.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative to the tree.
    pub path: PathBuf,
    pub len: u64,
    /// Bytes that the file takes on disk.
    pub allocated: u64,
}

/// All regular files below `dir`, in the order of their names.
pub fn tree(dir: &Path) -> Outcome<Vec<Entry>> {
    let mut entries = Vec::new();
    walk(dir, Path::new(""), &mut entries).context(dir.display())?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn walk(dir: &Path, below: &Path, entries: &mut Vec<Entry>) -> io::Result<()> {
    for item in std::fs::read_dir(dir.join(below))? {
        let item = item?;
        let path = below.join(item.file_name());
        let kind = item.file_type()?;
        if kind.is_dir() {
            walk(dir, &path, entries)?;
        } else if kind.is_file() {
            let meta = item.metadata()?;
            entries.push(Entry {
                path,
                len: meta.len(),
                allocated: meta.blocks() * 512,
            });
        }
    }
    Ok(())
}

/// The class directories of a corpus, or those of the given names.
pub fn classes(corpus: &Path, only: &[String]) -> Outcome<Vec<PathBuf>> {
    let mut classes = Vec::new();
    for item in std::fs::read_dir(corpus).context(corpus.display())? {
        let path = item.context(corpus.display())?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && (only.is_empty() || only.contains(&name)) {
            classes.push(path);
        }
    }
    classes.sort();
    Ok(classes)
}

/// Copies the text of the project's own tree (as git lists it), by kind, into class directories.
pub fn copy_own_text(target: &Path) -> Outcome<()> {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .output()
        .context("git")?;
    if !listed.status.success() {
        return Err(Failure::usage(
            "without --corpus, run this in the project's git tree",
        ));
    }
    for path in String::from_utf8_lossy(&listed.stdout)
        .split('\0')
        .filter(|p| !p.is_empty())
    {
        let Some(class) = own_class(Path::new(path)) else {
            continue;
        };
        let to = target.join(class).join(path);
        let dir = to.parent().unwrap_or(target);
        std::fs::create_dir_all(dir).context(dir.display())?;
        std::fs::copy(path, &to).context(path)?;
    }
    Ok(())
}

fn own_class(path: &Path) -> Option<&'static str> {
    match path.extension()?.to_str()? {
        "rs" | "py" | "sh" => Some("code"),
        "md" | "1" | "8" | "in" | "txt" => Some("docs"),
        "toml" | "lock" | "json" | "service" => Some("data"),
        _ => None,
    }
}

/// Asks the kernel to forget the cached contents of all files below `dir`.
pub fn forget_cached(dir: &Path) -> Outcome<()> {
    let entries = tree(dir)?;
    let mut paths = entries.iter().map(|entry| dir.join(&entry.path));
    paths.try_for_each(|path| forget_file(&path))
}

/// Asks the kernel to forget the cached contents of a file.
pub fn forget_file(path: &Path) -> Outcome<()> {
    let file = File::open(path).context(path.display())?;
    file.sync_all().context(path.display())?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).context(path.display())
}

/// The contents of all files, one behind the other.
pub fn joined(dir: &Path, entries: &[Entry]) -> Outcome<Vec<u8>> {
    let mut all = Vec::new();
    for entry in entries {
        let path = dir.join(&entry.path);
        all.extend(std::fs::read(&path).context(path.display())?);
    }
    Ok(all)
}

/// True if both files have the same bytes.
pub fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (
        BufReader::new(File::open(a)?),
        BufReader::new(File::open(b)?),
    );
    let mut parts = (vec![0; 128 << 10], vec![0; 128 << 10]);
    loop {
        let (from_a, from_b) = (fill(&mut a, &mut parts.0)?, fill(&mut b, &mut parts.1)?);
        if parts.0[..from_a] != parts.1[..from_b] {
            return Ok(false);
        }
        if from_a == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// A small generator of reproducible pseudo-random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(len)
            .collect()
    }
}
