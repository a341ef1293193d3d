//! One turn of settling: gather, plan, encode, swap.

use super::plan::{Class, Job, plan};
use super::{Again, Candidate, Cost, Host, Run, Settler, Wanted, Window};
use crate::codec::{ANCHOR_BYTES, AnchorSource, EncodeOptions, Encoded, Policy, Verify};
use crate::store::BlockId;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Priority of the threads that settle.
const NICE: i32 = 10;
/// Windows that one batch takes.
const BATCH: usize = 1024;
/// Blocks that are made durable together.
const SWAP_BATCH: usize = 32;
/// A shorter block is no anchor for its class.
const MIN_ANCHOR_BYTES: usize = 4 << 10;
/// How often an idle settler looks for work.
const TICK: Duration = Duration::from_secs(1);
/// How often space is reclaimed and sparse blocks are looked for, unless settling is forced.
const HOUSEKEEPING: Duration = Duration::from_secs(300);
/// Rounds of reclaiming at the end of forced settling.
pub(super) const RECLAIM_ROUNDS: usize = 16;
/// With `verify=sample`, so many blocks of a mount are verified before sampling begins.
const VERIFIED_FIRST: u64 = 16;
/// A block that is coded again waits for readers to have been gone for so long, though not for ever.
const READERS_GONE: Duration = Duration::from_millis(20);
const LONGEST_YIELD: Duration = Duration::from_millis(200);

/// Anchors that are at hand.
pub struct Anchors {
    sources: LruCache<BlockId, Arc<AnchorSource>>,
    classes: LruCache<Class, BlockId>,
}

impl Default for Anchors {
    fn default() -> Self {
        const SOURCES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
        const CLASSES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
        Anchors {
            sources: LruCache::new(SOURCES),
            classes: LruCache::new(CLASSES),
        }
    }
}

/// An encoded block that is appended but not shown yet.
struct Done {
    block: BlockId,
    job: Job,
    /// Bytes of the payload, and what held the data before, if that was asked for.
    stored: u64,
    before: u64,
}

/// Why some windows are gone over.
#[derive(Clone, Copy)]
pub(super) enum Reason<'a> {
    Staged,
    Sparse(&'a HashSet<BlockId>),
    Again(&'a Again),
}

impl<'a> Reason<'a> {
    fn wanted(self) -> Wanted<'a> {
        match self {
            Reason::Staged => Wanted::Staged,
            Reason::Sparse(blocks) => Wanted::Blocks(blocks),
            Reason::Again(_) => Wanted::All,
        }
    }

    fn again(self) -> Option<&'a Again> {
        match self {
            Reason::Again(again) => Some(again),
            _ => None,
        }
    }
}

impl Settler {
    /// Body of the settling thread.
    pub(super) fn run<H: Host>(&self, host: &Weak<H>) {
        lower_priority(NICE);
        let mut housekeeping = Instant::now();
        while !self.is_stopping() {
            let Some(host) = host.upgrade() else {
                return;
            };
            let forced = self.is_forced();
            let mut worked = self.pass(&*host, Reason::Staged, None);
            worked |= self.again_turn(&*host);
            if forced || housekeeping.elapsed() >= HOUSEKEEPING {
                housekeeping = Instant::now();
                self.housekeeping(&*host, forced);
            } else if host.is_short_of_space() {
                self.reclaim(&*host, 1);
            }
            drop(host);
            if forced {
                self.forced_passes.fetch_add(1, SeqCst);
                self.wake_up();
            }
            if !worked && !self.is_stopping() && !self.is_forced() {
                let mut idle = self.idle.lock();
                self.wake.wait_for(&mut idle, TICK);
            }
        }
    }

    /// Goes once over everything pending, or over `windows`. Returns whether anything was settled.
    fn pass(&self, host: &dyn Host, reason: Reason<'_>, windows: Option<Vec<Window>>) -> bool {
        if let Some(windows) = windows {
            let mut worked = false;
            for batch in windows.chunks(BATCH) {
                worked |= !self.is_stopping() && self.settle_batch(host, batch, reason);
            }
            return worked;
        }
        let (mut after, mut worked) = (None, false);
        while !self.is_stopping() && self.may_work(host) {
            let page = match host.pending(after, BATCH) {
                Ok(page) => page,
                Err(error) => {
                    self.failed("looking for staged data", &error);
                    break;
                }
            };
            after = page.last().copied();
            let forced = self.is_forced();
            let quiet: Vec<Window> = {
                let recent = self.recent.lock();
                page.iter()
                    .copied()
                    .filter(|w| forced || recent.is_quiet(*w))
                    .collect()
            };
            if !quiet.is_empty() {
                worked |= self.settle_batch(host, &quiet, reason);
            }
            if page.len() < BATCH {
                break;
            }
        }
        worked
    }

    fn housekeeping(&self, host: &dyn Host, forced: bool) {
        match host.sparse() {
            Ok((blocks, windows)) if !windows.is_empty() => {
                self.pass(host, Reason::Sparse(&blocks), Some(windows));
            }
            Ok(_) => {}
            Err(error) => self.failed("looking for sparse blocks", &error),
        }
        self.reclaim(host, if forced { RECLAIM_ROUNDS } else { 1 });
    }

    /// Frees space of dead blocks, until nothing more comes of it.
    pub(super) fn reclaim(&self, host: &dyn Host, rounds: usize) {
        for _ in 0..rounds {
            match host.reclaim() {
                Ok(0) => break,
                Ok(_) if self.is_stopping() => break,
                Ok(_) => {}
                Err(error) => {
                    self.failed("reclaiming space", &error);
                    break;
                }
            }
        }
    }

    /// Whether settling needs to wait for nobody.
    fn may_work(&self, host: &dyn Host) -> bool {
        let idle = self.options.idle;
        idle.is_zero() || self.is_forced() || host.idle_for() >= idle || host.is_nearly_full()
    }

    /// Returns whether anything was settled.
    pub(super) fn settle_batch(
        &self,
        host: &dyn Host,
        windows: &[Window],
        reason: Reason<'_>,
    ) -> bool {
        let candidates = match host.candidates(windows, reason.wanted()) {
            Ok(candidates) => candidates,
            Err(error) => {
                self.failed("looking up extents", &error);
                note_failure(reason, "looking up extents", &error);
                return false;
            }
        };
        if candidates.is_empty() {
            return false;
        }
        if !self.make_room(host) {
            note_failure(reason, "looking for space", "the disk is full");
            return false;
        }
        let begun = Instant::now();
        let before = self.settled_bytes.load(SeqCst);
        self.working.store(true, SeqCst);
        self.encode_all(host, candidates, reason);
        self.working.store(false, SeqCst);
        self.note_busy(begun);
        self.settled_bytes.load(SeqCst) > before
    }

    /// Frees space if there is none to settle in. Returns whether there is some.
    pub(super) fn make_room(&self, host: &dyn Host) -> bool {
        for _ in 0..RECLAIM_ROUNDS {
            match host.has_room() {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    self.failed("looking for space", &error);
                    return false;
                }
            }
            match host.reclaim() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    self.failed("reclaiming space", &error);
                    return false;
                }
            }
        }
        self.failed("looking for space", "the disk is full");
        false
    }

    fn encode_all(&self, host: &dyn Host, candidates: Vec<Candidate>, reason: Reason<'_>) {
        let plan = plan(candidates, self.options.window as usize);
        for jobs in [plan.first, plan.second] {
            let next = AtomicUsize::new(0);
            let done = Mutex::new(Vec::new());
            let threads = self.options.threads.min(jobs.len());
            loop {
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| self.work(host, &jobs, &next, &done, reason));
                    }
                });
                self.swap_all(host, std::mem::take(&mut *done.lock()), reason);
                let left = next.load(SeqCst) < jobs.len() && !self.is_stopping();
                if !left || reason.again().is_none() {
                    break;
                }
                // The disk is full, and no next pass comes: what was coded so far may have left some space.
                if !self.make_room(host) {
                    note_failure(reason, "looking for space", "the disk is full");
                    return;
                }
            }
        }
    }

    /// Body of an encoding thread: takes jobs until there are none.
    fn work(
        &self,
        host: &dyn Host,
        jobs: &[Job],
        next: &AtomicUsize,
        done: &Mutex<Vec<Done>>,
        reason: Reason<'_>,
    ) {
        lower_priority(NICE);
        while !self.is_stopping() {
            match reason.again() {
                Some(_) => self.yield_to_readers(host),
                None if !self.may_work(host) => return,
                None => {}
            }
            // Before a job is taken, so that none is forgotten.
            if !matches!(host.has_room(), Ok(true)) {
                return;
            }
            let Some(job) = jobs.get(next.fetch_add(1, SeqCst)) else {
                return;
            };
            let encoded = match (self.encode(host, job, reason), reason) {
                // Perhaps its anchor died meanwhile, and no next pass comes.
                (Err(_), Reason::Again(_)) => self.encode(host, job, reason),
                (encoded, _) => encoded,
            };
            match encoded {
                Ok(Some(finished)) => {
                    let full = {
                        let mut done = done.lock();
                        done.push(finished);
                        (done.len() >= SWAP_BATCH).then(|| std::mem::take(&mut *done))
                    };
                    self.swap_all(host, full.unwrap_or_default(), reason);
                }
                Ok(None) => {}
                Err(error) => self.job_failed(job, &error, reason),
            }
        }
    }

    /// Lets readers go first, but not for ever.
    fn yield_to_readers(&self, host: &dyn Host) {
        let begun = Instant::now();
        while host.unread_for() < READERS_GONE
            && begun.elapsed() < LONGEST_YIELD
            && !self.is_stopping()
        {
            std::thread::sleep(READERS_GONE / 5);
        }
    }

    fn job_failed(&self, job: &Job, error: &str, reason: Reason<'_>) {
        let Some(run) = job.runs.first() else {
            return;
        };
        let what = format!("inode {}, offset {}", run.ino, run.offset);
        self.failed(&what, error);
        note_failure(reason, &what, error);
        let mut recent = self.recent.lock();
        for run in &job.runs {
            recent.failed(self.window_of(run.ino, run.offset));
        }
    }

    fn window_of(&self, ino: u64, offset: u64) -> Window {
        Window {
            ino,
            offset: offset - offset % self.options.window,
        }
    }

    /// Encodes and appends one block. `None` if all of it has changed meanwhile, or stays as it is.
    fn encode(
        &self,
        host: &dyn Host,
        job: &Job,
        reason: Reason<'_>,
    ) -> Result<Option<Done>, String> {
        let again = reason.again();
        let mut raw = Vec::with_capacity(job.len);
        let mut runs = Vec::with_capacity(job.runs.len());
        let mut skipped = 0;
        for run in &job.runs {
            let bytes = match again {
                Some(_) => host.read_settled(run)?,
                None => host.read_run(run)?,
            };
            match bytes {
                Some(bytes) => {
                    raw.extend_from_slice(&bytes);
                    runs.push(run.clone());
                }
                None => skipped += u64::from(run.len),
            }
        }
        let job = Job {
            runs,
            ..job.clone()
        };
        let done = match raw.is_empty() {
            true => None,
            false => self.encode_raw(host, job, &raw, again)?,
        };
        // Only now: whoever fails is tried again.
        note_skipped(reason, skipped);
        Ok(done)
    }

    /// Encodes and appends the bytes of a job. `None` if its blocks stay as they are.
    fn encode_raw(
        &self,
        host: &dyn Host,
        job: Job,
        raw: &[u8],
        again: Option<&Again>,
    ) -> Result<Option<Done>, String> {
        let options = EncodeOptions {
            policy: job.class.policy,
            group: *self.group.lock(),
            verify: self.verify_next(),
        };
        let anchor = self.anchor_for(host, &job);
        let encoded = host
            .codecs()
            .encode(raw, &options, anchor.as_deref())
            .map_err(|e| e.to_string())?;
        let mut before = 0;
        if let Some(again) = again {
            let cost = host.cost(&job.runs)?;
            before = cost.stored;
            if stays_as_it_is(host, options.policy, &cost, &encoded)? {
                again.note_kept(raw.len() as u64, before);
                return Ok(None);
            }
        }
        let block = match host.append(&encoded, raw.len() as u32) {
            Ok(block) => block,
            Err(error) => {
                // Perhaps the anchor died meanwhile; the next pass does without.
                if let Some(anchor) = encoded.anchor {
                    self.forget_anchor(anchor);
                }
                return Err(error);
            }
        };
        if encoded.anchor.is_none() && job.continues.is_none() && raw.len() >= MIN_ANCHOR_BYTES {
            self.offer_to_class(&job.class, block, raw);
        }
        Ok(Some(Done {
            block,
            job,
            stored: encoded.payload.len() as u64,
            before,
        }))
    }

    /// How the next block is verified: the first ones of a mount are in any case, unless none shall be.
    fn verify_next(&self) -> Verify {
        let first = self.encoded.fetch_add(1, SeqCst) < VERIFIED_FIRST;
        match self.options.verify {
            Verify::Sample if first => Verify::Full,
            verify => verify,
        }
    }

    /// The history to offer to the encoder: the beginning of the file, or of the first block of the
    /// same class. Without one, encoding is only less good.
    fn anchor_for(&self, host: &dyn Host, job: &Job) -> Option<Arc<AnchorSource>> {
        let block = match job.continues {
            Some(ino) => host.anchor_of(ino).ok().flatten()?,
            None => *self.anchors.lock().classes.get(&job.class)?,
        };
        // Coded again from itself, a block would be tiny, and the old one would have to stay.
        if job.runs.iter().any(|run| shows(run, block)) {
            return None;
        }
        if let Some(source) = self.anchors.lock().sources.get(&block) {
            return Some(source.clone());
        }
        let bytes = host.block_head(block, ANCHOR_BYTES as u32).ok()?;
        if bytes.len() < MIN_ANCHOR_BYTES {
            return None;
        }
        Some(self.keep_source(block, &bytes))
    }

    fn keep_source(&self, block: BlockId, bytes: &[u8]) -> Arc<AnchorSource> {
        let source = Arc::new(AnchorSource {
            block,
            start: 0,
            bytes: Arc::from(bytes),
        });
        self.anchors.lock().sources.put(block, source.clone());
        source
    }

    /// The first block of a class becomes the anchor of the others, until it is dead.
    fn offer_to_class(&self, class: &Class, block: BlockId, raw: &[u8]) {
        if self.anchors.lock().classes.contains(class) {
            return;
        }
        self.keep_source(block, &raw[..raw.len().min(ANCHOR_BYTES)]);
        self.anchors.lock().classes.put(class.clone(), block);
    }

    fn swap_all(&self, host: &dyn Host, done: Vec<Done>, reason: Reason<'_>) {
        if done.is_empty() {
            return;
        }
        if let Err(error) = host.sync_blocks() {
            self.failed("syncing settled blocks", &error);
            note_failure(reason, "syncing settled blocks", &error);
            for Done { block, .. } in done {
                self.forget_anchor(block);
                host.discard(block);
            }
            return;
        }
        for Done {
            block,
            job,
            stored,
            before,
        } in done
        {
            if !self.policy_holds(host, &job) {
                // The next pass encodes it under the new one.
                self.forget_anchor(block);
                host.discard(block);
                note_skipped(reason, job.runs.iter().map(|run| u64::from(run.len)).sum());
                continue;
            }
            match host.swap(block, &job.runs) {
                Ok(swapped) => {
                    if let Some(again) = reason.again() {
                        again.note_swapped(swapped, stored, before);
                    }
                    self.settled_bytes.fetch_add(swapped.settled, SeqCst);
                    if swapped.settled == 0 {
                        self.forget_anchor(block);
                    }
                    let mut recent = self.recent.lock();
                    for run in &job.runs {
                        recent.settled(self.window_of(run.ino, run.offset));
                    }
                }
                Err(error) => {
                    // Perhaps its anchor died meanwhile; the next pass does without.
                    self.forget_anchor(block);
                    self.forget_class(&job.class);
                    self.job_failed(&job, &error, reason);
                }
            }
        }
    }

    /// Whether all files of a block still have the policy under which it was encoded.
    fn policy_holds(&self, host: &dyn Host, job: &Job) -> bool {
        let same = |run: &Run| match host.policy(run.ino) {
            Ok(Some(policy)) => policy == job.class.policy,
            // Gone, or found out by the swap.
            _ => true,
        };
        job.runs.iter().all(same)
    }

    pub(super) fn forget_all_anchors(&self) {
        *self.anchors.lock() = Anchors::default();
    }

    fn forget_anchor(&self, block: BlockId) {
        let mut anchors = self.anchors.lock();
        anchors.sources.pop(&block);
        let classes: Vec<Class> = anchors
            .classes
            .iter()
            .filter(|(_, anchor)| **anchor == block)
            .map(|(class, _)| class.clone())
            .collect();
        for class in classes {
            anchors.classes.pop(&class);
        }
    }

    fn forget_class(&self, class: &Class) {
        self.anchors.lock().classes.pop(class);
    }
}

/// Whether the blocks that hold some data, at this cost, are no worse than what it was encoded to.
fn stays_as_it_is(
    host: &dyn Host,
    policy: Policy,
    cost: &Cost,
    encoded: &Encoded,
) -> Result<bool, String> {
    let layout = host.codecs().open(&encoded.payload);
    let layout = layout.map_err(|e| e.to_string())?;
    let read = host.codecs().read_cost(&layout);
    let stored = encoded.payload.len() as u64;
    Ok(super::again::stays(policy, cost, stored, read))
}

fn shows(run: &Run, block: BlockId) -> bool {
    run.extents.iter().any(|extent| extent.block == block)
}

fn note_failure(reason: Reason<'_>, what: &str, why: &str) {
    if let Some(again) = reason.again() {
        again.note_failure(format!("{what}: {why}"));
    }
}

fn note_skipped(reason: Reason<'_>, bytes: u64) {
    if let Some(again) = reason.again() {
        again.note_skipped(bytes);
    }
}

/// Lets the others on the machine go first. Failure only means less politeness.
pub(crate) fn lower_priority(nice: i32) {
    let thread = rustix::thread::gettid();
    let _ = rustix::process::setpriority_process(Some(thread), nice);
}
