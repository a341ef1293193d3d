//! The step-by-step path of the reference engine: keys and values of all slots lie in tensors.

use candle_core::{DType, Tensor};

use super::super::{Batch, Memory, Seen, Step, check_memory, check_steps};
use super::tensors::Result;
use super::{LayerTensors, Reference, Shape};
use crate::model::ModelError;

/// Keys and values of one decoder layer.
struct Cache {
    /// (slots * max_tokens) x inner.
    keys: Tensor,
    values: Tensor,
    /// slots x heads x max_latents x d_kv; in layers that attend to latents.
    latents: Option<(Tensor, Tensor)>,
}

/// What is known of a slot outside the tensors.
#[derive(Debug, Clone, Default)]
struct Slot {
    seen: Seen,
    latents: usize,
}

/// The slots of the step-by-step path.
pub(super) struct Streams<'a> {
    engine: &'a Reference,
    slots: Vec<Option<Slot>>,
    caches: Vec<Cache>,
}

impl<'a> Streams<'a> {
    pub(super) fn new(engine: &'a Reference, slots: usize) -> Result<Streams<'a>> {
        let config = engine.config();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &engine.device);
        let cache = |layer: &LayerTensors| -> Result<Cache> {
            let rows = [slots.max(1) * config.max_tokens, config.inner()];
            let (most, d_kv) = (config.max_latents, config.d_kv);
            let latents = [slots.max(1), config.num_heads, most, d_kv];
            Ok(Cache {
                keys: zeros(&rows)?,
                values: zeros(&rows)?,
                latents: match layer.cross {
                    Some(_) => Some((zeros(&latents)?, zeros(&latents)?)),
                    None => None,
                },
            })
        };
        Ok(Streams {
            engine,
            slots: vec![None; slots],
            caches: engine.decoder.iter().map(cache).collect::<Result<_>>()?,
        })
    }

    fn index(&self, numbers: impl Iterator<Item = usize>) -> Result<Tensor> {
        let numbers: Vec<u32> = numbers.map(|n| n as u32).collect();
        let len = numbers.len();
        Ok(Tensor::from_vec(numbers, len, &self.engine.device)?)
    }

    /// Rows of activations by heads: one position of each stream.
    fn project(&self, matrix: &super::Matrix, inputs: &Tensor) -> Result<Tensor> {
        let products = self.engine.arithmetic.multiply(matrix, inputs)?;
        self.engine.arithmetic.activation(&products)
    }

    /// Attention of the newest position of each stream to those so far.
    fn attend(&self, layer: usize, places: &Places, residual: &Tensor) -> Result<Tensor> {
        let (engine, cache) = (self.engine, &self.caches[layer]);
        let config = engine.config();
        let attention = &engine.decoder[layer].attention;
        let inputs = engine.arithmetic.normalise(&attention.norm, residual)?;
        let queries = self.project(&attention.query, &inputs)?;
        let shape = (places.count, config.inner());
        let rows = places
            .rows
            .unsqueeze(1)?
            .broadcast_as(shape)?
            .contiguous()?;
        for (cached, matrix) in [
            (&cache.keys, &attention.key),
            (&cache.values, &attention.value),
        ] {
            cached.scatter_set(&rows, &self.project(matrix, &inputs)?.contiguous()?, 0)?;
        }
        let gather = |cached: &Tensor| -> Result<Tensor> {
            let slots = cached.reshape((self.slots.len(), config.max_tokens, config.inner()))?;
            let seen = slots
                .index_select(&places.slots, 0)?
                .narrow(1, 0, places.longest)?;
            let shape = Shape {
                batch: places.count,
                positions: places.longest,
            };
            engine.heads(&seen.contiguous()?, shape)
        };
        let shape = Shape {
            batch: places.count,
            positions: 1,
        };
        let queries = engine.heads(&queries, shape)?;
        let bias = attention.bias.as_ref().map(|bias| {
            let mine = bias.index_select(&places.positions, 1)?;
            let mine = mine.narrow(2, 0, places.longest)?.transpose(0, 1)?;
            mine.contiguous()?.unsqueeze(2)
        });
        let context = engine.arithmetic.attend(
            (&queries, &gather(&cache.keys)?, &gather(&cache.values)?),
            (&attention.score, &attention.gain),
            bias.transpose()?.as_ref(),
            &places.visible,
        )?;
        engine.put_context(attention, &context, residual)
    }

    fn attend_latents(&self, layer: usize, places: &Places, residual: &Tensor) -> Result<Tensor> {
        let engine = self.engine;
        let cross = engine.decoder[layer].cross.as_ref();
        let Some((cross, (keys, values))) = cross.zip(self.caches[layer].latents.as_ref()) else {
            return Ok(residual.clone());
        };
        let keys = keys.index_select(&places.slots, 0)?;
        let values = values.index_select(&places.slots, 0)?;
        let shape = Shape {
            batch: places.count,
            positions: 1,
        };
        engine.attend_latents(cross, residual, shape, (&keys, &values), &places.present)
    }
}

/// Where the streams of a step lie.
struct Places {
    count: usize,
    /// Positions of the longest stream, the new one included.
    longest: usize,
    slots: Tensor,
    positions: Tensor,
    /// Rows of the caches that the new positions take.
    rows: Tensor,
    /// All ones: what lies ahead is hidden by the biases.
    visible: Tensor,
    /// 1 for each latent of each stream.
    present: Tensor,
}

impl Batch for Streams<'_> {
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<()> {
        let engine = self.engine;
        check_memory(engine.config(), memory)?;
        if slot >= self.slots.len() {
            return Err(ModelError::Input("no such slot".into()));
        }
        let most = engine.config().max_latents;
        if most > 0 {
            let keys = engine.latent_keys(&[memory], most)?;
            for (cache, keys) in self.caches.iter().zip(&keys) {
                if let Some(((keys, values), (new_keys, new_values))) =
                    cache.latents.as_ref().zip(keys.as_ref())
                {
                    keys.slice_set(new_keys, 0, slot)?;
                    values.slice_set(new_values, 0, slot)?;
                }
            }
        }
        self.slots[slot] = Some(Slot {
            seen: Seen::default(),
            latents: memory.len,
        });
        Ok(())
    }

    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>> {
        let engine = self.engine;
        let config = engine.config();
        let seen = |slot: usize| Some(&self.slots.get(slot)?.as_ref()?.seen);
        check_steps(config, steps, seen)?;
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let mut slots: Vec<Slot> = Vec::with_capacity(steps.len());
        for step in steps {
            // the check has seen that the slot is taken
            let mut slot = self.slots[step.slot].clone().unwrap_or_default();
            slot.seen.push(step.token);
            slots.push(slot);
        }
        let positions = || slots.iter().map(|slot| slot.seen.positions - 1);
        let longest = positions().max().unwrap_or(0) + 1;
        let row = |(step, position): (&Step, usize)| step.slot * config.max_tokens + position;
        let latents = slots.iter().map(|slot| slot.latents);
        let places = Places {
            count: steps.len(),
            longest,
            slots: self.index(steps.iter().map(|step| step.slot))?,
            positions: self.index(positions())?,
            rows: self.index(steps.iter().zip(positions()).map(row))?,
            visible: Tensor::ones((1, 1, 1, longest), DType::F64, &engine.device)?,
            present: engine.visible(latents, config.max_latents)?,
        };
        let mut residual = engine.embed(slots.iter().map(|slot| slot.seen.tokens.as_slice()))?;
        for (index, layer) in engine.decoder.iter().enumerate() {
            residual = self.attend(index, &places, &residual)?;
            residual = self.attend_latents(index, &places, &residual)?;
            residual = engine.feed_forward(layer, &residual)?;
        }
        let rows = engine
            .arithmetic
            .normalise(&engine.decoder_norm, &residual)?;
        for (step, slot) in steps.iter().zip(slots) {
            self.slots[step.slot] = Some(slot);
        }
        super::tensors::to_activations(&rows)
    }
}
