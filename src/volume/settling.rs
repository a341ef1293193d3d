//! The volume as host of the settling pipeline.

use super::change::Change;
use super::inode::{Inode, Locked, State};
use super::keys;
use super::{Result, Volume, VolumeError};
use crate::codec::{CodecId, Codecs, Encoded, Policy, ReadCost};
use crate::fault;
use crate::settle::{Candidate, Cost, Extent, Host, HostResult, Run, Swapped, Wanted, Window};
use crate::store::{BlockId, NewBlock, Reclaim, StoreError};
use log::warn;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Extents and blocks that one scan reads.
const PAGE: usize = 1024;
/// Entries of a directory that are looked at for the names of one batch. What is settled together is
/// ordered by names, which is not worth a scan of a huge directory for every batch of its files.
const NAMES_LOOKED_AT: usize = 1 << 16;
/// Sparse blocks that are looked for at a time.
const MAX_SPARSE: usize = 1 << 16;
/// Repacking is not worth a scan of all extents for less than this, in stored bytes, nor for less than
/// so much per block there is: so the time that scans take is bounded by what they give back.
const MIN_WASTE: u64 = 64 << 10;
const WASTE_PER_BLOCK: u64 = 16;
/// Settling stops while less than this is free, or a 128th of a small disk, so that reclaiming, which
/// gives space back, has some to work in.
const SETTLE_FLOOR: u64 = 16 << 20;
/// A sparse block shows less than 1 / this of its bytes.
const SPARSE_FACTOR: u64 = 2;
/// With less free space than this (or an eighth of a small disk), dead blocks are reclaimed at once.
const SHORT_OF_SPACE: u64 = 1 << 30;
/// Dead bytes that are worth the trouble.
const WORTH_RECLAIMING: u64 = 1 << 20;

impl Host for Volume {
    fn pending(&self, after: Option<Window>, limit: usize) -> HostResult<Vec<Window>> {
        self.pending_windows(after, limit).map_err(text)
    }

    fn candidates(&self, windows: &[Window], wanted: Wanted<'_>) -> HostResult<Vec<Candidate>> {
        let _pass = self.gate.enter().map_err(text)?;
        self.find_candidates(windows, wanted).map_err(text)
    }

    fn policy(&self, ino: u64) -> HostResult<Option<Policy>> {
        match self.effective_policy(ino) {
            Ok(policy) => Ok(Some(policy)),
            Err(VolumeError::Stale(_)) => Ok(None),
            Err(error) => Err(text(error)),
        }
    }

    fn read_run(&self, run: &Run) -> HostResult<Option<Vec<u8>>> {
        let mut raw = vec![0; run.len as usize];
        match self.read_extents(run.offset, &mut raw, &run.extents) {
            Ok(()) => Ok(Some(raw)),
            Err(_) if self.blocks_are_gone(run) => Ok(None),
            Err(error) => Err(text(error)),
        }
    }

    fn read_settled(&self, run: &Run) -> HostResult<Option<Vec<u8>>> {
        match self.read_past_cache(&run.extents) {
            Ok(raw) => Ok(Some(raw)),
            Err(_) if self.blocks_are_gone(run) => Ok(None),
            Err(why) => Err(why),
        }
    }

    fn cost(&self, runs: &[Run]) -> HostResult<Cost> {
        let mut shown: BTreeMap<BlockId, u64> = BTreeMap::new();
        let mut cost = Cost::default();
        for extent in runs.iter().flat_map(|run| &run.extents) {
            *shown.entry(extent.block).or_default() += u64::from(extent.len);
            cost.staged |= extent.staged;
        }
        for (block, bytes) in shown {
            self.add_cost(&mut cost, block, bytes).map_err(text)?;
        }
        Ok(cost)
    }

    fn anchor_of(&self, ino: u64) -> HostResult<Option<BlockId>> {
        self.file_anchor(ino).map_err(text)
    }

    fn block_head(&self, block: BlockId, limit: u32) -> HostResult<Vec<u8>> {
        let layout = self.cache.layout(block).map_err(|e| e.to_string())?;
        let mut head = vec![0; layout.raw_len.min(limit) as usize];
        self.cache
            .read(block, 0, &mut head)
            .map_err(|e| e.to_string())?;
        Ok(head)
    }

    fn append(&self, encoded: &Encoded, raw_len: u32) -> HostResult<BlockId> {
        let block = NewBlock {
            codec: encoded.codec as u8,
            raw_len,
            anchor: encoded.anchor,
            payload: &encoded.payload,
        };
        let _pass = self.gate.enter().map_err(text)?;
        self.store.append(&block).map_err(|e| e.to_string())
    }

    fn discard(&self, block: BlockId) {
        self.store.discard(block);
    }

    fn has_room(&self) -> HostResult<bool> {
        let (free, total) = self.store.free_space().map_err(|e| e.to_string())?;
        Ok(free >= SETTLE_FLOOR.min(total / 128))
    }

    fn sync_blocks(&self) -> HostResult<()> {
        let _pass = self.gate.enter().map_err(text)?;
        self.store.sync_blocks().map_err(|e| e.to_string())
    }

    fn swap(&self, block: BlockId, runs: &[Run]) -> HostResult<Swapped> {
        let _pass = self.gate.enter().map_err(text)?;
        let result = self.swap_runs(block, runs);
        if !matches!(&result, Ok(swapped) if swapped.settled > 0) {
            self.store.discard(block);
        }
        result.map_err(text)
    }

    fn sparse(&self) -> HostResult<(HashSet<BlockId>, Vec<Window>)> {
        self.find_sparse().map_err(text)
    }

    fn no_more_settled(&self) {
        self.drop_past_caches();
    }

    fn idle_for(&self) -> Duration {
        self.io.idle_for(self.started)
    }

    fn unread_for(&self) -> Duration {
        self.io.unread_for(self.started)
    }

    fn is_nearly_full(&self) -> bool {
        let free = self.store.free_space();
        free.is_ok_and(|(free, total)| free < SHORT_OF_SPACE.min(total / 8))
    }

    fn is_short_of_space(&self) -> bool {
        self.is_nearly_full()
            && self
                .store
                .usage()
                .is_ok_and(|usage| usage.dead_bytes >= WORTH_RECLAIMING)
    }

    fn reclaim(&self) -> HostResult<u64> {
        let report = self.reclaim_once(Reclaim::default()).map_err(text)?;
        Ok(report.map_or(0, |report| report.bytes_freed))
    }

    fn codecs(&self) -> &Codecs {
        &self.codecs
    }
}

fn text(error: VolumeError) -> String {
    error.to_string()
}

impl Volume {
    /// Settles everything that is written now, and frees the space of what is not needed any more.
    /// `progress` gets settled and total bytes now and then.
    pub fn settle(&self, progress: &dyn Fn(u64, u64)) -> Result<()> {
        self.writable()?;
        self.sync_now()?;
        let mut total = 0;
        let result = self.settler.settle_all(|| {
            let left = self.counters.get().staged_logical.max(0) as u64;
            total = total.max(left);
            progress(total - left, total);
            left > 0
        });
        result.map_err(|message| VolumeError::Store {
            errno: libc::EIO,
            message: format!("not everything could be settled: {message}"),
        })
    }

    /// Stages and syncs everything. Refused while the volume is frozen.
    pub(super) fn sync_now(&self) -> Result<()> {
        let Some(_pass) = self.gate.try_enter() else {
            return Err(match self.is_stopping() {
                true => VolumeError::Closed,
                false => VolumeError::Frozen,
            });
        };
        self.stage_everything()?;
        self.store()?.sync()?;
        Ok(())
    }

    fn pending_windows(&self, after: Option<Window>, limit: usize) -> Result<Vec<Window>> {
        let from = match after {
            Some(window) => keys::after(&keys::pending(window.ino, window.offset)),
            None => b"Q".to_vec(),
        };
        let page = self.store()?.scan(&from, b"R", limit)?;
        page.iter()
            .map(|(key, _)| {
                Ok(Window {
                    ino: keys::ino_of(key)?,
                    offset: keys::offset_of(key)?,
                })
            })
            .collect()
    }

    fn find_candidates(&self, windows: &[Window], wanted: Wanted<'_>) -> Result<Vec<Candidate>> {
        let mut runs: Vec<(u64, Run)> = Vec::new();
        let mut by_parent: HashMap<u64, HashSet<u64>> = HashMap::new();
        let mut seen = HashSet::new();
        for window in windows {
            let aligned = match wanted {
                Wanted::All => vec![*window],
                _ => self.aligned(*window)?,
            };
            for aligned in aligned {
                // Long windows of an earlier mount and short ones of this one may stand for the same bytes.
                if !seen.insert(aligned) {
                    continue;
                }
                let Some((parent, found)) = self.window_runs(aligned, wanted)? else {
                    continue;
                };
                by_parent.entry(parent).or_default().insert(window.ino);
                runs.extend(found.into_iter().map(|run| (parent, run)));
            }
        }
        let (mut names, mut policies) = (HashMap::new(), HashMap::new());
        for (parent, inos) in by_parent {
            self.names_in(parent, &inos, NAMES_LOOKED_AT, &mut names)?;
            for ino in inos {
                match self.policy_of_file(ino, parent) {
                    Ok(policy) => policies.insert(ino, policy),
                    Err(VolumeError::Closed) => return Err(VolumeError::Closed),
                    // Damage above one file must not keep the others from being settled.
                    Err(error) => {
                        warn!("inode {ino} gets the policy of the mount: {error}");
                        None
                    }
                };
            }
        }
        let mount = *self.policy.lock();
        let policy_of = |ino: &u64| policies.get(ino).copied().unwrap_or(mount);
        Ok(runs
            .into_iter()
            .map(|(parent, run)| Candidate {
                name: names.get(&run.ino).cloned().unwrap_or_default(),
                policy: policy_of(&run.ino),
                parent,
                run,
            })
            .collect())
    }

    /// Windows of the present size in the place of a pending one, which may have been recorded when
    /// extents were longer or shorter. Records them if they differ.
    fn aligned(&self, window: Window) -> Result<Vec<Window>> {
        let size = self.window();
        if self.max_extent() == size && window.offset.is_multiple_of(size) {
            return Ok(vec![window]);
        }
        let end = window.offset.saturating_add(self.max_extent());
        let mut at = window.offset - window.offset % size;
        let mut all = Vec::new();
        let mut change = Change::new(self);
        while at < end {
            all.push(Window {
                ino: window.ino,
                offset: at,
            });
            at = at.saturating_add(size);
        }
        let inode = match self.inode(window.ino) {
            Ok(inode) => inode,
            Err(VolumeError::Stale(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let _state = inode.state.lock();
        for new in &all {
            change.put(keys::pending(new.ino, new.offset), Vec::new());
        }
        if !window.offset.is_multiple_of(size) {
            change.delete(keys::pending(window.ino, window.offset));
        }
        change.commit()?;
        Ok(all)
    }

    /// The parent of a file and the runs of one of its windows that should be settled. Without any,
    /// the window is not pending any more.
    fn window_runs(&self, window: Window, wanted: Wanted<'_>) -> Result<Option<(u64, Vec<Run>)>> {
        let inode = match self.inode(window.ino) {
            Ok(inode) => inode,
            Err(VolumeError::Stale(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let state = inode.state.lock();
        if state.gone {
            return Ok(None);
        }
        let end = window.offset.saturating_add(self.window());
        // Without lost extents: there is nothing to settle, and they must not keep their neighbours from it.
        let extents: Vec<Extent> = self
            .extents(window.ino, window.offset, end)?
            .iter()
            .filter(|e| !e.is_lost())
            .map(|e| e.slice(window.offset, end))
            .collect();
        let is_wanted = |e: &Extent| match wanted {
            Wanted::Staged => e.staged,
            Wanted::Blocks(blocks) => e.staged || blocks.contains(&e.block),
            Wanted::All => true,
        };
        let runs: Vec<Run> = contiguous(window.ino, &extents)
            .into_iter()
            .filter(|run| run.extents.iter().any(is_wanted))
            .collect();
        if !extents.iter().any(|e| e.staged) {
            let mut change = Change::new(self);
            let key = keys::pending(window.ino, window.offset);
            if self.store()?.get(&key)?.is_some() {
                change.delete(key);
                change.commit()?;
            }
        }
        Ok((!runs.is_empty()).then_some((state.attr.parent, runs)))
    }

    /// Adds the names that some inodes have in a directory, as far as they are among about its first `most`.
    pub(super) fn names_in(
        &self,
        parent: u64,
        inos: &HashSet<u64>,
        most: usize,
        names: &mut HashMap<u64, Vec<u8>>,
    ) -> Result<()> {
        let (mut from, to) = keys::range_of(b'D', parent);
        let (mut left, mut looked_at) = (inos.len(), 0);
        while left > 0 && looked_at < most {
            let page = self.store()?.scan(&from, &to, PAGE)?;
            looked_at += page.len();
            for (key, value) in &page {
                let entry = super::namespace::Dirent::decode(value)?;
                let name = key.get(9..).unwrap_or_default().to_vec();
                if inos.contains(&entry.ino) && names.insert(entry.ino, name).is_none() {
                    left -= 1;
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => from = keys::after(last),
                _ => break,
            }
        }
        Ok(())
    }

    /// Adds what a block costs of which so many bytes are shown.
    fn add_cost(&self, cost: &mut Cost, block: BlockId, bytes: u64) -> Result<()> {
        let info = match self.store()?.block_info(block) {
            // Changed meanwhile: what is swapped in for it will be refused.
            Err(StoreError::NoSuchBlock(_)) => {
                cost.staged = true;
                return Ok(());
            }
            info => info?,
        };
        // Not rounded up for every extent: a block that is shown as a whole costs what it takes.
        let raw = u64::from(info.raw_len).max(1);
        cost.stored += u64::from(info.stored_len) * bytes.min(raw) / raw;
        let read = match CodecId::from_byte(info.codec) {
            Some(CodecId::Model) => match self.cache.layout(block) {
                Ok(layout) => self.codecs.read_cost(&layout),
                Err(_) if self.store.is_gone(block) => {
                    cost.staged = true;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            },
            codec => ReadCost {
                class: u8::from(codec == Some(CodecId::Zstd)),
                group: info.raw_len,
            },
        };
        cost.read = cost.read.max(read);
        Ok(())
    }

    fn blocks_are_gone(&self, run: &Run) -> bool {
        run.extents.iter().any(|e| self.store.is_gone(e.block))
    }

    /// The settled block that begins a file, or the anchor of that block.
    fn file_anchor(&self, ino: u64) -> Result<Option<BlockId>> {
        let first = self.extents(ino, 0, 1)?;
        let Some(first) = first.first().filter(|e| !e.staged && !e.is_lost()) else {
            return Ok(None);
        };
        let info = self.store()?.block_info(first.block)?;
        Ok(match info.anchor {
            Some(anchor) => Some(anchor),
            None if first.skip == 0 => Some(first.block),
            None => None,
        })
    }

    fn swap_runs(&self, block: BlockId, runs: &[Run]) -> Result<Swapped> {
        let mut inodes: BTreeMap<u64, Arc<Inode>> = BTreeMap::new();
        for run in runs {
            match self.inode(run.ino) {
                Ok(inode) => inodes.insert(run.ino, inode),
                Err(VolumeError::Stale(_)) => None,
                Err(error) => return Err(error),
            };
        }
        let mut states = Locked::new(inodes.values());
        let mut swapped = Swapped::default();
        let mut change = Change::new(self);
        let mut skip = 0;
        let mut moves: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
        for run in runs {
            let there = inodes.contains_key(&run.ino) && self.is_unchanged(&mut states, run)?;
            if there {
                moves.entry(run.ino).or_default().push(Extent {
                    offset: run.offset,
                    len: run.len,
                    block,
                    skip,
                    staged: false,
                });
                swapped.settled += u64::from(run.len);
            } else {
                swapped.skipped += u64::from(run.len);
            }
            skip += run.len;
        }
        if moves.is_empty() {
            return Ok(swapped);
        }
        let before: Vec<(u64, u64)> = moves
            .keys()
            .map(|ino| Ok((*ino, states.get(*ino)?.attr.stored)))
            .collect::<Result<_>>()?;
        let result = self
            .add_moves(&mut change, &mut states, moves)
            .and_then(|()| change.commit());
        if let Err(error) = result {
            for (ino, stored) in before {
                states.get(ino)?.attr.stored = stored;
            }
            return Err(error);
        }
        Ok(swapped)
    }

    fn add_moves(
        &self,
        change: &mut Change<'_>,
        states: &mut Locked<'_>,
        moves: BTreeMap<u64, Vec<Extent>>,
    ) -> Result<()> {
        for (ino, mut new) in moves {
            new.sort_by_key(|e| e.offset);
            let cuts: Vec<(u64, u64)> = new.iter().map(|e| (e.offset, e.end())).collect();
            let state = states.get(ino)?;
            change.replace(ino, state, &cuts, &new)?;
            change.put_inode(ino, &state.attr, state.disk_size);
            for window in self.windows_settled_by(ino, &cuts)? {
                change.delete(keys::pending(ino, window));
            }
        }
        Ok(())
    }

    /// Windows in which nothing is staged any more once `cuts` are settled.
    fn windows_settled_by(&self, ino: u64, cuts: &[(u64, u64)]) -> Result<Vec<u64>> {
        let mut windows: Vec<u64> = cuts
            .iter()
            .map(|(from, _)| from - from % self.window())
            .collect();
        windows.dedup();
        let mut settled = Vec::new();
        for window in windows {
            let mut staged_left = false;
            self.for_extents(
                ino,
                window,
                window.saturating_add(self.window()),
                |extent| {
                    let replaced = cuts
                        .iter()
                        .any(|(f, t)| *f <= extent.offset && extent.end() <= *t);
                    staged_left = extent.staged && !replaced;
                    !staged_left
                },
            )?;
            if !staged_left {
                settled.push(window);
            }
        }
        Ok(settled)
    }

    /// Whether exactly the extents of `run` are still what its range shows.
    fn is_unchanged(&self, states: &mut Locked<'_>, run: &Run) -> Result<bool> {
        let state: &mut State = states.get(run.ino)?;
        if state.gone {
            return Ok(false);
        }
        let end = run.offset + u64::from(run.len);
        let now: Vec<Extent> = self
            .extents(run.ino, run.offset, end)?
            .iter()
            .map(|e| e.slice(run.offset, end))
            .collect();
        Ok(now == run.extents || fault::planted("swap-over-newer-write"))
    }

    /// Blocks that show less than half of what they hold, and the windows that show it. Empty unless
    /// repacking them is worth the effort.
    fn find_sparse(&self) -> Result<(HashSet<BlockId>, Vec<Window>)> {
        let now = self.store()?.last_lsn();
        if self.packed_at.load(Relaxed) == now {
            return Ok((HashSet::new(), Vec::new()));
        }
        let (mut blocks, mut waste, mut after) = (HashMap::new(), 0, 0);
        let mut seen = 0;
        loop {
            let page = self.store()?.blocks(after, PAGE)?;
            seen += page.len() as u64;
            for (id, info) in &page {
                let raw = u64::from(info.raw_len).max(1);
                if !info.staged && info.live * SPARSE_FACTOR < raw && info.live > 0 {
                    waste += u64::from(info.stored_len) * (raw - info.live) / raw;
                    blocks.insert(*id, info.refs);
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE && blocks.len() < MAX_SPARSE => after = *last,
                _ => break,
            }
        }
        if waste < MIN_WASTE.max(seen * WASTE_PER_BLOCK) {
            self.packed_at.store(now, Relaxed);
            return Ok((HashSet::new(), Vec::new()));
        }
        let mut windows = Vec::new();
        self.for_all_extents(|ino, extent| {
            if let Some(refs) = blocks.get_mut(&extent.block) {
                *refs = refs.saturating_sub(1);
                windows.push((extent.block, ino, extent.offset));
            }
        })?;
        // A block that others are anchored to stays in any case.
        blocks.retain(|_, refs| *refs == 0);
        let mut windows: Vec<Window> = windows
            .into_iter()
            .filter(|(block, ..)| blocks.contains_key(block))
            .map(|(_, ino, offset)| Window {
                ino,
                offset: offset - offset % self.window(),
            })
            .collect();
        windows.sort_unstable();
        windows.dedup();
        Ok((blocks.into_keys().collect(), windows))
    }

    /// Calls `visit` for every extent of the volume.
    pub(super) fn for_all_extents(&self, mut visit: impl FnMut(u64, Extent)) -> Result<()> {
        let mut from = b"E".to_vec();
        loop {
            let page = self.store()?.scan(&from, b"F", PAGE)?;
            for (key, value) in &page {
                visit(keys::ino_of(key)?, keys::decode_extent(key, value)?);
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => from = keys::after(last),
                _ => return Ok(()),
            }
        }
    }
}

/// Groups extents, which are in order, into runs without gaps.
fn contiguous(ino: u64, extents: &[Extent]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(run) if run.offset + u64::from(run.len) == extent.offset => {
                run.len += extent.len;
                run.extents.push(*extent);
            }
            _ => runs.push(Run {
                ino,
                offset: extent.offset,
                len: extent.len,
                extents: vec![*extent],
            }),
        }
    }
    runs
}
