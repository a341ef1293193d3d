//! Adaptive experts: bit histories of the same contexts, learned within a group, empty at its start.
//!
//! All contexts share one table of lines like those of [`super::tables`], with a bit-history state
//! in every slot. A context that is not there takes the bucket seen least.

use super::states::States;
use super::tables::{BUCKET, Line, WAYS, check_of, line_of, prefetch};

/// The table of one group.
#[derive(Debug, Clone)]
pub struct Overlay {
    lines: Vec<Line>,
}

/// Where a bucket lies; stays valid until the overlay is dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place {
    line: u32,
    way: u32,
}

impl Overlay {
    /// An empty table for groups of up to `bytes` bytes, history included.
    pub fn for_bytes(bytes: usize, contexts: usize) -> Overlay {
        let buckets = bytes * 2 * contexts / 4;
        let lines = (buckets / WAYS).next_power_of_two().clamp(64, 1 << 18);
        Overlay {
            lines: vec![Line([[0; BUCKET]; WAYS]); lines],
        }
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

    /// The bucket of a context; an empty one if it has none.
    #[inline(always)]
    pub fn find(&self, hash: u64) -> [u8; BUCKET] {
        let check = check_of(hash);
        let line = &self.lines[line_of(hash, self.lines.len())].0;
        let found = line.iter().find(|bucket| bucket[0] == check);
        found.copied().unwrap_or_default()
    }

    /// The bucket of a context, claimed from another one if need be.
    #[inline(always)]
    pub fn claim(&mut self, hash: u64, states: &States) -> (Place, [u8; BUCKET]) {
        let index = line_of(hash, self.lines.len());
        let check = check_of(hash);
        let line = &mut self.lines[index].0;
        let mut victim = 0;
        let mut fewest = u8::MAX;
        for (way, bucket) in line.iter().enumerate() {
            if bucket[0] == check {
                return (
                    Place {
                        line: index as u32,
                        way: way as u32,
                    },
                    *bucket,
                );
            }
            let seen = if bucket[0] == 0 {
                0
            } else {
                states.total(bucket[1]).max(1)
            };
            if seen < fewest {
                (fewest, victim) = (seen, way);
            }
        }
        line[victim] = [0; BUCKET];
        line[victim][0] = check;
        (
            Place {
                line: index as u32,
                way: victim as u32,
            },
            line[victim],
        )
    }

    /// Writes back a bucket after its nibble.
    #[inline(always)]
    pub fn put(&mut self, place: Place, bucket: &[u8; BUCKET]) {
        self.lines[place.line as usize].0[place.way as usize & (WAYS - 1)] = *bucket;
    }
}
