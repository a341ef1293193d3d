//! Freezing: for a while nothing changes the store, so that its directory can be copied.
//!
//! Whatever changes the volume holds a [`Pass`] of the [`Gate`] from before its first lock to after its
//! last. Freezing lets nobody in any more, waits until all are out, stages and syncs everything, and
//! writes a checkpoint. Those who come then wait before the gate, where they hold no lock, so that
//! reading goes on. There are two kinds of passes, because writers may wait for staging: no new operation
//! is let in first, and staging only when no operation is left.
//!
//! A thread that has a pass gets any further one at once, so operations may be made of others.

use super::{Result, Volume, VolumeError};
use log::{info, warn};
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    #[default]
    Open,
    /// Waiting for operations under way. Staging goes on, because they may wait for it.
    Draining,
    /// Waiting for staging under way, and for the sync of everything.
    Closing,
    Frozen,
    /// The volume is being shut down: nobody waits here any more.
    Ended,
    /// The same, and only staging is let in.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Operation,
    Staging,
    /// A thread that has a pass already, or freezes.
    Inner,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    operations: usize,
    staging: usize,
    /// Counts freezes, so that who ends one does not end the next.
    number: u64,
    /// Begin and latest end of the freeze.
    frozen: Option<(Instant, Instant)>,
    /// Inodes that lost their last user meanwhile.
    unused: Vec<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

thread_local! {
    /// Passes of this thread.
    static PASSES: Cell<usize> = const { Cell::new(0) };
}

/// The right to change the volume; freezing waits for its end. Belongs to the thread that got it.
#[derive(Debug)]
pub struct Pass<'g> {
    gate: &'g Gate,
    kind: Kind,
    not_send: PhantomData<*const ()>,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        PASSES.set(PASSES.get() - 1);
        let mut state = self.gate.state.lock();
        match self.kind {
            Kind::Operation => state.operations -= 1,
            Kind::Staging => state.staging -= 1,
            Kind::Inner => return,
        }
        if matches!(
            state.phase,
            Phase::Draining | Phase::Closing | Phase::Closed
        ) {
            self.gate.changed.notify_all();
        }
    }
}

impl Gate {
    fn pass(&self, kind: Kind) -> Pass<'_> {
        PASSES.set(PASSES.get() + 1);
        Pass {
            gate: self,
            kind,
            not_send: PhantomData,
        }
    }

    /// Lets an operation in; waits while the volume is frozen. Fails once it is shut down.
    pub fn enter(&self) -> Result<Pass<'_>> {
        if PASSES.get() > 0 {
            return Ok(self.pass(Kind::Inner));
        }
        let mut state = self.state.lock();
        loop {
            match state.phase {
                Phase::Open | Phase::Ended => break,
                Phase::Closed => return Err(VolumeError::Closed),
                _ => self.changed.wait(&mut state),
            }
        }
        state.operations += 1;
        Ok(self.pass(Kind::Operation))
    }

    /// As [`Gate::enter`], but gives up instead of waiting or failing.
    pub fn try_enter(&self) -> Option<Pass<'_>> {
        if PASSES.get() > 0 {
            return Some(self.pass(Kind::Inner));
        }
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Open | Phase::Ended) {
            return None;
        }
        state.operations += 1;
        Some(self.pass(Kind::Operation))
    }

    /// Lets staging and syncing in. `None` while the volume is frozen: nothing is left to do then.
    pub fn enter_staging(&self) -> Option<Pass<'_>> {
        loop {
            if let Some(entered) = self.try_enter_staging() {
                return entered;
            }
            let mut state = self.state.lock();
            while state.phase == Phase::Closing {
                self.changed.wait(&mut state);
            }
        }
    }

    /// As [`Gate::enter_staging`], but the outer `None` where that would wait.
    fn try_enter_staging(&self) -> Option<Option<Pass<'_>>> {
        if PASSES.get() > 0 {
            return Some(Some(self.pass(Kind::Inner)));
        }
        let mut state = self.state.lock();
        match state.phase {
            Phase::Closing => None,
            Phase::Frozen => Some(None),
            _ => {
                state.staging += 1;
                Some(Some(self.pass(Kind::Staging)))
            }
        }
    }

    /// Whether no pass could be had and this thread has none: whoever changes the store now is wrong.
    pub fn is_shut(&self) -> bool {
        PASSES.get() == 0 && self.state.lock().phase == Phase::Frozen
    }

    /// Nobody waits any more. True if the volume was frozen.
    pub fn end(&self) -> bool {
        let mut state = self.state.lock();
        let frozen = state.frozen.take().is_some();
        if state.phase != Phase::Closed {
            state.phase = Phase::Ended;
        }
        self.changed.notify_all();
        frozen
    }

    /// After [`Gate::end`]: lets no operation in any more, and waits for those under way, up to a limit.
    /// The pass is for what remains to be done.
    pub fn shut(&self, limit: Duration) -> Pass<'_> {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        while state.operations > 0 && !self.changed.wait_until(&mut state, until).timed_out() {}
        if state.operations > 0 {
            warn!("{} operations do not end", state.operations);
        }
        self.pass(Kind::Inner)
    }

    /// For how long the volume has been frozen, and when that ends by itself.
    pub fn frozen(&self) -> Option<(Duration, Duration)> {
        let (since, until) = self.state.lock().frozen?;
        let now = Instant::now();
        Some((now - since, until.saturating_duration_since(now)))
    }

    /// Notes an inode to be removed at the thaw, or at the next mount if the volume is shut down. False if
    /// it can be removed now.
    pub fn remove_later(&self, ino: u64) -> bool {
        let mut state = self.state.lock();
        let later = !matches!(state.phase, Phase::Open | Phase::Ended);
        if later {
            state.unused.push(ino);
        }
        later
    }

    /// Keeps everybody out, and waits until nobody is in.
    fn close(&self, until: Instant) -> Result<Closing<'_>> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open => state.phase = Phase::Draining,
            Phase::Ended | Phase::Closed => return Err(VolumeError::Closed),
            _ => return Err(VolumeError::Frozen),
        }
        let mut late = false;
        while state.operations > 0 && state.phase == Phase::Draining && !late {
            late = self.changed.wait_until(&mut state, until).timed_out();
        }
        if state.phase == Phase::Draining && state.operations == 0 {
            state.phase = Phase::Closing;
            late = false;
        }
        while state.staging > 0 && state.phase == Phase::Closing && !late {
            late = self.changed.wait_until(&mut state, until).timed_out();
        }
        match state.phase {
            Phase::Ended | Phase::Closed => Err(VolumeError::Closed),
            Phase::Closing if state.staging == 0 => Ok(Closing {
                _pass: self.pass(Kind::Inner),
                gate: self,
            }),
            _ => {
                state.phase = Phase::Open;
                self.changed.notify_all();
                Err(VolumeError::NotDrained)
            }
        }
    }

    /// Opens the gate, if it is this freeze that closed it, or any. Returns the inodes to remove.
    fn open(&self, number: Option<u64>) -> Result<Vec<u64>> {
        let mut state = self.state.lock();
        if state.phase != Phase::Frozen || number.is_some_and(|number| number != state.number) {
            return Err(VolumeError::NotFrozen);
        }
        state.phase = Phase::Open;
        state.frozen = None;
        self.changed.notify_all();
        Ok(std::mem::take(&mut state.unused))
    }

    /// The inodes to remove after a freeze that has failed.
    fn take_unused(&self) -> Vec<u64> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open => std::mem::take(&mut state.unused),
            _ => Vec::new(),
        }
    }

    /// Waits for the end of a freeze, but at most until its time is over. True if it is not the end.
    fn outlasts(&self, number: u64, until: Instant) -> bool {
        let mut state = self.state.lock();
        let lasts = |state: &State| state.phase == Phase::Frozen && state.number == number;
        while lasts(&state) && Instant::now() < until {
            self.changed.wait_until(&mut state, until);
        }
        lasts(&state)
    }
}

/// Nobody is inside, and who has this makes everything durable. Dropped without success, be it by a panic,
/// it opens the gate.
struct Closing<'g> {
    /// For what remains to be done.
    _pass: Pass<'g>,
    gate: &'g Gate,
}

impl Closing<'_> {
    /// Frozen from now on. Returns the number of the freeze.
    fn freeze(self, until: Instant) -> Result<u64> {
        let mut state = self.gate.state.lock();
        if state.phase != Phase::Closing {
            return Err(VolumeError::Closed);
        }
        state.phase = Phase::Frozen;
        state.number += 1;
        state.frozen = Some((Instant::now(), until));
        self.gate.changed.notify_all();
        Ok(state.number)
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        if state.phase == Phase::Closing {
            state.phase = Phase::Open;
            self.gate.changed.notify_all();
        }
    }
}

impl Volume {
    /// A pass for an operation on this volume, unless it is frozen. Whoever has it may call any operation
    /// without being held up.
    pub fn try_change(&self) -> Option<Pass<'_>> {
        self.gate.try_enter()
    }

    /// A pass for staging and syncing, or none in one where the volume is frozen, so that nothing is left to
    /// do. `None` while it is about to be.
    pub fn try_stage(&self) -> Option<Option<Pass<'_>>> {
        self.gate.try_enter_staging()
    }

    /// Waits for operations under way, makes everything durable, and holds up all changes until
    /// [`Volume::thaw`], or until `timeout` is over. Reading goes on. Returns the number of the freeze.
    pub fn freeze(self: &Arc<Self>, timeout: Duration) -> Result<u64> {
        let frozen = self.close_gate(timeout);
        if frozen.is_err() {
            self.reap_all(self.gate.take_unused());
        }
        let (number, until) = frozen?;
        let (gate, volume) = (self.gate.clone(), Arc::downgrade(self));
        let watch = move || {
            if gate.outlasts(number, until)
                && let Some(volume) = volume.upgrade()
                && volume.thaw(Some(number)).is_ok()
            {
                let seconds = timeout.as_secs_f64();
                warn!("nobody has thawed the file system in {seconds} s: it thaws by itself");
            }
        };
        let watched = std::thread::Builder::new().name("thaw".into()).spawn(watch);
        if let Err(error) = watched {
            // Without a watch a forgotten freeze would be for ever.
            self.thaw(Some(number))?;
            return Err(super::thread_failed(error));
        }
        info!("frozen: nothing changes the store until it is thawed");
        Ok(number)
    }

    /// The number of the freeze, and when it ends by itself.
    fn close_gate(&self, timeout: Duration) -> Result<(u64, Instant)> {
        let closing = self.gate.close(Instant::now() + timeout)?;
        if !self.options.read_only {
            self.make_durable()?;
        }
        let until = Instant::now() + timeout;
        Ok((closing.freeze(until)?, until))
    }

    fn make_durable(&self) -> Result<()> {
        self.stage_everything()?;
        self.store_accesses();
        self.keep_scrub();
        let store = self.store()?;
        store.sync()?;
        store.sync_blocks()?;
        // It only saves time when the copy is opened.
        match store.try_checkpoint().map_err(VolumeError::from) {
            Ok(true) => {}
            Ok(false) => info!("frozen without a checkpoint: the store is being sent"),
            Err(VolumeError::NoSpace) => warn!("frozen without a checkpoint: the disk is full"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ends a freeze: the one of this number, or whichever there is.
    pub fn thaw(&self, number: Option<u64>) -> Result<()> {
        let unused = self.gate.open(number)?;
        info!("thawed");
        self.reap_all(unused);
        self.keep_scrub();
        Ok(())
    }

    fn reap_all(&self, unused: Vec<u64>) {
        for ino in unused {
            if let Ok(inode) = self.inode(ino) {
                self.reap_if_unused(&inode);
            }
        }
    }

    /// For how long the volume has been frozen, and after what time that ends by itself.
    pub fn frozen(&self) -> Option<(Duration, Duration)> {
        self.gate.frozen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_has_a_pass_gets_another_while_the_gate_closes() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let outer = gate.enter().unwrap();
            let freezing = scope.spawn(|| {
                let closing = gate.close(Instant::now() + LONG).unwrap();
                closing.freeze(Instant::now() + LONG).unwrap()
            });
            while gate.state.lock().phase != Phase::Draining {
                std::thread::yield_now();
            }
            drop(gate.enter().unwrap());
            drop(gate.enter_staging().unwrap());
            // Another thread may stage, which this one might wait for, but not begin anything.
            let stages = scope.spawn(|| gate.enter_staging().is_some());
            assert!(stages.join().unwrap());
            let begins = scope.spawn(|| gate.try_enter().is_some());
            assert!(!begins.join().unwrap());
            drop(outer);
            let number = freezing.join().unwrap();
            assert!(gate.enter_staging().is_none());
            assert!(gate.open(Some(number + 1)).is_err());
            gate.open(Some(number)).unwrap();
            assert!(gate.try_enter().is_some());
        });
    }

    #[test]
    fn staging_is_held_up_only_until_the_freeze_has_begun_or_failed() {
        let gate = Gate::default();
        let until = Instant::now() + LONG;
        std::thread::scope(|scope| {
            let would_wait = || {
                let tried = scope.spawn(|| gate.try_enter_staging().is_none());
                tried.join().unwrap()
            };
            let closing = gate.close(until).unwrap();
            assert!(would_wait());
            let staging = scope.spawn(|| gate.enter_staging().is_some());
            drop(closing);
            assert!(staging.join().unwrap(), "it did not freeze");
            assert!(!would_wait());
            let closing = gate.close(until).unwrap();
            assert!(would_wait());
            closing.freeze(until).unwrap();
            assert!(!would_wait());
        });
    }

    #[test]
    fn a_panic_while_everything_is_made_durable_leaves_the_gate_open() {
        let gate = Gate::default();
        let work = || {
            let _closing = gate.close(Instant::now() + LONG).unwrap();
            panic!("in the middle of it");
        };
        let attempt: std::thread::Result<()> = catch_unwind(AssertUnwindSafe(work));
        assert!(attempt.is_err());
        assert_eq!(gate.state.lock().phase, Phase::Open);
        assert_eq!(PASSES.get(), 0);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn who_is_inside_is_waited_for_when_the_gate_is_shut_and_nobody_comes_in_any_more() {
        let gate = Gate::default();
        let (inside, shut) = (Mutex::new(false), Mutex::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _pass = gate.enter().unwrap();
                *inside.lock() = true;
                while gate.state.lock().phase != Phase::Closed {
                    std::thread::yield_now();
                }
                assert!(!*shut.lock());
            });
            while !*inside.lock() {
                std::thread::yield_now();
            }
            gate.end();
            let late = scope.spawn(|| gate.enter().is_ok());
            assert!(late.join().unwrap(), "ended, but not shut");
            let pass = gate.shut(LONG);
            *shut.lock() = true;
            assert!(gate.enter().is_ok(), "what remains to be done");
            let late = || gate.enter().is_err() && gate.try_enter().is_none();
            assert!(scope.spawn(late).join().unwrap());
            assert!(gate.remove_later(7));
            drop(pass);
            gate.end();
            assert!(gate.enter().is_err(), "it stays shut");
        });
    }

    #[test]
    fn a_gate_that_nobody_leaves_opens_again() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let _inside = gate.enter();
            let closing = scope.spawn(|| gate.close(Instant::now()).map(drop));
            assert!(closing.join().unwrap().is_err());
            let enters = scope.spawn(|| gate.try_enter().is_some());
            assert!(enters.join().unwrap());
        });
    }
}
