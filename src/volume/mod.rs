//! The volume layer.
