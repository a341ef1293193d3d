//! The cache of decoded data: groups of blocks, and the codec states after anchors.
//!
//! Every group is decoded at most once at a time, whoever asks for it, and readers go on as soon as
//! their bytes are there. Worker threads decode, or hand groups over to the codecs, which bring the bytes
//! later; readers' groups come before read-ahead. All locks here are leaves: none is held while a block is read or decoded, except the per-anchor lock that
//! keeps a state from being made twice, under which only its anchor's groups are decoded.

mod arrival;
mod error;
mod flight;
mod workers;

pub use error::CacheError;

use crate::codec::{CodecId, Codecs, Layout, Snapshot};
use crate::fault;
use crate::store::{BlockId, Store};
use flight::{Flight, GroupKey};
use log::error;
use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

/// Parsed block headers that are kept.
const LAYOUTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Read-ahead requests that wait; older ones are dropped.
const MAX_AHEAD: usize = 64;
/// While so many groups wait to be decoded in lanes, no read-ahead joins them.
const MAX_WAITING: usize = 64;

type Result<T> = std::result::Result<T, CacheError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Group(GroupKey),
    Anchor(AnchorKey),
}

/// The state after some bytes of a block, for one codec and model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct AnchorKey {
    block: BlockId,
    start: u32,
    end: u32,
    codec: CodecId,
    model: Option<[u8; 8]>,
}

#[derive(Debug, Clone)]
enum Value {
    Bytes(Arc<[u8]>),
    Snapshot(Arc<Snapshot>),
}

impl Value {
    /// Memory taken, with what the table itself needs.
    fn cost(&self) -> u64 {
        128 + match self {
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::Snapshot(snapshot) => snapshot.bytes() as u64,
        }
    }
}

/// A part of a block that will probably be read soon.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    block: BlockId,
    skip: u32,
    len: u32,
}

struct Inner {
    entries: LruCache<Key, Value>,
    bytes: u64,
    flights: HashMap<GroupKey, Arc<Flight>>,
    layouts: LruCache<BlockId, Arc<Layout>>,
    /// Groups that readers wait for.
    wanted: VecDeque<Arc<Flight>>,
    ahead: VecDeque<Ahead>,
    /// Groups of read-ahead.
    idle: VecDeque<Arc<Flight>>,
    stopping: bool,
}

impl Inner {
    /// Forgets what was used longest ago until at most `limit` bytes are left.
    fn shrink(&mut self, limit: u64) {
        while self.bytes > limit {
            match self.entries.pop_lru() {
                Some((_, old)) => self.bytes -= old.cost(),
                None => break,
            }
        }
    }
}

/// Figures since the cache was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub bytes: u64,
    pub limit: u64,
    pub hits: u64,
    pub misses: u64,
    pub decoded_bytes: u64,
    pub decode_nanos: u64,
}

#[derive(Default)]
struct Meter {
    hits: AtomicU64,
    misses: AtomicU64,
    decoded_bytes: AtomicU64,
    decode_nanos: AtomicU64,
}

/// What a read needed, the costlier one last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Served {
    /// Everything was decoded already.
    Cached,
    /// Something had to be decoded, or was being decoded.
    Decoded,
}

/// Where a group's bytes come from.
enum Source {
    Ready(Arc<[u8]>),
    Flying(Arc<Flight>),
}

/// See the module.
pub struct Cache {
    /// For those who bring bytes later.
    me: Weak<Cache>,
    store: Arc<Store>,
    codecs: Arc<Codecs>,
    limit: AtomicU64,
    inner: Mutex<Inner>,
    work: Condvar,
    /// One lock per anchor state that is being made.
    making: Mutex<HashMap<AnchorKey, Arc<Mutex<()>>>>,
    meter: Meter,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Cache {
    /// A cache over the blocks of `store` that takes at most `limit` bytes.
    pub fn new(store: Arc<Store>, codecs: Arc<Codecs>, limit: u64, threads: usize) -> Arc<Cache> {
        let cache = Arc::new_cyclic(|me| Cache {
            me: me.clone(),
            store,
            codecs,
            limit: AtomicU64::new(limit),
            inner: Mutex::new(Inner {
                entries: LruCache::unbounded(),
                bytes: 0,
                flights: HashMap::new(),
                layouts: LruCache::new(LAYOUTS),
                wanted: VecDeque::new(),
                ahead: VecDeque::new(),
                idle: VecDeque::new(),
                stopping: false,
            }),
            work: Condvar::new(),
            making: Mutex::new(HashMap::new()),
            meter: Meter::default(),
            threads: Mutex::new(Vec::new()),
        });
        for number in 0..threads.max(1) {
            let weak = Arc::downgrade(&cache);
            let thread = std::thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || workers::run(&weak));
            match thread {
                Ok(thread) => cache.threads.lock().push(thread),
                Err(failure) => error!("starting a decoding thread: {failure}"),
            }
        }
        cache
    }

    /// Copies decoded bytes from position `skip` of a block.
    pub fn read(&self, block: BlockId, skip: u32, out: &mut [u8]) -> Result<Served> {
        let mut served = Served::Cached;
        let layout = self.layout(block)?;
        self.check_range(block, &layout, skip, out.len())?;
        let parts = group_parts(&layout, skip, out.len());
        let mut sources = Vec::with_capacity(parts.len());
        for part in &parts {
            sources.push(self.source(part.key(block), &layout, true));
        }
        let mut rest = out;
        for (part, mut source) in parts.iter().zip(sources) {
            let (target, more) = rest.split_at_mut(part.range.len());
            rest = more;
            loop {
                let result = match source {
                    Source::Ready(bytes) => {
                        target.copy_from_slice(&bytes[part.range.clone()]);
                        Ok(())
                    }
                    Source::Flying(flight) => {
                        served = Served::Decoded;
                        // Nothing is gained by handing a fast codec to another thread.
                        if layout.codec != CodecId::Model && flight.claim() {
                            self.decode(&flight);
                        }
                        flight.wait_for(part.range.start, target)
                    }
                };
                match result {
                    Err(CacheError::Abandoned { .. }) => {
                        source = self.source(part.key(block), &layout, true);
                    }
                    other => break other?,
                }
            }
        }
        Ok(served)
    }

    /// As [`Cache::read`], for data that will not be read again soon: what is cheap to decode is not
    /// kept.
    pub fn read_once(&self, block: BlockId, skip: u32, out: &mut [u8]) -> Result<Served> {
        let payload = self.payload(block)?;
        let layout = self.parse(block, &payload)?;
        if layout.codec == CodecId::Model {
            return self.read(block, skip, out);
        }
        self.check_range(block, &layout, skip, out.len())?;
        let raw = self
            .codecs
            .decode_all(&payload, None)
            .map_err(|e| CacheError::codec(block, e))?;
        let from = skip as usize;
        out.copy_from_slice(&raw[from..from + out.len()]);
        Ok(Served::Decoded)
    }

    /// Decodes a part of a block soon, if there is nothing more urgent to do.
    pub fn prefetch(&self, block: BlockId, skip: u32, len: u32) {
        let mut inner = self.inner.lock();
        if inner.stopping {
            return;
        }
        inner.ahead.push_back(Ahead { block, skip, len });
        if inner.ahead.len() > MAX_AHEAD {
            inner.ahead.pop_front();
        }
        drop(inner);
        self.work.notify_one();
    }

    /// Bounds the bytes that are kept. Takes effect at once.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
        self.inner.lock().shrink(limit);
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats {
            bytes: self.inner.lock().bytes,
            limit: self.limit.load(Relaxed),
            hits: self.meter.hits.load(Relaxed),
            misses: self.meter.misses.load(Relaxed),
            decoded_bytes: self.meter.decoded_bytes.load(Relaxed),
            decode_nanos: self.meter.decode_nanos.load(Relaxed),
        }
    }

    /// Forgets everything decoded; for measuring cold reads.
    pub fn clear(&self) {
        let mut inner = self.inner.lock();
        inner.entries.clear();
        inner.layouts.clear();
        inner.bytes = 0;
    }

    /// Stops the threads. Readers whose group nobody has begun get an error.
    pub fn stop(&self) {
        let waiting: Vec<Arc<Flight>> = {
            let mut inner = self.inner.lock();
            inner.stopping = true;
            inner.ahead.clear();
            inner.wanted.clear();
            inner.idle.clear();
            inner
                .flights
                .values()
                .filter(|f| !f.is_started())
                .cloned()
                .collect()
        };
        for flight in waiting.iter().filter(|f| f.claim()) {
            let block = flight.key.block;
            // Those who wait get the error; there is nobody else to tell.
            let _ = flight.finish(Err(CacheError::Stopped { block }), 0);
        }
        self.work.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                error!("a decoding thread panicked");
            }
        }
    }

    /// The parsed header of a block.
    pub fn layout(&self, block: BlockId) -> Result<Arc<Layout>> {
        if let Some(layout) = self.inner.lock().layouts.get(&block) {
            return Ok(layout.clone());
        }
        let payload = self.payload(block)?;
        self.parse(block, &payload)
    }

    fn parse(&self, block: BlockId, payload: &[u8]) -> Result<Arc<Layout>> {
        let layout = self
            .codecs
            .open(payload)
            .map_err(|e| CacheError::codec(block, e))?;
        let layout = Arc::new(layout);
        self.inner.lock().layouts.put(block, layout.clone());
        Ok(layout)
    }

    fn payload(&self, block: BlockId) -> Result<Vec<u8>> {
        self.store
            .read_block(block)
            .map_err(|e| CacheError::store(block, e))
    }

    fn check_range(&self, block: BlockId, layout: &Layout, skip: u32, len: usize) -> Result<()> {
        match (skip as usize).checked_add(len) {
            Some(end) if end <= layout.raw_len as usize => Ok(()),
            _ => Err(CacheError::Damaged {
                block,
                why: format!("{len} bytes at {skip} of a block of {}", layout.raw_len),
            }),
        }
    }

    /// The bytes of a group, or the decoding that will deliver them, started if need be.
    fn source(&self, key: GroupKey, layout: &Arc<Layout>, urgent: bool) -> Source {
        let mut inner = self.inner.lock();
        if fault::planted("stale-group-served")
            && let Some(Value::Bytes(old)) = inner.entries.peek(&Key::Group(GroupKey {
                block: key.block.saturating_sub(1),
                ..key
            }))
            && old.len() == layout.groups[key.group as usize].len()
        {
            return Source::Ready(old.clone());
        }
        if let Some(Value::Bytes(bytes)) = inner.entries.get(&Key::Group(key)) {
            let bytes = bytes.clone();
            self.meter.hits.fetch_add(u64::from(urgent), Relaxed);
            return Source::Ready(bytes);
        }
        self.meter.misses.fetch_add(u64::from(urgent), Relaxed);
        let stopping = inner.stopping;
        let (flight, new) = match inner.flights.get(&key) {
            Some(flight) => (flight.clone(), false),
            None => (Arc::new(Flight::new(key, layout.clone())), true),
        };
        if stopping {
            if flight.claim() {
                let _ = flight.finish(Err(CacheError::Stopped { block: key.block }), 0);
            }
            return Source::Flying(flight);
        }
        if new {
            inner.flights.insert(key, flight.clone());
        }
        // A reader moves read-ahead that nobody has begun to the front; claiming sorts out the twins.
        if urgent && layout.codec != CodecId::Model {
            // The reader decodes it itself.
            return Source::Flying(flight);
        }
        if urgent && !flight.is_started() {
            inner.wanted.push_back(flight.clone());
        } else if new {
            inner.idle.push_back(flight.clone());
        }
        drop(inner);
        self.work.notify_one();
        Source::Flying(flight)
    }

    fn insert(&self, key: Key, value: Value) {
        let mut inner = self.inner.lock();
        inner.bytes += value.cost();
        if let Some(old) = inner.entries.put(key, value) {
            inner.bytes -= old.cost();
        }
        inner.shrink(self.limit.load(Relaxed));
    }
}

/// The part of a group that a read needs, in bytes of the group.
struct Part {
    group: u32,
    range: Range<usize>,
}

impl Part {
    fn key(&self, block: BlockId) -> GroupKey {
        GroupKey {
            block,
            group: self.group,
        }
    }
}

/// The groups that hold `len` bytes from `skip`.
fn group_parts(layout: &Layout, skip: u32, len: usize) -> Vec<Part> {
    let (from, to) = (skip, skip + len as u32);
    let overlaps = |r: &Range<u32>| r.start < to && r.end > from;
    layout
        .groups
        .iter()
        .enumerate()
        .filter(|(_, range)| overlaps(range))
        .map(|(group, range)| Part {
            group: group as u32,
            range: (from.max(range.start) - range.start) as usize
                ..(to.min(range.end) - range.start) as usize,
        })
        .collect()
}
