//! What the network reads latents with: an encoder, and an attention of each layer of the decoder to what it makes of them.

use candle_core::{Device, Result, Tensor, Var};

use super::attention::Projected;
use super::layer::{FloatAttention, FloatLayer, constant, normal};
use super::{EMBEDDING_DEVIATION, FloatNetwork, NEVER, Parameter, Sample};
use crate::model::network::Config;
use crate::train::corpus::Random;

/// An encoder in floats.
#[derive(Debug)]
pub struct FloatEncoder {
    pub latents: Var,
    pub layers: Vec<FloatLayer>,
    pub norm: Var,
}

/// What the encoder makes of the latents of a batch, filled up to the most that a sequence has.
pub(super) struct FloatMemory {
    batch: usize,
    /// One row for each latent.
    rows: Tensor,
    /// 0 for the latents of a sequence, very low for what it is filled up with: batch x 1 x 1 x latents.
    mask: Tensor,
    /// 0 for a sequence without any latents, else 1: batch x 1 x 1 x 1.
    present: Tensor,
}

impl FloatEncoder {
    pub(super) fn new(config: &Config, random: &mut Random, device: &Device) -> Result<Self> {
        let table = [config.latent_vocab, config.d_model];
        let layers = (0..config.num_layers).map(|_| FloatLayer::new(config, random, device));
        let layers = layers.collect::<Result<_>>()?;
        Ok(FloatEncoder {
            latents: normal(random, &table, EMBEDDING_DEVIATION, device)?,
            layers,
            norm: constant(1.0, &[config.d_model], device)?,
        })
    }

    /// As the last of [`FloatNetwork::parameters`].
    pub(in crate::train::network) fn parameters(&self) -> Vec<Parameter> {
        let mut all = vec![Parameter::embedding("latents".into(), &self.latents)];
        for (index, layer) in self.layers.iter().enumerate() {
            all.extend(layer.parameters(&format!("encoder.{index}")));
        }
        all.push(Parameter::other("encoder.norm".into(), &self.norm));
        all
    }
}

impl FloatNetwork {
    /// Err unless the network can read the latents of all samples.
    pub(in crate::train::network) fn check_latents(&self, samples: &[Sample]) -> Result<()> {
        let config = &self.config;
        let fits = |sample: &Sample| {
            let known = |&latent: &u16| usize::from(latent) < config.latent_vocab;
            sample.latents.len() <= config.max_latents && sample.latents.iter().all(known)
        };
        match samples.iter().all(fits) {
            true => Ok(()),
            false => candle_core::bail!("latents that are not of this network"),
        }
    }

    /// Reads the latents of a batch, if there are any.
    pub(super) fn encode(&self, samples: &[Sample]) -> Result<Option<FloatMemory>> {
        self.check_latents(samples)?;
        let lists: Vec<&[u16]> = samples.iter().map(|sample| sample.latents).collect();
        self.read(&lists)
    }

    /// The rows that are made of lists of latents, one behind the other, if there are any.
    pub(in crate::train::network) fn encode_lists(
        &self,
        lists: &[&[u16]],
    ) -> Result<Option<Tensor>> {
        let Some(memory) = self.read(lists)? else {
            return Ok(None);
        };
        let most = memory.mask.dim(3)? as u32;
        let of = |(list, start): (&&[u16], u32)| start..start + list.len() as u32;
        let starts = (0..).step_by(most as usize);
        let real: Vec<u32> = lists.iter().zip(starts).flat_map(of).collect();
        let real = Tensor::new(real, memory.rows.device())?;
        Ok(Some(memory.rows.index_select(&real, 0)?))
    }

    /// Reads lists of latents, each by itself, if any has some.
    fn read(&self, lists: &[&[u16]]) -> Result<Option<FloatMemory>> {
        let (batch, device) = (lists.len(), self.tokens.device());
        let most = lists.iter().map(|list| list.len()).max().unwrap_or(0);
        let Some(encoder) = self.encoder.as_ref().filter(|_| most > 0) else {
            return Ok(None);
        };
        let (mut latents, mut mask, mut present) = (Vec::new(), Vec::new(), Vec::new());
        for list in lists {
            let filling = most - list.len();
            latents.extend(list.iter().map(|&latent| u32::from(latent)));
            latents.extend(std::iter::repeat_n(0, filling));
            mask.extend(std::iter::repeat_n(0.0, list.len()));
            mask.extend(std::iter::repeat_n(NEVER, filling));
            present.push(f32::from(u8::from(!list.is_empty())));
        }
        let latents = Tensor::from_vec(latents, batch * most, device)?;
        let mask = Tensor::from_vec(mask, (batch, 1, 1, most), device)?;
        let seen = self.seen_around(most, &mask)?;
        let mut x = self.embedding(&encoder.latents, &latents)?;
        for layer in &encoder.layers {
            x = self.attend(layer, &x, batch, &seen)?;
            x = self.feed_forward(layer, &x)?;
        }
        Ok(Some(FloatMemory {
            batch,
            rows: self.normalise(&encoder.norm, &x)?,
            mask,
            present: Tensor::from_vec(present, (batch, 1, 1, 1), device)?,
        }))
    }

    /// Adds what the positions of the decoder find in the latents; nothing where there are none.
    pub(super) fn attend_latents(
        &self,
        cross: &FloatAttention,
        x: &Tensor,
        memory: &FloatMemory,
    ) -> Result<Tensor> {
        let inputs = self.normalise(&cross.norm, x)?;
        let projected = Projected {
            queries: self.project(&cross.query, &inputs, memory.batch)?,
            keys: self.project(&cross.key, &memory.rows, memory.batch)?,
            values: self.project(&cross.value, &memory.rows, memory.batch)?,
        };
        let context = self.context(cross, &projected, &memory.mask)?;
        self.put_context(cross, context.broadcast_mul(&memory.present)?, x)
    }
}
