//! What a model costs and how fast it is, without choosing: for comparing models at equal groups and
//! anchors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::network::Memory;
use crate::model::tokens::Counts;
use crate::model::{Costs, Model};

use super::engines::Engines;
use super::latents::{LatentWriter, Latents};
use super::model_codec::{Beginning, Grouping};
use super::payload::AnchorRange;
use super::{AnchorSource, CodecError, Codecs, Encoded, Result, Snapshot};
use super::{chooser, model_codec, network_codec};

/// What coding some extents took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    pub raw_bytes: u64,
    pub payload_bytes: u64,
    /// Of models with a network only.
    pub costs: Costs,
    pub counts: Counts,
    pub encoding: Duration,
    pub decoding: Duration,
}

impl std::ops::AddAssign for Measured {
    fn add_assign(&mut self, other: Measured) {
        self.raw_bytes += other.raw_bytes;
        self.payload_bytes += other.payload_bytes;
        self.costs += other.costs;
        self.counts += other.counts;
        self.encoding += other.encoding;
        self.decoding += other.decoding;
    }
}

impl Codecs {
    /// Encodes an extent with the encoding model in groups (a number is their most bytes), all from the anchor if
    /// there is one and with these latents, whatever else would be smaller. Gives the state after the anchor, too.
    ///
    /// # Errors
    /// If there is no encoding model, or the latents are not for it.
    pub fn encode_by_model(
        &self,
        raw: &[u8],
        group: impl Into<Grouping>,
        anchor: Option<&AnchorSource>,
        latents: Option<&Latents>,
    ) -> Result<(Encoded, Option<Arc<Snapshot>>)> {
        let model = self.encoder()?;
        let engines = self.engines.of(&model);
        let anchor = anchor.filter(|_| model.has_history()).map(|source| {
            let range = source.start..source.start + source.bytes.len() as u32;
            let block = source.block;
            let snapshot = self.encoding_snapshot(&model, &source.bytes);
            (AnchorRange { block, range }, snapshot)
        });
        let beginning = Beginning {
            anchor: anchor.as_ref().map(|(range, s)| (range, s.as_ref())),
            latents,
        };
        let encoded = model_codec::encode(&model, engines.as_ref(), raw, group.into(), beginning)?;
        Ok((encoded, anchor.map(|(_, snapshot)| snapshot)))
    }

    /// Encodes an extent with the encoding model as the chooser does: without latents and with all that `writer`
    /// writes. The smallest, and the latents that it has.
    ///
    /// # Errors
    /// If there is no encoding model, or what is written is not for it.
    pub fn encode_smallest(
        &self,
        raw: &[u8],
        grouping: Grouping,
        writer: Option<&dyn LatentWriter>,
    ) -> Result<(Encoded, Option<Latents>)> {
        let model = self.encoder()?;
        let engines = self.engines.of(&model);
        chooser::smallest((&model, engines.as_ref()), raw, grouping, None, writer)
    }

    /// The tokens of each group of an extent, for the network of the encoding model.
    ///
    /// # Errors
    /// If there is no encoding model, or it has no network.
    pub fn group_tokens(&self, raw: &[u8], grouping: Grouping) -> Result<Vec<Vec<u16>>> {
        let groups = network_codec::cut(&*self.encoder()?, raw, grouping)?;
        Ok(groups.into_iter().map(|(_, tokens)| tokens).collect())
    }

    fn encoder(&self) -> Result<Arc<Model>> {
        let none = || CodecError::BadModel("there is none".into());
        self.encoding_model().ok_or_else(none)
    }

    /// As [`Codecs::encode_by_model`], and decodes it and compares.
    ///
    /// # Errors
    /// If there is no encoding model, or it does not decode what it encoded.
    pub fn measure(
        &self,
        raw: &[u8],
        group: usize,
        anchor: Option<&AnchorSource>,
    ) -> Result<Measured> {
        let begun = Instant::now();
        let (encoded, snapshot) = self.encode_by_model(raw, group, anchor, None)?;
        let encoding = begun.elapsed();
        let begun = Instant::now();
        let decoded = self.decode_all(&encoded.payload, snapshot.as_deref())?;
        let decoding = begun.elapsed();
        if decoded != raw {
            return Err(CodecError::Damaged("it decodes to other bytes".into()));
        }
        let mut measured = Measured {
            raw_bytes: raw.len() as u64,
            payload_bytes: encoded.payload.len() as u64,
            encoding,
            decoding,
            ..Measured::default()
        };
        let model = self.encoder()?;
        let Some(Engines { evaluator, .. }) = self.engines.of(&model) else {
            return Ok(measured);
        };
        let (cuts, tokens): (Vec<_>, Vec<_>) = network_codec::cut(&model, raw, group.into())?
            .into_iter()
            .unzip();
        let none = Memory::default();
        let predicted = network_codec::predict(&evaluator, tokens, |_| &none)?;
        for (cut, predicted) in cuts.iter().zip(&predicted) {
            let state = || model_codec::start_state(&model, cut.len, snapshot.as_deref(), &[]);
            let (heads, costs) = (&*evaluator.cpu, &mut measured.costs);
            let counts = network_codec::code(&model, heads, predicted, cut.len, state, costs)?;
            measured.counts += counts;
        }
        Ok(measured)
    }
}
