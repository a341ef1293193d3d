//! Adaptive experts: bit histories of the same contexts, learned within a group, empty at its start.
//!
//! All contexts share one table of lines like those of [`super::tables`], with a bit-history state
//! in every slot. A context that is not there takes the bucket seen least.

use super::states::States;
use super::tables::{BUCKET, WAYS, check_of, line_of, prefetch, way_of};

/// One aligned cache line of buckets.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Line([[u8; BUCKET]; WAYS]);

const EMPTY: Line = Line([[0; BUCKET]; WAYS]);

/// Fewest and most lines of a group.
const LINES: std::ops::RangeInclusive<usize> = 64..=1 << 18;

/// Lines for groups of up to `bytes` bytes, history included, with histories of so many contexts: a power of two in models
/// without runs.
pub fn lines_for(bytes: usize, contexts: usize, runs: bool) -> usize {
    let lines = match runs {
        true => bytes * contexts * 9 / 64,
        false => (bytes * contexts / 8).next_power_of_two(),
    };
    lines.clamp(*LINES.start(), *LINES.end())
}

/// The table of one group.
#[derive(Debug)]
pub struct Overlay {
    lines: Vec<Line>,
}

impl Clone for Overlay {
    fn clone(&self) -> Overlay {
        Overlay {
            lines: self.lines.clone(),
        }
    }

    /// In the memory that is there: an overlay takes megabytes, and new pages take their time.
    fn clone_from(&mut self, source: &Overlay) {
        self.lines.clone_from(&source.lines);
    }
}

/// Where a bucket lies; stays valid until the overlay is dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    line: u32,
    way: u32,
}

/// The first of the buckets that have been seen least.
#[inline(always)]
fn least_seen(line: &[[u8; BUCKET]; WAYS], states: &States) -> usize {
    let seen = |way: usize| {
        let bucket = &line[way];
        let seen = states.total(bucket[1]).max(1);
        // the way in the low bits: of equals the first is the least
        u32::from(if bucket[0] == 0 { 0 } else { seen }) << 2 | way as u32
    };
    (seen(0).min(seen(1)).min(seen(2).min(seen(3))) & 3) as usize
}

impl Overlay {
    /// An empty table of so many lines.
    pub fn with_lines(lines: usize) -> Overlay {
        Overlay {
            lines: vec![EMPTY; lines],
        }
    }

    /// Makes it an empty table of so many lines, in the memory that is there.
    pub fn reset(&mut self, lines: usize) {
        self.lines.clear();
        self.lines.resize(lines, EMPTY);
    }

    /// Memory of the table in bytes.
    pub fn size(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Asks the processor for the line of a hash before it is needed.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.lines[line_of(hash, self.lines.len())]);
    }

    /// The bucket of a context; an empty one if it has none. `SIMD` as for [`way_of`].
    #[inline(always)]
    pub(super) fn find<const SIMD: bool>(&self, hash: u64) -> [u8; BUCKET] {
        let check = check_of(hash);
        let line = &self.lines[line_of(hash, self.lines.len())].0;
        match way_of::<SIMD>(line, check) {
            (true, way) => line[way],
            (false, _) => [0; BUCKET],
        }
    }

    /// The bucket of a context, claimed from another one if need be. `SIMD` as for [`way_of`].
    #[inline(always)]
    pub(super) fn claim<const SIMD: bool>(
        &mut self,
        hash: u64,
        states: &States,
    ) -> (Place, [u8; BUCKET]) {
        let index = line_of(hash, self.lines.len());
        let check = check_of(hash);
        let line = &mut self.lines[index].0;
        let place = |way: usize| Place {
            line: index as u32,
            way: way as u32,
        };
        let (found, way) = way_of::<SIMD>(line, check);
        if found {
            return (place(way), line[way]);
        }
        let way = least_seen(line, states);
        // stored at once, and not loaded again
        let bucket = u128::from(check).to_le_bytes();
        line[way] = bucket;
        (place(way), bucket)
    }

    /// Writes back a bucket after its nibble.
    #[inline(always)]
    pub fn put(&mut self, place: Place, bucket: &[u8; BUCKET]) {
        self.lines[place.line as usize].0[place.way as usize & (WAYS - 1)] = *bucket;
    }
}
