//! What `s2sfs du` asks about many files at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CodecUsage;

/// Most inodes of one request, so that request and reply stay short.
pub const MAX_INODES: usize = 2048;
/// Extended attribute with the [`FileUsage`] of a file as JSON, for those who may not use the socket.
pub const USAGE_ATTRIBUTE: &str = "user.s2sfs.usage";

/// How the data of one file is stored. While the file is written to, the figures may be of more than
/// one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileUsage {
    pub ino: u64,
    /// Bytes that are in memory only; no other figure counts them.
    #[serde(skip_serializing_if = "is_zero")]
    pub dirty_bytes: u64,
    /// This file's share of the staged blocks that hold it, part of what `codecs` counts.
    #[serde(skip_serializing_if = "is_zero")]
    pub staged_bytes: u64,
    /// By name of the codec, `lost` for ranges without data; `stored_bytes` is the file's share of its blocks.
    pub codecs: BTreeMap<String, CodecUsage>,
    /// Why there are no figures, if there are none: the file is gone, or its metadata is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl FileUsage {
    pub fn failed(ino: u64, error: impl std::fmt::Display) -> FileUsage {
        FileUsage {
            ino,
            error: Some(error.to_string()),
            ..FileUsage::default()
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}
