//! The step-by-step path of the reference engine: keys and values of all slots lie in rings of tensors.

use candle_core::{DType, Tensor};

use super::super::{Memory, Seen, Step, check_memory, check_steps};
use super::replica::{CATCH_UP, EmbeddingRows, LayerTensors, Pair, Replica, Shape};
use super::replica::{ring, ring_state};
use super::tensors::Result;

/// Keys and values of one decoder layer.
struct Cache {
    /// (slots * ring + 1) x inner; the last row takes what nothing looks at.
    keys: Tensor,
    values: Tensor,
    /// slots x heads x max_latents x d_kv; in layers that attend to latents.
    latents: Option<Pair>,
}

/// What is known of a slot outside the tensors.
#[derive(Debug, Clone, Default)]
struct Slot {
    seen: Seen,
    latents: usize,
}

/// The slots of one device.
pub(super) struct Streams<'a> {
    replica: &'a Replica,
    slots: Vec<Option<Slot>>,
    caches: Vec<Cache>,
}

/// A stream's part of a round: the inputs of its next positions.
struct Move {
    slot: usize,
    inputs: Vec<Option<u16>>,
}

impl<'a> Streams<'a> {
    pub(super) fn new(replica: &'a Replica, slots: usize) -> Result<Streams<'a>> {
        let config = replica.config();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &replica.device);
        let cache = |layer: &LayerTensors| -> Result<Cache> {
            let rows = [slots * ring(config) + 1, config.inner()];
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
        let caches = replica.decoder.iter().map(cache).collect::<Result<_>>();
        Ok(Streams {
            replica,
            slots: vec![None; slots],
            caches: replica.named(caches)?,
        })
    }

    pub(super) fn start(&mut self, slot: usize, memory: &Memory) -> Result<()> {
        check_memory(self.replica.config(), memory)?;
        self.replica.named(self.keep_latents(slot, memory))?;
        self.slots[slot] = Some(Slot {
            seen: Seen::default(),
            latents: memory.len,
        });
        Ok(())
    }

    fn keep_latents(&self, slot: usize, memory: &Memory) -> Result<()> {
        let most = self.replica.config().max_latents;
        if most == 0 {
            return Ok(());
        }
        let found = self.replica.latent_keys(&[memory], most)?;
        for (cache, found) in self.caches.iter().zip(&found) {
            if let (Some((keys, values)), Some(found)) = (&cache.latents, found) {
                keys.slice_set(&found.0, 0, slot)?;
                values.slice_set(&found.1, 0, slot)?;
            }
        }
        Ok(())
    }

    /// Err if a step does not fit its stream.
    pub(super) fn check<'s>(&self, steps: impl Iterator<Item = Step<'s>>) -> Result<()> {
        let steps: Vec<Step> = steps.collect();
        let seen = |slot: usize| Some(&self.slots.get(slot)?.as_ref()?.seen);
        check_steps(self.replica.config(), &steps, seen)
    }

    /// Moves streams by steps that have been checked; returns the last row of each.
    pub(super) fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>> {
        let mut inputs: Vec<_> = steps
            .iter()
            .map(|step| {
                let slot = self.slots[step.slot].as_ref();
                let seen = slot.map_or_else(Seen::default, |slot| slot.seen.clone());
                seen.inputs(step.tokens)
            })
            .collect();
        let d = self.replica.config().d_model;
        let mut rows = vec![0; steps.len() * d];
        loop {
            let (mut moves, mut places) = (Vec::new(), Vec::new());
            for (place, (step, inputs)) in steps.iter().zip(&mut inputs).enumerate() {
                let inputs: Vec<_> = inputs.by_ref().take(CATCH_UP).collect();
                if !inputs.is_empty() {
                    let slot = step.slot;
                    moves.push(Move { slot, inputs });
                    places.push(place);
                }
            }
            if moves.is_empty() {
                return Ok(rows);
            }
            let found = self.round(&moves);
            let found = self.replica.named(found)?;
            for (place, found) in places.into_iter().zip(found.chunks_exact(d)) {
                rows[place * d..(place + 1) * d].copy_from_slice(found);
            }
        }
    }

    /// Moves streams by up to [`CATCH_UP`] positions each; returns the last row of each.
    fn round(&mut self, moves: &[Move]) -> Result<Vec<i8>> {
        let replica = self.replica;
        let (places, inputs) = self.places(moves)?;
        let mut residual = replica.embed(&inputs)?;
        for index in 0..replica.decoder.len() {
            residual = self.attend(index, &places, &residual)?;
            residual = self.attend_latents(index, &places, &residual)?;
            residual = replica.feed_forward(&replica.decoder[index], &residual)?;
        }
        replica.hidden_rows(&residual.index_select(&places.last, 0)?)
    }

    /// Moves what is known outside the tensors, and says where everything lies.
    fn places(&mut self, moves: &[Move]) -> Result<(Places, EmbeddingRows)> {
        let config = self.replica.config();
        let (ring, dummy) = (ring(config), self.slots.len() * ring(config));
        let positions = moves.iter().map(|m| m.inputs.len()).max().unwrap_or(0);
        let mut inputs = EmbeddingRows::new(config);
        let (mut rows, mut states, mut last) = (Vec::new(), Vec::new(), Vec::new());
        let mut latents = Vec::with_capacity(moves.len());
        for (index, step) in moves.iter().enumerate() {
            // the check has seen that the slot is taken
            let slot = self.slots[step.slot].get_or_insert_default();
            for number in 0..positions {
                let input = step.inputs.get(number);
                if let Some(&input) = input {
                    slot.seen.push(input);
                }
                let position = slot.seen.positions - 1;
                inputs.push(config, &slot.seen);
                states.push(ring_state(config, position));
                let row = step.slot * ring + position % ring;
                rows.push(input.map_or(dummy, |_| row));
            }
            last.push(index * positions + step.inputs.len() - 1);
            latents.push(slot.latents);
        }
        let places = Places {
            shape: Shape {
                batch: moves.len(),
                positions,
            },
            slots: self.index(moves.iter().map(|step| step.slot))?,
            states: self.index(states.into_iter())?,
            rows: self.index(rows.into_iter())?,
            last: self.index(last.into_iter())?,
            present: self
                .replica
                .visible(latents.into_iter(), config.max_latents)?,
        };
        Ok((places, inputs))
    }

    fn index(&self, numbers: impl Iterator<Item = usize>) -> Result<Tensor> {
        let numbers: Vec<u32> = numbers.map(|n| n as u32).collect();
        let len = numbers.len();
        Ok(Tensor::from_vec(numbers, len, &self.replica.device)?)
    }

    /// Attention of the newest positions of each stream to what its ring holds, themselves included.
    fn attend(&self, index: usize, places: &Places, residual: &Tensor) -> Result<Tensor> {
        let (replica, cache) = (self.replica, &self.caches[index]);
        let layer = &replica.decoder[index];
        let projected = replica.project_newest(layer, residual)?;
        let rows = places.rows.unsqueeze(1)?;
        let rows = rows.broadcast_as(projected.keys.shape())?.contiguous()?;
        cache.keys.scatter_set(&rows, &projected.keys, 0)?;
        cache.values.scatter_set(&rows, &projected.values, 0)?;
        let rings = (
            self.gather(&cache.keys, places)?,
            self.gather(&cache.values, places)?,
        );
        let queries = replica.heads(&projected.queries, places.shape)?;
        replica.attend_rings(index, (&queries, &rings), &places.states, residual)
    }

    /// The rings of the streams of a step by heads.
    fn gather(&self, cached: &Tensor, places: &Places) -> Result<Tensor> {
        let config = self.replica.config();
        let (slots, ring) = (self.slots.len(), ring(config));
        let rings = cached.narrow(0, 0, slots * ring)?;
        let rings = rings.reshape((slots, ring, config.inner()))?;
        let shape = Shape {
            batch: places.shape.batch,
            positions: ring,
        };
        self.replica
            .heads(&rings.index_select(&places.slots, 0)?, shape)
    }

    fn attend_latents(&self, index: usize, places: &Places, residual: &Tensor) -> Result<Tensor> {
        let replica = self.replica;
        let cross = replica.decoder[index].cross.as_ref();
        let Some((cross, (keys, values))) = cross.zip(self.caches[index].latents.as_ref()) else {
            return Ok(residual.clone());
        };
        let keys = keys.index_select(&places.slots, 0)?;
        let values = values.index_select(&places.slots, 0)?;
        let latents = (&keys, &values);
        replica.attend_latents(cross, residual, places.shape, latents, &places.present)
    }
}

/// Where the streams of a round lie. All streams have as many positions as the one that moves furthest;
/// those behind a stream's own last one leave no trace.
struct Places {
    shape: Shape,
    slots: Tensor,
    /// Of each position, the state of the ring that it finds.
    states: Tensor,
    /// Of each position, the row of the caches that it takes.
    rows: Tensor,
    /// The last position of each stream.
    last: Tensor,
    /// 1 for each latent of each stream.
    present: Tensor,
}
