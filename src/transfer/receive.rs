//! Makes a store of what a stream carries.
//!
//! Everything is written into a directory beside the new store, which has no description before all of it
//! is durable, and takes the place of the store as the last step. So whatever goes wrong before leaves
//! nothing that could be mounted.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use uuid::Uuid;

use super::wire::{FrameKind, FrameReader, Result, WireError};
use crate::store::carry::{self, StoreFile};
use crate::store::{LOCK_FILE, RealStorage, Storage, StoreError};

/// No path of a file in a store is longer.
const MAX_PATH: usize = 300;
/// What an interrupted attempt can have left besides its lock, in the order in which it is removed.
const LEFT: [&str; 5] = ["s2sfs.toml", "s2sfs.toml.tmp", "index", "log", "models"];

/// A store that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub uuid: Uuid,
    pub files: u64,
    pub bytes: u64,
}

/// Reads a stream to its end and makes a store of it at `store`, which must not exist or be an empty
/// directory. With `new_uuid` it becomes a store of its own. `progress` gets bytes that are done and all.
pub fn receive(
    input: &mut dyn Read,
    store: &Path,
    new_uuid: bool,
    stop: &AtomicBool,
    progress: &dyn Fn(u64, u64),
) -> Result<Received> {
    let place = Landing::prepare(store)?;
    // Nothing is written before the stream has said that it is one that can be read.
    let mut frames = FrameReader::new(input)?;
    let (description, expected) = announced(&mut frames)?;
    let uuid = carry::uuid_of_description("the stream", &description)?;
    let site = place.begin()?;
    let received = take_files(&mut frames, &site.storage, expected, stop, progress)
        .and_then(|files| frames.finish().map(|()| files))
        .and_then(|files| {
            let uuid = match new_uuid {
                true => Uuid::new_v4(),
                false => uuid,
            };
            site.finish(&files, &description, new_uuid.then_some(uuid))?;
            Ok(Received {
                uuid,
                files: files.len() as u64,
                bytes: expected.bytes,
            })
        });
    if received.is_err() {
        site.discard();
    }
    received
}

/// How much a stream says that it brings.
#[derive(Debug, Clone, Copy)]
struct Expected {
    files: u64,
    bytes: u64,
}

fn announced(frames: &mut FrameReader<'_>) -> Result<(Vec<u8>, Expected)> {
    let (kind, payload) = frames.read()?;
    let Some((counts, description)) = payload.split_at_checked(16) else {
        return Err(frames.damaged("its first frame is too short"));
    };
    if kind != FrameKind::Store {
        return Err(frames.damaged("it does not begin with a store"));
    }
    let expected = Expected {
        files: number(&counts[..8]),
        bytes: number(&counts[8..]),
    };
    Ok((description.to_vec(), expected))
}

fn number(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(bytes);
    u64::from_le_bytes(eight)
}

/// Reads all files and the end.
fn take_files(
    frames: &mut FrameReader<'_>,
    storage: &RealStorage,
    expected: Expected,
    stop: &AtomicBool,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<StoreFile>> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    let mut all = blake3::Hasher::new();
    let mut done = 0;
    loop {
        let (kind, payload) = frames.read()?;
        match kind {
            FrameKind::File => {
                let file = file_of(payload);
                let Some(file) = file.filter(|file| seen.insert(file.path.clone())) else {
                    return Err(frames.damaged("a file that no store has, or has twice"));
                };
                if file.len > expected.bytes - done || files.len() as u64 == expected.files {
                    return Err(frames.damaged("it brings more than it has said"));
                }
                let hash = take_file(frames, storage, &file, stop, &mut |bytes| {
                    done += bytes;
                    progress(done, expected.bytes);
                })?;
                all.update(&hash);
                files.push(file);
            }
            FrameKind::End => {
                let whole = payload == all.finalize().as_bytes();
                if !whole || (files.len() as u64, done) != (expected.files, expected.bytes) {
                    return Err(frames.damaged("files are missing"));
                }
                return Ok(files);
            }
            _ => return Err(frames.damaged("a frame that does not belong here")),
        }
    }
}

fn file_of(payload: &[u8]) -> Option<StoreFile> {
    let (len, path) = payload.split_at_checked(8)?;
    let path = std::str::from_utf8(path).ok()?;
    let known = path.len() <= MAX_PATH && carry::is_store_file(path);
    known.then(|| StoreFile {
        path: path.to_owned(),
        len: number(len),
    })
}

/// Reads the data of one file; it is durable and verified on return.
fn take_file(
    frames: &mut FrameReader<'_>,
    storage: &RealStorage,
    file: &StoreFile,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<[u8; 32]> {
    let failed = |error| StoreError::Io {
        op: "write",
        path: file.path.clone(),
        source: error,
    };
    let out = storage.create(&file.path).map_err(failed)?;
    let mut hash = blake3::Hasher::new();
    let mut at = 0;
    loop {
        if stop.load(Relaxed) {
            return Err(WireError::Interrupted);
        }
        let (kind, payload) = frames.read()?;
        let len = payload.len() as u64;
        match kind {
            FrameKind::Data if len > 0 && len <= file.len - at => {
                out.write_at(at, &[payload]).map_err(failed)?;
                hash.update(payload);
                at += len;
                progress(len);
            }
            FrameKind::FileEnd if at == file.len => {
                let hash = *hash.finalize().as_bytes();
                if payload != hash {
                    let why = format!("the hash of {} is wrong", file.path);
                    return Err(frames.damaged(why));
                }
                out.sync_data().map_err(failed)?;
                return Ok(hash);
            }
            _ => return Err(frames.damaged("a frame that does not belong here")),
        }
    }
}

/// Where a store is to be, checked.
struct Landing {
    store: PathBuf,
    parent: PathBuf,
    /// The directory that becomes the store.
    site: PathBuf,
}

/// The directory that becomes the store, locked.
struct Site {
    landing: Landing,
    storage: RealStorage,
    _lock: Box<dyn crate::store::LockGuard>,
}

impl Landing {
    fn prepare(store: &Path) -> Result<Landing> {
        let refused = |why: &str| WireError::Refused(format!("{}: {why}", store.display()));
        let name = store
            .file_name()
            .ok_or_else(|| refused("this cannot name a new store"))?;
        let parent = match store.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = parent
            .canonicalize()
            .map_err(|error| refused(&format!("its directory: {error}")))?;
        let store = parent.join(name);
        match fs::symlink_metadata(&store) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(&error.to_string())),
            Ok(meta) if !meta.is_dir() => return Err(refused("it is no directory")),
            Ok(meta) if meta.dev() != fs::metadata(&parent)?.dev() => {
                return Err(refused("it is a mount point; name a directory inside it"));
            }
            Ok(_) if fs::read_dir(&store)?.next().is_some() => {
                return Err(refused("it is not empty"));
            }
            Ok(_) => {}
        }
        let mut site = std::ffi::OsString::from(".");
        site.push(name);
        site.push(".receiving");
        let site = parent.join(site);
        Ok(Landing {
            store,
            parent,
            site,
        })
    }

    /// Makes the directory, without what an interrupted attempt has left there.
    fn begin(self) -> Result<Site> {
        let storage = RealStorage::new(&self.site);
        match fs::DirBuilder::new().mode(0o700).create(&self.site) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.check_left()?,
            made => made.map_err(at("mkdir", &self.site))?,
        }
        let lock = storage.lock(true).map_err(at("lock", &self.site))?;
        let lock = lock.ok_or_else(|| WireError::Busy(self.site.display().to_string()))?;
        // What makes it a store first, as in `discard`.
        for path in LEFT {
            storage
                .remove_tree(path)
                .map_err(at("remove", &self.site))?;
        }
        for dir in ["log", "models"] {
            storage.mkdir(dir).map_err(at("mkdir", &self.site))?;
        }
        Ok(Site {
            landing: self,
            storage,
            _lock: lock,
        })
    }

    /// Whether what is there was left by an interrupted attempt of the same user: nothing else is deleted.
    fn check_left(&self) -> Result<()> {
        let refused = |why| WireError::Refused(format!("{}: {why}", self.site.display()));
        let meta = fs::symlink_metadata(&self.site).map_err(at("stat", &self.site))?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(refused("it is no directory of yours"));
        }
        for entry in fs::read_dir(&self.site).map_err(at("read", &self.site))? {
            let name = entry.map_err(at("read", &self.site))?.file_name();
            if name != LOCK_FILE && LEFT.iter().all(|left| name != **left) {
                let why = "it has files that no interrupted receive has left there";
                return Err(refused(why));
            }
        }
        Ok(())
    }
}

fn at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError::Io { op, path, source }
}

impl Site {
    /// Makes it a store, and puts it where it belongs. All files are durable.
    fn finish(&self, files: &[StoreFile], description: &[u8], uuid: Option<Uuid>) -> Result<()> {
        if let Some(to) = uuid {
            let from = carry::uuid_of_description("the stream", description)?;
            for file in files {
                carry::change_uuid(&self.storage, file, from, to)?;
            }
        }
        for dir in ["log", "models", ""] {
            let synced = self.storage.sync_dir(dir);
            synced.map_err(at("fsync", &self.landing.site))?;
        }
        carry::finish(&self.storage, description, uuid)?;
        fs::rename(&self.landing.site, &self.landing.store)
            .map_err(at("rename", &self.landing.store))?;
        fs::File::open(&self.landing.parent)
            .and_then(|dir| dir.sync_all())
            .map_err(at("fsync", &self.landing.parent))?;
        Ok(())
    }

    fn discard(&self) {
        // Begins with what makes it a store, so that no part of one is ever mistaken for it.
        for path in ["s2sfs.toml", ""] {
            if let Err(error) = self.storage.remove_tree(path) {
                log::warn!("{}: {error}", self.landing.site.display());
            }
        }
    }
}
