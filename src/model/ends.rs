//! End-of-token decisions: whether a token that has longer ones goes on.
//!
//! A small mixer of its own joins what the network says, whether the matched earlier occurrence has a token
//! boundary here, how often the token goes on, bit histories of two contexts, and the outlook: what the other
//! experts of bytes give to the bytes with which it would go on. A one is "goes on".

use super::contexts::mix as hash;
use super::logistic::Logistic;
use super::matcher::LENGTH_BUCKETS;
use super::mixer::{learn_weight, small_dot};
use super::overlay::{Overlay, Place};
use super::predictor::{Adaptation, MATCHERS, average};
use super::states::States;
use super::tables::BUCKET;

/// Inputs of the mixer, padded to a whole SIMD register.
pub const END_INPUTS: usize = 8;
/// Weight vectors of each set.
pub const END_VECTORS: usize = 64;
/// Sets of weight vectors: by network and matches, and by the outlook. The first models with a network have no
/// outlook, and the first set only.
pub const END_SETS: usize = 2;
/// Probabilities by matcher, length class, boundary and whether the predicted byte goes on with the token.
pub const END_MATCHES: usize = MATCHERS.len() * LENGTH_BUCKETS * 4;
/// Contexts with bit histories.
const HISTORIES: usize = 2;

/// What adapts of the end-of-token decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// One set behind the other.
    pub weights: Vec<[i32; END_INPUTS]>,
    pub matches: Vec<u16>,
    /// Probability of going on after each token.
    pub tokens: Vec<u16>,
    pub histories: Vec<[u16; 256]>,
}

impl Ends {
    /// Untrained values for a vocabulary of this many tokens; without an outlook as in the first models.
    pub fn new(vocabulary: usize, outlook: bool) -> Ends {
        let sets = if outlook { END_SETS } else { 1 };
        Ends {
            weights: vec![[(1 << 16) / 4; END_INPUTS]; sets * END_VECTORS],
            matches: vec![1 << 15; END_MATCHES],
            tokens: vec![1 << 15; vocabulary],
            histories: vec![[1 << 15; 256]; HISTORIES],
        }
    }

    /// Whether the outlook is asked for.
    pub fn has_outlook(&self) -> bool {
        self.sets() == END_SETS
    }

    fn sets(&self) -> usize {
        self.weights.len() / END_VECTORS
    }

    /// Memory in bytes.
    pub fn size(&self) -> usize {
        size_of_val(self.weights.as_slice())
            + size_of_val(self.matches.as_slice())
            + size_of_val(self.tokens.as_slice())
            + size_of_val(self.histories.as_slice())
    }
}

/// What a match says about an end.
#[derive(Debug, Clone, Copy)]
pub struct MatchedEnd {
    /// Its length class.
    pub length: usize,
    /// A token begins at the predicted byte.
    pub boundary: bool,
    /// Some longer token goes on with the predicted byte.
    pub goes_on: bool,
}

/// An end-of-token decision as it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Log-odds of going on; `None` where the network is not asked.
    pub network: Option<i32>,
    /// Log-odds of going on by the other experts of bytes; nothing where they are not asked.
    pub outlook: i32,
    /// Bytes of the token so far.
    pub bytes: usize,
    pub matches: [Option<MatchedEnd>; MATCHERS.len()],
    /// The token that may end here.
    pub token: u16,
    /// The token before it, and the last bytes.
    pub previous: u16,
    pub last: u64,
}

/// A decision under way, from `ask` to `learn`.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Probability of going on.
    pub p: u16,
    inputs: [i32; END_INPUTS],
    /// The vector of each set, and its prediction.
    vectors: [usize; END_SETS],
    stretched: [i32; END_SETS],
    matches: [Option<usize>; MATCHERS.len()],
    token: usize,
    places: [Place; HISTORIES],
    buckets: [[u8; BUCKET]; HISTORIES],
}

impl Question {
    /// The hashes of the contexts with bit histories.
    fn hashes(&self) -> [u64; HISTORIES] {
        let token = u64::from(self.token) + 1;
        [
            hash(token << 16 | u64::from(self.previous), 0xe4d0 << 48),
            hash(self.last & 0xff_ffff_ffff, token << 40 | 0xe4d1 << 48),
        ]
    }

    /// The vector of the first set: whether there is a network and how sure it is, and what the longest match says.
    fn matched_vector(&self) -> usize {
        let sure = match self.network.map(i32::abs) {
            None => 0,
            Some(..256) => 1,
            Some(..768) => 2,
            Some(_) => 3,
        };
        let longest = self.matches.iter().flatten().max_by_key(|m| m.length);
        let matched = longest.map_or(0, |m| {
            let long = 1 + usize::from(m.length >= 5) + usize::from(m.length >= 9);
            long * 4 + usize::from(m.boundary) * 2 + usize::from(m.goes_on)
        });
        sure * 16 + matched
    }

    /// The vector of the second set: the outlook in nats, and the bytes so far.
    fn outlook_vector(&self) -> usize {
        let class = ((self.outlook + 2048) / 256).clamp(0, 15) as usize;
        END_VECTORS + class * 4 + self.bytes.clamp(1, 4) - 1
    }
}

impl Ends {
    /// The probability that the token goes on.
    pub fn ask(
        &self,
        question: &Question,
        overlay: &mut Overlay,
        states: &States,
        logistic: Logistic,
    ) -> Answer {
        let mut inputs = [0; END_INPUTS];
        inputs[0] = question.network.unwrap_or(0);
        let mut matches = [None; MATCHERS.len()];
        for (m, matched) in question.matches.iter().enumerate() {
            let Some(matched) = matched else { continue };
            let class = (m * LENGTH_BUCKETS + matched.length) * 4;
            let slot = class + usize::from(matched.boundary) * 2 + usize::from(matched.goes_on);
            inputs[1 + m] = i32::from(logistic.stretch(self.matches[slot]));
            matches[m] = Some(slot);
        }
        let token = usize::from(question.token);
        inputs[3] = i32::from(logistic.stretch(self.tokens[token]));
        let claimed = question
            .hashes()
            .map(|hash| overlay.claim::<false>(hash, states));
        for (context, (_, bucket)) in claimed.iter().enumerate() {
            let p = self.histories[context][usize::from(bucket[1])];
            inputs[4 + context] = i32::from(logistic.stretch(p));
        }
        inputs[6] = 256;
        inputs[7] = question.outlook;
        let vectors = [question.matched_vector(), question.outlook_vector()];
        let mut stretched = [0; END_SETS];
        for (x, &vector) in stretched.iter_mut().zip(&vectors).take(self.sets()) {
            *x = small_dot(&self.weights[vector], &inputs);
        }
        let mean = stretched.iter().sum::<i32>() / self.sets() as i32;
        Answer {
            p: logistic.squash(mean),
            inputs,
            vectors,
            stretched,
            matches,
            token,
            places: claimed.map(|(place, _)| place),
            buckets: claimed.map(|(_, bucket)| bucket),
        }
    }

    /// Learns what the decision was.
    pub fn learn(
        &mut self,
        answer: &Answer,
        bit: u32,
        adaptation: Adaptation,
        overlay: &mut Overlay,
        states: &States,
        logistic: Logistic,
    ) {
        let target = (bit as i32) << 16;
        for (&vector, &x) in answer
            .vectors
            .iter()
            .zip(&answer.stretched)
            .take(self.sets())
        {
            let error = ((target - i32::from(logistic.squash(x))) * adaptation.mixer.first) >> 8;
            for (weight, &input) in self.weights[vector].iter_mut().zip(&answer.inputs) {
                learn_weight(weight, error, input);
            }
        }
        for slot in answer.matches.into_iter().flatten() {
            average(&mut self.matches[slot], bit, adaptation.histories);
        }
        average(&mut self.tokens[answer.token], bit, adaptation.histories);
        for (context, place) in answer.places.iter().enumerate() {
            let mut bucket = answer.buckets[context];
            let history = &mut self.histories[context][usize::from(bucket[1])];
            average(history, bit, adaptation.histories);
            bucket[1] = states.next(bucket[1], bit);
            overlay.put(*place, &bucket);
        }
    }
}
