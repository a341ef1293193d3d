//! Settling that is held up in its midst.

use s2sfs::store::{SimOp, SimStorage};
use s2sfs::volume::Volume;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct State {
    waiting: usize,
    open: bool,
}

/// Holds up whoever writes a settled block, until it is dropped.
pub struct Gate {
    storage: SimStorage,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Gate {
    pub fn before_blocks(storage: &SimStorage) -> Gate {
        let gate = Gate {
            storage: storage.clone(),
            state: Arc::default(),
        };
        let shared = gate.state.clone();
        storage.set_hook(Some(Arc::new(move |op, path| {
            if op == SimOp::Write && path.ends_with(".b") {
                let (state, changed) = &*shared;
                let mut state = state.lock();
                state.waiting += 1;
                changed.notify_all();
                changed.wait_while(&mut state, |state| !state.open);
            }
        })));
        gate
    }

    /// Until somebody is held up.
    pub fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let (state, changed) = &*self.state;
        let mut state = state.lock();
        while state.waiting == 0 {
            let late = changed.wait_until(&mut state, deadline).timed_out();
            assert!(!late, "no block is settled");
        }
    }

    /// Shuts the volume down while somebody is held up, who goes on when that has begun.
    pub fn shut_down_behind(self, volume: &Volume) {
        self.wait();
        std::thread::scope(|scope| {
            let end = scope.spawn(|| volume.shutdown().expect("the volume shuts down"));
            while !volume.is_stopping() && !end.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Settling hears of it right after that.
            std::thread::sleep(Duration::from_millis(100));
            drop(self);
        });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.storage.set_hook(None);
        let (state, changed) = &*self.state;
        state.lock().open = true;
        changed.notify_all();
    }
}
