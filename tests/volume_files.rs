//! File semantics of the volume: contents, sizes, names, attributes.

mod common;

use common::*;
use s2sfs::volume::{
    Caller, FileKind, Place, ROOT, RenameMode, SetAttr, Timestamp, VolumeError, WriteMode,
};

const KIB: usize = 1 << 10;
const PLAIN: WriteMode = WriteMode {
    append: false,
    clear_privileges: false,
};

fn place(parent: u64, name: &str) -> Place<'_> {
    Place {
        parent,
        name: name.as_bytes(),
    }
}

fn resize(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        ..SetAttr::default()
    }
}

#[test]
fn contents_survive_staging_settling_and_remounting() {
    let (storage, volume) = fresh();
    let files: Vec<(u64, Vec<u8>)> = [0, 1, 500, 4096, 40_000, 131_072, 131_073, 1_000_000]
        .iter()
        .map(|&len| {
            let data = text(len as u64, len);
            (put(&volume, &format!("f{len}.txt"), &data).ino, data)
        })
        .collect();
    let check = |volume: &s2sfs::volume::Volume| {
        for (ino, data) in &files {
            assert!(
                contents(volume, *ino) == *data,
                "file of {} bytes",
                data.len()
            );
        }
    };
    check(&volume);
    let volume = remount(&storage, volume);
    check(&volume);
    settle(&volume);
    check(&volume);
    let volume = remount(&storage, volume);
    check(&volume);
}

#[test]
fn a_hole_reads_as_zeros_and_takes_no_room() {
    let (_storage, volume) = fresh();
    let file = volume.create(ROOT, b"sparse", 0o644, caller()).unwrap();
    volume.write(file.ino, 10 << 30, b"end", PLAIN).unwrap();
    volume.flush(file.ino).unwrap();
    let stat = volume.getattr(file.ino).unwrap();
    assert_eq!(stat.attr.size, (10 << 30) + 3);
    assert!(stat.blocks > 0 && stat.blocks <= 8);
    assert_eq!(volume.read(file.ino, 1 << 30, 5).unwrap(), [0; 5]);
    assert_eq!(
        volume.read(file.ino, (10 << 30) - 2, 9).unwrap(),
        b"\0\0end"
    );
    assert_eq!(volume.seek(file.ino, 0, true).unwrap(), 10 << 30);
    assert_eq!(volume.seek(file.ino, 0, false).unwrap(), 0);
    assert!(matches!(
        volume.seek(file.ino, 20 << 30, true),
        Err(VolumeError::NoData)
    ));
}

#[test]
fn a_partial_overwrite_of_settled_data_shows_old_and_new_and_settles_again() {
    let (storage, volume) = fresh();
    let mut data = text(1, 300 * KIB);
    let ino = put(&volume, "a.txt", &data).ino;
    settle(&volume);
    for offset in [0, 5000, 128 * KIB - 7, 299 * KIB] {
        volume
            .write(ino, offset as u64, b"OVERWRITTEN", PLAIN)
            .unwrap();
        data[offset..offset + 11].copy_from_slice(b"OVERWRITTEN");
        assert!(contents(&volume, ino) == data);
        volume.flush(ino).unwrap();
        assert!(contents(&volume, ino) == data);
    }
    settle(&volume);
    assert!(contents(&volume, ino) == data);
    let info = volume.file_info(ino).unwrap();
    assert_eq!((info.extents.len(), info.staged_bytes), (3, 0));
    let volume = remount(&storage, volume);
    assert!(contents(&volume, ino) == data);
}

#[test]
fn truncation_inside_a_packed_slice_cuts_only_that_file() {
    let (storage, volume) = fresh();
    let names = ["a.txt", "b.txt", "c.txt"];
    let files: Vec<u64> = (0..3)
        .map(|i| put(&volume, names[i], &text(i as u64, 9000)).ino)
        .collect();
    settle(&volume);
    let blocks: Vec<u64> = files
        .iter()
        .map(|f| volume.file_info(*f).unwrap().extents[0].block)
        .collect();
    assert!(
        blocks.iter().all(|b| *b == blocks[0]),
        "the three files share a block"
    );
    volume.setattr(files[1], resize(100)).unwrap();
    volume.setattr(files[1], resize(200)).unwrap();
    let mut expected = text(1, 100);
    expected.resize(200, 0);
    assert_eq!(contents(&volume, files[1]), expected);
    let volume = remount(&storage, volume);
    assert_eq!(contents(&volume, files[1]), expected);
    assert!(contents(&volume, files[0]) == text(0, 9000));
    assert!(contents(&volume, files[2]) == text(2, 9000));
}

#[test]
fn a_packed_block_dies_with_its_last_file() {
    let (storage, volume) = fresh();
    for i in 0..40 {
        put(&volume, &format!("{i:02}.txt"), &noise(i, 20_000));
    }
    settle(&volume);
    for i in 0..40 {
        volume
            .unlink(ROOT, format!("{i:02}.txt").as_bytes())
            .unwrap();
    }
    settle(&volume);
    let volume = remount(&storage, volume);
    let status = volume.status().unwrap();
    assert_eq!((status.logical_bytes, status.files), (0, 0));
    assert!(status.codecs.is_empty(), "{:?}", status.codecs);
    assert!(
        status.log_bytes < 200_000,
        "{} bytes of log are left",
        status.log_bytes
    );
}

#[test]
fn sparse_packs_are_repacked() {
    let (storage, volume) = fresh();
    let files: Vec<u64> = (0..60)
        .map(|i| put(&volume, &format!("{i:02}.bin"), &noise(i, 10_000)).ino)
        .collect();
    settle(&volume);
    for i in (0..60).filter(|i| i % 5 != 0) {
        volume
            .unlink(ROOT, format!("{i:02}.bin").as_bytes())
            .unwrap();
    }
    settle(&volume);
    let volume = remount(&storage, volume);
    let status = volume.status().unwrap();
    assert!(
        status.log_bytes < 250_000,
        "{} bytes of log for 120,000 live ones",
        status.log_bytes
    );
    for i in (0..60).step_by(5) {
        assert!(contents(&volume, files[i]) == noise(i as u64, 10_000));
    }
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed() {
    let (storage, volume) = fresh();
    let data = text(3, 50_000);
    let ino = put(&volume, "f", &data).ino;
    volume.open_file(ino, false, false).unwrap();
    volume.unlink(ROOT, b"f").unwrap();
    assert!(matches!(
        volume.lookup(ROOT, b"f"),
        Err(VolumeError::NotFound)
    ));
    assert_eq!(volume.getattr(ino).unwrap().attr.nlink, 0);
    volume.write(ino, 10, b"still here", PLAIN).unwrap();
    assert_eq!(volume.read(ino, 10, 10).unwrap(), b"still here");
    settle(&volume);
    assert_eq!(volume.read(ino, 10, 10).unwrap(), b"still here");
    volume.release(ino);
    assert!(matches!(volume.getattr(ino), Err(VolumeError::Stale(_))));
    let volume = remount(&storage, volume);
    assert_eq!(volume.status().unwrap().files, 0);
}

#[test]
fn orphans_are_removed_at_the_next_mount() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", &text(3, 50_000)).ino;
    volume.open_file(ino, false, false).unwrap();
    volume.unlink(ROOT, b"f").unwrap();
    let volume = remount(&storage, volume);
    assert!(matches!(volume.getattr(ino), Err(VolumeError::Stale(_))));
    let status = volume.status().unwrap();
    assert_eq!((status.files, status.logical_bytes), (0, 0));
}

#[test]
fn hard_links_share_an_inode_and_count_right() {
    let (_storage, volume) = fresh();
    let dir = volume.mkdir(ROOT, b"d", 0o755, caller()).unwrap();
    let ino = put(&volume, "a", b"data").ino;
    assert_eq!(volume.link(ino, dir.ino, b"b").unwrap().attr.nlink, 2);
    assert!(matches!(
        volume.link(dir.ino, ROOT, b"x"),
        Err(VolumeError::NotPermitted)
    ));
    volume.unlink(ROOT, b"a").unwrap();
    let stat = volume.lookup(dir.ino, b"b").unwrap();
    assert_eq!((stat.ino, stat.attr.nlink), (ino, 1));
    assert_eq!(contents(&volume, ino), b"data");
}

#[test]
fn directory_link_counts_follow_subdirectories() {
    let (_storage, volume) = fresh();
    let a = volume.mkdir(ROOT, b"a", 0o755, caller()).unwrap().ino;
    let b = volume.mkdir(ROOT, b"b", 0o755, caller()).unwrap().ino;
    volume.mkdir(a, b"sub", 0o755, caller()).unwrap();
    let nlink = |ino| volume.getattr(ino).unwrap().attr.nlink;
    assert_eq!((nlink(ROOT), nlink(a), nlink(b)), (4, 3, 2));
    volume
        .rename(place(a, "sub"), place(b, "sub"), RenameMode::Replace)
        .unwrap();
    assert_eq!((nlink(ROOT), nlink(a), nlink(b)), (4, 2, 3));
    assert!(matches!(
        volume.rmdir(ROOT, b"b"),
        Err(VolumeError::NotEmpty)
    ));
    volume.rmdir(b, b"sub").unwrap();
    volume.rmdir(ROOT, b"b").unwrap();
    assert_eq!(nlink(ROOT), 3);
}

#[test]
fn rename_obeys_its_flags_and_refuses_cycles() {
    let (_storage, volume) = fresh();
    let a = put(&volume, "a", b"A").ino;
    let b = put(&volume, "b", b"B").ino;
    let error = volume.rename(place(ROOT, "a"), place(ROOT, "b"), RenameMode::NoReplace);
    assert!(matches!(error, Err(VolumeError::Exists)));
    volume
        .rename(place(ROOT, "a"), place(ROOT, "b"), RenameMode::Exchange)
        .unwrap();
    assert_eq!(volume.lookup(ROOT, b"a").unwrap().ino, b);
    assert_eq!(volume.lookup(ROOT, b"b").unwrap().ino, a);
    volume
        .rename(place(ROOT, "a"), place(ROOT, "b"), RenameMode::Replace)
        .unwrap();
    assert_eq!(volume.lookup(ROOT, b"b").unwrap().ino, b);
    assert!(volume.getattr(a).is_err());
    let d = volume.mkdir(ROOT, b"d", 0o755, caller()).unwrap().ino;
    let e = volume.mkdir(d, b"e", 0o755, caller()).unwrap().ino;
    let cycle = volume.rename(place(ROOT, "d"), place(e, "d"), RenameMode::Replace);
    assert!(matches!(cycle, Err(VolumeError::Invalid(_))));
    let over = volume.rename(place(ROOT, "b"), place(ROOT, "d"), RenameMode::Replace);
    assert!(matches!(over, Err(VolumeError::IsDirectory)));
    let missing = volume.rename(place(ROOT, "d"), place(ROOT, "zz"), RenameMode::Exchange);
    assert!(matches!(missing, Err(VolumeError::NotFound)));
}

#[test]
fn exchange_of_a_file_and_a_directory_moves_the_link_counts() {
    let (_storage, volume) = fresh();
    let a = volume.mkdir(ROOT, b"a", 0o755, caller()).unwrap().ino;
    let sub = volume.mkdir(a, b"sub", 0o755, caller()).unwrap().ino;
    let f = put(&volume, "f", b"F").ino;
    volume
        .rename(place(a, "sub"), place(ROOT, "f"), RenameMode::Exchange)
        .unwrap();
    assert_eq!(volume.lookup(ROOT, b"f").unwrap().ino, sub);
    assert_eq!(volume.lookup(a, b"sub").unwrap().ino, f);
    let nlink = |ino| volume.getattr(ino).unwrap().attr.nlink;
    assert_eq!((nlink(ROOT), nlink(a)), (4, 2));
}

#[test]
fn attributes_survive_a_remount() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    let time = Timestamp {
        secs: -5,
        nanos: 123_456_789,
    };
    let set = SetAttr {
        perm: Some(0o4711),
        uid: Some(7),
        gid: Some(8),
        atime: Some(time),
        mtime: Some(time),
        ..SetAttr::default()
    };
    volume.setattr(ino, set).unwrap();
    let before = volume.getattr(ino).unwrap();
    let volume = remount(&storage, volume);
    assert_eq!(volume.getattr(ino).unwrap(), before);
    assert_eq!((before.attr.perm, before.attr.mtime), (0o4711, time));
}

#[test]
fn chown_and_unprivileged_writes_clear_suid() {
    let (_storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    let perm = |p| SetAttr {
        perm: Some(p),
        ..SetAttr::default()
    };
    volume.setattr(ino, perm(0o6755)).unwrap();
    let chown = SetAttr {
        uid: Some(9),
        ..SetAttr::default()
    };
    assert_eq!(volume.setattr(ino, chown).unwrap().attr.perm, 0o755);
    volume.setattr(ino, perm(0o6755)).unwrap();
    volume
        .setxattr(ino, b"security.capability", b"x", false, false)
        .unwrap();
    let mode = WriteMode {
        clear_privileges: true,
        append: false,
    };
    assert_eq!(volume.write(ino, 0, b"D", mode).unwrap().attr.perm, 0o755);
    assert!(matches!(
        volume.getxattr(ino, b"security.capability"),
        Err(VolumeError::NoAttribute)
    ));
}

#[test]
fn setgid_directories_pass_their_group_on() {
    let (_storage, volume) = fresh();
    let dir = volume.mkdir(ROOT, b"d", 0o755, caller()).unwrap().ino;
    let set = SetAttr {
        perm: Some(0o2775),
        gid: Some(50),
        ..SetAttr::default()
    };
    volume.setattr(dir, set).unwrap();
    let who = Caller {
        uid: 5,
        gid: 6,
        umask: 0,
    };
    let file = volume
        .mknod(dir, b"f", libc::S_IFREG | 0o644, 0, who)
        .unwrap();
    assert_eq!(
        (file.attr.uid, file.attr.gid, file.attr.perm),
        (5, 50, 0o644)
    );
    let sub = volume.mkdir(dir, b"s", 0o755, who).unwrap();
    assert_eq!((sub.attr.gid, sub.attr.perm), (50, 0o2755));
}

#[test]
fn special_files_and_symlinks_keep_what_they_are() {
    let (storage, volume) = fresh();
    let device = volume
        .mknod(ROOT, b"null", libc::S_IFCHR | 0o666, 0x103, caller())
        .unwrap();
    let target = vec![b'x'; 1000];
    let link = volume.symlink(ROOT, b"l", &target, caller()).unwrap();
    assert_eq!(link.attr.size, 1000);
    let volume = remount(&storage, volume);
    let device = volume.getattr(device.ino).unwrap().attr;
    assert_eq!((device.kind, device.rdev), (FileKind::CharDevice, 0x103));
    assert_eq!(volume.readlink(link.ino).unwrap(), target);
    volume.unlink(ROOT, b"l").unwrap();
    assert!(volume.readlink(link.ino).is_err());
}

#[test]
fn extended_attributes_of_any_size_survive() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f", b"data").ino;
    let big = noise(1, 65536);
    volume
        .setxattr(ino, b"user.big", &big, false, false)
        .unwrap();
    volume.setxattr(ino, b"user.bi", b"", true, false).unwrap();
    let exists = volume.setxattr(ino, b"user.bi", b"x", true, false);
    assert!(matches!(exists, Err(VolumeError::Exists)));
    let missing = volume.setxattr(ino, b"user.none", b"x", false, true);
    assert!(matches!(missing, Err(VolumeError::NoAttribute)));
    let virtual_one = volume.setxattr(ino, b"user.s2sfs.codec", b"x", false, false);
    assert!(matches!(virtual_one, Err(VolumeError::NotPermitted)));
    let volume = remount(&storage, volume);
    assert_eq!(
        volume.listxattr(ino).unwrap(),
        [b"user.bi".to_vec(), b"user.big".to_vec()]
    );
    assert!(volume.getxattr(ino, b"user.big").unwrap() == big);
    assert_eq!(volume.getxattr(ino, b"user.bi").unwrap(), b"");
    assert_eq!(volume.getxattr(ino, b"user.s2sfs.extents").unwrap(), b"1");
    volume
        .setxattr(ino, b"user.big", b"small", false, true)
        .unwrap();
    assert_eq!(volume.getxattr(ino, b"user.big").unwrap(), b"small");
    volume.removexattr(ino, b"user.big").unwrap();
    assert_eq!(volume.listxattr(ino).unwrap().len(), 1);
}

#[test]
fn a_directory_stream_keeps_its_positions_while_entries_come_and_go() {
    let (_storage, volume) = fresh();
    for i in 0..3000 {
        volume
            .mknod(
                ROOT,
                format!("{i:04}").as_bytes(),
                libc::S_IFREG | 0o644,
                0,
                caller(),
            )
            .unwrap();
    }
    let mut stream = volume.open_dir(ROOT).unwrap();
    let mut seen = Vec::new();
    let mut position = 0;
    while let Some(entry) = stream.entry(&volume, position).unwrap() {
        seen.push(entry.name.clone());
        position += 1;
        if position % 7 == 0 {
            volume.unlink(ROOT, seen.last().unwrap()).unwrap();
        }
    }
    assert_eq!(seen.len(), 3002);
    assert_eq!(stream.entry(&volume, 5).unwrap().unwrap().name, seen[5]);
    assert!(seen.windows(2).skip(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn small_synced_appends_do_not_pile_up_extents() {
    let (_storage, volume) = fresh();
    let file = volume.create(ROOT, b"log", 0o644, caller()).unwrap();
    let mut expected = Vec::new();
    for i in 0..500u64 {
        let line = text(i, 100);
        let mode = WriteMode {
            append: true,
            clear_privileges: false,
        };
        volume.write(file.ino, 0, &line, mode).unwrap();
        volume.fsync(file.ino).unwrap();
        expected.extend_from_slice(&line);
    }
    assert!(contents(&volume, file.ino) == expected);
    let extents = volume.file_info(file.ino).unwrap().extents.len();
    assert!(extents <= 49, "{extents} extents");
}

#[test]
fn a_punched_hole_reads_as_zeros() {
    let (_storage, volume) = fresh();
    let mut data = noise(5, 300_000);
    let ino = put(&volume, "f", &data).ino;
    settle(&volume);
    volume.punch_hole(ino, 100_000, 100_000).unwrap();
    data[100_000..200_000].fill(0);
    assert!(contents(&volume, ino) == data);
    assert_eq!(volume.seek(ino, 50_000, false).unwrap(), 100_000);
    assert_eq!(volume.seek(ino, 100_000, true).unwrap(), 200_000);
    settle(&volume);
    assert!(contents(&volume, ino) == data);
}

#[test]
fn names_are_checked() {
    let (_storage, volume) = fresh();
    let long = vec![b'x'; 256];
    let error = volume.mkdir(ROOT, &long, 0o755, caller());
    assert!(matches!(error, Err(VolumeError::NameTooLong)));
    assert!(matches!(
        volume.lookup(ROOT, &long),
        Err(VolumeError::NameTooLong)
    ));
    assert!(volume.mkdir(ROOT, b"a/b", 0o755, caller()).is_err());
    let file = put(&volume, "f", b"x").ino;
    assert!(matches!(
        volume.mkdir(file, b"d", 0o755, caller()),
        Err(VolumeError::NotDirectory)
    ));
    assert!(matches!(
        volume.unlink(ROOT, b"none"),
        Err(VolumeError::NotFound)
    ));
    volume.mkdir(ROOT, b"d", 0o755, caller()).unwrap();
    assert!(matches!(
        volume.unlink(ROOT, b"d"),
        Err(VolumeError::IsDirectory)
    ));
    assert!(matches!(
        volume.rmdir(ROOT, b"f"),
        Err(VolumeError::NotDirectory)
    ));
}
