//! The contents of regular files: copied with their holes, and hashed on the way.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::digest::{Digest, Hash};
use super::tree::{Contents, CopyError, Output, Result, TreeError};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// What reading a file does with each piece of data.
type Sink<'a> = &'a mut dyn FnMut(u64, &[u8]) -> std::result::Result<(), CopyError>;

/// Reads all data of a file whose size is known, hands it to `sink`, and returns its hash.
fn read_data(
    contents: &dyn Contents,
    size: u64,
    stop: &AtomicBool,
    wrong: fn(TreeError) -> CopyError,
    sink: Sink<'_>,
) -> std::result::Result<Hash, CopyError> {
    let mut digest = Digest::new();
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut at = 0;
    while at < size {
        let Some((start, end)) = contents.data_from(at).map_err(wrong)? else {
            break;
        };
        let (mut offset, end) = (start.max(at), end.min(size));
        while offset < end {
            if stop.load(Relaxed) {
                return Err(CopyError::Interrupted);
            }
            let want = (end - offset).min(PIECE as u64) as usize;
            let got = contents.read(offset, &mut buffer[..want]).map_err(wrong)?;
            if got < want {
                return Err(CopyError::Changed);
            }
            digest.add(offset, &buffer[..want]);
            sink(offset, &buffer[..want])?;
            offset += want as u64;
        }
        // A range that ends where it begins would be asked for again for ever.
        at = end.max(at + 1);
    }
    Ok(digest.finish(size))
}

/// Copies a file into a new one. `progress` gets the bytes of each piece.
pub fn copy_data(
    source: &dyn Contents,
    size: u64,
    mut output: Box<dyn Output + '_>,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> std::result::Result<Hash, CopyError> {
    let hash = read_data(
        source,
        size,
        stop,
        CopyError::Source,
        &mut |offset, data| {
            output.write(offset, data).map_err(CopyError::Target)?;
            progress(data.len() as u64);
            Ok(())
        },
    )?;
    output.finish(size).map_err(CopyError::Target)?;
    Ok(hash)
}

/// The hash of a file that is to be copied.
pub fn hash_source(
    contents: &dyn Contents,
    size: u64,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> std::result::Result<Hash, CopyError> {
    read_data(contents, size, stop, CopyError::Source, &mut |_, data| {
        progress(data.len() as u64);
        Ok(())
    })
}

/// The hash of a file that was written; None if it has another size.
pub fn hash_target(
    contents: &dyn Contents,
    size: u64,
    stop: &AtomicBool,
) -> std::result::Result<Option<Hash>, CopyError> {
    let found: Result<_> = contents.meta();
    if found.map_err(CopyError::Target)?.size != size {
        return Ok(None);
    }
    let hash = read_data(contents, size, stop, CopyError::Target, &mut |_, _| Ok(()));
    match hash {
        Err(CopyError::Changed) => Ok(None),
        other => other.map(Some),
    }
}
