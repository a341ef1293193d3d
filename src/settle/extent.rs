use crate::store::BlockId;

/// Stands for the block of an extent whose data was lost: no block has this number.
pub const LOST: BlockId = 0;

/// A contiguous piece of a file that a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u32,
    pub block: BlockId,
    /// Where the piece begins in the block's decoded bytes.
    pub skip: u32,
    /// The block is staged: it awaits settling.
    pub staged: bool,
}

impl Extent {
    /// The data of this range is lost for good. It cannot be read until it is overwritten.
    pub fn is_lost(&self) -> bool {
        self.block == LOST
    }

    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.len))
    }

    /// The part of this extent that lies in `from..to`; the caller made sure that there is one.
    pub fn slice(&self, from: u64, to: u64) -> Extent {
        let from = from.max(self.offset);
        let to = to.min(self.end());
        Extent {
            offset: from,
            len: (to - from) as u32,
            skip: self.skip + (from - self.offset) as u32,
            ..*self
        }
    }
}
