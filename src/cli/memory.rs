//! Settings of the C library's allocator.

/// Keeps the memory of a long-lived process near what it uses.
///
/// Models decode with states of some megabytes that come and go on many threads. By default, glibc
/// raises its threshold for memory maps to such sizes and then keeps them in an arena per thread,
/// which in settling came to twenty times of what was in use.
#[cfg(target_env = "gnu")]
pub fn configure_allocator() {
    let settings = [
        (libc::M_MMAP_THRESHOLD, 512 << 10),
        (libc::M_TRIM_THRESHOLD, 4 << 20),
        (libc::M_ARENA_MAX, 4),
    ];
    for (parameter, value) in settings {
        // SAFETY: mallopt only sets limits of the allocator, and no thread exists yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Keeps what is freed, for a command that takes the same memory again and again until it ends.
#[cfg(target_env = "gnu")]
pub fn keep_memory() {
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt only sets limits of the allocator, and no other thread exists yet.
        unsafe { libc::mallopt(parameter, 32 << 20) };
    }
}

/// Other C libraries decide by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn keep_memory() {}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn configure_allocator() {}
