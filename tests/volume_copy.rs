//! Copies that share blocks, and allocation of ranges.

mod common;

use common::*;
use s2sfs::volume::{
    Allocate, AllocateMode, CopyRange, ROOT, SetAttr, Volume, VolumeError, WriteMode,
};

const KIB: usize = 1 << 10;

fn copy(volume: &Volume, from: (u64, u64), to: (u64, u64), len: u64) -> u64 {
    let copy = CopyRange {
        from: from.0,
        from_offset: from.1,
        to: to.0,
        to_offset: to.1,
        len,
        clear_privileges: false,
    };
    volume.copy_range(copy).unwrap()
}

fn allocate(what: Allocate, keep_size: bool) -> AllocateMode {
    AllocateMode {
        what,
        keep_size,
        clear_privileges: false,
    }
}

fn block_bytes(volume: &Volume) -> u64 {
    let status = volume.status().unwrap();
    status.log_bytes - status.dead_bytes
}

#[test]
fn a_copy_of_a_settled_file_takes_no_blocks_and_survives_the_original() {
    let (storage, volume) = fresh();
    let mut data = noise(1, 1000 * KIB + 77);
    let original = put(&volume, "original", &data).ino;
    settle(&volume);
    let blocks = |ino| -> Vec<u64> {
        let info = volume.file_info(ino).unwrap();
        assert_eq!((info.staged_bytes, info.dirty_bytes), (0, 0));
        info.extents.iter().map(|e| e.block).collect()
    };
    let before = block_bytes(&volume);
    let target = put(&volume, "copy", b"").ino;
    assert_eq!(
        copy(&volume, (original, 0), (target, 0), u64::MAX >> 1),
        data.len() as u64
    );
    assert!(block_bytes(&volume) < before + 4096, "the copy took blocks");
    assert_eq!(blocks(target), blocks(original));
    assert!(contents(&volume, target) == data);

    volume
        .write(original, 300_000, &noise(2, 200_000), WriteMode::default())
        .unwrap();
    volume.flush(original).unwrap();
    assert!(contents(&volume, target) == data);
    volume.unlink(ROOT, b"original").unwrap();
    settle(&volume);
    assert!(contents(&volume, target) == data);
    volume
        .write(target, 10, b"changed", WriteMode::default())
        .unwrap();
    data[10..17].copy_from_slice(b"changed");
    settle(&volume);
    let volume = remount(&storage, volume);
    assert!(contents(&volume, target) == data);
    volume.unlink(ROOT, b"copy").unwrap();
    settle(&volume);
    let volume = remount(&storage, volume);
    let status = volume.status().unwrap();
    assert!(
        status.codecs.is_empty() && status.log_bytes < 100_000,
        "{status:?}"
    );
    assert_clean(&storage, volume);
}

fn assert_clean(storage: &s2sfs::store::SimStorage, volume: std::sync::Arc<Volume>) {
    volume.shutdown().unwrap();
    drop(volume);
    let store = std::sync::Arc::new(open_store(storage));
    let report = s2sfs::volume::check(&store, &codecs(), 2, &|_, _| {}).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

#[test]
fn copies_of_dirty_staged_and_settled_data_at_any_alignment_are_right() {
    let (storage, volume) = fresh();
    let data = text(3, 500_000);
    let source = put(&volume, "source", &data).ino;
    let target = put(&volume, "target", &noise(4, 600_000)).ino;
    let mut expected = noise(4, 600_000);
    for (round, (from, to, len)) in [
        (0, 0, 131_072),
        (1, 70_000, 200_000),
        (131_072, 131_000, 131_072),
        (400_000, 3, 5000),
        (499_000, 599_500, 90_000),
        (77, 200_001, 100),
    ]
    .into_iter()
    .enumerate()
    {
        match round {
            2 => settle(&volume),
            4 => volume.flush(target).unwrap(),
            _ => {}
        }
        let end = data.len().min(from + len);
        let done = copy(
            &volume,
            (source, from as u64),
            (target, to as u64),
            len as u64,
        );
        assert_eq!(done as usize, end - from);
        expected.resize(expected.len().max(to + end - from), 0);
        expected[to..to + end - from].copy_from_slice(&data[from..end]);
        assert!(contents(&volume, target) == expected, "round {round}");
    }
    settle(&volume);
    assert!(contents(&volume, target) == expected);
    let volume = remount(&storage, volume);
    assert!(contents(&volume, target) == expected);
    assert!(contents(&volume, source) == data);
    assert_clean(&storage, volume);
}

#[test]
fn a_copy_inside_a_file_and_of_holes_is_right_and_overlap_is_refused() {
    let (storage, volume) = fresh();
    let mut data = noise(5, 300_000);
    let ino = put(&volume, "f", &data).ino;
    settle(&volume);
    volume.punch_hole(ino, 50_000, 50_000).unwrap();
    data[50_000..100_000].fill(0);
    assert_eq!(
        copy(&volume, (ino, 20_000), (ino, 200_000), 150_000),
        150_000
    );
    let part = data[20_000..170_000].to_vec();
    data.resize(350_000, 0);
    data[200_000..350_000].copy_from_slice(&part);
    assert!(contents(&volume, ino) == data);
    assert_eq!(volume.seek(ino, 220_000, false).unwrap(), 230_000);
    let overlapping = CopyRange {
        from: ino,
        from_offset: 0,
        to: ino,
        to_offset: 10,
        len: 11,
        clear_privileges: false,
    };
    assert!(matches!(
        volume.copy_range(overlapping),
        Err(VolumeError::Invalid(_))
    ));
    settle(&volume);
    let volume = remount(&storage, volume);
    assert!(contents(&volume, ino) == data);
    assert_clean(&storage, volume);
}

#[test]
fn a_copy_clears_suid_and_moves_times() {
    let (_storage, volume) = fresh();
    let source = put(&volume, "a", b"data").ino;
    let target = put(&volume, "b", b"").ino;
    let set = SetAttr {
        perm: Some(0o6755),
        ..SetAttr::default()
    };
    let before = volume.setattr(target, set).unwrap().attr;
    let range = CopyRange {
        from: source,
        from_offset: 0,
        to: target,
        to_offset: 0,
        len: 4,
        clear_privileges: true,
    };
    volume.copy_range(range).unwrap();
    let after = volume.getattr(target).unwrap().attr;
    assert_eq!((after.perm, after.size), (0o755, 4));
    assert!(after.mtime > before.mtime && after.ctime > before.ctime);
}

#[test]
fn small_pieces_copied_together_do_not_pile_up_extents() {
    let (_storage, volume) = fresh();
    let source = put(&volume, "a", &text(1, 100)).ino;
    let target = put(&volume, "b", b"").ino;
    settle(&volume);
    for i in 0..500 {
        copy(&volume, (source, 0), (target, i * 100), 100);
        volume.flush(target).unwrap();
    }
    assert!(contents(&volume, target) == text(1, 100).repeat(500));
    let extents = volume.file_info(target).unwrap().extents.len();
    assert!(extents <= 49, "{extents} extents");
}

#[test]
fn allocated_ranges_read_as_zeros_and_sizes_follow_the_mode() {
    let (storage, volume) = fresh();
    let mut data = noise(6, 200_000);
    let ino = put(&volume, "f", &data).ino;
    let size = |volume: &Volume| volume.getattr(ino).unwrap().attr.size;
    volume
        .allocate(ino, 100_000, 200_000, allocate(Allocate::Reserve, true))
        .unwrap();
    assert!(contents(&volume, ino) == data);
    volume
        .allocate(ino, 100_000, 200_000, allocate(Allocate::Reserve, false))
        .unwrap();
    data.resize(300_000, 0);
    assert!(contents(&volume, ino) == data);
    volume
        .allocate(ino, 150_000, 200_000, allocate(Allocate::Zero, true))
        .unwrap();
    data[150_000..].fill(0);
    assert!(contents(&volume, ino) == data);
    volume
        .write(ino, 290_000, b"dirty", WriteMode::default())
        .unwrap();
    volume
        .allocate(ino, 1000, 400_000, allocate(Allocate::Zero, false))
        .unwrap();
    data.resize(401_000, 0);
    data[1000..].fill(0);
    assert!(contents(&volume, ino) == data);
    let volume = remount(&storage, volume);
    assert!(contents(&volume, ino) == data);
    assert_eq!(size(&volume), 401_000);
    let beyond = volume.allocate(ino, i64::MAX as u64, 1, allocate(Allocate::Reserve, false));
    assert!(matches!(beyond, Err(VolumeError::FileTooLarge)));
    assert_clean(&storage, volume);
}

#[test]
fn allocating_more_than_the_disk_has_fails_and_changes_nothing() {
    let (_storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    let free = volume.space().unwrap().free;
    let error = volume.allocate(ino, 0, free + 1000, allocate(Allocate::Reserve, false));
    assert!(matches!(error, Err(VolumeError::NoSpace)), "{error:?}");
    assert_eq!(volume.getattr(ino).unwrap().attr.size, 4);
}

#[test]
fn zeroing_thousands_of_extents_takes_several_steps_and_leaves_nothing() {
    let storage = s2sfs::store::SimStorage::new();
    let options = s2sfs::volume::VolumeOptions {
        extent: 4096,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let ino = put(&volume, "f", &noise(7, 12 << 20)).ino;
    volume.punch_hole(ino, 100, (12 << 20) - 200).unwrap();
    let data = contents(&volume, ino);
    let all = noise(7, 12 << 20);
    assert!(data[..100] == all[..100] && data[data.len() - 100..] == all[all.len() - 100..]);
    assert!(data[100..data.len() - 100].iter().all(|b| *b == 0));
    assert_eq!(volume.file_info(ino).unwrap().extents.len(), 2);
}

#[test]
fn an_inode_that_is_known_outside_lives_without_names_until_it_is_forgotten() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    let dir = volume.mkdir(ROOT, b"d", 0o755, caller()).unwrap().ino;
    for ino in [ino, ino, dir] {
        volume.remember(ino);
    }
    volume.unlink(ROOT, b"f").unwrap();
    volume.rmdir(ROOT, b"d").unwrap();
    for gone in [ino, dir] {
        assert_eq!(volume.getattr(gone).unwrap().attr.nlink, 0);
    }
    volume.open_file(ino, false, false).unwrap();
    volume.forget(ino, 2);
    assert_eq!(volume.read(ino, 0, 9).unwrap(), b"data");
    volume.release(ino);
    assert!(matches!(volume.getattr(ino), Err(VolumeError::Stale(_))));
    volume.forget(dir, 1);
    assert!(matches!(volume.getattr(dir), Err(VolumeError::Stale(_))));
    assert_eq!(volume.status().unwrap().files, 0);
    assert_clean(&storage, volume);
}

#[test]
fn reading_moves_access_times_once_and_without_a_transaction() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    let before = volume.getattr(ino).unwrap().attr;
    let log = volume.status().unwrap().log_bytes;
    volume.accessed(ino);
    let moved = volume.getattr(ino).unwrap().attr.atime;
    assert!(moved > before.atime);
    assert!(!volume.access_is_due(ino));
    volume.accessed(ino);
    assert_eq!(volume.getattr(ino).unwrap().attr.atime, moved);
    assert_eq!(volume.status().unwrap().log_bytes, log);
    let volume = remount(&storage, volume);
    assert_eq!(volume.getattr(ino).unwrap().attr.atime, moved);
    volume.write(ino, 0, b"new", WriteMode::default()).unwrap();
    assert!(volume.access_is_due(ino));

    for i in 0..3000 {
        let ino = put(&volume, &format!("{i}"), b"x").ino;
        volume.accessed(ino);
    }
    let options = s2sfs::volume::VolumeOptions {
        relatime: false,
        ..quiet_options()
    };
    volume.shutdown().unwrap();
    drop(volume);
    let volume = open_with(&storage, options);
    volume.write(ino, 0, b"new", WriteMode::default()).unwrap();
    let before = volume.getattr(ino).unwrap().attr.atime;
    volume.accessed(ino);
    assert_eq!(volume.getattr(ino).unwrap().attr.atime, before);
}
