//! A disk in memory that the kernel sees as a block device: it records every write and flush, and fails
//! them on request. Served by FUSE to a loop device. Needs root.
#![allow(dead_code)]

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, Session, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// A torn write keeps or loses sectors as a whole.
pub const SECTOR: usize = 512;
const FILE: INodeNo = INodeNo(2);
const NAME: &str = "disk";
const TTL: Duration = Duration::from_secs(1000);

/// What the block device was asked to do.
#[derive(Debug, Clone)]
pub enum Entry {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

#[derive(Default)]
struct State {
    bytes: Mutex<Vec<u8>>,
    log: Mutex<Vec<Entry>>,
    recording: AtomicBool,
    fails_reads: AtomicBool,
    fails_writes: AtomicBool,
    fails_flushes: AtomicBool,
}

struct Server(Arc<State>);

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let size = self.0.bytes.lock().unwrap().len() as u64;
        let time = SystemTime::UNIX_EPOCH;
        let (kind, perm) = match ino {
            FILE => (FileType::RegularFile, 0o600),
            _ => (FileType::Directory, 0o700),
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attr(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Every read and write of the block device comes here, at once and in order.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.0.fails_reads.load(SeqCst) {
            return reply.error(Errno::EIO);
        }
        let bytes = self.0.bytes.lock().unwrap();
        let from = (offset as usize).min(bytes.len());
        let to = (from + size as usize).min(bytes.len());
        reply.data(&bytes[from..to]);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.0.fails_writes.load(SeqCst) {
            return reply.error(Errno::EIO);
        }
        let offset = offset as usize;
        let mut bytes = self.0.bytes.lock().unwrap();
        let Some(target) = bytes.get_mut(offset..offset + data.len()) else {
            return reply.error(Errno::ENOSPC);
        };
        target.copy_from_slice(data);
        if self.0.recording.load(SeqCst) {
            let bytes = data.to_vec();
            let mut log = self.0.log.lock().unwrap();
            log.push(Entry::Write { offset, bytes });
        }
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        if self.0.fails_flushes.load(SeqCst) {
            return reply.error(Errno::EIO);
        }
        if self.0.recording.load(SeqCst) {
            self.0.log.lock().unwrap().push(Entry::Flush);
        }
        reply.ok();
    }
}

/// True if `program ARGUMENTS` succeeded.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this test")
}

/// Why loop devices with ext4 cannot be used here, if they cannot.
pub fn unusable() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    let fuse = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if fuse.is_err() {
        return Some("needs /dev/fuse");
    }
    if !succeeds("losetup", &["--find"]) {
        return Some("needs loop devices");
    }
    (!succeeds("mkfs.ext4", &["-V"])).then_some("needs mkfs.ext4 (package e2fsprogs)")
}

/// Where images and mount points of a test go: memory, if there is some.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::Builder::new().prefix("s2sfs-").tempdir_in(memory),
        false => tempfile::tempdir(),
    }
    .unwrap()
}

/// An ext4 file system mounted from an image or a block device. Unmounted when dropped.
pub struct Ext4 {
    pub path: PathBuf,
    mounted: bool,
}

impl Ext4 {
    pub fn make(target: &Path) {
        // A small journal that is used up soon, and nothing left to a background thread.
        let options = ["-q", "-F", "-b", "4096", "-J", "size=4"];
        let lazy = ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"];
        run(
            "mkfs.ext4",
            &[&options[..], &lazy[..], &[text(target)]].concat(),
        );
    }

    /// Mounts a block device, or with a loop device in between an image.
    pub fn mount(target: &Path, path: &Path) -> Ext4 {
        std::fs::create_dir_all(path).unwrap();
        let options = match target.starts_with("/dev/loop") {
            true => "noatime,errors=continue",
            false => "noatime,errors=continue,loop",
        };
        run(
            "mount",
            &["-t", "ext4", "-o", options, text(target), text(path)],
        );
        let path = path.to_owned();
        Ext4 {
            path,
            mounted: true,
        }
    }

    /// Stops all writing at once, without flushing anything, the log of ext4 included.
    pub fn shut_down(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.path)]);
    }

    pub fn unmount(mut self) {
        run("umount", &[text(&self.path)]);
        self.mounted = false;
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if self.mounted && !succeeds("umount", &[text(&self.path)]) {
            succeeds("umount", &["-l", text(&self.path)]);
        }
    }
}

/// See the module.
pub struct Disk {
    state: Arc<State>,
    mnt: PathBuf,
    /// The block device.
    pub device: PathBuf,
}

impl Disk {
    /// A disk of `len` zeros. `dir` must outlive it.
    pub fn new(dir: &Path, len: usize) -> Disk {
        let mnt = dir.join("disk");
        std::fs::create_dir(&mnt).unwrap();
        let state = Arc::new(State {
            bytes: Mutex::new(vec![0; len]),
            ..State::default()
        });
        let session =
            Session::new(Server(state.clone()), &mnt, &Config::default()).expect("a FUSE mount");
        std::thread::spawn(move || session.run());
        let device = run("losetup", &["--find", "--show", text(&mnt.join(NAME))]);
        Disk {
            state,
            mnt,
            device: device.into(),
        }
    }

    pub fn image(&self) -> Vec<u8> {
        self.state.bytes.lock().unwrap().clone()
    }

    pub fn record(&self) {
        self.state.recording.store(true, SeqCst);
    }

    /// Entries recorded so far.
    pub fn position(&self) -> u64 {
        self.state.log.lock().unwrap().len() as u64
    }

    /// A clock that shows the position in the recording.
    pub fn clock(&self) -> super::ledger::Clock {
        let state = self.state.clone();
        Arc::new(move || state.log.lock().unwrap().len() as u64)
    }

    /// Ends the recording.
    pub fn recorded(&self) -> Vec<Entry> {
        self.state.recording.store(false, SeqCst);
        std::mem::take(&mut *self.state.log.lock().unwrap())
    }

    pub fn fail_reads(&self, fail: bool) {
        self.state.fails_reads.store(fail, SeqCst);
    }

    pub fn fail_writes(&self, fail: bool) {
        self.state.fails_writes.store(fail, SeqCst);
    }

    pub fn fail_flushes(&self, fail: bool) {
        self.state.fails_flushes.store(fail, SeqCst);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.fail_reads(false);
        self.fail_writes(false);
        self.fail_flushes(false);
        succeeds("losetup", &["--detach", text(&self.device)]);
        // Detaching takes effect when the last user is gone.
        for _ in 0..100 {
            if succeeds("umount", &[text(&self.mnt)]) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        succeeds("umount", &["-l", text(&self.mnt)]);
    }
}

/// Images of a disk as a power cut at any entry of a recording leaves it.
pub struct Replay<'a> {
    log: &'a [Entry],
    /// The image after the last flush that was replayed, and the entry behind that.
    flushed: Vec<u8>,
    at: usize,
}

impl<'a> Replay<'a> {
    pub fn new(start: Vec<u8>, log: &'a [Entry]) -> Replay<'a> {
        Replay {
            log,
            flushed: start,
            at: 0,
        }
    }

    /// The image after the first `cut` entries, where `cut` never decreases. Of what was not flushed,
    /// the seed decides what is left: everything, everything but the end of the last write, or any
    /// sectors.
    pub fn image(&mut self, cut: usize, seed: u64) -> Vec<u8> {
        let entries = &self.log[..cut];
        if let Some(flush) = entries.iter().rposition(|e| matches!(e, Entry::Flush)) {
            for entry in &entries[self.at.min(flush)..flush] {
                apply(&mut self.flushed, entry, &mut |_| true);
            }
            self.at = self.at.max(flush);
        }
        let mut image = self.flushed.clone();
        let unflushed = &entries[self.at..];
        let mut random = seed | 1;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random >> 33
        };
        for (number, entry) in unflushed.iter().enumerate() {
            let last = number + 1 == unflushed.len();
            let fate = match seed % 3 {
                0 => 0,
                1 if last => 1,
                1 => 0,
                _ => next() % 3,
            };
            let tear = next() as usize;
            let mut sectors = |sector: usize| match fate {
                0 => true,
                1 => sector < tear % 64,
                _ => next() % 2 == 0,
            };
            apply(&mut image, entry, &mut sectors);
        }
        image
    }
}

fn apply(image: &mut [u8], entry: &Entry, keeps: &mut dyn FnMut(usize) -> bool) {
    let Entry::Write { offset, bytes } = entry else {
        return;
    };
    // ext4 writes its superblock in place and finds it damaged when it is torn, so it stays whole.
    let unit = match *offset < 4096 {
        true => 4096,
        false => SECTOR,
    };
    for (sector, data) in bytes.chunks(unit).enumerate() {
        if keeps(sector) {
            let at = offset + sector * unit;
            image[at..at + data.len()].copy_from_slice(data);
        }
    }
}

/// Makes `path` hold these bytes.
pub fn write_image(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes)
}
