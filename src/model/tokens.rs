//! Codes the tokens of a group with the network among the experts.
//!
//! [`Tokens`] is used by the encoder and the decoder alike: given the hidden row of a position, it codes one
//! token. Both see the same rows, the same skipped heads and the same decisions, in the same order.

use std::ops::Deref;

use super::ends::Question;
use super::logistic::{Logistic, STRETCH_MAX};
use super::network::Engine;
use super::predictor::{
    BitCoder, Guide, Hint, POINTS, Params, Predictor, State, average, refine, straight,
};
use super::vocabulary::DECISIONS;
use super::walk::{Next, Opinion, Walk};
use super::{Expert, Model, ModelError};

/// Refined probabilities of a model without table experts, by decision: frozen, so that positions can be
/// coded in any order.
pub type PlainCurves = [[u16; POINTS]; DECISIONS];

/// What was coded so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub tokens: u64,
    /// Tokens for which the network's heads were evaluated.
    pub evaluated: u64,
    pub bytes: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.tokens += other.tokens;
        self.evaluated += other.evaluated;
        self.bytes += other.bytes;
    }
}

/// A model with a network at work on one group.
#[derive(Debug)]
pub struct Tokens<M> {
    model: M,
    /// None if the model leaves the table experts out.
    predictor: Option<Predictor<M>>,
    opinion: Opinion,
    /// The expert's, or other ones in training.
    skip: usize,
    plain: Plain,
    /// The token before; token 0 at the start.
    previous: u16,
    counts: Counts,
    /// The bytes of the newest token.
    bytes: Vec<u8>,
}

/// A token as it is coded: its position in the group, and what the encoder knows.
#[derive(Debug, Clone, Copy)]
pub struct Position<'a> {
    /// The network's hidden row for this position; any row will do where none is needed.
    pub row: &'a [i8],
    /// Bytes that are left in the group.
    pub left: usize,
    /// The token; a decoder does not know it.
    pub token: Option<u16>,
}

impl<M: Deref<Target = Model> + Clone> Tokens<M> {
    /// Starts a group in the state that `state` makes, if the model can use one.
    ///
    /// # Errors
    /// If the model has no network.
    pub fn new(model: M, state: impl FnOnce() -> State) -> Result<Tokens<M>, ModelError> {
        let expert = model.expert()?;
        let (skip, curves) = (expert.skip, expert.plain.clone());
        let predictor = match &curves {
            Some(_) => None,
            None => Some(Predictor::new(model.clone(), state())),
        };
        Ok(Tokens {
            predictor,
            model,
            opinion: Opinion::default(),
            skip,
            plain: Plain {
                curves: curves.unwrap_or_else(|| Box::new([straight(); DECISIONS])),
                rate: None,
            },
            previous: 0,
            counts: Counts::default(),
            bytes: Vec::new(),
        })
    }

    /// Uses another length class of matches from which on the heads are not evaluated.
    pub fn with_skip(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// Lets the refinement of a model without table experts learn, with this shift; only training does.
    pub fn learning(mut self, rate: u32) -> Self {
        self.plain.rate = Some(rate);
        self
    }

    /// Uses other refinement curves than the model's.
    pub fn with_plain(mut self, curves: Box<PlainCurves>) -> Self {
        self.plain.curves = curves;
        self
    }

    /// The refinement of a model without table experts.
    pub fn into_plain(self) -> Box<PlainCurves> {
        self.plain.curves
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What has been learned; `None` if nothing can be.
    pub fn into_state(self) -> Option<State> {
        Some(self.predictor?.into_state())
    }

    /// The bytes of the token coded last.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the next token needs the network's hidden row. Where a long match says what comes, the heads
    /// are not evaluated (the confidence skip of Nacrith).
    #[inline]
    pub fn needs_row(&self) -> bool {
        let longest = self.predictor.as_ref().map_or(0, Predictor::longest_match);
        longest < self.skip.max(1)
    }

    /// Codes a group of `len` bytes by its tokens and the hidden rows that predict them, one behind the other.
    ///
    /// # Errors
    /// As for [`Tokens::token`].
    pub fn group(
        &mut self,
        coder: &mut impl BitCoder,
        engine: &dyn Engine,
        (tokens, rows): (&[u16], &[i8]),
        len: usize,
    ) -> Result<(), ModelError> {
        let width = rows.len() / tokens.len().max(1);
        let mut left = len;
        for (&token, row) in tokens.iter().zip(rows.chunks_exact(width.max(1))) {
            let position = Position {
                row,
                left,
                token: Some(token),
            };
            self.token(coder, engine, position)?;
            left -= self.bytes().len();
        }
        Ok(())
    }

    /// Codes one token and learns it; returns it. The last token of a group ends with the group.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn token(
        &mut self,
        coder: &mut impl BitCoder,
        engine: &dyn Engine,
        position: Position,
    ) -> Result<u16, ModelError> {
        let model = self.model.clone();
        let expert = model.expert()?;
        let evaluate = self.needs_row();
        if evaluate {
            self.opinion.start(engine, position.row)?;
        }
        let mut step = TokenStep {
            expert,
            engine,
            row: position.row,
            opinion: evaluate.then_some(&mut self.opinion),
            plain: &mut self.plain,
            walk: Walk::new(&expert.vocabulary),
            at: 0,
            step: 0,
            middle: 0,
            failure: None,
            base_params: model.base_params.as_deref(),
        };
        let known = position.token.map(|token| expert.vocabulary.token(token));
        self.bytes.clear();
        while step.at == 0
            || (step.at < position.left
                && step.goes_on(coder, self.predictor.as_mut(), self.previous, known)?)
        {
            let byte = known.and_then(|known| known.get(step.at)).copied();
            let byte = step.byte(coder, self.predictor.as_mut(), byte.unwrap_or(0));
            self.bytes.push(byte);
            step.failure.take().map_or(Ok(()), Err)?;
        }
        let token = step.walk.token();
        self.counts += Counts {
            tokens: 1,
            evaluated: u64::from(evaluate),
            bytes: self.bytes.len() as u64,
        };
        self.previous = token;
        Ok(token)
    }
}

/// One token under way.
struct TokenStep<'a> {
    expert: &'a Expert,
    engine: &'a dyn Engine,
    row: &'a [i8],
    /// None where the heads are not evaluated.
    opinion: Option<&'a mut Opinion>,
    plain: &'a mut Plain,
    walk: Walk,
    /// Bytes of the token so far.
    at: usize,
    /// Decisions of the next byte that are behind us.
    step: usize,
    /// Where the open decision parts the tokens.
    middle: u16,
    /// What went wrong in the middle of a byte.
    failure: Option<ModelError>,
    /// How the experts of the base are mixed without the network.
    base_params: Option<&'a Params>,
}

impl TokenStep<'_> {
    /// The network's log-odds of an open decision, `None` where it is not asked.
    #[inline]
    fn odds(&mut self, middle: u16) -> Option<i32> {
        let opinion = self.opinion.as_mut()?;
        let division = &self.expert.division;
        match opinion.odds(self.engine, self.row, division, &self.walk, middle) {
            Ok(x) => Some(x),
            Err(error) => {
                self.failure = Some(error);
                Some(0)
            }
        }
    }

    /// Decides whether the token goes on behind its bytes so far.
    fn goes_on<M: Deref<Target = Model>, C: BitCoder>(
        &mut self,
        coder: &mut C,
        predictor: Option<&mut Predictor<M>>,
        previous: u16,
        known: Option<&[u8]>,
    ) -> Result<bool, ModelError> {
        let expert = self.expert;
        let vocabulary = &expert.vocabulary;
        let middle = match self.walk.next(vocabulary, self.at, 0) {
            Next::Forced(bit) => return Ok(bit == 1),
            Next::Open(middle) => middle,
        };
        let network = self.odds(middle);
        self.failure.take().map_or(Ok(()), Err)?;
        let bit = u32::from(known.is_some_and(|known| known.len() > self.at));
        let bit = match predictor {
            None => {
                let x = network.unwrap_or(0);
                let bit = coder.code_end(self.plain.refine(0, x), bit) & 1;
                self.plain.learn(0, x, bit);
                bit
            }
            Some(predictor) => {
                let (walk, at) = (self.walk, self.at);
                let outlook = match self.base_params.filter(|_| predictor.has_outlook()) {
                    Some(params) => {
                        let mut longer = walk;
                        longer.take(middle, 1);
                        predictor.outlook(params, vocabulary, longer, at)
                    }
                    None => 0,
                };
                let question = Question {
                    network,
                    outlook,
                    bytes: at,
                    matches: predictor
                        .matched_ends(|byte| walk.may_go_on_with(vocabulary, at, byte)),
                    token: walk.token(),
                    previous,
                    last: predictor.last_bytes(),
                };
                let no_ends = || ModelError::Damaged("parameters of ends are missing".into());
                let answer = predictor.ask_end(&question).ok_or_else(no_ends)?;
                let bit = coder.code_end(answer.p, bit) & 1;
                predictor.learn_end(&answer, bit);
                bit
            }
        };
        self.walk.take(middle, bit);
        Ok(bit == 1)
    }

    /// Codes the next byte.
    #[inline]
    fn byte<M: Deref<Target = Model>>(
        &mut self,
        coder: &mut impl BitCoder,
        predictor: Option<&mut Predictor<M>>,
        byte: u8,
    ) -> u8 {
        self.step = 0;
        let byte = match predictor {
            Some(predictor) => {
                predictor.note_boundary(self.at == 0);
                predictor.guided(coder, self, byte)
            }
            None => self.plain_byte(coder, byte),
        };
        self.at += 1;
        byte
    }

    /// Codes the next byte with the network alone.
    fn plain_byte(&mut self, coder: &mut impl BitCoder, byte: u8) -> u8 {
        let mut coded = 0;
        for shift in (0..8).rev() {
            let bit = match self.ask() {
                Hint::Forced(bit) => bit,
                Hint::Open { x, .. } => {
                    let p = self.plain.refine(self.step, x);
                    let bit = coder.code(p, u32::from(byte) >> shift & 1) & 1;
                    self.plain.learn(self.step, x, bit);
                    self.tell(bit);
                    bit
                }
            };
            coded = coded << 1 | bit as u8;
        }
        coded
    }
}

/// How sure the network is of a bit, in 15 classes; class 15 is for bits that it is not asked about.
#[inline(always)]
fn confidence(x: Option<i32>) -> usize {
    match x.map(i32::unsigned_abs) {
        None => 15,
        // finer where it is unsure: 64, 128, ... 512, then 768, ... 2048
        Some(x @ ..512) => x as usize / 64,
        Some(x) => (8 + (x as usize - 512) / 256).min(14),
    }
}

impl Guide for TokenStep<'_> {
    const NETWORK: bool = true;

    #[inline]
    fn ask(&mut self) -> Hint {
        self.step += 1;
        match self.walk.next(&self.expert.vocabulary, self.at, self.step) {
            Next::Forced(bit) => Hint::Forced(bit),
            Next::Open(middle) => {
                self.middle = middle;
                let x = self.odds(middle);
                let place = usize::from(self.at > 0) * 8 + self.step - 1;
                Hint::Open {
                    x: x.unwrap_or(0),
                    vector: place * 16 + confidence(x),
                }
            }
        }
    }

    #[inline]
    fn tell(&mut self, bit: u32) {
        self.walk.take(self.middle, bit);
    }
}

/// The refinement of a model without table experts.
#[derive(Debug)]
struct Plain {
    curves: Box<PlainCurves>,
    /// Shift of the exponential average, in training.
    rate: Option<u32>,
}

impl Plain {
    /// The probability of a one, for a decision of this step.
    fn refine(&self, step: usize, x: i32) -> u16 {
        let x = x.clamp(-STRETCH_MAX, STRETCH_MAX);
        let p = u32::from(Logistic::default().squash(x));
        let refined = refine(&self.curves[step], x).1;
        ((p + refined) / 2).clamp(1, 65535) as u16
    }

    fn learn(&mut self, step: usize, x: i32, bit: u32) {
        if let Some(rate) = self.rate {
            let x = x.clamp(-STRETCH_MAX, STRETCH_MAX);
            let point = refine(&self.curves[step], x).0;
            average(&mut self.curves[step][point], bit, rate);
        }
    }
}
