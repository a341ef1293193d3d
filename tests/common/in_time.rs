//! Doing something that might wait for ever, in a test that then fails.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Nothing takes so long, unless it waits for what does not come.
pub const SOON: Duration = Duration::from_secs(60);

/// Does something in another thread.
pub fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work()));
    receiver
}

/// Does something that must come to an end.
pub fn soon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = aside(work).recv_timeout(SOON);
    done.expect("it ends, and does not wait for what does not come")
}
