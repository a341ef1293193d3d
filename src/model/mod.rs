//! The model: experts that predict the next binary decision, and the mixer that joins them.
//!
//! A [`Model`] is immutable and shared by all groups; a [`predictor::State`] is what one group has
//! learned. Everything that can influence a coded probability is an integer (docs/exactness.md).

pub mod adaptive;
pub(crate) mod bench;
pub mod bytecode;
pub mod contexts;
pub mod ends;
mod error;
mod file;
mod file_network;
pub(crate) mod fuzz;
pub mod latents;
pub mod logistic;
pub mod masses;
pub mod matcher;
pub mod merges;
pub mod mixer;
pub mod network;
pub mod overlay;
pub mod predictor;
pub mod runs;
pub mod states;
pub mod tables;
pub mod tokenizer;
pub mod tokens;
pub mod vocabulary;
pub mod walk;

use std::sync::Arc;

pub use error::ModelError;
pub use file::{ModelInfo, base_of, hash_of, hex};
pub use file_network::NetworkParts;

use adaptive::Histories;
use bytecode::ByteCode;
use latents::LatentPrior;
use merges::Merges;
use network::Network;
use predictor::{Adaptation, Params, Predictor, State};
use tables::Tables;
use tokenizer::Tokenizer;
use tokens::PlainCurves;
use vocabulary::Vocabulary;
use walk::Division;

/// Names a model: the first 16 bytes of the BLAKE3 hash of its file.
pub type ModelHash = [u8; 16];

/// Bytes that a group's overlay has room for beside its history, when it has an anchor; less in models with runs, whose groups
/// start the sooner.
const ROOM_AFTER_ANCHOR: usize = 32 << 10;
const ROOM_WITH_RUNS: usize = 18 << 10;

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    pub hash: ModelHash,
    pub info: ModelInfo,
    pub tokenizer: Tokenizer,
    /// Common strings of the training data; the dictionary of the zstd codec.
    pub dictionary: Arc<Vec<u8>>,
    tables: Arc<Tables>,
    /// How bytes are divided into decisions; the tables know bytes by it.
    code: Arc<ByteCode>,
    /// Stretched value of every slot code; code 0 is "never trained" and worth nothing.
    logits: [i16; 256],
    params: Params,
    adaptation: Adaptation,
    /// The contexts that have histories.
    histories: Histories,
    /// The model whose tables, logits and dictionary these are, if they are not its own.
    base: Option<ModelHash>,
    network: Option<Expert>,
    /// The parameters of the base, for what its experts expect without the network.
    base_params: Option<Arc<Params>>,
}

/// The network of a model, with what turns its logits into decisions.
#[derive(Debug)]
pub struct Expert {
    pub network: Arc<Network>,
    pub vocabulary: Vocabulary,
    pub merges: Merges,
    pub division: Division,
    /// Length class of a match from which on the heads are not evaluated; [`matcher::LENGTH_BUCKETS`] if they
    /// always are.
    pub skip: usize,
    /// Refinement of a model that leaves the table experts out.
    pub plain: Option<Box<PlainCurves>>,
    /// What latents cost; where the network has an encoder for them.
    pub prior: Option<LatentPrior>,
}

impl Model {
    /// The state at the start of a group of up to `bytes` bytes without history.
    pub fn fresh(&self, bytes: usize) -> State {
        self.starting_with(self.params.clone(), self.adaptation, bytes)
    }

    /// [`Model::fresh`] in the memory of a state that is not needed any more.
    pub fn fresh_in(&self, spare: State, bytes: usize) -> State {
        spare.renewed(&self.params, self.adaptation, self.histories, bytes)
    }

    /// [`Model::fresh`] with other parameters, for training them.
    pub fn starting_with(&self, params: Params, adaptation: Adaptation, bytes: usize) -> State {
        State::new(params, adaptation, self.histories, bytes)
    }

    /// How fast groups adapt.
    pub fn adaptation(&self) -> Adaptation {
        self.adaptation
    }

    /// How bytes are divided into decisions.
    pub fn code(&self) -> &ByteCode {
        &self.code
    }

    /// The contexts that have histories.
    pub fn histories(&self) -> Histories {
        self.histories
    }

    /// Replaces the parameters that groups start from.
    pub fn set_params(&mut self, params: Params) {
        self.params = params;
    }

    /// The network of the model, if it has one.
    pub fn network(&self) -> Option<&Expert> {
        self.network.as_ref()
    }

    /// The network of the model.
    ///
    /// # Errors
    /// If it has none.
    pub fn expert(&self) -> Result<&Expert, ModelError> {
        let none = || ModelError::Input("the model has no network".into());
        self.network.as_ref().ok_or_else(none)
    }

    /// The model whose tables, logits and dictionary this one uses, if they are not its own.
    pub fn base(&self) -> Option<ModelHash> {
        self.base
    }

    /// Whether groups can start from an anchor: without table experts there is nothing to learn from one.
    pub fn has_history(&self) -> bool {
        self.network
            .as_ref()
            .is_none_or(|expert| expert.plain.is_none())
    }

    /// The state after learning an anchor. It does not depend on the groups that will start there.
    pub fn after(&self, anchor: &[u8]) -> State {
        let room = match self.adaptation.runs {
            Some(_) => ROOM_WITH_RUNS,
            None => ROOM_AFTER_ANCHOR,
        };
        let state = self.fresh(anchor.len() + room);
        match &self.network {
            None => {
                let mut predictor = Predictor::new(self, state);
                for &byte in anchor {
                    predictor.byte(&mut predictor::Silent, byte);
                }
                predictor.into_state()
            }
            Some(expert) => self.learned(state, expert, &expert.merges.tokens(anchor)),
        }
    }

    /// The state at the start of a group with these latents: what they stand for has been learned. `start` makes the
    /// state before that, with room for so many bytes more than the group has.
    pub fn begin(&self, latents: &[u16], start: impl FnOnce(usize) -> State) -> State {
        let Some(expert) = &self.network else {
            return start(0);
        };
        let prior = expert.prior.as_ref();
        let text = prior.map_or_else(Vec::new, |prior| prior.text(latents));
        let len = |&token: &u16| expert.vocabulary.token(token).len();
        let state = start(text.iter().map(len).sum());
        self.learned(state, expert, &text)
    }

    /// The state after learning tokens that are known.
    fn learned(&self, state: State, expert: &Expert, tokens: &[u16]) -> State {
        let mut predictor = Predictor::new(self, state);
        for &token in tokens {
            for (at, &byte) in expert.vocabulary.token(token).iter().enumerate() {
                predictor.note_boundary(at == 0);
                predictor.learn(byte);
            }
        }
        predictor.into_state()
    }
}

/// A coder that only adds up what coding would cost.
#[derive(Debug, Default, Clone, Copy)]
pub struct Cost {
    pub bits: f64,
}

/// The cost of one decision in bits.
fn bits_of(p: u16, bit: u32) -> f64 {
    let p = f64::from(p) / 65536.0;
    -if bit == 1 { p } else { 1.0 - p }.log2()
}

impl predictor::BitCoder for Cost {
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        self.bits += bits_of(p, bit);
        bit
    }
}

/// A coder that adds up costs by what they are spent on; slower than [`Cost`].
#[derive(Debug, Default, Clone, Copy)]
pub struct Costs {
    /// Everything that is coded, ends included.
    pub bits: f64,
    /// End-of-token decisions.
    pub ends: f64,
    /// What bits that the token leaves no choice about would have cost.
    pub saved: f64,
}

impl std::ops::AddAssign for Costs {
    fn add_assign(&mut self, other: Costs) {
        self.bits += other.bits;
        self.ends += other.ends;
        self.saved += other.saved;
    }
}

impl predictor::BitCoder for Costs {
    const MEASURES: bool = true;

    fn code(&mut self, p: u16, bit: u32) -> u32 {
        self.bits += bits_of(p, bit);
        bit
    }

    fn code_end(&mut self, p: u16, bit: u32) -> u32 {
        self.ends += bits_of(p, bit);
        self.code(p, bit)
    }

    fn saved(&mut self, p: u16, bit: u32) {
        self.saved += bits_of(p, bit);
    }
}
