//! Table experts: trained logits of hashed contexts, frozen, shared by all groups.
//!
//! A context and the nibble to be predicted name a *line* of 64 bytes; one of its four buckets holds
//! the context if its check byte matches. A bucket is the check byte and the 15 logits of the
//! nibble's binary decisions, one byte each, indexed by the decision's node 1..=15.

use memmap2::MmapMut;

use super::contexts::CONTEXTS;

/// Bytes of a bucket: a check byte and 15 slots.
pub const BUCKET: usize = 16;
/// Buckets of a line, which is one cache line.
pub const WAYS: usize = 4;

/// The buckets of one cache line.
pub type Line = [[u8; BUCKET]; WAYS];

/// The check byte of a hash: never 0, which marks an empty bucket.
#[inline(always)]
pub fn check_of(hash: u64) -> u8 {
    ((hash & 0xff) as u8).max(1)
}

/// The line of a hash in a table of `lines` lines.
#[inline(always)]
pub fn line_of(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// Finds the first bucket of a line with a check byte: whether there is one, and its way, or 0. Without branches, because
/// what is found cannot be foreseen. `SIMD` only where the processor has AVX2; what comes of it is the same.
#[inline(always)]
pub(super) fn way_of<const SIMD: bool>(line: &Line, check: u8) -> (bool, usize) {
    #[cfg(target_arch = "x86_64")]
    if SIMD {
        // SAFETY: `SIMD` is only set where the processor has AVX2.
        return unsafe { way_avx2(line, check) };
    }
    let same = |way: usize| u32::from(line[way][0] == check) << way;
    let mask = same(0) | same(1) | same(2) | same(3);
    (mask != 0, mask.trailing_zeros() as usize % WAYS)
}

/// [`way_of`] with all bytes of the line compared at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn way_avx2(line: &Line, check: u8) -> (bool, usize) {
    use std::arch::x86_64::{
        __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_set1_epi8,
    };
    let check = _mm256_set1_epi8(check as i8);
    let start: *const __m256i = line.as_ptr().cast();
    // SAFETY: the line has as many bytes as two registers; any alignment will do.
    let (low, high) = unsafe { (_mm256_loadu_si256(start), _mm256_loadu_si256(start.add(1))) };
    let low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(low, check)) as u32;
    let high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(high, check)) as u32;
    // a bit for each byte, of which the first of each bucket counts
    let mask = (u64::from(high) << 32 | u64::from(low)) & 0x0001_0001_0001_0001;
    (mask != 0, mask.trailing_zeros() as usize / BUCKET % WAYS)
}

/// The bucket of a way, or zeros if it was not found.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn bucket_avx2(line: &Line, (found, way): (bool, usize)) -> [u8; BUCKET] {
    use std::arch::x86_64::{__m128i, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi8};
    let all = _mm_set1_epi8(-i8::from(found));
    // SAFETY: a bucket has as many bytes as a register; any alignment will do.
    let bucket = unsafe { _mm_loadu_si128(line[way % WAYS].as_ptr().cast()) };
    // SAFETY: both are 16 plain bytes.
    unsafe { std::mem::transmute::<__m128i, [u8; BUCKET]>(_mm_and_si128(bucket, all)) }
}

/// Lines in memory, each within one cache line.
#[derive(Debug)]
enum Lines {
    /// In huge pages, where the system has some: a look-up touches lines all over the tables, and finding its small
    /// page takes about as long as fetching the line.
    Mapped(MmapMut),
    /// Where there is nothing to map, or mapping was refused; they may lie across cache lines.
    Plain(Vec<Line>),
}

impl Lines {
    fn new(count: usize) -> Lines {
        match MmapMut::map_anon(count * size_of::<Line>()) {
            Ok(map) => {
                // advice: it may be ignored
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                Lines::Mapped(map)
            }
            Err(_) => Lines::Plain(vec![[[0; BUCKET]; WAYS]; count]),
        }
    }

    #[inline(always)]
    fn get(&self) -> &[Line] {
        match self {
            Lines::Mapped(map) => bytemuck::cast_slice(map),
            Lines::Plain(lines) => lines,
        }
    }

    fn get_mut(&mut self) -> &mut [Line] {
        match self {
            Lines::Mapped(map) => bytemuck::cast_slice_mut(map),
            Lines::Plain(lines) => lines,
        }
    }
}

/// First line and number of lines of each context's table.
type Parts = [(usize, usize); CONTEXTS];

/// The tables of all contexts.
#[derive(Debug)]
pub struct Tables {
    lines: Lines,
    parts: Parts,
}

impl Default for Tables {
    fn default() -> Tables {
        Tables::with_lines(&[0; CONTEXTS])
    }
}

impl Tables {
    /// Empty tables with this many lines for each context (0 leaves a context out).
    pub fn with_lines(counts: &[usize; CONTEXTS]) -> Tables {
        let mut start = 0;
        let parts = counts.map(|count| {
            let part = (start, count);
            start += count;
            part
        });
        Tables {
            lines: Lines::new(start),
            parts,
        }
    }

    /// All lines, table after table.
    pub fn lines(&self) -> &[Line] {
        self.lines.get()
    }

    /// All lines, table after table.
    pub fn lines_mut(&mut self) -> &mut [Line] {
        self.lines.get_mut()
    }

    /// Number of lines of each context's table.
    pub fn line_counts(&self) -> [usize; CONTEXTS] {
        self.parts.map(|(_, count)| count)
    }

    /// Index of the line that may hold `hash` in the table of `context`; None without such a table.
    pub fn line_index(&self, context: usize, hash: u64) -> Option<usize> {
        self.view().line_index(context, hash)
    }

    /// For looking things up.
    #[inline(always)]
    pub fn view(&self) -> View<'_> {
        View {
            lines: self.lines.get(),
            parts: &self.parts,
        }
    }
}

/// Tables that are looked up: where they lie has been found out.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    lines: &'a [Line],
    parts: &'a Parts,
}

impl<'a> View<'a> {
    #[inline(always)]
    fn line_index(self, context: usize, hash: u64) -> Option<usize> {
        let (start, count) = self.parts[context];
        (count > 0).then(|| start + line_of(hash, count))
    }

    /// The bucket of a context, and whether it was trained: if not it is empty. `SIMD` as for [`way_of`].
    #[inline(always)]
    pub(super) fn find<const SIMD: bool>(self, context: usize, hash: u64) -> (bool, [u8; BUCKET]) {
        let Some(index) = self.line_index(context, hash) else {
            return (false, [0; BUCKET]);
        };
        let line = &self.lines[index];
        let (found, way) = way_of::<SIMD>(line, check_of(hash));
        #[cfg(target_arch = "x86_64")]
        if SIMD {
            // SAFETY: `SIMD` is only set where the processor has AVX2.
            return (found, unsafe { bucket_avx2(line, (found, way)) });
        }
        let bucket = if found { line[way] } else { [0; BUCKET] };
        (found, bucket)
    }

    /// Asks the processor for the line of a hash before it is needed.
    #[inline(always)]
    pub fn prefetch(self, context: usize, hash: u64) {
        if let Some(index) = self.line_index(context, hash) {
            prefetch(&self.lines[index]);
        }
    }
}

/// A hint to load a cache line; does nothing where there is no such instruction.
#[inline(always)]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect that a program can see, for any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(place).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::predictor::has_avx2;

    #[test]
    fn the_first_bucket_of_equal_checks_is_found_and_nothing_else() {
        let mut line = [[7; BUCKET]; WAYS];
        for code in 0..4u32.pow(WAYS as u32) {
            for (way, bucket) in line.iter_mut().enumerate() {
                bucket[0] = (code >> (2 * way) & 3) as u8;
            }
            for check in [1, 2, 3, 7] {
                let expected = line.iter().position(|bucket| bucket[0] == check);
                let expected = (expected.is_some(), expected.unwrap_or(0));
                assert_eq!(way_of::<false>(&line, check), expected);
                if has_avx2() {
                    assert_eq!(way_of::<true>(&line, check), expected);
                }
            }
        }
    }

    #[test]
    fn a_context_that_was_not_trained_is_empty() {
        let mut tables = Tables::with_lines(&std::array::from_fn(|context| context % 2));
        let hash = 77;
        tables.lines_mut()[0][2] = [9; BUCKET];
        tables.lines_mut()[0][2][0] = check_of(hash);
        let view = tables.view();
        for (context, found) in [(0, false), (1, true), (3, false)] {
            let (is, bucket) = view.find::<false>(context, hash);
            assert_eq!((is, bucket[1]), (found, if found { 9 } else { 0 }));
            if has_avx2() {
                assert_eq!(view.find::<true>(context, hash), (is, bucket));
            }
        }
    }
}
