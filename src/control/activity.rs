//! How long things take, and how often they fail.

use serde::{Deserialize, Serialize};

use crate::latency::Times;

/// Times of one kind of work since the mount, in microseconds. Percentiles are upper bounds, at most a
/// quarter too large.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub count: u64,
    pub sum_micros: u64,
    pub p50_micros: u64,
    pub p90_micros: u64,
    pub p99_micros: u64,
    pub p999_micros: u64,
    pub max_micros: u64,
    /// Buckets that are not empty: the first microsecond past the bucket, and how many times fell into it.
    pub buckets: Vec<(u64, u64)>,
}

impl From<Times> for Latency {
    fn from(times: Times) -> Latency {
        Latency {
            count: times.count,
            sum_micros: times.sum,
            p50_micros: times.percentile(500),
            p90_micros: times.percentile(900),
            p99_micros: times.percentile(990),
            p999_micros: times.percentile(999),
            max_micros: times.longest,
            buckets: times.buckets,
        }
    }
}

/// How long applications wait, and the batches of settling.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyStatus {
    /// Reads that needed nothing but memory.
    pub read_cached: Latency,
    /// Reads for which something had to be decoded.
    pub read_decoded: Latency,
    /// Writes, with the wait for room in the dirty buffers.
    pub write: Latency,
    /// fsync, fdatasync, syncing the whole file system, and writes to files opened with O_SYNC.
    pub fsync: Latency,
    /// Batches of settling, each of up to 1024 windows: looking up, encoding, verifying and swapping.
    pub settle_batch: Latency,
}

impl LatencyStatus {
    /// All kinds with the names of their keys.
    pub fn all(&self) -> [(&'static str, &Latency); 5] {
        [
            ("read_cached", &self.read_cached),
            ("read_decoded", &self.read_decoded),
            ("write", &self.write),
            ("fsync", &self.fsync),
            ("settle_batch", &self.settle_batch),
        ]
    }
}

/// What went wrong since the mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorStatus {
    /// Requests that failed because the store did: damage, or an error of the disk. Applications got EIO.
    pub io: u64,
    /// Requests that failed because the disk is full.
    pub no_space: u64,
    /// Failures of settling: single blocks, or a step of a whole batch. What failed is tried again.
    pub settle: u64,
    /// The last failure of settling.
    pub last_settle: Option<String>,
}
