//! Copies a tree, with several threads, into one that may have parts of it already.
//!
//! A file gets its name when it is complete: written under another name, handed to the disk together with
//! others, read back, and given its attributes. A directory gets its attributes when everything in it is
//! done. So a copy that was interrupted can be made again, and keeps what is there: a file of the same
//! size and modification time is left alone if its contents are the same.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;

use super::attributes::{Difference, OWN};
use super::digest::Hash;
use super::files::{copy_data, hash_source, hash_target};
use super::links::{Claim, FileId, Links};
use super::queue::Queue;
use super::tree::{Attribute, CopyError, Meta, SELF, Target, Tree, TreeError};
use super::{PARTIAL, Pattern, Report};
use crate::volume::FileKind;

/// Names that one job takes care of, at most.
const BATCH: usize = 256;
/// Bytes that are written before files get their names.
const BATCH_BYTES: u64 = 64 << 20;
/// With [`Verify::Sample`], one file out of so many is read back.
const SAMPLE: u8 = 16;

type Result<T> = std::result::Result<T, CopyError>;

/// How much of what was written is read back and compared with what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Verify {
    /// Every file
    #[default]
    Full,
    /// One file out of 16
    Sample,
    /// No file; files that are there already are believed to be the same if size and time are
    Off,
}

/// How a tree is copied.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    pub threads: usize,
    pub verify: Verify,
    pub exclude: Vec<Pattern>,
    /// Directories of other file systems are made, but not entered.
    pub one_file_system: bool,
    /// Owners, devices and the attributes of root are kept. Without it, what is copied belongs to `owner`.
    pub as_root: bool,
    pub owner: (u32, u32),
}

/// Copies everything under the root of `source`, and the attributes of the root itself. What cannot be
/// read or written is in the report; only what makes going on senseless is an error, and then everything
/// that has its name is complete all the same. `progress` gets bytes as they are done. `last` is called when
/// only the attributes of the root are left to be set.
pub fn copy<S: Tree, T: Target>(
    source: &S,
    target: &T,
    options: &CopyOptions,
    stop: &AtomicBool,
    progress: &(dyn Fn(u64) + Sync),
    last: &(dyn Fn() + Sync),
) -> Result<Report> {
    let root = Arc::new(Dir {
        path: Vec::new(),
        source: source.root().map_err(CopyError::Source)?,
        target: target.root().map_err(CopyError::Target)?,
        meta: source
            .root()
            .and_then(|root| source.meta(&root, SELF))
            .map_err(CopyError::Source)?,
        parent: None,
        is_new: false,
    });
    let copier = Copier {
        source,
        target,
        options,
        stop,
        progress,
        last,
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

/// Hands the bytes of each file that would be copied to `found`.
pub fn measure<S: Tree>(
    source: &S,
    options: &CopyOptions,
    stop: &AtomicBool,
    found: &dyn Fn(u64),
) -> super::tree::Result<()> {
    let root = source.root()?;
    let device = source.meta(&root, SELF)?.id.0;
    let mut open = vec![(Vec::new(), root)];
    while let Some((path, dir)) = open.pop() {
        // What cannot be read is the copy's to report.
        for name in source.names(&dir).unwrap_or_default() {
            if stop.load(Relaxed) {
                return Ok(());
            }
            let Ok(meta) = source.meta(&dir, &name) else {
                continue;
            };
            let path = join(&path, &name);
            if options.leaves_out(&path, &meta) {
                continue;
            }
            match meta.kind {
                FileKind::Regular => found(meta.size),
                FileKind::Directory if options.enters(&meta, device) => {
                    open.extend(source.open_dir(&dir, &name).ok().map(|dir| (path, dir)));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

impl CopyOptions {
    fn leaves_out(&self, path: &[u8], meta: &Meta) -> bool {
        self.exclude
            .iter()
            .any(|pattern| pattern.matches(path, meta.is_dir()))
    }

    fn enters(&self, meta: &Meta, device: u64) -> bool {
        !self.one_file_system || meta.id.0 == device
    }

    /// What the copy of something is to have. Setuid and setgid go with the owner that they were given for.
    fn wanted(&self, original: &Meta) -> Meta {
        let mut wanted = original.clone();
        if !self.as_root {
            (wanted.uid, wanted.gid) = self.owner;
            if wanted.uid != original.uid {
                wanted.perm &= !libc::S_ISUID;
            }
            if wanted.gid != original.gid {
                wanted.perm &= !libc::S_ISGID;
            }
        }
        wanted
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        path => [path, b"/", name].concat(),
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
    stop: &'a AtomicBool,
    progress: &'a (dyn Fn(u64) + Sync),
    last: &'a (dyn Fn() + Sync),
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

    /// Makes jobs of the names in a directory.
    fn list(&self, dir: Arc<Dir<S, T>>) -> Result<()> {
        let names = self.source.names(&dir.source).map_err(CopyError::Source);
        let mut names = self.note(&dir.path, names)?.unwrap_or_default();
        // In order, so that a copy that is made again finds the first names of files first, too.
        names.sort_unstable();
        if !dir.is_new {
            self.clean(&dir, &names)?;
        }
        let size = names.len().div_ceil(self.options.threads.max(1) * 4);
        let jobs: Vec<Job<S, T>> = names
            .chunks(size.clamp(1, BATCH))
            .map(|names| Job::Entries(dir.clone(), names.to_vec()))
            .collect();
        self.queue.add(jobs.into_iter());
        self.release(dir)
    }

    /// Removes what an interrupted copy has left in a directory.
    fn clean(&self, dir: &Dir<S, T>, names: &[Vec<u8>]) -> Result<()> {
        for name in self.target.names(&dir.target).map_err(CopyError::Target)? {
            if name.starts_with(PARTIAL) && names.binary_search(&name).is_err() {
                let removed = self.target.remove(&dir.target, &name);
                self.note(&join(&dir.path, &name), removed.map_err(CopyError::Target))?;
            }
        }
        Ok(())
    }

    /// Gives up a reference to a directory, and finishes it if it was the last.
    fn release(&self, dir: Arc<Dir<S, T>>) -> Result<()> {
        let mut next = Some(dir);
        while let Some(dir) = next.take().and_then(Arc::into_inner) {
            if dir.parent.is_none() {
                (self.last)();
            }
            let attributes = self.source.attributes(&dir.source, SELF);
            if let Some(attributes) = self.note(&dir.path, attributes.map_err(CopyError::Source))? {
                let dressed = self.dress(&dir.path, &dir.target, SELF, &dir.meta, &attributes);
                self.note(&dir.path, dressed)?;
            }
            self.count(|report| report.directories += 1);
            next = dir.parent;
        }
        Ok(())
    }

    fn entries(&self, dir: Arc<Dir<S, T>>, names: &[Vec<u8>]) -> Result<()> {
        let mut written = Vec::new();
        let outcome = self.copy_names(&dir, names, &mut written);
        for file in &written {
            // Not committed: the copy was interrupted, or has failed. What cannot be removed now is
            // removed by the next one.
            let _ = self.target.remove(&dir.target, &file.partial);
        }
        outcome?;
        self.release(dir)
    }

    /// Leaves in `written` what has not got its name.
    fn copy_names(
        &self,
        dir: &Arc<Dir<S, T>>,
        names: &[Vec<u8>],
        written: &mut Vec<Written>,
    ) -> Result<()> {
        let mut bytes = 0;
        for name in names {
            if self.stop.load(Relaxed) {
                return Err(CopyError::Interrupted);
            }
            let path = join(&dir.path, name);
            let before = written.len();
            let copied = self.entry(dir, name, &path, written);
            self.note(&path, copied)?;
            bytes += written[before..]
                .iter()
                .map(|file| file.meta.size)
                .sum::<u64>();
            if bytes >= BATCH_BYTES {
                self.commit(dir, written)?;
                bytes = 0;
            }
        }
        self.commit(dir, written)
    }

    /// Copies one name, or begins to.
    fn entry(
        &self,
        dir: &Arc<Dir<S, T>>,
        name: &[u8],
        path: &[u8],
        written: &mut Vec<Written>,
    ) -> Result<()> {
        let meta = self
            .source
            .meta(&dir.source, name)
            .map_err(CopyError::Source)?;
        if self.options.leaves_out(path, &meta) {
            self.count(|report| report.excluded += 1);
            return Ok(());
        }
        if meta.is_dir() {
            return self.directory(dir, name, path, meta);
        }
        if meta.nlink > 1 {
            match self
                .links
                .claim(meta.id, meta.nlink, (dir.clone(), name.to_vec()))
            {
                Claim::First => {}
                Claim::Waits => return Ok(()),
                Claim::Link(existing) => return self.link(dir, name, &existing),
                Claim::Failed => return Err(CopyError::OtherName),
            }
        }
        let id = (meta.nlink > 1).then_some(meta.id);
        let copied = match meta.kind {
            FileKind::Regular => self.regular(dir, name, &meta),
            _ => self.special(dir, name, path, &meta).map(|()| None),
        };
        match copied {
            Ok(Some(file)) => {
                written.push(file);
                Ok(())
            }
            Ok(None) => self.finish_links(id, Some(path)),
            Err(error) => {
                self.finish_links(id, None)?;
                Err(error)
            }
        }
    }

    fn directory(&self, dir: &Arc<Dir<S, T>>, name: &[u8], path: &[u8], meta: Meta) -> Result<()> {
        let wanted = self.options.wanted(&meta);
        let is_new = match self.existing(dir, name)? {
            None => {
                let made = self.target.make_dir(&dir.target, name, &wanted);
                made.map_err(CopyError::Target)?;
                true
            }
            Some(found) if found.is_dir() => {
                self.make_writable(dir, name, &found)?;
                false
            }
            Some(_) => return Err(CopyError::InTheWay("a file")),
        };
        let source = match self.source.open_dir(&dir.source, name) {
            Ok(source) => source,
            Err(error) => {
                // What is known of it is kept, though what is in it cannot be.
                let attributes = self.source.attributes(&dir.source, name);
                let attributes = attributes.unwrap_or_default();
                self.dress(path, &dir.target, name, &meta, &attributes)?;
                return Err(CopyError::Source(error));
            }
        };
        let target = self.target.open_dir(&dir.target, name);
        let child = Arc::new(Dir {
            path: path.to_vec(),
            source,
            target: target.map_err(CopyError::Target)?,
            parent: Some(dir.clone()),
            meta,
            is_new,
        });
        if self.options.enters(&child.meta, self.device) {
            self.queue.add([Job::List(child)].into_iter());
            return Ok(());
        }
        self.count(|report| report.excluded += 1);
        self.release(child)
    }

    /// A directory that its owner may not write is opened up; it gets its own mode when it is done.
    fn make_writable(&self, dir: &Dir<S, T>, name: &[u8], found: &Meta) -> Result<()> {
        if self.options.as_root || found.perm & 0o700 == 0o700 {
            return Ok(());
        }
        let open = Meta {
            perm: found.perm | 0o700,
            ..found.clone()
        };
        let changed = self.target.set_mode_and_times(&dir.target, name, &open);
        changed.map_err(CopyError::Target)
    }

    fn existing(&self, dir: &Dir<S, T>, name: &[u8]) -> Result<Option<Meta>> {
        match self.target.meta(&dir.target, name) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(CopyError::Target(error)),
        }
    }

    /// Writes a regular file, unless it is there. One that changes meanwhile gets a second chance.
    fn regular(&self, dir: &Dir<S, T>, name: &[u8], meta: &Meta) -> Result<Option<Written>> {
        let attributes = self.source.attributes(&dir.source, name);
        let attributes = attributes.map_err(CopyError::Source)?;
        match self.existing(dir, name)? {
            Some(found) if found.is_dir() => return Err(CopyError::InTheWay("a directory")),
            Some(found) if self.is_copied(dir, name, meta, &found)? => {
                let path = join(&dir.path, name);
                self.dress(&path, &dir.target, name, meta, &attributes)?;
                self.count(|report| report.unchanged += 1);
                return Ok(None);
            }
            _ => {}
        }
        let partial = partial_name();
        let mut meta = meta.clone();
        for last in [false, true] {
            let copied = self.write(dir, name, &partial, &meta);
            match copied {
                Ok(hash) => {
                    let name = name.to_vec();
                    return Ok(Some(Written {
                        name,
                        partial,
                        meta,
                        attributes,
                        hash,
                    }));
                }
                Err(error) => {
                    let _ = self.target.remove(&dir.target, &partial);
                    if last || !matches!(error, CopyError::Changed) {
                        return Err(error);
                    }
                }
            }
            let again = self.source.meta(&dir.source, name);
            meta = again.map_err(CopyError::Source)?;
            if !meta.is_regular() {
                return Err(CopyError::Changed);
            }
        }
        Err(CopyError::Changed)
    }

    /// Whether an earlier copy has brought this file.
    fn is_copied(&self, dir: &Dir<S, T>, name: &[u8], meta: &Meta, found: &Meta) -> Result<bool> {
        if !found.is_regular() || (found.size, found.mtime) != (meta.size, meta.mtime) {
            return Ok(false);
        }
        if !self.is_linked_alike(meta, found) {
            return Ok(false);
        }
        if self.options.verify == Verify::Off {
            (self.progress)(meta.size);
            return Ok(true);
        }
        let there = self.target.open(&dir.target, name);
        let there = there.map_err(CopyError::Target)?;
        // What cannot be read there is written anew.
        let there = match hash_target(&*there, meta.size, self.stop) {
            Err(CopyError::Interrupted) => return Err(CopyError::Interrupted),
            other => other.unwrap_or(None),
        };
        let Some(there) = there else {
            return Ok(false);
        };
        let contents = self.source.open(&dir.source, name);
        let contents = contents.map_err(CopyError::Source)?;
        Ok(hash_source(&*contents, meta.size, self.stop, self.progress)? == there)
    }

    /// Whether what is there can have the same names as the original.
    fn is_linked_alike(&self, meta: &Meta, found: &Meta) -> bool {
        found.nlink == 1 || meta.nlink > 1 && self.links.keep(found.id, meta.id)
    }

    fn write(&self, dir: &Dir<S, T>, name: &[u8], partial: &[u8], meta: &Meta) -> Result<Hash> {
        let contents = self.source.open(&dir.source, name);
        let contents = contents.map_err(CopyError::Source)?;
        let opened = contents.meta().map_err(CopyError::Source)?;
        if opened.id != meta.id || !opened.is_as_before(meta) {
            return Err(CopyError::Changed);
        }
        let wanted = self.options.wanted(meta);
        let output = self.target.create(&dir.target, partial, &wanted);
        let output = output.map_err(CopyError::Target)?;
        let bytes = Cell::new(0);
        let hash = copy_data(&*contents, meta.size, output, self.stop, &|piece| {
            bytes.set(bytes.get() + piece);
            (self.progress)(piece);
        })?;
        let after = contents.meta().map_err(CopyError::Source)?;
        if !after.is_as_before(meta) {
            return Err(CopyError::Changed);
        }
        self.count(|report| report.bytes += bytes.get());
        Ok(hash)
    }

    /// Gives the files their names, after what is in them is safe and was compared.
    fn commit(&self, dir: &Arc<Dir<S, T>>, written: &mut Vec<Written>) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        self.target.barrier().map_err(CopyError::Target)?;
        while let Some(file) = written.last() {
            let path = join(&dir.path, &file.name);
            let named = self.give_name(dir, &path, file);
            if named.is_err() {
                let _ = self.target.remove(&dir.target, &file.partial);
            }
            let id = (file.meta.nlink > 1).then_some(file.meta.id);
            written.pop();
            let done = self.note(&path, named)?.is_some();
            self.finish_links(id, done.then_some(&path))?;
        }
        Ok(())
    }

    fn give_name(&self, dir: &Dir<S, T>, path: &[u8], file: &Written) -> Result<()> {
        let sampled = file.hash[0].is_multiple_of(SAMPLE);
        let verify = match self.options.verify {
            Verify::Full => true,
            Verify::Sample => sampled,
            Verify::Off => false,
        };
        if verify {
            let contents = self.target.reopen(&dir.target, &file.partial);
            let contents = contents.map_err(CopyError::Target)?;
            if hash_target(&*contents, file.meta.size, self.stop)? != Some(file.hash) {
                return Err(CopyError::Different);
            }
        }
        self.dress(
            path,
            &dir.target,
            &file.partial,
            &file.meta,
            &file.attributes,
        )?;
        let renamed = self.target.rename(&dir.target, &file.partial, &file.name);
        renamed.map_err(CopyError::Target)?;
        self.count(|report| {
            report.files += 1;
            report.verified += u64::from(verify);
        });
        Ok(())
    }

    /// Makes a symlink, fifo, socket or device, unless it is there.
    fn special(&self, dir: &Dir<S, T>, name: &[u8], path: &[u8], meta: &Meta) -> Result<()> {
        let is_device = matches!(meta.kind, FileKind::CharDevice | FileKind::BlockDevice);
        if is_device && !self.options.as_root {
            return Err(CopyError::Device);
        }
        let target = match meta.kind {
            FileKind::Symlink => Some(
                self.source
                    .symlink_target(&dir.source, name)
                    .map_err(CopyError::Source)?,
            ),
            _ => None,
        };
        let attributes = self.source.attributes(&dir.source, name);
        let attributes = attributes.map_err(CopyError::Source)?;
        let found = self.existing(dir, name)?;
        if found.as_ref().is_some_and(Meta::is_dir) {
            return Err(CopyError::InTheWay("a directory"));
        }
        let same = |found: &Meta| {
            let target_there = || self.target.symlink_target(&dir.target, name).ok();
            found.kind == meta.kind
                && self.is_linked_alike(meta, found)
                && (!is_device || found.rdev == meta.rdev)
                && (target.is_none() || target_there() == target)
        };
        if found.as_ref().is_some_and(same) {
            self.dress(path, &dir.target, name, meta, &attributes)?;
        } else {
            let partial = partial_name();
            let made = self.make_special(dir, &partial, meta, target.as_deref());
            let named = made
                .and_then(|()| self.dress(path, &dir.target, &partial, meta, &attributes))
                .and_then(|()| {
                    let renamed = self.target.rename(&dir.target, &partial, name);
                    renamed.map_err(CopyError::Target)
                });
            if named.is_err() {
                let _ = self.target.remove(&dir.target, &partial);
            }
            named?;
        }
        self.count(|report| match meta.kind {
            FileKind::Symlink => report.symlinks += 1,
            _ => report.special += 1,
        });
        Ok(())
    }

    fn make_special(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        meta: &Meta,
        target: Option<&[u8]>,
    ) -> Result<()> {
        let wanted = self.options.wanted(meta);
        let made = match target {
            Some(target) => self.target.make_symlink(&dir.target, name, target, &wanted),
            None => self.target.make_node(&dir.target, name, &wanted),
        };
        made.map_err(CopyError::Target)
    }

    /// Links the names that have waited for a file, which is complete at `path` or has failed.
    fn finish_links(&self, id: Option<FileId>, path: Option<&[u8]>) -> Result<()> {
        let Some(id) = id else {
            return Ok(());
        };
        for (dir, name) in self.links.finish(id, path) {
            let linked = match path {
                Some(existing) => self.link(&dir, &name, existing),
                None => Err(CopyError::OtherName),
            };
            self.note(&join(&dir.path, &name), linked)?;
            self.release(dir)?;
        }
        Ok(())
    }

    /// Makes `name` a name of the copy at `existing`, unless it is.
    fn link(&self, dir: &Dir<S, T>, name: &[u8], existing: &[u8]) -> Result<()> {
        let (from, first) = self.target.locate(existing).map_err(CopyError::Target)?;
        let file = self.target.meta(&from, &first).map_err(CopyError::Target)?;
        let link = |new: &[u8]| {
            let linked = self.target.link(&from, &first, &dir.target, new);
            linked.map_err(CopyError::Target)
        };
        match self.existing(dir, name)? {
            None => link(name)?,
            Some(found) if found.id == file.id => {}
            Some(found) if found.is_dir() => return Err(CopyError::InTheWay("a directory")),
            Some(_) => {
                let partial = partial_name();
                link(&partial)?;
                let renamed = self.target.rename(&dir.target, &partial, name);
                if let Err(error) = renamed {
                    let _ = self.target.remove(&dir.target, &partial);
                    return Err(CopyError::Target(error));
                }
            }
        }
        self.count(|report| report.hard_links += 1);
        Ok(())
    }

    /// Gives a copy the owner, attributes, mode and times of its original. An attribute that cannot be
    /// set is noted, and does not keep the rest from being set.
    fn dress(
        &self,
        path: &[u8],
        dir: &T::Dir,
        name: &[u8],
        original: &Meta,
        attributes: &[Attribute],
    ) -> Result<()> {
        let wanted = self.options.wanted(original);
        let now = self.target.meta(dir, name).map_err(CopyError::Target)?;
        let same_owner = (now.uid, now.gid) == (wanted.uid, wanted.gid);
        if !same_owner {
            let owned = self.target.set_owner(dir, name, &wanted);
            owned.map_err(CopyError::Target)?;
        }
        let there = self.target.attributes(dir, name);
        let there = there.map_err(CopyError::Target)?;
        let difference = Difference::of(attributes, &there, self.options.as_root);
        for key in &difference.remove {
            let removed = self.target.remove_attribute(dir, name, key);
            self.note_attribute(path, key, removed)?;
        }
        for attribute in &difference.set {
            let set = self.target.set_attribute(dir, name, attribute);
            self.note_attribute(path, &attribute.0, set)?;
        }
        let same_mode = now.perm == wanted.perm || wanted.kind == FileKind::Symlink;
        let same_times = (now.atime, now.mtime) == (wanted.atime, wanted.mtime);
        if !(same_owner && same_mode && same_times && difference.is_empty()) {
            let set = self.target.set_mode_and_times(dir, name, &wanted);
            set.map_err(CopyError::Target)?;
        }
        Ok(())
    }

    fn note_attribute(
        &self,
        path: &[u8],
        key: &[u8],
        outcome: std::result::Result<(), TreeError>,
    ) -> Result<()> {
        let Err(error) = outcome else {
            return Ok(());
        };
        if error.hits_everything() {
            return Err(CopyError::Target(error));
        }
        // What another store says of its own way of storing a file has no meaning here.
        if key.starts_with(OWN) && error.errno() == libc::EPERM {
            return Ok(());
        }
        let name = String::from_utf8_lossy(key).into_owned();
        self.count(|report| report.fail(path, CopyError::Attribute { name, error }));
        Ok(())
    }
}

fn partial_name() -> Vec<u8> {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    [PARTIAL, unique.as_bytes()].concat()
}
