//! Trees with everything that a file system can hold, and whether two of them are the same.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, makedev,
};

use super::cli::{sample, skipped};

/// What of two trees is compared beside names, kinds, contents, permissions, owners, links and attributes.
#[derive(Debug, Clone, Copy)]
pub struct Compare {
    /// Access times of regular files.
    pub access_times: bool,
    pub owners: bool,
}

pub const ALL: Compare = Compare {
    access_times: true,
    owners: true,
};

fn walk(root: &Path, at: &Path, found: &mut BTreeMap<PathBuf, Metadata>) {
    let path = root.join(at);
    found.insert(at.to_owned(), fs::symlink_metadata(&path).unwrap());
    if !found[at].is_dir() {
        return;
    }
    for entry in fs::read_dir(&path).unwrap() {
        walk(root, &at.join(entry.unwrap().file_name()), found);
    }
}

/// Everything under a directory, itself included, by path.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Metadata> {
    let mut found = BTreeMap::new();
    walk(root, Path::new(""), &mut found);
    found
}

pub fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
    let names: Vec<Vec<u8>> = buffer[..len]
        .split(|b| *b == 0)
        .map(<[u8]>::to_vec)
        .collect();
    let own = |name: &Vec<u8>| !name.is_empty() && name != b"security.selinux";
    names
        .into_iter()
        .filter(own)
        .map(|name| {
            let len = rustix::fs::lgetxattr(path, &name, &mut buffer[..]).unwrap();
            (name, buffer[..len].to_vec())
        })
        .collect()
}

/// Reads a file without moving its access time.
pub fn contents(path: &Path) -> Vec<u8> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOATIME);
    let mut data = Vec::new();
    let file = options.open(path).or_else(|_| File::open(path));
    file.unwrap().read_to_end(&mut data).unwrap();
    data
}

/// The names of each file with several, in sets.
fn links(tree: &BTreeMap<PathBuf, Metadata>) -> BTreeSet<BTreeSet<PathBuf>> {
    let mut files: BTreeMap<(u64, u64), BTreeSet<PathBuf>> = BTreeMap::new();
    for (path, meta) in tree.iter().filter(|(_, meta)| !meta.is_dir()) {
        let names = files.entry((meta.dev(), meta.ino())).or_default();
        names.insert(path.clone());
    }
    files
        .into_values()
        .filter(|names| names.len() > 1)
        .collect()
}

/// Fails with a list of all differences between two trees.
pub fn assert_same_tree(original: &Path, copy: &Path, what: Compare) {
    let (left, right) = (tree(original), tree(copy));
    let mut wrong = Vec::new();
    for path in right.keys().filter(|path| !left.contains_key(*path)) {
        wrong.push(format!("{path:?} is new"));
    }
    for (path, meta) in &left {
        match right.get(path) {
            None => wrong.push(format!("{path:?} is missing")),
            Some(other) => {
                let (here, there) = (original.join(path), copy.join(path));
                differences(&here, meta, &there, other, what, &mut |why| {
                    wrong.push(format!("{path:?}: {why}"));
                });
            }
        }
    }
    if links(&left) != links(&right) {
        wrong.push(format!("links {:?}, not {:?}", links(&right), links(&left)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differences(
    here: &Path,
    a: &Metadata,
    there: &Path,
    b: &Metadata,
    what: Compare,
    wrong: &mut dyn FnMut(String),
) {
    let mut compare = |name: &str, a: String, b: String| {
        if a != b {
            wrong(format!("{name} {b}, not {a}"));
        }
    };
    compare("mode", format!("{:o}", a.mode()), format!("{:o}", b.mode()));
    if what.owners {
        let owner = |m: &Metadata| format!("{}:{}", m.uid(), m.gid());
        compare("owner", owner(a), owner(b));
    }
    compare("device", a.rdev().to_string(), b.rdev().to_string());
    let mtime = |m: &Metadata| format!("{}.{:09}", m.mtime(), m.mtime_nsec());
    compare("mtime", mtime(a), mtime(b));
    compare(
        "attributes",
        format!("{:?}", attributes(here)),
        format!("{:?}", attributes(there)),
    );
    if a.is_symlink() && b.is_symlink() {
        let target = |path: &Path| format!("{:?}", fs::read_link(path).unwrap());
        compare("target", target(here), target(there));
    }
    if a.is_file() && b.is_file() {
        let atime = |m: &Metadata| format!("{}.{:09}", m.atime(), m.atime_nsec());
        if what.access_times {
            compare("atime", atime(a), atime(b));
        }
        compare("size", a.size().to_string(), b.size().to_string());
        let is_sparse = |m: &Metadata| (m.blocks() * 512 < m.size() / 2).to_string();
        if is_sparse(a) == "true" {
            compare("sparse", is_sparse(a), is_sparse(b));
        }
        if contents(here) != contents(there) {
            compare("contents", "the same".into(), "others".into());
        }
    }
}

/// Sets the times of what is there, be it a symlink.
pub fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).is_ok()
}

/// An access control list that names user 1234.
fn access_list() -> Vec<u8> {
    let none = u32::MAX;
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, none),
        (2, 4, 1234),
        (4, 5, none),
        (16, 5, none),
        (32, 0, none),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn special(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

/// Makes a directory with one of everything. What the file system under it does not take is left out,
/// loudly.
pub fn make_oddities(root: &Path) {
    fs::create_dir_all(root.join("deep/er/and/deeper")).unwrap();
    let file = |name: &[u8], data: &[u8]| {
        let path = root.join(OsStr::from_bytes(name));
        fs::write(&path, data).unwrap();
        path
    };
    file(b"empty", b"");
    file(b"byte", b"x");
    file(b"text", &sample(1, 300_001));
    file(b"zeros", &[0; 100_000]);
    file(b"deep/er/and/deeper/text", &sample(2, 4096));
    file(b"caf\xe9 \xff", b"a name that is no text");
    file(b"new\nline\t", b"n");
    file(&[b'l'; 255], b"long");
    file(b"-rf", b"dash");
    file(b".s2sfs-partial.mine", b"not a part of anything");
    set_mode(&file(b"setuid", b"#!"), 0o4755);
    set_mode(&file(b"setgid", b"#!"), 0o2710);
    set_mode(&file(b"unreadable", b"secret"), 0);
    make_sparse(&root.join("sparse"));
    File::create(root.join("hole"))
        .unwrap()
        .set_len(40 << 20)
        .unwrap();
    make_names(root);
    make_attributes(root);
    if rustix::process::geteuid().is_root() {
        make_for_root(root);
    }
    for (number, name) in ["text", "byte", "deep/er", "deep", "loose"]
        .iter()
        .enumerate()
    {
        let number = number as i64;
        let path = root.join(name);
        set_times(
            &path,
            (1_700_000_000 + number, 5),
            (86_400 * 365 * number, 123_456_789),
        );
    }
    set_times(&root.join("empty"), (0, 1), (-5, 250_000_000));
    set_times(root, (1_000_000_000, 0), (1_000_000_001, 999_999_999));
}

fn make_sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.write_all_at(&sample(3, 10_000), 1 << 20).unwrap();
    file.write_all_at(b"end", 3 << 20).unwrap();
    file.set_len((5 << 20) + 123).unwrap();
}

fn make_names(root: &Path) {
    fs::create_dir_all(root.join("links/in")).unwrap();
    fs::write(root.join("links/a"), sample(4, 70_000)).unwrap();
    for name in ["links/b", "links/in/c", "d"] {
        fs::hard_link(root.join("links/a"), root.join(name)).unwrap();
    }
    symlink("../text", root.join("deep/link")).unwrap();
    symlink("no/such/file", root.join("dangling")).unwrap();
    symlink(OsStr::from_bytes(&[b'\xe9'; 3000]), root.join("far")).unwrap();
    symlink("text", root.join("loose")).unwrap();
    fs::hard_link(root.join("loose"), root.join("deep/loose")).unwrap();
    special(&root.join("fifo"), FileType::Fifo, 0);
    fs::hard_link(root.join("fifo"), root.join("deep/fifo")).unwrap();
    special(&root.join("socket"), FileType::Socket, 0);
    for (name, mode) in [("sticky", 0o1777), ("group", 0o2775), ("closed", 0o555)] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("inside"), name).unwrap();
        set_mode(&root.join(name), mode);
    }
}

fn make_attributes(root: &Path) {
    let list = access_list();
    let carried = set_attribute(&root.join("text"), "user.note", b"a note")
        && set_attribute(&root.join("text"), "user.empty", b"")
        && set_attribute(&root.join("deep"), "user.large", &sample(5, 3000));
    if !carried {
        skipped("the temporary directory takes no extended attributes");
    }
    fs::create_dir(root.join("lists")).unwrap();
    fs::write(
        root.join("lists/without"),
        "made before its directory had a list",
    )
    .unwrap();
    fs::write(root.join("lists/with"), "a list").unwrap();
    let listed = set_attribute(&root.join("lists/with"), "system.posix_acl_access", &list)
        && set_attribute(&root.join("lists"), "system.posix_acl_default", &list);
    if !listed {
        skipped("the temporary directory takes no access control lists");
    }
}

fn make_for_root(root: &Path) {
    special(&root.join("null"), FileType::CharacterDevice, makedev(1, 3));
    special(&root.join("disk"), FileType::BlockDevice, makedev(7, 300));
    let (user, group) = (Uid::from_raw(1234), Gid::from_raw(4321));
    for name in ["byte", "deep/er", "dangling", "fifo"] {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(CWD, root.join(name), Some(user), Some(group), flags).unwrap();
    }
    let file = root.join("setgid");
    rustix::fs::chownat(CWD, &file, None, Some(group), AtFlags::empty()).unwrap();
    set_mode(&file, 0o2710);
    if !set_attribute(&root.join("empty"), "trusted.note", b"for root") {
        skipped("the temporary directory takes no trusted attributes");
    }
}

/// A hash of all names, kinds, modes, owners, times and contents under a directory.
pub fn fingerprint(root: &Path) -> String {
    let mut hash = blake3::Hasher::new();
    for (path, meta) in tree(root) {
        let facts = format!(
            "{path:?} {:o} {}:{} {} {}.{} {}.{} {}\n",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.ino()
        );
        hash.write_all(facts.as_bytes()).unwrap();
        if meta.is_file() {
            hash.update(&contents(&root.join(&path)));
        }
    }
    hash.finalize().to_string()
}
