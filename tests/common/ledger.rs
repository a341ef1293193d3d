//! Writers on a mounted file system that keep a ledger of what was acknowledged, and the judgement of
//! what is there after a crash.
//!
//! Contents are made from seeds, so a ledger is small. Every entry carries two readings of a clock that
//! never goes back: before the first call, and after the call that made it durable returned.
#![allow(dead_code)]

use rustix::fs::FallocateFlags;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Not durable yet, as far as the writer knows.
pub const NEVER: u64 = u64::MAX;
/// Names that one writer uses.
const NAMES: u64 = 14;

/// What a clock shows now.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Debug, Clone, PartialEq)]
enum Source {
    Seed(u64),
    /// Found after a crash, as a mixture of what was allowed.
    Found(Arc<Vec<u8>>),
}

/// The contents of a file: pieces over each other over zeros.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Content {
    len: usize,
    pieces: Vec<(usize, usize, Source)>,
}

/// Words or noise, by the seed.
pub fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    match seed % 3 {
        0 => super::noise(seed, len),
        _ => super::text(seed, len),
    }
}

impl Content {
    fn found(bytes: &[u8]) -> Content {
        let source = Source::Found(Arc::new(bytes.to_vec()));
        Content {
            len: bytes.len(),
            pieces: vec![(0, bytes.len(), source)],
        }
    }

    fn write(&mut self, offset: usize, len: usize, seed: u64) {
        if offset == 0 && len >= self.len {
            self.pieces.clear();
        }
        self.len = self.len.max(offset + len);
        self.pieces.push((offset, len, Source::Seed(seed)));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        for (offset, len, source) in &self.pieces {
            let piece = match source {
                Source::Seed(seed) => bytes_of(*seed, *len),
                Source::Found(found) => found.to_vec(),
            };
            // A truncation may have cut it.
            let end = (offset + len).min(self.len);
            if *offset < end {
                bytes[*offset..end].copy_from_slice(&piece[..end - offset]);
            }
        }
        bytes
    }
}

/// One change of what a path shows.
#[derive(Debug, Clone)]
struct Change {
    begun: u64,
    done: u64,
    after: Option<Content>,
    /// All or nothing: a name, not contents.
    atomic: bool,
}

/// What happened to each path.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    paths: BTreeMap<String, Vec<Change>>,
}

/// When a crash happened, by the clock of the ledger.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    /// What was acknowledged until then must be there.
    pub began: u64,
    /// What began until then may be there.
    pub over: u64,
}

impl Crash {
    /// At one moment.
    pub fn at(cut: u64) -> Crash {
        Crash {
            began: cut,
            over: cut,
        }
    }

    /// At the end of the ledger.
    pub fn now() -> Crash {
        Crash::at(NEVER - 1)
    }
}

/// All files under a directory with their contents.
pub type Files = BTreeMap<String, Vec<u8>>;

impl Ledger {
    fn now(&self, path: &str) -> Option<Content> {
        self.paths.get(path)?.last()?.after.clone()
    }

    fn begin(&mut self, path: &str, clock: &Clock, after: Option<Content>, atomic: bool) {
        let changes = self.paths.entry(path.to_owned()).or_default();
        changes.push(Change {
            begun: clock(),
            done: NEVER,
            after,
            atomic,
        });
    }

    fn finish(&mut self, path: &str, clock: &Clock) {
        let now = clock();
        for change in self.paths.get_mut(path).into_iter().flatten() {
            change.done = change.done.min(now);
        }
    }

    /// Everything acknowledged.
    pub fn changes(&self) -> usize {
        let all = self.paths.values().flatten();
        all.filter(|change| change.done > 0 && change.done != NEVER)
            .count()
    }

    /// Compares what is there after a crash with what must be, which was acknowledged by then, and
    /// with what may be, which was begun by then.
    pub fn judge(&self, found: &Files, crash: Crash) -> Result<(), String> {
        for path in found.keys() {
            if !self.paths.contains_key(path) {
                return Err(format!("{path} was never made"));
            }
        }
        for (path, changes) in &self.paths {
            let found = found.get(path).map(Vec::as_slice);
            judge_path(changes, found, crash).map_err(|why| format!("{path}: {why}"))?;
        }
        Ok(())
    }

    /// Goes on from what a judged crash has left.
    pub fn adopt(&mut self, found: &Files) {
        for (path, changes) in &mut self.paths {
            let bytes = found.get(path);
            let same = |change: &&Change| match (&change.after, bytes) {
                (Some(after), Some(bytes)) => after.bytes() == *bytes,
                (after, bytes) => after.is_none() && bytes.is_none(),
            };
            let after = match changes.iter().rev().find(same) {
                Some(change) => change.after.clone(),
                None => bytes.map(|bytes| Content::found(bytes)),
            };
            *changes = vec![Change {
                begun: 0,
                done: 0,
                after,
                atomic: true,
            }];
        }
        self.paths
            .retain(|_, changes| changes.iter().any(|change| change.after.is_some()));
    }
}

fn judge_path(changes: &[Change], found: Option<&[u8]>, crash: Crash) -> Result<(), String> {
    let durable = changes
        .iter()
        .rposition(|change| change.done <= crash.began);
    let mut before = durable.and_then(|at| changes[at].after.as_ref().map(Content::bytes));
    if found == before.as_deref() {
        return Ok(());
    }
    let acknowledged = before.as_ref().map(Vec::len);
    let mut in_flux = 0;
    for change in &changes[durable.map_or(0, |at| at + 1)..] {
        if change.begun > crash.over {
            break;
        }
        in_flux += 1;
        let after = change.after.as_ref().map(Content::bytes);
        if found == after.as_deref()
            || !change.atomic && is_mixture(found, before.as_deref(), after.as_deref())
        {
            return Ok(());
        }
        before = after;
    }
    let was = changes
        .iter()
        .rposition(|change| change.after.as_ref().map(Content::bytes).as_deref() == found);
    Err(format!(
        "{:?} bytes are there (change {was:?}), {acknowledged:?} were acknowledged (change {durable:?} of {}), {in_flux} in flux after that",
        found.map(<[u8]>::len),
        changes.len(),
    ))
}

/// Each byte is the old one, the new one, or a zero where there was none before.
fn is_mixture(found: Option<&[u8]>, before: Option<&[u8]>, after: Option<&[u8]>) -> bool {
    let (Some(found), Some(after)) = (found, after) else {
        return false;
    };
    let before = before.unwrap_or_default();
    let (short, long) = (before.len().min(after.len()), before.len().max(after.len()));
    (short..=long).contains(&found.len())
        && found.iter().enumerate().all(|(at, byte)| {
            before.get(at) == Some(byte)
                || after.get(at) == Some(byte)
                || *byte == 0 && at >= before.len()
        })
}

/// All files under `root`, through the file system.
pub fn files_below(root: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(root).expect("below the root");
            files.insert(name.display().to_string(), fs::read(&path)?);
        }
    }
    Ok(files)
}

/// What makes a change durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// fsync of the file or directory, fdatasync, or O_SYNC.
    Sync,
    /// The same, or as often only close, which is enough when the program dies but not the system.
    SyncOrClose,
}

/// Changes files in a directory of its own, one change at a time, until something fails.
pub struct Writer {
    root: PathBuf,
    dir: String,
    clock: Clock,
    durability: Durability,
    random: u64,
    longest: usize,
    pub ledger: Ledger,
}

impl Writer {
    pub fn new(root: &Path, dir: &str, clock: Clock, durability: Durability, seed: u64) -> Writer {
        Writer {
            root: root.to_owned(),
            dir: dir.to_owned(),
            clock,
            durability,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            longest: 200_000,
            ledger: Ledger::default(),
        }
    }

    pub fn with_longest(mut self, longest: usize) -> Writer {
        self.longest = longest;
        self
    }

    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn only_closes(&mut self) -> bool {
        self.durability == Durability::SyncOrClose && self.next().is_multiple_of(2)
    }

    /// Changes files until `changes` are made or one fails. Returns the failure.
    pub fn run(&mut self, changes: usize) -> io::Result<()> {
        (0..changes).try_for_each(|_| self.change())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn change(&mut self) -> io::Result<()> {
        let number = self.next() % NAMES;
        let name = format!("{}/d{}/f{number}.txt", self.dir, number % 3);
        let parent = self.path(&name).parent().map(Path::to_owned);
        fs::create_dir_all(parent.unwrap_or_default())?;
        let Some(content) = self.ledger.now(&name) else {
            return match self.existing() {
                Some((other, content)) if self.next().is_multiple_of(3) => {
                    self.copy(&other, &name, content)
                }
                _ => self.create(&name),
            };
        };
        match self.next() % 11 {
            0..3 => self.overwrite(&name, content),
            3 => self.append(&name, content),
            4 => self.truncate(&name, content),
            5..8 => self.replace(&name),
            8 => self.remove(&name),
            9 => self.punch(&name, content),
            _ => self.write_synchronously(&name, content),
        }
    }

    fn length(&mut self) -> usize {
        let longest = match self.next() % 4 {
            0 => self.longest,
            1 => self.longest / 10,
            _ => self.longest / 40,
        };
        1 + self.below(longest)
    }

    /// Makes the file durable in one of the ways there are.
    fn keep(&mut self, name: &str, file: File) -> io::Result<()> {
        match self.only_closes() {
            true => {
                drop(file);
                // Nobody says how the close went, but a daemon that answers now has answered it.
                rustix::fs::statvfs(&self.root)?;
            }
            false if self.next().is_multiple_of(2) => file.sync_all()?,
            false => file.sync_data()?,
        }
        self.ledger.finish(name, &self.clock);
        Ok(())
    }

    fn write_at(&mut self, file: &File, offset: usize, len: usize, seed: u64) -> io::Result<()> {
        let bytes = bytes_of(seed, len);
        let middle = self.below(len);
        file.write_all_at(&bytes[..middle], offset as u64)?;
        file.write_all_at(&bytes[middle..], (offset + middle) as u64)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let (len, seed) = (self.length(), self.next());
        let mut content = Content::default();
        content.write(0, len, seed);
        self.ledger.begin(name, &self.clock, Some(content), false);
        let file = File::create(self.path(name))?;
        self.write_at(&file, 0, len, seed)?;
        self.keep(name, file)
    }

    /// Some file that is there.
    fn existing(&mut self) -> Option<(String, Content)> {
        let at = self.below(self.ledger.paths.len());
        let (path, changes) = self.ledger.paths.iter().nth(at)?;
        Some((path.clone(), changes.last()?.after.clone()?))
    }

    /// By copy_file_range, where the kernel and the file system have it.
    fn copy(&mut self, from: &str, name: &str, content: Content) -> io::Result<()> {
        self.ledger.begin(name, &self.clock, Some(content), false);
        fs::copy(self.path(from), self.path(name))?;
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        self.keep(name, file)
    }

    fn punch(&mut self, name: &str, mut content: Content) -> io::Result<()> {
        let offset = self.below(content.len);
        let len = 1 + self.below(content.len - offset);
        let zeros = Source::Found(Arc::new(vec![0; len]));
        content.pieces.push((offset, len, zeros));
        self.ledger.begin(name, &self.clock, Some(content), false);
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, offset as u64, len as u64)?;
        self.keep(name, file)
    }

    fn overwrite(&mut self, name: &str, mut content: Content) -> io::Result<()> {
        let (offset, seed) = (self.below(content.len), self.next());
        let len = 1 + self.below(content.len - offset);
        content.write(offset, len, seed);
        self.ledger.begin(name, &self.clock, Some(content), false);
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        self.write_at(&file, offset, len, seed)?;
        self.keep(name, file)
    }

    fn append(&mut self, name: &str, mut content: Content) -> io::Result<()> {
        if content.len > 4 * self.longest {
            return self.truncate(name, content);
        }
        let (offset, len, seed) = (content.len, self.length(), self.next());
        content.write(offset, len, seed);
        self.ledger.begin(name, &self.clock, Some(content), false);
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        self.write_at(&file, offset, len, seed)?;
        self.keep(name, file)
    }

    fn truncate(&mut self, name: &str, mut content: Content) -> io::Result<()> {
        // Literally what is left, because a later write may make the file longer again.
        let len = self.below(content.len);
        let bytes = content.bytes();
        content = Content::found(&bytes[..len]);
        if len == 0 {
            return self.remove(name);
        }
        self.ledger.begin(name, &self.clock, Some(content), false);
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        file.set_len(len as u64)?;
        self.keep(name, file)
    }

    fn write_synchronously(&mut self, name: &str, mut content: Content) -> io::Result<()> {
        let (offset, seed) = (self.below(content.len), self.next());
        let len = 1 + self.below((content.len - offset).min(20_000));
        content.write(offset, len, seed);
        self.ledger.begin(name, &self.clock, Some(content), false);
        let flags = match self.next().is_multiple_of(2) {
            true => libc::O_SYNC,
            false => libc::O_DSYNC,
        };
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(self.path(name))?;
        file.write_all_at(&bytes_of(seed, len), offset as u64)?;
        self.ledger.finish(name, &self.clock);
        Ok(())
    }

    /// Writes a new file and renames it over the old one, without an fsync of the file.
    fn replace(&mut self, name: &str) -> io::Result<()> {
        let (len, seed) = (self.length(), self.next());
        let temporary = format!("{}/new-{seed:x}", self.dir);
        let mut content = Content::default();
        content.write(0, len, seed);
        let (clock, after) = (self.clock.clone(), Some(content));
        self.ledger.begin(&temporary, &clock, after.clone(), false);
        let file = File::create(self.path(&temporary))?;
        self.write_at(&file, 0, len, seed)?;
        // The data must get there before the name, closed or not.
        let still_open = Some(file).filter(|_| self.next().is_multiple_of(2));
        self.ledger.begin(name, &clock, after, true);
        self.ledger.begin(&temporary, &clock, None, true);
        fs::rename(self.path(&temporary), self.path(name))?;
        self.keep_names(name)?;
        self.ledger.finish(&temporary, &clock);
        drop(still_open);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.ledger.begin(name, &self.clock, None, true);
        fs::remove_file(self.path(name))?;
        self.keep_names(name)
    }

    fn keep_names(&mut self, name: &str) -> io::Result<()> {
        if !self.only_closes() {
            let path = self.path(name);
            File::open(path.parent().unwrap_or(&self.root))?.sync_all()?;
        }
        self.ledger.finish(name, &self.clock);
        Ok(())
    }
}
