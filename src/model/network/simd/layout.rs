//! How numbers lie in memory for the kernels: everything in blocks of [`LANES`] outputs and groups of
//! [`GROUP`] inputs, padded with zeros.

use super::super::weights::Linear;

/// Outputs of a block: what one or a few vector registers hold as 32-bit sums.
pub(super) const LANES: usize = 16;
/// Inputs whose products are added up in one step.
pub(super) const GROUP: usize = 4;

/// Weights that meet one [`Quad`] of inputs: [`GROUP`] for each of [`LANES`] outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Group(pub(super) [[i8; GROUP]; LANES]);

/// Inputs that are multiplied together.
pub(super) type Quad = [i8; GROUP];

/// A number for each output of a block.
pub(super) type Lanes = [i32; LANES];

/// The least multiple of [`LANES`] that is not below `width`.
pub(super) const fn padded(width: usize) -> usize {
    width.div_ceil(LANES) * LANES
}

/// Rows of activations within +-127, padded with zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Activations {
    quads: Vec<Quad>,
    /// Quads of a row.
    stride: usize,
}

impl Activations {
    /// Makes room for rows of some width; the contents are whatever was there.
    pub(super) fn shape(&mut self, rows: usize, width: usize) {
        self.stride = padded(width) / GROUP;
        self.quads.resize(rows * self.stride, [0; GROUP]);
    }

    /// Takes over rows without padding.
    pub(super) fn copy(&mut self, rows: &[i8], width: usize) {
        self.shape(rows.len() / width.max(1), width);
        for (row, values) in rows.chunks_exact(width.max(1)).enumerate() {
            let (taken, rest) = self.row_mut(row).split_at_mut(width);
            taken.copy_from_slice(values);
            rest.fill(0);
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.quads.len() / self.stride.max(1)
    }

    pub(super) fn row(&self, row: usize) -> &[Quad] {
        &self.quads[row * self.stride..(row + 1) * self.stride]
    }

    /// The numbers of a row, padding included.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [i8] {
        self.quads[row * self.stride..(row + 1) * self.stride].as_flattened_mut()
    }

    /// Moves row `from` to `to`.
    pub(super) fn move_row(&mut self, from: usize, to: usize) {
        let row = from * self.stride..(from + 1) * self.stride;
        self.quads.copy_within(row, to * self.stride);
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.quads.truncate(rows * self.stride);
    }

    /// The first `width` numbers of a row.
    pub(super) fn numbers(&self, row: usize, width: usize) -> &[i8] {
        &self.row(row).as_flattened()[..width]
    }
}

/// Where the numbers of a dimension lie when it is divided into parts, each padded on its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) count: usize,
    pub(super) width: usize,
}

impl Parts {
    pub(super) fn one(width: usize) -> Parts {
        Parts { count: 1, width }
    }

    fn all(self) -> usize {
        self.count * self.width
    }

    pub(super) fn padded(self) -> usize {
        self.count * padded(self.width)
    }

    fn place(self, index: usize) -> usize {
        index / self.width * padded(self.width) + index % self.width
    }
}

/// A [`Linear`] for the kernels.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    /// Block by block, groups of inputs in order.
    groups: Vec<Group>,
    /// Groups of a block.
    depth: usize,
    scales: Vec<Lanes>,
    /// Outputs, padding included.
    pub(super) outputs: usize,
}

impl Packed {
    pub(super) fn new(linear: &Linear, outputs: Parts, inputs: Parts) -> Packed {
        let depth = inputs.padded() / GROUP;
        let blocks = outputs.padded() / LANES;
        let mut packed = Packed {
            groups: vec![Group([[0; GROUP]; LANES]); blocks * depth],
            depth,
            scales: vec![[0; LANES]; blocks],
            outputs: outputs.padded(),
        };
        let columns = inputs.all();
        for (row, weights) in linear.weight.chunks_exact(columns).enumerate() {
            let place = outputs.place(row);
            let (block, lane) = (place / LANES, place % LANES);
            packed.scales[block][lane] = linear.scale[row];
            for (column, &weight) in weights.iter().enumerate() {
                let at = inputs.place(column);
                packed.groups[block * depth + at / GROUP].0[lane][at % GROUP] = weight;
            }
        }
        packed
    }

    /// The weights of [`LANES`] outputs.
    pub(super) fn block(&self, block: usize) -> &[Group] {
        &self.groups[block * self.depth..(block + 1) * self.depth]
    }

    pub(super) fn scale(&self, block: usize) -> &Lanes {
        &self.scales[block]
    }
}

/// Keys and values of the positions that a stream remembers, by heads.
///
/// The keys are a matrix whose outputs are positions: a product with a query gives scores. The values are
/// a matrix whose inputs are positions: a product with weights gives their weighted sum.
#[derive(Debug, Clone)]
pub(super) struct KeyValues {
    /// heads x blocks of positions x groups of dimensions.
    keys: Vec<Group>,
    /// heads x blocks of dimensions x groups of positions.
    values: Vec<Group>,
    heads: Parts,
    /// Positions that there is room for, a multiple of [`LANES`].
    room: usize,
    /// Positions that are there.
    len: usize,
}

impl KeyValues {
    pub(super) fn new(heads: Parts, room: usize) -> KeyValues {
        let room = padded(room);
        let groups = heads.padded() / GROUP * (room / LANES);
        KeyValues {
            keys: vec![Group([[0; GROUP]; LANES]); groups],
            values: vec![Group([[0; GROUP]; LANES]); groups],
            heads,
            room,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a position, for which there is room.
    pub(super) fn push(&mut self, key: &[Quad], value: &[Quad]) {
        let (block, lane) = (self.len / LANES, self.len % LANES);
        let (group, part) = (self.len / GROUP, self.len % GROUP);
        let width = padded(self.heads.width);
        for head in 0..self.heads.count {
            let quads = head * width / GROUP..(head + 1) * width / GROUP;
            let row = head * self.room / LANES + block;
            let keys = &mut self.keys[row * width / GROUP..(row + 1) * width / GROUP];
            for (group, quad) in keys.iter_mut().zip(&key[quads.clone()]) {
                group.0[lane] = *quad;
            }
            for (index, lanes) in value[quads].as_flattened().chunks_exact(LANES).enumerate() {
                let row = head * width / LANES + index;
                let values = &mut self.values[row * self.room / GROUP + group];
                for (quad, &value) in values.0.iter_mut().zip(lanes) {
                    quad[part] = value;
                }
            }
        }
        self.len += 1;
    }

    /// Makes room for `count` positions by dropping whole blocks, if it must, in front of the last `keep`.
    pub(super) fn make_room(&mut self, count: usize, keep: usize) {
        if self.len + count <= self.room {
            return;
        }
        let drop = self.len.saturating_sub(keep) / LANES;
        let width = padded(self.heads.width);
        shift(
            &mut self.keys,
            self.room / LANES * (width / GROUP),
            drop * (width / GROUP),
        );
        shift(&mut self.values, self.room / GROUP, drop * (LANES / GROUP));
        self.len -= drop * LANES;
    }

    pub(super) fn head(&self, head: usize) -> Head<'_> {
        let width = padded(self.heads.width);
        let (keys, values) = (self.room / LANES, self.room / GROUP);
        let depth = width / GROUP;
        Head {
            keys: &self.keys[head * keys * depth..(head + 1) * keys * depth],
            values: &self.values
                [head * width / LANES * values..(head + 1) * width / LANES * values],
            depth,
            room: values,
        }
    }
}

/// Moves what lies behind the first `by` items of every part to the front of it.
fn shift<T: Copy>(items: &mut [T], part: usize, by: usize) {
    for part in items.chunks_exact_mut(part.max(1)) {
        part.copy_within(by.., 0);
    }
}

/// Keys and values of one head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    keys: &'a [Group],
    values: &'a [Group],
    /// Groups of dimensions.
    depth: usize,
    /// Groups of positions.
    room: usize,
}

impl<'a> Head<'a> {
    /// The keys of [`LANES`] positions.
    pub(super) fn keys(&self, block: usize) -> &'a [Group] {
        &self.keys[block * self.depth..(block + 1) * self.depth]
    }

    /// [`LANES`] dimensions of the values of some groups of positions.
    pub(super) fn values(&self, block: usize, positions: std::ops::Range<usize>) -> &'a [Group] {
        &self.values[block * self.room..(block + 1) * self.room][positions]
    }
}
