//! The check of a whole volume: silent on good ones, and names what is hit on damaged ones.

mod common;

use std::sync::Arc;

use common::*;
use s2sfs::store::{Fault, Op, OpenOptions, SimOp, SimStorage, Storage, Store, Transaction};
use s2sfs::volume::{CheckReport, ROOT, Volume, WriteMode, check, repair};

fn check_store(store: Store) -> CheckReport {
    check(&Arc::new(store), &codecs(), 2, &|_, _| {}).unwrap()
}

fn checked(storage: &SimStorage) -> CheckReport {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    check_store(Store::open(Arc::new(storage.clone()), &options).unwrap())
}

fn assert_sound(report: &CheckReport) {
    assert_eq!(report.damage, [], "{report:?}");
}

/// Files of many kinds, half of them settled.
fn fill(volume: &Volume) {
    let dir = volume.mkdir(ROOT, b"dir", 0o755, caller()).unwrap().ino;
    for (number, len) in [0, 1, 500, 5000, 131_072, 400_000].into_iter().enumerate() {
        put_in(
            volume,
            dir,
            &format!("text{number}.txt"),
            &text(number as u64, len),
        );
        put(
            volume,
            &format!("noise{number}"),
            &noise(number as u64, len / 2),
        );
    }
    settle(volume);
    let late = put(volume, "late", &text(77, 200_000)).ino;
    volume
        .write(late, 50_000, b"changed", WriteMode::default())
        .unwrap();
    volume.flush(late).unwrap();
    volume.link(late, dir, b"other name").unwrap();
    volume
        .symlink(ROOT, b"link", b"dir/late", caller())
        .unwrap();
    volume.unlink(ROOT, b"noise1").unwrap();
}

#[test]
fn a_volume_with_everything_in_it_is_sound_closed_or_crashed() {
    let (storage, volume) = fresh();
    assert_sound(&{
        volume.shutdown().unwrap();
        drop(volume);
        checked(&storage)
    });
    let volume = open(&storage);
    fill(&volume);
    let volume = remount(&storage, volume);
    settle(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    let report = checked(&storage);
    assert_sound(&report);
    // Twelve from the loop, late and link, without the one that was removed; a link is no file more.
    assert_eq!((report.files, report.directories), (13, 2));
    assert!(report.blocks > 0 && report.decoded_bytes >= 1_000_000);

    let volume = open(&storage);
    let orphan = put(&volume, "orphan", &text(5, 100_000)).ino;
    volume.open_file(orphan, false, false).unwrap();
    volume.unlink(ROOT, b"orphan").unwrap();
    volume.abandon();
    drop(volume);
    assert_sound(&checked(&storage));
}

#[test]
fn every_changed_byte_in_a_block_is_found_and_the_files_that_it_hits_are_named() {
    let (storage, volume) = fresh();
    let dir = volume.mkdir(ROOT, b"sub", 0o755, caller()).unwrap().ino;
    put_in(&volume, dir, "a.bin", &noise(1, 100_000));
    put_in(&volume, dir, "b.bin", &noise(2, 100_000));
    settle(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    let segment = largest_segment(&storage);
    let len = storage.open(&segment, false).unwrap().size().unwrap();
    let mut hit = std::collections::BTreeSet::new();
    for at in [len / 8, len / 3, len / 2, len * 3 / 4, len * 7 / 8] {
        flip(&storage, &segment, at);
        let report = checked(&storage);
        assert!(!report.damage.is_empty(), "byte {at} of {len}");
        hit.extend(report.damage.into_iter().flat_map(|damage| damage.files));
        flip(&storage, &segment, at);
    }
    assert_sound(&checked(&storage));
    let paths: Vec<_> = hit.iter().map(String::as_str).collect();
    assert_eq!(paths, ["sub/a.bin", "sub/b.bin"]);
}

#[test]
fn metadata_that_contradicts_itself_is_found() {
    let inode = |ino: u64| [b"I".as_slice(), &ino.to_be_bytes()].concat();
    let name = [b"D".as_slice(), &ROOT.to_be_bytes(), b"file"].concat();
    let breakages: [(&str, &dyn Fn(u64) -> Op); 3] = [
        ("does not exist", &|ino| Op::Delete { key: inode(ino) }),
        ("has no name", &|_| Op::Delete { key: name.clone() }),
        ("bad varint", &|ino| Op::Put {
            key: inode(ino),
            value: vec![0xff; 3],
        }),
    ];
    for (words, breakage) in breakages {
        let (storage, volume) = fresh();
        let ino = put(&volume, "file", &text(1, 1000)).ino;
        volume.shutdown().unwrap();
        drop(volume);
        let store = Store::open(Arc::new(storage.clone()), &OpenOptions::default()).unwrap();
        store
            .commit(Transaction {
                ops: vec![breakage(ino)],
            })
            .unwrap();
        let report = check_store(store);
        let found = report
            .damage
            .iter()
            .any(|damage| damage.what.contains(words));
        assert!(found, "'{words}' is not in {report:?}");
    }
}

#[test]
fn data_that_was_staged_under_longer_extents_settles_once_under_shorter_ones() {
    let (storage, volume) = fresh();
    let data = noise(1, 60_000);
    let ino = put(&volume, "file", &data).ino;
    volume.shutdown().unwrap();
    drop(volume);
    let options = s2sfs::volume::VolumeOptions {
        extent: 4096,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let newer = noise(2, 3000);
    for at in [5000, 9000, 30_000] {
        volume.write(ino, at, &newer, WriteMode::default()).unwrap();
    }
    volume.flush(ino).unwrap();
    settle(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    assert_sound(&checked(&storage));
}

fn largest_segment(storage: &SimStorage) -> String {
    let names = storage
        .list("log")
        .unwrap()
        .into_iter()
        .map(|entry| format!("log/{}", entry.name));
    names
        .max_by_key(|path| storage.open(path, false).unwrap().size().unwrap())
        .unwrap()
}

fn flip(storage: &SimStorage, path: &str, at: u64) {
    let file = storage.open(path, true).unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(at, &mut byte).unwrap(), 1);
    file.write_at(at, &[&[byte[0] ^ 0x20]]).unwrap();
}

#[test]
fn a_repair_gives_nothing_up_because_a_disk_fails_to_read_it() {
    let (storage, volume) = fresh();
    fill(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    let contents = |storage: &SimStorage| {
        let files = storage.files().into_iter();
        files
            .map(|path| (storage.contents(&path), path))
            .collect::<Vec<_>>()
    };
    let before = contents(&storage);
    // Threads of a volume or repair that has ended let go of the store a little later.
    let mend = || {
        let options = OpenOptions::default();
        loop {
            let storage = Arc::new(storage.clone());
            match repair(storage, &options, &codecs(), 2, &|_, _| {}) {
                Err(error) if error.to_string().contains("in use") => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                other => return other,
            }
        }
    };
    let mut refused = 0;
    for read in (0..60).step_by(3) {
        storage.set_fault(Some(Fault::FailKind(SimOp::Read, read, libc::EIO)));
        let result = mend();
        storage.set_fault(None);
        match result {
            Err(error) => {
                assert_eq!(error.errno(), libc::EIO, "{error}");
                refused += 1;
            }
            // it had fewer reads than that
            Ok(report) => assert!(!report.changed, "{report:?}"),
        }
        assert_eq!(contents(&storage), before, "read {read}");
    }
    assert!(refused > 5, "{refused}");
    let report = mend().unwrap();
    assert!(!report.changed && report.found.is_empty(), "{report:?}");
}
