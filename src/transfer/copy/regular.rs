//! Regular files.

use std::cell::Cell;
use std::sync::Arc;

use super::{Copier, Dir, Result, Written, partial_name};
use crate::transfer::Verify;
use crate::transfer::digest::Hash;
use crate::transfer::files::{copy_data, hash_source, hash_target};
use crate::transfer::tree::{CopyError, Meta, Of, Target, Tree, join};

/// With [`Verify::Sample`], one file out of so many is read back.
const SAMPLE: u8 = 16;

impl<S: Tree, T: Target> Copier<'_, S, T> {
    /// Writes a regular file, unless it is there. One that changes meanwhile gets a second chance.
    pub(super) fn regular(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        meta: &Meta,
    ) -> Result<Option<Written>> {
        let attributes = self.source.attributes(&dir.source, name);
        let attributes = attributes.of_source()?;
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
            meta = again.of_source()?;
            if !meta.is_regular() {
                return Err(CopyError::Changed);
            }
        }
        Err(CopyError::Changed)
    }

    /// Whether an earlier copy has brought this file.
    pub(super) fn is_copied(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        meta: &Meta,
        found: &Meta,
    ) -> Result<bool> {
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
        let there = self.target.open(&dir.target, name);
        let there = there.of_target()?;
        // What cannot be read there is written anew.
        let there = match hash_target(&*there, meta.size, self.watch.stop) {
            Err(CopyError::Interrupted) => return Err(CopyError::Interrupted),
            other => other.unwrap_or(None),
        };
        let Some(there) = there else {
            return Ok(false);
        };
        let contents = self.source.open(&dir.source, name);
        let contents = contents.of_source()?;
        Ok(hash_source(&*contents, meta.size, self.watch.stop, self.watch.progress)? == there)
    }

    pub(super) fn write(
        &self,
        dir: &Dir<S, T>,
        name: &[u8],
        partial: &[u8],
        meta: &Meta,
    ) -> Result<Hash> {
        let contents = self.source.open(&dir.source, name);
        let contents = contents.of_source()?;
        let opened = contents.meta().of_source()?;
        if opened.id != meta.id || !opened.is_as_before(meta) {
            return Err(CopyError::Changed);
        }
        let wanted = self.options.wanted(meta);
        let output = self.target.create(&dir.target, partial, &wanted);
        let output = output.of_target()?;
        let bytes = Cell::new(0);
        let hash = copy_data(&*contents, meta.size, output, self.watch.stop, &|piece| {
            bytes.set(bytes.get() + piece);
            (self.watch.progress)(piece);
        })?;
        let after = contents.meta().of_source()?;
        if !after.is_as_before(meta) {
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
            let id = (file.meta.nlink > 1).then_some(file.meta.id);
            written.pop();
            let done = self.note(&path, named)?.is_some();
            self.finish_links(id, done.then_some(&path))?;
        }
        Ok(())
    }

    pub(super) fn give_name(&self, dir: &Dir<S, T>, path: &[u8], file: &Written) -> Result<()> {
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
