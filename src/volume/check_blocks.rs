//! The blocks of a checked volume: who refers to them, and whether they decode.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{Result, keys};
use crate::cache::Cache;
use crate::codec::Codecs;
use crate::store::{self, BlockId, BlockInfo, ExtentRef, Pair, Store};

/// Memory for decoded anchors and their states.
const CACHE_BYTES: u64 = 64 << 20;
/// Keys that one scan reads.
const PAGE: usize = 1024;

/// All extents of the volume as the store counts them. What does not parse has been reported.
pub(super) struct ExtentRefs<'a> {
    store: &'a Store,
    page: std::vec::IntoIter<Pair>,
    next: Vec<u8>,
    last_page: bool,
}

impl<'a> ExtentRefs<'a> {
    pub(super) fn new(store: &'a Store) -> ExtentRefs<'a> {
        let page = Vec::new().into_iter();
        ExtentRefs {
            store,
            page,
            next: b"E".to_vec(),
            last_page: false,
        }
    }

    fn turn_page(&mut self) -> store::Result<()> {
        let page = self.store.scan(&self.next, b"F", PAGE)?;
        self.last_page = page.len() < PAGE;
        if let Some((last, _)) = page.last() {
            self.next = keys::after(last);
        }
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for ExtentRefs<'_> {
    type Item = store::Result<ExtentRef>;

    fn next(&mut self) -> Option<store::Result<ExtentRef>> {
        loop {
            for (key, value) in self.page.by_ref() {
                if let Ok(extent) = keys::decode_extent(&key, &value)
                    && !extent.is_lost()
                {
                    let live = u64::from(extent.len);
                    return Some(Ok(ExtentRef {
                        block: extent.block,
                        live,
                    }));
                }
            }
            if self.last_page {
                return None;
            }
            if let Err(error) = self.turn_page() {
                self.last_page = true;
                return Some(Err(error));
            }
        }
    }
}

pub(super) fn all_blocks(store: &Store) -> Result<Vec<(BlockId, BlockInfo)>> {
    let mut blocks: Vec<(BlockId, BlockInfo)> = Vec::new();
    loop {
        let after = blocks.last().map_or(0, |(id, _)| *id);
        let page = store.blocks(after, PAGE)?;
        let done = page.len() < PAGE;
        blocks.extend(page);
        if done {
            return Ok(blocks);
        }
    }
}

/// Why a block does not decode.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub why: String,
    /// The model that it needs and that is not there: the block itself may be intact.
    pub missing_model: Option<[u8; 8]>,
}

/// Reads and decodes every block; returns those that fail, with the reason.
pub(super) fn decode_all(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    blocks: &[(BlockId, BlockInfo)],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> BTreeMap<BlockId, Failure> {
    let cache = Cache::new(store.clone(), codecs.clone(), CACHE_BYTES, threads);
    let total = blocks.iter().map(|(_, info)| u64::from(info.raw_len)).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((id, info)) = blocks.get(next.fetch_add(1, Relaxed)) {
                    if let Err(why) = decode(&cache, *id, info) {
                        let missing_model = missing_model(&cache, codecs, *id);
                        let failure = Failure { why, missing_model };
                        failures.lock().insert(*id, failure);
                    }
                    let len = u64::from(info.raw_len);
                    progress(done.fetch_add(len, Relaxed) + len, total);
                }
            });
        }
    });
    cache.stop();
    failures.into_inner()
}

/// The model that a block, or its anchor, needs and that cannot be had.
fn missing_model(cache: &Cache, codecs: &Codecs, id: BlockId) -> Option<[u8; 8]> {
    let layout = cache.layout(id).ok()?;
    let missing = |name: Option<[u8; 8]>| codecs.missing_model(&name?);
    let own = missing(layout.model);
    let anchor = layout.anchor.as_ref().filter(|anchor| anchor.block != id);
    own.or_else(|| {
        let layout = cache.layout(anchor?.block).ok()?;
        missing(layout.model)
    })
}

fn decode(cache: &Cache, id: BlockId, info: &BlockInfo) -> std::result::Result<(), String> {
    let layout = cache.layout(id).map_err(|e| e.to_string())?;
    let anchor = layout.anchor.as_ref().map(|anchor| anchor.block);
    if layout.raw_len != info.raw_len || layout.codec as u8 != info.codec || anchor != info.anchor {
        return Err("its header and the index say different things".into());
    }
    let mut raw = vec![0; layout.raw_len as usize];
    cache.read_once(id, 0, &mut raw).map_err(|e| e.to_string())
}
