//! One decoding that is under way, and all who wait for it.

use super::CacheError;
use crate::codec::Layout;
use crate::store::BlockId;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;

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

#[cfg(all(test, feature = "shuttle"))]
mod shuttle_tests {
    use super::*;
    use crate::codec::Codecs;
    use shuttle::thread;

    const BYTES: &[u8] = b"what the group decodes to";

    fn flight() -> Arc<Flight> {
        let codecs = Codecs::without_model();
        let payload = codecs.encode_fast(BYTES).payload;
        let layout = Arc::new(codecs.open(&payload).unwrap());
        let key = GroupKey { block: 1, group: 0 };
        Arc::new(Flight::new(key, layout))
    }

    /// Three readers of different parts, of whom one decodes, well or not.
    fn fly(fails: bool) {
        let (flight, claims) = (flight(), Arc::new(AtomicUsize::new(0)));
        let readers: Vec<_> = (0..3usize)
            .map(|number| {
                let (flight, claims) = (flight.clone(), claims.clone());
                thread::spawn(move || {
                    if flight.claim() {
                        claims.fetch_add(1, SeqCst);
                        flight.deliver(&BYTES[..10]);
                        let end = match fails {
                            true => Err(CacheError::Abandoned { block: 1 }),
                            false => {
                                flight.deliver(&BYTES[10..]);
                                Ok(())
                            }
                        };
                        let _ = flight.finish(end, BYTES.len());
                    }
                    let (from, mut out) = (number * 8, [0; 8]);
                    match flight.wait_for(from, &mut out) {
                        Ok(()) => assert_eq!(out, BYTES[from..from + 8]),
                        Err(error) => assert!(fails, "{error}"),
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(claims.load(SeqCst), 1, "one decodes");
        assert!(!flight.is_wanted() && flight.is_started());
    }

    #[test]
    fn shuttle_every_reader_of_a_flight_gets_its_bytes_and_one_decodes() {
        shuttle::check_random(|| fly(false), 3000);
        shuttle::check_pct(|| fly(false), 1000, 3);
    }

    #[test]
    fn shuttle_nobody_waits_for_ever_for_a_flight_that_fails() {
        shuttle::check_random(|| fly(true), 3000);
    }
}
