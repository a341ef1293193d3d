//! s2sfs: a FUSE file system that stores file contents compressed by a model.
//!
//! The layers, each of which knows only those below it:
//! `fuse` -> `volume` -> (`store`, `cache`, `settle`) -> `codec` -> `model`.

#[doc(hidden)]
pub mod benching;
pub mod cache;
pub mod cli;
pub mod codec;
pub mod control;
pub mod exit;
pub mod fault;
pub mod fuse;
#[doc(hidden)]
pub mod fuzzing;
pub mod latency;
pub mod logging;
pub mod model;
pub mod mount;
pub mod options;
pub mod settle;
pub mod store;
mod sync;
pub mod train;
pub mod transfer;
pub mod volume;
