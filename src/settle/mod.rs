//! The settle layer.
