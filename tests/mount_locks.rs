//! Locks, append, direct and mapped access by several processes. The kernel keeps the locks: nothing
//! of the daemon's stands in their way.

mod common;

use common::mounted::{Mounted, python};
use common::{noise, text};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// Process locks, locks of open file descriptions, conflicts between processes, release at close and
/// at exit.
const LOCKS: &str = r#"
import errno, fcntl, os, struct, sys
path = sys.argv[1]
def lock(fd, command, kind, start=0, length=0):
    # struct flock of 64-bit Linux
    fcntl.fcntl(fd, command, struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0))
def refused(fd, command, kind, start=0, length=0):
    try:
        lock(fd, command, kind, start, length)
        return False
    except OSError as e:
        assert e.errno in (errno.EAGAIN, errno.EACCES), e
        return True
def child(f):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if f() else 1)
        except BaseException as e:
            print(e, file=sys.stderr)
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
def opened():
    return os.open(path, os.O_RDWR)
RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
OFD_SET, SET, SETW = 37, fcntl.F_SETLK, fcntl.F_SETLKW
fd = opened()
lock(fd, SET, WR, 0, 100)
child(lambda: refused(opened(), SET, RD, 50, 1))
child(lambda: not refused(opened(), SET, WR, 100, 10))
lock(fd, SET, RD, 0, 100)
child(lambda: not refused(opened(), SET, RD, 50, 1))
child(lambda: refused(opened(), SET, WR, 50, 1))
# A process lock goes with any close of the file.
os.close(opened())
child(lambda: not refused(opened(), SET, WR, 0, 100))
# One waits until the other ends.
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    lock(opened(), SET, WR)
    os.write(w, b'x')
    import time; time.sleep(0.2)
    os._exit(0)
os.read(r, 1)
assert refused(fd, SET, WR)
lock(fd, SETW, WR)
os.waitpid(pid, 0)
lock(fd, SET, UN)
# Locks of open file descriptions conflict inside one process, and stay when another is closed.
a, b = opened(), opened()
lock(a, OFD_SET, WR)
assert refused(b, OFD_SET, WR)
os.close(opened())
assert refused(b, OFD_SET, WR)
os.close(a)
lock(b, OFD_SET, WR)
"#;

#[test]
fn record_locks_conflict_between_processes_and_go_with_their_owners() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    fs::write(mounted.file("f"), noise(1, 1000)).unwrap();
    python(LOCKS, &[&mounted.file("f")]);
}

#[test]
fn whole_file_locks_conflict_between_open_files() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    fs::write(mounted.file("f"), b"x").unwrap();
    let (first, second) = (
        File::open(mounted.file("f")).unwrap(),
        File::open(mounted.file("f")).unwrap(),
    );
    flock(&first, FlockOperation::NonBlockingLockShared).unwrap();
    flock(&second, FlockOperation::NonBlockingLockShared).unwrap();
    let refused = flock(&second, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(rustix::io::Errno::AGAIN));
    drop(first);
    flock(&second, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn appends_of_several_writers_are_all_there_and_whole() {
    let Some(mut mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.file("log");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .unwrap();
                for line in 0..300 {
                    let filler = "x".repeat(line % 50);
                    file.write_all(format!("{writer} {line} {filler}\n").as_bytes())
                        .unwrap();
                }
            });
        }
    });
    mounted.remount();
    let log = fs::read_to_string(&path).unwrap();
    for writer in 0..4 {
        let of_writer = log.lines().filter(|l| l.starts_with(&format!("{writer} ")));
        let lines: Vec<usize> = of_writer
            .map(|l| l.split(' ').nth(1).unwrap().parse().unwrap())
            .collect();
        assert_eq!(lines, (0..300).collect::<Vec<_>>(), "writer {writer}");
    }
}

#[test]
fn direct_access_works_at_any_alignment_and_agrees_with_the_cache() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let path = mounted.file("f");
    let mut data = text(1, 500_000);
    fs::write(&path, &data).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    for (offset, len) in [
        (0, 4096),
        (8192, 131_072),
        (77, 5000),
        (499_999, 1),
        (499_000, 3000),
    ] {
        let new = noise(offset, len);
        direct.write_all_at(&new, offset).unwrap();
        let end = offset as usize + len;
        data.resize(data.len().max(end), 0);
        data[offset as usize..end].copy_from_slice(&new);
        assert!(fs::read(&path).unwrap() == data, "after {offset}");
        let mut back = vec![0; len];
        direct.read_exact_at(&mut back, offset).unwrap();
        assert!(back == new);
    }
    let buffered = OpenOptions::new().write(true).open(&path).unwrap();
    buffered.write_all_at(b"buffered", 1000).unwrap();
    let mut back = [0; 8];
    direct.read_exact_at(&mut back, 1000).unwrap();
    assert_eq!(&back, b"buffered");
}

#[test]
fn what_fuse_cannot_do_is_refused_as_such() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let error = open(mounted.path(), flags, Mode::RUSR | Mode::WUSR).unwrap_err();
    assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
    let file = File::create(mounted.file("f")).unwrap();
    let flags = rustix::fs::FallocateFlags::COLLAPSE_RANGE;
    let error = rustix::fs::fallocate(&file, flags, 0, 4096).unwrap_err();
    assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
}
