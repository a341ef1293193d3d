//! Names: lookup, creation, links and removal.
//!
//! Everything that changes names holds the namespace lock, so that a change sees its directories, its
//! names and the ancestors of directories at rest. Lookups take no lock: one name is one key.

use super::acl::put_pieces;
use super::attr::{Attr, FileKind, Stat, Timestamp};
use super::change::Change;
use super::inode::{Inode, Locked};
use super::keys::{self, Fields, PIECE};
use super::{Caller, Result, Volume, VolumeError};
use std::sync::Arc;

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Most links to one inode.
pub const LINK_MAX: u32 = 1 << 31;
/// Longest symlink target.
const SYMLINK_MAX: usize = 4095;
/// Inode numbers that are reserved at a time.
const INO_BATCH: u64 = 4096;

/// Guarded by the namespace lock.
#[derive(Debug)]
pub struct Namespace {
    /// The next inode number to hand out.
    pub next_ino: u64,
    /// Numbers below this one are recorded as possibly in use.
    pub reserved: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent {
    pub ino: u64,
    pub kind: FileKind,
}

impl Dirent {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(6);
        keys::put_varint(&mut out, self.ino);
        keys::put_varint(&mut out, u64::from(self.kind.mode_bits() >> 12));
        out
    }

    pub fn decode(value: &[u8]) -> Result<Dirent> {
        let mut fields = Fields::new("directory entry", value);
        let ino = fields.varint()?;
        let bits = fields.u32()?;
        fields.finish()?;
        match FileKind::from_mode(bits.saturating_mul(1 << 12)) {
            Some(kind) if bits != 0 => Ok(Dirent { ino, kind }),
            _ => Err(keys::damaged("directory entry", "bad type")),
        }
    }
}

/// A new inode: everything but its name.
struct NewNode<'a> {
    kind: FileKind,
    perm: u32,
    rdev: u32,
    target: &'a [u8],
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        _ if name.len() > NAME_MAX => Err(VolumeError::NameTooLong),
        b"" | b"." | b".." => Err(VolumeError::Invalid("name")),
        _ if name.contains(&0) || name.contains(&b'/') => Err(VolumeError::Invalid("name")),
        _ => Ok(()),
    }
}

impl Volume {
    /// What `name` in a directory stands for.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Stat> {
        if name.len() > NAME_MAX {
            return Err(VolumeError::NameTooLong);
        }
        match self.dirent(parent, name)? {
            Some(entry) => self.getattr(entry.ino).map_err(|e| match e {
                // Removed between the two look-ups.
                VolumeError::Stale(_) => VolumeError::NotFound,
                other => other,
            }),
            None => Err(VolumeError::NotFound),
        }
    }

    pub(super) fn dirent(&self, parent: u64, name: &[u8]) -> Result<Option<Dirent>> {
        match self.store()?.get(&keys::dirent(parent, name))? {
            Some(value) => Ok(Some(Dirent::decode(&value)?)),
            None => Ok(None),
        }
    }

    pub(super) fn existing(&self, parent: u64, name: &[u8]) -> Result<Dirent> {
        self.dirent(parent, name)?.ok_or(VolumeError::NotFound)
    }

    /// Makes a file, device, fifo or socket. `mode` has the type bits.
    pub fn mknod(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        caller: Caller,
    ) -> Result<Stat> {
        let kind = match FileKind::from_mode(mode) {
            None | Some(FileKind::Directory | FileKind::Symlink) => {
                return Err(VolumeError::Invalid("file type"));
            }
            Some(kind) => kind,
        };
        let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let node = NewNode {
            kind,
            perm: mode & 0o7777,
            rdev: if device { rdev } else { 0 },
            target: b"",
        };
        self.make(parent, name, node, caller).map(|(_, stat)| stat)
    }

    /// Makes a regular file and opens it.
    pub fn create(&self, parent: u64, name: &[u8], mode: u32, caller: Caller) -> Result<Stat> {
        let node = NewNode {
            kind: FileKind::Regular,
            perm: mode & 0o7777,
            rdev: 0,
            target: b"",
        };
        let (inode, stat) = self.make(parent, name, node, caller)?;
        inode.state.lock().opens += 1;
        Ok(stat)
    }

    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: Caller) -> Result<Stat> {
        let node = NewNode {
            kind: FileKind::Directory,
            perm: mode & 0o1777,
            rdev: 0,
            target: b"",
        };
        self.make(parent, name, node, caller).map(|(_, stat)| stat)
    }

    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: Caller) -> Result<Stat> {
        if target.len() > SYMLINK_MAX {
            return Err(VolumeError::NameTooLong);
        }
        if target.is_empty() {
            return Err(VolumeError::NotFound);
        }
        let node = NewNode {
            kind: FileKind::Symlink,
            perm: 0o777,
            rdev: 0,
            target,
        };
        self.make(parent, name, node, caller).map(|(_, stat)| stat)
    }

    /// The target of a symlink.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        if self.getattr(ino)?.attr.kind != FileKind::Symlink {
            return Err(VolumeError::Invalid("not a symlink"));
        }
        let (from, to) = keys::range_of(b'L', ino);
        let parts = self.store()?.scan(&from, &to, 256)?;
        Ok(parts.into_iter().flat_map(|(_, value)| value).collect())
    }

    fn make(
        &self,
        parent: u64,
        name: &[u8],
        node: NewNode<'_>,
        caller: Caller,
    ) -> Result<(Arc<Inode>, Stat)> {
        check_name(name)?;
        let _pass = self.gate.enter()?;
        let mut names = self.names()?;
        let dir = self.inode(parent)?;
        let mut dir_state = dir.state.lock();
        if !dir_state.attr.is_dir() {
            return Err(VolumeError::NotDirectory);
        }
        if dir_state.gone || dir_state.attr.nlink == 0 {
            return Err(VolumeError::NotFound);
        }
        if self.dirent(parent, name)?.is_some() {
            return Err(VolumeError::Exists);
        }
        let mut change = Change::new(self);
        let ino = names.next_ino;
        let reserved = match ino < names.reserved {
            true => names.reserved,
            false => {
                let mut value = Vec::new();
                keys::put_varint(&mut value, ino + INO_BATCH);
                change.put(keys::META_NEXT_INO.to_vec(), value);
                ino + INO_BATCH
            }
        };
        let mut attr = new_attr(&node, &dir_state.attr, parent, caller);
        let inherited = self.inherited(parent, &attr, caller.umask)?;
        attr.perm = inherited.perm;
        let mut dir_attr = dir_state.attr.clone();
        dir_attr.mtime = attr.mtime;
        dir_attr.ctime = attr.mtime;
        if attr.is_dir() {
            dir_attr.nlink = dir_attr
                .nlink
                .checked_add(1)
                .ok_or(VolumeError::TooManyLinks)?;
        }
        let entry = Dirent {
            ino,
            kind: node.kind,
        };
        change.put(keys::dirent(parent, name), entry.encode());
        change.put_inode(ino, &attr, attr.size);
        change.put_inode(parent, &dir_attr, dir_attr.size);
        for (part, piece) in node.target.chunks(PIECE).enumerate() {
            change.put(keys::symlink(ino, part as u8), piece.to_vec());
        }
        for (kind, value) in &inherited.lists {
            put_pieces(&mut change, ino, kind.name(), value);
        }
        change.count_inode(&attr, 1);
        change.commit()?;
        names.next_ino = ino + 1;
        names.reserved = reserved;
        dir_state.attr = dir_attr;
        let inode = self.table.get_or_load(ino, || Ok(attr.clone()))?;
        let stat = inode.state.lock().stat(ino);
        Ok((inode, stat))
    }

    /// Gives an inode one more name.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Stat> {
        check_name(name)?;
        let _pass = self.gate.enter()?;
        let _names = self.names()?;
        let (inode, dir) = (self.inode(ino)?, self.inode(parent)?);
        if ino == parent {
            return Err(VolumeError::NotPermitted);
        }
        let mut states = Locked::new([&inode, &dir]);
        let mut dir_attr = states.get(parent)?.attr.clone();
        if !dir_attr.is_dir() {
            return Err(VolumeError::NotDirectory);
        }
        let state = states.get(ino)?;
        let mut attr = state.attr.clone();
        let disk_size = state.disk_size;
        if attr.is_dir() {
            return Err(VolumeError::NotPermitted);
        }
        if attr.nlink == 0 || state.gone || dir_attr.nlink == 0 {
            return Err(VolumeError::NotFound);
        }
        if attr.nlink >= LINK_MAX {
            return Err(VolumeError::TooManyLinks);
        }
        if self.dirent(parent, name)?.is_some() {
            return Err(VolumeError::Exists);
        }
        attr.nlink += 1;
        attr.parent = parent;
        attr.ctime = Timestamp::now();
        dir_attr.mtime = attr.ctime;
        dir_attr.ctime = attr.ctime;
        let entry = Dirent {
            ino,
            kind: attr.kind,
        };
        let mut change = Change::new(self);
        change.put(keys::dirent(parent, name), entry.encode());
        change.put_inode(ino, &attr, disk_size);
        change.put_inode(parent, &dir_attr, dir_attr.size);
        change.commit()?;
        states.get(parent)?.attr = dir_attr;
        let state = states.get(ino)?;
        state.attr = attr;
        Ok(state.stat(ino))
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: u64, name: &[u8], directory: bool) -> Result<()> {
        if name.len() > NAME_MAX {
            return Err(VolumeError::NameTooLong);
        }
        let _pass = self.gate.enter()?;
        let names = self.names()?;
        let entry = self.existing(parent, name)?;
        match (directory, entry.kind == FileKind::Directory) {
            (true, false) => return Err(VolumeError::NotDirectory),
            (false, true) => return Err(VolumeError::IsDirectory),
            _ => {}
        }
        let (dir, child) = (self.inode(parent)?, self.inode(entry.ino)?);
        if directory && !self.is_empty(entry.ino)? {
            return Err(VolumeError::NotEmpty);
        }
        let mut states = Locked::new([&dir, &child]);
        let mut change = Change::new(self);
        let now = Timestamp::now();
        let mut dir_attr = states.get(parent)?.attr.clone();
        dir_attr.mtime = now;
        dir_attr.ctime = now;
        if directory {
            dir_attr.nlink = dir_attr.nlink.saturating_sub(1);
        }
        change.delete(keys::dirent(parent, name));
        change.put_inode(parent, &dir_attr, dir_attr.size);
        let dropped = self.drop_link(&mut change, &mut states, &child, now)?;
        change.commit()?;
        states.get(parent)?.attr = dir_attr;
        states.get(entry.ino)?.attr = dropped;
        drop(states);
        if directory {
            self.policies.forget_one(entry.ino);
        }
        drop(names);
        self.reap_if_unused(&child);
        Ok(())
    }

    /// Adds to `change` that `child` loses one name, and all its links if it is a directory. Without
    /// links it becomes an orphan, which whoever closes it last removes. Returns its new attributes.
    pub(super) fn drop_link(
        &self,
        change: &mut Change<'_>,
        states: &mut Locked<'_>,
        child: &Arc<Inode>,
        now: Timestamp,
    ) -> Result<Attr> {
        let state = states.get(child.ino)?;
        let mut attr = state.attr.clone();
        attr.ctime = now;
        attr.nlink = match attr.is_dir() {
            true => 0,
            false => attr.nlink.saturating_sub(1),
        };
        change.put_inode(child.ino, &attr, state.disk_size);
        if attr.nlink == 0 {
            change.put(keys::orphan(child.ino), Vec::new());
        }
        Ok(attr)
    }

    pub(super) fn is_empty(&self, ino: u64) -> Result<bool> {
        let (from, to) = keys::range_of(b'D', ino);
        Ok(self.store()?.scan(&from, &to, 1)?.is_empty())
    }
}

/// Attributes of a new inode: in a setgid directory the group is inherited, and so is setgid by
/// directories.
fn new_attr(node: &NewNode<'_>, dir: &Attr, parent: u64, caller: Caller) -> Attr {
    let inherit = dir.perm & libc::S_ISGID != 0;
    let gid = if inherit { dir.gid } else { caller.gid };
    let mut attr = Attr::new(node.kind, node.perm, caller.uid, gid, parent);
    if inherit && attr.is_dir() {
        attr.perm |= libc::S_ISGID;
    }
    attr.rdev = node.rdev;
    attr.size = node.target.len() as u64;
    attr
}
