//! Hard links: which names of the original are one file.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Device and inode number.
pub type FileId = (u64, u64);

/// What is known of a file with several names.
struct Known<W> {
    /// Names that have not come by yet.
    missing: u64,
    state: State<W>,
}

enum State<W> {
    /// Under way under its first name; the others wait.
    Copying(Vec<W>),
    /// Complete at this path.
    Copied(Vec<u8>),
    Failed,
}

/// What is to be done with a name.
pub enum Claim {
    /// It is the first one: copy the file, and say how that ended.
    First,
    /// Whoever copies the file takes care of it.
    Waits,
    /// Make it a name of the file at this path.
    Link(Vec<u8>),
    Failed,
}

/// Files with several names, as long as names of them may come.
pub struct Links<W> {
    files: Mutex<HashMap<FileId, Known<W>>>,
    /// Files with several names that are there already, and what they are copies of.
    kept: Mutex<HashMap<FileId, FileId>>,
}

impl<W> Links<W> {
    pub fn new() -> Links<W> {
        Links {
            files: Mutex::new(HashMap::new()),
            kept: Mutex::new(HashMap::new()),
        }
    }

    /// Whether a file with several names that is there already may stay as the copy of `original`: not if
    /// another name of it is the copy of another file.
    pub fn keep(&self, copy: FileId, original: FileId) -> bool {
        *self.kept.lock().entry(copy).or_insert(original) == original
    }

    /// Decides on one name of a file that has `nlink` of them.
    pub fn claim(&self, id: FileId, nlink: u64, name: W) -> Claim {
        let mut files = self.files.lock();
        let Some(known) = files.get_mut(&id) else {
            let known = Known {
                missing: nlink.saturating_sub(1),
                state: State::Copying(Vec::new()),
            };
            files.insert(id, known);
            return Claim::First;
        };
        known.missing = known.missing.saturating_sub(1);
        let last = known.missing == 0;
        let claim = match &mut known.state {
            State::Copying(waiting) => {
                waiting.push(name);
                return Claim::Waits;
            }
            State::Copied(path) => Claim::Link(path.clone()),
            State::Failed => Claim::Failed,
        };
        if last {
            files.remove(&id);
        }
        claim
    }

    /// Forgets a file whose first name has become another file; returns the names that wait.
    pub fn forget(&self, id: FileId) -> Vec<W> {
        match self.files.lock().remove(&id).map(|known| known.state) {
            Some(State::Copying(waiting)) => waiting,
            _ => Vec::new(),
        }
    }

    /// Takes all names that still wait.
    pub fn waiting(&self) -> Vec<W> {
        let files = std::mem::take(&mut *self.files.lock());
        let waiting = files.into_values().map(|known| match known.state {
            State::Copying(waiting) => waiting,
            _ => Vec::new(),
        });
        waiting.flatten().collect()
    }

    /// Says that the first name is complete at `path`, or has failed; returns the names that wait.
    pub fn finish(&self, id: FileId, path: Option<&[u8]>) -> Vec<W> {
        let mut files = self.files.lock();
        let Some(known) = files.get_mut(&id) else {
            return Vec::new();
        };
        let state = match path {
            Some(path) => State::Copied(path.to_vec()),
            None => State::Failed,
        };
        let before = std::mem::replace(&mut known.state, state);
        if known.missing == 0 {
            files.remove(&id);
        }
        match before {
            State::Copying(waiting) => waiting,
            _ => Vec::new(),
        }
    }
}
