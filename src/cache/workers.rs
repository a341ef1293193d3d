//! What the decoding threads do.

use super::arrival::{Arrival, panicked};
use super::flight::{Flight, GroupKey};
use super::group_parts;
use super::{Ahead, AnchorKey, Cache, CacheError, Key, MAX_WAITING, Result, Source, Value};
use crate::codec::{Layout, Snapshot};
use crate::store::BlockId;
use log::error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often an idle thread checks whether anybody still holds the cache.
const IDLE: Duration = Duration::from_secs(1);

enum Job {
    Decode(Arc<Flight>),
    Ahead(Ahead),
    Nothing,
    Stop,
}

/// Body of a decoding thread.
pub(super) fn run(cache: &Weak<Cache>) {
    while let Some(cache) = cache.upgrade() {
        match cache.next_job() {
            Job::Decode(flight) => {
                if flight.claim() {
                    cache.decode(&flight);
                }
            }
            Job::Ahead(ahead) => cache.start_ahead(ahead),
            Job::Nothing => {}
            Job::Stop => return,
        }
    }
}

impl Cache {
    fn next_job(&self) -> Job {
        let crowded = self.codecs.waiting() >= MAX_WAITING;
        let mut inner = self.inner.lock();
        if inner.stopping {
            return Job::Stop;
        }
        if let Some(flight) = inner.wanted.pop_front() {
            return Job::Decode(flight);
        }
        if !crowded {
            if let Some(flight) = inner.idle.pop_front() {
                return Job::Decode(flight);
            }
            if let Some(ahead) = inner.ahead.pop_front() {
                return Job::Ahead(ahead);
            }
        }
        self.work.wait_for(&mut inner, IDLE);
        Job::Nothing
    }

    /// Begins read-ahead. What cannot be read is left for the reader to find.
    fn start_ahead(&self, ahead: Ahead) {
        let Ok(layout) = self.layout(ahead.block) else {
            return;
        };
        if self
            .check_range(ahead.block, &layout, ahead.skip, ahead.len as usize)
            .is_err()
        {
            return;
        }
        for part in group_parts(&layout, ahead.skip, ahead.len as usize) {
            self.source(part.key(ahead.block), &layout, false);
        }
    }

    /// Decodes a claimed flight, or has it decoded; its end may come after this has returned.
    pub(super) fn decode(&self, flight: &Arc<Flight>) {
        let key = flight.key;
        let arrival = Arrival::new(self, flight);
        let attempt = AssertUnwindSafe(|| {
            let payload = self.payload(key.block)?;
            let snapshot = self.snapshot_for(key.block, &flight.layout)?;
            Ok((payload, snapshot))
        });
        // A decoder that panics must neither leave readers waiting nor take this thread with it.
        match catch_unwind(attempt).unwrap_or_else(|_| Err(panicked(key.block))) {
            Ok((payload, snapshot)) => {
                let (layout, group) = (&flight.layout, key.group as usize);
                let decode = AssertUnwindSafe(|| {
                    let receiver = Box::new(arrival);
                    self.codecs
                        .decode_for(payload, layout, group, snapshot, receiver);
                });
                if catch_unwind(decode).is_err() {
                    // the arrival has ended the flight on its way out
                    error!("decoding block {} panicked", key.block);
                }
            }
            Err(error) => arrival.finish(Err(error)),
        }
    }

    /// A decoding that nobody waits for makes way for one that a reader waits for.
    pub(super) fn should_give_up(&self, flight: &Flight) -> bool {
        if flight.is_wanted() {
            return false;
        }
        let inner = self.inner.lock();
        inner.stopping
            || inner
                .wanted
                .iter()
                .any(|other| !other.is_started() && other.key != flight.key)
    }

    /// The codec state that the groups of a block start from, if it is anchored.
    fn snapshot_for(&self, block: BlockId, layout: &Layout) -> Result<Option<Arc<Snapshot>>> {
        let Some(anchor) = &layout.anchor else {
            return Ok(None);
        };
        let key = AnchorKey {
            block: anchor.block,
            start: anchor.range.start,
            end: anchor.range.end,
            codec: layout.codec,
            model: layout.model,
        };
        if let Some(snapshot) = self.cached_snapshot(key) {
            return Ok(Some(snapshot));
        }
        let lock = self.making.lock().entry(key).or_default().clone();
        let _only_maker = lock.lock();
        if let Some(snapshot) = self.cached_snapshot(key) {
            return Ok(Some(snapshot));
        }
        let made = self.make_snapshot(block, layout, key);
        self.making.lock().remove(&key);
        made.map(Some)
    }

    fn cached_snapshot(&self, key: AnchorKey) -> Option<Arc<Snapshot>> {
        match self.inner.lock().entries.get(&Key::Anchor(key)) {
            Some(Value::Snapshot(snapshot)) => Some(snapshot.clone()),
            _ => None,
        }
    }

    fn make_snapshot(
        &self,
        block: BlockId,
        layout: &Layout,
        key: AnchorKey,
    ) -> Result<Arc<Snapshot>> {
        if key.start > key.end {
            return Err(CacheError::Damaged {
                block,
                why: "its anchor's range is backwards".into(),
            });
        }
        let mut bytes = vec![0; (key.end - key.start) as usize];
        self.read_here(key.block, key.start, &mut bytes)?;
        let snapshot = self
            .codecs
            .snapshot(layout, &bytes)
            .map_err(|e| CacheError::codec(block, e))?;
        self.insert(Key::Anchor(key), Value::Snapshot(snapshot.clone()));
        Ok(snapshot)
    }

    /// Reads on this thread. Waits only for decodings that another thread is at work on, and anchors
    /// have no anchors, so this never waits for itself.
    fn read_here(&self, block: BlockId, skip: u32, out: &mut [u8]) -> Result<()> {
        let layout = self.layout(block)?;
        self.check_range(block, &layout, skip, out.len())?;
        if layout.anchor.is_some() {
            return Err(CacheError::Damaged {
                block,
                why: "an anchor that is anchored itself".into(),
            });
        }
        let mut rest = out;
        for part in group_parts(&layout, skip, rest.len()) {
            let (target, more) = rest.split_at_mut(part.range.len());
            rest = more;
            let key: GroupKey = part.key(block);
            loop {
                let result = match self.source(key, &layout, false) {
                    Source::Ready(bytes) => {
                        target.copy_from_slice(&bytes[part.range.clone()]);
                        Ok(())
                    }
                    Source::Flying(flight) => {
                        if flight.claim() {
                            self.decode(&flight);
                        }
                        flight.wait_for(part.range.start, target)
                    }
                };
                match result {
                    Err(CacheError::Abandoned { .. }) => continue,
                    other => break other?,
                }
            }
        }
        Ok(())
    }
}
