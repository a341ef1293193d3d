//! What a daemon can be asked for.

use thiserror::Error;

use super::{
    AgainStatus, FileInfo, FileUsage, ReloadReport, ScrubAction, ScrubOptions, ScrubStatus, Status,
};
use crate::store::carry::StoreFile;
use std::time::Duration;

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

/// What happens while the files of a store are held.
pub type WhileHeld<'a> = dyn FnMut(&[StoreFile], &dyn Fn() -> bool) + 'a;

/// The daemon's side of the control socket.
pub trait Service: Send + Sync {
    fn status(&self) -> Result<Status, ServiceError>;

    /// Returns when everything that was staged or dirty at the time of the call is settled.
    /// `progress` gets (done, total) bytes from time to time.
    fn settle(&self, progress: &dyn Fn(u64, u64)) -> Result<(), ServiceError>;

    /// Codes the data of these files and trees again. With `progress`, which gets bytes that are done and
    /// all of them, it returns at the end, otherwise at once.
    fn settle_again(
        &self,
        inos: &[u64],
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<AgainStatus, ServiceError>;

    /// Makes everything durable and holds up all changes until the thaw, or for so long at most. Returns
    /// the number of the freeze.
    fn freeze(&self, timeout: Duration) -> Result<u64, ServiceError>;

    /// Ends the freeze of this number, or whichever there is.
    fn thaw(&self, number: Option<u64>) -> Result<(), ServiceError>;

    /// Starts, pauses, resumes or stops scrubbing, or only asks how it stands. Returns at once.
    fn scrub(
        &self,
        action: ScrubAction,
        options: ScrubOptions,
    ) -> Result<ScrubStatus, ServiceError>;

    /// Gives back the space of dead data; returns bytes given back and live bytes copied for it.
    /// `progress` gets bytes given back and those that are dead.
    fn reclaim(&self, progress: &dyn Fn(u64, u64)) -> Result<(u64, u64), ServiceError>;

    /// Hands the files of the store to `held`, and holds them as they are until it returns. It gets a
    /// question besides: once the answer is true, it is to return soon.
    fn hold(&self, held: &mut WhileHeld<'_>) -> Result<(), ServiceError>;
    /// Reads the options of the mount again, under those given or those it has, and applies what can be
    /// changed while it is there.
    fn reload(&self, options: Option<Vec<String>>) -> Result<ReloadReport, ServiceError>;

    fn file_info(&self, ino: u64) -> Result<FileInfo, ServiceError>;

    /// How each of these files is stored, in the same order.
    fn usage(&self, inos: &[u64]) -> Vec<FileUsage>;
}
