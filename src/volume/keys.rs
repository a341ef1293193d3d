//! Keys and values of the volume in the store's ordered map. docs/format.md, "Volume keys".
//!
//! Inode numbers and offsets in keys are big-endian, so that keys of one inode are neighbours in
//! offset order. Numbers in values are LEB128 varints.

use super::VolumeError;
use crate::settle::Extent;
use crate::store::Store;

/// Format version of the volume's keys and values, in `Mformat`.
pub const FORMAT: u64 = 1;
/// Longest piece of an extended attribute or symlink target in one value.
pub const PIECE: usize = 256;

pub const META_FORMAT: &[u8] = b"Mformat";
/// Inode numbers below this one may be in use.
pub const META_NEXT_INO: &[u8] = b"Mnext";
/// Longest extent that was ever configured: how far before an offset an extent may begin.
pub const META_MAX_EXTENT: &[u8] = b"Mextent";
/// Counters of a cleanly unmounted volume; absent while it is mounted for writing.
pub const META_COUNTERS: &[u8] = b"Mcounters";

/// Err if the volume was written in another version than this program reads.
pub fn check_format(found: u64) -> Result<(), VolumeError> {
    match found {
        FORMAT => Ok(()),
        0 => Err(damaged("volume", "format version 0")),
        _ => Err(VolumeError::NewerFormat {
            found,
            known: FORMAT,
        }),
    }
}

/// Err if a store says that its volume is of a newer version, however damaged it is otherwise.
pub fn refuse_newer(store: &Store) -> Result<(), VolumeError> {
    let value = store.get(META_FORMAT).ok().flatten();
    let found = value.and_then(|value| Fields::new("volume", &value).varint().ok());
    match found.map(check_format) {
        Some(Err(error @ VolumeError::NewerFormat { .. })) => Err(error),
        _ => Ok(()),
    }
}

fn key(tag: u8, ino: u64, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.push(tag);
    key.extend_from_slice(&ino.to_be_bytes());
    key.extend_from_slice(rest);
    key
}

pub fn inode(ino: u64) -> Vec<u8> {
    key(b'I', ino, b"")
}

pub fn dirent(parent: u64, name: &[u8]) -> Vec<u8> {
    key(b'D', parent, name)
}

pub fn extent(ino: u64, offset: u64) -> Vec<u8> {
    key(b'E', ino, &offset.to_be_bytes())
}

pub fn orphan(ino: u64) -> Vec<u8> {
    key(b'O', ino, b"")
}

/// A truncation that is under way: extents past the recorded size are still to be dropped.
pub fn cut(ino: u64) -> Vec<u8> {
    key(b'C', ino, b"")
}

/// A window that holds staged data.
pub fn pending(ino: u64, offset: u64) -> Vec<u8> {
    key(b'Q', ino, &offset.to_be_bytes())
}

pub fn symlink(ino: u64, part: u8) -> Vec<u8> {
    key(b'L', ino, &[part])
}

pub fn xattr(ino: u64, name: &[u8], part: u16) -> Vec<u8> {
    let mut rest = Vec::with_capacity(name.len() + 3);
    rest.extend_from_slice(name);
    rest.push(0);
    rest.extend_from_slice(&part.to_be_bytes());
    key(b'X', ino, &rest)
}

/// The half-open key range of all keys of one kind and inode.
pub fn range_of(tag: u8, ino: u64) -> (Vec<u8>, Vec<u8>) {
    let end = match ino.checked_add(1) {
        Some(next) => key(tag, next, b""),
        None => vec![tag + 1],
    };
    (key(tag, ino, b""), end)
}

/// The smallest key that is greater than `key`.
pub fn after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// The inode number in a key of any kind.
pub fn ino_of(key: &[u8]) -> Result<u64, VolumeError> {
    number_at(key, 1)
}

/// The offset in an extent or pending key.
pub fn offset_of(key: &[u8]) -> Result<u64, VolumeError> {
    number_at(key, 9)
}

fn number_at(key: &[u8], at: usize) -> Result<u64, VolumeError> {
    match key
        .get(at..at + 8)
        .and_then(|b| <[u8; 8]>::try_from(b).ok())
    {
        Some(bytes) => Ok(u64::from_be_bytes(bytes)),
        None => Err(damaged("key", "too short")),
    }
}

/// An error for metadata that does not parse.
pub fn damaged(what: &str, why: &str) -> VolumeError {
    VolumeError::Damaged {
        what: what.into(),
        why: why.into(),
    }
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps small negative numbers to small varints.
pub fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads varints from a value; running out is an error.
pub struct Fields<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes, what }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, VolumeError> {
        let mut value = 0u64;
        for (i, &byte) in self.bytes.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if i == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * i);
            if byte < 0x80 {
                self.bytes = &self.bytes[i + 1..];
                return Ok(value);
            }
        }
        Err(damaged(self.what, "bad varint"))
    }

    pub fn u32(&mut self) -> Result<u32, VolumeError> {
        u32::try_from(self.varint()?).map_err(|_| damaged(self.what, "number too large"))
    }

    pub fn finish(self) -> Result<(), VolumeError> {
        match self.bytes.is_empty() {
            true => Ok(()),
            false => Err(damaged(self.what, "trailing bytes")),
        }
    }
}

/// The stored form of an extent; its offset is in its key.
pub fn encode_extent(extent: &Extent) -> Vec<u8> {
    let mut out = Vec::with_capacity(12);
    put_varint(&mut out, u64::from(extent.len));
    put_varint(&mut out, extent.block << 1 | u64::from(extent.staged));
    if extent.skip != 0 {
        put_varint(&mut out, u64::from(extent.skip));
    }
    out
}

pub fn decode_extent(key: &[u8], value: &[u8]) -> Result<Extent, VolumeError> {
    let mut fields = Fields::new("extent", value);
    let offset = offset_of(key)?;
    let len = fields.u32()?;
    let block = fields.varint()?;
    let skip = if fields.is_empty() { 0 } else { fields.u32()? };
    fields.finish()?;
    if len == 0 || offset.checked_add(u64::from(len)).is_none() || skip.checked_add(len).is_none() {
        return Err(damaged("extent", "impossible length"));
    }
    Ok(Extent {
        offset,
        len,
        block: block >> 1,
        skip,
        staged: block & 1 == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn extents_survive_encoding(offset in 0..u64::MAX / 2, len in 1u32..1 << 20, block in 0..1u64 << 60,
                                    skip in 0u32..1 << 20, staged: bool) {
            let extent = Extent { offset, len, block, skip, staged };
            prop_assert_eq!(decode_extent(&super::extent(7, offset), &encode_extent(&extent)).unwrap(), extent);
        }

        #[test]
        fn any_bytes_decode_or_fail_but_never_panic(key: Vec<u8>, value: Vec<u8>) {
            let _ = decode_extent(&key, &value);
        }

        #[test]
        fn zigzag_is_its_own_inverse(value: i64) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
