//! A volume that is open in this process, without a mount.

use std::path::{Component, Path};
use std::sync::Arc;

use super::tree::{Attribute, Contents, Meta, Output, Result, SELF, Target, Tree};
use crate::volume::{
    Caller, FileKind, Place, ROOT, RenameMode, SetAttr, Stat, Volume, VolumeError, WriteMode,
};

/// Longest piece that is written at once.
const PIECE: usize = 1 << 20;

/// A directory of a volume and everything under it.
pub struct VolumeTree {
    volume: Arc<Volume>,
    root: u64,
}

impl VolumeTree {
    pub fn new(volume: Arc<Volume>) -> VolumeTree {
        VolumeTree { volume, root: ROOT }
    }

    /// The directory at `path` under the root of the volume; it is made if it is missing, and so are
    /// directories on the way, for `owner`.
    pub fn within(volume: Arc<Volume>, path: &Path, owner: (u32, u32)) -> Result<VolumeTree> {
        use std::os::unix::ffi::OsStrExt;
        let mut root = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            let caller = Caller {
                uid: owner.0,
                gid: owner.1,
                umask: 0o022,
            };
            let found = match volume.lookup(root, name.as_bytes()) {
                Err(VolumeError::NotFound) => volume.mkdir(root, name.as_bytes(), 0o777, caller)?,
                other => other?,
            };
            if !found.attr.is_dir() {
                return Err(VolumeError::NotDirectory.into());
            }
            root = found.ino;
        }
        Ok(VolumeTree { volume, root })
    }

    fn stat(&self, dir: u64, name: &[u8]) -> Result<Stat> {
        Ok(match name {
            SELF => self.volume.getattr(dir)?,
            _ => self.volume.lookup(dir, name)?,
        })
    }

    fn ino(&self, dir: u64, name: &[u8]) -> Result<u64> {
        match name {
            SELF => Ok(dir),
            _ => Ok(self.stat(dir, name)?.ino),
        }
    }
}

fn caller(wanted: &Meta) -> Caller {
    Caller {
        uid: wanted.uid,
        gid: wanted.gid,
        umask: 0,
    }
}

/// Device numbers as the kernel's FUSE requests and the store have them, and back.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn decode_device(device: u32) -> (u32, u32) {
    let minor = (device & 0xff) | ((device >> 12) & !0xff);
    ((device & 0xf_ff00) >> 8, minor)
}

fn meta_of(stat: &Stat) -> Meta {
    let attr = &stat.attr;
    Meta {
        kind: attr.kind,
        perm: attr.perm,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        nlink: u64::from(attr.nlink),
        id: (0, stat.ino),
        rdev: decode_device(attr.rdev),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
    }
}

impl Tree for VolumeTree {
    type Dir = u64;

    fn root(&self) -> Result<u64> {
        Ok(self.root)
    }

    fn names(&self, dir: &u64) -> Result<Vec<Vec<u8>>> {
        let entries = self.volume.list(*dir)?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn meta(&self, dir: &u64, name: &[u8]) -> Result<Meta> {
        Ok(meta_of(&self.stat(*dir, name)?))
    }

    fn open_dir(&self, dir: &u64, name: &[u8]) -> Result<u64> {
        let stat = self.stat(*dir, name)?;
        match stat.attr.is_dir() {
            true => Ok(stat.ino),
            false => Err(VolumeError::NotDirectory.into()),
        }
    }

    fn symlink_target(&self, dir: &u64, name: &[u8]) -> Result<Vec<u8>> {
        Ok(self.volume.readlink(self.ino(*dir, name)?)?)
    }

    fn attribute_names(&self, dir: &u64, name: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.volume.listxattr(self.ino(*dir, name)?)?)
    }

    fn attribute(&self, dir: &u64, name: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.volume.getxattr(self.ino(*dir, name)?, key) {
            Err(VolumeError::NoAttribute) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    fn open(&self, dir: &u64, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        Ok(Box::new(VolumeFile {
            volume: &self.volume,
            ino: self.ino(*dir, name)?,
        }))
    }
}

impl Target for VolumeTree {
    fn make_dir(&self, dir: &u64, name: &[u8], wanted: &Meta) -> Result<()> {
        self.volume.mkdir(*dir, name, 0o700, caller(wanted))?;
        Ok(())
    }

    fn make_symlink(&self, dir: &u64, name: &[u8], target: &[u8], wanted: &Meta) -> Result<()> {
        self.volume.symlink(*dir, name, target, caller(wanted))?;
        Ok(())
    }

    fn make_node(&self, dir: &u64, name: &[u8], wanted: &Meta) -> Result<()> {
        let mode = wanted.kind.mode_bits() | 0o600;
        let device = encode_device(wanted.rdev);
        self.volume
            .mknod(*dir, name, mode, device, caller(wanted))?;
        Ok(())
    }

    fn create(&self, dir: &u64, name: &[u8], wanted: &Meta) -> Result<Box<dyn Output + '_>> {
        let stat = self.volume.create(*dir, name, 0o600, caller(wanted))?;
        Ok(Box::new(OpenFile(VolumeFile {
            volume: &self.volume,
            ino: stat.ino,
        })))
    }

    fn link(&self, from: &u64, name: &[u8], to: &u64, new: &[u8]) -> Result<()> {
        self.volume.link(self.ino(*from, name)?, *to, new)?;
        Ok(())
    }

    fn rename(&self, dir: &u64, from: &[u8], to: &[u8]) -> Result<()> {
        let place = |name| Place { parent: *dir, name };
        self.volume
            .rename(place(from), place(to), RenameMode::Replace)?;
        Ok(())
    }

    fn remove(&self, dir: &u64, name: &[u8]) -> Result<()> {
        Ok(self.volume.unlink(*dir, name)?)
    }

    fn set_owner(&self, dir: &u64, name: &[u8], wanted: &Meta) -> Result<()> {
        let set = SetAttr {
            uid: Some(wanted.uid),
            gid: Some(wanted.gid),
            ..SetAttr::default()
        };
        self.volume.setattr(self.ino(*dir, name)?, set)?;
        Ok(())
    }

    fn set_mode_and_times(&self, dir: &u64, name: &[u8], wanted: &Meta) -> Result<()> {
        let set = SetAttr {
            perm: (wanted.kind != FileKind::Symlink).then_some(wanted.perm),
            atime: Some(wanted.atime),
            mtime: Some(wanted.mtime),
            ..SetAttr::default()
        };
        self.volume.setattr(self.ino(*dir, name)?, set)?;
        Ok(())
    }

    fn set_attribute(&self, dir: &u64, name: &[u8], attribute: &Attribute) -> Result<()> {
        let ino = self.ino(*dir, name)?;
        let (key, value) = attribute;
        Ok(self.volume.setxattr(ino, key, value, false, false)?)
    }

    fn remove_attribute(&self, dir: &u64, name: &[u8], attribute: &[u8]) -> Result<()> {
        let ino = self.ino(*dir, name)?;
        Ok(self.volume.removexattr(ino, attribute)?)
    }

    /// The volume itself never makes a rename durable before the data of the file.
    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> Result<()> {
        Ok(self.volume.sync_everything()?)
    }

    /// Everything was flushed, so this reads the log.
    fn reopen(&self, dir: &u64, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        self.open(dir, name)
    }
}

struct VolumeFile<'a> {
    volume: &'a Volume,
    ino: u64,
}

impl Contents for VolumeFile<'_> {
    fn meta(&self) -> Result<Meta> {
        Ok(meta_of(&self.volume.getattr(self.ino)?))
    }

    fn data_from(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let start = match self.volume.seek(self.ino, offset, true) {
            Err(VolumeError::NoData) => return Ok(None),
            other => other?,
        };
        Ok(Some((start, self.volume.seek(self.ino, start, false)?)))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let data = self.volume.read(self.ino, offset, buf.len())?;
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }
}

/// A file that was created and not released yet.
struct OpenFile<'a>(VolumeFile<'a>);

impl Output for OpenFile<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        for (number, piece) in data.chunks(PIECE).enumerate() {
            let offset = offset + (number * PIECE) as u64;
            let volume = self.0.volume;
            volume.write(self.0.ino, offset, piece, WriteMode::default())?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>, size: u64) -> Result<()> {
        let (volume, ino) = (self.0.volume, self.0.ino);
        if volume.getattr(ino)?.attr.size != size {
            let set = SetAttr {
                size: Some(size),
                ..SetAttr::default()
            };
            volume.setattr(ino, set)?;
        }
        Ok(volume.flush(ino)?)
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        self.0.volume.release(self.0.ino);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_come_back_as_they_were() {
        for device in [(0, 0), (8, 1), (1, 3), (259, 70_000), (4095, 0xf_ffff)] {
            assert_eq!(decode_device(encode_device(device)), device);
        }
        // As mknod(1) makes it: `stat` of the same device through a mount shows this number.
        assert_eq!(encode_device((8, 300)), 0x0010_082c);
    }
}
