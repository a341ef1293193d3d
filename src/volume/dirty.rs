//! Written data that is not in the log yet.

use std::collections::BTreeMap;

/// Non-overlapping pieces of a file, by offset. A piece never crosses a window boundary, and pieces of
/// one window never touch each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    map: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

impl Pieces {
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// End of the last piece.
    pub fn end(&self) -> u64 {
        self.map
            .last_key_value()
            .map_or(0, |(start, data)| start + data.len() as u64)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.map
            .iter()
            .map(|(start, data)| (*start, data.as_slice()))
    }

    /// Writes `data` over whatever is there. Returns by how many bytes the pieces grew.
    pub fn write(&mut self, mut offset: u64, mut data: &[u8], window: u64) -> u64 {
        let before = self.bytes;
        while !data.is_empty() {
            let room = window - offset % window;
            let len = (data.len() as u64).min(room) as usize;
            self.write_in_window(offset, &data[..len], window);
            offset += len as u64;
            data = &data[len..];
        }
        self.bytes - before
    }

    fn write_in_window(&mut self, start: u64, data: &[u8], window: u64) {
        let touching = self
            .map
            .range_mut(..=start)
            .next_back()
            .filter(|(s, d)| **s / window == start / window && **s + d.len() as u64 >= start);
        let (at, mut piece) = match touching.map(|(s, _)| *s) {
            Some(at) => (at, self.map.remove(&at).unwrap_or_default()),
            None => (start, Vec::new()),
        };
        self.bytes -= piece.len() as u64;
        overwrite(&mut piece, (start - at) as usize, data, window);
        let window_end = (at / window + 1) * window;
        loop {
            let end = at + piece.len() as u64;
            let next = self.map.range(at..=end).next().map(|(s, _)| *s);
            let Some(next) = next.filter(|s| *s < window_end) else {
                break;
            };
            let Some(old) = self.map.remove(&next) else {
                break;
            };
            self.bytes -= old.len() as u64;
            let covered = (end - next) as usize;
            if covered < old.len() {
                piece.extend_from_slice(&old[covered..]);
            }
        }
        self.bytes += piece.len() as u64;
        self.map.insert(at, piece);
    }

    /// Writes older pieces below what is here already: newer bytes win.
    pub fn write_below(&mut self, older: Pieces, window: u64) {
        let newer = std::mem::replace(self, older);
        for (start, data) in newer.iter() {
            self.write(start, data, window);
        }
    }

    /// Takes the pieces out. With `complete_only`, pieces that do not fill their window stay, because
    /// more data for them is likely to come.
    pub fn take(&mut self, complete_only: bool, window: u64) -> Pieces {
        if !complete_only {
            return std::mem::take(self);
        }
        let mut taken = Pieces::default();
        let complete: Vec<u64> = self
            .map
            .iter()
            .filter(|(_, data)| data.len() as u64 == window)
            .map(|(start, _)| *start)
            .collect();
        for start in complete {
            if let Some(data) = self.map.remove(&start) {
                self.bytes -= data.len() as u64;
                taken.bytes += data.len() as u64;
                taken.map.insert(start, data);
            }
        }
        taken
    }

    /// Pieces that overlap `from..to`, in order.
    pub fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let first = self
            .map
            .range(..=from)
            .next_back()
            .filter(|(s, d)| **s + d.len() as u64 > from)
            .map_or(from, |(s, _)| *s);
        self.map
            .range(first..to.max(first))
            .map(|(start, data)| (*start, data.as_slice()))
    }

    /// Copies what overlaps `from..` into `out` and returns the ranges copied, in order.
    pub fn copy_to(&self, from: u64, out: &mut [u8]) -> Vec<(u64, u64)> {
        let to = from + out.len() as u64;
        let mut copied = Vec::new();
        for (start, data) in self.overlapping(from, to) {
            let (a, b) = (start.max(from), (start + data.len() as u64).min(to));
            out[(a - from) as usize..(b - from) as usize]
                .copy_from_slice(&data[(a - start) as usize..(b - start) as usize]);
            copied.push((a, b));
        }
        copied
    }
}

/// Overwrites `piece` from `at`, growing it as needed. `at` is at most the length of the piece.
fn overwrite(piece: &mut Vec<u8>, at: usize, data: &[u8], window: u64) {
    let end = at + data.len();
    if end > piece.capacity() && end > 16 << 10 {
        piece.reserve_exact((window as usize).max(end) - piece.len());
    }
    let inside = data.len().min(piece.len() - at);
    piece[at..at + inside].copy_from_slice(&data[..inside]);
    piece.extend_from_slice(&data[inside..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 64;

    fn check(pieces: &Pieces, model: &BTreeMap<u64, u8>) {
        let mut seen = BTreeMap::new();
        let mut last: Option<(u64, u64)> = None;
        for (start, data) in pieces.iter() {
            let end = start + data.len() as u64;
            assert!(!data.is_empty() && start / WINDOW == (end - 1) / WINDOW);
            if let Some((last_start, last_end)) = last {
                assert!(
                    start > last_end || start / WINDOW != last_start / WINDOW && start >= last_end
                );
            }
            last = Some((start, end));
            seen.extend(data.iter().enumerate().map(|(i, b)| (start + i as u64, *b)));
        }
        assert_eq!(&seen, model);
        assert_eq!(pieces.bytes(), model.len() as u64);
    }

    proptest! {
        #[test]
        fn pieces_hold_the_last_write_of_every_byte(writes in prop::collection::vec((0u64..400, 1usize..100, any::<u8>()), 1..40),
                                                    from in 0u64..400, len in 0usize..200) {
            let (mut pieces, mut model) = (Pieces::default(), BTreeMap::new());
            for (offset, len, byte) in writes {
                pieces.write(offset, &vec![byte; len], WINDOW);
                model.extend((offset..offset + len as u64).map(|o| (o, byte)));
                check(&pieces, &model);
            }
            let mut out = vec![0; len];
            let copied = pieces.copy_to(from, &mut out);
            for (i, byte) in out.iter().enumerate() {
                let at = from + i as u64;
                prop_assert_eq!(copied.iter().any(|(a, b)| (*a..*b).contains(&at)), model.contains_key(&at));
                prop_assert_eq!(*byte, model.get(&at).copied().unwrap_or(0));
            }
        }

        #[test]
        fn older_pieces_never_cover_newer_ones(old in prop::collection::vec((0u64..300, 1usize..80), 1..10),
                                               new in prop::collection::vec((0u64..300, 1usize..80), 1..10)) {
            let (mut older, mut newer, mut model) = (Pieces::default(), Pieces::default(), BTreeMap::new());
            for (offset, len) in old {
                older.write(offset, &vec![1; len], WINDOW);
                model.extend((offset..offset + len as u64).map(|o| (o, 1)));
            }
            for (offset, len) in new {
                newer.write(offset, &vec![2; len], WINDOW);
                model.extend((offset..offset + len as u64).map(|o| (o, 2)));
            }
            newer.write_below(older, WINDOW);
            check(&newer, &model);
        }
    }

    #[test]
    fn taking_complete_windows_leaves_the_tail() {
        let mut pieces = Pieces::default();
        pieces.write(0, &[7; 150], WINDOW);
        let taken = pieces.take(true, WINDOW);
        assert_eq!((taken.bytes(), pieces.bytes()), (128, 22));
    }
}
