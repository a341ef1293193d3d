//! A copy that does not read back as it was written is found out, and never gets its name.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use s2sfs::transfer::tree::{Attribute, Contents, Meta, Output, Result, Target, Tree, TreeError};
use s2sfs::transfer::{CopyError, CopyOptions, HostTree, Report, Verify, Watch, copy};

/// What goes wrong with a target.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// A bit of files of this size is another one when they are read back.
    Bit(u64),
    /// Files of this size end early.
    Short(u64),
    /// The disk is full once so many bytes are written.
    Full(u64),
    /// Nothing can be renamed.
    Rename,
}

struct Faulty {
    tree: HostTree,
    fault: Fault,
    written: AtomicU64,
}

type Dir = <HostTree as Tree>::Dir;

impl Tree for Faulty {
    type Dir = Dir;

    fn root(&self) -> Result<Dir> {
        self.tree.root()
    }

    fn names(&self, dir: &Dir) -> Result<Vec<Vec<u8>>> {
        self.tree.names(dir)
    }

    fn meta(&self, dir: &Dir, name: &[u8]) -> Result<Meta> {
        self.tree.meta(dir, name)
    }

    fn open_dir(&self, dir: &Dir, name: &[u8]) -> Result<Dir> {
        self.tree.open_dir(dir, name)
    }

    fn symlink_target(&self, dir: &Dir, name: &[u8]) -> Result<Vec<u8>> {
        self.tree.symlink_target(dir, name)
    }

    fn attribute_names(&self, dir: &Dir, name: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.tree.attribute_names(dir, name)
    }

    fn attribute(&self, dir: &Dir, name: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.tree.attribute(dir, name, key)
    }

    fn open(&self, dir: &Dir, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        self.tree.open(dir, name)
    }
}

impl Target for Faulty {
    fn make_dir(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.tree.make_dir(dir, name, wanted)
    }

    fn make_symlink(&self, dir: &Dir, name: &[u8], target: &[u8], wanted: &Meta) -> Result<()> {
        self.tree.make_symlink(dir, name, target, wanted)
    }

    fn make_node(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.tree.make_node(dir, name, wanted)
    }

    fn create(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<Box<dyn Output + '_>> {
        Ok(Box::new(FaultyFile {
            tree: self,
            file: self.tree.create(dir, name, wanted)?,
        }))
    }

    fn link(&self, from: &Dir, name: &[u8], to: &Dir, new: &[u8]) -> Result<()> {
        self.tree.link(from, name, to, new)
    }

    fn rename(&self, dir: &Dir, from: &[u8], to: &[u8]) -> Result<()> {
        match self.fault {
            Fault::Rename => Err(error(libc::EPERM)),
            _ => self.tree.rename(dir, from, to),
        }
    }

    fn remove(&self, dir: &Dir, name: &[u8]) -> Result<()> {
        self.tree.remove(dir, name)
    }

    fn set_owner(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.tree.set_owner(dir, name, wanted)
    }

    fn set_mode_and_times(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.tree.set_mode_and_times(dir, name, wanted)
    }

    fn set_attribute(&self, dir: &Dir, name: &[u8], attribute: &Attribute) -> Result<()> {
        self.tree.set_attribute(dir, name, attribute)
    }

    fn remove_attribute(&self, dir: &Dir, name: &[u8], attribute: &[u8]) -> Result<()> {
        self.tree.remove_attribute(dir, name, attribute)
    }

    fn barrier(&self) -> Result<()> {
        self.tree.barrier()
    }

    fn sync_all(&self) -> Result<()> {
        self.tree.sync_all()
    }

    fn reopen(&self, dir: &Dir, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        Ok(Box::new(FaultyContents {
            fault: self.fault,
            size: self.tree.meta(dir, name)?.size,
            file: self.tree.reopen(dir, name)?,
        }))
    }
}

fn error(errno: i32) -> TreeError {
    TreeError::Io(std::io::Error::from_raw_os_error(errno))
}

struct FaultyFile<'a> {
    tree: &'a Faulty,
    file: Box<dyn Output + 'a>,
}

impl Output for FaultyFile<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        let before = self.tree.written.fetch_add(len, Relaxed);
        match self.tree.fault {
            Fault::Full(most) if before + len > most => Err(error(libc::ENOSPC)),
            _ => self.file.write(offset, data),
        }
    }

    fn finish(self: Box<Self>, size: u64) -> Result<()> {
        self.file.finish(size)
    }
}

struct FaultyContents<'a> {
    fault: Fault,
    size: u64,
    file: Box<dyn Contents + 'a>,
}

impl Contents for FaultyContents<'_> {
    fn meta(&self) -> Result<Meta> {
        let mut meta = self.file.meta()?;
        if self.fault == Fault::Short(self.size) {
            meta.size -= 1;
        }
        Ok(meta)
    }

    fn data_from(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.file.data_from(offset)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let len = self.file.read(offset, buf)?;
        if self.fault == Fault::Bit(self.size) {
            buf[len / 2] ^= 1;
        }
        Ok(len)
    }
}

/// Copies files of 100, 200, ... 900 bytes and a second name of the one with 500.
fn copied(fault: Fault, verify: Verify, to: &Path) -> std::result::Result<Report, CopyError> {
    let from = tempfile::tempdir().unwrap();
    for number in 1..10u8 {
        let path = from.path().join(number.to_string());
        fs::write(path, vec![number; usize::from(number) * 100]).unwrap();
    }
    fs::hard_link(from.path().join("5"), from.path().join("five")).unwrap();
    let source = HostTree::open(from.path()).unwrap();
    let target = Faulty {
        tree: HostTree::open(to).unwrap(),
        fault,
        written: AtomicU64::new(0),
    };
    let root = rustix::process::geteuid();
    let options = CopyOptions {
        threads: 2,
        verify,
        exclude: Vec::new(),
        one_file_system: false,
        as_root: root.is_root(),
        owner: (root.as_raw(), rustix::process::getegid().as_raw()),
    };
    let watch = Watch {
        stop: &AtomicBool::new(false),
        progress: &|_| {},
        last: &|| {},
    };
    copy(&source, &target, &options, &watch)
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_that_reads_back_otherwise_is_reported_and_gets_no_name_nor_do_its_links() {
    for fault in [Fault::Bit(500), Fault::Short(500)] {
        let to = tempfile::tempdir().unwrap();
        let report = copied(fault, Verify::Full, to.path()).unwrap();
        let failed: Vec<(&str, &str)> = report
            .failed
            .iter()
            .map(|failed| (&*failed.path, &*failed.why))
            .collect();
        let expected = [
            (
                "5",
                "the copy reads back with other contents than were written",
            ),
            ("five", "another name of it could not be copied"),
        ];
        assert_eq!(failed, expected);
        assert_eq!((report.files, report.verified, report.failures), (8, 8, 2));
        assert_eq!(names(to.path()), ["1", "2", "3", "4", "6", "7", "8", "9"]);
    }
}

#[test]
fn without_verifying_nobody_looks() {
    let to = tempfile::tempdir().unwrap();
    let report = copied(Fault::Bit(500), Verify::Off, to.path()).unwrap();
    assert_eq!((report.files, report.verified, report.failures), (9, 0, 0));
    assert_eq!(report.hard_links, 1);
}

#[test]
fn a_full_disk_ends_the_copy_and_leaves_no_half_files() {
    let to = tempfile::tempdir().unwrap();
    let error = copied(Fault::Full(2000), Verify::Full, to.path()).unwrap_err();
    assert!(error.is_fatal(), "{error}");
    for name in names(to.path()) {
        let number: usize = name.parse().expect("only whole files");
        let size = fs::metadata(to.path().join(&name)).unwrap().len();
        assert_eq!(size, number as u64 * 100);
    }
}

#[test]
fn what_cannot_be_renamed_is_removed() {
    let to = tempfile::tempdir().unwrap();
    let report = copied(Fault::Rename, Verify::Sample, to.path()).unwrap();
    assert_eq!((report.files, report.failures), (0, 10));
    assert_eq!(names(to.path()), Vec::<String>::new());
}
