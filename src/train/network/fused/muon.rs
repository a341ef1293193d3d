//! The updates of the optimisers on the processor.

use super::pack;
use super::product::{Output, Panels, Rows, product};
use super::rows;

/// A matrix, its rows one behind the other.
#[derive(Debug, Clone)]
struct Plain {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Plain {
    fn transposed(&self) -> Plain {
        let mut values = vec![0f32; self.values.len()];
        for (row, from) in self.values.chunks_exact(self.columns).enumerate() {
            for (to, &value) in values[row..].iter_mut().step_by(self.rows).zip(from) {
                *to = value;
            }
        }
        Plain {
            values,
            rows: self.columns,
            columns: self.rows,
        }
    }

    fn packed(&self) -> Vec<u32> {
        pack::rows(&self.values, self.columns)
    }

    /// left * right with packed rows on the left and panels on the right.
    fn product(left: &[u32], panels: &[u32], rows: usize, inner: usize, columns: usize) -> Plain {
        let pairs = inner.div_ceil(2);
        let mut values = vec![0f32; rows * columns];
        product(
            Rows::whole(left, pairs),
            Panels::whole(panels, pairs),
            Output::rows(&mut values, rows, columns),
        );
        Plain {
            values,
            rows,
            columns,
        }
    }
}

/// The orthogonal matrix nearest to one with rows of `columns` values, roughly: see `optimiser`.
pub fn orthogonal(
    values: &[f32],
    columns: usize,
    quintic: [f32; 3],
    iterations: usize,
) -> Vec<f32> {
    let length = values
        .iter()
        .map(|v| f64::from(*v) * f64::from(*v))
        .sum::<f64>()
        .sqrt();
    let scale = 1.0 / (length + 1e-7) as f32;
    let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
    let rows = values.len() / columns;
    let mut x = Plain {
        values,
        rows,
        columns,
    };
    let tall = rows > columns;
    if tall {
        x = x.transposed();
    }
    let (n, inner) = (x.rows, x.columns);
    for _ in 0..iterations {
        let packed = x.packed();
        let mut a = Plain::product(
            &packed,
            &pack::transpose(&packed, inner.div_ceil(2)),
            n,
            inner,
            n,
        );
        let gram = a.packed();
        let square = Plain::product(&gram, &pack::transpose(&gram, n.div_ceil(2)), n, n, n);
        rows::blend(&mut a.values, quintic[1], &square.values, quintic[2]);
        let moved = Plain::product(
            &a.packed(),
            &pack::interleave(&packed, inner.div_ceil(2)),
            n,
            n,
            inner,
        );
        rows::blend(&mut x.values, quintic[0], &moved.values, 1.0);
    }
    if tall {
        x.transposed().values
    } else {
        x.values
    }
}
