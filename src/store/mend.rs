//! The store's part of a repair: blocks are found again and counted, and what is left of a damaged log is
//! written down as a new checkpoint.
//!
//! A repair changes the index of a store that was opened with [`Store::open_damaged`], which is in memory or
//! in a temporary place, as it likes. The log is not touched until [`Store::finish_repair`], and then in
//! an order in which a crash leaves either the damaged store or the repaired one: good blocks of damaged
//! segments are copied to new segments, the checkpoint that refers to them is written, and only then is
//! what it replaces moved aside. Nothing is deleted.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::check::walk;
use super::checkpoint::{CheckpointEnd, CheckpointWriter, scan_step};
use super::engine::Store;
use super::entry::{self, BlockEntry};
use super::index::{Change, Index};
use super::layout::{self, INDEX_DIR};
use super::record::{Place, RecordKind};
use super::segment::{
    LOG_DIR, SEGMENT_HEADER_LEN, SegmentHead, SegmentKind, SegmentName, SegmentReader, Step,
    encode_header,
};
use super::segments::Position;
use super::storage::{Storage, StorageFile};
use super::{BlockId, BlockInfo, LostCommits, LostKeys, Result, StoreError};

/// zstd level of the checkpoint that a repair writes.
const LEVEL: i32 = 9;
/// Directory under the root of a store in which a repair leaves what it has replaced; a number follows.
const ASIDE: &str = "damaged-";
/// Where a repair keeps a segment on its way to its right name.
const MISPLACED: &str = "misplaced";
/// Ending of what stood in the way of that, until it is moved aside.
const REPLACED: &str = "replaced";
const REPORT: &str = "report.txt";

/// What the layer above has found out, for [`Store::finish_repair`].
#[derive(Debug, Default)]
pub struct RepairNotes {
    /// Models whose files are damaged: moved aside.
    pub bad_models: Vec<String>,
    /// Models to be written anew: name and contents.
    pub new_models: Vec<(String, &'static [u8])>,
    /// What is kept as `report.txt` beside what was moved aside.
    pub report: String,
}

/// References to a block and decoded bytes that they show.
pub type Counted = BTreeMap<BlockId, (u64, u64)>;

impl Store {
    /// Ranges of keys, and commits, of which something is missing in a store that was opened damaged.
    pub fn losses(&self) -> (&[LostKeys], &[LostCommits]) {
        match &self.salvage {
            Some(salvage) => (&salvage.keys, &salvage.commits),
            None => (&[], &[]),
        }
    }

    /// The names of the files among the models.
    pub fn model_names(&self) -> Result<Vec<String>> {
        layout::model_names(&*self.log.storage)
    }

    /// Changes keys of a store that is being repaired, in its index only. `None` deletes.
    pub fn amend(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        let change = |(key, value)| Change { key, value };
        let changes: Vec<Change> = changes.into_iter().map(change).collect();
        self.index.apply(&changes)
    }

    /// Looks in all segments for the wanted blocks, which the index does not know, and for their anchors.
    /// Returns those that were found; they are in the index now.
    pub fn adopt_blocks(&self, wanted: &BTreeSet<BlockId>) -> Result<Vec<(BlockId, BlockInfo)>> {
        let mut adopted = Vec::new();
        let mut wanted = wanted.clone();
        // Twice, because an anchor may lie before the block that is anchored to it.
        for _ in 0..2 {
            let mut anchors = BTreeSet::new();
            for (seq, state) in self.log.segments() {
                let kind = state.kind;
                if kind != SegmentKind::Checkpoint && !wanted.is_empty() {
                    let found = self.find_blocks(SegmentName { seq, kind }, &wanted)?;
                    for (id, block) in found {
                        wanted.remove(&id);
                        let value = Some(block.encode());
                        self.amend(vec![(entry::block_key(id), value)])?;
                        anchors.extend(block.info.anchor);
                        adopted.push((id, block.info));
                    }
                }
            }
            wanted = BTreeSet::new();
            for anchor in anchors {
                if self.lookup(anchor)?.is_none() {
                    wanted.insert(anchor);
                }
            }
        }
        Ok(adopted)
    }

    fn find_blocks(
        &self,
        name: SegmentName,
        wanted: &BTreeSet<BlockId>,
    ) -> Result<Vec<(BlockId, BlockEntry)>> {
        let mut found = Vec::new();
        let Ok(mut reader) = SegmentReader::open(&*self.log.storage, self.log.uuid, name) else {
            return Ok(found);
        };
        loop {
            let (offset, header, body) = match reader.step()? {
                Step::Record {
                    offset,
                    header,
                    body,
                } => (offset, header, body),
                Step::End => return Ok(found),
                Step::Bad { offset, .. } => {
                    reader.seek_valid(offset + 1)?;
                    continue;
                }
            };
            let block = matches!(header.kind, RecordKind::Staged | RecordKind::Settled);
            if !block || !wanted.contains(&header.object) {
                continue;
            }
            let Some((raw_len, anchor, payload)) = entry::split_block_body(body) else {
                continue;
            };
            let info = BlockInfo {
                codec: header.tag,
                staged: header.kind == RecordKind::Staged,
                stored_len: payload.len() as u32,
                raw_len,
                refs: 0,
                live: 0,
                anchor,
            };
            let seq = name.seq;
            found.push((header.object, BlockEntry { seq, offset, info }));
        }
    }

    /// Makes the references of all blocks what was counted, anchors' included. Blocks without any are dropped.
    pub fn recount(&self, mut counted: Counted) -> Result<()> {
        let mut anchors: Counted = BTreeMap::new();
        for id in counted.keys() {
            if let Some(anchor) = self.lookup(*id)?.and_then(|(block, _)| block.info.anchor) {
                anchors.entry(anchor).or_default().0 += 1;
            }
        }
        for (anchor, (refs, _)) in anchors {
            counted.entry(anchor).or_default().0 += refs;
        }
        self.for_blocks(&mut |id, mut block| {
            let key = entry::block_key(id);
            let value = counted.get(&id).map(|&(refs, live)| {
                block.info.refs = u32::try_from(refs).unwrap_or(u32::MAX);
                block.info.live = live;
                block.encode()
            });
            self.amend(vec![(key, value)])
        })
    }

    fn for_blocks(&self, visit: &mut dyn FnMut(BlockId, BlockEntry) -> Result<()>) -> Result<()> {
        let mut from = vec![entry::BLOCK_KEY];
        loop {
            let pairs = scan_step(&self.index, &from)?;
            let Some((last, _)) = pairs.last() else {
                return Ok(());
            };
            from.clone_from(last);
            from.push(0);
            for (key, value) in &pairs {
                match entry::block_of_key(key).zip(BlockEntry::decode(value)) {
                    Some((id, block)) => visit(id, block)?,
                    None if key.first() > Some(&entry::BLOCK_KEY) => return Ok(()),
                    None => {}
                }
            }
        }
    }

    /// Writes the index as it is now down as the state of the store, and moves aside what is damaged or
    /// replaced by that. Returns the directory where that is.
    pub fn finish_repair(&self, notes: &RepairNotes) -> Result<String> {
        let storage = &*self.log.storage;
        let aside = Aside::create(storage)?;
        aside.keep(REPORT, notes.report.as_bytes())?;
        // Unfinished work has names that are about to be given again.
        for path in &super::recovery::Listing::of(&self.log)?.leftovers {
            aside.take(path)?;
        }
        let mut live: BTreeMap<u64, Vec<BlockId>> = BTreeMap::new();
        self.for_blocks(&mut |id, block| {
            live.entry(block.seq).or_default().push(id);
            Ok(())
        })?;
        let going = self.replaced_segments(&live)?;
        let mut evacuation = Evacuation::new(self);
        for id in going
            .iter()
            .filter_map(|name| live.get(&name.seq))
            .flatten()
        {
            evacuation.copy(*id)?;
        }
        evacuation.finish()?;
        storage
            .remove_tree(INDEX_DIR)
            .map_err(StoreError::io("remove", INDEX_DIR))?;
        if self.salvage.as_ref().is_some_and(|s| s.new_description) {
            aside.copy(layout::DESCRIPTION)?;
            layout::rewrite_description(storage, &self.description)?;
        }
        self.write_state()?;
        for name in going {
            let copy = name.kind == SegmentKind::Checkpoint;
            for path in std::iter::once(name.path()).chain(copy.then(|| name.copy_path())) {
                aside.take(&path)?;
            }
        }
        let log = storage
            .list(LOG_DIR)
            .map_err(StoreError::io("list", LOG_DIR))?;
        for entry in log.iter().filter(|entry| entry.name.ends_with(REPLACED)) {
            aside.take(&format!("{LOG_DIR}/{}", entry.name))?;
        }
        for model in &notes.bad_models {
            aside.take(&format!("{}/{model}", layout::MODEL_DIR))?;
        }
        for (name, bytes) in &notes.new_models {
            layout::put_model(storage, name, bytes)?;
        }
        aside.finish()
    }

    /// Segments that are damaged, unreadable or replaced by the checkpoint to come. Where something is
    /// missing, all that the new state does not need is among them, so that nothing unlinks it later.
    fn replaced_segments(&self, live: &BTreeMap<u64, Vec<BlockId>>) -> Result<Vec<SegmentName>> {
        let registered = self.log.segments();
        let (keys, commits) = self.losses();
        let losses = !keys.is_empty() || !commits.is_empty();
        let listing = super::recovery::Listing::of(&self.log)?;
        let mut names = listing.segments;
        names.extend(listing.doubles);
        names.retain(|&name| {
            let unused = losses && !live.contains_key(&name.seq);
            name.kind == SegmentKind::Checkpoint
                || registered.get(&name.seq).map(|state| state.kind) != Some(name.kind)
                || unused
                || self.is_faulty(name)
        });
        Ok(names)
    }

    fn is_faulty(&self, name: SegmentName) -> bool {
        let mut faulty = false;
        let walked = SegmentReader::open(&*self.log.storage, self.log.uuid, name)
            .and_then(|mut reader| walk(&mut reader, &mut |_, _| faulty = true));
        faulty || walked.is_err()
    }

    /// Writes a checkpoint of the index behind everything else in the log.
    fn write_state(&self) -> Result<()> {
        let lsn = self.last_lsn();
        let mut writer = CheckpointWriter::create(&self.log, lsn, LEVEL)?;
        writer.write_all(&|from| scan_step(&self.index, from))?;
        let next_seq = self.log.peek_seq();
        let end = CheckpointEnd {
            lsn,
            last_lsn: lsn,
            replay: Position {
                seq: next_seq,
                offset: 0,
            },
            next_block: self.next_block.load(std::sync::atomic::Ordering::Relaxed),
            next_seq,
            ..CheckpointEnd::default()
        };
        writer.finish(end).map(|_| ())
    }
}

/// Copies blocks out of damaged segments into new ones.
struct Evacuation<'a> {
    store: &'a Store,
    open: BTreeMap<bool, NewSegment>,
}

struct NewSegment {
    name: SegmentName,
    file: std::sync::Arc<dyn StorageFile>,
    len: u64,
}

impl<'a> Evacuation<'a> {
    fn new(store: &'a Store) -> Evacuation<'a> {
        let open = BTreeMap::new();
        Evacuation { store, open }
    }

    fn copy(&mut self, id: BlockId) -> Result<()> {
        let log = &self.store.log;
        let Some((mut block, _)) = self.store.lookup(id)? else {
            return Ok(());
        };
        let (header, record) = log.read_record(id, &block)?;
        let staged = block.info.staged;
        let full = |segment: &NewSegment| segment.len + header.record_len() > log.segment_bytes;
        if self.open.get(&staged).is_some_and(full) {
            self.end(staged)?;
        }
        let segment = match self.open.remove(&staged) {
            Some(segment) => segment,
            None => self.create(staged)?,
        };
        let segment = self.open.entry(staged).or_insert(segment);
        let place = Place {
            store: log.uuid,
            seq: segment.name.seq,
            offset: segment.len,
        };
        let body = &record[super::record::HEADER_LEN..];
        segment
            .file
            .write_at(segment.len, &[&header.encode(place, &[body]), body])
            .map_err(StoreError::io("write", &segment.name.path()))?;
        (block.seq, block.offset) = (segment.name.seq, segment.len);
        segment.len += header.record_len();
        let key = entry::block_key(id);
        self.store.amend(vec![(key, Some(block.encode()))])
    }

    fn create(&self, staged: bool) -> Result<NewSegment> {
        let log = &self.store.log;
        let kind = match staged {
            true => SegmentKind::Journal,
            false => SegmentKind::Blocks,
        };
        let seq = log.take_seq();
        let name = SegmentName { seq, kind };
        let path = name.path();
        let header = encode_header(name, log.uuid, self.store.last_lsn() + 1);
        let file = log
            .storage
            .create(&path)
            .map_err(StoreError::io("create", &path))?;
        file.write_at(0, &[&header])
            .map_err(StoreError::io("write", &path))?;
        log.add_segment(name, SEGMENT_HEADER_LEN);
        let len = SEGMENT_HEADER_LEN;
        Ok(NewSegment { name, file, len })
    }

    fn end(&mut self, staged: bool) -> Result<()> {
        match self.open.remove(&staged) {
            Some(segment) => segment
                .file
                .sync_data()
                .map_err(StoreError::io("fdatasync", &segment.name.path())),
            None => Ok(()),
        }
    }

    /// Makes all copies durable.
    fn finish(mut self) -> Result<()> {
        self.end(false)?;
        self.end(true)?;
        let storage = &self.store.log.storage;
        storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR))
    }
}

/// The directory of what a repair has replaced.
struct Aside<'a> {
    storage: &'a dyn Storage,
    dir: String,
}

impl Aside<'_> {
    fn create(storage: &dyn Storage) -> Result<Aside<'_>> {
        let entries = storage.list("").map_err(StoreError::io("list", "."))?;
        let number = |name: &str| name.strip_prefix(ASIDE)?.parse::<u32>().ok();
        let last = entries.iter().filter_map(|entry| number(&entry.name)).max();
        let dir = format!("{ASIDE}{}", last.unwrap_or(0).saturating_add(1));
        storage.mkdir(&dir).map_err(StoreError::io("mkdir", &dir))?;
        storage.sync_dir("").map_err(StoreError::io("fsync", "."))?;
        Ok(Aside { storage, dir })
    }

    /// Writes a new file, durably.
    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = format!("{}/{name}", self.dir);
        let temporary = format!("{path}.tmp");
        layout::replace_file(self.storage, &self.dir, &path, &temporary, bytes)
    }

    /// Copies a small file, if it can be read.
    fn copy(&self, path: &str) -> Result<()> {
        match layout::read_file(self.storage, path, 1 << 20) {
            Ok(bytes) => self.keep(path, &bytes),
            // Not a file: a directory, for example.
            Err(_) => self.take(path),
        }
    }

    /// Moves a file, if it is there.
    fn take(&self, path: &str) -> Result<()> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let target = format!("{}/{name}", self.dir);
        match self.storage.rename(path, &target) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(StoreError::io("rename", path)),
        }
    }

    /// Makes it all durable, and returns the name of the directory.
    fn finish(self) -> Result<String> {
        for dir in [&self.dir, LOG_DIR, ""] {
            self.storage
                .sync_dir(dir)
                .map_err(StoreError::io("fsync", dir))?;
        }
        Ok(self.dir)
    }
}

/// Gives segments whose headers say that they are others of this store their right names, unless a
/// segment that deserves that name has it. An interrupted attempt goes on where it was.
pub(crate) fn straighten(storage: &dyn Storage, store: Uuid) -> Result<()> {
    let head = |path: &str| SegmentHead::of_file(storage, path).filter(|head| head.store == store);
    let rightful = |name: &SegmentName| head(&name.path()).is_some_and(|head| head.name == *name);
    let rename = |from: &str, to: &str| {
        log::warn!("{from} is {to}: renamed");
        storage
            .rename(from, to)
            .map_err(StoreError::io("rename", from))
    };
    let mut moved = false;
    let list = || {
        storage
            .list(LOG_DIR)
            .map_err(StoreError::io("list", LOG_DIR))
    };
    for entry in list()? {
        let path = format!("{LOG_DIR}/{}", entry.name);
        let name = SegmentName::parse(&entry.name);
        let copy = SegmentName::parse_copy(&entry.name);
        let Some((name, real)) = name.zip(head(&path).map(|head| head.name)) else {
            continue;
        };
        let target = format!("{}.{MISPLACED}", real.path());
        let taken = || {
            storage
                .exists(&target)
                .map_err(StoreError::io("stat", &target))
        };
        if copy.is_none() && name != real && !rightful(&real) && !taken()? {
            rename(&path, &target)?;
            moved = true;
        }
    }
    for entry in list()? {
        let path = format!("{LOG_DIR}/{}", entry.name);
        let name = path
            .strip_suffix(MISPLACED)
            .and_then(|path| path.strip_suffix('.'));
        let Some(target) = name else { continue };
        // What is damaged beyond recognition makes way, under a name that no segment has.
        let taken = storage
            .exists(target)
            .map_err(StoreError::io("stat", target))?;
        if taken {
            rename(target, &format!("{target}.{REPLACED}"))?;
        }
        rename(&path, target)?;
        moved = true;
    }
    match moved {
        true => storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR)),
        false => Ok(()),
    }
}
