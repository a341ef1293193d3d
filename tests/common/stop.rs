//! Threads that go on until a test tells them to stop.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Ends the other threads of a scope, also when the test fails, which would else wait for them for ever.
pub struct StopWhenDropped<'a>(pub &'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
