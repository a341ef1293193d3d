//! Reading a checkpoint from its two copies.
//!
//! The copies are the same byte for byte, so what is damaged in one is taken from the other, record by
//! record; and where a record is damaged in both, but in different places, it is put together from both.

use super::check::Problem;
use super::checkpoint::{CheckpointEnd, unpack_page};
use super::index::Change;
use super::record::{self, HEADER_LEN, RecordHeader, RecordKind};
use super::segment::{SEGMENT_HEADER_LEN, SegmentName, SegmentReader, Step};
use super::segments::Log;
use super::{Lsn, Result, StoreError};

/// Differing parts of two damaged records that are tried in all combinations.
const MAX_PARTS: usize = 10;
/// Differences that are nearer to each other than this are one part at first.
const PART_GAP: usize = 64;

/// A range of keys, without its bounds, of which some may be missing. An empty upper bound is the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostKeys {
    pub after: Vec<u8>,
    pub before: Vec<u8>,
}

/// A checkpoint that was read, all of it.
pub(crate) struct Loaded {
    pub end: CheckpointEnd,
    /// What is wrong with either copy, as far as it was looked at.
    pub faults: Vec<Problem>,
}

/// What could be read of a checkpoint.
#[derive(Default)]
pub(crate) struct Salvaged {
    /// The LSN in the header: the last one that it holds.
    pub lsn: Option<Lsn>,
    pub end: Option<CheckpointEnd>,
    pub pairs: u64,
    pub faults: Vec<Problem>,
    pub lost: Vec<LostKeys>,
}

/// Reads a checkpoint and hands its pages to `sink`. What neither copy has is an error.
pub(crate) fn load(
    log: &Log,
    name: SegmentName,
    sink: &mut dyn FnMut(Vec<Change>) -> Result<()>,
) -> Result<Loaded> {
    let mut twin = Twin::open(log, name)?;
    twin.header()?;
    let (mut pages, mut pairs) = (0u64, 0u64);
    loop {
        let at = twin.cursor;
        let damaged = |why: &str| {
            StoreError::damaged("checkpoint", format!("{}, offset {at}", name.path()), why)
        };
        match twin.step()? {
            Found::Record(header, body) => match header.kind {
                RecordKind::CheckpointPage if header.object == pages => {
                    let changes =
                        unpack_page(&body).ok_or_else(|| damaged("a page that makes no sense"))?;
                    pages += 1;
                    pairs += changes.len() as u64;
                    sink(changes)?;
                }
                RecordKind::CheckpointEnd => {
                    let end = CheckpointEnd::decode(&body)
                        .ok_or_else(|| damaged("an end that makes no sense"))?;
                    if (end.pages, end.pairs) != (pages, pairs) {
                        return Err(damaged("pages are missing"));
                    }
                    let faults = twin.faults;
                    return Ok(Loaded { end, faults });
                }
                _ => return Err(damaged("a record that does not belong here")),
            },
            Found::End => return Err(damaged("its end is missing")),
            Found::Bad(why) => return Err(damaged(&format!("{why}, in both copies"))),
        }
    }
}

/// Reads what can be read of a checkpoint and hands those pages to `sink`. Only a newer format and a
/// failing `sink` are errors.
pub(crate) fn salvage(
    log: &Log,
    name: SegmentName,
    sink: &mut dyn FnMut(Vec<Change>) -> Result<()>,
) -> Result<Salvaged> {
    let mut found = Salvaged::default();
    let mut twin = match Twin::open(log, name) {
        Ok(twin) => twin,
        Err(error) => {
            found.faults.push(Problem::in_segment(name.path(), error));
            found.lost.push(LostKeys::everything());
            return Ok(found);
        }
    };
    match twin.header() {
        Ok(lsn) => found.lsn = Some(lsn),
        Err(error @ StoreError::NewerFormat { .. }) => return Err(error),
        Err(_) => {}
    }
    let (mut next_page, mut last_key, mut gap) = (0u64, Vec::new(), false);
    let mut close_gap = |gap: &mut bool, last_key: &[u8], before: Vec<u8>| {
        if std::mem::take(gap) {
            let after = last_key.to_vec();
            found.lost.push(LostKeys { after, before });
        }
    };
    loop {
        let at = twin.cursor;
        let (header, body) = match twin.step()? {
            Found::Record(header, body) => (header, body),
            Found::End => break,
            Found::Bad(why) => {
                let resumed = twin.skip_bad(at);
                twin.fault(
                    name.path(),
                    at,
                    format!(
                        "{why}, in both copies; {} bytes are unreadable",
                        resumed - at
                    ),
                );
                continue;
            }
        };
        match header.kind {
            RecordKind::CheckpointPage => {
                gap |= header.object != next_page;
                next_page = header.object.saturating_add(1);
                match unpack_page(&body) {
                    Some(changes) => {
                        let first = changes.first().map(|c| c.key.clone());
                        close_gap(&mut gap, &last_key, first.unwrap_or_default());
                        if let Some(last) = changes.last() {
                            last_key.clone_from(&last.key);
                        }
                        found.pairs += changes.len() as u64;
                        sink(changes)?;
                    }
                    None => gap = true,
                }
            }
            RecordKind::CheckpointEnd => {
                found.end = CheckpointEnd::decode(&body);
                gap |= found.end.is_some_and(|end| end.pages != next_page);
                break;
            }
            _ => twin.fault(name.path(), at, "a record that does not belong here".into()),
        }
    }
    // Without its end record, nobody knows how many pages there were.
    if found.end.is_none() {
        twin.fault(name.path(), twin.cursor, "its end is missing".into());
        gap = true;
    }
    close_gap(&mut gap, &last_key, Vec::new());
    found.faults = twin.faults;
    Ok(found)
}

impl LostKeys {
    /// No key is known to be there.
    pub(crate) fn everything() -> LostKeys {
        LostKeys {
            after: Vec::new(),
            before: Vec::new(),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key > &self.after[..] && (self.before.is_empty() || key < &self.before[..])
    }
}

enum Found {
    Record(RecordHeader, Vec<u8>),
    End,
    /// In no copy, nor in both together, is there a valid record.
    Bad(&'static str),
}

/// The copies of one checkpoint. The second is looked at only where the first is damaged.
struct Twin {
    copies: Vec<SegmentReader>,
    cursor: u64,
    faults: Vec<Problem>,
}

impl Twin {
    /// Err if there is no copy that can be opened.
    fn open(log: &Log, name: SegmentName) -> Result<Twin> {
        let (mut copies, mut faults, mut failure) = (Vec::new(), Vec::new(), None);
        for path in [name.path(), name.copy_path()] {
            if matches!(log.storage.exists(&path), Ok(false)) {
                continue;
            }
            match SegmentReader::open_at(&*log.storage, log.uuid, name, path.clone()) {
                Ok(reader) => copies.push(reader),
                Err(error) => {
                    faults.push(Problem::in_segment(path, &error));
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if copies.is_empty() => Err(error),
            _ => Ok(Twin {
                copies,
                cursor: SEGMENT_HEADER_LEN,
                faults,
            }),
        }
    }

    fn fault(&mut self, path: String, offset: u64, what: String) {
        self.faults.push(Problem::at(path, offset, what));
    }

    /// Checks the header; that of one copy is enough.
    fn header(&mut self) -> Result<Lsn> {
        let mut failure = None;
        for at in 0..self.copies.len() {
            match self.copies[at].check_header() {
                Ok(lsn) => return Ok(lsn),
                Err(error) => {
                    let path = self.copies[at].place().to_owned();
                    self.fault(path, 0, error.to_string());
                    failure.get_or_insert(error);
                }
            }
        }
        Err(failure.unwrap_or_else(super::recovery::no_checkpoint))
    }

    /// The record at the cursor; the cursor moves behind it.
    fn step(&mut self) -> Result<Found> {
        let at = self.cursor;
        let (mut ends, mut why) = (0, "no record begins here");
        for number in 0..self.copies.len() {
            let copy = &mut self.copies[number];
            copy.cursor = at;
            let (path, what) = match copy.step() {
                Ok(Step::Record { header, body, .. }) => {
                    let body = body.to_vec();
                    self.cursor = at + header.record_len();
                    return Ok(Found::Record(header, body));
                }
                Ok(Step::End) => {
                    ends += 1;
                    (copy.place().to_owned(), "it ends too early".to_owned())
                }
                Ok(Step::Bad { why: reason, .. }) => {
                    why = reason;
                    (copy.place().to_owned(), reason.to_owned())
                }
                Err(error) => (copy.place().to_owned(), error.to_string()),
            };
            self.fault(path, at, what);
        }
        if let Some(record) = self.put_together(at)
            && let Some(header) = RecordHeader::parse(&record, self.copies[0].place_at(at))
        {
            self.cursor = at + record.len() as u64;
            return Ok(Found::Record(header, record[HEADER_LEN..].to_vec()));
        }
        match ends == self.copies.len() {
            true => Ok(Found::End),
            false => Ok(Found::Bad(why)),
        }
    }

    /// Puts the cursor on the next valid record behind a bad one, or the end. Returns where that is.
    fn skip_bad(&mut self, bad: u64) -> u64 {
        let mut next = u64::MAX;
        for copy in &mut self.copies {
            if let Ok(true) = copy.seek_valid(bad + 1) {
                next = next.min(copy.cursor);
            }
        }
        let end = self.copies.iter().map(|copy| copy.len).max().unwrap_or(0);
        self.cursor = next.min(end).max(bad + 1);
        self.cursor
    }

    /// The record at `at` out of parts of two damaged copies.
    fn put_together(&mut self, at: u64) -> Option<Vec<u8>> {
        let [first, second] = &mut self.copies[..] else {
            return None;
        };
        let place = first.place_at(at);
        let head = |copy: &mut SegmentReader, len: usize| {
            let there = copy.len.saturating_sub(at).min(len as u64) as usize;
            let mut bytes = copy.bytes(at, there).ok()?.to_vec();
            bytes.resize(len, 0);
            Some(bytes)
        };
        let (a, b) = (head(first, HEADER_LEN)?, head(second, HEADER_LEN)?);
        let valid = |bytes: &[u8]| RecordHeader::parse(bytes, place).is_some();
        let header = combine(&a, &b, 1, &valid)?;
        let len = usize::try_from(RecordHeader::parse(&header, place)?.record_len()).ok()?;
        if at + len as u64 > first.len.max(second.len) {
            return None;
        }
        let (a, b) = (head(first, len)?, head(second, len)?);
        combine(&a, &b, PART_GAP, &|bytes| {
            valid(bytes) && record::verify_body(bytes)
        })
    }
}

/// `a` with some of the parts in which it differs from `b` replaced by those of `b`, so that it is valid.
fn combine(a: &[u8], b: &[u8], gap: usize, valid: &dyn Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
    let mut gap = gap;
    let parts = loop {
        let parts = differences(a, b, gap);
        if parts.len() <= MAX_PARTS {
            break parts;
        }
        gap *= 4;
    };
    (0u32..1 << parts.len()).find_map(|choice| {
        let mut bytes = a.to_vec();
        for (number, part) in parts.iter().enumerate() {
            if choice & 1 << number != 0 {
                bytes[part.clone()].copy_from_slice(&b[part.clone()]);
            }
        }
        valid(&bytes).then_some(bytes)
    })
}

/// Where two records of equal length differ; what lies between differences less than `gap` apart counts too.
fn differences(a: &[u8], b: &[u8], gap: usize) -> Vec<std::ops::Range<usize>> {
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..a.len()).filter(|&at| a[at] != b[at]) {
        match parts.last_mut() {
            Some(part) if at - part.end < gap => part.end = at + 1,
            _ => parts.push(at..at + 1),
        }
    }
    parts
}
