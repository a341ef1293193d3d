//! Extended attributes, stored and virtual.

use super::acl::{AclKind, put_pieces};
use super::attr::Timestamp;
use super::change::Change;
use super::inode::{Inode, State};
use super::keys::{self, PIECE};
use super::policy::{self, POLICY};
use super::{Result, Volume, VolumeError};
use std::sync::Arc;

const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65536;
/// All names of one inode, as the kernel limits them.
const LIST_MAX: usize = 65536;
const CAPABILITY: &[u8] = b"security.capability";
/// The virtual attribute that `s2sfs du` reads.
const USAGE: &[u8] = b"usage";
/// Names of the read-only attributes that describe how a file is stored.
const VIRTUAL: &[u8] = b"user.s2sfs.";

impl Volume {
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        if let Some(what) = name.strip_prefix(VIRTUAL).filter(|_| name != POLICY) {
            return self.virtual_xattr(ino, what);
        }
        if name == CAPABILITY
            && let Some(inode) = self.table.peek(ino)
            && inode.state.lock().has_caps == Some(false)
        {
            return Err(VolumeError::NoAttribute);
        }
        check_name(name)?;
        self.attribute(ino, name)?.ok_or(VolumeError::NoAttribute)
    }

    /// The stored value of an attribute of any name.
    pub(super) fn attribute(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let parts = self.parts(ino, name)?;
        let exists = !parts.is_empty();
        Ok(exists.then(|| parts.into_iter().flat_map(|(_, part)| part).collect()))
    }

    /// Adds to `change` that an attribute has this value, or is gone.
    pub(super) fn put_attribute(
        &self,
        change: &mut Change<'_>,
        ino: u64,
        name: &[u8],
        value: Option<&[u8]>,
    ) -> Result<()> {
        for (key, _) in self.parts(ino, name)? {
            change.delete(key);
        }
        if let Some(value) = value {
            put_pieces(change, ino, name, value);
        }
        Ok(())
    }

    /// Names of all stored attributes. The virtual ones are not listed, so that copies of a file do
    /// not try to carry them along.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        let (mut from, to) = keys::range_of(b'X', ino);
        let store = self.store()?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        loop {
            let page = store.scan(&from, &to, 256)?;
            for (key, _) in &page {
                let name = key.get(9..key.len().saturating_sub(3)).unwrap_or_default();
                if names.last().is_none_or(|last| last != name) {
                    names.push(name.to_vec());
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == 256 => from = keys::after(last),
                _ => return Ok(names),
            }
        }
    }

    /// Sets an attribute. `create` and `replace` as the flags of setxattr.
    pub fn setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<()> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        if name.starts_with(VIRTUAL) && name != POLICY {
            return Err(VolumeError::NotPermitted);
        }
        check_name(name)?;
        if value.len() > VALUE_MAX {
            return Err(VolumeError::AttributeTooLarge);
        }
        if let Some(kind) = AclKind::of_name(name) {
            return self.set_acl(ino, kind, Some(value), true);
        }
        let inode = self.inode(ino)?;
        let mut state = inode.state.lock();
        if state.gone {
            return Err(VolumeError::Stale(ino));
        }
        if name == POLICY {
            policy::check_value(state.attr.kind, value)?;
        }
        match self.parts(ino, name)?.is_empty() {
            true if replace => return Err(VolumeError::NoAttribute),
            false if create => return Err(VolumeError::Exists),
            true => self.check_room_for_name(ino, name)?,
            false => {}
        }
        let mut change = Change::new(self);
        self.put_attribute(&mut change, ino, name, Some(value))?;
        self.commit_attribute(change, ino, &mut state, name, true)
    }

    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        if name.starts_with(VIRTUAL) && name != POLICY {
            return Err(VolumeError::NotPermitted);
        }
        check_name(name)?;
        if let Some(kind) = AclKind::of_name(name) {
            return self.set_acl(ino, kind, None, true);
        }
        let inode = self.inode(ino)?;
        let mut state = inode.state.lock();
        let old = self.parts(ino, name)?;
        if old.is_empty() || state.gone {
            return Err(VolumeError::NoAttribute);
        }
        let mut change = Change::new(self);
        for (key, _) in old {
            change.delete(key);
        }
        self.commit_attribute(change, ino, &mut state, name, false)
    }

    /// Writing and chown take file capabilities away. The answer to whether there are any is kept,
    /// because this is asked on every write.
    pub(super) fn drop_capabilities(&self, inode: &Arc<Inode>) -> Result<()> {
        let known = inode.state.lock().has_caps;
        if known == Some(false) {
            return Ok(());
        }
        if self.parts(inode.ino, CAPABILITY)?.is_empty() {
            inode.state.lock().has_caps = Some(false);
            return Ok(());
        }
        match self.removexattr(inode.ino, CAPABILITY) {
            Err(VolumeError::NoAttribute) => Ok(()),
            other => other,
        }
    }

    fn parts(&self, ino: u64, name: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let from = keys::xattr(ino, name, 0);
        let to = keys::after(&keys::xattr(ino, name, u16::MAX));
        Ok(self.store()?.scan(&from, &to, VALUE_MAX / PIECE + 1)?)
    }

    fn check_room_for_name(&self, ino: u64, name: &[u8]) -> Result<()> {
        let listed: usize = self.listxattr(ino)?.iter().map(|n| n.len() + 1).sum();
        match listed + name.len() < LIST_MAX {
            true => Ok(()),
            false => Err(VolumeError::NoSpace),
        }
    }

    /// Commits the change of one attribute of an inode, whose ctime it moves.
    fn commit_attribute(
        &self,
        mut change: Change<'_>,
        ino: u64,
        state: &mut State,
        name: &[u8],
        present: bool,
    ) -> Result<()> {
        let mut attr = state.attr.clone();
        attr.ctime = Timestamp::now();
        change.put_inode(ino, &attr, state.disk_size);
        change.commit()?;
        state.attr = attr;
        if name == CAPABILITY {
            state.has_caps = Some(present);
        }
        if name == POLICY {
            self.policies.forget();
        }
        Ok(())
    }

    fn virtual_xattr(&self, ino: u64, what: &[u8]) -> Result<Vec<u8>> {
        if what == b"effective_policy" {
            return Ok(self.effective_policy(ino)?.name().into());
        }
        if what == USAGE {
            let text = serde_json::to_vec(&self.usage(ino)?);
            return text.map_err(|_| VolumeError::NoAttribute);
        }
        let info = self.file_info(ino)?;
        Ok(match what {
            b"codec" => {
                let names: Vec<&str> = info.codecs.keys().map(String::as_str).collect();
                names.join(",").into_bytes()
            }
            b"model" => info.models.join(",").into_bytes(),
            b"ratio" => format!("{:.3}", info.ratio).into_bytes(),
            b"extents" => info.extents.len().to_string().into_bytes(),
            b"stored" => info.stored_bytes.to_string().into_bytes(),
            _ => return Err(VolumeError::NoAttribute),
        })
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.contains(&0) {
        return Err(VolumeError::Invalid("attribute name"));
    }
    if name.len() > NAME_MAX {
        return Err(VolumeError::Invalid("attribute name too long"));
    }
    let known: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let acl = AclKind::of_name(name).is_some();
    match acl || known.iter().any(|prefix| name.starts_with(prefix)) {
        true => Ok(()),
        false => Err(VolumeError::Unsupported("attribute namespace")),
    }
}
