//! Trains what adapts: mixer weights, history and match probabilities and refinement curves, on data
//! that the tables never saw, coded exactly as groups of all sizes are.

use crate::model::adaptive::Histories;
use crate::model::bytecode::ByteCode;
use crate::model::mixer::Rates;
use crate::model::predictor::{Adaptation, Params, Predictor, State};
use crate::model::{Cost, Model};

use super::Progress;
use super::corpus::{Corpus, Piece, Random};

/// How groups adapt once the parameters are trained.
///
/// With tables that know bytes by a code there are fewer decisions to learn from, so each counts for more. With few
/// histories a model is to be fast, and most predictions are so good that the weights have nothing to learn from
/// them: measured, ignoring errors up to 1.2 % changes no size by 0.1 %.
pub fn adaptation(code: &ByteCode, histories: Histories) -> Adaptation {
    let (first, last, curves) = match code.is_plain() {
        true => (100, 12, 6),
        false => (150, 20, 5),
    };
    Adaptation {
        mixer: Rates { first, last },
        histories: 7,
        curves,
        least_error: match histories {
            Histories::All => 0,
            Histories::Lean => 300,
        },
        runs: None,
    }
}

/// Sizes of the groups that the parameters are trained on.
pub(super) const GROUPS: [usize; 6] = [512, 4 << 10, 16 << 10, 32 << 10, 32 << 10, 64 << 10];

/// Codes a group that starts from `state`; returns its cost in bits and the state afterwards.
pub fn cost_of(model: &Model, state: State, group: &[u8]) -> (f64, State) {
    let mut predictor = Predictor::new(model, state);
    let mut cost = Cost::default();
    for &byte in group {
        predictor.byte(&mut cost, byte);
    }
    (cost.bits, predictor.into_state())
}

/// The rates at `done` (0 to 1) of training: fast at first, slower than those `used` at the end.
pub(super) fn rates_at(done: f64, used: Adaptation) -> Adaptation {
    let decay = 1.0 - 0.9 * done;
    let shift = if done < 0.1 { 7 } else { 9 };
    let mixer = Rates {
        first: (80.0 * decay) as i32,
        last: (20.0 * decay) as i32 + 2,
    };
    Adaptation {
        mixer,
        histories: shift,
        curves: shift,
        least_error: used.least_error,
        runs: used.runs,
    }
}

/// Trains parameters for the tables of `model`, one group after the other.
pub fn train(
    model: &Model,
    corpus: &Corpus,
    pieces: &[Piece],
    random: &mut Random,
    progress: &Progress,
) -> Params {
    let total: usize = pieces.iter().map(|piece| piece.len as usize).sum();
    let mut params = Params::untrained(&model.adaptation());
    let (mut done, mut bits) = (0usize, 0f64);
    for &piece in pieces {
        let mut rest = corpus.bytes(piece);
        while !rest.is_empty() {
            let size = GROUPS[random.below(GROUPS.len())].min(rest.len());
            let (group, tail) = rest.split_at(size);
            let rates = rates_at(done as f64 / total as f64, model.adaptation());
            let state = model.starting_with(params, rates, size);
            let (cost, state) = cost_of(model, state, group);
            params = state.params;
            bits += cost;
            done += size;
            rest = tail;
        }
        progress.step("training the mixer", done, total, bits / done as f64);
    }
    params
}
