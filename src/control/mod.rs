//! Status figures, and the socket by which commands talk to a running daemon.

mod activity;
pub mod client;
mod http;
pub mod metrics;
pub mod mountinfo;
pub(crate) mod protocol;
mod reload;
mod scrub;
mod server;
mod service;
mod socket;
mod status;
mod usage;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use activity::{ErrorStatus, Latency, LatencyStatus};
pub use http::MetricsServer;
pub use reload::ReloadReport;
pub use scrub::{
    FilePart, ReclaimStatus, ScrubAction, ScrubFinding, ScrubOptions, ScrubState, ScrubStatus,
};
pub use server::Server;
pub use service::{Service, ServiceError, WhileHeld};
pub use socket::{prepare_runtime_dir, read_only_socket, store_socket};
pub use status::{
    AgainStatus, CacheStatus, CodecUsage, ExtentInfo, FileInfo, FrozenStatus, IoStatus, Progress,
    SettleStatus, Status, ratio,
};
pub use usage::{FileUsage, MAX_INODES, USAGE_ATTRIBUTE};

/// Where metrics are to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket at an absolute path.
    Unix(PathBuf),
    /// A port of a loopback address.
    Tcp(SocketAddr),
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            MetricsAddress::Tcp(address) => address.fmt(f),
        }
    }
}
