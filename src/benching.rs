//! Entry points for benchmarks: parts that are not public, made callable as they are. They change nothing.
//!
//! `make bench-kernels` measures their time, `make bench-instructions` counts their instructions.

pub use crate::codec::range_coder::{Decoder, Encoder};
pub use crate::model::bench::{
    Form, Histories, Learning, LookUps, Mixing, OPERATIONS, Product, Work, mixed, split,
};
pub use crate::store::bench::{Changes, Index, decode_record, encode_record};
