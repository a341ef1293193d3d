//! Status figures, and the socket by which commands talk to a running daemon.

pub mod client;
pub mod mountinfo;
pub(crate) mod protocol;
mod reload;
mod scrub;
mod server;
mod service;
mod socket;
mod status;

pub use reload::ReloadReport;
pub use scrub::{
    FilePart, ReclaimStatus, ScrubAction, ScrubFinding, ScrubOptions, ScrubState, ScrubStatus,
};
pub use server::Server;
pub use service::{Service, ServiceError};
pub use socket::{prepare_runtime_dir, read_only_socket, store_socket};
pub use status::{
    CacheStatus, CodecUsage, ExtentInfo, FileInfo, IoStatus, Progress, SettleStatus, Status, ratio,
};
