//! Status figures, and the socket by which commands talk to a running daemon.

mod status;

pub use status::{
    CacheStatus, CodecUsage, ExtentInfo, FileInfo, IoStatus, Progress, SettleStatus, Status, ratio,
};
