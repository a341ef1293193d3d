//! Verifies a whole volume: that names, inodes, extents and blocks agree, and that every block decodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::attr::{Attr, FileKind};
use super::check_blocks::{ExtentRefs, Failure, all_blocks, decode_all};
use super::damage::{CheckReport, Damage, Victims, merged};
use super::namespace::Dirent;
use super::status::for_each;
use super::{ROOT, Result, keys};
use crate::codec::{Codecs, file_name};
use crate::store::{self, BlockId, MODEL_DIR, Store};

/// What a check has found out, for a repair.
pub(super) struct Findings {
    pub report: CheckReport,
    /// Blocks that will never be readable again.
    pub bad_blocks: BTreeSet<BlockId>,
    /// Names of damaged files among the models.
    pub bad_models: Vec<String>,
}

impl Findings {
    /// True if there is something that a repair can mend.
    pub fn can_be_mended(&self) -> bool {
        self.report
            .damage
            .iter()
            .any(|damage| damage.model.is_none())
    }
}

/// Checks everything above the records of the log. `progress` gets (done, total) decoded bytes.
/// Damage is reported; an error means that the check itself could not go on.
pub fn check(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<CheckReport> {
    examine(store, codecs, threads, true, progress).map(|findings| findings.report)
}

/// [`check`], which leaves decoding out unless `decode`.
pub(super) fn examine(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    decode: bool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Findings> {
    keys::refuse_newer(store)?;
    let mut checker = Checker {
        store,
        report: CheckReport::default(),
        inodes: HashMap::new(),
        lost: Vec::new(),
    };
    checker.read_inodes()?;
    checker.read_names()?;
    checker.read_extents()?;
    checker.judge_inodes();
    let bad_models = checker.read_models()?;
    let records = store.check(&mut ExtentRefs::new(store), &mut |_, _, _| None)?;
    let mut blocks = all_blocks(store)?;
    checker.report.blocks = blocks.len() as u64;
    checker.report.records = records.records;
    blocks.retain(|(id, _)| !records.damaged_blocks.contains(id));
    let mut failures = BTreeMap::new();
    if decode {
        failures = decode_all(store, codecs, threads, &blocks, progress)?;
        let bytes = blocks.iter().map(|(_, info)| u64::from(info.raw_len));
        checker.report.decoded_bytes = bytes.sum();
    }
    checker.report_blocks(&records, &failures)?;
    let mut bad_blocks = records.damaged_blocks;
    let gone = failures
        .iter()
        .filter(|(_, why)| why.missing_model.is_none());
    bad_blocks.extend(gone.map(|(block, _)| *block));
    Ok(Findings {
        report: checker.report,
        bad_blocks,
        bad_models,
    })
}

/// An inode and what the rest of the volume says about it.
struct Seen {
    attr: Attr,
    names: u32,
    /// Of a directory: where one of its names is.
    parent: u64,
    subdirectories: u32,
    extents_end: u64,
    orphan: bool,
    cut: bool,
}

struct Checker<'a> {
    store: &'a Store,
    report: CheckReport,
    inodes: HashMap<u64, Seen>,
    /// Ranges that an earlier repair found lost: inode, from, to.
    lost: Vec<(u64, u64, u64)>,
}

impl Checker<'_> {
    fn damage(&mut self, what: impl Into<String>) {
        self.report
            .damage
            .push(Damage::new(what.into(), Vec::new()));
    }

    /// The inode number of a key; one that has none is damage.
    fn ino(&mut self, key: &[u8]) -> Option<u64> {
        let ino = keys::ino_of(key).ok();
        if ino.is_none() {
            self.damage(format!("a key makes no sense: {}", key.escape_ascii()));
        }
        ino
    }

    /// Whether the models of the store are what their names say. Returns the names of those that are not.
    fn read_models(&mut self) -> Result<Vec<String>> {
        let mut bad = Vec::new();
        for file in self.store.model_names()? {
            let Some(name) = Codecs::model_of_name(&file) else {
                continue;
            };
            let why = match self.store.get_model(&file) {
                Ok(Some(bytes)) if Codecs::is_model(&name, &bytes) => continue,
                Ok(_) => "it is damaged".to_owned(),
                Err(error) => error.to_string(),
            };
            self.damage(format!("model {MODEL_DIR}/{file}: {why}"));
            bad.push(file);
        }
        Ok(bad)
    }

    fn read_inodes(&mut self) -> Result<()> {
        let store = self.store;
        for_each(store, b"I", b"J", |key, value| {
            let Some(ino) = self.ino(key) else {
                return Ok(());
            };
            match Attr::decode(value) {
                Ok(attr) => {
                    match attr.is_dir() {
                        true => self.report.directories += 1,
                        false => self.report.files += 1,
                    }
                    let seen = Seen {
                        attr,
                        names: 0,
                        parent: ROOT,
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
                let Some(ino) = self.ino(key) else {
                    return Ok(());
                };
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
            let Some(parent) = self.ino(key) else {
                return Ok(());
            };
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
            Some(seen) if seen.attr.kind == entry.kind => {
                seen.names += 1;
                seen.parent = parent;
            }
            Some(_) => self.damage(format!("{place}: inode {} is of another type", entry.ino)),
            None => self.damage(format!("{place}: inode {} does not exist", entry.ino)),
        }
    }

    /// Extents of one inode follow each other without overlap and lie inside the file and their blocks.
    fn read_extents(&mut self) -> Result<()> {
        let store = self.store;
        for_each(store, b"E", b"F", |key, value| {
            let Some(ino) = self.ino(key) else {
                return Ok(());
            };
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
                _ if extent.is_lost() => self.lost.push((ino, extent.offset, extent.end())),
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
        let circles = self.circles();
        findings.extend(circles.iter().map(|ino| {
            format!("directory {ino} is below itself and cannot be reached from the root")
        }));
        findings.sort();
        for finding in findings {
            self.damage(finding);
        }
    }

    /// Directories from which going up does not lead to the root, though all have names.
    fn circles(&self) -> Vec<u64> {
        let mut judged: HashMap<u64, bool> = HashMap::from([(ROOT, false)]);
        for (start, _) in self.inodes.iter().filter(|(_, seen)| seen.attr.is_dir()) {
            let (mut path, mut at) = (Vec::new(), *start);
            let circle = loop {
                if let Some(known) = judged.get(&at) {
                    break *known;
                }
                // While the path is being walked, meeting it again means a circle.
                judged.insert(at, true);
                path.push(at);
                match self.inodes.get(&at) {
                    Some(seen) if seen.names > 0 => at = seen.parent,
                    _ => break false,
                }
            };
            for ino in path {
                judged.insert(ino, circle);
            }
        }
        let circles = judged.into_iter().filter(|(_, circle)| *circle);
        circles.map(|(ino, _)| ino).collect()
    }

    /// Reports what is wrong with records and blocks, with the files that show them.
    fn report_blocks(
        &mut self,
        records: &store::CheckReport,
        failures: &BTreeMap<BlockId, Failure>,
    ) -> Result<()> {
        let damaged = |block: &BlockId| {
            records.damaged_blocks.contains(block) || failures.contains_key(block)
        };
        let mut victims = Victims::default();
        if !records.damaged_blocks.is_empty() || !failures.is_empty() || !self.lost.is_empty() {
            victims = Victims::find(self.store, &damaged)?;
        }
        self.report.lost = victims.name_ranges(std::mem::take(&mut self.lost));
        let listed = records.problems.len() as u64;
        for problem in &records.problems {
            let ranges = problem.block.map(|block| victims.of(block));
            self.report
                .damage
                .push(Damage::of(problem, ranges.unwrap_or_default()));
        }
        if records.problem_count > listed {
            self.damage(format!(
                "and {} more in the log",
                records.problem_count - listed
            ));
        }
        let mut by_model: BTreeMap<String, Vec<BlockId>> = BTreeMap::new();
        for (block, failure) in failures {
            match &failure.missing_model {
                Some(model) => by_model.entry(file_name(model)).or_default().push(*block),
                None => {
                    let mut problem = self.store.block_problem(*block, failure.why.clone());
                    problem.block = Some(*block);
                    let ranges = victims.of(*block);
                    self.report.damage.push(Damage::of(&problem, ranges));
                }
            }
        }
        for (model, blocks) in by_model {
            let ranges = merged(blocks.iter().flat_map(|block| victims.of(*block)).collect());
            let what = format!(
                "model {model} cannot be used or is missing: {} blocks need it; put it back into {MODEL_DIR}/",
                blocks.len()
            );
            let mut damage = Damage::new(what, ranges);
            damage.model = Some(model);
            self.report.damage.push(damage);
        }
        Ok(())
    }
}
