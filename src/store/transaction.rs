//! From a [`Transaction`] with its counted references to physical changes of the index, and to the
//! body of a journal record and back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::entry::{self, BlockEntry};
use super::index::Change;
use super::varint::{self, Reader};
use super::{BlockId, Op, Result, StoreError, Transaction};
use crate::fault;

/// What a transaction does to one block.
struct Touched {
    entry: BlockEntry,
    /// Appended but not referenced by any earlier transaction.
    pending: bool,
    refs: i64,
    live: i64,
}

/// A transaction in terms of the index.
#[derive(Default)]
pub(crate) struct Resolved {
    pub changes: Vec<Change>,
    /// Pending blocks that are now part of the index.
    pub adopted: Vec<BlockId>,
    /// Blocks that nothing refers to any more.
    pub dead: Vec<(BlockId, BlockEntry)>,
}

/// Where a block is known, and whether it is still pending.
type Lookup<'a> = &'a dyn Fn(BlockId) -> Result<Option<(BlockEntry, bool)>>;

/// Works out the final state of every block that `txn` refers to. Anchors have no anchors, so one
/// pass over the blocks that have one and one over those that have none settles all counts.
pub(crate) fn resolve(txn: Transaction, lookup: Lookup) -> Result<Resolved> {
    let mut resolved = Resolved::default();
    let mut deltas: BTreeMap<BlockId, (i64, i64)> = BTreeMap::new();
    for op in txn.ops {
        match op {
            Op::Put { key, value } => resolved.changes.push(Change {
                key: own_key(key)?,
                value: Some(value),
            }),
            Op::Delete { key } => resolved.changes.push(Change {
                key: own_key(key)?,
                value: None,
            }),
            Op::Ref { block, refs, live } => {
                let delta = deltas.entry(block).or_default();
                delta.0 += i64::from(refs);
                delta.1 += live;
            }
        }
    }
    let mut anchored = Vec::new();
    let mut plain: BTreeMap<BlockId, Touched> = BTreeMap::new();
    for (block, (refs, live)) in deltas {
        let (entry, pending) = lookup(block)?.ok_or(StoreError::NoSuchBlock(block))?;
        let touched = Touched {
            entry,
            pending,
            refs,
            live,
        };
        if entry.info.anchor.is_some() {
            anchored.push((block, touched));
        } else {
            plain.insert(block, touched);
        }
    }
    for (block, touched) in anchored {
        let anchor = touched.entry.info.anchor.unwrap_or(0);
        let change = settle(block, touched, &mut resolved)?;
        if change == 0 || fault::planted("anchor-not-referenced") {
            continue;
        }
        match plain.entry(anchor) {
            Slot::Occupied(mut known) => known.get_mut().refs += change,
            Slot::Vacant(slot) => {
                let (entry, pending) = lookup(anchor)?.ok_or(StoreError::NoSuchBlock(anchor))?;
                slot.insert(Touched {
                    entry,
                    pending,
                    refs: change,
                    live: 0,
                });
            }
        }
    }
    for (block, touched) in plain {
        settle(block, touched, &mut resolved)?;
    }
    Ok(resolved)
}

fn own_key(key: Vec<u8>) -> Result<Vec<u8>> {
    match key.first() {
        None | Some(&(0..=1 | entry::BLOCK_KEY | entry::STORE_KEY)) => Err(StoreError::Invalid(
            "a key that belongs to the store".into(),
        )),
        Some(_) => Ok(key),
    }
}

/// Records the final state of one block; returns what that does to the references of its anchor.
fn settle(block: BlockId, touched: Touched, resolved: &mut Resolved) -> Result<i64> {
    let Touched {
        mut entry,
        pending,
        refs,
        live,
    } = touched;
    let refs = i64::from(entry.info.refs) + refs;
    let Ok(refs) = u32::try_from(refs) else {
        return Err(StoreError::Invalid(format!(
            "block {block} would have {refs} references"
        )));
    };
    entry.info.refs = refs;
    entry.info.live = entry.info.live.checked_add_signed(live).unwrap_or_else(|| {
        log::warn!("block {block}: more bytes dropped than were shown");
        0
    });
    let key = entry::block_key(block);
    if refs == 0 {
        resolved.dead.push((block, entry));
        if !pending {
            resolved.changes.push(Change { key, value: None });
        }
        return Ok(if pending { 0 } else { -1 });
    }
    resolved.changes.push(Change {
        key,
        value: Some(entry.encode()),
    });
    if pending {
        resolved.adopted.push(block);
    }
    Ok(i64::from(pending))
}

/// Upper bound of the body's length for ordinary keys and values.
pub(crate) fn body_size(changes: &[Change]) -> usize {
    changes
        .iter()
        .map(|c| c.key.len() + c.value.as_ref().map_or(0, Vec::len) + 8)
        .sum::<usize>()
        + 10
}

/// The body of a transaction's record. `durable` is how much of the segment was durable when it was written.
pub(crate) fn encode_body(durable: u64, changes: &[Change]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body_size(changes));
    varint::put(&mut out, durable);
    for change in changes {
        varint::put(
            &mut out,
            (change.key.len() as u64) << 1 | u64::from(change.value.is_some()),
        );
        out.extend_from_slice(&change.key);
        if let Some(value) = &change.value {
            varint::put(&mut out, value.len() as u64);
            out.extend_from_slice(value);
        }
    }
    out
}

/// The durable length that a transaction's record states.
pub(crate) fn durable_of_body(body: &[u8]) -> Option<u64> {
    Reader::new(body).varint()
}

/// The changes in a transaction's record.
pub(crate) fn decode_body(body: &[u8]) -> Option<Vec<Change>> {
    let mut reader = Reader::new(body);
    reader.varint()?;
    let mut changes = Vec::new();
    while !reader.is_empty() {
        let head = reader.varint_usize()?;
        let key = reader.bytes(head >> 1)?.to_vec();
        let value = if head & 1 == 1 {
            let len = reader.varint_usize()?;
            Some(reader.bytes(len)?.to_vec())
        } else {
            None
        };
        changes.push(Change { key, value });
    }
    Some(changes)
}
