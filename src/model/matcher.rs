//! Match expert: predicts the byte that followed the longest earlier occurrence of the last bytes.

/// Bits of the hash table of positions.
const HASH_BITS: u32 = 14;
/// Lengths are told apart up to this bucket.
pub const LENGTH_BUCKETS: usize = 16;

/// Misses after which a match is given up.
const MOST_MISSES: u32 = 32;
/// Bytes foreseen in succession that make up for all misses.
const SETTLED: usize = 16;

/// Finds matches of at least `least` bytes.
#[derive(Debug)]
pub struct Matcher {
    least: usize,
    positions: Vec<u32>,
    /// Position of the predicted byte, if there is a match.
    at: usize,
    length: usize,
    /// Whether a match goes on behind a byte that it did not foresee.
    recovers: bool,
    /// Bytes that it did not foresee since it was found or has settled.
    misses: u32,
    /// The newest byte was one of them.
    missed: bool,
}

impl Clone for Matcher {
    fn clone(&self) -> Matcher {
        Matcher {
            positions: self.positions.clone(),
            ..*self
        }
    }

    /// In the memory that is there.
    fn clone_from(&mut self, source: &Matcher) {
        let mut positions = std::mem::take(&mut self.positions);
        positions.clone_from(&source.positions);
        *self = Matcher {
            positions,
            ..*source
        };
    }
}

impl Matcher {
    /// A matcher for a history of up to `bytes` bytes. `recovers`: a match goes on behind a byte that it did not foresee, as
    /// one of length 1.
    pub fn new(least: usize, bytes: usize, recovers: bool) -> Matcher {
        let mut matcher = Matcher {
            least,
            positions: Vec::new(),
            at: 0,
            length: 0,
            recovers,
            misses: 0,
            missed: false,
        };
        matcher.reset(least, bytes, recovers);
        matcher
    }

    /// Makes it as new, in the memory that is there.
    pub fn reset(&mut self, least: usize, bytes: usize, recovers: bool) {
        let bits = bytes.next_power_of_two().ilog2().clamp(8, HASH_BITS + 3);
        let mut positions = std::mem::take(&mut self.positions);
        positions.clear();
        positions.resize(1 << bits, 0);
        *self = Matcher {
            least,
            positions,
            at: 0,
            length: 0,
            recovers,
            misses: 0,
            missed: false,
        };
    }

    /// Memory of the table in bytes.
    pub fn size(&self) -> usize {
        size_of_val(self.positions.as_slice())
    }

    /// Length class of the current match, 0 without one.
    #[inline(always)]
    pub fn bucket(&self) -> usize {
        match self.length {
            0 => 0,
            n @ 1..8 => 1 + n / 4,
            n @ 8..16 => 3 + (n - 8) / 4,
            n @ 16..32 => 5 + (n - 16) / 8,
            n @ 32..64 => 7 + (n - 32) / 16,
            n @ 64..512 => 9 + (n.ilog2() as usize - 6),
            _ => LENGTH_BUCKETS - 1,
        }
    }

    /// The predicted byte, if there is a match.
    #[inline(always)]
    pub fn predicted(&self, history: &[u8]) -> Option<u8> {
        if self.length > 0 {
            history.get(self.at).copied()
        } else {
            None
        }
    }

    /// Position of the predicted byte; it means nothing without a match.
    #[inline(always)]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Called when a predicted byte turned out wrong within its bits.
    #[inline(always)]
    pub fn miss(&mut self) {
        self.misses += 1;
        self.length = 0;
        self.missed = self.recovers && self.misses <= MOST_MISSES;
    }

    /// Called after a byte was appended to `history`.
    pub fn update(&mut self, history: &[u8]) {
        if self.length > 0 || self.missed {
            self.at += 1;
            self.length += 1;
            self.missed = false;
            if self.length >= SETTLED {
                self.misses = 0;
            }
        }
        let n = history.len();
        if n < self.least {
            return;
        }
        let newest = &history[n - self.least..];
        let hash = match self.recovers {
            true => hash_of_ends(newest),
            false => hash_of_all(newest),
        };
        let slot = (hash.wrapping_mul(0x9E37_79B1) >> (32 - self.positions.len().ilog2())) as usize;
        if self.length == 0 || self.misses > 0 && self.length < self.least {
            let at = self.positions[slot] as usize;
            let same = (0..at.min(400))
                .take_while(|&i| history[at - 1 - i] == history[n - 1 - i])
                .count();
            if same >= self.least {
                (self.at, self.length) = (at, same);
                self.misses = 0;
            }
        }
        self.positions[slot] = n as u32;
    }
}

fn hash_of_all(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0u32, |h, &b| {
        (h.wrapping_add(u32::from(b) + 1)).wrapping_mul(0x2F0B_4C47) ^ h >> 15
    })
}

/// A hash of the first and the last eight bytes: every byte is looked up, and the rest is compared anyway.
#[inline(always)]
fn hash_of_ends(bytes: &[u8]) -> u32 {
    let key = match (bytes.first_chunk(), bytes.last_chunk()) {
        (Some(&first), Some(&last)) => {
            let first = u64::from_le_bytes(first).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (first ^ first >> 32).wrapping_add(u64::from_le_bytes(last))
        }
        _ => bytes.iter().fold(0, |key, &b| key << 8 | u64::from(b)),
    };
    (key.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32) as u32
}
