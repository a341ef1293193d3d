//! The file format of `s2sfs compress`: the extents of one file, one after the other.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `S2SC` |
//! | 1 | version, 1 |
//! | 4 | extent size, little-endian |
//! | ... | frames |
//!
//! A frame is a payload length (u32, not 0), the CRC-32C of the payload (u32), and the payload (see
//! docs/format.md). Extent 0 is the anchor block 0 of the later ones. The end is a payload length of
//! 0, the length of the whole file (u64), and the first 16 bytes of its BLAKE3 hash.

use std::io::{self, Read, Write};
use std::sync::Arc;

use thiserror::Error;

use crate::codec::{
    AnchorSource, CodecError, CodecId, Codecs, EncodeOptions, MAX_RAW_LEN, Snapshot,
};

const MAGIC: &[u8; 4] = b"S2SC";
const VERSION: u8 = 1;
const HASH_LEN: usize = 16;
/// A payload is never much larger than what it decodes to.
const MAX_PAYLOAD: usize = MAX_RAW_LEN + 4096;
/// Longest history that later extents are offered.
const ANCHOR_BYTES: usize = 48 << 10;
/// Extents per thread that are read before any is written.
const BATCH_PER_THREAD: usize = 4;

/// Why a file could not be written or read.
#[derive(Debug, Error)]
pub enum ContainerError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("damaged at extent {extent}: {why}")]
    Damaged { extent: u64, why: String },
    #[error("this is not a file that s2sfs compress made")]
    Foreign,
    #[error("made by a newer version: format {0}")]
    Newer(u8),
}

type Result<T> = std::result::Result<T, ContainerError>;

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    pub model_bytes: u64,
}

/// Compresses all of `input`. `progress` gets the bytes read so far.
pub fn compress(
    codecs: &Codecs,
    options: &EncodeOptions,
    extent: usize,
    threads: usize,
    input: &mut dyn Read,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<Totals> {
    let mut header = Vec::from(*MAGIC);
    header.push(VERSION);
    header.extend_from_slice(&(extent as u32).to_le_bytes());
    output.write_all(&header)?;
    let mut totals = Totals {
        stored_bytes: header.len() as u64,
        ..Totals::default()
    };
    let mut hash = blake3::Hasher::new();
    let mut anchor = None;
    loop {
        // The first extent goes alone: the others need it as their anchor.
        let batch_len = if anchor.is_none() {
            1
        } else {
            threads * BATCH_PER_THREAD
        };
        let batch = read_batch(input, extent, batch_len)?;
        if batch.is_empty() {
            break;
        }
        let encode = |raw: &Vec<u8>| codecs.encode(raw, options, anchor.as_ref());
        for (raw, encoded) in batch.iter().zip(in_parallel(&batch, threads, encode)) {
            let encoded = encoded?;
            write_frame(output, &encoded.payload)?;
            hash.update(raw);
            totals.raw_bytes += raw.len() as u64;
            totals.stored_bytes += encoded.payload.len() as u64 + 8;
            if encoded.codec == CodecId::Model {
                totals.model_bytes += raw.len() as u64;
            }
        }
        anchor = anchor.or_else(|| batch.first().map(|raw| anchor_source(raw)));
        progress(totals.raw_bytes);
    }
    output.write_all(&0u32.to_le_bytes())?;
    output.write_all(&totals.raw_bytes.to_le_bytes())?;
    output.write_all(&hash.finalize().as_bytes()[..HASH_LEN])?;
    output.flush()?;
    totals.stored_bytes += 12 + HASH_LEN as u64;
    Ok(totals)
}

/// Decompresses all of `input`. `progress` gets the bytes written so far.
pub fn decompress(
    codecs: &Codecs,
    threads: usize,
    input: &mut dyn Read,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<Totals> {
    let extent = read_header(input)?;
    let mut totals = Totals {
        stored_bytes: 9 + 12 + HASH_LEN as u64,
        ..Totals::default()
    };
    let mut hash = blake3::Hasher::new();
    let mut first: Option<Vec<u8>> = None;
    let mut number = 0;
    loop {
        let batch_len = if first.is_none() {
            1
        } else {
            threads * BATCH_PER_THREAD
        };
        let (batch, ended) = read_frames(input, number, batch_len)?;
        let anchor = first.as_deref();
        for (payload, raw) in batch.iter().zip(in_parallel(&batch, threads, |payload| {
            decode(codecs, payload, anchor)
        })) {
            let raw = raw.map_err(|e| at_extent(number, e))?;
            if raw.is_empty() || raw.len() > extent {
                return Err(damaged(number, "it has the wrong length"));
            }
            output.write_all(&raw)?;
            hash.update(&raw);
            totals.raw_bytes += raw.len() as u64;
            totals.stored_bytes += payload.len() as u64 + 8;
            number += 1;
            first.get_or_insert(raw);
        }
        progress(totals.raw_bytes);
        if ended {
            break;
        }
    }
    let mut end = [0; 8 + HASH_LEN];
    read_exact(input, &mut end, number)?;
    if end[..8] != totals.raw_bytes.to_le_bytes()
        || end[8..] != hash.finalize().as_bytes()[..HASH_LEN]
    {
        return Err(damaged(number, "length or hash of the whole file differs"));
    }
    output.flush()?;
    Ok(totals)
}

/// Decodes one payload whose anchor, if any, is the beginning of `first`.
pub fn decode(codecs: &Codecs, payload: &[u8], first: Option<&[u8]>) -> Result<Vec<u8>> {
    let layout = codecs.open(payload)?;
    let snapshot: Option<Arc<Snapshot>> = match &layout.anchor {
        None => None,
        Some(anchor) => {
            let range = anchor.range.start as usize..anchor.range.end as usize;
            let bytes = first
                .filter(|_| anchor.block == 0)
                .and_then(|first| first.get(range));
            let bytes = bytes.ok_or(CodecError::NeedsAnchor(anchor.block))?;
            Some(codecs.snapshot(&layout, bytes)?)
        }
    };
    Ok(codecs.decode_all(payload, snapshot.as_deref())?)
}

/// The history that the extents after `first` are offered.
pub fn anchor_source(first: &[u8]) -> AnchorSource {
    let bytes = &first[..first.len().min(ANCHOR_BYTES)];
    AnchorSource {
        block: 0,
        start: 0,
        bytes: bytes.into(),
    }
}

/// Maps `items` on up to `threads` threads, keeping their order.
pub fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    f: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let share = items.len().div_ceil(threads.max(1)).max(1);
    let run = |part: &[T]| part.iter().map(&f).collect::<Vec<R>>();
    if items.len() <= share {
        return run(items);
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = items
            .chunks(share)
            .map(|part| scope.spawn(move || run(part)))
            .collect();
        let results = workers.into_iter().map(|worker| worker.join());
        results
            .flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Reads up to `count` extents; all are full except for the last one of the file.
pub fn read_batch(input: &mut dyn Read, extent: usize, count: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut batch = Vec::new();
    while batch.len() < count {
        let mut raw = Vec::with_capacity(extent);
        input.take(extent as u64).read_to_end(&mut raw)?;
        if raw.is_empty() {
            break;
        }
        batch.push(raw);
    }
    Ok(batch)
}

fn write_frame(output: &mut dyn Write, payload: &[u8]) -> io::Result<()> {
    output.write_all(&(payload.len() as u32).to_le_bytes())?;
    output.write_all(&crc32c::crc32c(payload).to_le_bytes())?;
    output.write_all(payload)
}

fn read_header(input: &mut dyn Read) -> Result<usize> {
    let mut header = [0; 9];
    input.read_exact(&mut header).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => ContainerError::Foreign,
        _ => e.into(),
    })?;
    let [m0, m1, m2, m3, version, e0, e1, e2, e3] = header;
    if [m0, m1, m2, m3] != *MAGIC {
        return Err(ContainerError::Foreign);
    }
    if version != VERSION {
        return Err(ContainerError::Newer(version));
    }
    let extent = u32::from_le_bytes([e0, e1, e2, e3]) as usize;
    if extent == 0 || extent > MAX_RAW_LEN {
        return Err(damaged(0, "the extent size is impossible"));
    }
    Ok(extent)
}

/// Reads up to `count` payloads; true if the end mark has been read.
fn read_frames(input: &mut dyn Read, number: u64, count: usize) -> Result<(Vec<Vec<u8>>, bool)> {
    let mut batch: Vec<Vec<u8>> = Vec::new();
    while batch.len() < count {
        let number = number + batch.len() as u64;
        let len = read_u32(input, number)? as usize;
        if len == 0 {
            return Ok((batch, true));
        }
        if len > MAX_PAYLOAD {
            return Err(damaged(number, "the length of its payload is impossible"));
        }
        let check = read_u32(input, number)?;
        let mut payload = vec![0; len];
        read_exact(input, &mut payload, number)?;
        if crc32c::crc32c(&payload) != check {
            return Err(damaged(number, "its checksum differs"));
        }
        batch.push(payload);
    }
    Ok((batch, false))
}

fn read_u32(input: &mut dyn Read, number: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    read_exact(input, &mut bytes, number)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_exact(input: &mut dyn Read, bytes: &mut [u8], number: u64) -> Result<()> {
    input.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged(number, "the file is cut short"),
        _ => e.into(),
    })
}

fn damaged(extent: u64, why: &str) -> ContainerError {
    ContainerError::Damaged {
        extent,
        why: why.into(),
    }
}

fn at_extent(extent: u64, error: ContainerError) -> ContainerError {
    match error {
        ContainerError::Codec(e) => ContainerError::Damaged {
            extent,
            why: e.to_string(),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codecs() -> Codecs {
        Codecs::with_default_model().unwrap()
    }

    fn packed(raw: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        let options = EncodeOptions::default();
        compress(
            &codecs(),
            &options,
            4096,
            2,
            &mut &raw[..],
            &mut packed,
            &|_| {},
        )
        .unwrap();
        packed
    }

    fn unpacked(packed: &[u8]) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        decompress(&codecs(), 2, &mut &packed[..], &mut raw, &|_| {}).map(|_| raw)
    }

    fn sample() -> Vec<u8> {
        (0..60_000u32)
            .flat_map(|i| format!("line {} of the file\n", i % 977).into_bytes())
            .take(40_000)
            .collect()
    }

    #[test]
    fn files_of_every_kind_of_length_come_back() {
        for len in [0, 1, 4095, 4096, 4097, 40_000] {
            let raw = &sample()[..len];
            assert_eq!(unpacked(&packed(raw)).unwrap(), raw);
        }
    }

    #[test]
    fn totals_count_every_byte_of_the_file() {
        let raw = sample();
        let mut file = Vec::new();
        let options = EncodeOptions::default();
        let totals = compress(
            &codecs(),
            &options,
            4096,
            2,
            &mut &raw[..],
            &mut file,
            &|_| {},
        )
        .unwrap();
        assert_eq!(totals.stored_bytes, file.len() as u64);
        let totals = decompress(&codecs(), 2, &mut &file[..], &mut io::sink(), &|_| {}).unwrap();
        assert_eq!(totals.stored_bytes, file.len() as u64);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error() {
        let file = packed(&sample()[..9000]);
        for end in (0..file.len()).step_by(7) {
            assert!(unpacked(&file[..end]).is_err(), "cut at {end}");
        }
        for at in (0..file.len()).step_by(7) {
            let mut wrong = file.clone();
            wrong[at] ^= 0x10;
            // The extent size is a limit only: a larger one changes nothing.
            assert!(
                (5..9).contains(&at) || unpacked(&wrong).is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn foreign_files_are_called_foreign() {
        assert!(matches!(unpacked(b""), Err(ContainerError::Foreign)));
        assert!(matches!(
            unpacked(b"\x28\xb5\x2f\xfd0123456789"),
            Err(ContainerError::Foreign)
        ));
    }
}
