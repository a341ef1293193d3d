//! Work that makes more work, for several threads.

use parking_lot::{Condvar, Mutex};

struct State<J> {
    jobs: Vec<J>,
    /// Jobs that somebody is at.
    active: usize,
    closed: bool,
}

/// Hands out the newest job first, so that a tree is walked depth first and few directories are open.
pub struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

impl<J> Queue<J> {
    pub fn new(first: J) -> Queue<J> {
        Queue {
            state: Mutex::new(State {
                jobs: vec![first],
                active: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Adds jobs; the first of them is handed out first.
    pub fn add(&self, jobs: impl DoubleEndedIterator<Item = J>) {
        self.state.lock().jobs.extend(jobs.rev());
        self.changed.notify_all();
    }

    /// Waits for a job. None: all is done, or nothing more is to be done.
    pub fn take(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop() {
                state.active += 1;
                return Some(job);
            }
            if state.active == 0 {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Says that a job that was taken is done, with all that it has added.
    pub fn done(&self) {
        let mut state = self.state.lock();
        state.active -= 1;
        if state.active == 0 {
            self.changed.notify_all();
        }
    }

    /// No job is handed out any more.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
