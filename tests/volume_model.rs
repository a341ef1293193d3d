//! Random operations on a volume and on an oracle: they agree at every step, through settling,
//! remounts and crashes.

mod common;

use common::oracle::{Answer, Id, Kind, Oracle};
use common::{caller, codecs, open_store, quiet_options, text};
use proptest::prelude::*;
use s2sfs::store::SimStorage;
use s2sfs::volume::{
    Allocate, AllocateMode, CopyRange, Place, ROOT, RenameMode, SetAttr, Volume, VolumeError,
    VolumeOptions, WriteMode,
};
use std::collections::BTreeMap;
use std::sync::Arc;

const NAMES: [&str; 5] = ["a.txt", "b.txt", "c.log", "d", "e"];
const LONGEST: usize = 40_000;

#[derive(Debug, Clone)]
enum Op {
    Create(usize, usize),
    Mkdir(usize, usize),
    Symlink(usize, usize),
    Link(usize, usize, usize),
    Unlink(usize, usize),
    Rmdir(usize, usize),
    Rename(usize, usize, usize, usize, u8),
    Write(usize, usize, usize, u64),
    Append(usize, usize, u64),
    Truncate(usize, usize),
    Punch(usize, usize, usize),
    Zero(usize, usize, usize, bool),
    Reserve(usize, usize, usize, bool),
    Copy(usize, usize, usize, usize, usize),
    Read(usize, usize, usize),
    Open(usize),
    Close(usize),
    SetXattr(usize, usize, usize),
    RemoveXattr(usize, usize),
    Chmod(usize, u32),
    Chown(usize, u32, u32),
    ChmodDir(usize, u32, u32),
    Flush(usize),
    Fsync(usize),
    Settle,
    Remount,
}

fn op() -> impl Strategy<Value = Op> {
    let (n, name) = (0usize..64, 0usize..NAMES.len());
    let at = prop_oneof![0usize..LONGEST, (0usize..9).prop_map(|i| i * 4096), Just(0)];
    let len = prop_oneof![1usize..300, 1usize..20_000, Just(4096)];
    prop_oneof![
        6 => (n.clone(), name.clone()).prop_map(|(d, m)| Op::Create(d, m)),
        2 => (n.clone(), name.clone()).prop_map(|(d, m)| Op::Mkdir(d, m)),
        1 => (n.clone(), name.clone()).prop_map(|(d, m)| Op::Symlink(d, m)),
        2 => (n.clone(), n.clone(), name.clone()).prop_map(|(f, d, m)| Op::Link(f, d, m)),
        3 => (n.clone(), name.clone()).prop_map(|(d, m)| Op::Unlink(d, m)),
        1 => (n.clone(), name.clone()).prop_map(|(d, m)| Op::Rmdir(d, m)),
        4 => (n.clone(), name.clone(), n.clone(), name.clone(), 0u8..3)
            .prop_map(|(d, m, e, o, f)| Op::Rename(d, m, e, o, f)),
        14 => (n.clone(), at.clone(), len.clone(), any::<u64>()).prop_map(|(f, a, l, s)| Op::Write(f, a, l, s)),
        4 => (n.clone(), len.clone(), any::<u64>()).prop_map(|(f, l, s)| Op::Append(f, l, s)),
        4 => (n.clone(), at.clone()).prop_map(|(f, a)| Op::Truncate(f, a)),
        2 => (n.clone(), at.clone(), len.clone()).prop_map(|(f, a, l)| Op::Punch(f, a, l)),
        2 => (n.clone(), at.clone(), len.clone(), any::<bool>()).prop_map(|(f, a, l, k)| Op::Zero(f, a, l, k)),
        1 => (n.clone(), at.clone(), len.clone(), any::<bool>()).prop_map(|(f, a, l, k)| Op::Reserve(f, a, l, k)),
        5 => (n.clone(), at.clone(), n.clone(), at.clone(), len.clone())
            .prop_map(|(f, a, g, b, l)| Op::Copy(f, a, g, b, l)),
        4 => (n.clone(), at, len.clone()).prop_map(|(f, a, l)| Op::Read(f, a, l)),
        2 => n.clone().prop_map(Op::Open),
        2 => n.clone().prop_map(Op::Close),
        2 => (n.clone(), 0usize..3, 0usize..900).prop_map(|(f, x, l)| Op::SetXattr(f, x, l)),
        1 => (n.clone(), 0usize..3).prop_map(|(f, x)| Op::RemoveXattr(f, x)),
        1 => (n.clone(), 0u32..0o10000).prop_map(|(f, p)| Op::Chmod(f, p)),
        1 => (n.clone(), 0u32..5, 0u32..5).prop_map(|(f, u, g)| Op::Chown(f, u, g)),
        1 => (n.clone(), 0u32..0o10000, 0u32..5).prop_map(|(d, p, g)| Op::ChmodDir(d, p, g)),
        5 => n.clone().prop_map(Op::Flush),
        3 => n.prop_map(Op::Fsync),
        2 => Just(Op::Settle),
        1 => Just(Op::Remount),
    ]
}

fn options() -> VolumeOptions {
    VolumeOptions {
        // Small windows, so that small files have many.
        extent: 4096,
        ..quiet_options()
    }
}

/// The owner of what is made.
const WHO: (u32, u32) = (1000, 1000);

fn allocate(what: Allocate, keep_size: bool) -> AllocateMode {
    AllocateMode {
        what,
        keep_size,
        clear_privileges: false,
    }
}

struct Pair {
    storage: SimStorage,
    volume: Arc<Volume>,
    oracle: Oracle,
    /// Names after each step since the last moment that is known to be durable.
    names_since_sync: Vec<BTreeMap<String, u64>>,
}

fn answer<T>(result: Result<T, VolumeError>) -> Answer<T> {
    result.map_err(|e| e.errno())
}

fn mode_of(flag: u8) -> RenameMode {
    match flag {
        0 => RenameMode::Replace,
        1 => RenameMode::NoReplace,
        _ => RenameMode::Exchange,
    }
}

impl Pair {
    fn new() -> Pair {
        let storage = SimStorage::new();
        let volume = Volume::open(open_store(&storage), codecs(), options()).unwrap();
        let mut oracle = Oracle::new();
        let root = volume.getattr(ROOT).unwrap().attr;
        oracle.get_mut(common::oracle::ROOT_ID).owner = (root.uid, root.gid);
        Pair {
            storage,
            volume,
            names_since_sync: vec![oracle.names()],
            oracle,
        }
    }

    fn dir(&self, n: usize) -> (Id, u64) {
        let dirs = self.oracle.dirs();
        let id = dirs[n % dirs.len()];
        (id, self.oracle.get(id).ino)
    }

    /// Some regular file, with or without a name.
    fn file(&self, n: usize) -> Option<(Id, u64)> {
        let files: Vec<(Id, u64)> = self
            .oracle
            .nodes
            .iter()
            .filter(|(_, node)| node.kind == Kind::File)
            .map(|(id, node)| (*id, node.ino))
            .collect();
        (!files.is_empty()).then(|| files[n % files.len()])
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Create(..)
            | Op::Mkdir(..)
            | Op::Symlink(..)
            | Op::Link(..)
            | Op::Unlink(..)
            | Op::Rmdir(..)
            | Op::ChmodDir(..)
            | Op::Rename(..) => self.apply_to_names(op),
            Op::Copy(..) => self.apply_copy(op),
            Op::Settle => {
                self.volume.settle(&|_, _| {}).unwrap();
                self.check();
            }
            Op::Remount => self.remount(),
            _ => self.apply_to_file(op),
        }
        let names = self.oracle.names();
        if self.names_since_sync.last() != Some(&names) {
            self.names_since_sync.push(names);
        }
    }

    fn apply_to_names(&mut self, op: &Op) {
        let volume = &self.volume;
        match *op {
            Op::Create(dir, name) => {
                let ((dir, ino), name) = (self.dir(dir), NAMES[name]);
                let made = self.oracle.make(dir, name, Kind::File, WHO, || {
                    let stat = answer(volume.create(ino, name.as_bytes(), 0o755, caller()))?;
                    volume.release(stat.ino);
                    Ok(stat.ino)
                });
                let _ = made;
            }
            Op::Mkdir(dir, name) => {
                let ((dir, ino), name) = (self.dir(dir), NAMES[name]);
                let _ = self.oracle.make(dir, name, Kind::Dir, WHO, || {
                    answer(
                        volume
                            .mkdir(ino, name.as_bytes(), 0o755, caller())
                            .map(|s| s.ino),
                    )
                });
            }
            Op::Symlink(dir, name) => {
                let ((dir, ino), name) = (self.dir(dir), NAMES[name]);
                let made = self.oracle.make(dir, name, Kind::Link, WHO, || {
                    answer(
                        volume
                            .symlink(ino, name.as_bytes(), b"target", caller())
                            .map(|s| s.ino),
                    )
                });
                if let Ok(id) = made {
                    let node = self.oracle.get_mut(id);
                    (node.data, node.perm) = (b"target".to_vec(), 0o777);
                }
            }
            Op::Link(file, dir, name) => {
                let ((dir, dir_ino), name) = (self.dir(dir), NAMES[name]);
                let Some((id, ino)) = self
                    .file(file)
                    .filter(|(id, _)| self.oracle.get(*id).nlink > 0)
                else {
                    return;
                };
                let expected = self.oracle.link(id, dir, name);
                assert_eq!(
                    answer(volume.link(ino, dir_ino, name.as_bytes()).map(|_| ())),
                    expected
                );
            }
            Op::ChmodDir(dir, perm, group) => {
                let (id, ino) = self.dir(dir);
                let set = SetAttr {
                    perm: Some(perm),
                    gid: Some(group),
                    ..SetAttr::default()
                };
                volume.setattr(ino, set).unwrap();
                let node = self.oracle.get_mut(id);
                (node.perm, node.owner.1) = (perm, group);
            }
            Op::Unlink(dir, name) => {
                let ((dir, ino), name) = (self.dir(dir), NAMES[name]);
                let expected = self.oracle.remove(dir, name, false);
                assert_eq!(answer(volume.unlink(ino, name.as_bytes())), expected);
            }
            Op::Rmdir(dir, name) => {
                let ((dir, ino), name) = (self.dir(dir), NAMES[name]);
                let expected = self.oracle.remove(dir, name, true);
                assert_eq!(answer(volume.rmdir(ino, name.as_bytes())), expected);
            }
            Op::Rename(from, name, to, new, flag) => {
                let ((from, from_ino), (to, to_ino)) = (self.dir(from), self.dir(to));
                let (name, new) = (NAMES[name], NAMES[new]);
                let expected = self.oracle.rename((from, name), (to, new), flag);
                let from = Place {
                    parent: from_ino,
                    name: name.as_bytes(),
                };
                let to = Place {
                    parent: to_ino,
                    name: new.as_bytes(),
                };
                assert_eq!(answer(volume.rename(from, to, mode_of(flag))), expected);
            }
            _ => {}
        }
    }

    fn apply_to_file(&mut self, op: &Op) {
        let (Op::Write(n, ..)
        | Op::Append(n, ..)
        | Op::Truncate(n, _)
        | Op::Punch(n, ..)
        | Op::Zero(n, ..)
        | Op::Reserve(n, ..)
        | Op::Chown(n, ..)
        | Op::Read(n, ..)
        | Op::Open(n)
        | Op::Close(n)
        | Op::SetXattr(n, ..)
        | Op::RemoveXattr(n, _)
        | Op::Chmod(n, _)
        | Op::Flush(n)
        | Op::Fsync(n)) = *op
        else {
            return;
        };
        let Some((id, ino)) = self.file(n) else {
            return;
        };
        let volume = &self.volume;
        match *op {
            Op::Write(_, offset, len, seed) => {
                let data = text(seed, len);
                volume
                    .write(ino, offset as u64, &data, WriteMode::default())
                    .unwrap();
                self.oracle.write(id, offset, &data);
            }
            Op::Append(_, len, seed) => {
                let data = text(seed, len);
                let mode = WriteMode {
                    append: true,
                    clear_privileges: false,
                };
                volume.write(ino, 7, &data, mode).unwrap();
                let end = self.oracle.get(id).data.len();
                if end < 4 * LONGEST {
                    self.oracle.write(id, end, &data);
                } else {
                    let set = SetAttr {
                        size: Some(end as u64),
                        ..SetAttr::default()
                    };
                    volume.setattr(ino, set).unwrap();
                }
            }
            Op::Truncate(_, size) => {
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                assert_eq!(volume.setattr(ino, set).unwrap().attr.size, size as u64);
                self.oracle.truncate(id, size);
            }
            Op::Punch(_, offset, len) => {
                volume.punch_hole(ino, offset as u64, len as u64).unwrap();
                self.oracle.punch(id, offset, len);
            }
            Op::Zero(_, offset, len, keep) => {
                let mode = allocate(Allocate::Zero, keep);
                volume
                    .allocate(ino, offset as u64, len as u64, mode)
                    .unwrap();
                self.oracle.zero(id, offset, len, keep);
            }
            Op::Reserve(_, offset, len, keep) => {
                let mode = allocate(Allocate::Reserve, keep);
                volume
                    .allocate(ino, offset as u64, len as u64, mode)
                    .unwrap();
                if !keep && self.oracle.get(id).data.len() < offset + len {
                    self.oracle.truncate(id, offset + len);
                }
            }
            Op::Chown(_, uid, gid) => {
                let set = SetAttr {
                    uid: Some(uid),
                    gid: Some(gid),
                    ..SetAttr::default()
                };
                volume.setattr(ino, set).unwrap();
                self.oracle.chown(id, (uid, gid));
            }
            Op::Read(_, offset, len) => {
                let data = &self.oracle.get(id).data;
                let expected = &data[offset.min(data.len())..(offset + len).min(data.len())];
                assert!(volume.read(ino, offset as u64, len).unwrap() == expected);
            }
            Op::Open(_) if self.oracle.get(id).nlink + self.oracle.get(id).opens > 0 => {
                volume.open_file(ino, false, false).unwrap();
                self.oracle.get_mut(id).opens += 1;
            }
            Op::Close(_) if self.oracle.get(id).opens > 0 => {
                volume.flush(ino).unwrap();
                volume.release(ino);
                self.oracle.close(id);
            }
            Op::SetXattr(_, name, len) => {
                let (name, value) = (format!("user.x{name}"), text(len as u64, len));
                volume
                    .setxattr(ino, name.as_bytes(), &value, false, false)
                    .unwrap();
                self.oracle.get_mut(id).xattrs.insert(name, value);
            }
            Op::RemoveXattr(_, name) => {
                let name = format!("user.x{name}");
                let had = self.oracle.get_mut(id).xattrs.remove(&name).is_some();
                assert_eq!(volume.removexattr(ino, name.as_bytes()).is_ok(), had);
            }
            Op::Chmod(_, perm) => {
                let set = SetAttr {
                    perm: Some(perm),
                    ..SetAttr::default()
                };
                volume.setattr(ino, set).unwrap();
                self.oracle.get_mut(id).perm = perm;
            }
            Op::Flush(_) => volume.flush(ino).unwrap(),
            Op::Fsync(_) => {
                volume.fsync(ino).unwrap();
                let node = self.oracle.get_mut(id);
                node.synced = Some(node.data.clone());
                self.names_since_sync = vec![self.oracle.names()];
            }
            _ => {}
        }
    }

    fn apply_copy(&mut self, op: &Op) {
        let Op::Copy(from, at, to, offset, len) = *op else {
            return;
        };
        let (Some(from), Some(to)) = (self.file(from), self.file(to)) else {
            return;
        };
        let copy = CopyRange {
            from: from.1,
            from_offset: at as u64,
            to: to.1,
            to_offset: offset as u64,
            len: len as u64,
            clear_privileges: false,
        };
        let result = self.volume.copy_range(copy);
        let there = self.oracle.get(from.0).data.len().saturating_sub(at);
        if from == to && at.abs_diff(offset) < len.min(there) {
            assert_eq!(answer(result), Err(libc::EINVAL));
            return;
        }
        let copied = self.oracle.copy((from.0, at), (to.0, offset), len);
        assert_eq!(result.unwrap(), copied as u64);
    }

    fn remount(&mut self) {
        self.volume.shutdown().unwrap();
        self.reopen();
        self.names_since_sync = vec![self.oracle.names()];
        self.check();
    }

    /// Opens again. Opens are gone, and with them the files that had no name.
    fn reopen(&mut self) {
        // The old store holds its lock until it is dropped.
        let placeholder =
            Volume::open(open_store(&SimStorage::new()), codecs(), options()).unwrap();
        drop(std::mem::replace(&mut self.volume, placeholder));
        self.volume = Volume::open(open_store(&self.storage), codecs(), options()).unwrap();
        self.oracle.nodes.retain(|_, node| node.nlink > 0);
        for node in self.oracle.nodes.values_mut() {
            node.opens = 0;
        }
    }

    /// The volume and the oracle are the same.
    fn check(&self) {
        let files = self.oracle.nodes.values().filter(|n| n.kind != Kind::Dir);
        let logical_of =
            |n: &common::oracle::Node| self.volume.file_info(n.ino).unwrap().logical_bytes;
        let logical: u64 = files.clone().map(logical_of).sum();
        let status = self.volume.status().unwrap();
        assert_eq!(status.files, files.count() as u64);
        assert_eq!(status.logical_bytes, logical);
        for node in self.oracle.nodes.values() {
            let stat = self.volume.getattr(node.ino).unwrap();
            assert_eq!(
                (stat.attr.nlink, stat.attr.perm),
                (node.nlink, node.perm & 0o7777)
            );
            assert_eq!((stat.attr.uid, stat.attr.gid), node.owner);
            match node.kind {
                Kind::File => self.check_file(node.ino, &node.data),
                Kind::Link => assert_eq!(self.volume.readlink(node.ino).unwrap(), node.data),
                Kind::Dir => {
                    let listed: BTreeMap<String, u64> = self
                        .volume
                        .list(node.ino)
                        .unwrap()
                        .into_iter()
                        .map(|e| (String::from_utf8(e.name).unwrap(), e.ino))
                        .collect();
                    let ino = |id: &Id| self.oracle.get(*id).ino;
                    let expected = node
                        .entries
                        .iter()
                        .map(|(n, id)| (n.clone(), ino(id)))
                        .collect();
                    assert_eq!(listed, expected);
                }
            }
            let names: Vec<Vec<u8>> = node.xattrs.keys().map(|n| n.clone().into_bytes()).collect();
            assert_eq!(self.volume.listxattr(node.ino).unwrap(), names);
            for (name, value) in &node.xattrs {
                assert_eq!(
                    &self.volume.getxattr(node.ino, name.as_bytes()).unwrap(),
                    value
                );
            }
        }
    }

    fn check_file(&self, ino: u64, data: &[u8]) {
        assert!(self.volume.read(ino, 0, data.len() + 10).unwrap() == data);
        // Settling may go on in the background: figures of one moment are needed.
        let (stat, info) = loop {
            let before = self.volume.getattr(ino).unwrap();
            let info = self.volume.file_info(ino).unwrap();
            if self.volume.getattr(ino).unwrap() == before {
                break (before, info);
            }
        };
        assert_eq!(stat.attr.size, data.len() as u64);
        assert_eq!(stat.blocks > 0, info.logical_bytes + info.dirty_bytes > 0);
        let stored: u64 = info.stored_bytes + info.dirty_bytes;
        assert_eq!(
            stat.blocks,
            stored.div_ceil(512),
            "st_blocks is the real stored size"
        );
        assert!(
            info.extents
                .windows(2)
                .all(|p| p[0].offset + p[0].len <= p[1].offset)
        );
    }

    /// After a crash: names as after some step since the last sync, synced contents intact, and no
    /// byte that was never written to its place.
    fn check_after_crash(&self, ever: &BTreeMap<u64, common::oracle::Node>) {
        let mut names = BTreeMap::new();
        let mut todo = vec![(ROOT, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for entry in self.volume.list(dir).unwrap() {
                let path = format!("{path}/{}", String::from_utf8(entry.name).unwrap());
                if entry.kind == s2sfs::volume::FileKind::Directory {
                    todo.push((entry.ino, path.clone()));
                }
                names.insert(path, entry.ino);
            }
        }
        assert!(
            self.names_since_sync.contains(&names),
            "names as they never were: {names:?}"
        );
        for ino in names.values() {
            let Some(node) = ever.get(ino).filter(|n| n.kind == Kind::File) else {
                continue;
            };
            let data = common::contents(&self.volume, *ino);
            if let Some(synced) = &node.synced {
                assert!(&data == synced, "synced contents changed");
            }
            for (offset, byte) in data.iter().enumerate() {
                let written = node.ever.get(offset).is_some_and(|set| set.contains(byte));
                assert!(
                    *byte == 0 || written,
                    "a byte at {offset} that nobody wrote"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_volume_does_what_the_oracle_does(ops in prop::collection::vec(op(), 1..90)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.apply(op);
        }
        pair.check();
        pair.remount();
        pair.volume.settle(&|_, _| {}).unwrap();
        pair.check();
    }

    #[test]
    fn a_power_cut_loses_nothing_that_was_synced_and_invents_nothing(
        ops in prop::collection::vec(op(), 1..70), seed: u64, kill: bool,
    ) {
        let mut pair = Pair::new();
        let mut ever = BTreeMap::new();
        for op in &ops {
            pair.apply(op);
            for node in pair.oracle.nodes.values() {
                ever.insert(node.ino, node.clone());
            }
        }
        pair.volume.abandon();
        if kill { pair.storage.kill() } else { pair.storage.crash(seed) }
        pair.reopen();
        pair.check_after_crash(&ever);
        pair.volume.settle(&|_, _| {}).unwrap();
        pair.check_after_crash(&ever);
    }
}
