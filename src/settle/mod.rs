//! Settling: the background pipeline from staged blocks to blocks in the codec of their final choice.
//!
//! A turn gathers quiet windows of many files, plans which of them share blocks, encodes on several
//! threads, and swaps the extents of each block in one transaction, but only those that have not moved
//! meanwhile. The owner of files and extents is behind the [`Host`] trait; what has to be settled is
//! recorded there, so settling goes on after a restart. Locks here are leaves: none is held while the
//! host is called.

mod extent;
mod pipeline;
mod plan;
mod recent;

pub use extent::{Extent, LOST};
pub(crate) use pipeline::lower_priority;

use crate::codec::Policy;
use crate::codec::{Codecs, EncodeOptions, Encoded};
use crate::store::BlockId;
use log::error;
use parking_lot::{Condvar, Mutex};
use recent::Recent;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Error of the host, as text: settling only logs it and tries again later.
pub type HostResult<T> = Result<T, String>;

/// An aligned part of a file that has, or had, staged data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    pub ino: u64,
    pub offset: u64,
}

/// Contiguous extents inside one window, as they were when they were looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub ino: u64,
    pub offset: u64,
    pub len: u32,
    pub extents: Vec<Extent>,
}

/// A run that should be settled, and what it is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub run: Run,
    /// Directory of the file.
    pub parent: u64,
    /// A name of the file, or empty.
    pub name: Vec<u8>,
}

/// What a swap did, in decoded bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swapped {
    pub settled: u64,
    /// Left alone because it changed meanwhile.
    pub skipped: u64,
}

/// The owner of files and extents.
pub trait Host: Send + Sync {
    /// Windows with staged data after `after`, in order.
    fn pending(&self, after: Option<Window>, limit: usize) -> HostResult<Vec<Window>>;
    /// Runs in these windows that hold staged data, or data in one of `sparse`. A window without any
    /// is not pending any more.
    fn candidates(
        &self,
        windows: &[Window],
        sparse: &HashSet<BlockId>,
    ) -> HostResult<Vec<Candidate>>;
    /// Decoded bytes of a run, or `None` if it has changed.
    fn read_run(&self, run: &Run) -> HostResult<Option<Vec<u8>>>;
    /// The block that may serve as anchor for later parts of a file.
    fn anchor_of(&self, ino: u64) -> HostResult<Option<BlockId>>;
    /// At most `limit` decoded bytes from the beginning of a block.
    fn block_head(&self, block: BlockId, limit: u32) -> HostResult<Vec<u8>>;
    fn append(&self, encoded: &Encoded, raw_len: u32) -> HostResult<BlockId>;
    /// Whether there is space for settled blocks beside the staged ones they replace. Without, space
    /// must be reclaimed first.
    fn has_room(&self) -> HostResult<bool>;
    /// Makes appended blocks durable, so that swapping does not have to.
    fn sync_blocks(&self) -> HostResult<()>;
    /// Shows `runs`, one after the other, from `block`, as far as they are unchanged.
    fn swap(&self, block: BlockId, runs: &[Run]) -> HostResult<Swapped>;
    /// Blocks of which less than half is shown, and windows that show something of them.
    fn sparse(&self) -> HostResult<(HashSet<BlockId>, Vec<Window>)>;
    /// The disk is so full that dead blocks are worth reclaiming at once.
    fn is_short_of_space(&self) -> bool;
    /// Frees space of dead blocks; returns how much.
    fn reclaim(&self) -> HostResult<u64>;
    fn codecs(&self) -> &Codecs;
}

/// How to settle.
#[derive(Debug, Clone)]
pub struct SettlerOptions {
    /// Bytes of one window, and most bytes of one block.
    pub window: u64,
    pub settle_after: Duration,
    pub threads: usize,
    pub policy: Policy,
    pub group: Option<u32>,
}

/// Figures since the mount.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SettleStats {
    pub settled_bytes: u64,
    pub busy: Duration,
    pub failures: u64,
}

/// The background pipeline. See the module.
pub struct Settler {
    options: SettlerOptions,
    /// What the options said first; [`Settler::tune`] changes it.
    encoding: Mutex<EncodeOptions>,
    recent: Mutex<Recent>,
    /// Callers of [`Settler::settle_all`]: while there are any, nothing waits to become quiet.
    forced: AtomicUsize,
    /// Passes over everything pending that began while settling was forced, and ended.
    forced_passes: AtomicU64,
    settled_bytes: AtomicU64,
    busy_nanos: AtomicU64,
    failures: AtomicU64,
    last_failure: Mutex<Option<String>>,
    anchors: Mutex<pipeline::Anchors>,
    working: AtomicBool,
    stopping: AtomicBool,
    idle: Mutex<()>,
    wake: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Settler {
    pub fn new(options: SettlerOptions) -> Arc<Settler> {
        Arc::new(Settler {
            recent: Mutex::new(Recent::new(options.settle_after)),
            encoding: Mutex::new(EncodeOptions {
                policy: options.policy,
                group: options.group,
            }),
            options,
            forced: AtomicUsize::new(0),
            forced_passes: AtomicU64::new(0),
            settled_bytes: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last_failure: Mutex::new(None),
            anchors: Mutex::new(pipeline::Anchors::default()),
            working: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            idle: Mutex::new(()),
            wake: Condvar::new(),
            thread: Mutex::new(None),
        })
    }

    /// Settles differently from now on.
    pub fn tune(&self, encoding: EncodeOptions, settle_after: Duration) {
        *self.encoding.lock() = encoding;
        self.recent.lock().set_settle_after(settle_after);
        self.wake_up();
    }

    /// Starts settling in the background.
    pub fn start<H: Host + 'static>(self: &Arc<Self>, host: Weak<H>) -> std::io::Result<()> {
        let settler = self.clone();
        let thread = std::thread::Builder::new()
            .name("settle".into())
            .spawn(move || settler.run(&host))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Stops as soon as the blocks that are being encoded are done, and waits for that.
    pub fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_up();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            error!("the settling thread panicked");
        }
    }

    fn wake_up(&self) {
        let _idle = self.idle.lock();
        self.wake.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    fn is_forced(&self) -> bool {
        self.forced.load(SeqCst) > 0
    }

    /// Data of these windows has been staged just now.
    pub fn touched(&self, ino: u64, offsets: impl IntoIterator<Item = u64>) {
        let mut recent = self.recent.lock();
        for offset in offsets {
            recent.touched(Window { ino, offset });
        }
    }

    /// Blocks are being encoded just now.
    pub fn is_working(&self) -> bool {
        self.working.load(SeqCst)
    }

    pub fn stats(&self) -> SettleStats {
        SettleStats {
            settled_bytes: self.settled_bytes.load(SeqCst),
            busy: Duration::from_nanos(self.busy_nanos.load(SeqCst)),
            failures: self.failures.load(SeqCst),
        }
    }

    /// Settles all that is pending now, quiet or not, and waits for it. `tick` is called now and then
    /// and says whether anything is left. Fails if something could not be settled.
    pub fn settle_all(&self, mut tick: impl FnMut() -> bool) -> Result<(), String> {
        self.forced.fetch_add(1, SeqCst);
        // One pass may have begun before the last data was staged; the second sees everything, and
        // the third what a write moved under the second.
        let enough = self.forced_passes.load(SeqCst) + 3;
        self.last_failure.lock().take();
        self.wake_up();
        let mut left = tick();
        // At least one pass, for the space that earlier settling left behind.
        while !self.is_stopping()
            && self.forced_passes.load(SeqCst) < enough
            && (left || self.forced_passes.load(SeqCst) < enough - 1)
        {
            let mut idle = self.idle.lock();
            self.wake.wait_for(&mut idle, Duration::from_millis(100));
            drop(idle);
            left = tick();
        }
        self.forced.fetch_sub(1, SeqCst);
        match self.last_failure.lock().take() {
            Some(failure) if left => Err(failure),
            _ if left && self.is_stopping() => Err("the volume is being shut down".into()),
            _ => Ok(()),
        }
    }

    fn failed(&self, what: &str, why: &str) {
        log::warn!("settling: {what}: {why}");
        self.failures.fetch_add(1, SeqCst);
        *self.last_failure.lock() = Some(format!("{what}: {why}"));
    }

    fn note_busy(&self, begun: Instant) {
        self.busy_nanos
            .fetch_add(begun.elapsed().as_nanos() as u64, SeqCst);
    }
}
