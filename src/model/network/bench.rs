//! What is measured of the network's kernels. See [`crate::benching`].

pub use super::simd::bench::Product;
