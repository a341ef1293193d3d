//! How a byte is divided into binary decisions: a prefix code, in which common bytes take few.
//!
//! Every decision costs the same time, so the mean length of a codeword decides how fast a model is. The plain
//! code has eight decisions for each byte, its bits; a code made for texts has about five. Bytes that are alike
//! (vowels, digits, capital letters) lie side by side in it, so that its first decisions are about what kind of byte
//! comes, and what is learned of one context holds for others: Huffman's code, a little shorter still, lets them
//! fall where their counts put them, and predicts 2 % worse (docs/benchmarks.md).

use std::cmp::Reverse;

use super::ModelError;

/// The longest codeword, in decisions: three buckets.
pub const LONGEST: u32 = 12;
/// Decisions of a bucket.
const BUCKET_BITS: u32 = 4;
const WORD_BITS: u32 = 16;

/// A prefix code of the 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteCode {
    lengths: [u8; 256],
    /// Codewords, the first decision in the highest bit.
    words: [u16; 256],
    /// What follows a node on a zero and on a one.
    children: [[Child; 2]; 256],
}

/// What follows a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Child(u16);

impl Child {
    const LEAF: u16 = 256;

    /// The byte, if it is complete.
    #[inline(always)]
    fn byte(self) -> Option<u8> {
        (self.0 >= Child::LEAF).then_some(self.0 as u8)
    }

    #[inline(always)]
    fn node(self) -> u8 {
        self.0 as u8
    }
}

/// A place in the code: the decision that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// The node within its bucket: the decisions since its beginning behind a leading one, within 1..=15.
    pub slot: u8,
    /// The node among all, within 1..=255; those of the plain code are the bits so far behind a leading one.
    pub node: u8,
    /// Decisions so far.
    depth: u8,
    /// They themselves, the last one lowest.
    path: u16,
}

impl Spot {
    /// In front of the first decision.
    pub const START: Spot = Spot {
        slot: 1,
        node: 1,
        depth: 0,
        path: 0,
    };

    /// In the plain code, behind the bits of `prefix`, which has a leading one; `slot` are those of its nibble.
    #[inline(always)]
    pub fn plain(slot: u8, prefix: u8) -> Spot {
        let depth = prefix.ilog2();
        Spot {
            slot,
            node: prefix,
            depth: depth as u8,
            path: u16::from(prefix) - (1 << depth),
        }
    }

    /// What the codeword of an expected byte has here, if it is the same so far.
    #[inline(always)]
    pub fn expected(self, word: u16) -> Option<u32> {
        let word = u32::from(word);
        let agrees = word >> (16 - u32::from(self.depth)) == u32::from(self.path);
        agrees.then(|| self.bit_of(word as u16))
    }

    /// What a codeword has here.
    #[inline(always)]
    pub fn bit_of(self, word: u16) -> u32 {
        u32::from(word) >> (15 - u32::from(self.depth)) & 1
    }

    /// The decisions of the bucket that has just ended.
    #[inline(always)]
    pub fn bucket(self) -> u32 {
        u32::from(self.path) & ((1 << BUCKET_BITS) - 1)
    }

    /// Whether a bucket begins here.
    #[inline(always)]
    pub fn begins_bucket(self) -> bool {
        self.slot == 1
    }

    #[inline(always)]
    fn follow(self, node: u8, bit: u32) -> Spot {
        let slot = self.slot << 1 | bit as u8 & 1;
        Spot {
            slot: if slot < 16 { slot } else { 1 },
            node,
            depth: self.depth + 1,
            path: self.path << 1 | bit as u16 & 1,
        }
    }
}

impl Default for ByteCode {
    fn default() -> ByteCode {
        ByteCode::plain()
    }
}

impl ByteCode {
    /// The eight bits of a byte, the highest first.
    pub fn plain() -> ByteCode {
        let (lengths, words) = ([8; 256], std::array::from_fn(|byte| (byte as u16) << 8));
        ByteCode {
            lengths,
            words,
            children: children(&lengths, &words),
        }
    }

    /// The code whose leaves are these bytes in this order, with these lengths of codewords (of the first byte, the
    /// second, and so on).
    ///
    /// # Errors
    /// If the order does not have every byte once, a length is not within 1..=[`LONGEST`], or there is no such code.
    pub fn new(order: &[u8; 256], lengths: &[u8; 256]) -> Result<ByteCode, ModelError> {
        let refuse = || ModelError::Damaged("not a prefix code of all bytes".into());
        let (mut words, mut by_byte) = ([0u16; 256], [0u8; 256]);
        let mut next = 0u32;
        for (&byte, &length) in order.iter().zip(lengths) {
            let place = &mut by_byte[usize::from(byte)];
            if *place != 0 || !(1..=LONGEST).contains(&u32::from(length)) {
                return Err(refuse());
            }
            *place = length;
            let share = 1 << (WORD_BITS - u32::from(length));
            if !next.is_multiple_of(share) || next + share > 1 << WORD_BITS {
                return Err(refuse());
            }
            words[usize::from(byte)] = next as u16;
            next += share;
        }
        match next == 1 << WORD_BITS {
            true => Ok(ByteCode {
                children: children(&by_byte, &words),
                lengths: by_byte,
                words,
            }),
            false => Err(refuse()),
        }
    }

    /// The code in which texts with so many of each byte take the fewest decisions, with bytes that are alike side by side
    /// and no codeword longer than [`LONGEST`].
    pub fn for_counts(counts: &[u64; 256]) -> ByteCode {
        let mut order = in_order();
        order.sort_by_key(|&byte| (kind_of(byte), Reverse(counts[usize::from(byte)])));
        let total: u64 = counts.iter().sum::<u64>().max(1);
        // A greater floor makes the longest codewords shorter; with all bytes alike they have eight decisions.
        let mut floor = total >> 15;
        loop {
            let weights = order.map(|byte| counts[usize::from(byte)].max(floor));
            // Refused where a codeword is too long.
            if let Ok(code) = ByteCode::new(&order, &optimal(&weights)) {
                return code;
            }
            floor = (floor * 5 / 4 + 1).min(total);
        }
    }

    /// The bytes in the order of their codewords, and the lengths of these in the same order: what [`ByteCode::new`] takes.
    pub fn parts(&self) -> ([u8; 256], [u8; 256]) {
        let mut order = in_order();
        order.sort_by_key(|&byte| self.word(byte));
        (order, order.map(|byte| self.lengths[usize::from(byte)]))
    }

    /// Whether these are the bits of bytes.
    pub fn is_plain(&self) -> bool {
        // Codewords that are all 2^8 apart have eight decisions.
        in_order()
            .iter()
            .all(|&byte| self.word(byte) == u16::from(byte) << 8)
    }

    /// The codeword of a byte, its first decision in the highest bit.
    #[inline(always)]
    pub fn word(&self, byte: u8) -> u16 {
        self.words[usize::from(byte)]
    }

    /// The nibbles of a codeword but the last, which may have fewer decisions than the others.
    pub fn nibbles(&self, byte: u8) -> impl Iterator<Item = u32> + use<> {
        let (word, length) = (
            u32::from(self.word(byte)),
            u32::from(self.lengths[usize::from(byte)]),
        );
        (1..length.div_ceil(BUCKET_BITS))
            .map(move |nibble| word >> (16 - BUCKET_BITS * nibble) & 15)
    }

    /// Goes from a spot over a decision: the byte, or the spot of the next decision.
    #[inline(always)]
    pub fn step(&self, spot: Spot, bit: u32) -> Result<u8, Spot> {
        let child = self.children[usize::from(spot.node)][bit as usize & 1];
        match child.byte() {
            Some(byte) => Ok(byte),
            None => Err(spot.follow(child.node(), bit)),
        }
    }
}

/// All bytes.
fn in_order() -> [u8; 256] {
    std::array::from_fn(|byte| byte as u8)
}

/// Numbers the inner nodes of a complete code level by level, from 1 on.
fn children(lengths: &[u8; 256], words: &[u16; 256]) -> [[Child; 2]; 256] {
    let mut children = [[Child(0); 2]; 256];
    let mut level: Vec<(u16, usize)> = vec![(0, 1)];
    let mut nodes = 1;
    for depth in 1..=LONGEST {
        let mut next = Vec::new();
        for (path, node) in level {
            for bit in 0..2u16 {
                let path = path | bit << (16 - depth);
                let is_here =
                    |&byte: &usize| words[byte] == path && u32::from(lengths[byte]) == depth;
                children[node][usize::from(bit)] = match (0..256).find(is_here) {
                    Some(byte) => Child(Child::LEAF + byte as u16),
                    None => {
                        nodes += 1;
                        next.push((path, nodes));
                        Child(nodes as u16)
                    }
                };
            }
        }
        level = next;
    }
    children
}

/// Bytes of one kind are followed by the same: what lies side by side in a code for texts.
pub(super) fn kind_of(byte: u8) -> u8 {
    match byte {
        b' ' | b'\n' | b'\t' | b'\r' => 0,
        b'a' | b'e' | b'i' | b'o' | b'u' | b'y' => 1,
        b'a'..=b'z' => 2,
        b'A'..=b'Z' => 3,
        b'0'..=b'9' => 5,
        0x80.. => 6,
        0..32 | 127 => 7,
        _ => 4,
    }
}

/// Depths of the leaves of the best binary tree with leaves of these weights in this order (Gilbert and Moore 1959, with
/// the bounds on roots of Knuth 1971).
fn optimal(weights: &[u64; 256]) -> [u8; 256] {
    let n = weights.len();
    let mut sums = vec![0u64];
    for weight in weights {
        sums.push(sums[sums.len() - 1] + weight);
    }
    // of the leaves from one to another, and where they part
    let mut costs = vec![[0u64; 256]; n];
    let mut parts: Vec<[usize; 256]> = vec![[0; 256]; n];
    for (leaf, parts) in parts.iter_mut().enumerate() {
        parts[leaf] = leaf;
    }
    for count in 2..=n {
        for first in 0..=n - count {
            let last = first + count - 1;
            let from = parts[first][last - 1].max(first);
            let to = parts[first + 1][last].min(last - 1);
            let cost = |part: usize| costs[first][part] + costs[part + 1][last];
            let best = (from..=to).min_by_key(|&part| cost(part)).unwrap_or(from);
            costs[first][last] = cost(best) + sums[last + 1] - sums[first];
            parts[first][last] = best;
        }
    }
    let mut depths = [0u8; 256];
    let mut open = vec![(0, n - 1, 0u8)];
    while let Some((first, last, depth)) = open.pop() {
        if first == last {
            depths[first] = depth;
        } else {
            let part = parts[first][last];
            open.extend([(first, part, depth + 1), (part + 1, last, depth + 1)]);
        }
    }
    depths
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(code: &ByteCode, word: u16) -> (u8, u32) {
        let (mut spot, mut decisions) = (Spot::START, 0);
        loop {
            decisions += 1;
            match code.step(spot, spot.bit_of(word)) {
                Ok(byte) => return (byte, decisions),
                Err(next) => spot = next,
            }
        }
    }

    fn assert_is_a_code(code: &ByteCode) {
        let mut nodes = std::collections::HashSet::new();
        for byte in 0..=255 {
            let (word, length) = (code.word(byte), code.lengths[usize::from(byte)]);
            assert_eq!(decoded(code, word), (byte, u32::from(length)));
            let mut spot = Spot::START;
            let mut nibbles = vec![];
            loop {
                nodes.insert(spot.node);
                assert!((1..16).contains(&spot.slot) && spot.node > 0);
                assert_eq!(spot.expected(word), Some(spot.bit_of(word)));
                let Err(next) = code.step(spot, spot.bit_of(word)) else {
                    break;
                };
                if next.begins_bucket() {
                    nibbles.push(next.bucket());
                }
                spot = next;
            }
            assert_eq!(code.nibbles(byte).collect::<Vec<u32>>(), nibbles);
        }
        assert_eq!(nodes.len(), 255);
        let (order, lengths) = code.parts();
        assert_eq!(ByteCode::new(&order, &lengths).unwrap(), *code);
    }

    #[test]
    fn the_plain_code_is_the_bits_of_a_byte() {
        let code = ByteCode::plain();
        assert_is_a_code(&code);
        assert!(code.is_plain());
        for byte in 0..=255u8 {
            assert_eq!(code.word(byte), u16::from(byte) << 8);
            let mut spot = Spot::START;
            for depth in 0..7u32 {
                let prefix = (256 | u32::from(byte)) >> (8 - depth);
                let slot = if depth < 4 {
                    prefix
                } else {
                    1 << (depth - 4) | prefix & ((1 << (depth - 4)) - 1)
                };
                assert_eq!(spot, Spot::plain(slot as u8, prefix as u8));
                spot = code.step(spot, spot.bit_of(code.word(byte))).unwrap_err();
            }
        }
    }

    #[test]
    fn what_is_no_code_is_refused() {
        let order = in_order();
        assert!(ByteCode::new(&order, &[8; 256]).unwrap().is_plain());
        let mut twice = order;
        twice[7] = 8;
        let with = |changes: &[(usize, u8)]| {
            let mut lengths = [8; 256];
            changes
                .iter()
                .for_each(|&(at, length)| lengths[at] = length);
            lengths
        };
        assert!(ByteCode::new(&twice, &[8; 256]).is_err());
        for changes in [
            &[(0, 0)][..],
            &[(0, 13)],
            &[(0, 7)],
            &[(255, 9)],
            // shares that add up, but do not fit at their places
            &[(0, 9), (1, 7), (2, 9)],
        ] {
            assert!(
                ByteCode::new(&order, &with(changes)).is_err(),
                "{changes:?}"
            );
        }
        assert!(ByteCode::new(&order, &with(&[(0, 7), (1, 9), (2, 9)])).is_ok());
    }

    #[test]
    fn texts_take_few_decisions() {
        let text = include_bytes!("bytecode.rs");
        let mut counts = [0; 256];
        text.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
        let code = ByteCode::for_counts(&counts);
        assert_is_a_code(&code);
        let decisions: usize = text
            .iter()
            .map(|&byte| usize::from(code.lengths[usize::from(byte)]))
            .sum();
        assert!(
            decisions * 10 < text.len() * 55,
            "{decisions} of {}",
            text.len()
        );
    }

    proptest! {
        #[test]
        fn any_counts_give_a_code(counts in prop::collection::vec(0..=40u32, 256), base in 0..3u64) {
            let counts: [u64; 256] = std::array::from_fn(|byte| base.pow(counts[byte]));
            assert_is_a_code(&ByteCode::for_counts(&counts));
        }
    }
}
