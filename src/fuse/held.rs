//! Requests that a frozen volume holds up.
//!
//! They must not hold up the threads that take requests from the kernel, or nobody could read any more.
//! So they wait in a queue, and threads of their own carry them out when the volume is thawed. The queue has
//! no limit of its own: a program waits with one request, and the kernel has no more than
//! [`super::ops::MAX_BACKGROUND`] under way for nobody in particular.

use crate::volume::Volume;
use log::{error, warn};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Threads that wait with one request each.
const THREADS: usize = 8;

type Work = Box<dyn FnOnce(&Volume) + Send>;

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    threads: usize,
}

/// See the module.
pub struct HeldRequests {
    volume: Arc<Volume>,
    queue: Mutex<Queue>,
}

impl HeldRequests {
    pub fn new(volume: Arc<Volume>) -> Arc<HeldRequests> {
        Arc::new(HeldRequests {
            volume,
            queue: Mutex::default(),
        })
    }

    /// Carries out a change now, or as soon as the volume is thawed.
    pub fn change(self: &Arc<Self>, work: impl FnOnce(&Volume) + Send + 'static) {
        match self.volume.try_change() {
            Some(_pass) => work(&self.volume),
            None => self.later(Box::new(work)),
        }
    }

    /// Stages or syncs now, or as soon as the volume is frozen, or is not going to be.
    pub fn stage(self: &Arc<Self>, work: impl FnOnce(&Volume) + Send + 'static) {
        match self.volume.try_stage() {
            Some(_pass) => work(&self.volume),
            None => self.later(Box::new(work)),
        }
    }

    /// Carries out what waits by itself for the end of a freeze, or for its beginning.
    pub fn later(self: &Arc<Self>, work: Work) {
        let mut queue = self.queue.lock();
        queue.work.push_back(work);
        if queue.threads >= THREADS {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let held = self.clone();
        let started = std::thread::Builder::new()
            .name("held".into())
            .spawn(move || held.run());
        let Err(error) = started else {
            return;
        };
        warn!("no thread for requests that wait for the thaw: {error}");
        let mut queue = self.queue.lock();
        if queue.threads > 1 {
            // The others find it.
            queue.threads -= 1;
            return;
        }
        drop(queue);
        self.run();
    }

    /// Carries out what waits, until nothing does. The operations themselves wait for the thaw.
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            let Some(work) = queue.work.pop_front() else {
                queue.threads -= 1;
                return;
            };
            drop(queue);
            // The one who asked gets EIO, from the reply that is dropped; the others must not wait for ever.
            if catch_unwind(AssertUnwindSafe(|| work(&self.volume))).is_err() {
                error!("a request that waited for the thaw panicked");
            }
        }
    }
}
