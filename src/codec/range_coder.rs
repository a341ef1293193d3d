//! Binary arithmetic coding with 16-bit probabilities, carry-less, on 64-bit bounds.

use crate::model::predictor::BitCoder;

/// Splits `low..=high` at the probability `p` of a one, which takes the lower part.
#[inline(always)]
fn split(low: u64, high: u64, p: u16) -> u64 {
    // high - low >= 2^55 after every step except at a straddle, where it is at least 1: then the
    // product is 0 and a one still gets the value `low` itself
    let range = high - low;
    low + (range >> 16) * u64::from(p) + (((range & 0xffff) * u64::from(p)) >> 16)
}

/// Turns decisions into bytes.
#[derive(Debug)]
pub struct Encoder {
    low: u64,
    high: u64,
    bytes: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder {
            low: 0,
            high: u64::MAX,
            bytes: Vec::new(),
        }
    }
}

impl BitCoder for Encoder {
    #[inline(always)]
    fn code(&mut self, p: u16, bit: u32) -> u32 {
        let middle = split(self.low, self.high, p);
        if bit == 1 {
            self.high = middle
        } else {
            self.low = middle + 1
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.bytes.push((self.high >> 56) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        bit
    }
}

impl Encoder {
    /// The code: the shortest bytes that decode to all decisions when zeros follow.
    pub fn finish(mut self) -> Vec<u8> {
        for kept in 0..=8u32 {
            // round `low` up to `kept` whole bytes
            let unit = if kept == 8 {
                1
            } else {
                1u128 << (64 - 8 * kept)
            };
            let value = u128::from(self.low).div_ceil(unit) * unit;
            if value <= u128::from(self.high) {
                self.bytes
                    .extend_from_slice(&(value as u64).to_be_bytes()[..kept as usize]);
                break;
            }
        }
        while self.bytes.last() == Some(&0) {
            self.bytes.pop();
        }
        self.bytes
    }
}

/// Turns bytes back into decisions. Behind the end of the bytes come zeros.
#[derive(Debug)]
pub struct Decoder<B> {
    low: u64,
    high: u64,
    value: u64,
    bytes: B,
    at: usize,
}

impl<B: AsRef<[u8]>> Decoder<B> {
    /// A decoder of `bytes`, which may be anything.
    pub fn new(bytes: B) -> Decoder<B> {
        let mut decoder = Decoder {
            low: 0,
            high: u64::MAX,
            value: 0,
            bytes,
            at: 0,
        };
        for _ in 0..8 {
            decoder.value = decoder.value << 8 | decoder.next();
        }
        decoder
    }

    #[inline(always)]
    fn next(&mut self) -> u64 {
        let byte = self.bytes.as_ref().get(self.at);
        self.at += 1;
        byte.map_or(0, |&byte| u64::from(byte))
    }
}

impl<B: AsRef<[u8]>> BitCoder for Decoder<B> {
    #[inline(always)]
    fn code(&mut self, p: u16, _bit: u32) -> u32 {
        let middle = split(self.low, self.high, p);
        let bit = u32::from(self.value <= middle);
        if bit == 1 {
            self.high = middle
        } else {
            self.low = middle + 1
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.value = self.value << 8 | self.next();
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_decisions_come_back(decisions in prop::collection::vec((1u16..=65535, 0u32..2), 0..3000)) {
            let mut encoder = Encoder::default();
            for &(p, bit) in &decisions {
                encoder.code(p, bit);
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            for &(p, bit) in &decisions {
                prop_assert_eq!(decoder.code(p, 1 - bit), bit);
            }
        }

        #[test]
        fn any_bytes_decode_to_something(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut decoder = Decoder::new(&bytes);
            for i in 0..2000u32 {
                prop_assert!(decoder.code((i.wrapping_mul(7919) as u16).max(1), 0) < 2);
            }
        }
    }

    #[test]
    fn sure_decisions_cost_next_to_nothing() {
        let mut encoder = Encoder::default();
        for _ in 0..10_000 {
            encoder.code(65535, 1);
        }
        assert!(encoder.finish().len() <= 1);
    }
}
