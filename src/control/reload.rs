//! What reading the options of a mount again has changed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Names of options that have other values than before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// In force from now on.
    pub changed: Vec<String>,
    /// Only count when the store is mounted again.
    pub kept: Vec<String>,
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.changed.as_slice() {
            [] => write!(f, "nothing has changed")?,
            names => write!(f, "changed {}", names.join(", "))?,
        }
        match self.kept.as_slice() {
            [] => Ok(()),
            names => write!(f, "; only a new mount changes {}", names.join(", ")),
        }
    }
}
