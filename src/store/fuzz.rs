//! Entry points for fuzzing the decoders of the store. See [`crate::fuzzing`].

use uuid::Uuid;

use super::checkpoint::{self, CheckpointEnd};
use super::entry::{self, BlockEntry};
use super::layout;
use super::record::{self, HEADER_LEN, MAX_BODY, Place, RecordHeader, RecordKind};
use super::segment::{
    SEGMENT_HEADER_LEN, SegmentKind, SegmentName, SegmentReader, Step, encode_header,
};
use super::simulated::SimStorage;
use super::storage::Storage;
use super::transaction;

const STORE: Uuid = Uuid::nil();
const NAME: SegmentName = SegmentName {
    seq: 1,
    kind: SegmentKind::Journal,
};
const KINDS: [RecordKind; 5] = [
    RecordKind::Transaction,
    RecordKind::Staged,
    RecordKind::Settled,
    RecordKind::CheckpointPage,
    RecordKind::CheckpointEnd,
];

fn place(offset: u64) -> Place {
    Place {
        store: STORE,
        seq: NAME.seq,
        offset,
    }
}

/// A record with this kind, object and body at a place, with right checksums.
fn sealed(offset: u64, kind: u8, body: &[u8]) -> Vec<u8> {
    let header = RecordHeader {
        kind: KINDS[kind as usize % KINDS.len()],
        tag: kind,
        body_len: body.len() as u32,
        object: offset,
        version: 1,
    };
    [&header.encode(place(offset), &[body])[..], body].concat()
}

/// Record headers: as they are, and with the checksum made right.
pub(crate) fn record(data: &[u8]) {
    if let Some(header) = RecordHeader::parse(data, place(0)) {
        assert!(header.body_len <= MAX_BODY);
    }
    let body = data.get(HEADER_LEN..).unwrap_or_default();
    let mut whole = sealed(48, data.first().copied().unwrap_or(0), body);
    let header = RecordHeader::parse(&whole, place(48)).expect("a header that was written");
    assert_eq!(header.record_len(), whole.len() as u64);
    assert!(record::verify_body(&whole));
    assert_eq!(
        RecordHeader::parse(&whole, place(49)),
        None,
        "another place"
    );
    let flip = data.iter().map(|b| usize::from(*b)).sum::<usize>() % whole.len();
    whole[flip] ^= 1;
    let found = RecordHeader::parse(&whole, place(48));
    assert!(
        found.is_none() || !record::verify_body(&whole),
        "a flipped bit"
    );
}

/// Walks over a segment: `data` as it is, or cut into records with right checksums of which some are
/// then damaged.
pub(crate) fn segment(data: &[u8]) {
    let Some((&mode, rest)) = data.split_first() else {
        return;
    };
    if mode & 1 == 0 {
        walk(rest.to_vec());
        walk([&encode_header(NAME, STORE, 1)[..], rest].concat());
        return;
    }
    let mut file = encode_header(NAME, STORE, 1).to_vec();
    let (mut rest, mut whole, mut damaged) = (rest, 0, false);
    while let [kind, len, tail @ ..] = rest {
        let (body, tail) = tail.split_at(tail.len().min(usize::from(*len)));
        let at = file.len();
        file.extend(sealed(at as u64, *kind, body));
        whole += 1;
        if kind & 0x80 != 0 {
            file[at + usize::from(*len) % HEADER_LEN] ^= 0x10;
            damaged = true;
        }
        rest = tail;
    }
    let found = walk(file);
    assert!(found <= whole && (damaged || found == whole));
}

/// Returns the records that are read. Every step must go forward.
fn walk(bytes: Vec<u8>) -> usize {
    let len = bytes.len() as u64;
    let storage = SimStorage::new();
    let file = storage.create(&NAME.path()).expect("a new file");
    file.write_at(0, &[&bytes]).expect("writing in memory");
    let mut reader = SegmentReader::open(&storage, STORE, NAME).expect("it is there");
    let whole = reader.header_is_whole().expect("reading cannot fail");
    assert!(whole || reader.check_header().is_err());
    let (mut records, mut last) = (0, SEGMENT_HEADER_LEN);
    loop {
        match reader.step().expect("reading cannot fail") {
            Step::Record { header, body, .. } => {
                assert_eq!(body.len(), header.body_len as usize);
                records += 1;
            }
            Step::End => return records,
            Step::Bad { offset, .. } => {
                if !reader.seek_valid(offset + 1).expect("reading cannot fail") {
                    return records;
                }
            }
        }
        assert!(reader.cursor > last && reader.cursor <= len);
        last = reader.cursor;
    }
}

/// The body of a transaction.
pub(crate) fn transaction(data: &[u8]) {
    let durable = transaction::durable_of_body(data);
    if let Some(changes) = transaction::decode_body(data) {
        let durable = durable.expect("it decodes as a whole");
        let again = transaction::encode_body(durable, &changes);
        assert_eq!(transaction::durable_of_body(&again), Some(durable));
        assert_eq!(transaction::decode_body(&again), Some(changes));
    }
}

/// Pages and the end of a checkpoint.
pub(crate) fn checkpoint(data: &[u8]) {
    if let Some(end) = CheckpointEnd::decode(data) {
        assert_eq!(CheckpointEnd::decode(&end.encode()), Some(end));
    }
    let _ = checkpoint::unpack_page(data);
    let packed = zstd::bulk::compress(data, 1).expect("compressing in memory");
    if let Some(changes) = checkpoint::unpack_page(&packed) {
        let again = checkpoint::encode_pairs(&changes);
        let again = zstd::bulk::compress(&again, 1).expect("compressing in memory");
        assert_eq!(checkpoint::unpack_page(&again), Some(changes));
    }
}

/// What the index holds of a block, and the head of a block's record.
pub(crate) fn block_entry(data: &[u8]) {
    if let Some(entry) = BlockEntry::decode(data) {
        assert_eq!(BlockEntry::decode(&entry.encode()), Some(entry));
        let _ = entry.record_len();
    }
    let _ = entry::block_of_key(data);
    if let Some((raw_len, anchor, payload)) = entry::split_block_body(data) {
        let again = [&entry::block_prefix(raw_len, anchor)[..], payload].concat();
        assert_eq!(
            entry::split_block_body(&again),
            Some((raw_len, anchor, payload))
        );
    }
}

/// `s2sfs.toml`.
pub(crate) fn description(data: &[u8]) {
    let storage = SimStorage::new();
    let file = storage.create("s2sfs.toml").expect("a new file");
    file.write_at(0, &[data]).expect("writing in memory");
    if let Ok(description) = layout::read_description(&storage) {
        let description = description.expect("the file is there");
        assert!(description.features.is_empty() && description.format <= super::FORMAT_VERSION);
    }
}

/// Bytes that the decoders accept, to start from.
pub(crate) fn seeds(target: &str) -> Vec<Vec<u8>> {
    let change = |key: &[u8], value: Option<&[u8]>| super::index::Change {
        key: key.to_vec(),
        value: value.map(<[u8]>::to_vec),
    };
    let changes = vec![
        change(b"Da", Some(b"some value")),
        change(b"Dab", Some(b"")),
        change(b"I0000", Some(b"other")),
    ];
    let body = transaction::encode_body(77, &changes);
    match target {
        "record" => vec![sealed(0, 0, &body), sealed(0, 1, b"block")],
        "segment" => vec![
            [&[0][..], &sealed(48, 0, &body)].concat(),
            [&[1, 0, 3, 1, 2, 3, 1, 0, 0x82, 2, 9, 9][..], &body].concat(),
        ],
        "transaction" => vec![body],
        "checkpoint" => vec![
            checkpoint::encode_pairs(&changes),
            CheckpointEnd::default().encode(),
        ],
        "block_entry" => vec![
            vec![1, 2, 3, 100, 50, 60, 1, 40, 0],
            entry::block_prefix(1000, Some(7)),
        ],
        "description" => vec![
            b"uuid = \"67e55044-10b1-426f-9247-bb680e5fe0c8\"\nformat = 1\nfeatures = []\n"
                .to_vec(),
        ],
        _ => Vec::new(),
    }
}
