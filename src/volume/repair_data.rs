//! The repair of file contents: extents of blocks that are gone are marked as lost, and never show zeros.

use std::collections::{BTreeMap, BTreeSet};

use super::Result;
use super::attr::FileKind;
use super::change::share_of;
use super::keys;
use super::repair::{Amendment, Bench};
use super::repair_tree::{Node, Tree};
use crate::settle::{Extent, LOST};
use crate::store::{BlockId, BlockInfo, Counted, Pair};

/// Keys that one scan reads.
const PAGE: usize = 4096;

/// Longer gaps between extents are taken for holes that were meant.
const MAX_GAP: u64 = 16 << 30;

/// What was found out about contents.
#[derive(Default)]
pub(super) struct Data {
    /// References of all blocks.
    pub counted: Counted,
    /// Inode, from, to.
    pub lost: Vec<(u64, u64, u64)>,
    infos: BTreeMap<BlockId, Option<BlockInfo>>,
}

impl Data {
    /// Puts the extents of all files in order. `bad` blocks cannot be read.
    pub fn mend(bench: &mut Bench, tree: Tree, bad: &BTreeSet<BlockId>) -> Result<Data> {
        let mut data = Data::default();
        let mut nodes = tree.nodes;
        let mut from = b"E".to_vec();
        // The keys of one inode follow each other, but may lie on several pages.
        let mut current: (u64, Vec<Pair>) = (0, Vec::new());
        loop {
            let page = bench.store.scan(&from, b"F", PAGE)?;
            let Some((last, _)) = page.last() else { break };
            from = keys::after(last);
            for (key, value) in page {
                let ino = keys::ino_of(&key).unwrap_or(0);
                if ino != current.0 {
                    let (done, pairs) = std::mem::replace(&mut current, (ino, Vec::new()));
                    data.mend_file(bench, done, nodes.remove(&done), pairs, bad)?;
                }
                current.1.push((key, value));
            }
        }
        let (ino, pairs) = current;
        data.mend_file(bench, ino, nodes.remove(&ino), pairs, bad)?;
        // Files of which no extent is left.
        for (ino, node) in nodes {
            data.mend_file(bench, ino, Some(node), Vec::new(), bad)?;
        }
        Ok(data)
    }

    fn info(
        &mut self,
        bench: &Bench,
        extent: &Extent,
        bad: &BTreeSet<BlockId>,
    ) -> Option<BlockInfo> {
        if extent.is_lost() {
            return None;
        }
        let known = self.infos.entry(extent.block).or_insert_with(|| {
            let info = bench.store.block_info(extent.block).ok();
            info.filter(|info| {
                !bad.contains(&extent.block) && info.anchor.is_none_or(|a| !bad.contains(&a))
            })
        });
        let shown = u64::from(extent.skip) + u64::from(extent.len);
        known.filter(|info| shown <= u64::from(info.raw_len))
    }

    /// Puts one file in order: its extents, its pending windows, and its share of the blocks.
    fn mend_file(
        &mut self,
        bench: &mut Bench,
        ino: u64,
        node: Option<Node>,
        pairs: Vec<Pair>,
        bad: &BTreeSet<BlockId>,
    ) -> Result<()> {
        let Some(mut node) = node.filter(|node| node.attr.kind == FileKind::Regular) else {
            let gone: Vec<Amendment> = pairs.into_iter().map(|(key, _)| (key, None)).collect();
            return bench.amend(gone);
        };
        let parsed = pairs
            .iter()
            .map(|(key, value)| keys::decode_extent(key, value));
        let parsed: Vec<Option<Extent>> = parsed.map(|extent| extent.ok()).collect();
        let unreadable = parsed.iter().any(Option::is_none);
        let before: Vec<Extent> = parsed.into_iter().flatten().collect();
        if node.made_up {
            // How long it was is lost: what may have been behind the end gives an error, too.
            let end = before.iter().map(Extent::end).max().unwrap_or(0);
            node.attr.size = end.saturating_add(1).min(super::MAX_SIZE);
        }
        let mut stored = 0;
        for extent in &before {
            if let Ok(info) = bench.store.block_info(extent.block) {
                stored += share_of(extent, &info);
            }
        }
        // The inode says how much its extents take. If that is not so, some are missing or of another time.
        let incomplete =
            node.made_up || unreadable || bench.lost_metadata() && stored != node.attr.stored;
        let mut after = without_overlaps(before.clone(), node.attr.size);
        for extent in &mut after {
            match self.info(bench, extent, bad) {
                Some(info) => extent.staged = info.staged,
                None => (extent.block, extent.staged, extent.skip) = (LOST, false, 0),
            }
        }
        if incomplete {
            let end = after.last().map_or(0, Extent::end);
            if node.attr.size - end > MAX_GAP {
                // Marking that much would take more keys than the file is worth.
                bench.note(format!(
                    "inode {ino}: what lay behind byte {end} is lost, and cut off"
                ));
                node.attr.size = end.saturating_add(1).min(super::MAX_SIZE);
            }
            fill_gaps(&mut after, node.attr.size, window(bench)?);
            if !node.made_up && !before.is_empty() {
                bench.note(format!("inode {ino} may show older contents in parts"));
            }
        }
        self.write_file(bench, ino, &mut node, &pairs, after)
    }

    fn write_file(
        &mut self,
        bench: &Bench,
        ino: u64,
        node: &mut Node,
        pairs: &[Pair],
        extents: Vec<Extent>,
    ) -> Result<()> {
        let mut amendments: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
            pairs.iter().map(|(key, _)| (key.clone(), None)).collect();
        let mut stored = 0;
        let window = window(bench)?;
        for extent in &extents {
            let key = keys::extent(ino, extent.offset);
            amendments.insert(key, Some(keys::encode_extent(extent)));
            if extent.is_lost() {
                self.lost.push((ino, extent.offset, extent.end()));
                continue;
            }
            let count = self.counted.entry(extent.block).or_default();
            count.0 += 1;
            count.1 += u64::from(extent.len);
            if let Some(Some(info)) = self.infos.get(&extent.block) {
                stored += share_of(extent, info);
            }
            if extent.staged {
                let at = extent.offset - extent.offset % window;
                amendments.insert(keys::pending(ino, at), Some(Vec::new()));
            }
        }
        bench.amend(amendments.into_iter().collect())?;
        if node.attr.stored != stored || node.made_up {
            node.attr.stored = stored;
            bench.put_inode(ino, &node.attr)?;
        }
        Ok(())
    }
}

/// Longest extent of the volume.
fn window(bench: &Bench) -> Result<u64> {
    let value = bench.store.get(keys::META_MAX_EXTENT)?.unwrap_or_default();
    let longest = keys::Fields::new("volume", &value).varint().unwrap_or(0);
    Ok(longest.clamp(4 << 10, crate::codec::MAX_RAW_LEN as u64))
}

/// The extents up to `size`, none over another. Of two that overlap, the one with the later block stays whole:
/// numbers of blocks only grow.
fn without_overlaps(mut extents: Vec<Extent>, size: u64) -> Vec<Extent> {
    extents.retain(|extent| extent.offset < size);
    for extent in &mut extents {
        *extent = extent.slice(0, size);
    }
    if extents
        .windows(2)
        .all(|pair| pair[0].end() <= pair[1].offset)
    {
        return extents;
    }
    extents.sort_by_key(|extent| extent.block);
    let mut painted: BTreeMap<u64, Extent> = BTreeMap::new();
    for extent in extents {
        let under: Vec<Extent> = painted
            .range(..extent.end())
            .rev()
            .map(|(_, below)| *below)
            .take_while(|below| below.end() > extent.offset)
            .collect();
        for below in under {
            painted.remove(&below.offset);
            if below.offset < extent.offset {
                painted.insert(below.offset, below.slice(0, extent.offset));
            }
            if below.end() > extent.end() {
                painted.insert(extent.end(), below.slice(extent.end(), u64::MAX));
            }
        }
        painted.insert(extent.offset, extent);
    }
    painted.into_values().collect()
}

/// Marks what no extent covers as lost, in pieces that do not cross a multiple of `window`.
fn fill_gaps(extents: &mut Vec<Extent>, size: u64, window: u64) {
    let mut gaps = Vec::new();
    let mut at = 0;
    let covered = extents.iter().map(|extent| (extent.offset, extent.end()));
    for (from, to) in covered.chain([(size, size)]) {
        if from.saturating_sub(at) > MAX_GAP {
            at = from;
        }
        while at < from {
            let end = from.min((at / window + 1) * window);
            gaps.push(Extent {
                offset: at,
                len: (end - at) as u32,
                block: LOST,
                skip: 0,
                staged: false,
            });
            at = end;
        }
        at = at.max(to);
    }
    extents.extend(gaps);
    extents.sort_by_key(|extent| extent.offset);
}
