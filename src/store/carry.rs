//! Carrying a store elsewhere: the files that it consists of, and giving copies of them another uuid.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::MutexGuard;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::engine::{Maintenance, Store};
use super::layout::{self, DESCRIPTION, MODEL_DIR};
use super::record::RecordHeader;
use super::segment::{
    LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName, SegmentReader, Step, encode_header,
};
use super::segments::SegmentState;
use super::storage::Storage;
use super::{Result, StoreError};

/// Bytes that are written at once when a segment is written anew.
const PIECE: usize = 1 << 20;

/// A file of a store: its path under the root, and how many of its bytes belong to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFile {
    pub path: String,
    pub len: u64,
}

/// The files of a store as they were at one moment. None of them is removed or changed while this is
/// held; what is written meanwhile is not part of it. Checkpoints, reclaiming and closing wait.
pub struct Held<'a> {
    _maintenance: MutexGuard<'a, Maintenance>,
    held: &'a AtomicBool,
    files: Vec<StoreFile>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.held.store(false, SeqCst);
    }
}

impl Held<'_> {
    /// The files without the description.
    pub fn files(&self) -> &[StoreFile] {
        &self.files
    }
}

impl Store {
    /// Holds the store as it is after the last commit. Everything in it is durable on return.
    pub fn hold(&self) -> Result<Held<'_>> {
        let maintenance = self.maintenance.lock();
        // A transaction is either in the journal as a whole, with the blocks that it shows, or not at all.
        let segments = {
            let _commit = self.commit.lock();
            self.log.segments()
        };
        if !self.is_read_only() {
            self.sync()?;
            self.sync_blocks()?;
        }
        let mut files = Vec::new();
        for (seq, state) in segments {
            if is_needed(seq, &state, &maintenance) {
                self.add_segment(&mut files, seq, &state)?;
            }
        }
        for name in layout::model_names(&*self.log.storage)? {
            let path = format!("{MODEL_DIR}/{name}");
            if is_store_file(&path) {
                files.push(self.whole(path)?);
            }
        }
        self.held.store(true, SeqCst);
        Ok(Held {
            _maintenance: maintenance,
            held: &self.held,
            files,
        })
    }

    fn add_segment(
        &self,
        files: &mut Vec<StoreFile>,
        seq: u64,
        state: &SegmentState,
    ) -> Result<()> {
        let kind = state.kind;
        let name = SegmentName { seq, kind };
        if kind != SegmentKind::Checkpoint {
            let (path, len) = (name.path(), state.len);
            files.push(StoreFile { path, len });
            return Ok(());
        }
        for path in [name.path(), name.copy_path()] {
            let exists = self.log.storage.exists(&path);
            if exists.map_err(StoreError::io("stat", &path))? {
                files.push(self.whole(path)?);
            }
        }
        Ok(())
    }

    fn whole(&self, path: String) -> Result<StoreFile> {
        let file = self.log.storage.open(&path, false);
        let len = file
            .and_then(|file| file.size())
            .map_err(StoreError::io("open", &path))?;
        Ok(StoreFile { path, len })
    }
}

/// Whether the next opening would read a segment, or a file may show a block in it.
fn is_needed(seq: u64, state: &SegmentState, maintenance: &Maintenance) -> bool {
    match state.kind {
        SegmentKind::Checkpoint => seq == maintenance.checkpoint_seq,
        SegmentKind::Journal => state.live > 0 || seq >= maintenance.checkpoint.replay.seq,
        SegmentKind::Blocks => state.live > 0,
    }
}

/// Whether a path under the root of a store is that of a segment or a model.
pub fn is_store_file(path: &str) -> bool {
    match path.split_once('/') {
        Some((LOG_DIR, name)) => segment_of(name).is_some(),
        Some((MODEL_DIR, name)) => layout::is_model_name(name),
        _ => false,
    }
}

/// The segment that a file name in the log stands for, be it a first or a second copy.
fn segment_of(file_name: &str) -> Option<SegmentName> {
    SegmentName::parse(file_name).or_else(|| SegmentName::parse_copy(file_name))
}

/// The bytes of the description of a store.
pub fn description_bytes(storage: &dyn Storage) -> Result<Vec<u8>> {
    layout::description_bytes(storage)
}

/// The uuid that a description tells. A newer format and unknown features are errors.
pub fn uuid_of_description(place: &str, text: &[u8]) -> Result<Uuid> {
    Ok(layout::parse_description(place, text)?.uuid)
}

/// Verifies the checksums of all records of a segment, as far as it belongs to the store; models are
/// verified by whoever loads them.
pub fn verify_file(storage: &dyn Storage, store: Uuid, file: &StoreFile) -> Result<()> {
    walk(storage, store, file, &mut |_, _, _| Ok(()))
}

type Visit<'a> = &'a mut dyn FnMut(u64, RecordHeader, &[u8]) -> Result<()>;

fn walk(storage: &dyn Storage, store: Uuid, file: &StoreFile, visit: Visit<'_>) -> Result<()> {
    let path = &file.path;
    let name = path.strip_prefix(LOG_DIR).and_then(|n| n.strip_prefix('/'));
    let Some(name) = name.and_then(segment_of) else {
        return Ok(());
    };
    let mut reader = SegmentReader::open_at(storage, store, name, path.clone())?;
    if reader.len < file.len {
        let why = format!("it ends {} bytes too early", file.len - reader.len);
        return Err(StoreError::damaged("segment", path.clone(), why));
    }
    reader.len = file.len;
    reader.check_header()?;
    loop {
        match reader.step()? {
            Step::Record {
                offset,
                header,
                body,
            } => visit(offset, header, body)?,
            Step::End => return Ok(()),
            Step::Bad { offset, why } => {
                let place = format!("{path}, offset {offset}");
                return Err(StoreError::damaged("record", place, why));
            }
        }
    }
}

/// Writes a segment anew as one of another store; other files stay as they are. Lengths and places of
/// records stay the same; their checksums, which begin with the uuid, do not.
pub fn change_uuid(storage: &dyn Storage, file: &StoreFile, from: Uuid, to: Uuid) -> Result<()> {
    let path = &file.path;
    let name = path.strip_prefix(LOG_DIR).and_then(|n| n.strip_prefix('/'));
    let Some(name) = name.and_then(segment_of) else {
        return Ok(());
    };
    let temporary = format!("{path}.tmp");
    let mut reader = SegmentReader::open_at(storage, from, name, path.clone())?;
    let lsn = reader.check_header()?;
    let out = storage
        .create(&temporary)
        .map_err(StoreError::io("create", &temporary))?;
    let mut bytes = encode_header(name, to, lsn).to_vec();
    let mut written = 0;
    let mut flush = |bytes: &mut Vec<u8>| -> Result<()> {
        let done = out.write_at(written, &[bytes]);
        done.map_err(StoreError::io("write", &temporary))?;
        written += bytes.len() as u64;
        bytes.clear();
        Ok(())
    };
    let mut end = SEGMENT_HEADER_LEN;
    walk(storage, from, file, &mut |offset, header, body| {
        let place = super::record::Place {
            store: to,
            seq: name.seq,
            offset,
        };
        bytes.extend_from_slice(&header.encode(place, &[body]));
        bytes.extend_from_slice(body);
        end = offset + header.record_len();
        match bytes.len() >= PIECE {
            true => flush(&mut bytes),
            false => Ok(()),
        }
    })?;
    flush(&mut bytes)?;
    debug_assert_eq!(end, written);
    out.sync_data()
        .map_err(StoreError::io("fdatasync", &temporary))?;
    storage
        .rename(&temporary, path)
        .map_err(StoreError::io("rename", path))
}

/// Makes a directory with all files of a store a store: writes its description, durably, as the last thing.
pub fn finish(storage: &dyn Storage, description: &[u8], uuid: Option<Uuid>) -> Result<()> {
    let mut description = layout::parse_description(DESCRIPTION, description)?;
    description.uuid = uuid.unwrap_or(description.uuid);
    layout::rewrite_description(storage, &description)
}
