//! Time that is measured on busy machines.

use std::time::Duration;

/// Time that this thread has had a processor, so that other work on the machine does not count.
pub fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = stat.split_whitespace().next().unwrap();
    Duration::from_nanos(nanoseconds.parse().unwrap())
}
