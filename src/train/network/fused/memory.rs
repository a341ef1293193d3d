//! What sequences read besides their tokens: rows that the encoder makes of latents. The encoder itself is candle's: it reads a
//! few latents where the decoder reads hundreds of tokens.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::pack;
use super::rows::UNIT;
use crate::train::network::float::{FloatEncoder, FloatNetwork, Sample};
use crate::train::network::optimiser::derived;

/// Tokens, and which memory they read, if any.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    pub tokens: &'a [u16],
    pub memory: Option<usize>,
}

/// What the encoder makes of all latents of a batch; of those that are alike once.
#[derive(Debug)]
pub struct Memories {
    /// The same as `rows`, in 1.0, as candle derives it; none if nothing is read.
    encoded: Option<Tensor>,
    /// Activations in their exact unit, a row for each latent.
    rows: Vec<f32>,
    /// The latents of each memory among all.
    places: Vec<Range<usize>>,
    d_model: usize,
}

/// Neighbouring tokens of a shard that read the same memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    pub tokens: Range<usize>,
    /// Rows among those of the shard.
    pub memory: Range<usize>,
}

/// The sequences of a shard as its layers see them.
#[derive(Debug, Default)]
pub struct Reading {
    /// Tokens of each sequence.
    pub lens: Vec<usize>,
    /// All tokens that read a memory, in their order, and how many these are.
    pub spans: Vec<Span>,
    pub tokens: usize,
    /// The memories that are read, and their rows, packed, in this order.
    pub memories: Vec<usize>,
    pub packed: Vec<u32>,
    pub rows: usize,
}

impl Memories {
    /// Encodes the latents of samples that have tokens to read them.
    ///
    /// # Errors
    /// If latents are not of this network.
    pub fn new<'a>(
        network: &FloatNetwork,
        samples: &[Sample<'a>],
    ) -> Result<(Memories, Vec<Sequence<'a>>)> {
        network.check_latents(samples)?;
        let (mut lists, mut known) = (Vec::new(), HashMap::new());
        let sequence = |&Sample { tokens, latents }: &Sample<'a>| {
            let reads = !tokens.is_empty() && !latents.is_empty();
            let memory = reads.then(|| {
                *known.entry(latents).or_insert_with(|| {
                    lists.push(latents);
                    lists.len() - 1
                })
            });
            Sequence { tokens, memory }
        };
        let sequences = samples.iter().map(sequence).collect();
        let encoded = network.encode_lists(&lists)?;
        let mut rows = match &encoded {
            Some(encoded) => encoded.flatten_all()?.to_vec1::<f32>()?,
            None => vec![],
        };
        rows.iter_mut().for_each(|value| *value *= UNIT);
        let mut end = 0;
        let place = |list: &&[u16]| {
            end += list.len();
            end - list.len()..end
        };
        let memories = Memories {
            encoded,
            rows,
            places: lists.iter().map(place).collect(),
            d_model: network.config.d_model,
        };
        Ok((memories, sequences))
    }

    /// What the sequences of a shard read.
    pub fn reading(&self, sequences: &[Sequence]) -> Reading {
        let mut reading = Reading::default();
        let (mut known, mut values) = (HashMap::new(), Vec::new());
        let mut start = 0;
        for sequence in sequences {
            let tokens = start..start + sequence.tokens.len();
            start = tokens.end;
            reading.lens.push(tokens.len());
            let Some(memory) = sequence.memory else {
                continue;
            };
            let own = known.entry(memory).or_insert_with(|| {
                let place = &self.places[memory];
                let values_of = place.start * self.d_model..place.end * self.d_model;
                values.extend_from_slice(&self.rows[values_of]);
                reading.memories.push(memory);
                reading.rows += place.len();
                reading.rows - place.len()..reading.rows
            });
            reading.tokens += tokens.len();
            match reading.spans.last_mut() {
                Some(last) if last.tokens.end == tokens.start && last.memory == *own => {
                    last.tokens.end = tokens.end;
                }
                _ => reading.spans.push(Span {
                    tokens,
                    memory: own.clone(),
                }),
            }
        }
        reading.packed = pack::rows(&values, self.d_model);
        reading
    }

    /// Gradients of the encoder's parameters, from those of the rows of memories by shard: the memories that it reads,
    /// and what [`Reading::packed`] has, in 1.0.
    pub fn back<'s>(
        &self,
        encoder: &FloatEncoder,
        shards: impl Iterator<Item = (&'s [usize], &'s [f32])>,
    ) -> Result<Vec<Tensor>> {
        let parameters = encoder.parameters();
        let Some(encoded) = &self.encoded else {
            return parameters.iter().map(|p| p.var.zeros_like()).collect();
        };
        let mut sum = vec![0f32; self.rows.len()];
        for (memories, mut gradients) in shards {
            for &memory in memories {
                let place = &self.places[memory];
                let (own, others) = gradients.split_at(place.len() * self.d_model);
                let sum = &mut sum[place.start * self.d_model..];
                sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
                gradients = others;
            }
        }
        // its gradient by the rows is the one that is known
        let sum = Tensor::from_vec(sum, encoded.shape(), encoded.device())?;
        derived(&(encoded * sum)?.sum_all()?, &parameters)
    }
}
