//! Storage in memory that fails, tears and loses operations: the twin of [`super::RealStorage`] for tests.
//!
//! It keeps two states: the one that the program sees, and the one that is durable together with
//! the list of operations since. [`SimStorage::crash`] makes one of the states that a power cut
//! could leave: what was synced, plus any subset of the other operations, with writes torn.
//! It is meaner than a journaling file system: a name is durable only after its directory was synced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::storage::{Entry, LockGuard, Space, Storage, StorageFile};

/// Unit in which disk space is counted.
const ALLOCATION: u64 = 4096;
/// A torn write keeps or loses sectors as a whole.
const SECTOR: usize = 512;

/// An operation that changes or syncs something, as a [`Fault`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimOp {
    Write,
    Truncate,
    SyncData,
    SyncDir,
    Create,
    Rename,
    Unlink,
    Mkdir,
    /// Changes nothing, so it fails only by [`Fault::FailKind`] and is not counted among all operations.
    Read,
}

/// What goes wrong, and when.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The operation with this number, counted from 0, and all later ones fail: the power is gone.
    PowerCutAt(u64),
    /// Only the operation with this number fails. A write is carried out in part.
    FailOnceAt(u64, i32),
    /// The operation of this kind with this number among its kind fails.
    FailKind(SimOp, u64, i32),
    /// All operations of this kind fail until the fault is taken away. A write is carried out in part.
    FailAll(SimOp, i32),
}

/// Called before an operation on the file or directory of this path.
type Hook = Arc<dyn Fn(SimOp, &str) + Send + Sync>;

type FileId = u64;

/// A write or truncation that is not durable yet.
#[derive(Clone)]
enum FileChange {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate { len: u64 },
}

#[derive(Clone, Default)]
struct SimFile {
    data: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<FileChange>,
    reserved: u64,
}

/// A change of names that is not durable yet. Files are meant by id, not by name.
#[derive(Clone)]
struct NameChange {
    /// The directories that must be synced; a rename within one directory has one.
    dir: String,
    removed: Option<String>,
    linked: Option<(String, FileId)>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<FileId, SimFile>,
    names: BTreeMap<String, FileId>,
    durable_names: BTreeMap<String, FileId>,
    unsynced_names: Vec<NameChange>,
    /// Directories are durable at once: the store creates them only when it is made.
    dirs: BTreeSet<String>,
    next_file: FileId,
    operations: u64,
    by_kind: BTreeMap<u8, u64>,
    fault: Option<Fault>,
    hook: Option<Hook>,
    capacity: u64,
    readers: u32,
    writer: bool,
    /// Handles opened before a crash are dead.
    generation: u64,
}

/// A small generator of pseudo-random numbers (splitmix64), so that a crash is repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

fn write_into(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let offset = offset as usize;
    let end = offset + bytes.len();
    if data.len() < end {
        data.resize(end, 0);
    }
    data[offset..end].copy_from_slice(bytes);
}

impl FileChange {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            FileChange::Write { offset, bytes } => write_into(data, *offset, bytes),
            FileChange::Truncate { len } => data.resize(*len as usize, 0),
        }
    }

    /// Applies what a power cut may leave of this change: all, nothing, or some sectors of a write.
    fn apply_torn(&self, data: &mut Vec<u8>, random: &mut Random) {
        match (self, random.below(4)) {
            (_, 0) => {}
            (FileChange::Write { offset, bytes }, 1) => {
                let keep = random.below(bytes.len() as u64 + 1) as usize;
                write_into(data, *offset, &bytes[..keep]);
            }
            (FileChange::Write { offset, bytes }, 2) => {
                for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                    if random.coin() {
                        write_into(data, offset + (at * SECTOR) as u64, sector);
                    }
                }
            }
            _ => self.apply(data),
        }
    }
}

impl SimFile {
    fn allocated(&self) -> u64 {
        (self.data.len() as u64)
            .max(self.reserved)
            .div_ceil(ALLOCATION)
            * ALLOCATION
    }

    fn crash(&mut self, random: &mut Random) {
        let mut data = std::mem::take(&mut self.durable);
        // Once a random point is reached, later changes are as likely as not to be lost; now and
        // then everything before it is kept, so that long prefixes are tested too.
        let whole = random.below(self.unsynced.len() as u64 + 1) as usize;
        let keep_prefix = random.coin();
        for (at, change) in std::mem::take(&mut self.unsynced).iter().enumerate() {
            if keep_prefix && at < whole {
                change.apply(&mut data);
            } else {
                change.apply_torn(&mut data, random);
            }
        }
        self.durable.clone_from(&data);
        self.data = data;
        self.reserved = 0;
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, FileId>) {
        if let Some(name) = &self.removed {
            names.remove(name);
        }
        if let Some((name, file)) = &self.linked {
            names.insert(name.clone(), *file);
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl State {
    /// Counts an operation; Err if it is to fail.
    fn begin(&mut self, op: SimOp) -> io::Result<()> {
        let number = self.operations;
        self.operations += u64::from(op != SimOp::Read);
        let of_kind = self.by_kind.entry(op as u8).or_default();
        let number_of_kind = *of_kind;
        *of_kind += 1;
        match self.fault {
            Some(Fault::FailAll(kind, errno)) if kind == op => Err(error(errno)),
            Some(Fault::PowerCutAt(at)) if number >= at && op != SimOp::Read => {
                Err(error(libc::EIO))
            }
            Some(Fault::FailOnceAt(at, errno)) if number == at && op != SimOp::Read => {
                Err(error(errno))
            }
            Some(Fault::FailKind(kind, at, errno)) if kind == op && number_of_kind == at => {
                Err(error(errno))
            }
            _ => Ok(()),
        }
    }

    fn find(&self, path: &str) -> io::Result<FileId> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| error(libc::ENOENT))
    }

    fn file(&mut self, id: FileId, generation: u64) -> io::Result<&mut SimFile> {
        if generation != self.generation {
            return Err(error(libc::EIO));
        }
        self.files.get_mut(&id).ok_or_else(|| error(libc::EIO))
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|id| self.files.get(id))
            .map(SimFile::allocated)
            .sum()
    }

    /// How many of `len` bytes at `offset` of a file fit the disk.
    fn fitting(&self, id: FileId, offset: u64, len: u64) -> u64 {
        let Some(file) = self.files.get(&id) else {
            return 0;
        };
        let others = self.used().saturating_sub(file.allocated());
        let limit = self.capacity.saturating_sub(others) / ALLOCATION * ALLOCATION;
        limit.max(file.allocated()).saturating_sub(offset).min(len)
    }
}

fn announce(state: &Mutex<State>, op: SimOp, path: &str) {
    let hook = state.lock().hook.clone();
    if let Some(hook) = hook {
        hook(op, path);
    }
}

/// A simulated disk. Clones share it.
#[derive(Clone, Default)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

impl SimStorage {
    /// An empty disk of 1 GiB.
    pub fn new() -> SimStorage {
        let storage = SimStorage::default();
        storage.set_capacity(1 << 30);
        storage
    }

    /// Sets the size of the disk, which may be less than what is on it.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Arms a fault, or none, and restarts the count of operations.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        state.fault = fault;
        state.operations = 0;
        state.by_kind.clear();
    }

    /// Lets a test do something at the moment of an operation; `None` ends that. The operations of
    /// the hook itself are hooked too.
    pub fn set_hook(&self, hook: Option<Hook>) {
        self.state.lock().hook = hook;
    }

    fn announce(&self, op: SimOp, path: &str) {
        announce(&self.state, op, path);
    }

    /// Operations since the last [`SimStorage::set_fault`].
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Cuts the power: only what was synced remains for certain. Faults and locks are gone, and open
    /// files fail. The same seed loses the same things.
    pub fn crash(&self, seed: u64) {
        let mut random = Random(seed);
        let mut state = self.state.lock();
        let mut names = std::mem::take(&mut state.durable_names);
        for change in std::mem::take(&mut state.unsynced_names) {
            if random.coin() {
                change.apply(&mut names);
            }
        }
        state.names.clone_from(&names);
        state.durable_names = names;
        for file in state.files.values_mut() {
            file.crash(&mut random);
        }
        state.fault = None;
        state.generation += 1;
        state.readers = 0;
        state.writer = false;
    }

    /// Kills the program: everything that it wrote remains, its locks and open files do not.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.fault = None;
        state.generation += 1;
        state.readers = 0;
        state.writer = false;
    }

    /// The paths of all files.
    pub fn files(&self) -> Vec<String> {
        self.state.lock().names.keys().cloned().collect()
    }

    /// The contents of a file.
    pub fn contents(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let id = state.names.get(path)?;
        Some(state.files.get(id)?.data.clone())
    }

    /// Replaces the contents of a file, durably, as damage would.
    pub fn set_contents(&self, path: &str, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        let Some(&id) = state.names.get(path) else {
            return;
        };
        if let Some(file) = state.files.get_mut(&id) {
            *file = SimFile {
                data: bytes.clone(),
                durable: bytes,
                unsynced: Vec::new(),
                reserved: 0,
            };
        }
    }

    /// Removes a file, durably, as damage would.
    pub fn remove(&self, path: &str) {
        let mut state = self.state.lock();
        state.names.remove(path);
        state.durable_names.remove(path);
        state
            .unsynced_names
            .retain(|change| change.linked.as_ref().is_none_or(|(name, _)| name != path));
    }

    fn handle(&self, id: FileId, path: &str) -> Arc<dyn StorageFile> {
        let generation = self.state.lock().generation;
        Arc::new(SimHandle {
            state: self.state.clone(),
            id,
            path: path.to_owned(),
            generation,
        })
    }
}

impl Storage for SimStorage {
    fn open(&self, path: &str, _writable: bool) -> io::Result<Arc<dyn StorageFile>> {
        let id = self.state.lock().find(path)?;
        Ok(self.handle(id, path))
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.announce(SimOp::Create, path);
        let mut state = self.state.lock();
        state.begin(SimOp::Create)?;
        if state.names.contains_key(path) {
            return Err(error(libc::EEXIST));
        }
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, SimFile::default());
        let linked = Some((path.to_owned(), id));
        state.change_names(NameChange {
            dir: parent(path).to_owned(),
            removed: None,
            linked,
        });
        drop(state);
        Ok(self.handle(id, path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.announce(SimOp::Rename, to);
        let mut state = self.state.lock();
        state.begin(SimOp::Rename)?;
        let id = state.find(from)?;
        let change = NameChange {
            dir: parent(to).to_owned(),
            removed: Some(from.to_owned()),
            linked: Some((to.to_owned(), id)),
        };
        state.change_names(change);
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.announce(SimOp::Unlink, path);
        let mut state = self.state.lock();
        state.begin(SimOp::Unlink)?;
        state.find(path)?;
        let change = NameChange {
            dir: parent(path).to_owned(),
            removed: Some(path.to_owned()),
            linked: None,
        };
        state.change_names(change);
        Ok(())
    }

    fn remove_tree(&self, path: &str) -> io::Result<()> {
        let prefix = format!("{path}/");
        let inside: Vec<String> = self
            .state
            .lock()
            .names
            .keys()
            .filter(|name| name.starts_with(&prefix))
            .cloned()
            .collect();
        inside.iter().try_for_each(|name| self.unlink(name))
    }

    fn mkdir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(SimOp::Mkdir)?;
        state.dirs.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let state = self.state.lock();
        let inside = |name: &&String| parent(name) == path && !name.is_empty();
        let base = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
        let dirs = state.dirs.iter().filter(inside).map(|name| Entry {
            name: base(name),
            is_dir: true,
        });
        let files = state.names.keys().filter(inside).map(|name| Entry {
            name: base(name),
            is_dir: false,
        });
        let mut entries: Vec<Entry> = dirs.chain(files).collect();
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.announce(SimOp::SyncDir, path);
        let mut state = self.state.lock();
        state.begin(SimOp::SyncDir)?;
        let (here, elsewhere) = std::mem::take(&mut state.unsynced_names)
            .into_iter()
            .partition(|change| change.dir == path);
        let here: Vec<NameChange> = here;
        for change in &here {
            change.apply(&mut state.durable_names);
        }
        state.unsynced_names = elsewhere;
        Ok(())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let state = self.state.lock();
        Ok(path.is_empty() || state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn allocated(&self, path: &str) -> io::Result<u64> {
        let state = self.state.lock();
        let prefix = format!("{path}/");
        let inside = |name: &str| path.is_empty() || name == path || name.starts_with(&prefix);
        let files = state.names.iter().filter(|(name, _)| inside(name));
        Ok(files
            .filter_map(|(_, id)| state.files.get(id))
            .map(SimFile::allocated)
            .sum())
    }

    fn free_space(&self) -> io::Result<Space> {
        let state = self.state.lock();
        Ok(Space {
            available: state.capacity.saturating_sub(state.used()),
            total: state.capacity,
        })
    }

    fn lock(&self, exclusive: bool) -> io::Result<Option<Box<dyn LockGuard>>> {
        let mut state = self.state.lock();
        if state.writer || (exclusive && state.readers > 0) {
            return Ok(None);
        }
        if exclusive {
            state.writer = true;
        } else {
            state.readers += 1;
        }
        let generation = state.generation;
        Ok(Some(Box::new(SimLock {
            state: self.state.clone(),
            exclusive,
            generation,
        })))
    }

    fn local_path(&self, _path: &str) -> Option<std::path::PathBuf> {
        None
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

struct SimLock {
    state: Arc<Mutex<State>>,
    exclusive: bool,
    generation: u64,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.generation != self.generation {
            return;
        }
        if self.exclusive {
            state.writer = false;
        } else {
            state.readers -= 1;
        }
    }
}

struct SimHandle {
    state: Arc<Mutex<State>>,
    id: FileId,
    /// The name that it was opened by.
    path: String,
    generation: u64,
}

impl StorageFile for SimHandle {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        announce(&self.state, SimOp::Read, &self.path);
        let mut state = self.state.lock();
        state.begin(SimOp::Read)?;
        let data = &state.file(self.id, self.generation)?.data;
        let from = (offset as usize).min(data.len());
        let len = buf.len().min(data.len() - from);
        buf[..len].copy_from_slice(&data[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        announce(&self.state, SimOp::Write, &self.path);
        let mut state = self.state.lock();
        let mut bytes = parts.concat();
        let begun = state.begin(SimOp::Write);
        let wanted = bytes.len() as u64;
        let fits = state.fitting(self.id, offset, wanted);
        let outcome = match begun {
            Err(failed) => {
                // A failing write may have come any distance.
                bytes.truncate(bytes.len() / 2);
                Err(failed)
            }
            Ok(()) if fits < wanted => Err(error(libc::ENOSPC)),
            Ok(()) => Ok(()),
        };
        bytes.truncate(fits as usize);
        let file = state.file(self.id, self.generation)?;
        let change = FileChange::Write { offset, bytes };
        change.apply(&mut file.data);
        file.unsynced.push(change);
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        announce(&self.state, SimOp::SyncData, &self.path);
        let mut state = self.state.lock();
        state.begin(SimOp::SyncData)?;
        let file = state.file(self.id, self.generation)?;
        file.unsynced.clear();
        let data = file.data.clone();
        file.durable = data;
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        announce(&self.state, SimOp::Truncate, &self.path);
        let mut state = self.state.lock();
        state.begin(SimOp::Truncate)?;
        let file = state.file(self.id, self.generation)?;
        let change = FileChange::Truncate { len };
        change.apply(&mut file.data);
        file.unsynced.push(change);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let mut state = self.state.lock();
        Ok(state.file(self.id, self.generation)?.data.len() as u64)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.fitting(self.id, 0, len) < len {
            return Err(error(libc::ENOSPC));
        }
        state.file(self.id, self.generation)?.reserved = len;
        Ok(())
    }
}
