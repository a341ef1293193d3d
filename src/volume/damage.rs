//! What a check reports: what is damaged, and which bytes of which files that hits.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::namespace::Dirent;
use super::status::for_each;
use super::{ROOT, Result, keys};
use crate::store::{BlockId, Problem, Store};

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
    /// What an earlier repair could not save. These ranges give EIO until they are overwritten.
    pub lost: Vec<FileRange>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub what: String,
    /// File of the store, and where in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockId>,
    /// The model without which the ranges below cannot be read. No repair can replace it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Paths of the files whose contents are hit.
    pub files: Vec<String>,
    /// The bytes that are hit.
    pub ranges: Vec<FileRange>,
}

impl Damage {
    pub(super) fn new(what: String, ranges: Vec<FileRange>) -> Damage {
        let mut files: Vec<String> = ranges.iter().flat_map(|r| r.paths.clone()).collect();
        files.sort();
        files.dedup();
        Damage {
            what,
            files,
            ranges,
            ..Damage::default()
        }
    }

    pub(super) fn of(problem: &Problem, ranges: Vec<FileRange>) -> Damage {
        Damage {
            segment: problem.segment.clone(),
            offset: problem.offset,
            block: problem.block,
            ..Damage::new(problem.to_string(), ranges)
        }
    }
}

/// A range of bytes of one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FileRange {
    pub ino: u64,
    pub offset: u64,
    pub end: u64,
    /// All names of the file; its inode number in words if it has none.
    pub paths: Vec<String>,
}

/// Joins ranges of one file that touch.
pub(super) fn merged(mut ranges: Vec<FileRange>) -> Vec<FileRange> {
    ranges.sort();
    let mut all: Vec<FileRange> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.ino == range.ino && last.end >= range.offset => {
                last.end = last.end.max(range.end);
            }
            _ => all.push(range),
        }
    }
    all
}

/// The ranges that show damaged blocks, and the names of all files.
#[derive(Default)]
pub(super) struct Victims {
    ranges: BTreeMap<BlockId, Vec<(u64, u64, u64)>>,
    names: Names,
}

impl Victims {
    pub fn find(store: &Store, damaged: &dyn Fn(&BlockId) -> bool) -> Result<Victims> {
        let mut ranges: BTreeMap<BlockId, Vec<(u64, u64, u64)>> = BTreeMap::new();
        for_each(store, b"E", b"F", |key, value| {
            if let Ok(extent) = keys::decode_extent(key, value)
                && damaged(&extent.block)
            {
                let range = (keys::ino_of(key)?, extent.offset, extent.end());
                ranges.entry(extent.block).or_default().push(range);
            }
            Ok(())
        })?;
        let names = Names::read(store)?;
        Ok(Victims { ranges, names })
    }

    /// The ranges that show this block.
    pub fn of(&self, block: BlockId) -> Vec<FileRange> {
        let ranges = self.ranges.get(&block).cloned().unwrap_or_default();
        self.name_ranges(ranges)
    }

    pub fn name_ranges(&self, ranges: Vec<(u64, u64, u64)>) -> Vec<FileRange> {
        let named = |(ino, offset, end)| FileRange {
            ino,
            offset,
            end,
            paths: self.names.paths(ino),
        };
        merged(ranges.into_iter().map(named).collect())
    }
}

/// Directory and name, for all names of all inodes.
#[derive(Default)]
pub(super) struct Names {
    of: HashMap<u64, Vec<(u64, String)>>,
}

impl Names {
    pub fn read(store: &Store) -> Result<Names> {
        let mut of: HashMap<u64, Vec<(u64, String)>> = HashMap::new();
        for_each(store, b"D", b"E", |key, value| {
            if let Ok(parent) = keys::ino_of(key)
                && let Ok(entry) = Dirent::decode(value)
            {
                let name = key.get(9..).unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                of.entry(entry.ino).or_default().push((parent, name));
            }
            Ok(())
        })?;
        Ok(Names { of })
    }

    /// The paths of an inode from the root of the volume; the number in words where names are missing.
    pub fn paths(&self, ino: u64) -> Vec<String> {
        let names = self.of.get(&ino).map_or(&[][..], |names| names);
        let paths: Vec<String> = names
            .iter()
            .filter_map(|(parent, name)| self.path(*parent, name))
            .collect();
        match paths.is_empty() {
            true => vec![format!("inode {ino}")],
            false => paths,
        }
    }

    fn path(&self, parent: u64, name: &str) -> Option<String> {
        let mut parts = vec![name];
        let mut at = parent;
        while at != ROOT {
            let (parent, name) = self.of.get(&at)?.first()?;
            parts.push(name);
            at = *parent;
            // In a damaged tree there can be a loop.
            if parts.len() > 4096 {
                return None;
            }
        }
        parts.reverse();
        Some(parts.join("/"))
    }
}
