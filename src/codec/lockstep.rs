//! Groups that are decoded in lockstep: one step of the network for all, then each decodes on its own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use crate::model::ModelError;
use crate::model::network::{Batch, Engine, Step};

use super::model_codec::model_error;
use super::network_codec::{GroupDecoder, Progress};
use super::{CodecError, Result};

/// Who gets the bytes of a group.
pub(super) trait Sink {
    /// Gets verified bytes in order; false if no more are wanted.
    fn piece(&mut self, bytes: &[u8]) -> bool;
}

impl<F: FnMut(&[u8]) -> bool> Sink for F {
    fn piece(&mut self, bytes: &[u8]) -> bool {
        self(bytes)
    }
}

/// A group on its way.
pub(super) struct Stream<K> {
    pub decoder: Box<GroupDecoder>,
    pub sink: K,
}

impl<K: Sink> Stream<K> {
    fn begin(&mut self, heads: &dyn Engine) -> Result<Progress> {
        self.guarded(|decoder, sink| decoder.begin(heads, sink))
    }

    fn advance(&mut self, heads: &dyn Engine, row: &[i8]) -> Result<Progress> {
        self.guarded(|decoder, sink| decoder.advance(heads, row, sink))
    }

    /// A decoder that panics is no matter of the streams beside it.
    fn guarded(
        &mut self,
        decode: impl FnOnce(&mut GroupDecoder, &mut dyn FnMut(&[u8]) -> bool) -> Result<Progress>,
    ) -> Result<Progress> {
        let Stream { decoder, sink } = self;
        let attempt = AssertUnwindSafe(|| decode(decoder, &mut |bytes| sink.piece(bytes)));
        let panicked = |_| Err(CodecError::Damaged("the decoder panicked".into()));
        catch_unwind(attempt).unwrap_or_else(panicked)
    }
}

/// A stream that has ended, and how.
pub(super) struct Ended<K> {
    pub sink: K,
    pub result: Result<()>,
}

struct Member<K> {
    slot: usize,
    stream: Stream<K>,
    /// Takes part in the present step.
    steps: bool,
    outcome: Option<Result<Progress>>,
}

/// Streams that step together. What becomes of one does not depend on the others, unless the device fails.
pub(super) struct Lockstep<'a, K> {
    heads: &'a dyn Engine,
    batch: Box<dyn Batch + 'a>,
    members: Vec<Member<K>>,
    free: Vec<usize>,
}

impl<'a, K: Sink> Lockstep<'a, K> {
    /// Room for `slots` streams that step on `engine` and evaluate the heads on `heads`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(
        engine: &'a dyn Engine,
        heads: &'a dyn Engine,
        slots: usize,
    ) -> std::result::Result<Lockstep<'a, K>, ModelError> {
        Ok(Lockstep {
            heads,
            batch: engine.batch(slots)?,
            members: Vec::new(),
            free: (0..slots).rev().collect(),
        })
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// True if one of the sinks is such.
    pub fn any(&self, is: impl Fn(&K) -> bool) -> bool {
        self.members.iter().any(|member| is(&member.stream.sink))
    }

    /// Takes a stream in; there must be room. It may end before its first step.
    ///
    /// # Errors
    /// If the device fails; gives the stream back.
    pub fn join(
        &mut self,
        mut stream: Stream<K>,
    ) -> std::result::Result<Option<Ended<K>>, (Stream<K>, ModelError)> {
        let result = match stream.begin(self.heads) {
            Ok(Progress::Step) => {
                let Some(&slot) = self.free.last() else {
                    return Err((stream, ModelError::Input("all slots are taken".into())));
                };
                if let Err(error) = self.batch.start(slot, stream.decoder.memory()) {
                    return Err((stream, error));
                }
                self.free.pop();
                let (steps, outcome) = (false, None);
                self.members.push(Member {
                    slot,
                    stream,
                    steps,
                    outcome,
                });
                return Ok(None);
            }
            Ok(Progress::Done) => Ok(()),
            Err(error) => Err(error),
        };
        let sink = stream.sink;
        Ok(Some(Ended { sink, result }))
    }

    /// One step of the streams that are `chosen` by their sinks.
    ///
    /// # Errors
    /// If the device fails. Then no stream has moved.
    pub fn step(
        &mut self,
        chosen: impl Fn(&K) -> bool,
    ) -> std::result::Result<Vec<Ended<K>>, ModelError> {
        let rows = self.rows(chosen)?;
        let heads = self.heads;
        let mut moved = self.moved(&rows);
        moved.iter_mut().for_each(|(m, row)| m.advance(heads, row));
        Ok(self.leave())
    }

    /// Rows of the network for the streams that are chosen.
    fn rows(&mut self, chosen: impl Fn(&K) -> bool) -> std::result::Result<Vec<i8>, ModelError> {
        for member in &mut self.members {
            member.steps = chosen(&member.stream.sink);
        }
        let stepping = self.members.iter().filter(|member| member.steps);
        let steps: Vec<Step> = stepping
            .map(|member| Step {
                slot: member.slot,
                tokens: member.stream.decoder.pending(),
            })
            .collect();
        self.batch.step(&steps)
    }

    /// The streams that have made a step, with their rows.
    fn moved<'r>(&mut self, rows: &'r [i8]) -> Vec<(&mut Member<K>, &'r [i8])> {
        let members = self.members.iter_mut().filter(|member| member.steps);
        let members: Vec<_> = members.collect();
        let width = (rows.len() / members.len().max(1)).max(1);
        members.into_iter().zip(rows.chunks_exact(width)).collect()
    }

    /// Removes the streams that have ended.
    fn leave(&mut self) -> Vec<Ended<K>> {
        let free = &mut self.free;
        let ended = self.members.extract_if(.., |member| {
            !matches!(member.outcome, None | Some(Ok(Progress::Step)))
        });
        ended
            .map(|member| {
                free.push(member.slot);
                let result = member.outcome.unwrap_or(Ok(Progress::Done)).map(drop);
                let sink = member.stream.sink;
                Ended { sink, result }
            })
            .collect()
    }

    /// Takes a stream out again whose sink is such, so that another one gets its place.
    pub fn suspend(&mut self, is: impl Fn(&K) -> bool) -> Option<Stream<K>> {
        let at = self.members.iter().position(|m| is(&m.stream.sink))?;
        let mut member = self.members.swap_remove(at);
        self.free.push(member.slot);
        member.stream.decoder.rewind();
        Some(member.stream)
    }

    /// Takes all streams out, to go on elsewhere.
    pub fn suspend_all(&mut self) -> Vec<Stream<K>> {
        std::iter::from_fn(|| self.suspend(|_| true)).collect()
    }
}

impl<K: Sink + Send> Lockstep<'_, K> {
    /// As [`Lockstep::step`], with all processors for what the streams do on their own.
    ///
    /// # Errors
    /// If the device fails. Then no stream has moved.
    pub fn step_on_all_processors(
        &mut self,
        chosen: impl Fn(&K) -> bool,
    ) -> std::result::Result<Vec<Ended<K>>, ModelError> {
        let rows = self.rows(chosen)?;
        let heads = self.heads;
        let mut moved = self.moved(&rows);
        moved
            .par_iter_mut()
            .for_each(|(m, row)| m.advance(heads, row));
        Ok(self.leave())
    }
}

impl<K: Sink> Member<K> {
    fn advance(&mut self, heads: &dyn Engine, row: &[i8]) {
        self.outcome = Some(self.stream.advance(heads, row));
    }
}

/// Decodes streams on this thread, at most `slots` at a time: the next one joins as soon as one has ended.
///
/// # Errors
/// The first error of a stream, or of `streams`.
pub(super) fn decode_here<K: Sink>(
    engine: &dyn Engine,
    slots: usize,
    streams: impl Iterator<Item = Result<Stream<K>>>,
) -> Result<()> {
    let mut streams = streams.fuse();
    let mut lockstep = Lockstep::new(engine, engine, slots.max(1)).map_err(model_error)?;
    loop {
        while lockstep.has_room()
            && let Some(stream) = streams.next()
        {
            let ended = lockstep.join(stream?).map_err(|(_, e)| model_error(e))?;
            ended.map_or(Ok(()), |ended| ended.result)?;
        }
        if lockstep.is_empty() {
            return Ok(());
        }
        for ended in lockstep.step(|_| true).map_err(model_error)? {
            ended.result?;
        }
    }
}
