//! A real mount of a store in a temporary directory.
#![allow(dead_code)]

use super::{codecs, patient, quiet_options};
use s2sfs::fuse::{MountHandle, MountOptions, mount};
use s2sfs::store::{OpenOptions, Store};
use s2sfs::volume::{Volume, VolumeOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
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
        let store = self.open_store(&open);
        let mount_options = MountOptions {
            source: "a store, with a comma".into(),
            read_only: options.read_only,
            ..MountOptions::default()
        };
        let volume = Volume::open(store, codecs(), options).expect("the volume opens");
        self.handle = Some(mount(volume, &self.path(), &mount_options).expect("mounting works"));
    }

    fn open_store(&self, options: &OpenOptions) -> Store {
        patient::open_store(&self.store_path(), options).expect("the store opens")
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
            // Whoever looks at all mounts, such as df, holds this one for a moment, and so does a child
            // of another test that has not got as far as its program yet.
            let deadline = Instant::now() + Duration::from_secs(60);
            while let Err(error) = handle.unmount() {
                assert!(error.is_busy() && Instant::now() < deadline, "{error}");
                std::thread::sleep(Duration::from_millis(20));
            }
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

impl Mounted {
    /// Unmounts, and checks the whole store.
    pub fn check(&mut self) {
        self.unmount();
        let open = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        let store = Arc::new(self.open_store(&open));
        let report = s2sfs::volume::check(&store, &codecs(), 2, &|_, _| {}).expect("checking");
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            let _ = handle.terminate();
        }
    }
}

/// Says past the test harness that something was not tested.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Runs a Python script with arguments; it must end well. False, loudly, where there is no Python.
pub fn python(script: &str, arguments: &[&Path]) -> bool {
    match Command::new("python3")
        .args(["-c", script])
        .args(arguments)
        .output()
    {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {text}", output.status);
            true
        }
        Err(_) => {
            skipped("no python3 here");
            false
        }
    }
}

/// Another process that reads and writes files through shared mappings, in Python because mapping is
/// unsafe in Rust.
pub struct Mapper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const MAPPER: &str = r#"
import mmap, sys
for line in sys.stdin.buffer:
    what, offset, length, path = line.rstrip(b'\n').split(b' ', 3)
    offset, length = int(offset), int(length)
    with open(path, 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:
        if what == b'read':
            sys.stdout.buffer.write(m[offset:offset + length])
        else:
            m[offset:offset + length] = sys.stdin.buffer.read(length)
            if what == b'sync':
                m.flush()
    sys.stdout.buffer.write(b'done\n')
    sys.stdout.buffer.flush()
"#;

impl Mapper {
    /// `None`, loudly, where there is no Python.
    pub fn start() -> Option<Mapper> {
        let mut command = Command::new("python3");
        command.args(["-c", MAPPER]);
        let Ok(mut child) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            skipped("no python3 here: mappings were not tested");
            return None;
        };
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Some(Mapper {
            child,
            input,
            output,
        })
    }

    pub fn read(&mut self, path: &Path, offset: u64, len: u64) -> Vec<u8> {
        writeln!(self.input, "read {offset} {len} {}", path.display()).expect("a request");
        let mut data = vec![0; len as usize];
        self.output.read_exact(&mut data).expect("mapped data");
        self.wait();
        data
    }

    pub fn write(&mut self, path: &Path, offset: u64, data: &[u8], sync: bool) {
        let what = if sync { "sync" } else { "write" };
        let len = data.len();
        writeln!(self.input, "{what} {offset} {len} {}", path.display()).expect("a request");
        self.input.write_all(data).expect("data");
        self.input.flush().expect("data");
        self.wait();
    }

    fn wait(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("an answer");
        assert_eq!(line, "done\n");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
