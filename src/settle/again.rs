//! Coding again what is settled already: the same pipeline, over files that somebody names.
//!
//! Whoever asks puts an [`Again`] into the settler's queue. Between two passes over what is pending, the
//! settling thread takes one batch of windows from the first one. Nothing of it is recorded: a shutdown
//! or a crash leaves some blocks coded again and the others as they were.

use super::pipeline::{RECLAIM_ROUNDS, Reason};
use super::{Cost, Host, HostResult, Settler, Swapped, Window};
use crate::codec::{Policy, ReadCost};
use log::info;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

/// Windows that one batch takes: enough small files to fill blocks.
const BATCH: usize = 1024;

/// Windows to go over next.
#[derive(Debug, Default)]
pub struct Step {
    pub windows: Vec<Window>,
    /// Bytes of files that lie behind once these are done, holes included.
    pub passed: u64,
    /// There are no more windows.
    pub last: bool,
}

type Source = dyn FnMut(usize) -> HostResult<Step> + Send;

/// What coding again has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recoded {
    /// Bytes of files behind, of so many, holes included.
    pub passed: u64,
    pub total: u64,
    /// Decoded bytes that lie in new blocks, and those whose blocks could stay.
    pub coded: u64,
    pub kept: u64,
    /// Decoded bytes that were changed by others meanwhile.
    pub skipped: u64,
    /// Stored bytes of what was coded again or kept, before and after.
    pub before: u64,
    pub after: u64,
    pub failures: u64,
    pub first_failure: Option<String>,
}

struct State {
    recoded: Recoded,
    begun: bool,
    ended: bool,
}

/// One request to code again.
pub struct Again {
    source: Mutex<Box<Source>>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Again {
    /// Goes over the windows that `source` returns, of files of `total` bytes.
    pub fn new(total: u64, source: Box<Source>) -> Arc<Again> {
        let recoded = Recoded {
            total,
            ..Recoded::default()
        };
        Arc::new(Again {
            source: Mutex::new(source),
            state: Mutex::new(State {
                recoded,
                begun: false,
                ended: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// What has been done so far.
    pub fn recoded(&self) -> Recoded {
        self.state.lock().recoded.clone()
    }

    /// Waits for the end, or for so long. True at the end.
    pub fn wait(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.ended {
            self.changed.wait_for(&mut state, time);
        }
        state.ended
    }

    pub(super) fn note_kept(&self, bytes: u64, stored: u64) {
        let recoded = &mut self.state.lock().recoded;
        recoded.kept += bytes;
        recoded.before += stored;
        recoded.after += stored;
    }

    pub(super) fn note_skipped(&self, bytes: u64) {
        self.state.lock().recoded.skipped += bytes;
    }

    /// A block of `stored` bytes has taken the place of others that took `before`, as far as nobody
    /// changed them meanwhile.
    pub(super) fn note_swapped(&self, swapped: Swapped, stored: u64, before: u64) {
        let recoded = &mut self.state.lock().recoded;
        recoded.coded += swapped.settled;
        recoded.skipped += swapped.skipped;
        if swapped.settled > 0 {
            recoded.before += before;
            recoded.after += stored;
        }
    }

    pub(super) fn note_failure(&self, what: String) {
        let recoded = &mut self.state.lock().recoded;
        recoded.failures += 1;
        recoded.first_failure.get_or_insert(what);
    }

    fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}

/// Whether old blocks stay, because new ones would be no smaller. Where size is not all that matters,
/// blocks that read more slowly than the new ones go in any case, and what is staged always does.
pub(super) fn stays(policy: Policy, old: &Cost, stored: u64, new: ReadCost) -> bool {
    let slower = policy != Policy::Ratio && old.read.is_slower_than(&new);
    !old.staged && stored >= old.stored && !slower
}

impl Settler {
    /// Codes again in the background.
    pub fn code_again(&self, again: Arc<Again>) {
        self.again.lock().push_back(again);
        self.wake_up();
    }

    /// The request that is worked on, if there is one, and how many wait behind it.
    pub fn coding_again(&self) -> Option<(Recoded, usize)> {
        let queue = self.again.lock();
        let first = queue.front()?;
        Some((first.recoded(), queue.len() - 1))
    }

    /// One batch of the first request. False if there is none.
    pub(super) fn again_turn(&self, host: &dyn Host) -> bool {
        let Some(again) = self.again.lock().front().cloned() else {
            return false;
        };
        if !std::mem::replace(&mut again.state.lock().begun, true) {
            // Blocks of before must not become the history of new ones: they would have to stay.
            self.forget_all_anchors();
        }
        let step = (again.source.lock())(BATCH).unwrap_or_else(|error| {
            again.note_failure(format!("looking up files: {error}"));
            Step {
                last: true,
                ..Step::default()
            }
        });
        if !step.windows.is_empty() {
            self.settle_batch(host, &step.windows, Reason::Again(&again));
        }
        let full = !step.last && !self.make_room(host);
        if full {
            again.note_failure("the disk is full".into());
        }
        again.state.lock().recoded.passed = step.passed;
        if step.last || full {
            self.end_again(host, &again);
        } else if host.is_short_of_space() {
            self.reclaim(host, 1);
        }
        true
    }

    fn end_again(&self, host: &dyn Host, again: &Arc<Again>) {
        self.again.lock().retain(|other| !Arc::ptr_eq(other, again));
        host.no_more_settled();
        self.reclaim(host, RECLAIM_ROUNDS);
        let recoded = again.recoded();
        info!(
            "coded {} bytes again, {} stayed as they were: {} bytes stored before, {} now",
            recoded.coded, recoded.kept, recoded.before, recoded.after
        );
        again.end();
    }

    /// Ends all requests: the volume is being shut down.
    pub(super) fn abandon_again(&self) {
        for again in self.again.lock().drain(..) {
            again.note_failure("the volume is being shut down".into());
            again.end();
        }
    }
}
