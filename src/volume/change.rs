//! Changes: transactions of the store together with what they do to extents and totals.

use super::attr::Attr;
use super::counters::Totals;
use super::inode::State;
use super::keys;
use super::{Result, Volume, VolumeError};
use crate::codec::CodecId;
use crate::settle::{Extent, LOST};
use crate::store::{BlockId, BlockInfo, Op, Transaction};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::Relaxed;

/// Extents that one scan reads.
const SCAN: usize = 512;

/// A transaction that is being put together.
pub struct Change<'v> {
    volume: &'v Volume,
    ops: Vec<Op>,
    totals: Totals,
    infos: HashMap<BlockId, BlockInfo>,
}

impl<'v> Change<'v> {
    pub fn new(volume: &'v Volume) -> Change<'v> {
        Change {
            volume,
            ops: Vec::new(),
            totals: Totals::default(),
            infos: HashMap::new(),
        }
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.ops.push(Op::Put { key, value });
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.ops.push(Op::Delete { key });
    }

    /// Stores attributes, with the size up to which data is in the log.
    pub fn put_inode(&mut self, ino: u64, attr: &Attr, disk_size: u64) {
        self.put(keys::inode(ino), attr.encode(disk_size));
    }

    /// Counts an inode in (`by` = 1) or out (-1).
    pub fn count_inode(&mut self, attr: &Attr, by: i64) {
        match attr.is_dir() {
            true => self.totals.directories += by,
            false => self.totals.files += by,
        }
    }

    /// Bytes of `extent`'s share in its block.
    fn share(&mut self, extent: &Extent) -> Result<(u64, usize)> {
        let info = match self.infos.get(&extent.block) {
            Some(info) => *info,
            None => {
                let info = self.volume.store()?.block_info(extent.block)?;
                self.infos.insert(extent.block, info);
                info
            }
        };
        Ok((share_of(extent, &info), codec_index(&info)?))
    }

    fn count_extent(&mut self, extent: &Extent, sign: i64) -> Result<i64> {
        if extent.is_lost() {
            return Ok(0);
        }
        let (share, codec) = self.share(extent)?;
        let (len, share) = (sign * i64::from(extent.len), sign * share as i64);
        let totals = &mut self.totals.codecs[codec];
        totals.extents += sign;
        totals.logical += len;
        totals.stored += share;
        if extent.staged {
            self.totals.staged_extents += sign;
            self.totals.staged_logical += len;
            self.totals.staged_stored += share;
        }
        Ok(share)
    }

    /// Lost extents refer to nothing.
    fn reference(&mut self, block: BlockId, refs: i32, live: i64) {
        if block != LOST {
            self.ops.push(Op::Ref { block, refs, live });
        }
    }

    /// Shows `extent` in a place where nothing is. Returns its stored share.
    fn add_extent(&mut self, ino: u64, extent: &Extent) -> Result<i64> {
        let share = self.count_extent(extent, 1)?;
        self.put(
            keys::extent(ino, extent.offset),
            keys::encode_extent(extent),
        );
        self.reference(extent.block, 1, i64::from(extent.len));
        Ok(share)
    }

    /// Cuts sorted, disjoint ranges out of an extent. Returns the change of the stored share.
    fn cut_extent(&mut self, ino: u64, old: &Extent, cuts: &[(u64, u64)]) -> Result<i64> {
        let mut share = self.count_extent(old, -1)?;
        let (mut refs, mut live) = (-1, -i64::from(old.len));
        self.delete(keys::extent(ino, old.offset));
        for kept in remainder(old, cuts) {
            share += self.count_extent(&kept, 1)?;
            self.put(keys::extent(ino, kept.offset), keys::encode_extent(&kept));
            refs += 1;
            live += i64::from(kept.len);
        }
        self.reference(old.block, refs, live);
        Ok(share)
    }

    /// Replaces everything in the sorted, disjoint ranges `cuts` by `new`, which lies inside them.
    /// Updates the stored share of the inode; the caller stores the inode. At most one call per inode
    /// and change, because a second one would not see what the first did.
    pub fn replace(
        &mut self,
        ino: u64,
        state: &mut State,
        cuts: &[(u64, u64)],
        new: &[Extent],
    ) -> Result<()> {
        let mut old = BTreeMap::new();
        for &(from, to) in cuts {
            self.volume.for_extents(ino, from, to, |extent| {
                old.insert(extent.offset, extent);
                true
            })?;
        }
        let mut share = 0;
        for extent in old.values() {
            share += self.cut_extent(ino, extent, cuts)?;
        }
        // After the cuts: a new extent may begin where an old one did.
        for extent in new {
            share += self.add_extent(ino, extent)?;
        }
        state.attr.stored = state.attr.stored.saturating_add_signed(share);
        Ok(())
    }

    /// Deletes keys of `tag` for this inode, at most `limit`. Returns whether all are deleted.
    pub fn delete_all(&mut self, tag: u8, ino: u64, limit: usize) -> Result<bool> {
        let (from, to) = keys::range_of(tag, ino);
        let found = self.volume.store()?.scan(&from, &to, limit)?;
        let all = found.len() < limit;
        for (key, _) in found {
            self.delete(key);
        }
        Ok(all)
    }

    /// Makes the changes happen, all or none.
    pub fn commit(mut self) -> Result<()> {
        if self.ops.is_empty() {
            return Ok(());
        }
        debug_assert!(
            !self.volume.gate.is_shut(),
            "a change without a pass while the volume is frozen"
        );
        let store = self.volume.store()?;
        // The first change since the mount makes the stored totals wrong.
        let first = self.volume.counters_stored.swap(false, Relaxed);
        if first {
            self.delete(keys::META_COUNTERS.to_vec());
        }
        if let Err(error) = store.commit(Transaction { ops: self.ops }) {
            self.volume.counters_stored.fetch_or(first, Relaxed);
            return Err(error.into());
        }
        self.volume.counters.add(self.totals);
        self.volume.mark_changed();
        Ok(())
    }
}

/// What is left of an extent after cutting out sorted, disjoint ranges.
fn remainder(old: &Extent, cuts: &[(u64, u64)]) -> Vec<Extent> {
    let mut kept = Vec::new();
    let mut at = old.offset;
    for &(from, to) in cuts
        .iter()
        .filter(|(f, t)| *f < old.end() && *t > old.offset)
    {
        if from > at {
            kept.push(old.slice(at, from));
        }
        at = at.max(to);
    }
    if at < old.end() {
        kept.push(old.slice(at, old.end()));
    }
    kept
}

/// The part of a block's payload that an extent stands for, at least one byte.
pub fn share_of(extent: &Extent, info: &BlockInfo) -> u64 {
    let raw = u64::from(info.raw_len).max(1);
    (u64::from(info.stored_len) * u64::from(extent.len))
        .div_ceil(raw)
        .max(1)
}

/// Position of a block's codec in [`CodecId::ALL`].
pub fn codec_index(info: &BlockInfo) -> Result<usize> {
    match CodecId::from_byte(info.codec) {
        Some(codec) => Ok(codec as usize),
        None => Err(keys::damaged("block", "unknown codec")),
    }
}

impl Volume {
    /// Extents that overlap `from..to`, in order.
    pub(crate) fn extents(&self, ino: u64, from: u64, to: u64) -> Result<Vec<Extent>> {
        let mut found = Vec::new();
        self.for_extents(ino, from, to, |extent| {
            found.push(extent);
            true
        })?;
        Ok(found)
    }

    /// Calls `visit` for the extents that overlap `from..to`, in order, until it returns false.
    pub(crate) fn for_extents(
        &self,
        ino: u64,
        from: u64,
        to: u64,
        mut visit: impl FnMut(Extent) -> bool,
    ) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let store = self.store()?;
        let mut cursor = keys::extent(ino, from.saturating_sub(self.max_extent() - 1));
        let end = keys::extent(ino, to);
        loop {
            let page = store.scan(&cursor, &end, SCAN)?;
            for (key, value) in &page {
                let extent = keys::decode_extent(key, value)?;
                if extent.end() > from && !visit(extent) {
                    return Ok(());
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == SCAN => cursor = keys::after(last),
                _ => return Ok(()),
            }
        }
    }

    /// The attributes of an inode as stored.
    pub(crate) fn load_attr(&self, ino: u64) -> Result<Attr> {
        match self.store()?.get(&keys::inode(ino))? {
            Some(value) => Attr::decode(&value),
            None => Err(VolumeError::Stale(ino)),
        }
    }
}
