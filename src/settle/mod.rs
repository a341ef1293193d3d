//! Settling: the background pipeline from staged blocks to blocks in the codec of their final choice.
//!
//! A turn gathers quiet windows of many files, plans which of them share blocks, encodes on several
//! threads, and swaps the extents of each block in one transaction, but only those that have not moved
//! meanwhile. The owner of files and extents is behind the [`Host`] trait; what has to be settled is
//! recorded there, so settling goes on after a restart. Locks here are leaves: none is held while the
//! host is called.

mod again;
mod extent;
mod pipeline;
mod plan;
mod recent;

pub use again::{Again, Recoded, Step};
pub use extent::{Extent, LOST};
pub(crate) use pipeline::lower_priority;

use crate::codec::{Codecs, Encoded, Policy, ReadCost, Verify};
use crate::latency::{Histogram, Times};
use crate::store::BlockId;
use log::error;
use parking_lot::{Condvar, Mutex};
use recent::Recent;
use std::collections::{HashSet, VecDeque};
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
    /// That of the file at the moment.
    pub policy: Policy,
}

/// Which data of some windows to gather.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    Staged,
    /// What is staged, or lies in one of these blocks.
    Blocks(&'a HashSet<BlockId>),
    /// All there is, settled or not.
    All,
}

/// What the blocks of some runs cost as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Share of the runs in the payloads of their blocks, in bytes.
    pub stored: u64,
    pub read: ReadCost,
    /// Some of it is staged.
    pub staged: bool,
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
    /// Runs in these windows that hold some of what is wanted. A window without staged data is not
    /// pending any more.
    fn candidates(&self, windows: &[Window], wanted: Wanted<'_>) -> HostResult<Vec<Candidate>>;
    /// The policy of a file at the moment; `None` if the file is gone.
    fn policy(&self, ino: u64) -> HostResult<Option<Policy>>;
    /// Decoded bytes of a run, or `None` if it has changed.
    fn read_run(&self, run: &Run) -> HostResult<Option<Vec<u8>>>;
    /// The same for runs of settled data, past the cache and whoever waits for it.
    fn read_settled(&self, run: &Run) -> HostResult<Option<Vec<u8>>>;
    /// What the blocks of these runs cost now.
    fn cost(&self, runs: &[Run]) -> HostResult<Cost>;
    /// The block that may serve as anchor for later parts of a file.
    fn anchor_of(&self, ino: u64) -> HostResult<Option<BlockId>>;
    /// At most `limit` decoded bytes from the beginning of a block.
    fn block_head(&self, block: BlockId, limit: u32) -> HostResult<Vec<u8>>;
    fn append(&self, encoded: &Encoded, raw_len: u32) -> HostResult<BlockId>;
    /// Gives up a block that was appended and will not be shown.
    fn discard(&self, block: BlockId);
    /// Whether there is space for settled blocks beside the staged ones they replace. Without, space
    /// must be reclaimed first.
    fn has_room(&self) -> HostResult<bool>;
    /// Makes appended blocks durable, so that swapping does not have to.
    fn sync_blocks(&self) -> HostResult<()>;
    /// Shows `runs`, one after the other, from `block`, as far as they are unchanged.
    fn swap(&self, block: BlockId, runs: &[Run]) -> HostResult<Swapped>;
    /// Blocks of which less than half is shown, and windows that show something of them.
    fn sparse(&self) -> HostResult<(HashSet<BlockId>, Vec<Window>)>;
    /// No more runs are read by [`Host::read_settled`] for now.
    fn no_more_settled(&self);
    /// For how long nobody has read or written a file.
    fn idle_for(&self) -> Duration;
    /// For how long nobody has read one.
    fn unread_for(&self) -> Duration;
    /// There is so little space that settling should not wait for anything.
    fn is_nearly_full(&self) -> bool;
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
    pub group: Option<u32>,
    /// Settle only while nobody has read or written for so long, unless somebody waits for it or space
    /// is short.
    pub idle: Duration,
    pub verify: Verify,
}

/// Figures since the mount.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SettleStats {
    pub settled_bytes: u64,
    pub busy: Duration,
    /// How long batches took.
    pub batches: Times,
    pub failures: u64,
    pub last_failure: Option<String>,
}

/// The background pipeline. See the module.
pub struct Settler {
    options: SettlerOptions,
    /// What the options said first; [`Settler::tune`] changes it.
    group: Mutex<Option<u32>>,
    recent: Mutex<Recent>,
    /// Callers of [`Settler::settle_all`]: while there are any, nothing waits to become quiet.
    forced: AtomicUsize,
    /// Passes over everything pending that began while settling was forced, and ended.
    forced_passes: AtomicU64,
    settled_bytes: AtomicU64,
    busy_nanos: AtomicU64,
    batches: Histogram,
    failures: AtomicU64,
    /// The last failure of all.
    latest_failure: Mutex<Option<String>>,
    /// The last failure since somebody began to wait in [`Settler::settle_all`].
    last_failure: Mutex<Option<String>>,
    anchors: Mutex<pipeline::Anchors>,
    /// What is to be coded again, first come first served.
    again: Mutex<VecDeque<Arc<Again>>>,
    /// Blocks encoded since the mount.
    encoded: AtomicU64,
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
            group: Mutex::new(options.group),
            options,
            forced: AtomicUsize::new(0),
            forced_passes: AtomicU64::new(0),
            settled_bytes: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            batches: Histogram::default(),
            failures: AtomicU64::new(0),
            latest_failure: Mutex::new(None),
            last_failure: Mutex::new(None),
            anchors: Mutex::new(pipeline::Anchors::default()),
            again: Mutex::default(),
            encoded: AtomicU64::new(0),
            working: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            idle: Mutex::new(()),
            wake: Condvar::new(),
            thread: Mutex::new(None),
        })
    }

    /// Settles differently from now on.
    pub fn tune(&self, group: Option<u32>, settle_after: Duration) {
        *self.group.lock() = group;
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
        self.abandon_again();
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
            batches: self.batches.times(),
            failures: self.failures.load(SeqCst),
            last_failure: self.latest_failure.lock().clone(),
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
        let failure = format!("{what}: {why}");
        *self.latest_failure.lock() = Some(failure.clone());
        *self.last_failure.lock() = Some(failure);
    }

    fn note_busy(&self, begun: Instant) {
        self.batches.record_since(begun);
        self.busy_nanos
            .fetch_add(begun.elapsed().as_nanos() as u64, SeqCst);
    }
}
