//! The check of a whole store: every record of every segment, every block's place, and the counts of references.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::engine::Store;
use super::segment::{SegmentKind, SegmentName, SegmentReader, Step};
use super::{BlockId, BlockInfo, Result, StoreError};

/// Problems that are listed; more are only counted.
const LISTED: usize = 1000;
const SCAN_STEP: usize = 1024;

/// One reference to a block, as the layer above has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRef {
    pub block: BlockId,
    /// Decoded bytes of the block that this reference shows.
    pub live: u64,
}

/// Something that is wrong in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// Path of the segment under the root of the store.
    pub segment: Option<String>,
    /// Where in the segment.
    pub offset: Option<u64>,
    pub block: Option<BlockId>,
    pub what: String,
}

impl Problem {
    /// Something wrong with a whole file.
    pub(crate) fn in_segment(path: String, what: impl fmt::Display) -> Problem {
        Problem {
            segment: Some(path),
            what: what.to_string(),
            ..Problem::default()
        }
    }

    /// Something wrong in one place of a file.
    pub(crate) fn at(path: String, offset: u64, what: impl fmt::Display) -> Problem {
        Problem {
            offset: Some(offset),
            ..Problem::in_segment(path, what)
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = Vec::new();
        place.extend(
            self.segment
                .as_ref()
                .map(|segment| format!("segment {segment}")),
        );
        place.extend(self.offset.map(|offset| format!("offset {offset}")));
        place.extend(self.block.map(|block| format!("block {block}")));
        if place.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", place.join(", "), self.what)
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
    /// The first thousand problems.
    pub problems: Vec<Problem>,
    /// All problems.
    pub problem_count: u64,
    pub segments: u64,
    pub records: u64,
    pub blocks: u64,
    /// Blocks that cannot be read, or not be decoded because their anchor cannot.
    pub damaged_blocks: BTreeSet<BlockId>,
}

impl CheckReport {
    fn add(&mut self, problem: Problem) {
        // Opening the store and walking over its segments see the same fault.
        let place = |p: &Problem| (p.segment.clone(), p.offset);
        let known = |p: &Problem| p.block.is_none() && place(p) == place(&problem);
        if problem.block.is_none() && problem.offset.is_some() && self.problems.iter().any(known) {
            return;
        }
        self.problem_count += 1;
        if self.problems.len() < LISTED {
            self.problems.push(problem);
        }
    }
}

/// What the caller makes of a block that could be read: `Some` names what is wrong with its payload.
pub type BlockVisitor<'a> = &'a mut dyn FnMut(BlockId, &BlockInfo, &[u8]) -> Option<String>;

impl Store {
    /// Verifies the checksum of every record, that every block lies where the index says, that
    /// anchors are there, and that references are counted right, given all `extents` of the layer
    /// above. `visit` sees every readable block and may decode it.
    ///
    /// Nothing is changed. The store should be opened read-only, or at least be quiet.
    pub fn check(
        &self,
        extents: &mut dyn Iterator<Item = Result<ExtentRef>>,
        visit: BlockVisitor,
    ) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        for problem in self.salvage.iter().flat_map(|s| &s.problems) {
            report.add(problem.clone());
        }
        for (seq, state) in self.log.segments() {
            let kind = state.kind;
            self.check_segment(SegmentName { seq, kind }, state.len, &mut report);
        }
        let mut counted: BTreeMap<BlockId, (u64, u64)> = BTreeMap::new();
        for extent in extents {
            let ExtentRef { block, live } = extent?;
            let count = counted.entry(block).or_default();
            count.0 += 1;
            count.1 += live;
        }
        let anchors = self.check_blocks(&mut report, &mut counted, visit)?;
        self.compare_counts(&mut report, counted)?;
        name_dependants(self, &mut report, &anchors);
        Ok(report)
    }

    /// Walks over the records of a segment, of a checkpoint in both copies.
    fn check_segment(&self, name: SegmentName, len: u64, report: &mut CheckReport) {
        report.segments += 1;
        let checkpoint = name.kind == SegmentKind::Checkpoint;
        for path in std::iter::once(name.path()).chain(checkpoint.then(|| name.copy_path())) {
            // A crash may leave one copy of a checkpoint, and stores of earlier versions have but one.
            if checkpoint && matches!(self.log.storage.exists(&path), Ok(false)) {
                continue;
            }
            if let Err(error) = self.walk_segment(name, &path, len, report) {
                report.add(Problem::in_segment(path, error));
            }
        }
    }

    fn walk_segment(
        &self,
        name: SegmentName,
        path: &str,
        len: u64,
        report: &mut CheckReport,
    ) -> Result<()> {
        let (log, checkpoint) = (&self.log, name.kind == SegmentKind::Checkpoint);
        let mut reader = SegmentReader::open_at(&*log.storage, log.uuid, name, path.to_owned())?;
        if !checkpoint {
            reader.len = reader.len.min(len);
        }
        let mut faults = Vec::new();
        report.records += walk(&mut reader, &mut |offset, what| faults.push((offset, what)))?;
        if !checkpoint && reader.cursor < len {
            let what = format!("the segment ends {} bytes too early", len - reader.cursor);
            faults.push((reader.cursor, what));
        }
        for (offset, what) in faults {
            report.add(Problem::at(path.to_owned(), offset, what));
        }
        Ok(())
    }

    /// Reads every block. Adds the references of dependants on their anchors to `counted`, and
    /// returns who depends on which anchor.
    fn check_blocks(
        &self,
        report: &mut CheckReport,
        counted: &mut BTreeMap<BlockId, (u64, u64)>,
        visit: BlockVisitor,
    ) -> Result<Vec<(BlockId, BlockId)>> {
        let mut anchors = Vec::new();
        let mut after = 0;
        loop {
            let blocks = self.blocks(after, SCAN_STEP)?;
            let Some((last, _)) = blocks.last() else {
                return Ok(anchors);
            };
            after = *last;
            for (id, info) in blocks {
                report.blocks += 1;
                let fault = match self.read_block(id) {
                    Ok(payload) => visit(id, &info, &payload),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(what) = fault {
                    report.add(self.block_problem(id, what));
                    report.damaged_blocks.insert(id);
                }
                if let Some(anchor) = info.anchor {
                    anchors.push((id, anchor));
                    counted.entry(anchor).or_default().0 += 1;
                }
            }
        }
    }

    /// A problem of a block, with the place of its record.
    pub fn block_problem(&self, block: BlockId, what: String) -> Problem {
        let place = self.block_place(block).ok().flatten();
        let (segment, offset) = place.unzip();
        Problem {
            segment,
            offset,
            block: Some(block),
            what,
        }
    }

    /// Compares the references that were found with those that the store has counted.
    fn compare_counts(
        &self,
        report: &mut CheckReport,
        counted: BTreeMap<BlockId, (u64, u64)>,
    ) -> Result<()> {
        let mut after = 0;
        let mut counted = counted;
        loop {
            let blocks = self.blocks(after, SCAN_STEP)?;
            let Some((last, _)) = blocks.last() else {
                break;
            };
            after = *last;
            for (id, info) in blocks {
                let (refs, live) = counted.remove(&id).unwrap_or_default();
                if (refs, live) != (u64::from(info.refs), info.live) {
                    let what = format!(
                        "{} references to {} bytes are counted, {refs} to {live} exist",
                        info.refs, info.live
                    );
                    report.add(self.block_problem(id, what));
                }
            }
        }
        for (id, (refs, _)) in counted {
            let what = StoreError::NoSuchBlock(id).to_string();
            report.add(Problem {
                block: Some(id),
                what: format!("{what}, but {refs} references"),
                ..Problem::default()
            });
            report.damaged_blocks.insert(id);
        }
        Ok(())
    }
}

/// Walks over all records of a segment and tells `fault` what is wrong where; behind a bad record it goes
/// on with the next valid one. Returns the number of valid records.
pub(crate) fn walk(reader: &mut SegmentReader, fault: &mut dyn FnMut(u64, String)) -> Result<u64> {
    if let Err(error) = reader.check_header() {
        fault(0, error.to_string());
    }
    let mut records = 0;
    loop {
        match reader.step()? {
            Step::Record { .. } => records += 1,
            Step::End => return Ok(records),
            Step::Bad { offset, why } => {
                reader.seek_valid(offset + 1)?;
                let bytes = reader.cursor - offset;
                fault(offset, format!("{why}; {bytes} bytes are unreadable"));
            }
        }
    }
}

/// A block whose anchor is damaged cannot be decoded either.
fn name_dependants(store: &Store, report: &mut CheckReport, anchors: &[(BlockId, BlockId)]) {
    let damaged: Vec<(BlockId, BlockId)> = anchors
        .iter()
        .filter(|(_, anchor)| report.damaged_blocks.contains(anchor))
        .copied()
        .collect();
    for (block, anchor) in damaged {
        if report.damaged_blocks.insert(block) {
            let what = format!("its anchor, block {anchor}, is damaged");
            report.add(store.block_problem(block, what));
        }
    }
}
