//! Writes a store into a stream.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::wire::{FrameKind, FrameWriter, MAX_PAYLOAD, Result, WireError};
use crate::store::carry::{self, StoreFile};
use crate::store::{Storage, StoreError};

/// Writes the files of the store under `storage`, which somebody holds as they are, into `out`. Each is
/// verified first. `release` is asked before the end is written whether they were held up to then.
/// `progress` gets bytes that are done and all of them.
pub fn send(
    storage: &dyn Storage,
    files: &[StoreFile],
    out: &mut dyn Write,
    stop: &AtomicBool,
    release: &mut dyn FnMut() -> Result<()>,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    let description = carry::description_bytes(storage)?;
    let uuid = carry::uuid_of_description(&storage.describe(), &description)?;
    let total = files.iter().map(|file| file.len).sum::<u64>();
    let mut frames = FrameWriter::new(out)?;
    let counts = [(files.len() as u64).to_le_bytes(), total.to_le_bytes()].concat();
    frames.frame(FrameKind::Store, &[&counts, &description])?;
    let mut all = blake3::Hasher::new();
    let mut done = 0;
    for file in files {
        carry::verify_file(storage, uuid, file)?;
        let hash = send_file(storage, file, &mut frames, stop, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
        all.update(&hash);
    }
    release()?;
    frames.frame(FrameKind::End, &[all.finalize().as_bytes()])?;
    frames.flush()
}

fn send_file(
    storage: &dyn Storage,
    file: &StoreFile,
    frames: &mut FrameWriter<'_>,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<[u8; 32]> {
    let failed = |error| StoreError::Io {
        op: "read",
        path: file.path.clone(),
        source: error,
    };
    let opened = storage.open(&file.path, false).map_err(failed)?;
    frames.frame(
        FrameKind::File,
        &[&file.len.to_le_bytes(), file.path.as_bytes()],
    )?;
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut at = 0;
    while at < file.len {
        if stop.load(Relaxed) {
            return Err(WireError::Interrupted);
        }
        let want = (file.len - at).min(MAX_PAYLOAD as u64) as usize;
        let piece = &mut buffer[..want];
        if opened.read_at(at, piece).map_err(failed)? < want {
            let why = "it has become shorter while it was read";
            return Err(StoreError::damaged("file", &file.path, why).into());
        }
        hash.update(piece);
        frames.frame(FrameKind::Data, &[piece])?;
        at += want as u64;
        progress(want as u64);
    }
    let hash = *hash.finalize().as_bytes();
    frames.frame(FrameKind::FileEnd, &[&hash])?;
    Ok(hash)
}
