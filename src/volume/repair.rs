//! Repair of a damaged volume: what is intact stays, what is lost is named.
//!
//! The store is opened as far as it can be read, checked, and put in order key by key: first inodes and names
//! ([`super::repair_tree`]), then extents and blocks ([`super::repair_data`]). All of that happens in an index that
//! is thrown away if anything fails; [`Store::finish_repair`] then makes it the state of the store.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use super::attr::Attr;
use super::check::{Findings, examine};
use super::check_blocks::decode_all;
use super::damage::{Damage, FileRange, Names, merged};
use super::repair_data::Data;
use super::repair_tree::Tree;
use super::status::for_each;
use super::{CheckReport, Result, VolumeError, keys};
use crate::codec::Codecs;
use crate::store::{
    LostCommits, LostKeys, OpenOptions, RepairNotes, Storage, Store, WatchedStorage,
};

/// What a repair found, did, and could not save.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RepairReport {
    /// False if there was nothing to mend: nothing was changed then.
    pub changed: bool,
    /// Where in the store that lies which was replaced, and this report.
    pub aside: Option<String>,
    /// What was wrong.
    pub found: Vec<Damage>,
    /// What was changed beside contents of files.
    pub changes: Vec<String>,
    /// Bytes of files that are lost. They give EIO until they are overwritten, truncated or removed.
    pub lost: Vec<FileRange>,
    /// What is still wrong: models that only their owner can put back.
    pub remaining: Vec<Damage>,
    #[serde(skip)]
    pub check: CheckReport,
}

/// A change of the index under repair.
pub(super) type Amendment = (Vec<u8>, Option<Vec<u8>>);

/// What the parts of a repair share.
pub(super) struct Bench<'a> {
    pub store: &'a Store,
    pub keys: Vec<LostKeys>,
    pub commits: Vec<LostCommits>,
    /// What was changed, for the report.
    pub changes: Vec<String>,
}

impl Bench<'_> {
    /// True if keys of the volume, not only blocks, are lost.
    pub fn lost_metadata(&self) -> bool {
        !self.keys.is_empty() || !self.commits.is_empty()
    }

    /// True if this key may have been there and is lost.
    pub fn may_be_lost(&self, key: &[u8]) -> bool {
        self.keys.iter().any(|range| range.contains(key))
    }

    pub fn note(&mut self, what: impl Into<String>) {
        self.changes.push(what.into());
    }

    pub fn put(&self, key: Vec<u8>, value: Vec<u8>) -> Result<()> {
        self.amend(vec![(key, Some(value))])
    }

    pub fn amend(&self, changes: Vec<Amendment>) -> Result<()> {
        Ok(self.store.amend(changes)?)
    }

    /// Deletes all keys of one kind and inode.
    pub fn delete_all(&self, tag: u8, ino: u64) -> Result<()> {
        let (from, to) = keys::range_of(tag, ino);
        let pairs = self.store.scan(&from, &to, usize::MAX)?;
        self.amend(pairs.into_iter().map(|(key, _)| (key, None)).collect())
    }

    pub fn put_inode(&self, ino: u64, attr: &Attr) -> Result<()> {
        self.put(keys::inode(ino), attr.encode(attr.size))
    }
}

/// Mends a volume that nobody has open. `progress` gets (done, total) decoded bytes. If there is nothing
/// to mend, nothing is written.
///
/// # Errors
/// If the disk fails to read something: it may be read later or from a copy, so it is not given up.
pub fn repair(
    storage: Arc<dyn Storage>,
    options: &OpenOptions,
    codecs: &Arc<Codecs>,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<RepairReport> {
    let watched = Arc::new(WatchedStorage::new(storage));
    let storage: Arc<dyn Storage> = watched.clone();
    let store = Arc::new(Store::open_damaged(storage.clone(), options, true)?);
    let findings = examine(&store, codecs, threads, true, progress)?;
    refuse_failing_disk(&watched)?;
    let mut report = RepairReport {
        check: findings.report.clone(),
        found: findings.report.damage.clone(),
        ..RepairReport::default()
    };
    if !findings.can_be_mended() {
        report.lost = findings.report.lost;
        report.remaining = findings.report.damage;
        return Ok(report);
    }
    let (changes, lost) = mend(&store, codecs, threads, &findings)?;
    refuse_failing_disk(&watched)?;
    report.changes = changes;
    report.lost = lost;
    report.changed = true;
    let bad = findings.bad_models.iter();
    let carried = |name: &String| Some((name.clone(), Codecs::embedded_file(name)?));
    let notes = RepairNotes {
        new_models: bad.filter_map(carried).collect(),
        bad_models: findings.bad_models,
        report: report.text(),
    };
    report.aside = Some(store.finish_repair(&notes)?);
    drop(store);
    let store = Arc::new(Store::open_damaged(storage, options, false)?);
    let after = examine(&store, codecs, threads, false, &|_, _| {})?;
    report.remaining = after.report.damage;
    let models = findings
        .report
        .damage
        .into_iter()
        .filter(|d| d.model.is_some());
    report.remaining.extend(models);
    Ok(report)
}

fn refuse_failing_disk(storage: &WatchedStorage) -> Result<()> {
    match storage.failure() {
        None => Ok(()),
        Some(failure) => Err(VolumeError::Store {
            errno: libc::EIO,
            message: format!(
                "the disk fails to read {failure}; nothing was repaired. Copy the store to a good disk \
                 (ddrescue fills what stays unreadable with zeros), and repair the copy"
            ),
        }),
    }
}

/// Puts the index of the store in order. Returns what was changed and which bytes are lost.
fn mend(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    findings: &Findings,
) -> Result<(Vec<String>, Vec<FileRange>)> {
    let (lost_keys, commits) = store.losses();
    let mut bench = Bench {
        store,
        keys: lost_keys.to_vec(),
        commits: commits.to_vec(),
        changes: Vec::new(),
    };
    for range in &bench.commits {
        let what = format!(
            "changes {} to {} of the volume are lost: what they changed is as it was before",
            range.first, range.last
        );
        bench.changes.push(what);
    }
    if store.scan(b"C", b"Y", 1)?.is_empty() && !bench.lost_metadata() {
        // It was never mounted, and stays as it is.
        store.recount(Default::default())?;
        return Ok((bench.changes, Vec::new()));
    }
    mend_facts(&mut bench)?;
    let tree = Tree::mend(&mut bench)?;
    let mut bad = findings.bad_blocks.clone();
    // Blocks of which only the entry is lost are still in the log.
    let wanted = missing_blocks(store)?;
    let adopted = store.adopt_blocks(&wanted)?;
    for (id, _) in &adopted {
        bad.remove(id);
    }
    bad.extend(
        decode_all(store, codecs, threads, &adopted, &|_, _| {})?
            .into_iter()
            .filter(|(_, failure)| failure.missing_model.is_none())
            .map(|(id, _)| id),
    );
    let data = Data::mend(&mut bench, tree, &bad)?;
    store.recount(data.counted)?;
    let names = Names::read(store)?;
    let named = |(ino, offset, end)| FileRange {
        ino,
        offset,
        end,
        paths: names.paths(ino),
    };
    let lost = merged(data.lost.into_iter().map(named).collect());
    Ok((bench.changes, lost))
}

/// The facts about the volume as a whole.
fn mend_facts(bench: &mut Bench) -> Result<()> {
    let store = bench.store;
    match store.get(keys::META_FORMAT)? {
        Some(value) => {
            keys::check_format(keys::Fields::new("volume", &value).varint()?)?;
        }
        None => bench.put(keys::META_FORMAT.to_vec(), super::varint(keys::FORMAT))?,
    }
    // Counted again by the next mount.
    bench.amend(vec![(keys::META_COUNTERS.to_vec(), None)])?;
    let mut longest = 128 << 10;
    if let Some(value) = store.get(keys::META_MAX_EXTENT)? {
        longest = keys::Fields::new("volume", &value)
            .varint()
            .unwrap_or(longest);
    }
    for_each(store, b"E", b"F", |key, value| {
        if let Ok(extent) = keys::decode_extent(key, value) {
            longest = longest.max(u64::from(extent.len));
        }
        Ok(())
    })?;
    let longest = longest
        .next_power_of_two()
        .min(crate::codec::MAX_RAW_LEN as u64);
    bench.put(keys::META_MAX_EXTENT.to_vec(), super::varint(longest))
}

/// Blocks that extents show and the index does not know.
fn missing_blocks(store: &Store) -> Result<BTreeSet<u64>> {
    let mut missing = BTreeSet::new();
    for_each(store, b"E", b"F", |key, value| {
        if let Ok(extent) = keys::decode_extent(key, value)
            && !extent.is_lost()
            && store.block_info(extent.block).is_err()
        {
            missing.insert(extent.block);
        }
        Ok::<(), VolumeError>(())
    })?;
    Ok(missing)
}

impl RepairReport {
    /// The report for people: what was wrong, what was changed, what is lost.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for damage in &self.found {
            let _ = writeln!(text, "DAMAGED {}", printable(&damage.what));
        }
        for change in &self.changes {
            let _ = writeln!(text, "CHANGED {}", printable(change));
        }
        for range in &self.lost {
            let _ = writeln!(text, "LOST {}", range.text());
        }
        for damage in &self.remaining {
            let _ = writeln!(text, "STILL DAMAGED {}", printable(&damage.what));
        }
        text
    }
}

impl FileRange {
    /// For people: the paths and the bytes.
    pub fn text(&self) -> String {
        let paths = printable(&self.paths.join(" = "));
        format!("{paths}, bytes {} to {}", self.offset, self.end)
    }
}

/// Without characters that do things to a terminal.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(plain).collect()
}
