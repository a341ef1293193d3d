//! What a store and its daemon say about themselves: the figures behind `s2sfs status` and `s2sfs info`.
//!
//! Field names are the keys of `s2sfs status --json` and are used by scripts: add, never rename.

use super::activity::{ErrorStatus, LatencyStatus};
use super::scrub::{ReclaimStatus, ScrubStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// State of a store, mounted or not.
///
/// Everything in bytes unless its name says otherwise. `stored_bytes` and its parts are allocated
/// bytes (what `du` would count), so nothing of the file system's cost is hidden.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the program that answers.
    pub version: String,
    /// Process id of the daemon, absent when the store is not mounted.
    pub pid: Option<u32>,
    pub mounted: bool,
    pub mountpoint: Option<String>,
    pub store: String,
    pub uuid: String,
    pub format_version: u32,
    pub read_only: bool,

    pub files: u64,
    pub directories: u64,
    /// Sum of the file contents that applications see, holes not counted.
    pub logical_bytes: u64,
    /// Everything in STORE except models.
    pub stored_bytes: u64,
    pub model_bytes: u64,
    /// Payload bytes of staged blocks that still await settling.
    pub staged_bytes: u64,
    /// Bytes in dirty buffers, not yet in the log.
    pub dirty_bytes: u64,
    pub index_bytes: u64,
    pub log_bytes: u64,
    /// Bytes of the log that belong to dead records and can be reclaimed.
    pub dead_bytes: u64,
    /// Free bytes of the file system that holds STORE.
    pub free_bytes: u64,
    /// logical_bytes / stored_bytes; 0 when nothing is stored.
    pub ratio: f64,

    /// Extents and bytes by name of the codec that holds them.
    pub codecs: BTreeMap<String, CodecUsage>,

    pub cache: CacheStatus,
    pub settle: SettleStatus,
    pub io: IoStatus,
    pub scrub: ScrubStatus,
    pub reclaim: ReclaimStatus,
    /// What `settle --again` is at, if it is at work.
    pub again: Option<AgainStatus>,
    /// Since when and for how long everything that changes files is held up, if it is.
    pub frozen: Option<FrozenStatus>,
    pub latency: LatencyStatus,
    pub errors: ErrorStatus,

    /// What evaluates the model, for example `tables`; as named by `model::`.
    pub engine: String,
    /// Name or hash of the model that new blocks are encoded with.
    pub model: String,
    pub threads: usize,
    pub uptime_seconds: f64,
    /// Why the store refuses changes, if it does.
    pub failed: Option<String>,
}

impl Status {
    /// Sets `ratio` from the byte counts.
    pub fn with_ratio(mut self) -> Self {
        self.ratio = ratio(self.logical_bytes, self.stored_bytes);
        self
    }
}

/// `logical / stored`, or 0 when nothing is stored.
pub fn ratio(logical: u64, stored: u64) -> f64 {
    if stored == 0 {
        0.0
    } else {
        logical as f64 / stored as f64
    }
}

/// Use of one codec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CodecUsage {
    /// Extents whose data lies in blocks of this codec.
    pub extents: u64,
    /// Decoded bytes that files show from these blocks.
    pub logical_bytes: u64,
    /// Payload bytes of the blocks.
    pub stored_bytes: u64,
}

/// The cache of decoded chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStatus {
    pub bytes: u64,
    pub limit_bytes: u64,
    pub hits: u64,
    pub misses: u64,
}

/// The pipeline from staged to settled blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettleStatus {
    /// Extents (or windows) that wait.
    pub queue_length: u64,
    /// Decoded bytes that wait.
    pub queue_bytes: u64,
    /// Decoded bytes settled since the mount.
    pub settled_bytes: u64,
    /// Decoded bytes per second of busy time, since the mount.
    pub bytes_per_second: f64,
}

/// What coding again has done so far, or in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgainStatus {
    /// Bytes of files that lie behind, and of all of them, holes included.
    pub done_bytes: u64,
    pub total_bytes: u64,
    /// Decoded bytes that were coded again, those that could stay as they were, and those that were changed by
    /// others at that moment.
    pub coded_bytes: u64,
    pub kept_bytes: u64,
    pub skipped_bytes: u64,
    /// Stored bytes of what was coded again or kept, before and after.
    pub before_bytes: u64,
    pub after_bytes: u64,
    /// Blocks that could not be coded again, and why the first one could not.
    pub failures: u64,
    pub first_failure: Option<String>,
    /// Requests that wait for this one.
    pub waiting: u64,
}

impl AgainStatus {
    /// Adds what another request has done; whether others wait stays as it was.
    pub fn add(&mut self, more: AgainStatus) {
        self.done_bytes += more.done_bytes;
        self.total_bytes += more.total_bytes;
        self.coded_bytes += more.coded_bytes;
        self.kept_bytes += more.kept_bytes;
        self.skipped_bytes += more.skipped_bytes;
        self.before_bytes += more.before_bytes;
        self.after_bytes += more.after_bytes;
        self.failures += more.failures;
        self.first_failure = self.first_failure.take().or(more.first_failure);
    }
}

/// A freeze.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FrozenStatus {
    /// Seconds since it began, and until it ends by itself.
    pub seconds: f64,
    pub seconds_left: f64,
}

/// Traffic since the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoStatus {
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Bytes that went through a decoder (cache misses).
    pub decoded_bytes: u64,
    /// Decoded bytes per second of the time that groups took, from when they were asked for.
    pub decode_bytes_per_second: f64,
}

/// What `s2sfs info FILE` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileInfo {
    pub ino: u64,
    pub size: u64,
    /// Decoded bytes that lie in blocks or staged data (holes not counted).
    pub logical_bytes: u64,
    /// This file's share of the blocks that hold it.
    pub stored_bytes: u64,
    pub ratio: f64,
    /// Bytes still in dirty buffers.
    pub dirty_bytes: u64,
    /// Bytes in staged blocks.
    pub staged_bytes: u64,
    pub codecs: BTreeMap<String, CodecUsage>,
    /// Models that the blocks of this file need.
    pub models: Vec<String>,
    pub extents: Vec<ExtentInfo>,
}

/// One extent of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExtentInfo {
    pub offset: u64,
    pub len: u64,
    pub block: u64,
    /// Offset of the extent's first byte inside the decoded block.
    pub skip: u64,
    pub codec: String,
    pub staged: bool,
    /// Payload bytes of the whole block, of which the extent may be a part.
    pub block_stored_bytes: u64,
    pub block_raw_bytes: u64,
    /// Bytes per group, 0 where the codec has no groups.
    pub group_bytes: u64,
    pub anchor: Option<u64>,
    /// Where the record of the block lies now: path of the segment under STORE, and offset in it.
    pub segment: String,
    pub segment_offset: u64,
}

/// Progress of a long operation, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}
