//! Streams of the decoder, and the memory that layers work in.

use super::super::{Batch, Memory, Seen, Step, check_memory, check_steps};
use super::layout::{Activations, KeyValues, LANES};
use super::{BLOCK, Simd};
use crate::model::ModelError;

/// What a decoder remembers of a stream: the keys and values of its last positions and of its latents.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) seen: Seen,
    /// By layer.
    pub(super) window: Vec<KeyValues>,
    /// By layer; empty without latents.
    pub(super) latents: Vec<KeyValues>,
}

impl Stream {
    pub(super) fn new(engine: &Simd) -> Stream {
        let config = engine.config();
        let (heads, layers) = (engine.heads(), config.num_decoder_layers);
        // what the window needs may begin within a block of positions
        let room = config.window - 1 + LANES - 1 + BLOCK;
        let latents = if config.max_latents > 0 { layers } else { 0 };
        Stream {
            seen: Seen::default(),
            window: vec![KeyValues::new(heads, room); layers],
            latents: vec![KeyValues::new(heads, config.max_latents); latents],
        }
    }

    /// Puts the stream at the start of a sequence.
    pub(super) fn start(&mut self, engine: &Simd, memory: &Memory, scratch: &mut Scratch) {
        self.seen = Seen::default();
        self.window.iter_mut().for_each(KeyValues::clear);
        scratch.inputs.copy(&memory.rows, engine.config().d_model);
        let layers = engine.tables.decoder.iter().zip(&mut self.latents);
        for (layer, latents) in layers {
            if let Some(cross) = &layer.cross {
                scratch.project_keys(engine, cross);
                latents.clear();
                scratch.remember(0..memory.len, latents);
            }
        }
    }
}

/// Memory that layers work in, used again and again.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    /// Rows of all streams, one stream behind the other, padded.
    pub(super) residual: Vec<i32>,
    /// Of these, how many belong to each stream.
    pub(super) counts: Vec<usize>,
    pub(super) inputs: Activations,
    pub(super) queries: Activations,
    pub(super) keys: Activations,
    pub(super) values: Activations,
    pub(super) contexts: Activations,
    pub(super) hidden: Activations,
}

impl Scratch {
    pub(super) fn clear(&mut self) {
        self.residual.clear();
        self.counts.clear();
    }

    /// Enters the next positions of a stream; returns how many they are.
    pub(super) fn enter(
        &mut self,
        engine: &Simd,
        seen: &mut Seen,
        inputs: impl Iterator<Item = Option<u16>>,
    ) -> usize {
        let before = self.residual.len();
        for input in inputs {
            seen.push(input);
            engine.embed(seen, &mut self.residual);
        }
        let count = (self.residual.len() - before) / engine.width();
        self.counts.push(count);
        count
    }

    /// Keys and values of all rows.
    pub(super) fn project_keys(&mut self, engine: &Simd, attention: &super::AttentionTables) {
        engine.project(&attention.key, &self.inputs, &mut self.keys);
        engine.project(&attention.value, &self.inputs, &mut self.values);
    }

    /// Adds the keys and values of some rows to those that are known.
    pub(super) fn remember(&self, rows: std::ops::Range<usize>, known: &mut KeyValues) {
        for row in rows {
            known.push(self.keys.row(row), self.values.row(row));
        }
    }

    /// Keeps only the last row of every stream.
    pub(super) fn keep_last(&mut self, width: usize) {
        let mut end = 0;
        for (stream, count) in self.counts.iter_mut().enumerate() {
            end += *count;
            self.inputs.move_row(end - 1, stream);
            let last = (end - 1) * width..end * width;
            self.residual.copy_within(last, stream * width);
            *count = 1;
        }
        self.inputs.truncate(self.counts.len());
        self.residual.truncate(self.counts.len() * width);
    }
}

/// The slots of the step-by-step path.
pub(super) struct Streams<'a> {
    engine: &'a Simd,
    slots: Vec<Option<Stream>>,
    scratch: Scratch,
}

impl<'a> Streams<'a> {
    pub(super) fn new(engine: &'a Simd, slots: usize) -> Streams<'a> {
        Streams {
            engine,
            slots: vec![None; slots],
            scratch: Scratch::default(),
        }
    }
}

impl Batch for Streams<'_> {
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<(), ModelError> {
        check_memory(self.engine.config(), memory)?;
        let place = self.slots.get_mut(slot);
        let place = place.ok_or_else(|| ModelError::Input("no such slot".into()))?;
        let stream = place.get_or_insert_with(|| Stream::new(self.engine));
        stream.start(self.engine, memory, &mut self.scratch);
        Ok(())
    }

    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>, ModelError> {
        let (engine, scratch) = (self.engine, &mut self.scratch);
        let d = engine.config().d_model;
        let seen = |slot: usize| Some(&self.slots.get(slot)?.as_ref()?.seen);
        check_steps(engine.config(), steps, seen)?;
        // the check has seen that every slot is taken and occurs once
        let taken = steps.iter().filter_map(|step| self.slots[step.slot].take());
        let mut moving: Vec<_> = taken
            .zip(steps)
            .map(|(stream, step)| (stream.seen.inputs(step.tokens), stream))
            .collect();
        let mut rows = vec![0; steps.len() * d];
        loop {
            scratch.clear();
            let (mut streams, mut places) = (Vec::new(), Vec::new());
            for (place, (inputs, stream)) in moving.iter_mut().enumerate() {
                if scratch.enter(engine, &mut stream.seen, inputs.by_ref().take(BLOCK)) == 0 {
                    scratch.counts.pop();
                } else {
                    streams.push(stream);
                    places.push(place);
                }
            }
            if places.is_empty() {
                break;
            }
            engine.decode(&mut streams, scratch, true);
            for (row, place) in places.into_iter().enumerate() {
                let out = &mut rows[place * d..(place + 1) * d];
                out.copy_from_slice(scratch.inputs.numbers(row, d));
            }
        }
        for (step, (_, stream)) in steps.iter().zip(moving) {
            self.slots[step.slot] = Some(stream);
        }
        Ok(rows)
    }
}
