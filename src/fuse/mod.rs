//! The fuse layer.
