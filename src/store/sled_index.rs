//! The index of a store whose metadata does not fit memory.

/// sled as a map.
pub(crate) struct SledIndex;
