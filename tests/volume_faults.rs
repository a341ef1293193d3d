//! Full disks, failing disks, damaged blocks, and limits.

mod common;

use common::*;
use s2sfs::store::{Fault, OpenOptions, SimOp, SimStorage, Store};
use std::sync::Arc;

use s2sfs::volume::{ROOT, Volume, VolumeError, VolumeOptions, WriteMode};

const MIB: usize = 1 << 20;
const PLAIN: WriteMode = WriteMode {
    append: false,
    clear_privileges: false,
};

/// Writes incompressible files until the volume is full. Returns those that were closed well.
fn fill(volume: &Volume) -> Vec<(String, u64)> {
    let mut files = Vec::new();
    for i in 0..1000u64 {
        let name = format!("{i}");
        let Ok(stat) = volume.create(ROOT, name.as_bytes(), 0o644, caller()) else {
            return files;
        };
        let written = volume.write(stat.ino, 0, &noise(i, MIB), PLAIN);
        let closed = volume.flush(stat.ino);
        volume.release(stat.ino);
        if let Some(error) = written.err().or(closed.err()) {
            assert!(matches!(error, VolumeError::NoSpace), "{error}");
            return files;
        }
        files.push((name, stat.ino));
    }
    panic!("the volume never got full");
}

#[test]
fn a_full_disk_says_so_loses_nothing_and_can_be_freed() {
    let storage = SimStorage::new();
    storage.set_capacity(160 << 20);
    let options = OpenOptions {
        create: true,
        segment_bytes: 4 << 20,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &options).unwrap();
    let volume = Volume::open(store, codecs(), quiet_options()).unwrap();
    let files = fill(&volume);
    assert!(files.len() > 20, "only {} files", files.len());
    for (i, (_, ino)) in files.iter().enumerate() {
        assert!(contents(&volume, *ino) == noise(i as u64, MIB));
    }
    for (name, _) in &files[..files.len() / 2] {
        volume.unlink(ROOT, name.as_bytes()).unwrap();
    }
    // The file that did not fit is still in memory: it goes to the log now, or with its name.
    let _ = volume.unlink(ROOT, files.len().to_string().as_bytes());
    settle(&volume);
    let data = noise(77, MIB);
    let ino = put(&volume, "again", &data).ino;
    volume.fsync(ino).unwrap();
    let volume = remount(&storage, volume);
    assert!(contents(&volume, ino) == data);
    for (i, (_, ino)) in files.iter().enumerate().skip(files.len() / 2) {
        assert!(contents(&volume, *ino) == noise(i as u64, MIB));
    }
}

#[test]
fn a_failed_sync_is_an_error_and_what_was_synced_before_survives() {
    let (storage, volume) = fresh();
    let first = put(&volume, "first", &text(1, 100_000)).ino;
    volume.fsync(first).unwrap();
    let second = volume.create(ROOT, b"second", 0o644, caller()).unwrap().ino;
    volume.write(second, 0, &text(2, 100_000), PLAIN).unwrap();
    storage.set_fault(Some(Fault::FailKind(SimOp::SyncData, 0, libc::EIO)));
    let error = volume.fsync(second).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    storage.set_fault(None);
    assert!(
        volume.fsync(second).is_err(),
        "a failed sync is never forgotten"
    );
    assert!(
        contents(&volume, first) == text(1, 100_000),
        "reading goes on"
    );
    volume.abandon();
    drop(volume);
    storage.crash(1);
    let volume = open(&storage);
    assert!(contents(&volume, first) == text(1, 100_000));
}

#[test]
fn a_damaged_block_is_an_error_of_its_file_only() {
    let (storage, volume) = fresh();
    let files: Vec<u64> = (0..4)
        .map(|i| put(&volume, &format!("{i}.bin"), &noise(i, 200_000)).ino)
        .collect();
    settle(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    // The third file's data, wherever it lies.
    let needle = &noise(2, 200_000)[1000..1032];
    let mut damaged = 0;
    for path in storage.files() {
        let mut bytes = storage.contents(&path).unwrap();
        if let Some(at) = bytes.windows(32).position(|w| w == needle) {
            bytes[at] ^= 1;
            storage.set_contents(&path, bytes);
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1, "the data of the file is stored raw, once");
    let volume = open(&storage);
    let error = volume.read(files[2], 0, 4096).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    let message = error.to_string();
    assert!(
        message.contains(&format!("inode {}", files[2])) && message.contains("block"),
        "{message}"
    );
    for i in [0, 1, 3] {
        assert!(contents(&volume, files[i]) == noise(i as u64, 200_000));
    }
}

#[test]
fn writers_wait_when_too_much_is_dirty() {
    let storage = SimStorage::new();
    let options = VolumeOptions {
        dirty_bytes: 2 << 20,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let data = text(5, 32 * MIB);
    let file = volume.create(ROOT, b"f", 0o644, caller()).unwrap();
    for (i, piece) in data.chunks(128 << 10).enumerate() {
        volume
            .write(file.ino, (i * (128 << 10)) as u64, piece, PLAIN)
            .unwrap();
        let dirty = volume.status().unwrap().dirty_bytes;
        assert!(dirty <= 2 << 20, "{dirty} bytes are dirty");
    }
    assert!(contents(&volume, file.ino) == data);
}

#[test]
fn the_cache_keeps_its_limit_and_still_reads_right() {
    let storage = SimStorage::new();
    let options = VolumeOptions {
        cache_bytes: 1 << 20,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let data = text(6, 8 * MIB);
    let ino = put(&volume, "f.txt", &data).ino;
    volume.settle(&|_, _| {}).unwrap();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (volume, data) = (&volume, &data);
            scope.spawn(move || {
                for i in 0..400usize {
                    let offset = (i * 7919 + start * 31) * 4099 % (8 * MIB - 5000);
                    let read = volume.read(ino, offset as u64, 5000).unwrap();
                    assert!(read == data[offset..offset + 5000]);
                }
            });
        }
    });
    let cache = volume.status().unwrap().cache;
    assert!(cache.bytes <= cache.limit_bytes, "{} bytes", cache.bytes);
}

#[test]
fn a_read_only_volume_changes_nothing() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    volume.shutdown().unwrap();
    drop(volume);
    let before: Vec<_> = storage
        .files()
        .iter()
        .map(|p| storage.contents(p))
        .collect();
    let options = VolumeOptions {
        read_only: true,
        ..quiet_options()
    };
    let store = s2sfs::store::Store::open(
        std::sync::Arc::new(storage.clone()),
        &s2sfs::store::OpenOptions {
            read_only: true,
            ..Default::default()
        },
    )
    .unwrap();
    let volume = Volume::open(store, codecs(), options).unwrap();
    assert_eq!(contents(&volume, ino), b"data");
    let refused = volume.write(ino, 0, b"x", PLAIN).unwrap_err();
    assert_eq!(refused.errno(), libc::EROFS);
    assert_eq!(volume.unlink(ROOT, b"f").unwrap_err().errno(), libc::EROFS);
    volume.shutdown().unwrap();
    let after: Vec<_> = storage
        .files()
        .iter()
        .map(|p| storage.contents(p))
        .collect();
    assert_eq!(before, after);
}
