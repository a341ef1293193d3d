//! A store, a mount point, and the commands on them, for the tests of the command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Exit codes as documented in s2sfs(1).
pub mod exit {
    pub const OK: i32 = 0;
    pub const FAILED: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const DAMAGED: i32 = 3;
    pub const BUSY: i32 = 4;
    pub const NOT_A_STORE: i32 = 5;
    pub const REPAIRED: i32 = 6;
    /// Of `mount.s2sfs`.
    pub const HELPER_USAGE: i32 = 1;
    pub const HELPER_FAILED: i32 = 32;
}

/// True where FUSE file systems can be mounted. Says so loudly where they cannot.
pub fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    let fuse = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    let helper = Command::new("fusermount3").arg("-V").output().is_ok();
    if fuse.is_ok() && (root || helper) {
        return true;
    }
    skipped("needs /dev/fuse, and root or fusermount3 to mount with");
    false
}

/// Says that a test did nothing, past the test harness, which shows only what failed tests print.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// A directory with a store and a mount point in it. Unmounted and deleted when dropped.
pub struct Bed {
    dir: tempfile::TempDir,
    pub store: PathBuf,
    pub mnt: PathBuf,
}

impl Bed {
    pub fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let (store, mnt) = (dir.path().join("store"), dir.path().join("mnt"));
        std::fs::create_dir(&mnt).unwrap();
        Bed { dir, store, mnt }
    }

    /// A store in another place.
    pub fn on(store: &Path) -> Bed {
        let mut bed = Bed::new();
        bed.store = store.to_owned();
        bed
    }

    /// A fresh store, mounted with `options` (settling only on request unless they say otherwise).
    pub fn mounted(options: &str) -> Bed {
        let bed = Bed::new();
        bed.mount(options);
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mount(&self, options: &str) {
        let output = self.try_mount(options);
        assert!(output.status.success(), "mount: {}", text(&output));
    }

    pub fn try_mount(&self, options: &str) -> Output {
        let options = format!("settle_after=never,threads=2,cache=64M,{options}");
        finish(
            helper()
                .arg(&self.store)
                .arg(&self.mnt)
                .arg("-o")
                .arg(options),
        )
    }

    pub fn umount(&self) {
        // Whoever looks at all mounts, or is just ending, may hold this one for a moment.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = s2sfs(["umount".as_ref(), self.mnt.as_os_str()]);
            if output.status.success() {
                return;
            }
            let busy = output.status.code() == Some(exit::BUSY);
            assert!(
                busy && Instant::now() < deadline,
                "umount: {}",
                text(&output)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn settle(&self) {
        let output = s2sfs(["settle".as_ref(), self.mnt.as_os_str()]);
        assert!(output.status.success(), "settle: {}", text(&output));
    }

    pub fn status(&self, path: &Path) -> serde_json::Value {
        let output = s2sfs(["status".as_ref(), "--json".as_ref(), path.as_os_str()]);
        assert!(output.status.success(), "status: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn pid(&self) -> Pid {
        let pid = self.status(&self.mnt)["pid"].as_i64().unwrap();
        Pid::from_raw(pid as i32).unwrap()
    }

    pub fn check(&self) -> Output {
        s2sfs(["check".as_ref(), self.store.as_os_str()])
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mnt = self.mnt.to_str().unwrap();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(mnt))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.is_mounted() {
            let output = s2sfs(["umount".as_ref(), self.mnt.as_os_str()]);
            if !output.status.success() {
                let _ = Command::new("umount").arg("-l").arg(&self.mnt).status();
            }
        }
    }
}

/// Kills a daemon and waits until nothing of it is left.
pub fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // The launcher that the test started is its parent no longer; init collects it.
    while test_kill_process(pid).is_ok() && !is_zombie(pid) {
        assert!(Instant::now() < deadline, "the daemon survived SIGKILL");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Dead with all its threads, so that nothing of it holds the store any more.
fn is_zombie(pid: Pid) -> bool {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = std::fs::read_to_string(format!("{proc}/stat")).unwrap_or_default();
    let dead = stat.rsplit(')').next().is_some_and(|s| s.starts_with(" Z"));
    dead && std::fs::read_dir(format!("{proc}/task")).is_ok_and(|tasks| tasks.count() <= 1)
}

/// The program under the name of the mount helper.
pub fn helper() -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_s2sfs"));
    command.arg0("mount.s2sfs");
    command
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_s2sfs"))
}

/// The program where everybody may run it: a copy in `dir`.
///
/// Another process writes it: a child of another test would else have it open for writing until its own exec, and
/// a file that is being written cannot be run.
pub fn program_in(dir: &Path) -> PathBuf {
    let copy = dir.join("s2sfs");
    let mut cp = Command::new("cp");
    let output = finish(cp.arg(env!("CARGO_BIN_EXE_s2sfs")).arg(&copy));
    assert!(output.status.success(), "cp: {}", text(&output));
    copy
}

/// Runs `s2sfs` with these arguments.
pub fn s2sfs<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    finish(program().args(arguments))
}

/// Runs a command that must come to an end by itself.
pub fn finish(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs a command again while it finds the store in use. Where a test opens stores itself, programs that other tests
/// start have copies of its locks until they have got as far as their exec.
pub fn unless_busy(mut run: impl FnMut() -> Output) -> Output {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let output = run();
        if output.status.code() != Some(exit::BUSY) || Instant::now() > deadline {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn text(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn assert_ok(output: &Output) {
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(output));
}

/// Asserts the exit code, and that standard error says `words`.
pub fn assert_refused(output: &Output, code: i32, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}", text(output));
    assert!(stderr.contains(words), "not '{words}': {}", text(output));
}

/// Polls until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Text of `len` bytes that compresses, and differs with `seed`.
pub fn sample(seed: u64, len: usize) -> Vec<u8> {
    let words = [
        "river", "stone", "the", "of", "under", "a", "light", "morning", "was", "and",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.extend_from_slice(words[(state % words.len() as u64) as usize].as_bytes());
        text.push(if state.is_multiple_of(11) {
            b'\n'
        } else {
            b' '
        });
    }
    text.truncate(len);
    text
}

/// Writes a tree of files of many sizes; returns their names and contents.
pub fn write_tree(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let sizes = [0, 1, 100, 4095, 4096, 70_000, 131_072, 300_001];
    let mut files = Vec::new();
    for (number, size) in sizes.into_iter().enumerate() {
        let dir = PathBuf::from(format!("d{}", number % 3));
        std::fs::create_dir_all(root.join(&dir)).unwrap();
        let path = dir.join(format!("file {number}.txt"));
        let contents = sample(number as u64, size);
        std::fs::write(root.join(&path), &contents).unwrap();
        files.push((path, contents));
    }
    files
}

pub fn assert_tree(root: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for (path, contents) in files {
        let found = std::fs::read(root.join(path)).unwrap();
        assert!(found == *contents, "{} has other contents", path.display());
    }
}
