//! POSIX access control lists, as the kernel passes them in extended attributes (version 2).
//!
//! The kernel enforces them. Here they are checked, kept in step with the mode, and inherited.

use super::attr::{Attr, Timestamp};
use super::change::Change;
use super::keys::{self, PIECE};
use super::{Result, Volume, VolumeError};

const VERSION: u32 = 2;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Which of the two lists of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclKind {
    /// Who may do what.
    Access,
    /// What is inherited by whatever is made in a directory.
    Default,
}

impl AclKind {
    /// The kind that an extended attribute holds.
    pub fn of_name(name: &[u8]) -> Option<AclKind> {
        match name {
            b"system.posix_acl_access" => Some(AclKind::Access),
            b"system.posix_acl_default" => Some(AclKind::Default),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => b"system.posix_acl_access",
            AclKind::Default => b"system.posix_acl_default",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Parses and checks an attribute value. `None` for a list without entries, which means none at all.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>> {
        let invalid = VolumeError::Invalid("access control list");
        let Some((version, entries)) = value.split_at_checked(4) else {
            return Err(invalid);
        };
        if version != VERSION.to_le_bytes() || entries.len() % ENTRY != 0 {
            return Err(invalid);
        }
        let entries: Vec<Entry> = entries
            .chunks_exact(ENTRY)
            .map(|e| Entry {
                tag: u16::from_le_bytes([e[0], e[1]]),
                perm: u16::from_le_bytes([e[2], e[3]]),
                id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
            })
            .collect();
        let acl = Acl { entries };
        match acl.entries.is_empty() {
            true => Ok(None),
            false if acl.is_valid() => Ok(Some(acl)),
            false => Err(invalid),
        }
    }

    /// The three base entries once each, a mask if anybody is named, everything in the order of tags.
    fn is_valid(&self) -> bool {
        let count = |tag: u16| self.entries.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        [USER_OBJ, GROUP_OBJ, OTHER]
            .iter()
            .all(|tag| count(*tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && named + 3 + count(MASK) == self.entries.len()
            && self.entries.iter().all(|e| e.perm <= 7)
            && self.entries.is_sorted_by_key(|e| e.tag)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// Says no more than a mode does.
    fn is_mode(&self) -> bool {
        self.entries.len() == 3
    }

    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> u16 {
        match self.entries.iter().any(|e| e.tag == MASK) {
            true => MASK,
            false => GROUP_OBJ,
        }
    }

    fn shift_of(&self, tag: u16) -> Option<u32> {
        match tag {
            USER_OBJ => Some(6),
            OTHER => Some(0),
            tag if tag == self.group_class() => Some(3),
            _ => None,
        }
    }

    /// The permission bits of the mode that the list stands for.
    fn perm(&self) -> u32 {
        let bits = |e: &Entry| self.shift_of(e.tag).map(|shift| u32::from(e.perm) << shift);
        self.entries.iter().filter_map(bits).sum()
    }

    /// Changes the entries that the mode shows to `perm`, as chmod does.
    pub fn set_perm(&mut self, perm: u32) {
        let shifts: Vec<Option<u32>> = self.entries.iter().map(|e| self.shift_of(e.tag)).collect();
        for (entry, shift) in self.entries.iter_mut().zip(shifts) {
            if let Some(shift) = shift {
                entry.perm = (perm >> shift & 7) as u16;
            }
        }
    }
}

/// Lists that a new inode gets, as attribute values, with the permissions that go with them.
pub(super) struct Inherited {
    pub perm: u32,
    pub lists: Vec<(AclKind, Vec<u8>)>,
}

/// What is inherited from the default list of a directory by something that is made with `perm`.
pub(super) fn inherit(default: &Acl, perm: u32, directory: bool) -> Inherited {
    let mut access = default.clone();
    let granted = perm & access.perm();
    access.set_perm(granted);
    let mut lists = Vec::new();
    if !access.is_mode() {
        lists.push((AclKind::Access, access.encode()));
    }
    if directory {
        lists.push((AclKind::Default, default.encode()));
    }
    Inherited {
        perm: perm & !0o777 | granted,
        lists,
    }
}

impl Volume {
    /// Sets a list from its attribute value; `None` removes it. An access list changes the permission
    /// bits of the mode, and clears setgid unless `keep_setgid`.
    pub fn set_acl(
        &self,
        ino: u64,
        kind: AclKind,
        value: Option<&[u8]>,
        keep_setgid: bool,
    ) -> Result<()> {
        self.writable()?;
        let _pass = self.gate.enter()?;
        let acl = match value {
            Some(value) => Acl::parse(value)?,
            None => None,
        };
        let inode = self.inode(ino)?;
        let mut state = inode.state.lock();
        if state.gone {
            return Err(VolumeError::Stale(ino));
        }
        let mut attr = state.attr.clone();
        match kind {
            _ if attr.kind == super::FileKind::Symlink => {
                return Err(VolumeError::Unsupported("access control lists of symlinks"));
            }
            AclKind::Default if !attr.is_dir() && acl.is_some() => {
                return Err(VolumeError::Invalid("default list of a file"));
            }
            _ => {}
        }
        if let (AclKind::Access, Some(acl)) = (kind, &acl) {
            attr.perm = attr.perm & !0o777 | acl.perm();
            if !keep_setgid {
                attr.perm &= !libc::S_ISGID;
            }
        }
        attr.ctime = Timestamp::now();
        let stored = acl.filter(|acl| kind == AclKind::Default || !acl.is_mode());
        let mut change = Change::new(self);
        self.put_attribute(
            &mut change,
            ino,
            kind.name(),
            stored.map(|acl| acl.encode()).as_deref(),
        )?;
        change.put_inode(ino, &attr, state.disk_size);
        change.commit()?;
        state.attr = attr;
        Ok(())
    }

    /// The list of an inode, if it has one.
    pub(super) fn acl(&self, ino: u64, kind: AclKind) -> Result<Option<Acl>> {
        let value = self.attribute(ino, kind.name())?;
        let parse = |value: Vec<u8>| {
            Acl::parse(&value).map_err(|_| keys::damaged("access control list", "invalid"))
        };
        Ok(value.map(parse).transpose()?.flatten())
    }

    /// Adds to `change` what chmod does to the access list of an inode.
    pub(super) fn chmod_acl(&self, change: &mut Change<'_>, ino: u64, perm: u32) -> Result<()> {
        if let Some(mut acl) = self.acl(ino, AclKind::Access)? {
            acl.set_perm(perm);
            self.put_attribute(change, ino, AclKind::Access.name(), Some(&acl.encode()))?;
        }
        Ok(())
    }

    /// The permissions and lists of something new in directory `parent`. Only without a default list
    /// does the umask count.
    pub(super) fn inherited(&self, parent: u64, attr: &Attr, umask: u32) -> Result<Inherited> {
        if attr.kind == super::FileKind::Symlink {
            return Ok(Inherited {
                perm: attr.perm,
                lists: Vec::new(),
            });
        }
        Ok(match self.acl(parent, AclKind::Default)? {
            Some(default) => inherit(&default, attr.perm, attr.is_dir()),
            None => Inherited {
                perm: attr.perm & !(umask & 0o777),
                lists: Vec::new(),
            },
        })
    }
}

/// Stores the pieces of an attribute value; an empty value still has one.
pub(super) fn put_pieces(change: &mut Change<'_>, ino: u64, name: &[u8], value: &[u8]) {
    let parts = value.len().div_ceil(PIECE).max(1);
    for part in 0..parts {
        let piece = &value[part * PIECE..value.len().min((part + 1) * PIECE)];
        change.put(keys::xattr(ino, name, part as u16), piece.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |&(tag, perm, id): &(u16, u16, u32)| Entry { tag, perm, id };
        Acl {
            entries: entries.iter().map(entry).collect(),
        }
        .encode()
    }

    const NOBODY: u32 = u32::MAX;

    #[test]
    fn a_list_stands_for_a_mode_whose_group_bits_are_its_mask() {
        let named = acl(&[
            (1, 7, NOBODY),
            (2, 6, 50),
            (4, 5, NOBODY),
            (16, 4, NOBODY),
            (32, 1, NOBODY),
        ]);
        let mut parsed = Acl::parse(&named).unwrap().unwrap();
        assert_eq!((parsed.perm(), parsed.is_mode()), (0o741, false));
        assert_eq!(parsed.encode(), named);
        parsed.set_perm(0o620);
        assert_eq!(parsed.perm(), 0o620);
        assert_eq!(parsed.entries[1].perm, 6, "named entries stay");
        assert_eq!(
            parsed.entries[2].perm, 5,
            "the group entry stays where there is a mask"
        );
        let plain = Acl::parse(&acl(&[(1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)]))
            .unwrap()
            .unwrap();
        assert_eq!((plain.perm(), plain.is_mode()), (0o640, true));
    }

    #[test]
    fn lists_that_break_the_rules_are_refused() {
        let wrong: [&[(u16, u16, u32)]; 6] = [
            &[(1, 7, NOBODY), (4, 7, NOBODY)],
            &[(1, 8, NOBODY), (4, 7, NOBODY), (32, 0, NOBODY)],
            &[(1, 7, NOBODY), (2, 7, 5), (4, 7, NOBODY), (32, 0, NOBODY)],
            &[(4, 7, NOBODY), (1, 7, NOBODY), (32, 0, NOBODY)],
            &[
                (1, 7, NOBODY),
                (1, 7, NOBODY),
                (4, 7, NOBODY),
                (32, 0, NOBODY),
            ],
            &[
                (1, 7, NOBODY),
                (4, 7, NOBODY),
                (32, 0, NOBODY),
                (64, 0, NOBODY),
            ],
        ];
        for entries in wrong {
            assert!(Acl::parse(&acl(entries)).is_err(), "{entries:?}");
        }
        assert_eq!(Acl::parse(&acl(&[])).unwrap(), None);
    }

    #[test]
    fn inheriting_grants_no_more_than_the_mode_asks_for() {
        let default = acl(&[
            (1, 7, NOBODY),
            (2, 7, 50),
            (4, 7, NOBODY),
            (16, 7, NOBODY),
            (32, 5, NOBODY),
        ]);
        let default = Acl::parse(&default).unwrap().unwrap();
        let file = inherit(&default, 0o640, false);
        assert_eq!((file.perm, file.lists.len()), (0o640, 1));
        let dir = inherit(&default, 0o2777, true);
        assert_eq!((dir.perm, dir.lists.len()), (0o2775, 2));
        let plain = Acl::parse(&acl(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 0, NOBODY)]))
            .unwrap()
            .unwrap();
        let file = inherit(&plain, 0o666, false);
        assert_eq!((file.perm, file.lists.len()), (0o640, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_but_never_panic(mut value: Vec<u8>, versioned: bool) {
            if versioned {
                value.splice(0..0, VERSION.to_le_bytes());
            }
            if let Ok(Some(parsed)) = Acl::parse(&value) {
                prop_assert_eq!(parsed.encode(), value);
            }
        }
    }
}
