//! Matrices in the layouts that products want.

use super::product::{PANEL, bf16};
use super::wide::vectorised;

vectorised! {
/// Pairs along the columns of a matrix whose rows have `columns` numbers; odd rows are filled up with 0.
pub fn rows_into(values: &[f32], columns: usize, out: &mut [u32]) {
    let pairs = columns.div_ceil(2);
    for (row, out) in values.chunks_exact(columns).zip(out.chunks_exact_mut(pairs)) {
        let (whole, rest) = row.as_chunks::<2>();
        for (&[low, high], out) in whole.iter().zip(out.iter_mut()) {
            *out = bf16(low) | bf16(high) << 16;
        }
        if let (&[last], Some(out)) = (rest, out.last_mut()) {
            *out = bf16(last);
        }
    }
}
}

/// As [`rows_into`], in new memory.
pub fn rows(values: &[f32], columns: usize) -> Vec<u32> {
    let mut out = vec![0; values.len() / columns * columns.div_ceil(2)];
    rows_into(values, columns, &mut out);
    out
}

vectorised! {
/// Panels with pairs along the rows, of the columns in `width` pairs from pair `first` on of rows that have `stride`
/// pairs along the columns; an odd last row is paired with 0.
pub fn interleave_into(rows: &[u32], stride: usize, first: usize, width: usize, out: &mut Vec<u32>) {
    const HALF: usize = PANEL / 2;
    let depth = (rows.len() / stride).div_ceil(2);
    let panels = (2 * width).div_ceil(PANEL);
    out.clear();
    out.resize(panels * depth * PANEL, 0);
    let zeros = [0u32; HALF];
    for (pair, both) in rows.chunks(2 * stride).enumerate() {
        let (upper, lower) = both.split_at(stride);
        for panel in 0..panels {
            let from = panel * HALF;
            let len = HALF.min(width - from);
            let out = &mut out[(panel * depth + pair) * PANEL..][..2 * len];
            let upper = &upper[first + from..][..len];
            let lower = match lower.is_empty() {
                true => &zeros[..len],
                false => &lower[first + from..][..len],
            };
            for ((out, &upper), &lower) in out.as_chunks_mut::<2>().0.iter_mut().zip(upper).zip(lower) {
                *out = [upper & 0xffff | lower << 16, upper >> 16 | lower & 0xffff_0000];
            }
        }
    }
}
}

/// As [`interleave_into`] with all columns, in new memory.
pub fn interleave(rows: &[u32], stride: usize) -> Vec<u32> {
    let mut out = Vec::new();
    interleave_into(rows, stride, 0, stride, &mut out);
    out
}

vectorised! {
/// Panels of the transposed matrix: its columns are the rows given, of which `width` pairs from `first` on take part.
pub fn transpose_into(rows: &[u32], stride: usize, first: usize, width: usize, out: &mut Vec<u32>) {
    let count = rows.len() / stride;
    out.clear();
    out.resize(count.div_ceil(PANEL) * width * PANEL, 0);
    for (index, row) in rows.chunks_exact(stride).enumerate() {
        let out = &mut out[index / PANEL * width * PANEL + index % PANEL..];
        for (out, &pair) in out.iter_mut().step_by(PANEL).zip(&row[first..first + width]) {
            *out = pair;
        }
    }
}
}

/// As [`transpose_into`] with whole rows, in new memory.
pub fn transpose(rows: &[u32], stride: usize) -> Vec<u32> {
    let mut out = Vec::new();
    transpose_into(rows, stride, 0, stride, &mut out);
    out
}
