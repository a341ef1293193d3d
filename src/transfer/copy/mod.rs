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

use super::attributes::Attributes;
use super::digest::Hash;
use super::links::{FileId, Links};
use super::queue::Queue;
use super::tree::{CopyError, Meta, Of, SELF, Target, Tree, join};
use super::{CopyOptions, PARTIAL, Report};

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
/// that has its name is complete all the same. Without one, all that was copied is durable on return, unless
/// the report says otherwise.
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
    copier.end()
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

impl<S: Tree, T: Tree> Dir<S, T> {
    /// Whether this directory, or one that it lies in, is the one with this id.
    fn is_within(&self, id: FileId) -> bool {
        let mut up = std::iter::successors(Some(self), |dir| dir.parent.as_deref());
        up.any(|dir| dir.meta.id == id)
    }
}

enum Job<S: Tree, T: Tree> {
    /// The root is to be listed.
    List(Arc<Dir<S, T>>),
    /// A directory is to be made, and listed.
    Directory(Arc<Dir<S, T>>, Vec<u8>, Meta),
    /// These names are to be copied.
    Entries(Arc<Dir<S, T>>, Vec<Vec<u8>>),
}

/// A name of a file with several, waiting until the file is complete.
type Waiting<S, T> = (Arc<Dir<S, T>>, Vec<u8>);

/// A file that is written, and does not have its name yet.
struct Written {
    name: Vec<u8>,
    partial: Vec<u8>,
    /// Of what was read at last.
    meta: Meta,
    attributes: Attributes,
    hash: Hash,
    /// The file with several names that this was when it was found, whose other names may wait for it.
    claimed: Option<FileId>,
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
            let _turn = Turn(&self.queue);
            if let Err(error) = self.job(job) {
                self.fatal.lock().get_or_insert(error);
                self.queue.close();
            }
        }
    }

    fn job(&self, job: Job<S, T>) -> Result<()> {
        match job {
            Job::List(dir) => self.list(dir),
            Job::Directory(dir, name, meta) => {
                let path = join(&dir.path, &name);
                let made = self.directory(&dir, &name, &path, meta);
                self.note(&path, made)?;
                self.release(dir)
            }
            Job::Entries(dir, names) => self.entries(dir, &names),
        }
    }

    /// When no job is left.
    fn end(self) -> Result<Report> {
        if let Some(error) = self.fatal.lock().take() {
            return Err(error);
        }
        // Whoever copies a file says how that ended, so that nobody waits now. If somebody did, it would
        // be lost without a word.
        for (dir, name) in self.links.waiting() {
            self.count(|report| report.fail(&join(&dir.path, &name), CopyError::OtherName));
            self.release(dir)?;
        }
        let mut report = self.report.into_inner();
        if let Err(error) = self.target.sync_all() {
            report.fail(b"", CopyError::Sync(error));
        }
        Ok(report)
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

/// A job that is under way. A panic in it ends the work of all threads, none of which would otherwise learn
/// that it is over.
struct Turn<'a, J>(&'a Queue<J>);

impl<J> Drop for Turn<'_, J> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close();
        }
        self.0.done();
    }
}

fn partial_name() -> Vec<u8> {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    [PARTIAL, unique.as_bytes()].concat()
}
