//! Waiting for what happens soon, on busy machines too.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use s2sfs::store::{OpenOptions, RealStorage, Store, StoreError};

/// Polls until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Opens a store on a real disk. A program that another test starts has copies of all our descriptors until it has
/// got as far as its exec, locks among them: that is waited for.
pub fn open_store(path: &Path, options: &OpenOptions) -> Result<Store, StoreError> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(Arc::new(RealStorage::new(path)), options) {
            Err(StoreError::Locked(_)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}
