//! The model: experts that predict the next binary decision, and the mixer that joins them.
//!
//! A [`Model`] is immutable and shared by all groups; a [`predictor::State`] is what one group has
//! learned. Everything that can influence a coded probability is an integer (docs/exactness.md).

pub mod contexts;
mod error;
mod file;
pub(crate) mod fuzz;
pub mod logistic;
pub mod matcher;
pub mod mixer;
pub mod network;
pub mod overlay;
pub mod predictor;
pub mod states;
pub mod tables;
pub mod tokenizer;
pub mod vocabulary;

pub use error::ModelError;
pub use file::{ModelInfo, hash_of};

use predictor::{Adaptation, Params, State};
use tables::Tables;
use tokenizer::Tokenizer;

/// Names a model: the first 16 bytes of the BLAKE3 hash of its file.
pub type ModelHash = [u8; 16];

/// Bytes that a group's overlay has room for beside its history, when it has an anchor.
const ROOM_AFTER_ANCHOR: usize = 32 << 10;

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    pub hash: ModelHash,
    pub info: ModelInfo,
    pub tokenizer: Tokenizer,
    /// Common strings of the training data; the dictionary of the zstd codec.
    pub dictionary: Vec<u8>,
    tables: Tables,
    /// Stretched value of every slot code; code 0 is "never trained" and worth nothing.
    logits: [i16; 256],
    params: Params,
    adaptation: Adaptation,
}

impl Model {
    /// The state at the start of a group of up to `bytes` bytes without history.
    pub fn fresh(&self, bytes: usize) -> State {
        State::new(self.params.clone(), self.adaptation, bytes)
    }

    /// Replaces the parameters that groups start from.
    pub fn set_params(&mut self, params: Params) {
        self.params = params;
    }

    /// The state after learning an anchor. It does not depend on the groups that will start there.
    pub fn after(&self, anchor: &[u8]) -> State {
        let state = State::new(
            self.params.clone(),
            self.adaptation,
            anchor.len() + ROOM_AFTER_ANCHOR,
        );
        let mut predictor = predictor::Predictor::new(self, state);
        let mut teacher = Teacher;
        for &byte in anchor {
            predictor.byte(&mut teacher, byte);
        }
        predictor.into_state()
    }
}

/// A coder that codes nothing: the predictor learns bytes that are known already.
struct Teacher;

impl predictor::BitCoder for Teacher {
    fn code(&mut self, _p: u16, bit: u32) -> u32 {
        bit
    }
}

/// A coder that only adds up what coding would cost.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cost {
    pub bits: f64,
}

impl predictor::BitCoder for Cost {
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        let p = f64::from(p) / 65536.0;
        self.bits -= if bit == 1 { p } else { 1.0 - p }.log2();
        bit
    }
}
