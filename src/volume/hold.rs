//! Holding everything as it is, for whoever copies the files of the store.

use super::{Result, Volume};
use crate::store::carry::Held;

impl Volume {
    /// Stages what was written so far and holds the files of the store as they are then. Writing goes on
    /// meanwhile; reclaiming, checkpoints and closing wait, so the holder lets go when
    /// [`Volume::is_stopping`] says so.
    pub fn hold(&self) -> Result<Held<'_>> {
        self.sync_everything()?;
        Ok(self.store()?.hold()?)
    }
}
