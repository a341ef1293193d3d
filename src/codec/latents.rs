//! The latents of a block: those that all its groups share, and those of each group.
//!
//! Before the first token of a group the network's encoder reads the shared latents and then the group's own;
//! what it makes of them is what every position of the group attends to.

use std::sync::OnceLock;

use crate::model::latents::LatentPrior;
use crate::model::network::{Engine, Memory};
use crate::model::predictor::BitCoder;
use crate::model::{Model, ModelError};

use super::model_codec::model_error;
use super::range_coder::{Decoder, Encoder};
use super::{CodecError, MAX_RAW_LEN, Result};

/// Writes latents for blocks: what training calls the compressor. It may guess as it likes; what it writes is tried,
/// and kept only where that is smaller.
pub trait LatentWriter: Send + Sync + std::fmt::Debug {
    /// Candidates for a block whose groups have these tokens.
    ///
    /// # Errors
    /// Says why there are none.
    fn write(&self, groups: &[Vec<u16>]) -> std::result::Result<Vec<Latents>, String>;

    /// Tokens that it reads, latents that it writes, and the most of them: what a network must agree with.
    fn sizes(&self) -> [usize; 3];
}

/// Whether groups have latents of their own is as likely as not.
const HALF: u16 = 1 << 15;

/// Latents of one block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latents {
    /// For all groups.
    pub shared: Vec<u16>,
    /// One string for every group, or none at all.
    pub own: Vec<Vec<u16>>,
}

impl Latents {
    /// True if no group has any.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.own.iter().all(Vec::is_empty)
    }

    /// What the encoder reads for a group.
    pub fn of_group(&self, group: usize) -> Vec<u16> {
        let own = self.own.get(group).map_or(&[] as &[u16], Vec::as_slice);
        [&self.shared, own].concat()
    }

    /// Whether a group has none but the shared ones.
    fn only_shared(&self, group: usize) -> bool {
        self.own.get(group).is_none_or(Vec::is_empty)
    }

    /// What an encoder makes of the latents of each of so many groups.
    ///
    /// # Errors
    /// If the engine has no encoder, or the latents are not for it.
    pub fn memories(
        &self,
        engine: &dyn Engine,
        groups: usize,
    ) -> std::result::Result<Vec<Memory>, ModelError> {
        let shared = memory_of(engine, &self.shared)?;
        let memory = |group: usize| match self.only_shared(group) {
            true => Ok(shared.clone()),
            false => memory_of(engine, &self.of_group(group)),
        };
        (0..groups).map(memory).collect()
    }

    /// The coded latents of a block of so many groups.
    ///
    /// # Errors
    /// If there is not one string for each group, or one is not of the prior.
    pub fn encode(&self, prior: &LatentPrior, groups: usize) -> Result<Vec<u8>> {
        let has_own = self.own.iter().any(|string| !string.is_empty());
        if has_own && self.own.len() != groups {
            let lengths = (self.own.len(), groups);
            let why = format!("{} strings of latents for {} groups", lengths.0, lengths.1);
            return Err(CodecError::Damaged(why));
        }
        let mut coder = Encoder::default();
        coder.code(HALF, u32::from(has_own));
        let own = self.own.iter().filter(|_| has_own);
        for string in std::iter::once(&self.shared).chain(own) {
            prior.encode(&mut coder, string).map_err(model_error)?;
        }
        Ok(coder.finish())
    }

    /// The latents of a block of so many groups, of which each may have at most `most`.
    ///
    /// # Errors
    /// If a group has more, or all together have more latents than a block can have bytes.
    pub fn decode(
        bytes: &[u8],
        prior: &LatentPrior,
        groups: usize,
        most: usize,
    ) -> Result<Latents> {
        let mut coder = Decoder::new(bytes);
        let has_own = coder.code(HALF, 0) == 1;
        let shared = prior.decode(&mut coder);
        let refused = || Err(CodecError::Damaged("too many latents".into()));
        if shared.len() > most {
            return refused();
        }
        let (mut own, mut all) = (Vec::new(), shared.len());
        for _ in 0..if has_own { groups } else { 0 } {
            let string = prior.decode(&mut coder);
            all += string.len();
            if shared.len() + string.len() > most || all > MAX_RAW_LEN {
                return refused();
            }
            own.push(string);
        }
        Ok(Latents { shared, own })
    }
}

/// The latents of a block while it is decoded, read when they are first needed.
#[derive(Debug, Default)]
pub(super) struct Reading {
    latents: OnceLock<Latents>,
    /// Of the groups that have no latents of their own.
    shared: OnceLock<Memory>,
}

impl Reading {
    /// The latents of a group, which are coded in `bytes`, and what the encoder makes of them.
    ///
    /// # Errors
    /// If the model has no encoder, or the latents are not for it.
    pub fn of_group(
        &self,
        model: &Model,
        engine: &dyn Engine,
        bytes: &[u8],
        (group, groups): (usize, usize),
    ) -> Result<(Vec<u16>, Memory)> {
        let latents = match self.latents.get() {
            Some(latents) => latents,
            None => {
                let read = read(model, bytes, groups)?;
                self.latents.get_or_init(|| read)
            }
        };
        let own = latents.of_group(group);
        let is_shared = latents.only_shared(group);
        if let Some(memory) = self.shared.get().filter(|_| is_shared) {
            return Ok((own, memory.clone()));
        }
        let memory = memory_of(engine, &own).map_err(model_error)?;
        let memory = match is_shared {
            true => self.shared.get_or_init(|| memory).clone(),
            false => memory,
        };
        Ok((own, memory))
    }
}

fn prior(model: &Model) -> Result<(&LatentPrior, usize)> {
    let expert = model.expert().map_err(model_error)?;
    let none = || CodecError::Damaged("latents for a model without encoder".into());
    let prior = expert.prior.as_ref().ok_or_else(none)?;
    Ok((prior, expert.network.config().max_latents))
}

fn read(model: &Model, bytes: &[u8], groups: usize) -> Result<Latents> {
    let (prior, most) = prior(model)?;
    Latents::decode(bytes, prior, groups, most)
}

/// The latents of a block of so many groups as they stand in its header.
pub(super) fn coded(model: &Model, latents: &Latents, groups: usize) -> Result<Vec<u8>> {
    latents.encode(prior(model)?.0, groups)
}

/// What an encoder makes of one string of latents; nothing of none.
fn memory_of(engine: &dyn Engine, latents: &[u16]) -> std::result::Result<Memory, ModelError> {
    if latents.is_empty() {
        return Ok(Memory::default());
    }
    let found = engine.encode(&[latents])?.pop();
    found.ok_or_else(|| ModelError::Device("the engine made no memory".into()))
}
