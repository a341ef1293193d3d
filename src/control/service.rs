//! What a daemon can be asked for.

use thiserror::Error;

use super::{FileInfo, ReloadReport, ScrubAction, ScrubOptions, ScrubStatus, Status};

/// A request that the daemon could not fulfil.
#[derive(Debug, Clone, Error)]
#[error("{message}")]
pub struct ServiceError {
    pub message: String,
    pub errno: Option<i32>,
}

impl ServiceError {
    pub fn new(message: impl std::fmt::Display) -> ServiceError {
        ServiceError {
            message: message.to_string(),
            errno: None,
        }
    }
}

/// The daemon's side of the control socket.
pub trait Service: Send + Sync {
    fn status(&self) -> Result<Status, ServiceError>;

    /// Returns when everything that was staged or dirty at the time of the call is settled.
    /// `progress` gets (done, total) bytes from time to time.
    fn settle(&self, progress: &dyn Fn(u64, u64)) -> Result<(), ServiceError>;

    /// Starts, pauses, resumes or stops scrubbing, or only asks how it stands. Returns at once.
    fn scrub(
        &self,
        action: ScrubAction,
        options: ScrubOptions,
    ) -> Result<ScrubStatus, ServiceError>;

    /// Gives back the space of dead data; returns bytes given back and live bytes copied for it.
    /// `progress` gets bytes given back and those that are dead.
    fn reclaim(&self, progress: &dyn Fn(u64, u64)) -> Result<(u64, u64), ServiceError>;

    /// Reads the options of the mount again, under those given or those it has, and applies what can be
    /// changed while it is there.
    fn reload(&self, options: Option<Vec<String>>) -> Result<ReloadReport, ServiceError>;

    fn file_info(&self, ino: u64) -> Result<FileInfo, ServiceError>;
}
