//! A file system in memory that is obviously right: what the volume is compared with.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};

pub type Id = usize;
pub const ROOT_ID: Id = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link,
}

/// One inode.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    /// Contents of a file, or target of a symlink.
    pub data: Vec<u8>,
    pub entries: BTreeMap<String, Id>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub perm: u32,
    pub owner: (u32, u32),
    pub nlink: u32,
    pub opens: u32,
    pub parent: Id,
    /// Inode number in the volume.
    pub ino: u64,
    /// Every value that was ever written to each offset; for crashes.
    pub ever: Vec<BTreeSet<u8>>,
    /// The contents that the last fsync made durable, if they have not changed since.
    pub synced: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub struct Oracle {
    pub nodes: BTreeMap<Id, Node>,
    next: Id,
}

/// An errno, as the volume's errors give it.
pub type Answer<T> = Result<T, i32>;

impl Oracle {
    pub fn new() -> Oracle {
        let mut oracle = Oracle {
            nodes: BTreeMap::new(),
            next: 1,
        };
        oracle.nodes.insert(ROOT_ID, node(Kind::Dir, ROOT_ID, 1));
        oracle
    }

    pub fn get(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the oracle")
    }

    /// Directories that have a name.
    pub fn dirs(&self) -> Vec<Id> {
        self.nodes
            .iter()
            .filter(|(_, n)| n.kind == Kind::Dir && n.nlink > 0)
            .map(|(id, _)| *id)
            .collect()
    }

    pub fn find(&self, dir: Id, name: &str) -> Option<Id> {
        self.get(dir).entries.get(name).copied()
    }

    /// Makes an inode; `make` makes it in the volume and returns its number.
    pub fn make(
        &mut self,
        dir: Id,
        name: &str,
        kind: Kind,
        caller: (u32, u32),
        make: impl FnOnce() -> Answer<u64>,
    ) -> Answer<Id> {
        let result = make();
        if self.find(dir, name).is_some() {
            assert_eq!(result, Err(libc::EEXIST));
            return Err(libc::EEXIST);
        }
        let ino = result.expect("making works");
        let id = self.next;
        self.next += 1;
        let mut made = node(kind, dir, ino);
        made.owner = caller;
        // Setgid on a directory: the group is inherited, and by directories the bit as well.
        if self.get(dir).perm & 0o2000 != 0 {
            made.owner.1 = self.get(dir).owner.1;
            made.perm |= if kind == Kind::Dir { 0o2000 } else { 0 };
        }
        self.nodes.insert(id, made);
        self.get_mut(dir).entries.insert(name.into(), id);
        if kind == Kind::Dir {
            self.get_mut(dir).nlink += 1;
        }
        Ok(id)
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &str) -> Answer<()> {
        if self.get(id).kind == Kind::Dir {
            return Err(libc::EPERM);
        }
        if self.find(dir, name).is_some() {
            return Err(libc::EEXIST);
        }
        self.get_mut(id).nlink += 1;
        self.get_mut(id).parent = dir;
        self.get_mut(dir).entries.insert(name.into(), id);
        Ok(())
    }

    pub fn remove(&mut self, dir: Id, name: &str, directory: bool) -> Answer<()> {
        let id = self.find(dir, name).ok_or(libc::ENOENT)?;
        match (directory, self.get(id).kind) {
            (true, Kind::File | Kind::Link) => return Err(libc::ENOTDIR),
            (false, Kind::Dir) => return Err(libc::EISDIR),
            (true, Kind::Dir) if !self.get(id).entries.is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        self.get_mut(dir).entries.remove(name);
        if directory {
            self.get_mut(dir).nlink -= 1;
        }
        self.drop_link(id);
        Ok(())
    }

    fn drop_link(&mut self, id: Id) {
        let node = self.get_mut(id);
        node.nlink = if node.kind == Kind::Dir {
            0
        } else {
            node.nlink - 1
        };
        if node.nlink == 0 && node.opens == 0 {
            self.nodes.remove(&id);
        }
    }

    fn is_below(&self, id: Id, ancestor: Id) -> bool {
        let mut at = id;
        loop {
            if at == ancestor {
                return true;
            }
            if at == ROOT_ID {
                return false;
            }
            at = self.get(at).parent;
        }
    }

    /// `mode`: 0 replace, 1 no replace, 2 exchange.
    pub fn rename(&mut self, from: (Id, &str), to: (Id, &str), mode: u8) -> Answer<()> {
        let source = self.find(from.0, from.1).ok_or(libc::ENOENT)?;
        let target = self.find(to.0, to.1);
        match (mode, target) {
            (1, Some(_)) => return Err(libc::EEXIST),
            (2, None) => return Err(libc::ENOENT),
            (_, Some(target)) if target == source => return Ok(()),
            _ => {}
        }
        let is_dir = |id: Id| self.get(id).kind == Kind::Dir;
        if is_dir(source) && from.0 != to.0 && self.is_below(to.0, source) {
            return Err(libc::EINVAL);
        }
        if let (2, Some(target)) = (mode, target) {
            if is_dir(target) && from.0 != to.0 && self.is_below(from.0, target) {
                return Err(libc::EINVAL);
            }
            let change = i64::from(is_dir(target)) - i64::from(is_dir(source));
            self.add_links(from.0, change);
            self.add_links(to.0, -change);
            self.get_mut(from.0).entries.insert(from.1.into(), target);
            self.get_mut(to.0).entries.insert(to.1.into(), source);
            self.get_mut(target).parent = from.0;
            self.get_mut(source).parent = to.0;
            return Ok(());
        }
        let source_is_dir = is_dir(source);
        if let Some(target) = target {
            match (source_is_dir, is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.get(target).entries.is_empty() => {
                    return Err(libc::ENOTEMPTY);
                }
                (true, true) => self.add_links(to.0, -1),
                _ => {}
            }
            self.drop_link(target);
        }
        self.get_mut(from.0).entries.remove(from.1);
        self.get_mut(to.0).entries.insert(to.1.into(), source);
        if source_is_dir {
            self.add_links(from.0, -1);
            self.add_links(to.0, 1);
        }
        self.get_mut(source).parent = to.0;
        Ok(())
    }

    fn add_links(&mut self, id: Id, by: i64) {
        let node = self.get_mut(id);
        node.nlink = (i64::from(node.nlink) + by) as u32;
    }

    pub fn write(&mut self, id: Id, offset: usize, data: &[u8]) {
        let node = self.get_mut(id);
        node.synced = None;
        let end = offset + data.len();
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[offset..end].copy_from_slice(data);
        if node.ever.len() < end {
            node.ever.resize(end, BTreeSet::new());
        }
        for (set, byte) in node.ever[offset..].iter_mut().zip(data) {
            set.insert(*byte);
        }
    }

    pub fn truncate(&mut self, id: Id, size: usize) {
        let node = self.get_mut(id);
        node.synced = None;
        node.data.resize(size, 0);
    }

    pub fn punch(&mut self, id: Id, offset: usize, len: usize) {
        let node = self.get_mut(id);
        node.synced = None;
        let end = (offset + len).min(node.data.len());
        if offset < end {
            node.data[offset..end].fill(0);
        }
    }

    /// Zeroes a range; `keep` leaves the size as it is.
    pub fn zero(&mut self, id: Id, offset: usize, len: usize, keep: bool) {
        if !keep && self.get(id).data.len() < offset + len {
            self.truncate(id, offset + len);
        }
        self.punch(id, offset, len);
    }

    /// Copies as many bytes as the source has and returns their number.
    pub fn copy(&mut self, from: (Id, usize), to: (Id, usize), len: usize) -> usize {
        let source = &self.get(from.0).data;
        let end = source.len().min(from.1 + len);
        let data = source.get(from.1..end).unwrap_or_default().to_vec();
        if !data.is_empty() {
            self.write(to.0, to.1, &data);
        }
        data.len()
    }

    /// A new owner of a file clears suid, and sgid where the group may execute.
    pub fn chown(&mut self, id: Id, owner: (u32, u32)) {
        let node = self.get_mut(id);
        node.owner = owner;
        if node.kind != Kind::Dir {
            node.perm &= !0o4000;
            if node.perm & 0o010 != 0 {
                node.perm &= !0o2000;
            }
        }
    }

    pub fn close(&mut self, id: Id) {
        let node = self.get_mut(id);
        node.opens -= 1;
        if node.nlink == 0 && node.opens == 0 {
            self.nodes.remove(&id);
        }
    }

    /// All names, each with its inode number; what a crash must leave one version of.
    pub fn names(&self) -> BTreeMap<String, u64> {
        let mut names = BTreeMap::new();
        let mut todo = vec![(ROOT_ID, String::new())];
        while let Some((dir, path)) = todo.pop() {
            for (name, id) in &self.get(dir).entries {
                let path = format!("{path}/{name}");
                names.insert(path.clone(), self.get(*id).ino);
                if self.get(*id).kind == Kind::Dir {
                    todo.push((*id, path));
                }
            }
        }
        names
    }
}

fn node(kind: Kind, parent: Id, ino: u64) -> Node {
    Node {
        kind,
        data: Vec::new(),
        entries: BTreeMap::new(),
        xattrs: BTreeMap::new(),
        perm: 0o755,
        owner: (0, 0),
        nlink: if kind == Kind::Dir { 2 } else { 1 },
        opens: 0,
        parent,
        ino,
        ever: Vec::new(),
        synced: None,
    }
}
