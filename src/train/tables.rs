//! Trains the table experts: which contexts are worth a bucket, then their logits by gradient.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::model::bytecode::{ByteCode, Spot};
use crate::model::contexts::{CONTEXTS, Contexts, NAMES, next_nibble};
use crate::model::predictor::ORDERS;
use crate::model::tables::{BUCKET, Line, Tables, WAYS, check_of, line_of, prefetch};

use super::Progress;
use super::corpus::{Corpus, Piece};

/// Fewest and most cells of a sketch, as powers of two; between them it grows with the corpus.
const SKETCH_BITS: std::ops::RangeInclusive<u32> = 16..=28;
/// Visits that wait for their cell to be loaded.
const DELAY: usize = 32;
/// Full buckets of a line of [`WAYS`], on average, in sixteenths.
const LOAD: usize = 48;

/// Counts, for every context of one kind, roughly how many files it occurs in (up to 255).
struct Sketch {
    counts: Vec<u8>,
}

fn cell(hash: u64, cells: usize) -> usize {
    (hash.wrapping_mul(0xA24B_AED4_963E_E407) >> (64 - cells.ilog2())) as usize
}

impl Sketch {
    /// Counts the contexts of one kind in all pieces. Pieces are shuffled, so one tag per cell, that of
    /// the file counted last, tells most repetitions within a file from new files.
    fn count(corpus: &Corpus, pieces: &[Piece], code: &ByteCode, context: usize) -> Sketch {
        let bytes: usize = pieces.iter().map(|piece| piece.len as usize).sum();
        let bits = bytes.max(1).ilog2() + 1;
        let cells = 1usize << bits.clamp(*SKETCH_BITS.start(), *SKETCH_BITS.end());
        let mut tagged = vec![[0u8; 2]; cells];
        let mut waiting = [(0usize, 0u8); DELAY];
        let mut at = 0;
        walk(corpus, pieces, code, context, |file, hash| {
            let index = cell(hash, cells);
            prefetch(&tagged[index]);
            let tag = ((file.wrapping_mul(0x9E37_79B1) >> 24) as u8).max(1);
            let (index, tag) = std::mem::replace(&mut waiting[at % DELAY], (index, tag));
            at += 1;
            let [count, last] = &mut tagged[index];
            if *last != tag {
                *last = tag;
                *count = count.saturating_add(1);
            }
        });
        Sketch {
            counts: tagged.into_iter().map(|[count, _]| count).collect(),
        }
    }

    fn get(&self, hash: u64) -> u8 {
        self.counts[cell(hash, self.counts.len())]
    }

    /// Number of contexts that occur in at least so many files, by that number.
    fn at_least(&self) -> [usize; 256] {
        let mut counts = [0usize; 256];
        for &count in &self.counts {
            counts[count as usize] += 1;
        }
        for files in (0..255).rev() {
            counts[files] += counts[files + 1];
        }
        counts
    }
}

/// Calls `visit` with the hash of one context for all nibbles of every byte of the pieces.
fn walk(
    corpus: &Corpus,
    pieces: &[Piece],
    code: &ByteCode,
    context: usize,
    mut visit: impl FnMut(u32, u64),
) {
    for &piece in pieces {
        let mut contexts = Contexts::default();
        for &byte in corpus.bytes(piece) {
            let mut hash = contexts.hashes()[context];
            visit(piece.file, hash);
            for nibble in code.nibbles(byte) {
                hash = next_nibble(hash, nibble);
                visit(piece.file, hash);
            }
            contexts.push(byte);
        }
    }
}

/// Calls `work` for every context on all cores; results come in the order of the contexts.
fn for_each_context<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, T)> = std::thread::scope(|scope| {
        let run = || {
            let claim = || Some(next.fetch_add(1, Relaxed)).filter(|&context| context < CONTEXTS);
            std::iter::from_fn(claim)
                .map(|context| (context, work(context)))
                .collect::<Vec<_>>()
        };
        let workers = std::thread::available_parallelism()
            .map_or(1, |n| n.get())
            .min(4);
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        handles
            .into_iter()
            .flat_map(|h| h.join().unwrap_or_default())
            .collect()
    });
    results.sort_by_key(|&(context, _)| context);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Gives every context of one kind in at least `files` files a bucket, while its line has room.
fn reserve_all(
    corpus: &Corpus,
    pieces: &[Piece],
    code: &ByteCode,
    context: usize,
    sketch: &Sketch,
    files: u8,
) -> Vec<Line> {
    let kept = sketch.at_least()[files as usize];
    let mut lines = vec![[[0; BUCKET]; WAYS]; (kept * 16 / LOAD).max(16)];
    walk(corpus, pieces, code, context, |_, hash| {
        if sketch.get(hash) >= files {
            let line = line_of(hash, lines.len());
            reserve(&mut lines[line], check_of(hash));
        }
    });
    lines
}

/// Makes sure that a context has a bucket, if its line is not full.
fn reserve(line: &mut Line, check: u8) {
    for bucket in line {
        if bucket[0] == 0 {
            bucket[0] = check;
        }
        if bucket[0] == check {
            return;
        }
    }
}

/// One table while it is trained: logit and squared-gradient sum of every slot.
pub struct Trainer {
    pub tables: Tables,
    code: ByteCode,
    slots: Vec<[[f32; BUCKET]; 2]>,
    /// Weights of the sum of logits, by hit class and bits so far.
    weights: Vec<[f32; CONTEXTS]>,
}

/// Rate of the logits (Adagrad) and of the weights, at the start; both decay to a tenth.
const LOGIT_RATE: f32 = 0.3;
const WEIGHT_RATE: f32 = 0.002;
/// Where Adagrad's sums of squared gradients start.
const FIRST_SQUARES: f32 = 0.1;

impl Trainer {
    /// Chooses the contexts that occur in the most files, up to a number of buckets for all.
    pub fn select(
        corpus: &Corpus,
        pieces: &[Piece],
        code: ByteCode,
        buckets: usize,
        progress: &Progress,
    ) -> Trainer {
        let sketches = for_each_context(|context| {
            progress.say(&format!("counting {}", NAMES[context]));
            Sketch::count(corpus, pieces, &code, context)
        });
        let at_least: Vec<[usize; 256]> = sketches.iter().map(Sketch::at_least).collect();
        let fits =
            |files: &usize| at_least.iter().map(|counts| counts[*files]).sum::<usize>() <= buckets;
        let files = (2..255).find(fits).unwrap_or(255) as u8;
        progress.say(&format!("contexts in at least {files} files get a bucket"));
        let parts = for_each_context(|context| {
            progress.say(&format!("choosing {}", NAMES[context]));
            reserve_all(corpus, pieces, &code, context, &sketches[context], files)
        });
        let mut tables = Tables::with_lines(&std::array::from_fn(|context| parts[context].len()));
        for (line, chosen) in tables
            .lines_mut()
            .iter_mut()
            .zip(parts.into_iter().flatten())
        {
            *line = chosen;
        }
        let slots = vec![[[0.0; BUCKET], [FIRST_SQUARES; BUCKET]]; tables.lines().len() * WAYS];
        Trainer {
            tables,
            code,
            slots,
            weights: vec![[1.0; CONTEXTS]; 3 * 256],
        }
    }

    fn bucket(&self, context: usize, hash: u64) -> Option<usize> {
        let line = self.tables.line_index(context, hash)?;
        let check = check_of(hash);
        let way = self.tables.lines()[line]
            .iter()
            .position(|b| b[0] == check)?;
        Some(line * WAYS + way)
    }

    /// One pass over the pieces; returns the mean cost in bits per byte.
    pub fn pass(&mut self, corpus: &Corpus, pieces: &[Piece], progress: &Progress) -> f64 {
        let total: usize = pieces.iter().map(|p| p.len as usize).sum();
        let (mut done, mut cost) = (0usize, 0f64);
        for (index, &piece) in pieces.iter().enumerate() {
            let decay = 1.0 - 0.9 * done as f32 / total as f32;
            cost += self.piece(corpus.bytes(piece), LOGIT_RATE * decay, WEIGHT_RATE * decay);
            done += piece.len as usize;
            if index % 64 == 0 {
                progress.step("training tables", done, total, cost / done as f64);
            }
        }
        cost / total.max(1) as f64
    }

    fn prefetch(&self, hashes: &[u64; CONTEXTS]) {
        let tables = self.tables.view();
        for (context, &hash) in hashes.iter().enumerate() {
            tables.prefetch(context, hash);
        }
    }

    fn piece(&mut self, bytes: &[u8], logit_rate: f32, weight_rate: f32) -> f64 {
        let mut contexts = Contexts::default();
        let mut cost = 0f64;
        for &byte in bytes {
            let word = self.code.word(byte);
            let mut hashes = contexts.hashes();
            contexts.push(byte);
            let following = contexts.hashes();
            let mut nibbles = self.code.nibbles(byte);
            let mut spot = Some(Spot::START);
            while let Some(here) = spot {
                let next = nibbles
                    .next()
                    .map(|nibble| hashes.map(|hash| next_nibble(hash, nibble)));
                self.prefetch(next.as_ref().unwrap_or(&following));
                let (bits, end) = self.nibble(&hashes, word, here, (logit_rate, weight_rate));
                (cost, spot) = (cost + bits, end.err());
                hashes = next.unwrap_or(following);
            }
        }
        cost
    }

    fn nibble(
        &mut self,
        hashes: &[u64; CONTEXTS],
        word: u16,
        mut spot: Spot,
        (logit_rate, weight_rate): (f32, f32),
    ) -> (f64, Result<u8, Spot>) {
        let mut hits = [(0usize, 0usize); CONTEXTS];
        let mut count = 0;
        let mut longest = 0;
        for (context, &hash) in hashes.iter().enumerate() {
            if let Some(bucket) = self.bucket(context, hash) {
                prefetch(&self.slots[bucket][0]);
                prefetch(&self.slots[bucket][1]);
                hits[count] = (context, bucket);
                count += 1;
                if context < 7 {
                    longest = context
                }
            }
        }
        let class = if longest >= 5 {
            2
        } else if longest >= 3 {
            1
        } else {
            0
        };
        let mut cost = 0f64;
        loop {
            let (bit, node) = (spot.bit_of(word), usize::from(spot.slot));
            let weights = &mut self.weights[class * 256 + usize::from(spot.node)];
            let mut sum = 0f32;
            for &(context, bucket) in &hits[..count] {
                sum += weights[context] * self.slots[bucket][0][node];
            }
            let p = (1.0 / (1.0 + (-sum).exp())).clamp(0.0001, 0.9999);
            cost -= f64::from(if bit == 1 { p } else { 1.0 - p }.log2());
            let error = bit as f32 - p;
            for &(context, bucket) in &hits[..count] {
                let [logits, squares] = &mut self.slots[bucket];
                let gradient = error * weights[context];
                squares[node] += gradient * gradient;
                let logit = logits[node];
                logits[node] += logit_rate * gradient / squares[node].sqrt();
                weights[context] += weight_rate * error * logit.clamp(-2.0, 2.0);
            }
            spot = match self.code.step(spot, bit) {
                Err(next) if !next.begins_bucket() => next,
                end => return (cost, end),
            };
        }
    }

    /// Quantises all logits; `levels` are ascending values in nats, one for each byte value.
    pub fn finish(mut self, levels: &[f32; 256]) -> Tables {
        let counts = self.tables.line_counts();
        let mut lines = self.tables.lines_mut().iter_mut();
        let mut slots = self.slots.iter();
        for (context, count) in counts.into_iter().enumerate() {
            let buckets = lines.by_ref().take(count).flatten();
            for (bucket, [logits, squares]) in buckets.zip(slots.by_ref()) {
                quantise(bucket, logits, squares, levels);
                // that a plain order is known selects weights, even if nothing was learned
                if context >= ORDERS && bucket[1..].iter().all(|&slot| slot == 0) {
                    bucket[0] = 0;
                }
            }
        }
        self.tables
    }
}

/// Fills a bucket's slots. A logit that is nearly nothing is left out where no other slot needs it as its
/// parent: both mean the same, and "never trained" takes less room in the file.
fn quantise(
    bucket: &mut [u8; BUCKET],
    logits: &[f32; BUCKET],
    squares: &[f32; BUCKET],
    levels: &[f32; 256],
) {
    for node in 1..BUCKET {
        // a bucket's check byte stands in for the parent of node 1
        let trained = squares[node] > FIRST_SQUARES && bucket[node / 2] != 0;
        bucket[node] = if trained {
            nearest(levels, logits[node])
        } else {
            0
        };
    }
    for node in (1..BUCKET).rev() {
        let is_leaf = node >= BUCKET / 2 || (bucket[2 * node] == 0 && bucket[2 * node + 1] == 0);
        if is_leaf && levels[bucket[node] as usize] == 0.0 {
            bucket[node] = 0;
        }
    }
}

/// The code other than 0 ("never trained") whose level is nearest.
fn nearest(levels: &[f32; 256], value: f32) -> u8 {
    let above = levels[1..].partition_point(|&level| level < value) + 1;
    match above {
        1 => 1,
        256 => 255,
        i if value - levels[i - 1] < levels[i] - value => (i - 1) as u8,
        i => i as u8,
    }
}
