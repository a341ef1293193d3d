//! One decoding that is under way, and all who wait for it.

use super::CacheError;
use crate::codec::Layout;
use crate::store::BlockId;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// A group of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupKey {
    pub block: BlockId,
    pub group: u32,
}

/// Decoding of one group. Bytes become available from front to back.
#[derive(Debug)]
pub struct Flight {
    pub key: GroupKey,
    pub layout: Arc<Layout>,
    /// A thread decodes; set once.
    started: AtomicBool,
    waiters: AtomicUsize,
    progress: Mutex<Progress>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    data: Vec<u8>,
    end: Option<Result<Arc<[u8]>, CacheError>>,
}

impl Flight {
    pub fn new(key: GroupKey, layout: Arc<Layout>) -> Flight {
        Flight {
            key,
            layout,
            started: AtomicBool::new(false),
            waiters: AtomicUsize::new(0),
            progress: Mutex::new(Progress::default()),
            more: Condvar::new(),
        }
    }

    /// True for exactly one caller, who then decodes.
    pub fn claim(&self) -> bool {
        !self.started.swap(true, SeqCst)
    }

    pub fn is_started(&self) -> bool {
        self.started.load(SeqCst)
    }

    /// Somebody waits for bytes.
    pub fn is_wanted(&self) -> bool {
        self.waiters.load(SeqCst) > 0
    }

    /// Bytes delivered so far.
    pub fn delivered(&self) -> usize {
        self.progress.lock().data.len()
    }

    /// Delivers the next decoded bytes.
    pub fn deliver(&self, piece: &[u8]) {
        self.progress.lock().data.extend_from_slice(piece);
        self.more.notify_all();
    }

    /// Ends the flight. On success `expected` bytes must have been delivered.
    pub fn finish(
        &self,
        result: Result<(), CacheError>,
        expected: usize,
    ) -> Result<Arc<[u8]>, CacheError> {
        let mut progress = self.progress.lock();
        let data = std::mem::take(&mut progress.data);
        let end = match result {
            Ok(()) if data.len() == expected => Ok(Arc::from(data)),
            Ok(()) => Err(CacheError::Damaged {
                block: self.key.block,
                why: format!(
                    "group {} decodes to {} bytes instead of {expected}",
                    self.key.group,
                    data.len()
                ),
            }),
            Err(error) => Err(error),
        };
        progress.end = Some(end.clone());
        drop(progress);
        self.more.notify_all();
        end
    }

    /// Copies bytes from position `from` of the group as soon as they are there.
    pub fn wait_for(&self, from: usize, out: &mut [u8]) -> Result<(), CacheError> {
        self.waiters.fetch_add(1, SeqCst);
        let result = self.wait(from, out);
        self.waiters.fetch_sub(1, SeqCst);
        result
    }

    fn wait(&self, from: usize, out: &mut [u8]) -> Result<(), CacheError> {
        let to = from + out.len();
        let mut progress = self.progress.lock();
        loop {
            let ready: Option<&[u8]> = match &progress.end {
                Some(Ok(data)) => Some(data),
                Some(Err(error)) => return Err(error.clone()),
                None => (progress.data.len() >= to).then_some(progress.data.as_slice()),
            };
            if let Some(data) = ready {
                let bytes = data.get(from..to).ok_or_else(|| CacheError::Damaged {
                    block: self.key.block,
                    why: format!("no bytes {from}..{to} in group {}", self.key.group),
                })?;
                out.copy_from_slice(bytes);
                return Ok(());
            }
            self.more.wait(&mut progress);
        }
    }
}
