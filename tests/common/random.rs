//! A small generator of pseudo-random numbers for tests, the same on every machine.
#![allow(dead_code)]

use s2sfs::train::corpus;

pub struct Random(corpus::Random);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(corpus::Random(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `limit`; 0 if there is none.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A number within `least..=most`.
    pub fn within(&mut self, least: i64, most: i64) -> i64 {
        least + (self.next() % (most - least + 1) as u64) as i64
    }

    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.within(0, values.len() as i64 - 1) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    Random::new(seed).bytes(len)
}
