//! Totals over the whole volume, kept up to date by every change so that status needs no scan.

use super::VolumeError;
use super::keys::{Fields, damaged, put_varint};
use crate::codec::CodecId;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

const CODECS: usize = CodecId::ALL.len();
/// No total is larger, so that sums of totals cannot overflow.
const MOST: u64 = 1 << 60;

/// Figures of one codec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CodecTotals {
    pub extents: i64,
    /// Decoded bytes that files show.
    pub logical: i64,
    /// The share of these extents in the payloads of their blocks.
    pub stored: i64,
}

/// Totals, or a change of totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub files: i64,
    pub directories: i64,
    /// Number, decoded bytes and payload share of staged extents.
    pub staged_extents: i64,
    pub staged_logical: i64,
    pub staged_stored: i64,
    pub codecs: [CodecTotals; CODECS],
}

impl Totals {
    fn numbers(&mut self) -> impl Iterator<Item = &mut i64> {
        [
            &mut self.files,
            &mut self.directories,
            &mut self.staged_extents,
            &mut self.staged_logical,
            &mut self.staged_stored,
        ]
        .into_iter()
        .chain(
            self.codecs
                .iter_mut()
                .flat_map(|c| [&mut c.extents, &mut c.logical, &mut c.stored]),
        )
    }

    /// Decoded bytes of all files, holes not counted.
    pub fn logical(&self) -> i64 {
        self.codecs.iter().map(|c| c.logical).sum()
    }

    pub fn encode(mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in self.numbers() {
            put_varint(&mut out, (*number).max(0) as u64);
        }
        out
    }

    pub fn decode(value: &[u8]) -> Result<Totals, VolumeError> {
        let mut fields = Fields::new("counters", value);
        let mut totals = Totals::default();
        for number in totals.numbers() {
            let value = fields.varint()?;
            if value > MOST {
                return Err(damaged("counters", "impossible number"));
            }
            *number = value as i64;
        }
        fields.finish()?;
        Ok(totals)
    }
}

/// [`Totals`] that many threads change.
#[derive(Debug, Default)]
pub struct Counters {
    cells: [AtomicI64; 5 + 3 * CODECS],
}

impl Counters {
    pub fn add(&self, mut delta: Totals) {
        for (cell, number) in self.cells.iter().zip(delta.numbers()) {
            if *number != 0 {
                cell.fetch_add(*number, Relaxed);
            }
        }
    }

    pub fn get(&self) -> Totals {
        let mut totals = Totals::default();
        for (cell, number) in self.cells.iter().zip(totals.numbers()) {
            *number = cell.load(Relaxed);
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_survive_encoding_and_add_up() {
        let mut totals = Totals {
            files: 3,
            staged_stored: 1 << 40,
            ..Totals::default()
        };
        totals.codecs[3].logical = 77;
        assert_eq!(Totals::decode(&totals.encode()).unwrap(), totals);
        let counters = Counters::default();
        counters.add(totals);
        counters.add(totals);
        assert_eq!(counters.get().logical(), 154);
        assert!(Totals::decode(&[1, 2]).is_err());
    }
}
