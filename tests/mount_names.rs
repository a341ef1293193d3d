//! Limits of names, links, directories and sizes.

mod common;

use common::mounted::Mounted;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, SeekFrom, mknodat, renameat_with, seek};
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::time::Instant;

#[test]
fn names_and_targets_are_as_long_as_linux_has_them() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let longest = "n".repeat(255);
    fs::write(mounted.file(&longest), b"x").unwrap();
    assert_eq!(fs::read(mounted.file(&longest)).unwrap(), b"x");
    let error = fs::write(mounted.file(&"n".repeat(256)), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe \n");
    use std::os::unix::ffi::OsStrExt;
    fs::write(mounted.path().join(bytes), b"y").unwrap();
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 2);
    let target = "t/".repeat(2047) + "t";
    symlink(&target, mounted.file("link")).unwrap();
    let link = fs::read_link(mounted.file("link")).unwrap();
    assert_eq!(link.as_os_str().len(), 4095);
    assert_eq!(
        fs::symlink_metadata(mounted.file("link")).unwrap().len(),
        4095
    );
    let error = symlink("t".repeat(4096), mounted.file("long")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn a_large_directory_is_listed_whole_while_it_is_emptied() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    const ENTRIES: usize = 20_000;
    let dir = mounted.file("d");
    fs::create_dir(&dir).unwrap();
    let timed = |what: &str, act: &mut dyn FnMut()| {
        let begun = Instant::now();
        act();
        eprintln!(
            "{what} {ENTRIES} entries: {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    };
    timed("making", &mut || {
        for i in 0..ENTRIES {
            File::create(dir.join(format!("entry {i}"))).unwrap();
        }
    });
    let mut seen = HashSet::new();
    timed("listing and removing", &mut || {
        for (n, entry) in fs::read_dir(&dir).unwrap().enumerate() {
            let entry = entry.unwrap();
            assert!(
                seen.insert(entry.file_name()),
                "{:?} twice",
                entry.file_name()
            );
            if n % 2 == 0 {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    });
    assert_eq!(seen.len(), ENTRIES);
    mounted.remount();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), ENTRIES / 2);
    timed("removing half of", &mut || {
        fs::remove_dir_all(&dir).unwrap()
    });
    mounted.check();
}

#[test]
fn names_that_go_while_they_are_listed_do_not_come_back() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (dir, other) = (mounted.file("d"), mounted.file("other"));
    fs::create_dir(&dir).unwrap();
    fs::create_dir(&other).unwrap();
    let names: Vec<String> = (0..1000).map(|i| format!("{i:04}")).collect();
    for name in &names {
        File::create(dir.join(name)).unwrap();
        fs::hard_link(dir.join(name), other.join(name)).unwrap();
    }
    mounted.volume().sync_everything().unwrap();
    let mut listing = fs::read_dir(&dir).unwrap();
    // Looking at some makes the kernel ask for attributes together with names.
    for _ in 0..20 {
        listing.next().unwrap().unwrap().metadata().unwrap();
    }
    for name in &names[100..] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    for entry in listing {
        let _ = entry.unwrap().metadata();
    }
    for name in &names[100..] {
        assert!(!dir.join(name).exists(), "{name} is back");
        File::create_new(dir.join(name)).unwrap();
        assert_eq!(fs::metadata(other.join(name)).unwrap().nlink(), 1);
    }
}

#[test]
fn a_sparse_file_of_a_hundred_gigabytes_takes_what_was_written() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    const SIZE: u64 = 100 << 30;
    let path = mounted.file("sparse");
    let file = File::create_new(&path).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", SIZE / 2).unwrap();
    file.write_all_at(b"end", SIZE - 3).unwrap();
    drop(file);
    mounted.remount();
    let file = File::open(&path).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() <= 24, "{} blocks", meta.blocks());
    let mut back = [0; 8];
    file.read_exact_at(&mut back, SIZE / 2 - 1).unwrap();
    assert_eq!(&back, b"\0middle\0");
    file.read_exact_at(&mut back[..3], SIZE - 3).unwrap();
    assert_eq!(&back[..3], b"end");
    let next = |from| seek(&file, from);
    assert_eq!(next(SeekFrom::Data(4096)).unwrap(), SIZE / 2);
    assert!(next(SeekFrom::Hole(SIZE / 2)).unwrap() <= SIZE / 2 + 4096);
    assert!(next(SeekFrom::Data(SIZE / 2 + 4096)).unwrap() >= SIZE - 4096);
    assert_eq!(next(SeekFrom::Hole(SIZE - 3)).unwrap(), SIZE);
    assert_eq!(next(SeekFrom::Data(SIZE)), Err(rustix::io::Errno::NXIO));
    drop(file);
    fs::remove_file(&path).unwrap();
    mounted.check();
}

#[test]
fn files_removed_just_before_an_unmount_are_gone_after_it() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    for i in 0..300 {
        let path = mounted.file(&format!("{i}"));
        fs::write(&path, b"for a moment").unwrap();
        fs::remove_file(&path).unwrap();
    }
    // Reading only, so that this mount does not clean up after the first.
    mounted.remount_with(s2sfs::volume::VolumeOptions {
        read_only: true,
        ..common::quiet_options()
    });
    assert_eq!(mounted.volume().status().unwrap().files, 0);
}

#[test]
fn rename_flags_are_obeyed() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (a, b) = (mounted.file("a"), mounted.file("b"));
    fs::write(&a, b"A").unwrap();
    fs::create_dir(&b).unwrap();
    let rename = |flags| renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(
        rename(RenameFlags::NOREPLACE),
        Err(rustix::io::Errno::EXIST)
    );
    rename(RenameFlags::EXCHANGE).unwrap();
    assert!(a.is_dir() && fs::read(&b).unwrap() == b"A");
    assert!(rename(RenameFlags::WHITEOUT).is_err());
    fs::remove_file(&b).unwrap();
    rename(RenameFlags::NOREPLACE).unwrap();
    assert!(b.is_dir() && !a.exists());
}

#[test]
fn special_files_and_links_are_what_they_were_made() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let make = |name: &str, kind, device| {
        mknodat(
            CWD,
            mounted.file(name),
            kind,
            Mode::from_raw_mode(0o640),
            device,
        )
        .unwrap()
    };
    make("fifo", FileType::Fifo, 0);
    make("socket", FileType::Socket, 0);
    make("char", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    make(
        "block",
        FileType::BlockDevice,
        rustix::fs::makedev(259, 70_000),
    );
    fs::create_dir(mounted.file("d")).unwrap();
    fs::hard_link(mounted.file("fifo"), mounted.file("d/second")).unwrap();
    mounted.remount();
    let meta = |name: &str| fs::symlink_metadata(mounted.file(name)).unwrap();
    assert!(meta("fifo").file_type().is_fifo() && meta("fifo").nlink() == 2);
    assert_eq!(meta("fifo").ino(), meta("d/second").ino());
    assert!(meta("socket").file_type().is_socket());
    assert_eq!(meta("char").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(meta("block").rdev(), rustix::fs::makedev(259, 70_000));
    assert_eq!(meta("char").mode() & 0o777, 0o640 & !0o022);
    assert_eq!(
        meta("d/..").ino(),
        fs::metadata(mounted.path()).unwrap().ino()
    );
    assert_eq!((meta("d").nlink(), meta(".").nlink()), (2, 3));
}
