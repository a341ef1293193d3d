//! Match expert: predicts the byte that followed the longest earlier occurrence of the last bytes.

/// Bits of the hash table of positions.
const HASH_BITS: u32 = 14;
/// Lengths are told apart up to this bucket.
pub const LENGTH_BUCKETS: usize = 16;

/// Finds matches of at least `least` bytes.
#[derive(Debug, Clone)]
pub struct Matcher {
    least: usize,
    positions: Vec<u32>,
    /// Position of the predicted byte, if there is a match.
    at: usize,
    length: usize,
}

impl Matcher {
    /// A matcher for a history of up to `bytes` bytes.
    pub fn new(least: usize, bytes: usize) -> Matcher {
        let bits = bytes.next_power_of_two().ilog2().clamp(8, HASH_BITS + 3);
        Matcher {
            least,
            positions: vec![0; 1 << bits],
            at: 0,
            length: 0,
        }
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
        self.length = 0;
    }

    /// Called after a byte was appended to `history`.
    pub fn update(&mut self, history: &[u8]) {
        if self.length > 0 {
            self.at += 1;
            self.length += 1;
        }
        let n = history.len();
        if n < self.least {
            return;
        }
        let hash = history[n - self.least..].iter().fold(0u32, |h, &b| {
            (h.wrapping_add(u32::from(b) + 1)).wrapping_mul(0x2F0B_4C47) ^ h >> 15
        });
        let slot = (hash.wrapping_mul(0x9E37_79B1) >> (32 - self.positions.len().ilog2())) as usize;
        if self.length == 0 {
            let at = self.positions[slot] as usize;
            let same = (0..at.min(400))
                .take_while(|&i| history[at - 1 - i] == history[n - 1 - i])
                .count();
            if same >= self.least {
                (self.at, self.length) = (at, same);
            }
        }
        self.positions[slot] = n as u32;
    }
}
