//! Faults planted on purpose, to prove that the tests notice them (`make mutants`).
//!
//! Without the cargo feature `mutants`, which is off unless asked for, [`planted`] is the constant
//! `false` and the compiler removes what stands behind it. `tests/mutants.txt` lists the faults, each
//! with the test that must fail.

/// Whether this run has the fault of this name: the one that the environment variable `S2SFS_FAULT` names.
#[cfg(feature = "mutants")]
pub fn planted(name: &str) -> bool {
    static FAULT: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let fault = FAULT.get_or_init(|| std::env::var("S2SFS_FAULT").ok());
    fault.as_deref() == Some(name)
}

/// Nothing is planted in an ordinary build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}
