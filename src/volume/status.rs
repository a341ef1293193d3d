//! Figures about the volume and its files.

use super::change::{codec_index, share_of};
use super::counters::Totals;
use super::keys;
use super::{Result, Volume, VolumeError};
use crate::codec::CodecId;
use crate::control::{
    AgainStatus, CacheStatus, CodecUsage, ErrorStatus, ExtentInfo, FileInfo, FrozenStatus,
    IoStatus, LatencyStatus, SettleStatus, Status, ratio,
};
use crate::settle::{Extent, LOST, Recoded};
use crate::store::Store;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

/// Free and total space for statfs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceInfo {
    pub free: u64,
    pub total: u64,
    pub inodes: u64,
}

impl Volume {
    /// Space as statfs shows it.
    pub fn space(&self) -> Result<SpaceInfo> {
        let (free, total) = self.store()?.free_space()?;
        let totals = self.counters.get();
        Ok(SpaceInfo {
            free,
            total,
            inodes: (totals.files + totals.directories).max(0) as u64,
        })
    }

    /// All figures of `s2sfs status`, except the mountpoint and the store's path.
    pub fn status(&self) -> Result<Status> {
        let store = self.store()?;
        let totals = self.counters.get();
        let settle = self.settler.stats();
        let cache = self.cache.stats();
        let status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: Some(std::process::id()),
            mounted: true,
            read_only: self.options.read_only,
            dirty_bytes: self.budget.used(),
            cache: CacheStatus {
                bytes: cache.bytes,
                limit_bytes: cache.limit,
                hits: cache.hits,
                misses: cache.misses,
            },
            settle: SettleStatus {
                queue_length: totals.staged_extents.max(0) as u64,
                queue_bytes: totals.staged_logical.max(0) as u64,
                settled_bytes: settle.settled_bytes,
                bytes_per_second: per_second(settle.settled_bytes, settle.busy.as_secs_f64()),
            },
            io: IoStatus {
                read_bytes: self.io.read.load(Relaxed),
                written_bytes: self.io.written.load(Relaxed),
                decoded_bytes: cache.decoded_bytes,
                decode_bytes_per_second: per_second(
                    cache.decoded_bytes,
                    cache.decode_nanos as f64 / 1e9,
                ),
            },
            again: self.settler.coding_again().map(|(recoded, waiting)| {
                let waiting = waiting as u64;
                AgainStatus {
                    waiting,
                    ..recoded.into()
                }
            }),
            frozen: self.frozen().map(|(since, left)| FrozenStatus {
                seconds: since.as_secs_f64(),
                seconds_left: left.as_secs_f64(),
            }),
            latency: LatencyStatus {
                read_cached: self.io.read_cached.times().into(),
                read_decoded: self.io.read_decoded.times().into(),
                write: self.io.write.times().into(),
                fsync: self.io.fsync.times().into(),
                settle_batch: settle.batches.into(),
            },
            errors: ErrorStatus {
                settle: settle.failures,
                last_settle: settle.last_failure,
                ..ErrorStatus::default()
            },
            scrub: self.scrubber.status(),
            reclaim: self.reclaimed.status(),
            engine: self.codecs.engine(),
            model: self.codecs.encoding_model_name().unwrap_or_default(),
            threads: self.options.threads,
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            failed: self.stager.failing().map(|error| error.to_string()),
            ..Status::default()
        };
        with_store(status, store, &totals)
    }

    /// How one file is stored.
    pub fn file_info(&self, ino: u64) -> Result<FileInfo> {
        let inode = self.inode(ino)?;
        // Extents only change under this lock, so all figures are of one moment.
        let state = inode.state.lock();
        let mut info = FileInfo {
            ino,
            size: state.attr.size,
            dirty_bytes: state.unstored_bytes(),
            ..FileInfo::default()
        };
        for extent in self.extents(ino, 0, u64::MAX)? {
            self.add_extent_info(&mut info, &extent)?;
        }
        drop(state);
        self.add_layouts(&mut info);
        info.ratio = ratio(info.logical_bytes, info.stored_bytes);
        Ok(info)
    }

    fn add_extent_info(&self, info: &mut FileInfo, extent: &Extent) -> Result<()> {
        if extent.is_lost() {
            info.logical_bytes += u64::from(extent.len);
            info.extents.push(lost_info(extent));
            return Ok(());
        }
        let block = self.store()?.block_info(extent.block)?;
        let codec = CodecId::ALL[codec_index(&block)?];
        let share = share_of(extent, &block);
        let len = u64::from(extent.len);
        info.logical_bytes += len;
        info.stored_bytes += share;
        if extent.staged {
            info.staged_bytes += share;
        }
        let usage = info.codecs.entry(codec.name().into()).or_default();
        usage.extents += 1;
        usage.logical_bytes += len;
        usage.stored_bytes += share;
        let place = self.store()?.block_place(extent.block)?;
        let (segment, segment_offset) = place.unwrap_or_default();
        info.extents.push(ExtentInfo {
            segment,
            segment_offset,
            offset: extent.offset,
            len,
            block: extent.block,
            skip: u64::from(extent.skip),
            codec: codec.name().into(),
            staged: extent.staged,
            block_stored_bytes: u64::from(block.stored_len),
            block_raw_bytes: u64::from(block.raw_len),
            group_bytes: 0,
            anchor: block.anchor,
        });
        Ok(())
    }

    /// Adds what only the blocks themselves know: groups and models. A block that cannot be read
    /// keeps its zeros.
    fn add_layouts(&self, info: &mut FileInfo) {
        let mut models = BTreeSet::new();
        for extent in info.extents.iter_mut().filter(|e| e.block != LOST) {
            let Ok(layout) = self.cache.layout(extent.block) else {
                continue;
            };
            if layout.groups.len() > 1 {
                let longest = layout.groups.iter().map(|g| g.len() as u64).max();
                extent.group_bytes = longest.unwrap_or(0);
            }
            if let Some(model) = &layout.model {
                models.insert(crate::codec::file_name(model));
            }
        }
        info.models = models.into_iter().collect();
    }

    /// Counts everything, after an unclean end.
    pub(super) fn count_everything(&self) -> Result<Totals> {
        count(&self.store)
    }
}

impl From<Recoded> for AgainStatus {
    fn from(recoded: Recoded) -> AgainStatus {
        AgainStatus {
            done_bytes: recoded.passed,
            total_bytes: recoded.total,
            coded_bytes: recoded.coded,
            kept_bytes: recoded.kept,
            skipped_bytes: recoded.skipped,
            before_bytes: recoded.before,
            after_bytes: recoded.after,
            failures: recoded.failures,
            first_failure: recoded.first_failure,
            waiting: 0,
        }
    }
}

fn lost_info(extent: &Extent) -> ExtentInfo {
    ExtentInfo {
        offset: extent.offset,
        len: u64::from(extent.len),
        block: 0,
        skip: 0,
        codec: "lost".into(),
        staged: false,
        block_stored_bytes: 0,
        block_raw_bytes: 0,
        group_bytes: 0,
        anchor: None,
        segment: String::new(),
        segment_offset: 0,
    }
}

/// Figures of a store that is not mounted.
pub fn file_totals(store: &Store) -> Result<Status> {
    keys::refuse_newer(store)?;
    let totals = match store.get(keys::META_COUNTERS)? {
        Some(value) => Totals::decode(&value)?,
        None => count(store)?,
    };
    with_store(Status::default(), store, &totals)
}

fn with_store(mut status: Status, store: &Store, totals: &Totals) -> Result<Status> {
    let usage = store.usage()?;
    status.uuid = store.uuid().to_string();
    status.format_version = crate::store::FORMAT_VERSION;
    status.files = totals.files.max(0) as u64;
    status.directories = totals.directories.max(0) as u64;
    status.logical_bytes = totals.logical().max(0) as u64;
    status.staged_bytes = totals.staged_stored.max(0) as u64;
    status.stored_bytes = usage.stored_bytes();
    status.model_bytes = usage.model_bytes;
    status.index_bytes = usage.index_bytes;
    status.log_bytes = usage.log_bytes;
    status.dead_bytes = usage.dead_bytes;
    status.free_bytes = store.free_space()?.0;
    for (codec, figures) in CodecId::ALL.iter().zip(totals.codecs) {
        if figures.extents > 0 {
            let usage = CodecUsage {
                extents: figures.extents as u64,
                logical_bytes: figures.logical.max(0) as u64,
                stored_bytes: figures.stored.max(0) as u64,
            };
            status.codecs.insert(codec.name().into(), usage);
        }
    }
    Ok(status.with_ratio())
}

fn per_second(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        bytes as f64 / seconds
    } else {
        0.0
    }
}

/// Totals by reading all inodes and extents.
fn count(store: &Store) -> Result<Totals> {
    let mut totals = Totals::default();
    for_each(store, b"I", b"J", |_, value| {
        match super::Attr::decode(value)?.is_dir() {
            true => totals.directories += 1,
            false => totals.files += 1,
        }
        Ok(())
    })?;
    for_each(store, b"E", b"F", |key, value| {
        let extent = keys::decode_extent(key, value)?;
        if extent.is_lost() {
            return Ok(());
        }
        let info = store.block_info(extent.block)?;
        let share = share_of(&extent, &info) as i64;
        let codec = &mut totals.codecs[codec_index(&info)?];
        codec.extents += 1;
        codec.logical += i64::from(extent.len);
        codec.stored += share;
        if extent.staged {
            totals.staged_extents += 1;
            totals.staged_logical += i64::from(extent.len);
            totals.staged_stored += share;
        }
        Ok(())
    })?;
    Ok(totals)
}

/// Visits all pairs with keys in `[from, to)`.
pub(super) fn for_each(
    store: &Store,
    from: &[u8],
    to: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> std::result::Result<(), VolumeError>,
) -> Result<()> {
    const PAGE: usize = 1024;
    let mut from = from.to_vec();
    loop {
        let page = store.scan(&from, to, PAGE)?;
        for (key, value) in &page {
            visit(key, value)?;
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = keys::after(last),
            _ => return Ok(()),
        }
    }
}
