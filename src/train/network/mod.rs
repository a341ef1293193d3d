//! Training of the network expert with candle, on the processor or on CUDA.

pub mod export;
pub mod float;
pub mod fused;
pub mod optimiser;
