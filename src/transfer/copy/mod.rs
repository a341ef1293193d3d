//! Copies a tree, with several threads, into one that may have parts of it already.
//!
//! A file gets its name when it is complete: written under another name, handed to the disk together with
//! others, read back, and given its attributes. A directory gets its attributes when everything in it is
//! done. So a copy that was interrupted can be made again, and keeps what is there: a file of the same
//! size and modification time is left alone if its contents are the same.

mod directories;
mod dress;
mod linking;
mod names;
mod regular;
mod special;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::digest::Hash;
use super::links::Links;
use super::queue::Queue;
use super::tree::{Attribute, CopyError, Meta, Of, SELF, Target, Tree};
use super::{CopyOptions, PARTIAL, Report};

/// Bytes that are written before files get their names.
const BATCH_BYTES: u64 = 64 << 20;

/// What whoever has asked for a copy has to do with it meanwhile.
pub struct Watch<'a> {
    /// Becomes true when the copy is to end.
    pub stop: &'a AtomicBool,
    /// Gets bytes as they are done.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Is called when only the attributes of the root are left to be set.
    pub last: &'a (dyn Fn() + Sync),
}

type Result<T> = std::result::Result<T, CopyError>;

/// Copies everything under the root of `source`, and the attributes of the root itself. What cannot be
/// read or written is in the report; only what makes going on senseless is an error, and then everything
/// that has its name is complete all the same.
pub fn copy<S: Tree, T: Target>(
    source: &S,
    target: &T,
    options: &CopyOptions,
    watch: &Watch<'_>,
) -> Result<Report> {
    let root = Arc::new(Dir {
        path: Vec::new(),
        source: source.root().of_source()?,
        target: target.root().of_target()?,
        meta: source
            .root()
            .and_then(|root| source.meta(&root, SELF))
            .of_source()?,
        parent: None,
        is_new: false,
    });
    let copier = Copier {
        source,
        target,
        options,
        watch,
        device: root.meta.id.0,
        queue: Queue::new(Job::List(root)),
        links: Links::new(),
        report: Mutex::new(Report::default()),
        fatal: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        for _ in 1..options.threads.max(1) {
            scope.spawn(|| copier.work());
        }
        copier.work();
    });
    match copier.fatal.into_inner() {
        Some(error) => Err(error),
        None => Ok(copier.report.into_inner()),
    }
}

/// A directory whose contents are being copied. Whoever drops the last reference, by [`Copier::release`],
/// gives its copy its attributes.
struct Dir<S: Tree, T: Tree> {
    /// Under the root.
    path: Vec<u8>,
    source: S::Dir,
    target: T::Dir,
    meta: Meta,
    parent: Option<Arc<Dir<S, T>>>,
    /// Its copy was made just now, so nothing can be in it.
    is_new: bool,
}

enum Job<S: Tree, T: Tree> {
    List(Arc<Dir<S, T>>),
    Entries(Arc<Dir<S, T>>, Vec<Vec<u8>>),
}

/// A name of a file with several, waiting until the file is complete.
type Waiting<S, T> = (Arc<Dir<S, T>>, Vec<u8>);

/// A file that is written, and does not have its name yet.
struct Written {
    name: Vec<u8>,
    partial: Vec<u8>,
    meta: Meta,
    attributes: Vec<Attribute>,
    hash: Hash,
}

struct Copier<'a, S: Tree, T: Target> {
    source: &'a S,
    target: &'a T,
    options: &'a CopyOptions,
    watch: &'a Watch<'a>,
    device: u64,
    queue: Queue<Job<S, T>>,
    links: Links<Waiting<S, T>>,
    report: Mutex<Report>,
    fatal: Mutex<Option<CopyError>>,
}

impl<S: Tree, T: Target> Copier<'_, S, T> {
    fn work(&self) {
        while let Some(job) = self.queue.take() {
            let outcome = match job {
                Job::List(dir) => self.list(dir),
                Job::Entries(dir, names) => self.entries(dir, &names),
            };
            if let Err(error) = outcome {
                self.fatal.lock().get_or_insert(error);
                self.queue.close();
            }
            self.queue.done();
        }
    }

    fn count(&self, count: impl FnOnce(&mut Report)) {
        count(&mut self.report.lock());
    }

    /// Notes a failure that the copy outlives, and passes others on.
    fn note<X>(&self, path: &[u8], outcome: Result<X>) -> Result<Option<X>> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                self.count(|report| report.fail(path, error));
                Ok(None)
            }
        }
    }

    fn existing(&self, dir: &Dir<S, T>, name: &[u8]) -> Result<Option<Meta>> {
        match self.target.meta(&dir.target, name) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(CopyError::Target(error)),
        }
    }
}

fn partial_name() -> Vec<u8> {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    [PARTIAL, unique.as_bytes()].concat()
}
