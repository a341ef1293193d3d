//! Requests that a frozen volume holds up.
//!
//! They must not hold up the threads that take requests from the kernel, or nobody could read any more.
//! So they wait in a queue, and threads of their own carry them out when the volume is thawed.

use crate::volume::Volume;
use log::warn;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Threads that wait for the thaw with one request each.
const THREADS: usize = 8;
/// Bytes of writes that wait here. Past them the threads of the session wait, too.
const MAX_BYTES: usize = 64 << 20;

type Work = Box<dyn FnOnce(&Volume) + Send>;

#[derive(Default)]
struct Queue {
    work: VecDeque<(Work, usize)>,
    threads: usize,
    bytes: usize,
}

/// See the module.
pub struct Held {
    volume: Arc<Volume>,
    queue: Mutex<Queue>,
}

impl Held {
    pub fn new(volume: Arc<Volume>) -> Arc<Held> {
        Arc::new(Held {
            volume,
            queue: Mutex::default(),
        })
    }

    /// Carries out a change now, or as soon as the volume is thawed.
    pub fn change(self: &Arc<Self>, work: impl FnOnce(&Volume) + Send + 'static) {
        match self.volume.try_change() {
            Some(_pass) => work(&self.volume),
            None => self.later(0, Box::new(work)),
        }
    }

    /// Carries out a change with `bytes` of data when the volume is thawed.
    pub fn later(self: &Arc<Self>, bytes: usize, work: Work) {
        let mut queue = self.queue.lock();
        if queue.bytes + bytes > MAX_BYTES {
            drop(queue);
            return work(&self.volume);
        }
        queue.bytes += bytes;
        queue.work.push_back((work, bytes));
        if queue.threads >= THREADS {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let held = self.clone();
        let started = std::thread::Builder::new()
            .name("held".into())
            .spawn(move || held.run());
        if let Err(error) = started {
            warn!("no thread for requests that wait for the thaw: {error}");
            self.run();
        }
    }

    /// Carries out what waits, until nothing does. The operations themselves wait for the thaw.
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            let Some((work, bytes)) = queue.work.pop_front() else {
                queue.threads -= 1;
                return;
            };
            drop(queue);
            work(&self.volume);
            self.queue.lock().bytes -= bytes;
        }
    }
}
