//! What is done about a disk that fills up.
//!
//! New data stops while some space is left, so that metadata, settling and reclaim can go on. And while
//! a store is open for writing, a reserve file holds space that only a transaction that frees something
//! may use: unlink works even when others have filled the disk to the last byte.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;

use super::layout::RESERVE;
use super::storage::Storage;
use super::{Result, StoreError};

/// Size of the reserve file.
const RESERVE_BYTES: u64 = 4 << 20;
/// New data is refused when less than this is left, or a 64th of a small disk.
const DATA_FLOOR: u64 = 32 << 20;
/// How many bytes are written before the free space is looked at again.
const CHECK_EVERY: i64 = 8 << 20;

pub(crate) struct SpaceKeeper {
    /// True while the reserve file exists.
    reserved: Mutex<bool>,
    /// Bytes of new data that may be written before the free space is looked at again.
    budget: AtomicI64,
}

fn no_space(path: &str) -> StoreError {
    StoreError::io("write", path)(io::Error::from_raw_os_error(libc::ENOSPC))
}

impl SpaceKeeper {
    pub(crate) fn new() -> SpaceKeeper {
        SpaceKeeper {
            reserved: Mutex::new(false),
            budget: AtomicI64::new(0),
        }
    }

    /// Creates the reserve if there is ample space for it. Failing to is no error: the disk is
    /// full then, or the file system cannot reserve.
    pub(crate) fn restore_reserve(&self, storage: &dyn Storage) {
        let mut reserved = self.reserved.lock();
        let ample = storage
            .free_space()
            .is_ok_and(|space| space.available >= 2 * RESERVE_BYTES);
        if *reserved || !ample {
            return;
        }
        let made = storage
            .create(RESERVE)
            .and_then(|file| file.reserve(RESERVE_BYTES));
        match made {
            Ok(()) => *reserved = true,
            Err(error) => {
                log::debug!("{RESERVE}: {error}");
                self.remove(storage);
            }
        }
    }

    fn remove(&self, storage: &dyn Storage) {
        match storage.unlink(RESERVE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => log::warn!("{RESERVE}: {e}"),
            _ => {}
        }
    }

    /// Gives the reserved space back to the disk. False if there was none.
    pub(crate) fn release_reserve(&self, storage: &dyn Storage) -> bool {
        let mut reserved = self.reserved.lock();
        if *reserved {
            self.remove(storage);
        }
        std::mem::replace(&mut *reserved, false)
    }

    /// Err if `bytes` of new data would take space that unlink and settling need.
    pub(crate) fn admit_data(&self, storage: &dyn Storage, bytes: u64) -> Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.budget.fetch_sub(bytes, Ordering::Relaxed) >= bytes {
            return Ok(());
        }
        let place = storage.describe();
        let space = storage
            .free_space()
            .map_err(StoreError::io("statvfs", &place))?;
        let above = space
            .available
            .saturating_sub(DATA_FLOOR.min(space.total / 64));
        let above = i64::try_from(above).unwrap_or(i64::MAX);
        if above < bytes {
            self.budget.store(0, Ordering::Relaxed);
            return Err(no_space(&place));
        }
        self.budget
            .store((above - bytes).min(CHECK_EVERY), Ordering::Relaxed);
        Ok(())
    }

    /// Err if the reserve has been given up and `bytes` of metadata would eat what it was for.
    pub(crate) fn admit_metadata(&self, storage: &dyn Storage, bytes: u64) -> Result<()> {
        if *self.reserved.lock() {
            return Ok(());
        }
        let place = storage.describe();
        let space = storage
            .free_space()
            .map_err(StoreError::io("statvfs", &place))?;
        let floor = RESERVE_BYTES.min(space.total / 64);
        if space.available < floor + bytes {
            Err(no_space(&place))
        } else {
            Ok(())
        }
    }
}
