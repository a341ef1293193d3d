//! Which stores this program reads: the one place that decides it.
//!
//! docs/format.md says what a version and a feature are, and how a new one comes in.

use super::{Result, StoreError};

/// Version of everything on disk. Stores of a newer version are refused.
pub const FORMAT_VERSION: u32 = 1;

/// Features that a store may name and this program knows.
const FEATURES: [&str; 0] = [];

/// Err if what lies at `place` was written in a newer version.
pub(crate) fn check_version(place: &str, found: u32) -> Result<()> {
    match found > FORMAT_VERSION {
        true => Err(StoreError::NewerFormat {
            path: place.to_owned(),
            found,
            known: FORMAT_VERSION,
        }),
        false => Ok(()),
    }
}

/// Err if a store needs a feature that this program does not have.
pub(crate) fn check_features(place: &str, features: &[String]) -> Result<()> {
    match features
        .iter()
        .find(|name| !FEATURES.contains(&name.as_str()))
    {
        Some(feature) => Err(StoreError::UnknownFeature {
            path: place.to_owned(),
            feature: feature.clone(),
        }),
        None => Ok(()),
    }
}
