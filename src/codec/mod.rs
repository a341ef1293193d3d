//! Codecs: how the bytes of one extent become the payload of one block, and back.
//!
//! A payload names its codec in its first byte and stands alone, except for the model that it names
//! by hash and the anchor that it may name by block id.

mod error;
pub use error::CodecError;
