//! Renaming, with the flags of renameat2.

use super::attr::{Attr, FileKind, Timestamp};
use super::change::Change;
use super::inode::{Inode, Locked};
use super::keys;
use super::namespace::{Dirent, check_name};
use super::stage::StageMode;
use super::{Result, Volume, VolumeError};
use crate::fault;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// How to treat an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RenameMode {
    /// Replace it.
    #[default]
    Replace,
    /// Fail (RENAME_NOREPLACE).
    NoReplace,
    /// Swap the two (RENAME_EXCHANGE).
    Exchange,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub parent: u64,
    pub name: &'a [u8],
}

impl Volume {
    /// Renames `from` to `to`. What was written to the file before is in the log before the new name,
    /// so that a crash never shows the new name with older contents.
    pub fn rename(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> Result<()> {
        check_name(from.name)?;
        check_name(to.name)?;
        let _pass = self.gate.enter()?;
        self.stage_before_rename(from)?;
        if mode == RenameMode::Exchange {
            self.stage_before_rename(to)?;
        }
        let names = self.names()?;
        let source = self.existing(from.parent, from.name)?;
        let target = self.dirent(to.parent, to.name)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(VolumeError::Exists),
            (RenameMode::Exchange, None) => return Err(VolumeError::NotFound),
            (_, Some(target)) if target.ino == source.ino => return Ok(()),
            _ => {}
        }
        self.check_ancestry(from.parent, to.parent, &source)?;
        let replaced = match (mode, target) {
            (RenameMode::Exchange, Some(target)) => {
                self.check_ancestry(to.parent, from.parent, &target)?;
                self.exchange(from, to, &source, &target)?;
                None
            }
            (_, target) => {
                if let Some(target) = &target {
                    self.check_replaceable(&source, target)?;
                }
                self.move_over(from, to, &source, target.as_ref())?
            }
        };
        let moved = [Some(source), target];
        if moved
            .iter()
            .flatten()
            .any(|e| e.kind == FileKind::Directory)
        {
            self.policies.forget();
        }
        drop(names);
        if let Some(inode) = replaced {
            self.reap_if_unused(&inode);
        }
        Ok(())
    }

    fn stage_before_rename(&self, place: Place<'_>) -> Result<()> {
        match self.dirent(place.parent, place.name)? {
            _ if fault::planted("rename-before-data") => Ok(()),
            Some(entry) if entry.kind == FileKind::Regular => match self.table.peek(entry.ino) {
                Some(inode) => self.stage(&inode, StageMode::All),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn check_replaceable(&self, source: &Dirent, target: &Dirent) -> Result<()> {
        let directory = |e: &Dirent| e.kind == FileKind::Directory;
        match (directory(source), directory(target)) {
            (true, false) => Err(VolumeError::NotDirectory),
            (false, true) => Err(VolumeError::IsDirectory),
            (true, true) if !self.is_empty(target.ino)? => Err(VolumeError::NotEmpty),
            _ => Ok(()),
        }
    }

    /// A directory cannot move below itself.
    fn check_ancestry(&self, old_parent: u64, new_parent: u64, moved: &Dirent) -> Result<()> {
        if moved.kind != FileKind::Directory || old_parent == new_parent {
            return Ok(());
        }
        let mut at = new_parent;
        loop {
            if at == moved.ino {
                return Err(VolumeError::Invalid("directory into itself"));
            }
            let parent = self.inode(at)?.state.lock().attr.parent;
            if at == super::ROOT || parent == at {
                return Ok(());
            }
            at = parent;
        }
    }

    /// Returns the inode that lost its last name, if one did.
    fn move_over(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        source: &Dirent,
        target: Option<&Dirent>,
    ) -> Result<Option<Arc<Inode>>> {
        let moved = self.inode(source.ino)?;
        let victim = match target {
            Some(target) => Some(self.inode(target.ino)?),
            None => None,
        };
        let dirs = [self.inode(from.parent)?, self.inode(to.parent)?];
        let mut states = Locked::new(dirs.iter().chain([&moved]).chain(&victim));
        if states.get(to.parent)?.attr.nlink == 0 {
            return Err(VolumeError::NotFound);
        }
        let now = Timestamp::now();
        let mut change = Change::new(self);
        let mut attrs = BTreeMap::new();
        if let Some(victim) = &victim {
            let attr = self.drop_link(&mut change, &mut states, victim, now)?;
            attrs.insert(victim.ino, attr);
        }
        change.delete(keys::dirent(from.parent, from.name));
        change.put(keys::dirent(to.parent, to.name), source.encode());
        let is_dir = |e: &Dirent| e.kind == FileKind::Directory;
        let lost = target.is_some_and(is_dir);
        self.touch_dir(
            &mut states,
            &mut attrs,
            from.parent,
            now,
            if is_dir(source) { -1 } else { 0 },
        )?;
        let gained = i64::from(is_dir(source)) - i64::from(lost);
        self.touch_dir(&mut states, &mut attrs, to.parent, now, gained)?;
        self.touch_moved(&mut states, &mut attrs, source.ino, to.parent, now)?;
        finish(change, &mut states, attrs, victim.as_ref().map(|v| v.ino))?;
        drop(states);
        Ok(victim)
    }

    fn exchange(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        source: &Dirent,
        target: &Dirent,
    ) -> Result<()> {
        let inodes = [
            self.inode(from.parent)?,
            self.inode(to.parent)?,
            self.inode(source.ino)?,
            self.inode(target.ino)?,
        ];
        let mut states = Locked::new(&inodes);
        let now = Timestamp::now();
        let mut change = Change::new(self);
        let mut attrs = BTreeMap::new();
        change.put(keys::dirent(from.parent, from.name), target.encode());
        change.put(keys::dirent(to.parent, to.name), source.encode());
        let dir = |e: &Dirent| i64::from(e.kind == FileKind::Directory);
        let gained = dir(target) - dir(source);
        self.touch_dir(&mut states, &mut attrs, from.parent, now, gained)?;
        self.touch_dir(&mut states, &mut attrs, to.parent, now, -gained)?;
        self.touch_moved(&mut states, &mut attrs, source.ino, to.parent, now)?;
        self.touch_moved(&mut states, &mut attrs, target.ino, from.parent, now)?;
        finish(change, &mut states, attrs, None)
    }

    fn touch_dir(
        &self,
        states: &mut Locked<'_>,
        attrs: &mut BTreeMap<u64, Attr>,
        ino: u64,
        now: Timestamp,
        links: i64,
    ) -> Result<()> {
        let attr = attr_of(states, attrs, ino)?;
        attr.mtime = now;
        attr.ctime = now;
        attr.nlink = u32::try_from((i64::from(attr.nlink) + links).max(0))
            .map_err(|_| VolumeError::TooManyLinks)?;
        Ok(())
    }

    fn touch_moved(
        &self,
        states: &mut Locked<'_>,
        attrs: &mut BTreeMap<u64, Attr>,
        ino: u64,
        parent: u64,
        now: Timestamp,
    ) -> Result<()> {
        let attr = attr_of(states, attrs, ino)?;
        attr.ctime = now;
        attr.parent = parent;
        Ok(())
    }
}

fn attr_of<'a>(
    states: &mut Locked<'_>,
    attrs: &'a mut BTreeMap<u64, Attr>,
    ino: u64,
) -> Result<&'a mut Attr> {
    match attrs.entry(ino) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(unknown) => Ok(unknown.insert(states.get(ino)?.attr.clone())),
    }
}

/// Commits with the new attributes and shows them. Those of `stored` are in the change already.
fn finish(
    mut change: Change<'_>,
    states: &mut Locked<'_>,
    attrs: BTreeMap<u64, Attr>,
    stored: Option<u64>,
) -> Result<()> {
    for (ino, attr) in attrs.iter().filter(|(ino, _)| Some(**ino) != stored) {
        let disk_size = states.get(*ino)?.disk_size;
        change.put_inode(*ino, attr, disk_size);
    }
    change.commit()?;
    for (ino, attr) in attrs {
        states.get(ino)?.attr = attr;
    }
    Ok(())
}
