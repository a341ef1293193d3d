//! Entry point for fuzzing the decoders of the volume's keys and values. See [`crate::fuzzing`].

use super::attr::Attr;
use super::counters::Totals;
use super::keys;
use super::namespace::Dirent;

/// Keys and values of every kind: the first byte says how long the key is.
pub(crate) fn keys_and_values(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else {
        return;
    };
    let (key, value) = rest.split_at(rest.len().min(usize::from(len)));
    let _ = (keys::ino_of(key), keys::offset_of(key));
    if let Ok(extent) = keys::decode_extent(key, value) {
        assert!(extent.len > 0 && extent.end() > extent.offset);
        let key = keys::extent(1, extent.offset);
        let again = keys::decode_extent(&key, &keys::encode_extent(&extent));
        assert_eq!(again.expect("an extent that was written"), extent);
    }
    if let Ok(attr) = Attr::decode(value) {
        let again = Attr::decode(&attr.encode(attr.size));
        assert_eq!(again.expect("an inode that was written"), attr);
    }
    if let Ok(entry) = Dirent::decode(value) {
        let again = Dirent::decode(&entry.encode()).expect("a name that was written");
        assert_eq!((again.ino, again.kind), (entry.ino, entry.kind));
    }
    if let Ok(totals) = Totals::decode(value) {
        let again = Totals::decode(&totals.encode());
        assert_eq!(again.expect("totals that were written"), totals);
    }
    super::scrub::fuzz(value);
}

/// Bytes that the decoders accept, to start from.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let attr = Attr::new(super::FileKind::Regular, 0o644, 1000, 1000, super::ROOT);
    let extent = crate::settle::Extent {
        offset: 4096,
        len: 100,
        block: 9,
        skip: 5,
        staged: true,
    };
    let dirent = Dirent {
        ino: 300,
        kind: super::FileKind::Directory,
    };
    let with = |key: Vec<u8>, value: Vec<u8>| [&[key.len() as u8][..], &key, &value].concat();
    vec![
        with(keys::inode(7), attr.encode(1 << 40)),
        with(keys::extent(7, 4096), keys::encode_extent(&extent)),
        with(keys::dirent(1, b"name"), dirent.encode()),
        with(keys::META_COUNTERS.to_vec(), Totals::default().encode()),
        with(keys::xattr(7, b"user.a", 0), b"value".to_vec()),
    ]
}
