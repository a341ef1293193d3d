//! The whole volume on a disk that forgets: power cuts and kills at every operation of random
//! histories. Afterwards the volume is in the state after some commit, not before the last fsync, with
//! no byte that was not written there, and a check finds nothing.
//!
//! `S2SFS_CRASH_CASES` is the number of short histories, of which every operation is cut (default 20).

mod common;

use common::oracle::{Id, Kind, Oracle, ROOT_ID};
use common::{caller, codecs, noise, quiet_options, text};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use s2sfs::codec::Policy;
use s2sfs::store::{Fault, OpenOptions, SimOp, SimStorage, Store};
use s2sfs::volume::{
    FileKind, POLICY, Place, ROOT, RenameMode, SetAttr, Volume, VolumeError, VolumeOptions,
    WriteMode,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

const NAMES: [&str; 4] = ["a.txt", "b.txt", "c.log", "d"];
const LONGEST: usize = 20_000;

#[derive(Debug, Clone)]
enum Step {
    Create(usize, usize),
    Mkdir(usize, usize),
    Symlink(usize, usize),
    Link(usize, usize, usize),
    /// One of the names that there are.
    Unlink(usize),
    Rmdir(usize),
    /// One of the names that there are, to a directory and a name.
    Rename(usize, usize, usize, u8),
    /// Text or, if odd, noise.
    Write(usize, usize, usize, u64),
    Truncate(usize, usize),
    Punch(usize, usize, usize),
    SetXattr(usize, usize),
    RemoveXattr(usize),
    Chmod(usize, u32),
    Close(usize),
    Fsync(usize),
    FsyncDir,
    Settle,
    /// A policy of a file: what was settled under another one stays as it is.
    Policy(usize, usize),
    /// Everything is coded again.
    Again,
    /// Frozen and thawed.
    Freeze,
    Checkpoint,
    Remount,
}

fn step() -> impl Strategy<Value = Step> {
    let (n, name) = (0usize..64, 0usize..NAMES.len());
    let at = prop_oneof![0usize..LONGEST, (0usize..4).prop_map(|i| i * 4096), Just(0)];
    let len = prop_oneof![1usize..300, 1usize..9_000, Just(4096)];
    prop_oneof![
        6 => (n.clone(), name.clone()).prop_map(|(d, m)| Step::Create(d, m)),
        2 => (n.clone(), name.clone()).prop_map(|(d, m)| Step::Mkdir(d, m)),
        1 => (n.clone(), name.clone()).prop_map(|(d, m)| Step::Symlink(d, m)),
        1 => (n.clone(), n.clone(), name.clone()).prop_map(|(f, d, m)| Step::Link(f, d, m)),
        2 => n.clone().prop_map(Step::Unlink),
        1 => n.clone().prop_map(Step::Rmdir),
        5 => (n.clone(), n.clone(), name, 0u8..3)
            .prop_map(|(f, d, m, mode)| Step::Rename(f, d, m, mode)),
        12 => (n.clone(), at.clone(), len.clone(), any::<u64>())
            .prop_map(|(f, a, l, s)| Step::Write(f, a, l, s)),
        3 => (n.clone(), at.clone()).prop_map(|(f, a)| Step::Truncate(f, a)),
        2 => (n.clone(), at, len).prop_map(|(f, a, l)| Step::Punch(f, a, l)),
        1 => (n.clone(), 0usize..900).prop_map(|(f, l)| Step::SetXattr(f, l)),
        1 => n.clone().prop_map(Step::RemoveXattr),
        1 => (n.clone(), 0u32..0o1000).prop_map(|(f, p)| Step::Chmod(f, p)),
        4 => n.clone().prop_map(Step::Close),
        3 => n.prop_map(Step::Fsync),
        1 => Just(Step::FsyncDir),
        2 => Just(Step::Settle),
        2 => (0usize..64, 0usize..4).prop_map(|(f, p)| Step::Policy(f, p)),
        1 => Just(Step::Again),
        1 => Just(Step::Freeze),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Remount),
    ]
}

fn options() -> VolumeOptions {
    VolumeOptions {
        // Small windows, so that small files have many; one thread, so that histories repeat.
        extent: 4096,
        threads: 1,
        ..quiet_options()
    }
}

fn open_store(storage: &SimStorage, read_only: bool) -> Result<Store, String> {
    let options = OpenOptions {
        create: !read_only,
        read_only,
        memory_index: true,
        // Tiny segments, so that short histories have many.
        segment_bytes: 16 << 10,
        ..OpenOptions::default()
    };
    Store::open(Arc::new(storage.clone()), &options).map_err(|e| e.to_string())
}

fn open(storage: &SimStorage) -> Result<Arc<Volume>, String> {
    let store = open_store(storage, false)?;
    Volume::open(store, codecs(), options()).map_err(|e| e.to_string())
}

/// An inode as a crash may leave it.
#[derive(Debug, Clone, PartialEq)]
struct Node {
    kind: Kind,
    /// 0 if it is not known, because the call that made the inode did not return.
    ino: u64,
    nlink: u32,
    perm: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The contents that may be in the log: all since they were last known to be.
    contents: BTreeSet<Vec<u8>>,
}

/// All paths with what they show.
type Tree = BTreeMap<String, Node>;

/// A volume and the states that it has been in.
struct Run {
    storage: SimStorage,
    volume: Option<Arc<Volume>>,
    oracle: Oracle,
    staged: BTreeMap<Id, BTreeSet<Vec<u8>>>,
    /// The tree after each call; the last may be that of a call that failed.
    history: Vec<Tree>,
    /// Index in `history` before which nothing may be found: the last sync.
    durable: usize,
    /// The same for the last call that returned: what a kill may not lose.
    returned: usize,
}

type Answer = Result<(), String>;

fn failed(error: VolumeError) -> String {
    error.to_string()
}

/// Errors that are answers, and not the disk's.
fn refused(error: &VolumeError) -> bool {
    !matches!(error.errno(), libc::EIO | libc::ENOSPC)
}

impl Run {
    fn new() -> Run {
        Run {
            storage: SimStorage::new(),
            volume: None,
            oracle: Oracle::new(),
            staged: BTreeMap::new(),
            history: vec![Tree::new()],
            durable: 0,
            returned: 0,
        }
    }

    fn volume(&self) -> Arc<Volume> {
        self.volume.clone().expect("the volume is open")
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let mut todo = vec![(ROOT_ID, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for (name, id) in &self.oracle.get(dir).entries {
                let path = format!("{path}/{name}");
                let node = self.oracle.get(*id);
                if node.kind == Kind::Dir {
                    todo.push((*id, path.clone()));
                }
                let contents = match node.kind {
                    Kind::Dir => BTreeSet::new(),
                    Kind::Link => BTreeSet::from([node.data.clone()]),
                    Kind::File => self.staged[id].clone(),
                };
                let node = Node {
                    kind: node.kind,
                    ino: node.ino,
                    nlink: node.nlink,
                    perm: node.perm,
                    xattrs: node.xattrs.clone(),
                    contents,
                };
                tree.insert(path, node);
            }
        }
        tree
    }

    fn dir(&self, n: usize) -> (Id, u64) {
        let dirs = self.oracle.dirs();
        let id = dirs[n % dirs.len()];
        (id, self.oracle.get(id).ino)
    }

    /// Some directory and a name in it.
    fn entry(&self, n: usize) -> Option<(Id, String)> {
        let dirs = self.oracle.dirs().into_iter();
        let names = |dir: Id| {
            self.oracle
                .get(dir)
                .entries
                .keys()
                .map(move |name| (dir, name))
        };
        let all: Vec<(Id, &String)> = dirs.flat_map(names).collect();
        let (dir, name) = *all.get(n.checked_rem(all.len())?)?;
        Some((dir, name.clone()))
    }

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

    /// Everything written to a file is in the log.
    fn is_staged(&mut self, id: Id) {
        let data = self.oracle.get(id).data.clone();
        self.staged.insert(id, BTreeSet::from([data]));
    }

    fn may_be_staged(&mut self, id: Id) {
        let data = self.oracle.get(id).data.clone();
        self.staged.entry(id).or_default().insert(data);
    }

    /// Carries out one step on both; Err if the disk failed it. Either way the oracle has done it.
    fn apply(&mut self, step: &Step) -> Answer {
        let result = match step {
            Step::Create(..) | Step::Mkdir(..) | Step::Symlink(..) => self.make(step),
            Step::Link(..) | Step::Unlink(..) | Step::Rmdir(..) | Step::Rename(..) => {
                self.change_names(step)
            }
            Step::FsyncDir => self.volume().sync_log().map_err(failed),
            Step::Settle => self.settle(),
            Step::Again => self.settle_again(),
            Step::Freeze => self.freeze(),
            Step::Checkpoint => self.volume().checkpoint().map_err(failed),
            Step::Remount => self.remount(),
            _ => self.change_file(step),
        };
        let ids: BTreeSet<Id> = self.oracle.nodes.keys().copied().collect();
        self.staged.retain(|id, _| ids.contains(id));
        self.history.push(self.tree());
        if result.is_ok() {
            self.returned = self.history.len() - 1;
            let synced = matches!(
                step,
                Step::FsyncDir | Step::Settle | Step::Again | Step::Freeze | Step::Remount
            ) || matches!(step, Step::Fsync(n) if self.file(*n).is_some());
            if synced {
                self.durable = self.returned;
            }
        }
        result
    }

    fn make(&mut self, step: &Step) -> Answer {
        let volume = self.volume();
        let (Step::Create(dir, name) | Step::Mkdir(dir, name) | Step::Symlink(dir, name)) = *step
        else {
            return Ok(());
        };
        let ((dir, ino), name) = (self.dir(dir), NAMES[name]);
        let (kind, made) = match step {
            Step::Create(..) => (
                Kind::File,
                volume
                    .create(ino, name.as_bytes(), 0o755, caller())
                    .inspect(|stat| volume.release(stat.ino)),
            ),
            Step::Mkdir(..) => (
                Kind::Dir,
                volume.mkdir(ino, name.as_bytes(), 0o755, caller()),
            ),
            _ => (
                Kind::Link,
                volume.symlink(ino, name.as_bytes(), b"target", caller()),
            ),
        };
        match &made {
            Err(error) if refused(error) => {
                assert!(self.oracle.find(dir, name).is_some(), "{name}: {error}");
                return Ok(());
            }
            _ if self.oracle.find(dir, name).is_some() => {
                return made.map(drop).map_err(failed);
            }
            _ => {}
        }
        let number = made.as_ref().map_or(0, |stat| stat.ino);
        let id = self
            .oracle
            .make(dir, name, kind, (0, 0), || Ok(number))
            .expect("the name is free");
        if kind == Kind::Link {
            let node = self.oracle.get_mut(id);
            (node.data, node.perm) = (b"target".to_vec(), 0o777);
        }
        self.is_staged(id);
        made.map(drop).map_err(failed)
    }

    fn change_names(&mut self, step: &Step) -> Answer {
        let volume = self.volume();
        let (expected, found) = match *step {
            Step::Link(file, dir, name) => {
                let ((dir, dir_ino), name) = (self.dir(dir), NAMES[name]);
                let named = |(id, _): &(Id, u64)| self.oracle.get(*id).nlink > 0;
                let Some((id, ino)) = self.file(file).filter(named) else {
                    return Ok(());
                };
                (
                    self.oracle.link(id, dir, name),
                    volume.link(ino, dir_ino, name.as_bytes()).map(drop),
                )
            }
            Step::Unlink(n) | Step::Rmdir(n) => {
                let Some((dir, name)) = self.entry(n) else {
                    return Ok(());
                };
                let ino = self.oracle.get(dir).ino;
                let directory = matches!(step, Step::Rmdir(_));
                let found = match directory {
                    true => volume.rmdir(ino, name.as_bytes()),
                    false => volume.unlink(ino, name.as_bytes()),
                };
                (self.oracle.remove(dir, &name, directory), found)
            }
            Step::Rename(n, to, new, flag) => {
                let Some(from) = self.entry(n) else {
                    return Ok(());
                };
                let to = (self.dir(to).0, NAMES[new]);
                self.rename((from.0, &from.1), to, flag)
            }
            _ => return Ok(()),
        };
        match found {
            Err(error) if !refused(&error) => Err(failed(error)),
            found => {
                assert_eq!(found.map_err(|e| e.errno()), expected);
                Ok(())
            }
        }
    }

    fn rename(
        &mut self,
        from: (Id, &str),
        to: (Id, &str),
        flag: u8,
    ) -> (Result<(), i32>, Result<(), VolumeError>) {
        let mode = match flag {
            0 => RenameMode::Replace,
            1 => RenameMode::NoReplace,
            _ => RenameMode::Exchange,
        };
        let renamed = [
            self.oracle.find(from.0, from.1),
            self.oracle.find(to.0, to.1).filter(|_| flag > 1),
        ];
        let found = {
            let parent = |dir: Id| self.oracle.get(dir).ino;
            let (from, to) = (
                Place {
                    parent: parent(from.0),
                    name: from.1.as_bytes(),
                },
                Place {
                    parent: parent(to.0),
                    name: to.1.as_bytes(),
                },
            );
            self.volume().rename(from, to, mode)
        };
        let expected = self.oracle.rename(from, to, flag);
        let moved = expected.is_ok();
        for id in renamed.into_iter().flatten() {
            match self.oracle.nodes.get(&id).map(|node| node.kind) {
                // The data is in the log before the name is.
                Some(Kind::File) if moved => self.is_staged(id),
                Some(Kind::File) => self.may_be_staged(id),
                _ => {}
            }
        }
        (expected, found)
    }

    fn change_file(&mut self, step: &Step) -> Answer {
        let (Step::Write(n, ..)
        | Step::Truncate(n, _)
        | Step::Punch(n, ..)
        | Step::SetXattr(n, _)
        | Step::RemoveXattr(n)
        | Step::Policy(n, _)
        | Step::Chmod(n, _)
        | Step::Close(n)
        | Step::Fsync(n)) = *step
        else {
            return Ok(());
        };
        let Some((id, ino)) = self.file(n) else {
            return Ok(());
        };
        let volume = self.volume();
        let result = match *step {
            Step::Write(_, offset, len, seed) => {
                let data = match seed % 2 {
                    0 => text(seed, len),
                    _ => noise(seed, len),
                };
                self.oracle.write(id, offset, &data);
                self.may_be_staged(id);
                let mode = WriteMode::default();
                volume.write(ino, offset as u64, &data, mode).map(drop)
            }
            Step::Truncate(_, size) => {
                let set = SetAttr {
                    size: Some(size as u64),
                    ..SetAttr::default()
                };
                let result = volume.setattr(ino, set).map(drop);
                self.resize(id, result.is_ok(), |oracle| oracle.truncate(id, size));
                result
            }
            Step::Punch(_, offset, len) => {
                let result = volume.punch_hole(ino, offset as u64, len as u64);
                self.resize(id, result.is_ok(), |oracle| oracle.punch(id, offset, len));
                result
            }
            Step::SetXattr(_, len) => {
                let value = text(len as u64, len);
                let result = volume.setxattr(ino, b"user.x", &value, false, false);
                let xattrs = &mut self.oracle.get_mut(id).xattrs;
                xattrs.insert("user.x".into(), value);
                result
            }
            Step::Policy(_, policy) => {
                let value = Policy::ALL[policy].name();
                let result = volume.setxattr(ino, POLICY, value.as_bytes(), false, false);
                let xattrs = &mut self.oracle.get_mut(id).xattrs;
                let name = String::from_utf8_lossy(POLICY).into_owned();
                xattrs.insert(name, value.as_bytes().to_vec());
                result
            }
            Step::RemoveXattr(_) => match volume.removexattr(ino, b"user.x") {
                Err(error) if refused(&error) => Ok(()),
                result => {
                    self.oracle.get_mut(id).xattrs.remove("user.x");
                    result
                }
            },
            Step::Chmod(_, perm) => {
                self.oracle.get_mut(id).perm = perm;
                let set = SetAttr {
                    perm: Some(perm),
                    ..SetAttr::default()
                };
                volume.setattr(ino, set).map(drop)
            }
            _ => {
                let result = match step {
                    Step::Fsync(_) => volume.fsync(ino),
                    _ => volume.flush(ino),
                };
                if result.is_ok() {
                    self.is_staged(id);
                }
                result
            }
        };
        result.map_err(failed)
    }

    /// A change that is in the log when it returns, like everything written before it.
    fn resize(&mut self, id: Id, done: bool, change: impl FnOnce(&mut Oracle)) {
        change(&mut self.oracle);
        match done {
            true => self.is_staged(id),
            false => self.may_be_staged(id),
        }
    }

    fn everything_is_staged(&mut self) {
        let files: Vec<Id> = self.staged.keys().copied().collect();
        for id in files {
            self.is_staged(id);
        }
    }

    fn settle(&mut self) -> Answer {
        let result = self.volume().settle(&|_, _| {}).map_err(failed);
        if result.is_ok() {
            self.everything_is_staged();
        }
        result
    }

    fn settle_again(&mut self) -> Answer {
        let done = self.volume().settle_again(&[ROOT], Some(&|_, _| {}));
        let done = done.map_err(failed)?;
        self.everything_is_staged();
        done.first_failure.map_or(Ok(()), Err)
    }

    fn freeze(&mut self) -> Answer {
        let volume = self.volume();
        volume.freeze(Duration::from_secs(60)).map_err(failed)?;
        volume.thaw(None).map_err(failed)?;
        self.everything_is_staged();
        Ok(())
    }

    fn remount(&mut self) -> Answer {
        let volume = self.volume();
        self.volume = None;
        volume.shutdown().map_err(failed)?;
        drop(volume);
        self.everything_is_staged();
        // Whatever goes wrong now, the shutdown counts.
        self.history.push(self.tree());
        self.returned = self.history.len() - 1;
        self.durable = self.returned;
        self.volume = Some(open(&self.storage)?);
        Ok(())
    }

    /// Runs until the end or the first call that the disk fails.
    fn run(&mut self, steps: &[Step]) -> Answer {
        self.volume = Some(open(&self.storage)?);
        steps.iter().try_for_each(|step| self.apply(step))
    }

    fn end(&mut self) {
        if let Some(volume) = self.volume.take() {
            volume.abandon();
        }
    }

    /// Opens the volume again and compares it with the states it may be in.
    fn check_recovered(&self, killed: bool, thorough: bool) -> Answer {
        let volume = open(&self.storage).map_err(|e| format!("recovery: {e}"))?;
        let found = self.find_state(&volume, killed)?;
        if thorough {
            volume.settle(&|_, _| {}).map_err(failed)?;
            if read_tree(&volume)? != found {
                return Err("settling changed what is shown".into());
            }
        }
        if !thorough {
            volume.abandon();
            return Ok(());
        }
        volume.shutdown().map_err(failed)?;
        drop(volume);
        let store = Arc::new(open_store(&self.storage, true)?);
        let report =
            s2sfs::volume::check(&store, &codecs(), 1, &|_, _| {}).map_err(|e| e.to_string())?;
        match report.damage.first() {
            Some(damage) => Err(format!("check: {}", damage.what)),
            None => Ok(()),
        }
    }

    fn find_state(&self, volume: &Volume, killed: bool) -> Result<Tree, String> {
        let found = read_tree(volume)?;
        let from = match killed {
            true => self.returned,
            false => self.durable,
        };
        let states = &self.history[from..];
        if states.iter().any(|state| is_state(&found, state)) {
            return Ok(found);
        }
        let why: Vec<String> = states
            .iter()
            .map(|state| difference(&found, state))
            .collect();
        Err(format!(
            "not a state since the last sync ({from} of {}): {why:#?}",
            self.history.len()
        ))
    }
}

fn read_tree(volume: &Volume) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut todo = vec![(ROOT, String::new())];
    while let Some((dir, path)) = todo.pop() {
        for entry in volume.list(dir).map_err(failed)? {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let stat = volume.getattr(entry.ino).map_err(failed)?;
            let (kind, data) = match entry.kind {
                FileKind::Directory => {
                    todo.push((entry.ino, path.clone()));
                    (Kind::Dir, None)
                }
                FileKind::Symlink => (
                    Kind::Link,
                    Some(volume.readlink(entry.ino).map_err(failed)?),
                ),
                _ => (
                    Kind::File,
                    Some(
                        volume
                            .read(entry.ino, 0, stat.attr.size as usize)
                            .map_err(failed)?,
                    ),
                ),
            };
            let mut xattrs = BTreeMap::new();
            for name in volume.listxattr(entry.ino).map_err(failed)? {
                let value = volume.getxattr(entry.ino, &name).map_err(failed)?;
                xattrs.insert(String::from_utf8_lossy(&name).into_owned(), value);
            }
            let node = Node {
                kind,
                ino: entry.ino,
                nlink: stat.attr.nlink,
                perm: stat.attr.perm,
                xattrs,
                contents: data.into_iter().collect(),
            };
            tree.insert(path, node);
        }
    }
    Ok(tree)
}

fn is_state(found: &Tree, state: &Tree) -> bool {
    found.len() == state.len()
        && found
            .iter()
            .all(|(path, node)| state.get(path).is_some_and(|s| node_fits(node, s)))
}

fn node_fits(found: &Node, state: &Node) -> bool {
    let same = |node: &Node| (node.kind, node.nlink, node.perm & 0o7777);
    same(found) == same(state)
        && (state.ino == 0 || state.ino == found.ino)
        && found.xattrs == state.xattrs
        && found.contents.is_subset(&state.contents)
}

/// The first difference, in words.
fn difference(found: &Tree, state: &Tree) -> String {
    for (path, node) in found {
        match state.get(path) {
            None => return format!("{path} should not be there"),
            Some(expected) if !node_fits(node, expected) => {
                let lens = |n: &Node| n.contents.iter().map(Vec::len).collect::<Vec<_>>();
                let show = |n: &Node| {
                    format!(
                        "ino {} nlink {} {:o} lengths {:?}",
                        n.ino,
                        n.nlink,
                        n.perm,
                        lens(n)
                    )
                };
                return format!("{path}: found {}, not {}", show(node), show(expected));
            }
            Some(_) => {}
        }
    }
    let missing: Vec<&String> = state.keys().filter(|p| !found.contains_key(*p)).collect();
    format!("{missing:?} missing")
}

/// Cuts the power (or, now and then, kills the program) at one operation, perhaps again during
/// recovery, and compares.
fn crash_at(steps: &[Step], at: u64, seed: u64) -> Result<(), TestCaseError> {
    let mut run = Run::new();
    run.storage.set_fault(Some(Fault::PowerCutAt(at)));
    let _ = run.run(steps);
    run.end();
    let killed = seed.is_multiple_of(4);
    match killed {
        true => run.storage.kill(),
        false => run.storage.crash(seed),
    }
    for again in 0..(seed / 4) % 3 {
        let cut = (seed >> 8).wrapping_add(again * 7) % 24;
        run.storage.set_fault(Some(Fault::PowerCutAt(cut)));
        if let Ok(volume) = open(&run.storage) {
            volume.abandon();
        }
        match killed {
            true => run.storage.kill(),
            false => run.storage.crash(seed ^ cut),
        }
    }
    let thorough = (seed / 16).is_multiple_of(4);
    run.check_recovered(killed, thorough)
        .map_err(|why| TestCaseError::fail(format!("crash at operation {at}, seed {seed}: {why}")))
}

/// Operations of a history without a crash.
fn operations(steps: &[Step]) -> u64 {
    let mut run = Run::new();
    run.storage.set_fault(None);
    run.run(steps).expect("no fault, no failure");
    let operations = run.storage.operations();
    run.end();
    operations
}

fn cases() -> u32 {
    let cases = std::env::var("S2SFS_CRASH_CASES").ok();
    cases.and_then(|n| n.parse().ok()).unwrap_or(20)
}

/// The same histories in every run; `S2SFS_CRASH_SEED` chooses others.
fn config(cases: u32) -> ProptestConfig {
    let seed = std::env::var("S2SFS_CRASH_SEED").ok();
    ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed.and_then(|s| s.parse().ok()).unwrap_or(3)),
        ..ProptestConfig::default()
    }
}

fn mix(seed: u64, at: u64) -> u64 {
    let mut z = seed ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 31)
}

proptest! {
    #![proptest_config(config(cases()))]

    #[test]
    fn a_crash_at_every_operation_of_a_history_leaves_a_state_since_the_last_sync(
        steps in prop::collection::vec(step(), 8..20), seed: u64,
    ) {
        for at in 0..=operations(&steps) {
            crash_at(&steps, at, mix(seed, at))?;
        }
    }
}

proptest! {
    #![proptest_config(config(cases() * 8))]

    #[test]
    fn a_crash_at_any_operation_of_a_long_history_leaves_a_state_since_the_last_sync(
        steps in prop::collection::vec(step(), 30..90), at: u64, seed: u64,
    ) {
        crash_at(&steps, at % (operations(&steps) + 1), seed)?;
    }
}

/// Runs `history` on what `before` left, with a power cut at every operation, and looks at what is
/// left each time.
fn at_every_operation(
    before: &dyn Fn(&Volume),
    history: &dyn Fn(&Volume) -> Result<(), VolumeError>,
    look: &dyn Fn(&Volume, u64),
) {
    for at in 0.. {
        let mut complete = false;
        for seed in 0..4 {
            let storage = SimStorage::new();
            let volume = open(&storage).unwrap();
            before(&volume);
            storage.set_fault(Some(Fault::PowerCutAt(at)));
            complete = history(&volume).is_ok();
            volume.abandon();
            drop(volume);
            storage.crash(mix(seed, at));
            let volume = open(&storage).unwrap();
            look(&volume, at);
            volume.abandon();
        }
        if complete {
            return;
        }
    }
}

fn written(volume: &Volume, name: &str, data: &[u8]) -> Result<u64, VolumeError> {
    let stat = volume.create(ROOT, name.as_bytes(), 0o644, caller())?;
    volume.write(stat.ino, 0, data, WriteMode::default())?;
    Ok(stat.ino)
}

fn place(name: &str) -> Place<'_> {
    Place {
        parent: ROOT,
        name: name.as_bytes(),
    }
}

#[test]
fn a_rename_is_never_durable_before_the_data_of_the_renamed_file() {
    let (old, new) = (noise(1, 5000), noise(2, 9000));
    let before = |volume: &Volume| {
        let ino = written(volume, "name", &old).unwrap();
        volume.fsync(ino).unwrap();
    };
    let replace = |volume: &Volume| {
        written(volume, "name.new", &new)?;
        volume.rename(place("name.new"), place("name"), RenameMode::Replace)?;
        volume.sync_log()
    };
    at_every_operation(&before, &replace, &|volume, at| {
        let ino = volume.lookup(ROOT, b"name").unwrap().ino;
        let data = common::contents(volume, ino);
        assert!(
            data == old || data == new,
            "operation {at}: the name shows {} bytes of neither file",
            data.len()
        );
    });
}

#[test]
fn what_fsync_returned_for_is_there_after_a_power_cut() {
    for seed in 0..20 {
        let storage = SimStorage::new();
        let volume = open(&storage).unwrap();
        let data = noise(seed, 30_000);
        let ino = written(&volume, "f", &data).unwrap();
        volume.fsync(ino).unwrap();
        volume
            .write(ino, 30_000, b"more", WriteMode::default())
            .unwrap();
        volume.abandon();
        drop(volume);
        storage.crash(seed);
        let volume = open(&storage).unwrap();
        let ino = volume.lookup(ROOT, b"f").unwrap().ino;
        assert!(common::contents(&volume, ino) == data);
        volume.abandon();
    }
}

#[test]
fn data_on_its_way_into_the_log_is_what_a_read_returns() {
    let storage = SimStorage::new();
    let volume = open(&storage).unwrap();
    let (old, new) = (noise(1, 4096), noise(2, 4096));
    let ino = written(&volume, "f", &old).unwrap();
    volume.fsync(ino).unwrap();
    volume.write(ino, 0, &new, WriteMode::default()).unwrap();
    let (once, seen) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
    let (reader, right) = (Arc::downgrade(&volume), seen.clone());
    storage.set_hook(Some(Arc::new(move |op, path| {
        // The first write is that of the block; no extent shows it yet.
        if op == SimOp::Write && path.ends_with(".j") && !once.swap(true, SeqCst) {
            let volume = reader.upgrade().expect("the volume is open");
            right.store(volume.read(ino, 0, 4096).unwrap() == new, SeqCst);
        }
    })));
    volume.flush(ino).unwrap();
    storage.set_hook(None);
    assert!(seen.load(SeqCst), "an older version was read");
    volume.abandon();
}

/// Whether files that nobody has synced survive a power cut after so long.
fn is_durable_after(time: std::time::Duration) -> bool {
    let storage = SimStorage::new();
    let volume = open(&storage).unwrap();
    let (closed, written_only) = (noise(1, 20_000), noise(2, 20_000));
    let ino = written(&volume, "closed", &closed).unwrap();
    volume.flush(ino).unwrap();
    written(&volume, "open", &written_only).unwrap();
    std::thread::sleep(time);
    volume.abandon();
    drop(volume);
    storage.crash(1);
    let volume = open(&storage).unwrap();
    let survives = |(name, data): (&str, Vec<u8>)| {
        let stat = volume.lookup(ROOT, name.as_bytes());
        stat.is_ok_and(|stat| common::contents(&volume, stat.ino) == data)
    };
    let durable = [("closed", closed), ("open", written_only)]
        .into_iter()
        .all(survives);
    volume.abandon();
    durable
}

#[test]
fn what_was_written_is_durable_after_five_seconds_without_being_asked() {
    // The sync thread looks at the time four times a second, unless the machine is too busy to let it.
    let times = [5_800, 8_000, 12_000].map(std::time::Duration::from_millis);
    assert!(times.into_iter().any(is_durable_after));
}
