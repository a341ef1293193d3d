//! The kernels that are measured: what `kernels` takes the time of, `instructions` counts.

mod codec;
mod model;
mod network;
mod store;

use s2sfs::benching::mixed;

/// What one run of a kernel gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    Bytes(u64),
    Elements(u64),
}

/// One run.
pub type Run = Box<dyn FnMut() -> u64>;

/// A part of the program in one of its forms.
pub struct Part {
    pub group: &'static str,
    pub name: String,
    pub amount: Amount,
    /// Makes everything ready, which is not measured.
    pub prepare: Box<dyn Fn() -> Run>,
}

impl Part {
    pub fn new(
        group: &'static str,
        name: impl Into<String>,
        amount: Amount,
        prepare: impl Fn() -> Run + 'static,
    ) -> Part {
        Part {
            group,
            name: name.into(),
            amount,
            prepare: Box::new(prepare),
        }
    }
}

/// All parts.
pub fn all() -> Vec<Part> {
    let groups = [
        model::parts(),
        codec::parts(),
        store::parts(),
        network::parts(),
    ];
    groups.into_iter().flatten().collect()
}

/// `len` bytes of text that nothing but this function decides: sentences of a licence, word by word what has once
/// followed the word before.
pub fn text(len: usize) -> Vec<u8> {
    const SOURCE: &str = include_str!("../../LICENSE-APACHE");
    let words: Vec<&str> = SOURCE.split_whitespace().collect();
    let mut out = Vec::with_capacity(len + 32);
    let (mut at, mut seed) = (0, 1);
    while out.len() < len {
        out.extend_from_slice(words[at].as_bytes());
        out.push(if out.len() % 72 < 8 { b'\n' } else { b' ' });
        seed = mixed(seed);
        let same: Vec<usize> = (0..words.len() - 1)
            .filter(|&other| words[other] == words[at])
            .collect();
        at = match same.is_empty() {
            true => 0,
            false => same[seed as usize % same.len()] + 1,
        };
    }
    out.truncate(len);
    out
}

/// Bytes that cannot be compressed.
pub fn noise(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).flat_map(|at| mixed(at).to_le_bytes());
    words.take(len).collect()
}
