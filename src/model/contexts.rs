//! The contexts that the table and adaptive experts predict from, as hashes of the bytes so far.

/// Number of contexts.
pub const CONTEXTS: usize = 14;

/// Names of the contexts, for reports.
pub const NAMES: [&str; CONTEXTS] = [
    "order 1",
    "order 2",
    "order 3",
    "order 4",
    "order 5",
    "order 6",
    "order 8",
    "word",
    "two words",
    "three words",
    "skip 1",
    "above",
    "shape",
    "field",
];

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// Class of a byte for the shape context: texts of the same layout share shapes.
fn shape_of(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => 1,
        b'a'..=b'z' => 2,
        b'A'..=b'Z' => 3,
        0x80..=0xff => 4,
        _ => byte.max(5),
    }
}

/// A hash of two numbers.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let h = (a ^ b.wrapping_mul(0xD6E8_FEB8_6659_FD93)).wrapping_mul(MULTIPLIER);
    h ^ (h >> 29)
}

/// The bytes so far and what the contexts need to remember about them.
#[derive(Debug, Clone)]
pub struct Contexts {
    /// All bytes since the start of the group's history, anchor included.
    bytes: Vec<u8>,
    /// The last eight bytes, the newest lowest.
    last: u64,
    word: u64,
    words: [u64; 2],
    /// Shapes of the last bytes, runs of one shape counted once.
    shape: u64,
    line_start: usize,
    previous_line: usize,
    /// Number of separators in this line, and where the field after the last one begins.
    field: u32,
    field_start: usize,
    first_of_line: u64,
}

impl Default for Contexts {
    fn default() -> Contexts {
        Contexts {
            bytes: Vec::new(),
            last: u64::from(b'\n'),
            word: 0,
            words: [0; 2],
            shape: u64::from(b'\n'),
            line_start: 0,
            previous_line: 0,
            field: 0,
            field_start: 0,
            first_of_line: 0,
        }
    }
}

impl Contexts {
    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The last eight bytes, the newest lowest.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The newest byte; a line feed before the first.
    pub fn newest(&self) -> u8 {
        self.last as u8
    }

    /// The byte above the next one: same column, previous line; 0 where there is none.
    fn above(&self) -> u8 {
        let column = self.bytes.len() - self.line_start;
        let position = self.previous_line + column;
        if position < self.line_start {
            self.bytes[position]
        } else {
            0
        }
    }

    /// Appends a byte.
    pub fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
        self.last = self.last << 8 | u64::from(byte);
        if byte.is_ascii_alphabetic() || byte >= 0x80 {
            self.word = mix(self.word, u64::from(byte.to_ascii_lowercase()) + 1);
        } else if self.word != 0 {
            self.words = [self.word, self.words[0]];
            self.word = 0;
        }
        let shape = shape_of(byte);
        if shape as u64 != self.shape & 0xff || shape > 4 {
            self.shape = self.shape << 8 | u64::from(shape);
        }
        match byte {
            b'\n' => {
                self.previous_line = self.line_start;
                self.line_start = self.bytes.len();
                self.field = 0;
                self.field_start = self.bytes.len();
                self.first_of_line = 0;
            }
            b',' | b';' | b'\t' | b'|' | b' ' | b':' | b'=' | b'"' => {
                self.field += 1;
                self.field_start = self.bytes.len();
            }
            _ => {}
        }
        if self.field == 0 && self.bytes.len() - self.line_start <= 6 {
            self.first_of_line = mix(self.first_of_line, u64::from(byte));
        }
    }

    /// The hashes of all contexts of the next byte.
    pub fn hashes(&self) -> [u64; CONTEXTS] {
        let order = |n: u32| self.last & (u64::MAX >> (64 - 8 * n));
        let newest = u64::from(self.newest());
        let in_word = if self.word == 0 {
            newest << 32
        } else {
            self.word
        };
        let above = u64::from(self.above());
        let in_field = (self.bytes.len() - self.field_start).min(15) as u64;
        let raw = [
            order(1),
            order(2),
            order(3),
            order(4),
            order(5),
            order(6),
            order(8),
            in_word,
            mix(in_word, self.words[0]),
            mix(mix(in_word, self.words[0]), self.words[1]),
            self.last >> 8 & 0xff_ffff,
            above << 16 | order(2),
            self.shape & 0xffff_ffff_ffff,
            mix(
                u64::from(self.field.min(63)) << 8 | in_field,
                self.first_of_line ^ above << 56,
            ),
        ];
        std::array::from_fn(|i| mix(raw[i].wrapping_add(1), (i as u64 + 1) << 56))
    }
}

/// The hash for the next nibble of a byte's codeword behind the nibble of this hash, which was `nibble`.
#[inline(always)]
pub fn next_nibble(hash: u64, nibble: u32) -> u64 {
    let h = (hash.wrapping_add(u64::from(nibble) + 1)).wrapping_mul(MULTIPLIER);
    h ^ (h >> 32)
}
