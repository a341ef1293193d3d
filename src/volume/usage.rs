//! How files are stored, in figures cheap enough to ask for of every file.

use super::change::{codec_index, share_of};
use super::keys;
use super::{Result, Volume, VolumeError};
use crate::codec::CodecId;
use crate::control::FileUsage;
use crate::settle::Extent;
use crate::store::Store;

/// Extents that one step reads.
const PAGE: usize = 512;
/// How often a step starts over because settling replaced one of its blocks meanwhile.
const TRIES: usize = 16;

impl Volume {
    /// How a file is stored. Neither reads blocks nor keeps anybody waiting, so the figures of a file that
    /// changes meanwhile are of more than one moment.
    pub fn usage(&self, ino: u64) -> Result<FileUsage> {
        let dirty = match self.table.peek(ino) {
            Some(inode) => inode.state.lock().unstored_bytes(),
            None => 0,
        };
        let mut usage = usage_of(self.store()?, ino)?;
        usage.dirty_bytes = dirty;
        Ok(usage)
    }
}

/// How the staged and settled data of a file is stored. A file that is not there has none.
pub(super) fn usage_of(store: &Store, ino: u64) -> Result<FileUsage> {
    let mut usage = FileUsage {
        ino,
        ..FileUsage::default()
    };
    let (mut from, to) = keys::range_of(b'E', ino);
    let mut tries = TRIES;
    loop {
        let page = store.scan(&from, &to, PAGE)?;
        let mut step = usage.clone();
        match add_extents(store, &mut step, &page) {
            Err(VolumeError::Store { .. }) if tries > 0 && was_replaced(store, &page) => {
                tries -= 1;
                continue;
            }
            other => other?,
        }
        usage = step;
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = keys::after(last),
            _ => return Ok(usage),
        }
    }
}

fn add_extents(store: &Store, usage: &mut FileUsage, page: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
    for (key, value) in page {
        let extent = keys::decode_extent(key, value)?;
        let (name, share) = match extent.is_lost() {
            true => ("lost", 0),
            false => {
                let block = store.block_info(extent.block)?;
                let codec = CodecId::ALL[codec_index(&block)?];
                (codec.name(), share_of(&extent, &block))
            }
        };
        if extent.staged {
            usage.staged_bytes += share;
        }
        // Looked up before it is made: a file has few codecs and may have many extents.
        if !usage.codecs.contains_key(name) {
            usage.codecs.insert(name.into(), Default::default());
        }
        if let Some(codec) = usage.codecs.get_mut(name) {
            codec.extents += 1;
            codec.logical_bytes += u64::from(extent.len);
            codec.stored_bytes += share;
        }
    }
    Ok(())
}

/// Whether settling replaced a block after its extent was looked up.
fn was_replaced(store: &Store, page: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let gone = |extent: Extent| !extent.is_lost() && store.is_gone(extent.block);
    page.iter()
        .filter_map(|(key, value)| keys::decode_extent(key, value).ok())
        .any(gone)
}
