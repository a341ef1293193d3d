//! Predicts the bytes of a group bit by bit from all experts, and learns from each bit.

mod outlook;

use std::ops::Deref;
use std::sync::Arc;

use super::Model;
use super::adaptive::{Histories, contexts};
use super::bytecode::{ByteCode, Spot};
use super::contexts::{CONTEXTS, Contexts, next_nibble};
use super::ends::{Answer, Ends, MatchedEnd, Question};
use super::logistic::{Logistic, STRETCH_MAX};
use super::matcher::{LENGTH_BUCKETS, Matcher};
use super::mixer::{INPUTS, Inputs, Mix, Rates, SETS, Weights};
use super::overlay::{Overlay, Place, lines_for};
use super::runs::{Foreseen, Outcomes, Runs};
use super::states::{States, states};
use super::tables::BUCKET;

/// Codes one binary decision: an encoder writes `bit`, a decoder ignores it and returns its own.
pub trait BitCoder {
    /// `p` is the probability of a one in units of 2^-16, within 1..=65535.
    fn code(&mut self, p: u16, bit: u32) -> u32;

    /// Codes an end-of-token decision; for coders that tell them apart.
    #[inline(always)]
    fn code_end(&mut self, p: u16, bit: u32) -> u32 {
        self.code(p, bit)
    }

    /// True for a coder that wants to know of decisions that need no code.
    const MEASURES: bool = false;

    /// A decision that needed no code; `p` is what would have been predicted.
    fn saved(&mut self, _p: u16, _bit: u32) {}
}

/// What the network adds to the predictions of the bits of a byte.
pub trait Guide {
    /// False if there is no network: nothing of it is compiled in.
    const NETWORK: bool;

    /// What is known of the next bit.
    fn ask(&mut self) -> Hint;

    /// What the bit was, if it was not forced.
    fn tell(&mut self, bit: u32);
}

/// What a [`Guide`] knows of a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// There is only one possibility; it is learned, but neither mixed nor coded.
    Forced(u32),
    /// The network's log-odds (0 where it is not asked) and the vector of its set in the mixer.
    Open { x: i32, vector: usize },
}

/// No network.
#[derive(Debug)]
struct Alone;

impl Guide for Alone {
    const NETWORK: bool = false;

    #[inline(always)]
    fn ask(&mut self) -> Hint {
        Hint::Open { x: 0, vector: 0 }
    }

    #[inline(always)]
    fn tell(&mut self, _bit: u32) {}
}

/// A byte that is known already: it is learned, and the mixer stays as it is.
struct Known {
    byte: u8,
    step: u32,
}

impl Guide for Known {
    const NETWORK: bool = true;

    #[inline(always)]
    fn ask(&mut self) -> Hint {
        self.step += 1;
        Hint::Forced(u32::from(self.byte) >> (8 - self.step) & 1)
    }

    #[inline(always)]
    fn tell(&mut self, _bit: u32) {}
}

/// A coder of decisions of which none needs code.
pub(super) struct Silent;

impl BitCoder for Silent {
    fn code(&mut self, _p: u16, bit: u32) -> u32 {
        bit
    }
}

/// Least lengths of the matches that the match experts look for in models without runs.
pub(super) const MATCHERS: [usize; 2] = [5, 10];
/// Contexts 0..ORDERS are the plain orders; the longest known one selects mixer weights.
pub const ORDERS: usize = 7;
/// Refinement curves: one for each hash of the newest byte and the bits so far.
pub const CURVES: usize = 4096;
/// Points of a refinement curve.
pub const POINTS: usize = 25;
const _: () = assert!(CONTEXTS == 14 && MATCHERS.len() == 2 && INPUTS == 32);
/// Stretched distance between two points.
const POINT_STEP: i32 = 256;

/// Everything that adapts within a group and starts from trained values.
#[derive(Debug, PartialEq, Eq)]
pub struct Params {
    pub weights: Weights,
    /// Probability of a one after each bit history, by context.
    pub histories: Box<[[u16; 256]; CONTEXTS]>,
    /// Probability that a match predicts the right bit, by matcher and length class.
    pub matches: Vec<[u16; LENGTH_BUCKETS]>,
    /// Refined probability, by curve, at stretched predictions -12, -11, ... 12 nats.
    pub curves: Vec<[u16; POINTS]>,
    /// Probability that what a match foresees comes, in models with runs.
    pub runs: Vec<u16>,
    /// End-of-token decisions, in models with a network.
    pub ends: Option<Ends>,
}

impl Clone for Params {
    fn clone(&self) -> Params {
        Params {
            weights: self.weights.clone(),
            histories: self.histories.clone(),
            matches: self.matches.clone(),
            curves: self.curves.clone(),
            runs: self.runs.clone(),
            ends: self.ends.clone(),
        }
    }

    /// In the memory that is there.
    fn clone_from(&mut self, source: &Params) {
        self.weights.clone_from(&source.weights);
        self.histories.clone_from(&source.histories);
        self.matches.clone_from(&source.matches);
        self.curves.clone_from(&source.curves);
        self.runs.clone_from(&source.runs);
        self.ends.clone_from(&source.ends);
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            weights: Weights::default(),
            histories: Box::new([[1 << 15; 256]; CONTEXTS]),
            matches: vec![[3 << 14; LENGTH_BUCKETS]; MATCHERS.len()],
            curves: vec![straight(); CURVES],
            runs: Vec::new(),
            ends: None,
        }
    }
}

impl Params {
    /// Untrained parameters of a model that adapts so.
    pub fn untrained(adaptation: &Adaptation) -> Params {
        Params {
            runs: adaptation.runs.map_or(vec![], |_| Runs::untrained()),
            ..Params::default()
        }
    }

    /// Untrained parameters of a model with a network of this many tokens.
    pub fn with_network(vocabulary: usize) -> Params {
        Params {
            weights: Weights::with_network(),
            ends: Some(Ends::new(vocabulary, true)),
            ..Params::default()
        }
    }
}

/// A curve that changes nothing.
pub(super) fn straight() -> [u16; POINTS] {
    let logistic = Logistic::default();
    std::array::from_fn(|i| logistic.squash((i as i32 - 12) * POINT_STEP))
}

/// How fast a group adapts; part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adaptation {
    pub mixer: Rates,
    /// Shift of the exponential average of history and match probabilities.
    pub histories: u32,
    /// Shift of the exponential average of the refinement curves.
    pub curves: u32,
    /// The weights of the mixer stay as they are where a prediction misses by less, in units of 2^-16.
    pub least_error: u32,
    /// When a byte is a single decision, if ever.
    pub runs: Option<Runs>,
}

/// What a group has learned so far: the adaptive half of a predictor.
#[derive(Debug, Clone)]
pub struct State {
    pub params: Params,
    pub adaptation: Adaptation,
    contexts: Contexts,
    overlay: Overlay,
    matchers: [Matcher; MATCHERS.len()],
    hashes: [u64; CONTEXTS],
    /// A run has gone on since the hashes were made.
    stale: bool,
    /// Empty in models without runs.
    outcomes: Outcomes,
    /// Whether a token begins at each byte so far; empty in models without a network.
    boundaries: Vec<bool>,
}

impl State {
    /// The state at the start of a group of up to `bytes` bytes, history included, of a model with these histories.
    pub fn new(
        params: Params,
        adaptation: Adaptation,
        histories: Histories,
        bytes: usize,
    ) -> State {
        let lines = lines_of(adaptation, histories, bytes);
        let matcher = |least| Matcher::new(least, bytes, adaptation.runs.is_some());
        let matchers = leasts(adaptation).map(matcher);
        State::with(params, adaptation, Overlay::with_lines(lines), matchers)
    }

    /// [`State::new`] in the memory of this one, which belongs to any model without a network.
    pub fn renewed(
        mut self,
        params: &Params,
        adaptation: Adaptation,
        histories: Histories,
        bytes: usize,
    ) -> State {
        self.params.clone_from(params);
        self.overlay.reset(lines_of(adaptation, histories, bytes));
        for (matcher, least) in self.matchers.iter_mut().zip(leasts(adaptation)) {
            matcher.reset(least, bytes, adaptation.runs.is_some());
        }
        State::with(self.params, adaptation, self.overlay, self.matchers)
    }

    fn with(
        params: Params,
        adaptation: Adaptation,
        overlay: Overlay,
        matchers: [Matcher; MATCHERS.len()],
    ) -> State {
        let contexts = Contexts::default();
        State {
            params,
            adaptation,
            hashes: contexts.hashes(),
            contexts,
            stale: false,
            outcomes: Outcomes::default(),
            overlay,
            matchers,
            boundaries: Vec::new(),
        }
    }

    /// A copy of this one in the memory of another one.
    pub fn copied_into(&self, mut spare: State) -> State {
        spare.params.clone_from(&self.params);
        spare.overlay.clone_from(&self.overlay);
        for (matcher, source) in spare.matchers.iter_mut().zip(&self.matchers) {
            matcher.clone_from(source);
        }
        State {
            params: spare.params,
            overlay: spare.overlay,
            matchers: spare.matchers,
            adaptation: self.adaptation,
            contexts: self.contexts.clone(),
            hashes: self.hashes,
            stale: self.stale,
            outcomes: self.outcomes.clone(),
            boundaries: self.boundaries.clone(),
        }
    }

    /// Memory of the state in bytes.
    pub fn size(&self) -> usize {
        let curves = size_of_val(self.params.curves.as_slice());
        let weights = size_of_val(self.params.weights.first.as_slice());
        let matchers: usize = self.matchers.iter().map(Matcher::size).sum();
        let network = size_of_val(self.params.weights.network.as_slice())
            + self.params.ends.as_ref().map_or(0, Ends::size)
            + self.boundaries.len()
            + size_of_val(self.params.runs.as_slice())
            + self.outcomes.size();
        self.overlay.size() + matchers + curves + weights + self.contexts.bytes().len() + network
    }
}

/// Lines of the overlay.
fn lines_of(adaptation: Adaptation, histories: Histories, bytes: usize) -> usize {
    lines_for(bytes, histories.contexts().len(), adaptation.runs.is_some())
}

/// Least lengths of the matches.
fn leasts(adaptation: Adaptation) -> [usize; MATCHERS.len()] {
    adaptation
        .runs
        .map_or(MATCHERS, |runs| runs.leasts.map(usize::from))
}

/// Predictions of the match experts for the byte at hand.
#[derive(Debug, Clone, Copy)]
struct Expected {
    bytes: [Option<u8>; MATCHERS.len()],
    /// Their codewords.
    words: [Option<u16>; MATCHERS.len()],
    lengths: [usize; MATCHERS.len()],
}

/// What a match expert says of a decision.
#[derive(Debug, Clone, Copy)]
struct Matched {
    bit: u32,
    /// Stretched probability of a one.
    x: i16,
}

/// A decision that has been predicted.
struct Prediction {
    matched: [Option<Matched>; MATCHERS.len()],
    inputs: Inputs,
    mix: Mix,
    /// What the mixer says, a probability of a one in units of 2^-16.
    p: u16,
    /// The refinement curve and the point of it that learns.
    curve: usize,
    point: usize,
    /// The mean of mixer and curve: 0 where both nearly are.
    mean: u32,
}

/// A model at work on one group.
#[derive(Debug)]
pub struct Predictor<M> {
    model: M,
    code: Arc<ByteCode>,
    states: &'static States,
    logistic: Logistic,
    avx2: bool,
    lean: bool,
    state: State,
    /// The nibble at hand.
    nibble: Nibble,
    places: [Place; CONTEXTS],
}

/// What the contexts know of a nibble.
#[derive(Debug, Clone, Copy, Default)]
struct Nibble {
    /// Its buckets in the tables and in the overlay, by context.
    frozen: [[u8; BUCKET]; CONTEXTS],
    adaptive: [[u8; BUCKET]; CONTEXTS],
    /// Contexts that the tables and the overlay know, a bit for each.
    trained: u32,
    learned: u32,
}

impl Nibble {
    /// Takes over what the tables have of a context.
    #[inline(always)]
    fn add_trained(&mut self, context: usize, (trained, bucket): (bool, [u8; BUCKET])) {
        self.frozen[context] = bucket;
        self.trained |= u32::from(trained) << context;
    }

    /// Takes over what the overlay has of a context.
    #[inline(always)]
    fn add_learned(&mut self, context: usize, bucket: [u8; BUCKET]) {
        self.adaptive[context] = bucket;
        self.learned |= u32::from(bucket[1] != 0) << context;
    }

    /// Longest plain order known to the tables and to the overlay: 8 * tables + overlay.
    #[inline(always)]
    fn known(&self) -> usize {
        let longest = |contexts: u32| (contexts & ((1 << ORDERS) - 1)).checked_ilog2();
        let longest = |contexts: u32| longest(contexts).map_or(0, |order| order as usize + 1);
        longest(self.trained) * 8 + longest(self.learned)
    }
}

impl<M: Deref<Target = Model>> Predictor<M> {
    /// Goes on from `state`.
    pub fn new(model: M, state: State) -> Predictor<M> {
        Predictor {
            states: states(),
            logistic: Logistic::default(),
            avx2: has_avx2(),
            lean: model.histories == Histories::Lean,
            code: model.code.clone(),
            model,
            state,
            nibble: Nibble::default(),
            places: [Place::default(); CONTEXTS],
        }
    }

    /// Uses the portable build of the hot path even where a faster one would run.
    pub fn portable(mut self) -> Self {
        self.avx2 = false;
        self
    }

    /// What has been learned.
    pub fn into_state(self) -> State {
        self.state
    }

    /// Codes one byte and learns it. Encoders pass the byte; decoders get it back.
    pub fn byte(&mut self, coder: &mut impl BitCoder, byte: u8) -> u8 {
        self.guided(coder, &mut Alone, byte)
    }

    /// Learns a byte that is known, for models with a network: histories and positions, not the mixer.
    pub fn learn(&mut self, byte: u8) {
        self.guided(&mut Silent, &mut Known { byte, step: 0 }, byte);
    }

    /// [`Predictor::byte`] with what the network knows.
    pub fn guided<G: Guide>(&mut self, coder: &mut impl BitCoder, guide: &mut G, byte: u8) -> u8 {
        // what is never true with a network need not be compiled for one
        let lean = !G::NETWORK && self.lean;
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: `avx2` is only set where the processor has all features of `byte_avx2`.
            return unsafe {
                match lean {
                    true => self.byte_avx2::<true, G>(coder, guide, byte),
                    false => self.byte_avx2::<false, G>(coder, guide, byte),
                }
            };
        }
        match lean {
            true => self.byte_with::<false, true, G>(coder, guide, byte),
            false => self.byte_with::<false, false, G>(coder, guide, byte),
        }
    }

    /// [`Predictor::byte_with`] compiled for AVX2.
    ///
    /// # Safety
    /// The processor must have AVX2, BMI1, BMI2 and LZCNT.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    unsafe fn byte_avx2<const LEAN: bool, G: Guide>(
        &mut self,
        coder: &mut impl BitCoder,
        guide: &mut G,
        byte: u8,
    ) -> u8 {
        self.byte_with::<true, LEAN, G>(coder, guide, byte)
    }

    /// `SIMD` may only be set where the processor has AVX2; `LEAN` tells which contexts have histories.
    #[inline(always)]
    fn byte_with<const SIMD: bool, const LEAN: bool, G: Guide>(
        &mut self,
        coder: &mut impl BitCoder,
        guide: &mut G,
        byte: u8,
    ) -> u8 {
        let mut expected = self.expected();
        let foreseen = match G::NETWORK {
            true => None,
            false => self.foresee(&expected),
        };
        if let Some(foreseen) = foreseen
            && self.run(coder, foreseen, byte, &mut expected)
        {
            return foreseen.byte;
        }
        if self.state.stale {
            self.state.hashes = self.state.contexts.hashes();
            self.state.stale = false;
        }
        let word = self.code.word(byte);
        let mut hashes = self.state.hashes;
        let mut spot = Spot::START;
        let byte = loop {
            self.enter_nibble::<SIMD, LEAN>(&hashes);
            let end = self.nibble::<SIMD, LEAN, _>(coder, guide, word, spot, &expected);
            self.leave_nibble::<LEAN>();
            match end {
                Ok(byte) => break byte,
                Err(next) => spot = next,
            }
            hashes = hashes.map(|hash| next_nibble(hash, spot.bucket()));
            self.prefetch::<LEAN>(&hashes);
        };
        self.state.contexts.push(byte);
        self.state.hashes = self.state.contexts.hashes();
        // everything that needs no lines of the next byte comes behind this
        self.prefetch::<LEAN>(&self.state.hashes);
        self.update_matchers(byte, &expected);
        if !G::NETWORK {
            self.note_outcome(foreseen, byte);
        }
        byte
    }

    /// What the longer match foresees, in models with runs.
    #[inline(always)]
    fn foresee(&self, expected: &Expected) -> Option<Foreseen> {
        self.state.adaptation.runs?;
        let [a, b] = expected.lengths;
        let nth =
            usize::from(expected.bytes[1].is_some() && (b >= a || expected.bytes[0].is_none()));
        let byte = expected.bytes[nth]?;
        let (at, length) = (self.state.matchers[nth].position(), expected.lengths[nth]);
        let other = expected.bytes[1 - nth];
        Some(self.state.outcomes.foresee(byte, at, length, other))
    }

    /// Codes whether what is foreseen comes, if that is nearly sure. True if it does: the byte has been learned then.
    /// Otherwise nobody expects it any more.
    #[inline(always)]
    fn run(
        &mut self,
        coder: &mut impl BitCoder,
        foreseen: Foreseen,
        byte: u8,
        expected: &mut Expected,
    ) -> bool {
        let p = self.state.params.runs[foreseen.slot];
        if self.state.adaptation.runs.is_none_or(|runs| p < runs.sure) {
            return false;
        }
        if coder.code(p, u32::from(byte == foreseen.byte)) == 1 {
            let byte = foreseen.byte;
            self.state.contexts.push(byte);
            self.update_matchers(byte, expected);
            self.state.stale = true;
            self.note_outcome(Some(foreseen), byte);
            return true;
        }
        for m in 0..MATCHERS.len() {
            if expected.bytes[m] == Some(foreseen.byte) {
                expected.words[m] = None;
            }
        }
        false
    }

    #[inline(always)]
    fn note_outcome(&mut self, foreseen: Option<Foreseen>, byte: u8) {
        let State {
            params,
            adaptation,
            outcomes,
            ..
        } = &mut self.state;
        if adaptation.runs.is_none() {
            return;
        }
        if let Some(foreseen) = foreseen {
            let comes = u32::from(foreseen.byte == byte);
            average(&mut params.runs[foreseen.slot], comes, adaptation.histories);
        }
        outcomes.push(foreseen, byte);
    }

    /// The longest length class of a match, 0 without one.
    #[inline]
    pub fn longest_match(&self) -> usize {
        let expected = self.expected();
        let lengths = expected.bytes.iter().zip(expected.lengths);
        let found = lengths.filter(|(byte, _)| byte.is_some());
        found.map(|(_, length)| length).max().unwrap_or(0)
    }

    /// Notes whether a token begins at the next byte. Called once for every byte of a model with a network.
    #[inline]
    pub fn note_boundary(&mut self, begins: bool) {
        self.state.boundaries.push(begins);
    }

    /// The last eight bytes, the newest lowest.
    #[inline]
    pub fn last_bytes(&self) -> u64 {
        self.state.contexts.last()
    }

    /// What the matches say about a token's end in front of the next byte; `goes_on` tells whether a longer
    /// token has this byte next.
    pub fn matched_ends(
        &self,
        goes_on: impl Fn(u8) -> bool,
    ) -> [Option<MatchedEnd>; MATCHERS.len()] {
        let expected = self.expected();
        std::array::from_fn(|m| {
            let at = self.state.matchers[m].position();
            expected.bytes[m].map(|byte| MatchedEnd {
                length: expected.lengths[m],
                boundary: self.state.boundaries.get(at).copied().unwrap_or(false),
                goes_on: goes_on(byte),
            })
        })
    }

    /// Whether end-of-token decisions know the outlook.
    pub fn has_outlook(&self) -> bool {
        self.state
            .params
            .ends
            .as_ref()
            .is_some_and(Ends::has_outlook)
    }

    /// Predicts an end-of-token decision; `None` in a model without a network.
    pub fn ask_end(&mut self, question: &Question) -> Option<Answer> {
        let State {
            params, overlay, ..
        } = &mut self.state;
        let ends = params.ends.as_ref()?;
        Some(ends.ask(question, overlay, self.states, self.logistic))
    }

    /// Learns an end-of-token decision.
    pub fn learn_end(&mut self, answer: &Answer, bit: u32) {
        let State {
            params,
            overlay,
            adaptation,
            ..
        } = &mut self.state;
        if let Some(ends) = &mut params.ends {
            ends.learn(
                answer,
                bit,
                *adaptation,
                overlay,
                self.states,
                self.logistic,
            );
        }
    }

    #[inline(always)]
    fn expected(&self) -> Expected {
        let history = self.state.contexts.bytes();
        let bytes = self
            .state
            .matchers
            .each_ref()
            .map(|matcher| matcher.predicted(history));
        Expected {
            bytes,
            words: bytes.map(|byte| byte.map(|byte| self.code.word(byte))),
            lengths: std::array::from_fn(|m| self.state.matchers[m].bucket()),
        }
    }

    #[inline(always)]
    fn update_matchers(&mut self, byte: u8, expected: &Expected) {
        let state = &mut self.state;
        for (matcher, predicted) in state.matchers.iter_mut().zip(expected.bytes) {
            if predicted.is_some_and(|p| p != byte) {
                matcher.miss();
            }
            matcher.update(state.contexts.bytes());
        }
    }

    #[inline(always)]
    fn prefetch<const LEAN: bool>(&self, hashes: &[u64; CONTEXTS]) {
        let tables = self.model.tables.view();
        for (context, &hash) in hashes.iter().enumerate() {
            tables.prefetch(context, hash);
        }
        for &context in contexts::<LEAN>() {
            self.state.overlay.prefetch(hashes[context]);
        }
    }

    /// Fetches the buckets of a nibble.
    #[inline(always)]
    fn enter_nibble<const SIMD: bool, const LEAN: bool>(&mut self, hashes: &[u64; CONTEXTS]) {
        (self.nibble.trained, self.nibble.learned) = (0, 0);
        // The overlay is near, and the lines of the tables take their time.
        for &context in contexts::<LEAN>() {
            let (place, bucket) = self
                .state
                .overlay
                .claim::<SIMD>(hashes[context], self.states);
            self.places[context] = place;
            self.nibble.add_learned(context, bucket);
        }
        let tables = self.model.tables.view();
        for (context, &hash) in hashes.iter().enumerate() {
            self.nibble
                .add_trained(context, tables.find::<SIMD>(context, hash));
        }
    }

    #[inline(always)]
    fn leave_nibble<const LEAN: bool>(&mut self) {
        for &context in contexts::<LEAN>() {
            let bucket = &self.nibble.adaptive[context];
            self.state.overlay.put(self.places[context], bucket);
        }
    }

    /// Codes the decisions of a nibble, from its first one on: the byte if it ends there, or where the next one begins. `word`
    /// is the codeword of the byte, for an encoder.
    #[inline(always)]
    fn nibble<const SIMD: bool, const LEAN: bool, G: Guide>(
        &mut self,
        coder: &mut impl BitCoder,
        guide: &mut G,
        word: u16,
        mut spot: Spot,
        expected: &Expected,
    ) -> Result<u8, Spot> {
        loop {
            let bit = spot.bit_of(word);
            let bit = self.decision::<SIMD, LEAN, _, _>(coder, guide, bit, spot, expected);
            spot = match self.code.step(spot, bit) {
                Err(next) if !next.begins_bucket() => next,
                end => return end,
            };
        }
    }

    /// Codes one decision and learns it.
    #[inline(always)]
    fn decision<const SIMD: bool, const LEAN: bool, C: BitCoder, G: Guide>(
        &mut self,
        coder: &mut C,
        guide: &mut G,
        bit: u32,
        spot: Spot,
        expected: &Expected,
    ) -> u32 {
        let hint = guide.ask();
        let network = match hint {
            Hint::Open { x, vector } => (x, vector),
            Hint::Forced(bit) if !C::MEASURES => {
                self.learn_histories::<SIMD, LEAN>(usize::from(spot.slot), bit);
                return bit;
            }
            Hint::Forced(_) => (0, 0),
        };
        let network = G::NETWORK.then_some(network);
        let params = &self.state.params;
        let said = self.predict::<SIMD, LEAN>(params, &self.nibble, spot, expected, network);
        let coded = said.mean.clamp(1, 65535) as u16;
        if let Hint::Forced(bit) = hint {
            coder.saved(coded, bit);
            self.learn_histories::<SIMD, LEAN>(usize::from(spot.slot), bit);
            return bit;
        }
        let bit = coder.code(coded, bit) & 1;
        guide.tell(bit);
        self.learn_decision::<SIMD, LEAN, G>(&said, expected, bit);
        self.learn_histories::<SIMD, LEAN>(usize::from(spot.slot), bit);
        bit
    }

    /// Gathers what the experts say of a decision, mixes and refines it. `params` have the weights and the curves; `place`
    /// is the node and the bits so far; `network` the network's log-odds and the vector of its set, if there is one.
    #[inline(always)]
    fn predict<const SIMD: bool, const LEAN: bool>(
        &self,
        params: &Params,
        nibble: &Nibble,
        spot: Spot,
        expected: &Expected,
        network: Option<(i32, usize)>,
    ) -> Prediction {
        let (matched, longest) = self.ask_matchers(spot, expected);
        let (slot, node) = (usize::from(spot.slot), usize::from(spot.node));
        let x = network.map_or(0, |(x, _)| x);
        let inputs = self.inputs::<SIMD, LEAN>(nibble, slot, &matched, x);
        let newest = self.state.contexts.newest();
        let selectors: [usize; SETS] = [
            node,
            nibble.known(),
            usize::from(newest),
            longest * 16 + slot,
        ];
        let (mut mix, vector) = (Mix::default(), network.map(|(_, vector)| vector));
        let (weights, last) = (&params.weights, node);
        let x = weights.mix::<SIMD, LEAN>(&inputs, &selectors, vector, last, &mut mix);
        let p = self.logistic.squash(x);
        let curve = curve_of(newest, node);
        let (point, refined) = refine(&params.curves[curve], x);
        Prediction {
            matched,
            inputs,
            mix,
            p,
            curve,
            point,
            mean: (u32::from(p) + refined) / 2,
        }
    }

    /// Lets mixer, curves and matches learn a decision.
    #[inline(always)]
    fn learn_decision<const SIMD: bool, const LEAN: bool, G: Guide>(
        &mut self,
        said: &Prediction,
        expected: &Expected,
        bit: u32,
    ) {
        let State {
            params, adaptation, ..
        } = &mut self.state;
        let (seen, rates) = ((said.p, bit), adaptation.mixer);
        let (inputs, mix) = (&said.inputs, &said.mix);
        let weights = &mut params.weights;
        if (bit << 16).abs_diff(u32::from(said.p)) >= adaptation.least_error {
            match G::NETWORK {
                true => weights.update::<SIMD, LEAN, true>(inputs, mix, seen, rates, self.logistic),
                false => {
                    weights.update::<SIMD, LEAN, false>(inputs, mix, seen, rates, self.logistic)
                }
            }
        }
        average(
            &mut params.curves[said.curve][said.point],
            bit,
            adaptation.curves,
        );
        for (m, matched) in said.matched.iter().enumerate() {
            if let Some(matched) = *matched {
                let right = u32::from(matched.bit == bit);
                let p = &mut params.matches[m][expected.lengths[m]];
                average(p, right, adaptation.histories);
            }
        }
    }

    /// What all experts say of a decision: the trained logits of the contexts, then what their bit histories predict,
    /// then the matches, then a constant, then the network. Without all histories there is room for the matches and the
    /// constant behind those that there are, and no network.
    #[inline(always)]
    fn inputs<const SIMD: bool, const LEAN: bool>(
        &self,
        nibble: &Nibble,
        node: usize,
        matched: &[Option<Matched>; MATCHERS.len()],
        network: i32,
    ) -> Inputs {
        let matched = matched.map(|matched| matched.map_or(0, |matched| matched.x));
        let t = |context: usize| self.trained(nibble, node, context);
        let h = |nth: usize| self.history(nibble, node, contexts::<LEAN>()[nth]);
        let trained = [t(0), t(1), t(2), t(3), t(4), t(5), t(6), t(7)];
        let [a, b] = matched;
        Inputs::of::<SIMD>(match LEAN {
            true => [
                trained,
                [t(8), t(9), t(10), t(11), t(12), t(13), h(0), h(1)],
                [h(2), h(3), h(4), h(5), h(6), a, b, 256],
                [0; 8],
            ],
            false => [
                trained,
                [t(8), t(9), t(10), t(11), t(12), t(13), h(0), h(1)],
                [h(2), h(3), h(4), h(5), h(6), h(7), h(8), h(9)],
                [h(10), h(11), h(12), h(13), a, b, 256, network as i16],
            ],
        })
    }

    /// The trained logit of a context.
    #[inline(always)]
    fn trained(&self, nibble: &Nibble, node: usize, context: usize) -> i16 {
        self.model.logits[usize::from(nibble.frozen[context][node & 15])]
    }

    /// What the bit history of a context predicts, stretched.
    #[inline(always)]
    fn history(&self, nibble: &Nibble, node: usize, context: usize) -> i16 {
        let state = usize::from(nibble.adaptive[context][node & 15]);
        self.logistic
            .stretch(self.state.params.histories[context][state])
    }

    /// What the match experts say that still agree with the byte's bits so far, and the longest length class.
    #[inline(always)]
    fn ask_matchers(
        &self,
        spot: Spot,
        expected: &Expected,
    ) -> ([Option<Matched>; MATCHERS.len()], usize) {
        let mut matched = [None; MATCHERS.len()];
        let mut longest = 0;
        let matches = expected.words.iter().zip(expected.lengths).enumerate();
        for (m, (word, length)) in matches {
            let Some(bit) = word.and_then(|word| spot.expected(word)) else {
                continue;
            };
            let x = self.logistic.stretch(self.state.params.matches[m][length]);
            longest = longest.max(length);
            matched[m] = Some(Matched {
                bit,
                x: if bit == 1 { x } else { -x },
            });
        }
        (matched, longest)
    }

    /// Lets all histories learn a bit. `SIMD` only where the processor has AVX2; what comes of it is the same.
    #[inline(always)]
    fn learn_histories<const SIMD: bool, const LEAN: bool>(&mut self, node: usize, bit: u32) {
        let rate = self.state.adaptation.histories;
        let histories = &mut self.state.params.histories;
        let mut states = [0u8; CONTEXTS];
        for (state, &context) in states.iter_mut().zip(contexts::<LEAN>()) {
            let slot = &mut self.nibble.adaptive[context][node & 15];
            *state = *slot;
            *slot = self.states.next(*slot, bit);
        }
        #[cfg(target_arch = "x86_64")]
        if SIMD {
            let mut p = [[0u16; 8]; 2];
            let seen = contexts::<LEAN>().iter().zip(states);
            for (p, (&context, state)) in p.as_flattened_mut().iter_mut().zip(seen.clone()) {
                *p = histories[context][usize::from(state)];
            }
            // SAFETY: `SIMD` is only set where the processor has AVX2.
            unsafe {
                p[0] = averages(&p[0], bit, rate);
                if contexts::<LEAN>().len() > p[0].len() {
                    p[1] = averages(&p[1], bit, rate);
                }
            }
            for ((&context, state), &p) in seen.zip(p.as_flattened()) {
                histories[context][usize::from(state)] = p;
            }
            return;
        }
        for (&context, state) in contexts::<LEAN>().iter().zip(states) {
            average(&mut histories[context][usize::from(state)], bit, rate);
        }
    }
}

/// [`average`] of eight probabilities.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn averages(p: &[u16; 8], bit: u32, shift: u32) -> [u16; 8] {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi16, _mm_cmpeq_epi16, _mm_cvtsi32_si128, _mm_max_epu16, _mm_min_epu16,
        _mm_or_si128, _mm_set_epi16, _mm_set1_epi16, _mm_sll_epi16, _mm_srl_epi16, _mm_sub_epi16,
        _mm_xor_si128,
    };
    let &[a, b, c, d, e, f, g, h] = p;
    let p = _mm_set_epi16(
        h as i16, g as i16, f as i16, e as i16, d as i16, c as i16, b as i16, a as i16,
    );
    let (count, ones) = (_mm_cvtsi32_si128(shift as i32), _mm_set1_epi16(-1));
    let is_one = _mm_set1_epi16(-((bit & 1) as i16));
    // A one makes the distance from 65535 smaller, a zero that from 0: by itself shifted, with a zero rounded up.
    let distance = _mm_xor_si128(p, is_one);
    let part = _mm_srl_epi16(distance, count);
    let is_whole = _mm_cmpeq_epi16(_mm_sll_epi16(part, count), distance);
    // -1 where one more goes
    let up = _mm_xor_si128(_mm_or_si128(is_whole, is_one), ones);
    let p = _mm_xor_si128(_mm_add_epi16(_mm_sub_epi16(distance, part), up), is_one);
    let p = _mm_max_epu16(p, _mm_set1_epi16(AVERAGE_MIN as i16));
    let p = _mm_min_epu16(p, _mm_set1_epi16(AVERAGE_MAX as i16));
    // SAFETY: both are 16 bytes of plain integers.
    unsafe { std::mem::transmute::<__m128i, [u16; 8]>(p) }
}

/// The refinement curve of a decision.
#[inline(always)]
fn curve_of(newest: u8, node: usize) -> usize {
    ((usize::from(newest) * 0x9E5) ^ (node * 0x35)) % CURVES
}

/// Interpolates a curve at the stretched prediction `x`; also returns the point nearest to it.
#[inline(always)]
pub(super) fn refine(curve: &[u16; POINTS], x: i32) -> (usize, u32) {
    // |x| <= STRETCH_MAX < 12 * POINT_STEP, so `low + 1` is a point
    let position = (x + STRETCH_MAX + 1) as u32;
    let (low, part) = ((position / 256) as usize, position % 256);
    let sum = u32::from(curve[low]) * (256 - part) + u32::from(curve[low + 1]) * part;
    (low + usize::from(part >= 128), sum / 256)
}

/// Averages stay within these.
const AVERAGE_MIN: u16 = 32;
const AVERAGE_MAX: u16 = 65503;

/// Moves a 16-bit probability towards the bit seen.
#[inline(always)]
pub(super) fn average(p: &mut u16, bit: u32, shift: u32) {
    let target = if bit == 1 { 65535i32 } else { 0 };
    let p32 = i32::from(*p);
    let moved = p32 + ((target - p32) >> shift);
    *p = moved.clamp(i32::from(AVERAGE_MIN), i32::from(AVERAGE_MAX)) as u16;
}

/// Which build of the hot path runs on this machine.
pub fn engine() -> &'static str {
    if has_avx2() {
        "simd (avx2)"
    } else {
        "portable"
    }
}

/// Whether the AVX2 build of the hot path may run here.
pub(super) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn averages_are_those_of_single_probabilities() {
        if !has_avx2() {
            return;
        }
        for p in 0..=u16::MAX / 8 {
            let p: [u16; 8] = std::array::from_fn(|i| 8 * p + i as u16);
            for (bit, shift) in (0..2).flat_map(|bit| (1..=15).map(move |shift| (bit, shift))) {
                let mut expected = p;
                expected.iter_mut().for_each(|p| average(p, bit, shift));
                // SAFETY: the processor has AVX2.
                assert_eq!(unsafe { averages(&p, bit, shift) }, expected);
            }
        }
    }
}
