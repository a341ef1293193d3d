//! The repair of inodes and names: every inode gets a name, every name an inode, and links are counted again.

use std::collections::{BTreeMap, BTreeSet};

use super::attr::{Attr, FileKind};
use super::keys::{self, PIECE};
use super::namespace::{Dirent, check_name};
use super::repair::{Amendment, Bench};
use super::status::for_each;
use super::{ROOT, Result};

const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A directory and a name in it.
type Place = (u64, Vec<u8>);

/// An inode under repair.
pub(super) struct Node {
    pub attr: Attr,
    /// Its attributes were lost, and are made up.
    pub made_up: bool,
    pub orphan: bool,
    names: Vec<Place>,
}

/// All inodes and names.
#[derive(Default)]
pub(super) struct Tree {
    pub nodes: BTreeMap<u64, Node>,
    /// Keys to be deleted.
    dropped: Vec<Vec<u8>>,
    lost_and_found: Option<u64>,
}

impl Tree {
    /// Reads all inodes and names, puts them in order, and writes what has changed.
    pub fn mend(bench: &mut Bench) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.read_inodes(bench)?;
        tree.make_up_inodes(bench)?;
        tree.read_names(bench)?;
        tree.drop_leftovers(bench)?;
        tree.drop_broken_symlinks(bench)?;
        tree.drop_broken_xattrs(bench)?;
        tree.name_directories_once(bench);
        tree.find_lost(bench)?;
        tree.write(bench)?;
        Ok(tree)
    }

    fn add(&mut self, ino: u64, attr: Attr, made_up: bool) {
        let node = Node {
            attr,
            made_up,
            orphan: false,
            names: Vec::new(),
        };
        self.nodes.insert(ino, node);
    }

    fn read_inodes(&mut self, bench: &mut Bench) -> Result<()> {
        for_each(bench.store, b"I", b"J", |key, value| {
            match (keys::ino_of(key), Attr::decode(value)) {
                (Ok(ino), Ok(attr)) if key.len() == 9 => self.add(ino, attr, false),
                _ => self.dropped.push(key.to_vec()),
            }
            Ok(())
        })?;
        for_each(bench.store, b"O", b"P", |key, _| {
            let node = keys::ino_of(key)
                .ok()
                .and_then(|ino| self.nodes.get_mut(&ino));
            match node {
                Some(node) => node.orphan = true,
                None => self.dropped.push(key.to_vec()),
            }
            Ok(())
        })
    }

    /// Makes up attributes for inodes of which only other keys are left. An inode whose own key cannot be
    /// among the lost ones was removed.
    fn make_up_inodes(&mut self, bench: &mut Bench) -> Result<()> {
        let mut kinds: BTreeMap<u64, FileKind> = BTreeMap::new();
        for (tag, kind) in [(b'E', FileKind::Regular), (b'L', FileKind::Symlink)] {
            for_each(bench.store, &[tag], &[tag + 1], |key, _| {
                if let Ok(ino) = keys::ino_of(key) {
                    kinds.insert(ino, kind);
                }
                Ok(())
            })?;
        }
        for_each(bench.store, b"D", b"E", |key, value| {
            if let Ok(entry) = Dirent::decode(value)
                && entry.kind == FileKind::Directory
            {
                kinds.insert(entry.ino, entry.kind);
            }
            if let Ok(parent) = keys::ino_of(key) {
                kinds.insert(parent, FileKind::Directory);
            }
            Ok(())
        })?;
        kinds.insert(ROOT, FileKind::Directory);
        let undecodable: BTreeSet<Vec<u8>> = self.dropped.iter().cloned().collect();
        for (ino, kind) in kinds {
            let key = keys::inode(ino);
            let lost = bench.may_be_lost(&key) || undecodable.contains(&key) || ino == ROOT;
            if self.nodes.contains_key(&ino) || !lost {
                continue;
            }
            let perm = if ino == ROOT { 0o755 } else { 0o700 };
            self.add(ino, Attr::new(kind, perm, 0, 0, ROOT), true);
            bench.note(format!(
                "the attributes of inode {ino} are lost: it belongs to root now"
            ));
        }
        self.dropped.retain(|key| {
            let ino = keys::ino_of(key).ok();
            key.first() != Some(&b'I') || ino.is_none_or(|ino| !self.nodes.contains_key(&ino))
        });
        Ok(())
    }

    fn read_names(&mut self, bench: &mut Bench) -> Result<()> {
        let mut dropped = Vec::new();
        for_each(bench.store, b"D", b"E", |key, value| {
            let name = key.get(9..).unwrap_or_default();
            let parent = keys::ino_of(key).unwrap_or(0);
            let is_dir = |ino| self.nodes.get(&ino).is_some_and(|node| node.attr.is_dir());
            let entry = Dirent::decode(value).ok();
            let sound = check_name(name).is_ok() && is_dir(parent);
            let node = entry.filter(|_| sound).and_then(|entry| {
                let node = self.nodes.get_mut(&entry.ino);
                node.filter(|node| node.attr.kind == entry.kind && entry.ino != ROOT)
            });
            match node {
                Some(node) => node.names.push((parent, name.to_vec())),
                None => {
                    let ino = entry.map_or(0, |entry| entry.ino);
                    dropped.push((key.to_vec(), parent, name.to_vec(), ino));
                }
            }
            Ok(())
        })?;
        for (key, parent, name, ino) in dropped {
            let name = name.escape_ascii();
            bench.note(format!(
                "name '{name}' in directory {parent} is gone: there is no inode {ino} for it"
            ));
            self.dropped.push(key);
        }
        Ok(())
    }

    /// Keys of inodes that do not exist, and truncations that cannot be the ones under way.
    fn drop_leftovers(&mut self, bench: &mut Bench) -> Result<()> {
        for tag in [b'L', b'X', b'Q', b'C'] {
            for_each(bench.store, &[tag], &[tag + 1], |key, value| {
                let node = keys::ino_of(key).ok().and_then(|ino| self.nodes.get(&ino));
                let stale = |node: &Node| {
                    let size = keys::Fields::new("truncation", value).varint().ok();
                    tag == b'C' && size != Some(node.attr.size)
                };
                if node.is_none_or(stale) {
                    self.dropped.push(key.to_vec());
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A target of which parts are missing would lead elsewhere.
    fn drop_broken_symlinks(&mut self, bench: &mut Bench) -> Result<()> {
        let mut broken = Vec::new();
        for (ino, node) in &self.nodes {
            if node.attr.kind != FileKind::Symlink {
                continue;
            }
            let (from, to) = keys::range_of(b'L', *ino);
            let parts = bench.store.scan(&from, &to, PIECE)?;
            let in_order = parts
                .iter()
                .enumerate()
                .all(|(at, (key, _))| key.get(9).map(|part| usize::from(*part)) == Some(at));
            let target: Vec<u8> = parts.into_iter().flat_map(|(_, part)| part).collect();
            if node.made_up || !in_order || target.len() as u64 != node.attr.size {
                broken.push((*ino, target));
            }
        }
        for (ino, target) in broken {
            let target = target.escape_ascii();
            bench.note(format!(
                "symlink {ino} is gone: all that is left of its target is '{target}'"
            ));
            self.remove(bench, ino)?;
        }
        Ok(())
    }

    fn remove(&mut self, bench: &Bench, ino: u64) -> Result<()> {
        let Some(node) = self.nodes.remove(&ino) else {
            return Ok(());
        };
        let names = node
            .names
            .iter()
            .map(|(dir, name)| keys::dirent(*dir, name));
        self.dropped.extend(names);
        self.dropped.extend([keys::inode(ino), keys::orphan(ino)]);
        for tag in [b'L', b'X'] {
            bench.delete_all(tag, ino)?;
        }
        Ok(())
    }

    /// An attribute of which parts are missing is removed.
    fn drop_broken_xattrs(&mut self, bench: &mut Bench) -> Result<()> {
        if !bench.lost_metadata() {
            return Ok(());
        }
        // By inode and name: the parts, and the length of the last.
        let mut attributes: BTreeMap<Vec<u8>, (Vec<u16>, usize)> = BTreeMap::new();
        for_each(bench.store, b"X", b"Y", |key, value| {
            if let Some((head, part)) = key.split_last_chunk::<2>() {
                let entry = attributes.entry(head.to_vec()).or_default();
                entry.0.push(u16::from_be_bytes(*part));
                entry.1 = value.len();
            }
            Ok(())
        })?;
        for (head, (parts, last)) in attributes {
            let next = [&head[..], &(parts.len() as u16).to_be_bytes()].concat();
            let in_order = parts
                .iter()
                .enumerate()
                .all(|(at, part)| usize::from(*part) == at);
            if in_order && (last < PIECE || !bench.may_be_lost(&next)) {
                continue;
            }
            let name = head
                .get(9..head.len().saturating_sub(1))
                .unwrap_or_default();
            let ino = keys::ino_of(&head).unwrap_or(0);
            bench.note(format!(
                "attribute '{}' of inode {ino} is lost",
                name.escape_ascii()
            ));
            let keys = parts
                .iter()
                .map(|part| [&head[..], &part.to_be_bytes()].concat());
            self.dropped.extend(keys);
        }
        Ok(())
    }

    /// Of several names of one directory, the one where it says that it is stays.
    fn name_directories_once(&mut self, bench: &mut Bench) {
        for (ino, node) in &mut self.nodes {
            if !node.attr.is_dir() || node.names.len() < 2 {
                continue;
            }
            let parent = node.attr.parent;
            let kept = node.names.iter().position(|(dir, _)| *dir == parent);
            let kept = node.names.swap_remove(kept.unwrap_or(0));
            for (dir, name) in std::mem::replace(&mut node.names, vec![kept]) {
                bench
                    .changes
                    .push(format!("directory {ino} has only one of its names now"));
                self.dropped.push(keys::dirent(dir, &name));
            }
        }
    }

    /// Gives names in `lost+found` to whatever cannot be reached from the root.
    fn find_lost(&mut self, bench: &mut Bench) -> Result<()> {
        let mut children: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (ino, node) in &self.nodes {
            for (parent, _) in &node.names {
                children.entry(*parent).or_default().push(*ino);
            }
        }
        let mut reached = BTreeSet::new();
        reach(ROOT, &children, &mut reached);
        // First what has no name, with all that is below it; directories that are then left are in circles, each
        // of which is cut at its first.
        let nameless = |node: &Node| node.names.is_empty();
        let is_dir = |node: &Node| node.attr.is_dir();
        for wanted in [&nameless as &dyn Fn(&Node) -> bool, &is_dir] {
            let found = self
                .nodes
                .iter()
                .filter(|(_, node)| wanted(node) && !node.orphan);
            let found: Vec<u64> = found.map(|(ino, _)| *ino).collect();
            for ino in found {
                if !reached.contains(&ino) {
                    self.name_in_lost_and_found(bench, ino)?;
                    reached.extend(self.lost_and_found);
                    reach(ino, &children, &mut reached);
                }
            }
        }
        Ok(())
    }

    fn name_in_lost_and_found(&mut self, bench: &mut Bench, ino: u64) -> Result<()> {
        let home = match self.lost_and_found {
            Some(home) => home,
            None => self.find_lost_and_found(bench)?,
        };
        self.lost_and_found = Some(home);
        let Some(node) = self.nodes.get_mut(&ino) else {
            return Ok(());
        };
        for (dir, name) in std::mem::take(&mut node.names) {
            self.dropped.push(keys::dirent(dir, &name));
        }
        let name = format!("#{ino}").into_bytes();
        bench.note(format!(
            "inode {ino} has no name: it is lost+found/#{ino} now"
        ));
        let entry = Dirent {
            ino,
            kind: node.attr.kind,
        };
        bench.put(keys::dirent(home, &name), entry.encode())?;
        node.names.push((home, name));
        Ok(())
    }

    /// The directory `lost+found`, made if it is not there. Where a file has that name, a number follows.
    fn find_lost_and_found(&mut self, bench: &Bench) -> Result<u64> {
        for number in 0.. {
            let mut name = LOST_AND_FOUND.to_vec();
            if number > 0 {
                name.extend_from_slice(format!(".{number}").as_bytes());
            }
            let place = (ROOT, name);
            let mut there = self.nodes.iter();
            match there.find(|(_, node)| node.names.contains(&place)) {
                Some((ino, node)) if node.attr.is_dir() => return Ok(*ino),
                Some(_) => continue,
                None => return self.make_lost_and_found(bench, place),
            }
        }
        Ok(ROOT)
    }

    fn make_lost_and_found(&mut self, bench: &Bench, place: Place) -> Result<u64> {
        let last = self.nodes.last_key_value().map_or(ROOT, |(last, _)| *last);
        let ino = next_ino(bench)?.max(last + 1);
        let entry = Dirent {
            ino,
            kind: FileKind::Directory,
        };
        bench.put(keys::dirent(place.0, &place.1), entry.encode())?;
        self.add(ino, Attr::new(FileKind::Directory, 0o700, 0, 0, ROOT), true);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.names.push(place);
        }
        Ok(ino)
    }

    /// Writes inodes whose links were wrong, deletes what is to be deleted, and reserves inode numbers.
    fn write(&mut self, bench: &mut Bench) -> Result<()> {
        let dropped = std::mem::take(&mut self.dropped);
        let deletions: Vec<Amendment> = dropped.into_iter().map(|key| (key, None)).collect();
        bench.amend(deletions)?;
        let mut subdirectories: BTreeMap<u64, u32> = BTreeMap::new();
        for node in self.nodes.values().filter(|node| node.attr.is_dir()) {
            for (parent, _) in &node.names {
                *subdirectories.entry(*parent).or_default() += 1;
            }
        }
        for (ino, node) in &mut self.nodes {
            let before = node.attr.clone();
            if node.orphan && !node.names.is_empty() {
                node.orphan = false;
                bench.amend(vec![(keys::orphan(*ino), None)])?;
            }
            let names = u32::try_from(node.names.len()).unwrap_or(u32::MAX);
            node.attr.nlink = match node.attr.is_dir() {
                true if node.orphan => 0,
                true => 2 + subdirectories.get(ino).copied().unwrap_or(0),
                false => names,
            };
            if node.attr.is_dir() {
                node.attr.parent = node.names.first().map_or(ROOT, |(parent, _)| *parent);
            }
            if node.attr != before || node.made_up {
                bench.put_inode(*ino, &node.attr)?;
            }
        }
        let last = self.nodes.last_key_value().map_or(ROOT, |(last, _)| *last);
        let mut next = next_ino(bench)?.max(last + 1);
        if bench.lost_metadata() {
            // Numbers that were given out and of which nothing is left are not used again.
            next = next.saturating_add(1 << 16);
        }
        bench.put(keys::META_NEXT_INO.to_vec(), super::varint(next))
    }
}

/// Adds to `reached` what can be reached from a directory.
fn reach(from: u64, children: &BTreeMap<u64, Vec<u64>>, reached: &mut BTreeSet<u64>) {
    let mut todo = vec![from];
    while let Some(ino) = todo.pop() {
        if reached.insert(ino) {
            todo.extend(children.get(&ino).into_iter().flatten());
        }
    }
}

fn next_ino(bench: &Bench) -> Result<u64> {
    let value = bench.store.get(keys::META_NEXT_INO)?;
    let next = value.and_then(|value| keys::Fields::new("volume", &value).varint().ok());
    Ok(next.unwrap_or(0))
}
