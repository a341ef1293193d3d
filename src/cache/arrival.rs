//! Bytes of a group on their way from a decoder into a flight, and in the end into the cache.

use super::flight::Flight;
use super::{Cache, CacheError, Key, Result, Value};
use crate::codec::{CodecError, Receiver};
use crate::store::BlockId;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Takes the bytes of one claimed flight. Ends the flight even if the decoder forgets to.
pub(super) struct Arrival {
    cache: Weak<Cache>,
    flight: Arc<Flight>,
    /// Bytes of the group.
    expected: usize,
    begun: Instant,
    given_up: bool,
    finished: bool,
}

impl Arrival {
    pub fn new(cache: &Cache, flight: &Arc<Flight>) -> Arrival {
        let range = flight.layout.groups.get(flight.key.group as usize);
        Arrival {
            cache: cache.me.clone(),
            flight: flight.clone(),
            expected: range.map_or(0, |range| range.len()),
            begun: Instant::now(),
            given_up: false,
            finished: false,
        }
    }

    /// Ends the flight, and keeps its bytes.
    pub fn finish(mut self, result: Result<()>) {
        self.end_flight(result);
    }

    fn end_flight(&mut self, result: Result<()>) {
        self.finished = true;
        let key = self.flight.key;
        let ended = self.flight.finish(result, self.expected);
        let Some(cache) = self.cache.upgrade() else {
            return;
        };
        let nanos = self.begun.elapsed().as_nanos() as u64;
        cache.meter.decode_nanos.fetch_add(nanos, Relaxed);
        if let Ok(bytes) = ended {
            let decoded = &cache.meter.decoded_bytes;
            decoded.fetch_add(bytes.len() as u64, Relaxed);
            cache.insert(Key::Group(key), Value::Bytes(bytes));
        }
        cache.inner.lock().flights.remove(&key);
        // Read-ahead may have waited for room.
        cache.work.notify_one();
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.finished {
            self.end_flight(Err(panicked(self.flight.key.block)));
        }
    }
}

impl Receiver for Arrival {
    fn piece(&mut self, bytes: &[u8]) -> bool {
        self.flight.deliver(bytes);
        let more = self.flight.delivered() < self.expected;
        let give_up = |cache: Arc<Cache>| cache.should_give_up(&self.flight);
        self.given_up = more && self.cache.upgrade().is_none_or(give_up);
        !self.given_up
    }

    fn is_urgent(&self) -> bool {
        self.flight.is_wanted()
    }

    fn end(self: Box<Self>, result: std::result::Result<(), CodecError>) {
        let block = self.flight.key.block;
        let result = match result {
            Ok(()) if self.given_up => Err(CacheError::Abandoned { block }),
            Err(CodecError::Stopped) => Err(CacheError::Stopped { block }),
            other => other.map_err(|error| CacheError::codec(block, error)),
        };
        self.finish(result);
    }
}

pub(super) fn panicked(block: BlockId) -> CacheError {
    CacheError::Damaged {
        block,
        why: "the decoder panicked".into(),
    }
}
