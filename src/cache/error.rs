use crate::codec::CodecError;
use crate::store::{BlockId, StoreError};
use std::sync::Arc;
use thiserror::Error;

/// Why decoded bytes of a block cannot be had. Shared by all who wait for the same decoding.
#[derive(Debug, Clone, Error)]
pub enum CacheError {
    #[error("{error}")]
    Store {
        block: BlockId,
        error: Arc<StoreError>,
    },
    #[error("{error}")]
    Codec {
        block: BlockId,
        error: Arc<CodecError>,
    },
    #[error("damaged block: {why}")]
    Damaged { block: BlockId, why: String },
    /// Nobody waited any more when decoding was given up; asking again starts afresh.
    #[error("decoding was given up")]
    Abandoned { block: BlockId },
    #[error("the cache is shut down")]
    Stopped { block: BlockId },
}

impl CacheError {
    /// The block that could not be decoded.
    pub fn block(&self) -> BlockId {
        match self {
            CacheError::Store { block, .. }
            | CacheError::Codec { block, .. }
            | CacheError::Damaged { block, .. }
            | CacheError::Abandoned { block }
            | CacheError::Stopped { block } => *block,
        }
    }

    pub(super) fn store(block: BlockId, error: StoreError) -> CacheError {
        CacheError::Store {
            block,
            error: Arc::new(error),
        }
    }

    pub(super) fn codec(block: BlockId, error: CodecError) -> CacheError {
        CacheError::Codec {
            block,
            error: Arc::new(error),
        }
    }
}
