//! What single calls promise, on a disk that forgets all that was not synced.

mod common;

use common::{caller, contents, fresh, noise, open};
use s2sfs::store::SimStorage;
use s2sfs::volume::{
    Allocate, AllocateMode, CopyRange, ROOT, SetAttr, Volume, VolumeError, WriteMode,
};
use std::sync::Arc;

/// How the volume comes to its end.
#[derive(Debug, Clone, Copy)]
enum End {
    Kill,
    PowerCut(u64),
}

fn written(volume: &Volume, name: &str, data: &[u8]) -> Result<u64, VolumeError> {
    let ino = volume.create(ROOT, name.as_bytes(), 0o644, caller())?.ino;
    volume.write(ino, 0, data, WriteMode::default())?;
    Ok(ino)
}

fn after(end: End, storage: &SimStorage, volume: Arc<Volume>) -> Arc<Volume> {
    volume.abandon();
    drop(volume);
    match end {
        End::Kill => storage.kill(),
        End::PowerCut(seed) => storage.crash(seed),
    }
    open(storage)
}

#[test]
fn syncing_the_mount_point_makes_every_file_durable() {
    for seed in 0..6 {
        let (storage, volume) = fresh();
        let data: Vec<Vec<u8>> = (0..5).map(|i| noise(i, 10_000)).collect();
        let made = |(at, data): (usize, &Vec<u8>)| written(&volume, &format!("{at}"), data);
        let files: Vec<u64> = data.iter().enumerate().map(|f| made(f).unwrap()).collect();
        volume.sync_everything().unwrap();
        let volume = after(End::PowerCut(seed), &storage, volume);
        for (ino, data) in files.iter().zip(&data) {
            assert!(contents(&volume, *ino) == *data);
        }
    }
}

#[test]
fn a_copy_is_durable_after_fsync_and_what_it_shares_survives_a_kill() {
    for end in [End::Kill, End::PowerCut(0), End::PowerCut(1)] {
        let (storage, volume) = fresh();
        let data = noise(1, 256 << 10);
        let from = written(&volume, "from", &data).unwrap();
        let to = written(&volume, "to", b"").unwrap();
        let copy = CopyRange {
            from,
            from_offset: 0,
            to,
            to_offset: 0,
            len: data.len() as u64,
            clear_privileges: false,
        };
        assert_eq!(volume.copy_range(copy).unwrap(), copy.len);
        if matches!(end, End::PowerCut(_)) {
            volume.fsync(to).unwrap();
        }
        let volume = after(end, &storage, volume);
        assert!(contents(&volume, to) == data, "{end:?}");
        // The copy does not need the original.
        volume.unlink(ROOT, b"from").unwrap();
        volume.settle(&|_, _| {}).unwrap();
        assert!(contents(&volume, to) == data, "{end:?}");
    }
}

#[test]
fn allocating_is_committed_with_the_call_and_durable_after_fsync() {
    for end in [End::Kill, End::PowerCut(0), End::PowerCut(1)] {
        let (storage, volume) = fresh();
        let data = noise(1, 50_000);
        let ino = written(&volume, "f", &data).unwrap();
        let mode = |what| AllocateMode {
            what,
            keep_size: false,
            clear_privileges: false,
        };
        volume
            .allocate(ino, 10_000, 20_000, mode(Allocate::Zero))
            .unwrap();
        volume
            .allocate(ino, 0, 90_000, mode(Allocate::Reserve))
            .unwrap();
        if matches!(end, End::PowerCut(_)) {
            volume.fsync(ino).unwrap();
        }
        let volume = after(end, &storage, volume);
        let mut expected = data;
        expected[10_000..30_000].fill(0);
        expected.resize(90_000, 0);
        assert!(contents(&volume, ino) == expected, "{end:?}");
    }
}

#[test]
fn a_truncation_survives_a_kill_and_what_it_cut_never_comes_back() {
    for end in [End::Kill, End::PowerCut(0), End::PowerCut(1)] {
        let (storage, volume) = fresh();
        let data = noise(1, 50_000);
        let ino = written(&volume, "f", &data).unwrap();
        volume.fsync(ino).unwrap();
        for size in [20_000, 40_000] {
            let set = SetAttr {
                size: Some(size),
                ..SetAttr::default()
            };
            volume.setattr(ino, set).unwrap();
        }
        if matches!(end, End::PowerCut(_)) {
            volume.fsync(ino).unwrap();
        }
        let volume = after(end, &storage, volume);
        let mut expected = data[..20_000].to_vec();
        expected.resize(40_000, 0);
        assert!(contents(&volume, ino) == expected, "{end:?}");
    }
}
