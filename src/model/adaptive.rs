//! Which contexts have bit histories of a group.
//!
//! Where a group hardly repeats itself, trained logits say most of what there is to say, and half of the histories
//! is as good as all; they take about half of the time that a decision takes.

use super::contexts::CONTEXTS;

/// The contexts of a model that have bit histories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Histories {
    #[default]
    All,
    /// Those of [`LEAN`].
    Lean,
}

const ALL: [usize; CONTEXTS] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
/// Orders 2, 3 and 4, the word, three words, the byte above, and the shape.
// 14 logits, 7 histories, two matches and a constant are three registers of inputs
const LEAN: [usize; 7] = [1, 2, 3, 7, 9, 11, 12];

/// The contexts with histories, in their order.
#[inline(always)]
pub(super) const fn contexts<const IS_LEAN: bool>() -> &'static [usize] {
    if IS_LEAN { &LEAN } else { &ALL }
}

impl Histories {
    /// The contexts, in their order.
    pub const fn contexts(self) -> &'static [usize] {
        match self {
            Histories::All => contexts::<false>(),
            Histories::Lean => contexts::<true>(),
        }
    }

    /// A bit for each context, the first one lowest: how model files name them.
    pub const fn mask(self) -> u16 {
        let contexts = self.contexts();
        let (mut mask, mut at) = (0, 0);
        while at < contexts.len() {
            mask |= 1 << contexts[at];
            at += 1;
        }
        mask
    }

    /// The inverse of [`Histories::mask`]; None for contexts that no program has histories of.
    pub fn from_mask(mask: u16) -> Option<Histories> {
        let known = [Histories::All, Histories::Lean];
        known.into_iter().find(|known| known.mask() == mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_name_known_histories_only() {
        assert_eq!(Histories::All.mask(), 0x3fff);
        for histories in [Histories::All, Histories::Lean] {
            assert_eq!(Histories::from_mask(histories.mask()), Some(histories));
        }
        assert_eq!(Histories::from_mask(0x3ffe), None);
    }
}
