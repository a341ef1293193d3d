//! The train layer.
