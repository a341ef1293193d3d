//! A real mount of a store in a temporary directory.
#![allow(dead_code)]

use super::{codecs, quiet_options};
use s2sfs::fuse::{MountHandle, MountOptions, mount};
use s2sfs::store::{OpenOptions, RealStorage, Store};
use s2sfs::volume::{Volume, VolumeOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A store, its mount, and the directory that holds both.
pub struct Mounted {
    // Before the directory, so that it is unmounted when that is removed.
    handle: Option<MountHandle>,
    pub dir: TempDir,
}

/// Says that a test cannot run, loudly enough to be found in the output.
pub fn can_mount() -> bool {
    let possible = Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !possible {
        // Past the test harness, which shows only what failed tests print.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no /dev/fuse here, or not root: nothing was mounted"
        );
    }
    possible
}

impl Mounted {
    /// `None` where nothing can be mounted.
    pub fn new() -> Option<Mounted> {
        Mounted::with(quiet_options())
    }

    pub fn with(options: VolumeOptions) -> Option<Mounted> {
        if !can_mount() {
            return None;
        }
        let dir = TempDir::new().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("mnt")).expect("mkdir");
        let mut mounted = Mounted { handle: None, dir };
        mounted.mount(options);
        Some(mounted)
    }

    fn mount(&mut self, options: VolumeOptions) {
        let open = OpenOptions {
            create: true,
            read_only: options.read_only,
            ..OpenOptions::default()
        };
        let storage = Arc::new(RealStorage::new(self.store_path()));
        let store = Store::open(storage, &open).expect("the store opens");
        let mount_options = MountOptions {
            source: "a store, with a comma".into(),
            read_only: options.read_only,
            ..MountOptions::default()
        };
        let volume = Volume::open(store, codecs(), options).expect("the volume opens");
        self.handle = Some(mount(volume, &self.path(), &mount_options).expect("mounting works"));
    }

    pub fn store_path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The mountpoint.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn handle(&self) -> &MountHandle {
        self.handle.as_ref().expect("mounted")
    }

    pub fn volume(&self) -> &Arc<Volume> {
        self.handle().volume()
    }

    pub fn unmount(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.unmount().expect("unmounting works");
            handle.wait().expect("the store is closed");
        }
    }

    /// Drops a handle whose mount has ended already.
    pub fn unmount_finished(&mut self) {
        self.handle = None;
    }

    pub fn remount(&mut self) {
        self.remount_with(quiet_options());
    }

    pub fn remount_with(&mut self, options: VolumeOptions) {
        self.unmount();
        self.mount(options);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let _ = handle.terminate();
        }
    }
}
