//! Moving in and out: trees of files between directories and volumes, and whole stores over pipes.
//!
//! [`copy`] carries a tree from any [`Tree`] to any [`Target`]: a directory of the host, which may be a
//! mount of s2sfs, or a volume that nobody has mounted. [`send()`] and [`receive()`] carry the files of a
//! store as they are, in the stream that docs/format.md describes.

mod attributes;
mod copy;
mod digest;
mod files;
mod host;
mod links;
mod measure;
mod options;
mod pattern;
mod queue;
mod receive;
mod report;
mod send;
pub mod tree;
mod volume;
pub mod wire;

pub use copy::{Watch, copy};
pub use host::HostTree;
pub use measure::measure;
pub use options::{CopyOptions, Verify};
pub use pattern::Pattern;
pub use receive::{Received, receive};
pub use report::{Failed, Report};
pub use send::send;
pub use tree::{CopyError, Target, Tree, TreeError};
pub use volume::VolumeTree;
pub use wire::WireError;

/// Names of files that are not complete yet begin with this. Whoever finds one in the target of an
/// earlier copy may delete it.
pub const PARTIAL: &[u8] = b".s2sfs-partial.";
