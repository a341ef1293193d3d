//! File system semantics over a store, independent of FUSE.
//!
//! A [`Volume`] maps inodes, names and file contents to keys and blocks of a store. Written data is
//! dirty (in memory) first, then staged (in the log, in a fast codec), then settled (in the codec of
//! its final choice, by [`crate::settle`]).
//!
//! # Lock order
//!
//! 0. a pass of the gate ([`freeze`]), before any lock;
//! 1. an inode's `stage` lock, held while its dirty data moves into the log; two of them only in the
//!    order of inode numbers;
//! 2. the namespace lock, held by whatever changes names;
//! 3. inodes' `state` locks, several of them only in the order of inode numbers ([`inode::Locked`]);
//! 4. leaf locks that never wait for another: the inode table's shards, the budget, the stager's queue
//!    and list of dirty inodes, the list of access times, the table of what the kernel knows, the
//!    settler's tables, and everything inside store and cache.
//!
//! Nothing takes a stage lock while it holds the namespace lock or a state lock. No lock is held while
//! a block is encoded or decoded, except the stage lock of the one inode that is staged. Transactions
//! are committed under the state locks of the inodes that they change, so that memory and log agree.

mod acl;
mod again;
mod allocate;
mod atime;
mod attr;
mod change;
mod check;
mod check_blocks;
mod copy;
mod counters;
mod damage;
mod dir;
mod dirty;
mod error;
mod file;
mod freeze;
pub(crate) mod fuzz;
mod hold;
mod inode;
pub(crate) mod keys;
mod known;
mod namespace;
mod policy;
mod reap;
mod reclaim;
mod rename;
mod repair;
mod repair_data;
mod repair_tree;
mod scrub;
mod scrub_block;
mod settling;
mod stage;
mod status;
mod survey;
mod usage;
mod xattr;

pub use crate::settle::{Extent, Recoded};
pub use acl::AclKind;
pub use allocate::{Allocate, AllocateMode};
pub use attr::{Attr, FileKind, Stat, Timestamp};
pub use check::check;
pub use copy::CopyRange;
pub use damage::{CheckReport, Damage, FileRange};
pub use dir::{DirEntry, DirStream};
pub use error::VolumeError;
pub use file::{MAX_SIZE, SetAttr, WriteMode};
pub use freeze::Pass;
pub use namespace::NAME_MAX;
pub use policy::POLICY;
pub use rename::{Place, RenameMode};
pub use repair::{RepairReport, printable, repair};
pub use status::{SpaceInfo, file_totals};
pub use survey::{SurveyedFile, survey};

use crate::cache::Cache;
use crate::codec::{Codecs, Policy, Verify};
use crate::latency::Histogram;
use crate::settle::{Settler, SettlerOptions};
use crate::store::Store;
use again::PastCaches;
use change::Change;
use counters::{Counters, Totals};
use freeze::Gate;
use inode::{Inode, InodeTable};
use known::Known;
use log::{error, info};
use namespace::Namespace;
use parking_lot::{Mutex, MutexGuard};
use policy::Policies;
use reclaim::Reclaimed;
use scrub::Scrubber;
use stage::{Budget, Stager};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Result of every operation of this layer.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// Inode number of the root directory.
pub const ROOT: u64 = 1;
/// Inodes that are kept in memory, beyond those in use.
const INODES_IN_MEMORY: usize = 1 << 16;
/// How long operations under way are waited for when the volume is shut down.
const OPERATIONS_END: Duration = Duration::from_secs(20);
/// Threads that move dirty data into the log.
const STAGING_THREADS: usize = 2;

/// How a volume works.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// Limit of the cache of decoded data.
    pub cache_bytes: u64,
    /// Limit of written data that is not in the log yet.
    pub dirty_bytes: u64,
    /// Threads that encode, and as many that decode.
    pub threads: usize,
    pub policy: Policy,
    /// Longest extent: a power of two.
    pub extent: u32,
    /// Upper bound of the group size; None lets the codec decide.
    pub group: Option<u32>,
    /// How long data must be left alone before it is settled.
    pub settle_after: Duration,
    /// Settle in the background only while nobody has read or written files for so long.
    pub idle: Duration,
    /// Which blocks are decoded again and compared before the staged ones go.
    pub verify: Verify,
    /// Reading moves access times, as the mount option relatime has it; without, only utimens does.
    pub relatime: bool,
    pub read_only: bool,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        VolumeOptions {
            cache_bytes: 128 << 20,
            dirty_bytes: 64 << 20,
            threads: std::thread::available_parallelism().map_or(2, |n| n.get()),
            policy: Policy::default(),
            extent: 128 << 10,
            group: None,
            settle_after: Duration::from_secs(30),
            idle: Duration::ZERO,
            verify: Verify::Full,
            relatime: true,
            read_only: false,
        }
    }
}

/// What can be changed while a volume is open; see [`VolumeOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    pub cache_bytes: u64,
    pub dirty_bytes: u64,
    pub policy: Policy,
    pub group: Option<u32>,
    pub settle_after: Duration,
    pub relatime: bool,
}

/// Who asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Permissions that what the caller makes does not get, unless its directory has a default list.
    pub umask: u32,
}

/// Traffic since the volume was opened.
#[derive(Debug, Default)]
struct Io {
    read: AtomicU64,
    written: AtomicU64,
    /// When that was last, in nanoseconds since the volume was opened.
    last_read: AtomicU64,
    last_write: AtomicU64,
    read_cached: Histogram,
    read_decoded: Histogram,
    write: Histogram,
    fsync: Histogram,
}

impl Io {
    fn note_read(&self, bytes: u64, started: Instant) {
        self.read.fetch_add(bytes, Relaxed);
        self.last_read.store(nanos_since(started), Relaxed);
    }

    fn note_write(&self, bytes: u64, started: Instant) {
        self.written.fetch_add(bytes, Relaxed);
        self.last_write.store(nanos_since(started), Relaxed);
    }

    /// For how long nobody has read.
    fn unread_for(&self, started: Instant) -> Duration {
        let last = Duration::from_nanos(self.last_read.load(Relaxed));
        started.elapsed().saturating_sub(last)
    }

    /// For how long nobody has read or written.
    fn idle_for(&self, started: Instant) -> Duration {
        let last = Duration::from_nanos(self.last_write.load(Relaxed));
        let unwritten = started.elapsed().saturating_sub(last);
        unwritten.min(self.unread_for(started))
    }
}

fn nanos_since(started: Instant) -> u64 {
    started.elapsed().as_nanos() as u64
}

/// An open file system.
pub struct Volume {
    store: Arc<Store>,
    codecs: Arc<Codecs>,
    options: VolumeOptions,
    cache: Arc<Cache>,
    table: InodeTable,
    known: Known,
    policies: Policies,
    /// What counts where nothing else is said; [`Volume::tune`] changes it.
    policy: Mutex<Policy>,
    /// What keeps changes out while the volume is frozen.
    gate: Arc<Gate>,
    past_caches: PastCaches,
    /// Inodes whose access times are to be stored.
    accesses: Mutex<Vec<Arc<Inode>>>,
    namespace: Mutex<Namespace>,
    counters: Counters,
    /// The stored counters are those of this moment: nothing has changed since the mount.
    counters_stored: AtomicBool,
    budget: Budget,
    stager: Arc<Stager>,
    settler: Arc<Settler>,
    scrubber: Arc<Scrubber>,
    reclaimed: Reclaimed,
    io: Io,
    max_extent: AtomicU64,
    /// The last commit at which no block was worth repacking.
    packed_at: AtomicU64,
    /// Reading moves access times.
    relatime: AtomicBool,
    /// Something was committed since the last sync.
    changed: AtomicBool,
    closed: AtomicBool,
    /// Held while the volume is shut down: taken before any other lock.
    closing: Mutex<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    started: Instant,
}

impl Volume {
    /// Opens the file system in a store, and makes an empty one in an empty store.
    pub fn open(
        store: Store,
        codecs: Arc<Codecs>,
        mut options: VolumeOptions,
    ) -> Result<Arc<Volume>> {
        options.read_only |= store.is_read_only();
        options.threads = options.threads.clamp(1, 256);
        let longest = crate::codec::MAX_RAW_LEN as u32;
        options.extent = options.extent.next_power_of_two().clamp(4 << 10, longest);
        let store = Arc::new(store);
        let cache = Cache::new(
            store.clone(),
            codecs.clone(),
            options.cache_bytes,
            options.threads,
        );
        let settler = Settler::new(SettlerOptions {
            window: u64::from(options.extent),
            settle_after: options.settle_after,
            threads: options.threads,
            group: options.group,
            idle: options.idle,
            verify: options.verify,
        });
        let volume = Arc::new(Volume {
            cache,
            settler,
            table: InodeTable::new(INODES_IN_MEMORY),
            known: Known::default(),
            policies: Policies::default(),
            policy: Mutex::new(options.policy),
            gate: Arc::default(),
            past_caches: PastCaches::default(),
            accesses: Mutex::default(),
            namespace: Mutex::new(Namespace {
                next_ino: ROOT + 1,
                reserved: ROOT + 1,
            }),
            counters: Counters::default(),
            counters_stored: AtomicBool::new(false),
            budget: Budget::new(options.dirty_bytes),
            stager: Arc::default(),
            scrubber: Arc::default(),
            reclaimed: Reclaimed::default(),
            io: Io::default(),
            max_extent: AtomicU64::new(u64::from(options.extent)),
            packed_at: AtomicU64::new(0),
            relatime: AtomicBool::new(options.relatime),
            changed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            closing: Mutex::new(()),
            threads: Mutex::new(Vec::new()),
            started: Instant::now(),
            store,
            codecs,
            options,
        });
        volume.load()?;
        volume.load_scrub()?;
        if !volume.options.read_only {
            volume.recover()?;
            volume.start_threads()?;
            volume.resume_scrub()?;
        }
        Ok(volume)
    }

    fn load(&self) -> Result<()> {
        match self.meta(keys::META_FORMAT)? {
            None => return self.format(),
            Some(found) => keys::check_format(found)?,
        }
        let next = self.meta(keys::META_NEXT_INO)?.unwrap_or(ROOT + 1);
        *self.namespace.lock() = Namespace {
            next_ino: next,
            reserved: next,
        };
        let longest = self.meta(keys::META_MAX_EXTENT)?.unwrap_or(0);
        if longest > crate::codec::MAX_RAW_LEN as u64 {
            return Err(keys::damaged("volume", "impossible extent length"));
        }
        if longest < self.window() && !self.options.read_only {
            let mut change = Change::new(self);
            change.put(keys::META_MAX_EXTENT.to_vec(), varint(self.window()));
            change.commit()?;
        }
        self.max_extent.store(longest.max(self.window()), Relaxed);
        match self.store.get(keys::META_COUNTERS)? {
            Some(value) => {
                self.counters.add(Totals::decode(&value)?);
                self.counters_stored.store(true, Relaxed);
            }
            None => {
                info!("counting what the volume holds");
                self.counters.add(self.count_everything()?);
            }
        }
        Ok(())
    }

    /// Makes an empty file system.
    fn format(&self) -> Result<()> {
        if self.options.read_only {
            return Err(keys::damaged("volume", "the store is empty"));
        }
        let caller = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: 0,
        };
        let root = Attr::new(FileKind::Directory, 0o755, caller.uid, caller.gid, ROOT);
        let mut change = Change::new(self);
        change.put(keys::META_FORMAT.to_vec(), varint(keys::FORMAT));
        change.put(keys::META_MAX_EXTENT.to_vec(), varint(self.window()));
        change.put_inode(ROOT, &root, 0);
        change.count_inode(&root, 1);
        change.commit()?;
        self.sync_log()
    }

    fn meta(&self, key: &[u8]) -> Result<Option<u64>> {
        match self.store.get(key)? {
            Some(value) => Ok(Some(keys::Fields::new("volume", &value).varint()?)),
            None => Ok(None),
        }
    }

    fn start_threads(self: &Arc<Self>) -> Result<()> {
        for number in 0..STAGING_THREADS {
            let take = |stager: &Stager| stager.next();
            self.spawn(format!("stage-{number}"), take, |volume, next| {
                volume.stage_turn(next)
            })?;
        }
        let mut last = Instant::now();
        self.spawn("sync".into(), Stager::pause, move |volume, ()| {
            volume.sync_turn(&mut last)
        })?;
        let host: Weak<Volume> = Arc::downgrade(self);
        self.settler.start(host).map_err(thread_failed)
    }

    /// A thread that takes turns until the volume stops or nobody holds it: it waits for work without
    /// holding the volume, and holds it while it works.
    fn spawn<W>(
        self: &Arc<Self>,
        name: String,
        wait: impl Fn(&Stager) -> W + Send + 'static,
        mut turn: impl FnMut(&Volume, W) + Send + 'static,
    ) -> Result<()> {
        let (weak, stager) = (Arc::downgrade(self), self.stager.clone());
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                while !stager.is_stopping() {
                    let work = wait(&stager);
                    match weak.upgrade() {
                        Some(volume) => turn(&volume, work),
                        None => return,
                    }
                }
            })
            .map_err(thread_failed)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// True once the volume is being shut down.
    pub fn is_stopping(&self) -> bool {
        self.stager.is_stopping()
    }

    fn store(&self) -> Result<&Store> {
        match self.closed.load(Relaxed) {
            true => Err(VolumeError::Closed),
            false => Ok(&self.store),
        }
    }

    fn writable(&self) -> Result<()> {
        match self.options.read_only {
            true => Err(VolumeError::ReadOnly),
            false => Ok(()),
        }
    }

    fn names(&self) -> Result<MutexGuard<'_, Namespace>> {
        self.writable()?;
        Ok(self.namespace.lock())
    }

    fn inode(&self, ino: u64) -> Result<Arc<Inode>> {
        self.table.get_or_load(ino, || self.load_attr(ino))
    }

    fn window(&self) -> u64 {
        u64::from(self.options.extent)
    }

    fn max_extent(&self) -> u64 {
        self.max_extent.load(Relaxed)
    }

    fn mark_changed(&self) {
        self.changed.store(true, Relaxed);
    }

    /// Changes how the volume works from now on.
    pub fn tune(&self, tuning: &Tuning) {
        self.cache.set_limit(tuning.cache_bytes);
        self.budget.set_limit(tuning.dirty_bytes);
        *self.policy.lock() = tuning.policy;
        self.settler.tune(tuning.group, tuning.settle_after);
        self.relatime.store(tuning.relatime, Relaxed);
    }

    /// Bytes that were written and are not in the log yet.
    pub fn dirty_bytes(&self) -> u64 {
        self.budget.used()
    }

    /// How the volume worked when it was opened.
    pub fn options(&self) -> &VolumeOptions {
        &self.options
    }

    /// Stages everything, stops all threads and closes the store. Does not wait for settling. Safe to
    /// call more than once; the first failure is returned, but the store is closed in any case.
    pub fn shutdown(&self) -> Result<()> {
        // The session and whoever ends the daemon may both come here: the second waits for the first.
        let _closing = self.closing.lock();
        if self.closed.load(Relaxed) {
            return Ok(());
        }
        if self.gate.end() {
            info!("thawed, because the file system is unmounted");
        }
        self.stop_threads();
        let mut result = Ok(());
        if !self.options.read_only {
            // Whatever is written from now on is refused, so nothing that was acknowledged is left behind.
            let _pass = self.gate.shut(OPERATIONS_END);
            self.forget_everything();
            result = self.stage_everything();
            self.store_accesses();
            if let Err(error) = &result {
                error!("data that could not be staged is lost: {error}");
            }
            self.keep_scrub();
            result = result.and(self.store_counters());
        }
        self.cache.stop();
        self.closed.store(true, Relaxed);
        result.and(self.store.close().map_err(VolumeError::from))
    }

    /// Writes a checkpoint of the store, which otherwise happens now and then. For tests.
    #[doc(hidden)]
    pub fn checkpoint(&self) -> Result<()> {
        let _pass = self.gate.enter()?;
        Ok(self.store()?.checkpoint()?)
    }

    /// Stops without staging or closing anything, as a crash would. For tests and failed mounts.
    #[doc(hidden)]
    pub fn abandon(&self) {
        self.gate.end();
        self.stop_threads();
        self.cache.stop();
        self.closed.store(true, Relaxed);
    }

    fn stop_threads(&self) {
        self.stager.stop();
        self.settler.stop();
        self.scrubber.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                error!("a thread of the volume panicked");
            }
        }
    }

    /// Records the totals and the next inode number, so that the next mount need not scan.
    fn store_counters(&self) -> Result<()> {
        if self.counters_stored.load(Relaxed) {
            return Ok(());
        }
        let mut change = Change::new(self);
        change.put(keys::META_COUNTERS.to_vec(), self.counters.get().encode());
        change.put(
            keys::META_NEXT_INO.to_vec(),
            varint(self.namespace.lock().next_ino),
        );
        change.commit()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.gate.end();
        self.stager.stop();
        self.settler.stop();
        self.scrubber.close();
        self.cache.stop();
    }
}

fn thread_failed(error: std::io::Error) -> VolumeError {
    VolumeError::Store {
        errno: libc::EAGAIN,
        message: format!("starting a thread: {error}"),
    }
}

fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    keys::put_varint(&mut out, value);
    out
}
