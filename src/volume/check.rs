//! Verifies a whole volume: that names, inodes, extents and blocks agree, and that every block decodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::Serialize;

use super::attr::{Attr, FileKind};
use super::namespace::Dirent;
use super::status::for_each;
use super::{ROOT, Result, keys};
use crate::cache::Cache;
use crate::codec::Codecs;
use crate::store::{self, BlockId, BlockInfo, ExtentRef, Pair, Store};

/// Memory for decoded anchors and their states.
const CACHE_BYTES: u64 = 64 << 20;
/// Keys that one scan reads.
const PAGE: usize = 1024;

/// What a check has seen, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    pub files: u64,
    pub directories: u64,
    pub extents: u64,
    /// Records of the log.
    pub records: u64,
    pub blocks: u64,
    /// Decoded bytes of all blocks.
    pub decoded_bytes: u64,
    pub damage: Vec<Damage>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub what: String,
    /// Paths of the files whose contents are hit.
    pub files: Vec<String>,
}

/// Checks everything above the records of the log. `progress` gets (done, total) decoded bytes.
/// Damage is reported; an error means that the check itself could not go on.
pub fn check(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<CheckReport> {
    let mut checker = Checker {
        store,
        report: CheckReport::default(),
        inodes: HashMap::new(),
    };
    checker.read_inodes()?;
    checker.read_names()?;
    checker.read_extents()?;
    checker.judge_inodes();
    let records = store.check(&mut ExtentRefs::new(store), &mut |_, _, _| None)?;
    let mut blocks = all_blocks(store)?;
    checker.report.blocks = blocks.len() as u64;
    checker.report.records = records.records;
    blocks.retain(|(id, _)| !records.damaged_blocks.contains(id));
    let failures = decode_all(store, codecs, threads, &blocks, progress);
    checker.report.decoded_bytes = blocks.iter().map(|(_, info)| u64::from(info.raw_len)).sum();
    checker.report_blocks(records, failures)?;
    Ok(checker.report)
}

/// An inode and what the rest of the volume says about it.
struct Seen {
    attr: Attr,
    names: u32,
    subdirectories: u32,
    extents_end: u64,
    orphan: bool,
    cut: bool,
}

struct Checker<'a> {
    store: &'a Store,
    report: CheckReport,
    inodes: HashMap<u64, Seen>,
}

impl Checker<'_> {
    fn damage(&mut self, what: impl Into<String>) {
        self.report.damage.push(Damage {
            what: what.into(),
            files: Vec::new(),
        });
    }

    fn read_inodes(&mut self) -> Result<()> {
        let store = self.store;
        for_each(store, b"I", b"J", |key, value| {
            let ino = keys::ino_of(key)?;
            match Attr::decode(value) {
                Ok(attr) => {
                    match attr.is_dir() {
                        true => self.report.directories += 1,
                        false => self.report.files += 1,
                    }
                    let seen = Seen {
                        attr,
                        names: 0,
                        subdirectories: 0,
                        extents_end: 0,
                        orphan: false,
                        cut: false,
                    };
                    self.inodes.insert(ino, seen);
                }
                Err(error) => self.damage(format!("inode {ino}: {error}")),
            }
            Ok(())
        })?;
        for (tag, end) in [(b"O", b"P"), (b"C", b"D")] {
            for_each(store, tag, end, |key, _| {
                let ino = keys::ino_of(key)?;
                match self.inodes.get_mut(&ino) {
                    Some(seen) if tag == b"O" => seen.orphan = true,
                    Some(seen) => seen.cut = true,
                    None => self.damage(format!("inode {ino} is to be cleaned up, but missing")),
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn read_names(&mut self) -> Result<()> {
        for_each(self.store, b"D", b"E", |key, value| {
            let parent = keys::ino_of(key)?;
            let name = String::from_utf8_lossy(key.get(9..).unwrap_or_default()).into_owned();
            let place = format!("name '{name}' in directory {parent}");
            match Dirent::decode(value) {
                Ok(entry) => self.count_name(parent, entry, &place),
                Err(error) => self.damage(format!("{place}: {error}")),
            }
            Ok(())
        })
    }

    fn count_name(&mut self, parent: u64, entry: Dirent, place: &str) {
        match self.inodes.get_mut(&parent) {
            Some(seen) if seen.attr.is_dir() => {
                seen.subdirectories += u32::from(entry.kind == FileKind::Directory);
            }
            Some(_) => self.damage(format!("{place}: not a directory")),
            None => self.damage(format!("{place}: the directory does not exist")),
        }
        match self.inodes.get_mut(&entry.ino) {
            Some(seen) if seen.attr.kind == entry.kind => seen.names += 1,
            Some(_) => self.damage(format!("{place}: inode {} is of another type", entry.ino)),
            None => self.damage(format!("{place}: inode {} does not exist", entry.ino)),
        }
    }

    /// Extents of one inode follow each other without overlap and lie inside the file and their blocks.
    fn read_extents(&mut self) -> Result<()> {
        let store = self.store;
        for_each(store, b"E", b"F", |key, value| {
            let ino = keys::ino_of(key)?;
            self.report.extents += 1;
            let extent = match keys::decode_extent(key, value) {
                Ok(extent) => extent,
                Err(error) => {
                    self.damage(format!("inode {ino}: {error}"));
                    return Ok(());
                }
            };
            let place = format!("inode {ino}, extent at {}", extent.offset);
            match self.inodes.get_mut(&ino) {
                Some(seen) if seen.extents_end > extent.offset => {
                    self.damage(format!("{place}: overlaps the one before it"));
                }
                Some(seen) => seen.extents_end = extent.end(),
                None => self.damage(format!("{place}: the inode does not exist")),
            }
            match store.block_info(extent.block) {
                Ok(info)
                    if u64::from(extent.skip) + u64::from(extent.len) > info.raw_len.into() =>
                {
                    self.damage(format!(
                        "{place}: reaches past the end of block {}",
                        extent.block
                    ));
                }
                Ok(info) if info.staged != extent.staged => {
                    self.damage(format!(
                        "{place}: block {} is in another state",
                        extent.block
                    ));
                }
                Ok(_) => {}
                Err(error) => self.damage(format!("{place}: {error}")),
            }
            Ok(())
        })
    }

    fn judge_inodes(&mut self) {
        let mut findings = Vec::new();
        for (ino, seen) in &self.inodes {
            let Seen {
                attr,
                names,
                subdirectories,
                ..
            } = seen;
            let links = match attr.is_dir() {
                true if seen.orphan => 0,
                true => 2 + subdirectories,
                false => *names,
            };
            if attr.nlink != links {
                findings.push(format!("inode {ino} has {links} links, not {}", attr.nlink));
            }
            if *names == 0 && *ino != ROOT && !seen.orphan {
                findings.push(format!("inode {ino} has no name"));
            }
            if attr.is_dir() && *names > 1 {
                findings.push(format!("directory {ino} has {names} names"));
            }
            if attr.kind == FileKind::Regular && seen.extents_end > attr.size && !seen.cut {
                findings.push(format!("inode {ino} has data past its end"));
            }
        }
        if !self
            .inodes
            .get(&ROOT)
            .is_some_and(|seen| seen.attr.is_dir())
        {
            findings.push("the root directory is missing".into());
        }
        findings.sort();
        for finding in findings {
            self.damage(finding);
        }
    }

    /// Reports what is wrong with records and blocks, with the files that show them.
    fn report_blocks(
        &mut self,
        records: store::CheckReport,
        failures: BTreeMap<BlockId, String>,
    ) -> Result<()> {
        let damaged = |block: &BlockId| {
            records.damaged_blocks.contains(block) || failures.contains_key(block)
        };
        let mut victims = HashMap::new();
        if !records.damaged_blocks.is_empty() || !failures.is_empty() {
            victims = self.files_of(&damaged)?;
        }
        let mut files_of = |block: Option<BlockId>| {
            block
                .and_then(|block| victims.remove(&block))
                .unwrap_or_default()
        };
        let listed = records.problems.len() as u64;
        for problem in &records.problems {
            let (what, files) = (problem.to_string(), files_of(problem.block));
            self.report.damage.push(Damage { what, files });
        }
        if records.problem_count > listed {
            self.damage(format!(
                "and {} more in the log",
                records.problem_count - listed
            ));
        }
        for (block, why) in &failures {
            let (what, files) = (format!("block {block}: {why}"), files_of(Some(*block)));
            self.report.damage.push(Damage { what, files });
        }
        Ok(())
    }

    /// The paths of the files that show each of the damaged blocks.
    fn files_of(
        &self,
        damaged: &dyn Fn(&BlockId) -> bool,
    ) -> Result<HashMap<BlockId, Vec<String>>> {
        let mut victims: HashMap<BlockId, BTreeSet<u64>> = HashMap::new();
        for_each(self.store, b"E", b"F", |key, value| {
            let ino = keys::ino_of(key)?;
            if let Ok(extent) = keys::decode_extent(key, value)
                && damaged(&extent.block)
            {
                victims.entry(extent.block).or_default().insert(ino);
            }
            Ok(())
        })?;
        let names = self.all_names()?;
        let paths = |inos: BTreeSet<u64>| inos.iter().map(|ino| path_of(*ino, &names)).collect();
        Ok(victims
            .into_iter()
            .map(|(block, inos)| (block, paths(inos)))
            .collect())
    }

    /// Directory and name of every inode; one of them for files with several names.
    fn all_names(&self) -> Result<HashMap<u64, (u64, String)>> {
        let mut names = HashMap::new();
        for_each(self.store, b"D", b"E", |key, value| {
            let parent = keys::ino_of(key)?;
            let name = String::from_utf8_lossy(key.get(9..).unwrap_or_default()).into_owned();
            if let Ok(entry) = Dirent::decode(value) {
                names.insert(entry.ino, (parent, name));
            }
            Ok(())
        })?;
        Ok(names)
    }
}

/// The path of an inode from the root of the volume; the number where names are missing.
fn path_of(ino: u64, names: &HashMap<u64, (u64, String)>) -> String {
    let mut parts = Vec::new();
    let mut at = ino;
    // The limit ends the walk in a damaged tree with a loop.
    while at != ROOT && parts.len() < 4096 {
        match names.get(&at) {
            Some((parent, name)) => {
                parts.push(name.as_str());
                at = *parent;
            }
            None => return format!("inode {ino}"),
        }
    }
    parts.reverse();
    parts.join("/")
}

/// All extents of the volume as the store counts them. What does not parse has been reported.
struct ExtentRefs<'a> {
    store: &'a Store,
    page: std::vec::IntoIter<Pair>,
    next: Vec<u8>,
    last_page: bool,
}

impl<'a> ExtentRefs<'a> {
    fn new(store: &'a Store) -> ExtentRefs<'a> {
        let page = Vec::new().into_iter();
        ExtentRefs {
            store,
            page,
            next: b"E".to_vec(),
            last_page: false,
        }
    }

    fn turn_page(&mut self) -> store::Result<()> {
        let page = self.store.scan(&self.next, b"F", PAGE)?;
        self.last_page = page.len() < PAGE;
        if let Some((last, _)) = page.last() {
            self.next = keys::after(last);
        }
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for ExtentRefs<'_> {
    type Item = store::Result<ExtentRef>;

    fn next(&mut self) -> Option<store::Result<ExtentRef>> {
        loop {
            for (key, value) in self.page.by_ref() {
                if let Ok(extent) = keys::decode_extent(&key, &value) {
                    let live = u64::from(extent.len);
                    return Some(Ok(ExtentRef {
                        block: extent.block,
                        live,
                    }));
                }
            }
            if self.last_page {
                return None;
            }
            if let Err(error) = self.turn_page() {
                self.last_page = true;
                return Some(Err(error));
            }
        }
    }
}

fn all_blocks(store: &Store) -> Result<Vec<(BlockId, BlockInfo)>> {
    let mut blocks: Vec<(BlockId, BlockInfo)> = Vec::new();
    loop {
        let after = blocks.last().map_or(0, |(id, _)| *id);
        let page = store.blocks(after, PAGE)?;
        let done = page.len() < PAGE;
        blocks.extend(page);
        if done {
            return Ok(blocks);
        }
    }
}

/// Reads and decodes every block; returns those that fail, with the reason.
fn decode_all(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    blocks: &[(BlockId, BlockInfo)],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> BTreeMap<BlockId, String> {
    let cache = Cache::new(store.clone(), codecs.clone(), CACHE_BYTES, threads);
    let total = blocks.iter().map(|(_, info)| u64::from(info.raw_len)).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((id, info)) = blocks.get(next.fetch_add(1, Relaxed)) {
                    if let Err(why) = decode(&cache, *id, info) {
                        failures.lock().insert(*id, why);
                    }
                    let len = u64::from(info.raw_len);
                    progress(done.fetch_add(len, Relaxed) + len, total);
                }
            });
        }
    });
    cache.stop();
    failures.into_inner()
}

fn decode(cache: &Cache, id: BlockId, info: &BlockInfo) -> std::result::Result<(), String> {
    let layout = cache.layout(id).map_err(|e| e.to_string())?;
    let anchor = layout.anchor.as_ref().map(|anchor| anchor.block);
    if layout.raw_len != info.raw_len || layout.codec as u8 != info.codec || anchor != info.anchor {
        return Err("its header and the index say different things".into());
    }
    let mut raw = vec![0; layout.raw_len as usize];
    cache.read_once(id, 0, &mut raw).map_err(|e| e.to_string())
}
