//! What is asked of scrubbing and reclaiming, and what they say about themselves.

use serde::{Deserialize, Serialize};

/// What a scrub is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubAction {
    /// Begins a scrub, or goes on with one that is paused.
    Start,
    Pause,
    /// Goes on with a paused scrub.
    Resume,
    /// Ends it before its time.
    Stop,
    /// Only asks how it stands.
    Status,
}

/// How a scrub is to work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubOptions {
    /// Verify only the checksums of records, without decoding blocks.
    pub fast: bool,
    /// Most bytes per second that are read, if there is a limit.
    pub rate: Option<u64>,
}

/// Whether a scrub is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubState {
    #[default]
    Idle,
    Running,
    Paused,
}

impl ScrubState {
    pub fn name(self) -> &'static str {
        match self {
            ScrubState::Idle => "idle",
            ScrubState::Running => "running",
            ScrubState::Paused => "paused",
        }
    }
}

/// A scrub under way, or the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubStatus {
    pub state: ScrubState,
    pub fast: bool,
    /// Bytes per second, if there is a limit.
    pub rate: Option<u64>,
    /// Stored bytes that were verified: the log, the models, and unless it is a fast one the blocks
    /// once more, decoded.
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub records: u64,
    /// Blocks that were decoded.
    pub blocks: u64,
    /// Damaged places, those from before a remount included.
    pub errors: u64,
    /// Seconds since 1970 at which a scrub last came to its end.
    pub last_completed: Option<u64>,
    /// Damaged places that the last complete one found.
    pub last_errors: u64,
    /// The first hundred damaged places that were found since the mount.
    pub findings: Vec<ScrubFinding>,
    /// Why it ended before its time.
    pub failed: Option<String>,
}

impl ScrubStatus {
    /// Neither finished nor stopped.
    pub fn is_active(&self) -> bool {
        self.state != ScrubState::Idle
    }
}

/// One damaged place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubFinding {
    /// Path of the segment, or of the model, under the root of the store.
    pub segment: String,
    pub offset: u64,
    pub block: Option<u64>,
    pub what: String,
    /// What applications lose: at most sixteen parts of files.
    pub files: Vec<FilePart>,
    /// Parts of files that are hit, listed or not.
    pub parts: u64,
}

/// A part of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilePart {
    /// From the root of the file system.
    pub path: String,
    pub offset: u64,
    pub len: u64,
}

/// Reclaiming since the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReclaimStatus {
    pub running: bool,
    /// Bytes of segments that were given back to the disk.
    pub freed_bytes: u64,
    /// Live bytes that were copied for it.
    pub copied_bytes: u64,
}
