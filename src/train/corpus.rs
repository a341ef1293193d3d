//! The training data: the files of a directory, cut into pieces and shuffled.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Bytes of a piece: long enough for every context to warm up, short enough to shuffle well.
pub const PIECE: usize = 16 << 10;

/// All files of a directory tree in memory.
#[derive(Debug)]
pub struct Corpus {
    files: Vec<Vec<u8>>,
    /// The kind of each file.
    kinds: Vec<usize>,
}

/// A slice of one file.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub file: u32,
    pub start: u32,
    pub len: u32,
}

impl Piece {
    /// The piece in parts of at most `size` bytes.
    pub fn cut(self, size: usize) -> impl Iterator<Item = Piece> {
        (0..self.len).step_by(size).map(move |offset| Piece {
            file: self.file,
            start: self.start + offset,
            len: (self.len - offset).min(size as u32),
        })
    }
}

/// Neighbouring pieces of a file in one where that has at most `most` bytes, in the order of the files.
pub fn joined(pieces: &[Piece], most: usize) -> Vec<Piece> {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable_by_key(|piece| (piece.file, piece.start));
    let mut joined: Vec<Piece> = Vec::new();
    for piece in sorted {
        match joined.last_mut() {
            Some(last)
                if (last.file, last.start + last.len) == (piece.file, piece.start)
                    && (last.len + piece.len) as usize <= most =>
            {
                last.len += piece.len;
            }
            _ => joined.push(piece),
        }
    }
    joined
}

/// A small seeded generator (SplitMix64): the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number of 53 bits from 0 to below 1.
    pub fn share(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), paths)?;
        } else if kind.is_file() {
            paths.push(entry.path());
        }
    }
    Ok(())
}

/// The kind of every file: its directory just below `dir`, or, if there is only one such directory, its extension.
fn kinds(dir: &Path, paths: &[PathBuf]) -> Vec<usize> {
    let number = |names: Vec<Option<OsString>>| {
        let mut known: Vec<_> = names.clone();
        known.sort();
        known.dedup();
        let kind = |name| known.binary_search(name).unwrap_or_default();
        let kinds: Vec<usize> = names.iter().map(kind).collect();
        (known.len(), kinds)
    };
    let top = |path: &PathBuf| {
        let mut inside = path.strip_prefix(dir).ok()?.components();
        let first = inside.next()?;
        inside.next().map(|_| first.as_os_str().to_owned())
    };
    let (count, by_directory) = number(paths.iter().map(top).collect());
    match count {
        0 | 1 => {
            number(
                paths
                    .iter()
                    .map(|p| p.extension().map(OsString::from))
                    .collect(),
            )
            .1
        }
        _ => by_directory,
    }
}

impl Corpus {
    /// Reads all regular files below `dir`, in the order of their paths.
    pub fn read(dir: &Path) -> std::io::Result<Corpus> {
        let mut paths = Vec::new();
        collect(dir, &mut paths)?;
        paths.sort();
        let (mut files, mut kept) = (Vec::new(), Vec::new());
        for path in paths {
            let file = std::fs::read(&path)?;
            if !file.is_empty() {
                files.push(file);
                kept.push(path);
            }
        }
        let kinds = kinds(dir, &kept);
        Ok(Corpus { files, kinds })
    }

    /// The kind of a file: files of one kind are alike, and training balances between kinds.
    pub fn kind(&self, file: u32) -> usize {
        self.kinds[file as usize]
    }

    /// The bytes of a piece.
    pub fn bytes(&self, piece: Piece) -> &[u8] {
        &self.files[piece.file as usize][piece.start as usize..][..piece.len as usize]
    }

    /// All bytes.
    pub fn len(&self) -> usize {
        self.files.iter().map(Vec::len).sum()
    }

    /// True without a single byte.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Every file as one piece.
    pub fn files(&self) -> Vec<Piece> {
        let whole = |(file, bytes): (usize, &Vec<u8>)| Piece {
            file: file as u32,
            start: 0,
            len: bytes.len() as u32,
        };
        self.files.iter().enumerate().map(whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_up_to_a_length_and_never_across_files_or_gaps() {
        let piece = |file, start, len| Piece { file, start, len };
        let pieces = [
            piece(1, 0, 10),
            piece(0, 10, 10),
            piece(0, 0, 10),
            piece(0, 20, 10),
            piece(0, 40, 10),
        ];
        let joined: Vec<_> = (joined(&pieces, 20).iter())
            .map(|piece| (piece.file, piece.start, piece.len))
            .collect();
        assert_eq!(joined, [(0, 0, 20), (0, 20, 10), (0, 40, 10), (1, 0, 10)]);
    }
}
