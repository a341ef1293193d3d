//! A hash of what a file shows, whatever of its zeros are holes.

/// Unit in which zeros are looked for.
const BLOCK: usize = 16 << 10;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Hash of the contents of a file: of the blocks that are not all zeros, of where they are, and of the size.
pub type Hash = [u8; 32];

/// Takes the data of a file, front to back, holes left out or not.
pub struct Digest {
    data: blake3::Hasher,
    /// First and last block of each run of blocks in `data`.
    places: blake3::Hasher,
    next: u64,
    /// A block of which only a part has come yet, and its number.
    partial: Box<[u8; BLOCK]>,
    number: Option<u64>,
}

impl Digest {
    pub fn new() -> Digest {
        Digest {
            data: blake3::Hasher::new(),
            places: blake3::Hasher::new(),
            next: 0,
            partial: Box::new(ZEROS),
            number: None,
        }
    }

    /// Adds data that lies at `offset`, at or behind the end of what was added before.
    pub fn add(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (number, at) = (offset / BLOCK as u64, (offset % BLOCK as u64) as usize);
            let take = data.len().min(BLOCK - at);
            let (now, rest) = data.split_at(take);
            if self.number.is_some_and(|open| open != number) {
                self.end_partial();
            }
            if take == BLOCK {
                self.block(number, now);
            } else {
                self.partial[at..at + take].copy_from_slice(now);
                self.number = Some(number);
            }
            offset += take as u64;
            data = rest;
        }
    }

    fn end_partial(&mut self) {
        if let Some(number) = self.number.take() {
            let block = std::mem::replace(&mut self.partial, Box::new(ZEROS));
            self.block(number, &block[..]);
        }
    }

    fn block(&mut self, number: u64, block: &[u8]) {
        if block == &ZEROS[..] {
            return;
        }
        if number != self.next {
            self.places.update(&self.next.to_le_bytes());
            self.places.update(&number.to_le_bytes());
        }
        self.data.update(block);
        self.next = number + 1;
    }

    /// The hash of a file of this size.
    pub fn finish(mut self, size: u64) -> Hash {
        self.end_partial();
        self.places.update(&self.next.to_le_bytes());
        self.places.update(&size.to_le_bytes());
        self.places.update(self.data.finalize().as_bytes());
        *self.places.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(data: &[u8]) -> Hash {
        let mut digest = Digest::new();
        digest.add(0, data);
        digest.finish(data.len() as u64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn holes_and_pieces_do_not_show_but_every_changed_byte_does(
            parts in prop::collection::vec((any::<bool>(), 1usize..40_000), 0..6),
            at: usize, cut in 1usize..50_000,
        ) {
            let mut data = Vec::new();
            let mut digest = Digest::new();
            for (hole, len) in parts {
                let part: Vec<u8> = match hole {
                    true => vec![0; len],
                    false => (0..len).map(|n| (n % 251) as u8 + 1).collect(),
                };
                if !hole {
                    let mut offset = data.len() as u64;
                    for piece in part.chunks(cut) {
                        digest.add(offset, piece);
                        offset += piece.len() as u64;
                    }
                }
                data.extend(part);
            }
            let hash = digest.finish(data.len() as u64);
            prop_assert_eq!(hash, whole(&data));
            if !data.is_empty() {
                let at = at % data.len();
                data[at] ^= 1;
                prop_assert_ne!(hash, whole(&data));
                data[at] ^= 1;
                data.push(0);
                prop_assert_ne!(hash, whole(&data));
            }
        }
    }

    #[test]
    fn the_same_block_in_another_place_is_another_file() {
        let block = vec![7; BLOCK];
        let at = |number: u64| {
            let mut digest = Digest::new();
            digest.add(number * BLOCK as u64, &block);
            digest.finish(5 * BLOCK as u64)
        };
        assert_ne!(at(0), at(1));
        assert_ne!(at(1), at(2));
    }
}
