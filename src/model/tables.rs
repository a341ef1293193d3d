//! Table experts: trained logits of hashed contexts, frozen, shared by all groups.
//!
//! A context and the nibble to be predicted name a *line* of 64 bytes; one of its four buckets holds
//! the context if its check byte matches. A bucket is the check byte and the 15 logits of the
//! nibble's binary decisions, one byte each, indexed by the decision's node 1..=15.

use super::contexts::CONTEXTS;

/// Bytes of a bucket: a check byte and 15 slots.
pub const BUCKET: usize = 16;
/// Buckets of a line, which is one cache line.
pub const WAYS: usize = 4;

/// One aligned cache line of buckets.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [[u8; BUCKET]; WAYS]);

/// The check byte of a hash: never 0, which marks an empty bucket.
#[inline(always)]
pub fn check_of(hash: u64) -> u8 {
    ((hash & 0xff) as u8).max(1)
}

/// The line of a hash in a table of `lines` lines.
#[inline(always)]
pub fn line_of(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// The tables of all contexts.
#[derive(Debug, Default)]
pub struct Tables {
    lines: Vec<Line>,
    /// First line and number of lines of each context's table.
    parts: [(usize, usize); CONTEXTS],
}

impl Tables {
    /// Empty tables with this many lines for each context (0 leaves a context out).
    pub fn with_lines(counts: &[usize; CONTEXTS]) -> Tables {
        let mut start = 0;
        let parts = counts.map(|count| {
            let part = (start, count);
            start += count;
            part
        });
        Tables {
            lines: vec![Line([[0; BUCKET]; WAYS]); start],
            parts,
        }
    }

    /// All lines, table after table.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// All lines, table after table.
    pub fn lines_mut(&mut self) -> &mut [Line] {
        &mut self.lines
    }

    /// Number of lines of each context's table.
    pub fn line_counts(&self) -> [usize; CONTEXTS] {
        self.parts.map(|(_, count)| count)
    }

    /// Index of the line that may hold `hash` in the table of `context`; None without such a table.
    #[inline(always)]
    pub fn line_index(&self, context: usize, hash: u64) -> Option<usize> {
        let (start, count) = self.parts[context];
        (count > 0).then(|| start + line_of(hash, count))
    }

    /// The bucket of a context, if it was trained.
    #[inline(always)]
    pub fn find(&self, context: usize, hash: u64) -> Option<&[u8; BUCKET]> {
        let line = &self.lines[self.line_index(context, hash)?];
        let check = check_of(hash);
        line.0.iter().find(|bucket| bucket[0] == check)
    }

    /// Asks the processor for the line of a hash before it is needed.
    #[inline(always)]
    pub fn prefetch(&self, context: usize, hash: u64) {
        if let Some(index) = self.line_index(context, hash) {
            prefetch(&self.lines[index]);
        }
    }
}

/// A hint to load a cache line; does nothing where there is no such instruction.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect that a program can see, for any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(place).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
