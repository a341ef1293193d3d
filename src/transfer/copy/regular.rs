//! Regular files.

use std::cell::Cell;
use std::sync::Arc;

use super::{Copier, Dir, Result, Written, partial_name};
use crate::transfer::Verify;
use crate::transfer::digest::Hash;
use crate::transfer::files::{copy_data, hash_source, hash_target};
use crate::transfer::links::FileId;
use crate::transfer::tree::{Contents, CopyError, Meta, Of, Target, Tree, join};

/// With [`Verify::Sample`], one file out of so many is read back.
const SAMPLE: u8 = 16;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// Writes a regular file, unless it is there. One that changes meanwhile gets a second chance.
    pub(super) fn regular(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        mut meta: Meta,
        claimed: Option<FileId>,
    ) -> Result<Option<Written>> {
        // Read after `meta`, so that whoever finds the file unchanged since knows the same of these.
        let mut attributes = self.attributes(&dir.source, name);
        match self.existing(dir, name)? {
            Some(found) if found.is_dir() => return Err(CopyError::InTheWay("a directory")),
            Some(found) if self.is_copied(dir, name, &meta, &found)? => {
                let path = join(&dir.path, name);
                self.dress(&path, &dir.target, name, &meta, &attributes)?;
                self.count(|report| report.unchanged += 1);
                return Ok(None);
            }
            _ => {}
        }
        let partial = partial_name();
        let mut written = self.write(dir, name, &partial, &meta);
        if matches!(written, Err(CopyError::Changed)) {
            let _ = self.target.remove(&dir.target, &partial);
            meta = self.source.meta(&dir.source, name).of_source()?;
            if !meta.is_regular() {
                return Err(CopyError::Changed);
            }
            attributes = self.attributes(&dir.source, name);
            written = self.write(dir, name, &partial, &meta);
        }
        match written {
            Ok(hash) => Ok(Some(Written {
                name: name.to_vec(),
                partial,
                meta,
                attributes,
                hash,
                claimed,
            })),
            Err(error) => {
                let _ = self.target.remove(&dir.target, &partial);
                Err(error)
            }
        }
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
            (self.watch.progress)(meta.size);
            return Ok(true);
        }
        // What cannot be opened or read there is written anew.
        let there = match self.target.open(&dir.target, name).of_target() {
            Ok(there) => there,
            Err(error) if error.is_fatal() => return Err(error),
            Err(_) => return Ok(false),
        };
        let there = match hash_target(&*there, meta.size, self.watch.stop) {
            Err(CopyError::Interrupted) => return Err(CopyError::Interrupted),
            other => other.unwrap_or(None),
        };
        let Some(there) = there else {
            return Ok(false);
        };
        match self.hash(dir, name, meta) {
            Err(CopyError::Changed) => Ok(false),
            here => Ok(here? == there),
        }
    }

    fn hash(&self, dir: &Dir<S, T>, name: &[u8], meta: &Meta) -> Result<Hash> {
        let contents = self.open_source(dir, name, meta)?;
        let watch = self.watch;
        let hash = hash_source(&*contents, meta.size, watch.stop, watch.progress)?;
        match contents.meta().of_source()?.is_as_before(meta) {
            true => Ok(hash),
            false => Err(CopyError::Changed),
        }
    }

    /// Opens an original that has not changed since it was looked at.
    fn open_source(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        meta: &Meta,
    ) -> Result<Box<dyn Contents + '_>> {
        let contents = self.source.open(&dir.source, name).of_source()?;
        let opened = contents.meta().of_source()?;
        match opened.id == meta.id && opened.is_as_before(meta) {
            true => Ok(contents),
            false => Err(CopyError::Changed),
        }
    }

    fn write(&self, dir: &Dir<S, T>, name: &[u8], partial: &[u8], meta: &Meta) -> Result<Hash> {
        let contents = self.open_source(dir, name, meta)?;
        let wanted = self.options.wanted(meta);
        let output = self.target.create(&dir.target, partial, &wanted);
        let bytes = Cell::new(0);
        let progress = |piece| {
            bytes.set(bytes.get() + piece);
            (self.watch.progress)(piece);
        };
        let output = output.of_target()?;
        let hash = copy_data(&*contents, meta.size, output, self.watch.stop, &progress)?;
        if !contents.meta().of_source()?.is_as_before(meta) {
            return Err(CopyError::Changed);
        }
        self.count(|report| report.bytes += bytes.get());
        Ok(hash)
    }

    /// Gives the files their names, after what is in them is safe and was compared.
    pub(super) fn commit(&self, dir: &Arc<Dir<S, T>>, written: &mut Vec<Written>) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        self.target.barrier().of_target()?;
        while let Some(file) = written.last() {
            let path = join(&dir.path, &file.name);
            let named = self.give_name(dir, &path, file);
            if named.is_err() {
                let _ = self.target.remove(&dir.target, &file.partial);
            }
            let (claimed, id) = (file.claimed, file.meta.id);
            written.pop();
            let done = self.note(&path, named)?.is_some();
            match claimed {
                Some(claimed) if claimed != id => self.begin_links_again(claimed),
                _ => self.finish_links(claimed, done.then_some(&path))?,
            }
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
            let contents = contents.of_target()?;
            if hash_target(&*contents, file.meta.size, self.watch.stop)? != Some(file.hash) {
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
        renamed.of_target()?;
        self.count(|report| {
            report.files += 1;
            report.verified += u64::from(verify);
        });
        Ok(())
    }
}
