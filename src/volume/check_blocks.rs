//! The blocks of a checked volume: who refers to them, and whether they decode.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{Result, VolumeError, keys};
use crate::cache::{Cache, CacheError};
use crate::codec::{CodecError, Codecs};
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
///
/// # Errors
/// If this machine cannot decode at the moment, which says nothing about the blocks.
pub(super) fn decode_all(
    store: &Arc<Store>,
    codecs: &Arc<Codecs>,
    threads: usize,
    blocks: &[(BlockId, BlockInfo)],
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<BTreeMap<BlockId, Failure>> {
    let cache = Cache::new(store.clone(), codecs.clone(), CACHE_BYTES, threads);
    let total = blocks.iter().map(|(_, info)| u64::from(info.raw_len)).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failures = Mutex::new(BTreeMap::new());
    let unable = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((id, info)) = blocks.get(next.fetch_add(1, Relaxed)) {
                    if let Err(fault) = decode(&cache, *id, info) {
                        let why = match fault {
                            Fault::Block(why) => why,
                            Fault::Machine(why) => {
                                *unable.lock() = Some(why);
                                return;
                            }
                        };
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
    match unable.into_inner() {
        Some(message) => Err(VolumeError::Store {
            errno: libc::EIO,
            message,
        }),
        None => Ok(failures.into_inner()),
    }
}

/// Whose fault it is that a block was not decoded.
enum Fault {
    Block(String),
    Machine(String),
}

impl From<CacheError> for Fault {
    fn from(error: CacheError) -> Fault {
        let machine = match &error {
            CacheError::Codec { error, .. } => {
                matches!(**error, CodecError::Unavailable(_) | CodecError::Stopped)
            }
            CacheError::Stopped { .. } => true,
            _ => false,
        };
        match machine {
            true => Fault::Machine(error.to_string()),
            false => Fault::Block(error.to_string()),
        }
    }
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

fn decode(cache: &Cache, id: BlockId, info: &BlockInfo) -> std::result::Result<(), Fault> {
    let layout = cache.layout(id)?;
    let anchor = layout.anchor.as_ref().map(|anchor| anchor.block);
    if layout.raw_len != info.raw_len || layout.codec as u8 != info.codec || anchor != info.anchor {
        let why = "its header and the index say different things";
        return Err(Fault::Block(why.into()));
    }
    let mut raw = vec![0; layout.raw_len as usize];
    cache.read_once(id, 0, &mut raw)?;
    Ok(())
}
