//! What scrubbing does with one block: decode it past the cache, and name the files that show it.

use super::{ROOT, Result, Volume};
use crate::codec::{AnchorRange, Layout, Snapshot};
use crate::control::FilePart;
use crate::store::{BlockId, BlockInfo, StoreError};
use lru::LruCache;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Parts of files that are named for one block.
const PARTS: usize = 16;
/// No path is deeper; a damaged tree may have loops.
const DEEPEST: usize = 4096;
const PAGE: usize = 1024;

/// An anchor: block, range of bytes, and the model that learns it.
type AnchorKey = (BlockId, u32, u32, Option<[u8; 8]>);

/// Reads the payload of a block.
type Read<'a> = dyn Fn(BlockId) -> std::result::Result<Vec<u8>, StoreError> + 'a;

/// States after the anchors that were met last: blocks of one file follow each other.
pub struct Anchors {
    states: LruCache<AnchorKey, Arc<Snapshot>>,
}

/// The first parts of files (inode, offset, length) that show a block, and how many there are.
#[derive(Default)]
struct Shown {
    parts: Vec<(u64, u64, u64)>,
    count: u64,
}

impl Default for Anchors {
    fn default() -> Self {
        const STATES: NonZeroUsize = NonZeroUsize::new(2).unwrap();
        Anchors {
            states: LruCache::new(STATES),
        }
    }
}

impl Volume {
    /// Reads and decodes a block, and compares all checksums and what the index says of it.
    pub(super) fn verify_block(
        &self,
        id: BlockId,
        info: &BlockInfo,
        anchors: &mut Anchors,
    ) -> std::result::Result<(), String> {
        self.raw_of_block(id, info, anchors, &|block| self.store.scrub_block(block))
            .map(drop)
    }

    /// The decoded bytes of a block, past the cache. `read` reads its payload and that of its anchor.
    pub(super) fn raw_of_block(
        &self,
        id: BlockId,
        info: &BlockInfo,
        anchors: &mut Anchors,
        read: &Read<'_>,
    ) -> std::result::Result<Vec<u8>, String> {
        // As in the cache: a decoder that panics is a damaged block, not the end of the thread.
        let attempt = AssertUnwindSafe(|| self.decode_block(id, info, anchors, read));
        catch_unwind(attempt).unwrap_or_else(|_| Err("the decoder panicked".into()))
    }

    fn decode_block(
        &self,
        id: BlockId,
        info: &BlockInfo,
        anchors: &mut Anchors,
        read: &Read<'_>,
    ) -> std::result::Result<Vec<u8>, String> {
        let payload = read(id).map_err(|e| e.to_string())?;
        let layout = self.codecs.open(&payload).map_err(|e| e.to_string())?;
        let anchor = layout.anchor.as_ref().map(|anchor| anchor.block);
        if layout.raw_len != info.raw_len
            || layout.codec as u8 != info.codec
            || anchor != info.anchor
        {
            return Err("its header and the index say different things".into());
        }
        let snapshot = match &layout.anchor {
            Some(anchor) => Some(self.state_after(&layout, anchor, anchors, read)?),
            None => None,
        };
        let decoded = self.codecs.decode_all(&payload, snapshot.as_deref());
        decoded.map_err(|e| e.to_string())
    }

    fn state_after(
        &self,
        layout: &Layout,
        anchor: &AnchorRange,
        anchors: &mut Anchors,
        read: &Read<'_>,
    ) -> std::result::Result<Arc<Snapshot>, String> {
        let key = (
            anchor.block,
            anchor.range.start,
            anchor.range.end,
            layout.model,
        );
        if let Some(state) = anchors.states.get(&key) {
            return Ok(state.clone());
        }
        let failed = |why: String| format!("its anchor, block {}: {why}", anchor.block);
        let payload = read(anchor.block);
        let payload = payload.map_err(|e| failed(e.to_string()))?;
        let raw = self.codecs.decode_all(&payload, None);
        let raw = raw.map_err(|e| failed(e.to_string()))?;
        let range = anchor.range.start as usize..anchor.range.end as usize;
        let bytes = raw.get(range);
        let bytes = bytes.ok_or_else(|| failed("it is too short".into()))?;
        let state = self
            .codecs
            .snapshot(layout, bytes)
            .map_err(|e| e.to_string())?;
        anchors.states.put(key, state.clone());
        Ok(state)
    }

    /// Blocks whose anchor is one of these, with the anchor.
    pub(super) fn anchored_to(&self, damaged: &BTreeSet<BlockId>) -> Result<Vec<(BlockId, u64)>> {
        let (mut found, mut after) = (Vec::new(), 0);
        loop {
            let page = self.store()?.blocks(after, PAGE)?;
            for (id, info) in &page {
                found.extend(
                    info.anchor
                        .filter(|anchor| damaged.contains(anchor))
                        .map(|anchor| (*id, anchor)),
                );
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = *last,
                _ => return Ok(found),
            }
        }
    }

    /// The first parts of files that show each of these blocks, and how many there are.
    pub(super) fn parts_of_files(
        &self,
        blocks: &BTreeSet<BlockId>,
    ) -> Result<HashMap<BlockId, (Vec<FilePart>, u64)>> {
        let mut shown: HashMap<BlockId, Shown> = HashMap::new();
        self.for_all_extents(|ino, extent| {
            if blocks.contains(&extent.block) {
                let seen = shown.entry(extent.block).or_default();
                seen.count += 1;
                if seen.parts.len() < PARTS {
                    seen.parts.push((ino, extent.offset, u64::from(extent.len)));
                }
            }
        })?;
        let mut paths: HashMap<u64, String> = HashMap::new();
        let mut named = HashMap::new();
        for (block, Shown { parts, count }) in shown {
            let mut files = Vec::with_capacity(parts.len());
            for (ino, offset, len) in parts {
                let path = match paths.get(&ino) {
                    Some(path) => path.clone(),
                    None => self.path_of(ino)?,
                };
                paths.insert(ino, path.clone());
                files.push(FilePart { path, offset, len });
            }
            named.insert(block, (files, count));
        }
        Ok(named)
    }

    /// A path of an inode from the root of the volume, or its number where there is none.
    fn path_of(&self, ino: u64) -> Result<String> {
        let (mut at, mut parts) = (ino, Vec::new());
        while at != ROOT {
            let parent = self.load_attr(at).ok().map(|attr| attr.parent);
            let mut names = HashMap::new();
            if let Some(parent) = parent {
                self.names_in(parent, &HashSet::from([at]), usize::MAX, &mut names)?;
            }
            let (Some(parent), Some(name)) = (parent, names.remove(&at)) else {
                return Ok(format!("inode {ino}"));
            };
            parts.push(String::from_utf8_lossy(&name).into_owned());
            if parts.len() > DEEPEST {
                return Ok(format!("inode {ino}"));
            }
            at = parent;
        }
        parts.reverse();
        Ok(parts.join("/"))
    }
}
