//! Who may do what, and what a change does to modes and times.

mod common;

use common::mounted::Mounted;
use common::patient::wait_until;
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
/// Some user who is not root.
const UID: u32 = 12_345;

/// An access control list as the kernel takes it: tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const NONE: u32 = u32::MAX;

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    match getxattr(path, name, &mut buffer[..]) {
        Ok(len) => Some(buffer[..len].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), rustix::io::Errno> {
    setxattr(path, name, value, XattrFlags::empty())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A mount that other users reach.
fn mounted() -> Option<Mounted> {
    let mounted = Mounted::new()?;
    chmod(mounted.dir.path(), 0o755);
    chmod(&mounted.path(), 0o777);
    Some(mounted)
}

/// Whether a shell command works for another user, without any group of ours.
fn works_for(uid: u32, gid: u32, command: &str, path: &Path) -> bool {
    Command::new("setpriv")
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={gid}"))
        .args(["--clear-groups", "sh", "-c", command, "sh"])
        .arg(path)
        .current_dir("/")
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[test]
fn access_lists_are_enforced_and_kept_in_step_with_the_mode() {
    let Some(mut mounted) = mounted() else { return };
    let file = mounted.file("f");
    fs::write(&file, b"secret").unwrap();
    chmod(&file, 0o600);
    assert!(!works_for(UID, UID, "cat \"$1\"", &file));
    let list = acl(&[
        (1, 6, NONE),
        (2, 4, UID),
        (4, 0, NONE),
        (16, 4, NONE),
        (32, 0, NONE),
    ]);
    set(&file, ACCESS, &list).unwrap();
    assert_eq!(mode(&file), 0o640);
    assert!(works_for(UID, UID, "cat \"$1\"", &file));
    assert!(!works_for(UID, UID, "echo >> \"$1\"", &file));
    assert!(!works_for(UID + 1, UID, "cat \"$1\"", &file));
    mounted.remount();
    assert_eq!(get(&file, ACCESS).unwrap(), list);
    assert!(works_for(UID, UID, "cat \"$1\"", &file));

    chmod(&file, 0o600);
    assert!(
        !works_for(UID, UID, "cat \"$1\"", &file),
        "chmod changes the mask"
    );
    let masked = acl(&[
        (1, 6, NONE),
        (2, 4, UID),
        (4, 0, NONE),
        (16, 0, NONE),
        (32, 0, NONE),
    ]);
    assert_eq!(get(&file, ACCESS).unwrap(), masked);
    let mut names = vec![0; 1000];
    let len = listxattr(&file, &mut names[..]).unwrap();
    assert_eq!(&names[..len], b"system.posix_acl_access\0");

    let plain = acl(&[(1, 6, NONE), (4, 4, NONE), (32, 4, NONE)]);
    set(&file, ACCESS, &plain).unwrap();
    assert_eq!((mode(&file), get(&file, ACCESS)), (0o644, None));
    removexattr(&file, ACCESS).unwrap();
    mounted.check();
}

#[test]
fn only_the_owner_sets_lists_and_only_valid_ones() {
    let Some(mounted) = mounted() else { return };
    let file = mounted.file("f");
    fs::write(&file, b"x").unwrap();
    chmod(&file, 0o666);
    let script = "python3 -c 'import os,sys; os.setxattr(sys.argv[1], \"system.posix_acl_access\", \
        bytes.fromhex(\"0200000001000700ffffffff04000700ffffffff20000700ffffffff\"))' \"$1\"";
    assert!(!works_for(UID, UID, script, &file));
    assert_eq!(mode(&file), 0o666);
    chown(&file, Some(UID), Some(UID)).unwrap();
    if Command::new("python3").arg("-V").output().is_ok() {
        assert!(works_for(UID, UID, script, &file));
        assert_eq!(mode(&file), 0o777);
    }
    let without_mask = acl(&[(1, 6, NONE), (2, 4, UID), (4, 0, NONE), (32, 0, NONE)]);
    assert_eq!(
        set(&file, ACCESS, &without_mask),
        Err(rustix::io::Errno::INVAL)
    );
    assert!(
        set(
            &file,
            DEFAULT,
            &acl(&[(1, 6, NONE), (4, 0, NONE), (32, 0, NONE)])
        )
        .is_err()
    );
}

#[test]
fn default_lists_are_inherited_in_place_of_the_umask() {
    let Some(mut mounted) = mounted() else { return };
    let dir = mounted.file("d");
    fs::create_dir(&dir).unwrap();
    let default = acl(&[
        (1, 7, NONE),
        (2, 7, UID),
        (4, 5, NONE),
        (16, 7, NONE),
        (32, 0, NONE),
    ]);
    set(&dir, DEFAULT, &default).unwrap();
    assert_eq!((mode(&dir), get(&dir, ACCESS)), (0o755, None));
    let file = dir.join("file");
    let make = |path: &Path, mode| {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        options.open(path).unwrap();
    };
    make(&file, 0o666);
    assert_eq!(mode(&file), 0o660);
    let inherited = acl(&[
        (1, 6, NONE),
        (2, 7, UID),
        (4, 5, NONE),
        (16, 6, NONE),
        (32, 0, NONE),
    ]);
    assert_eq!(get(&file, ACCESS).unwrap(), inherited);
    assert!(works_for(UID, UID, "echo >> \"$1\"", &file));
    let sub = dir.join("sub");
    DirBuilder::new().mode(0o777).create(&sub).unwrap();
    assert_eq!(get(&sub, DEFAULT).unwrap(), default);
    assert_eq!(mode(&sub), 0o770);
    symlink("x", dir.join("link")).unwrap();
    mounted.remount();
    assert_eq!(get(&sub, DEFAULT).unwrap(), default);

    // Without a default list the umask of the caller counts.
    removexattr(&dir, DEFAULT).unwrap();
    assert!(works_for(
        0,
        0,
        "umask 027; : > \"$1\"",
        &dir.join("masked")
    ));
    assert_eq!(mode(&dir.join("masked")), 0o640);
    mounted.check();
}

#[test]
fn suid_and_sgid_go_when_others_write_truncate_or_the_owner_changes() {
    let Some(mounted) = mounted() else { return };
    let file = mounted.file("f");
    fs::write(&file, b"program").unwrap();
    for command in [
        "echo >> \"$1\"",
        ": > \"$1\"",
        "truncate -s 3 \"$1\"",
        "fallocate -l 99 \"$1\"",
    ] {
        chmod(&file, 0o6777);
        assert!(works_for(UID, UID, command, &file), "{command}");
        assert_eq!(mode(&file), 0o777, "{command}");
    }
    chmod(&file, 0o6755);
    fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    assert_eq!(mode(&file), 0o6755, "root keeps them");
    chown(&file, Some(UID), None).unwrap();
    assert_eq!(mode(&file), 0o755);
    // In a directory they mean something else.
    let dir = mounted.file("d");
    fs::create_dir(&dir).unwrap();
    chmod(&dir, 0o2775);
    chown(&dir, Some(UID), Some(50)).unwrap();
    assert_eq!(mode(&dir), 0o2775);
    assert!(works_for(
        UID,
        UID,
        ": > \"$1\"/file; mkdir \"$1\"/sub",
        &dir
    ));
    let made = |name: &str| fs::metadata(dir.join(name)).unwrap();
    assert_eq!((made("file").uid(), made("file").gid()), (UID, 50));
    assert_eq!(
        (made("sub").gid(), made("sub").mode() & 0o7000),
        (50, 0o2000)
    );
    // An owner outside the group cannot keep setgid.
    chown(dir.join("file"), Some(UID), Some(50)).unwrap();
    assert!(works_for(UID, UID, "chmod 2755 \"$1\"/file", &dir));
    assert_eq!(mode(&dir.join("file")), 0o755);
}

#[test]
fn sticky_directories_protect_the_files_of_others() {
    let Some(mounted) = mounted() else { return };
    let dir = mounted.file("tmp");
    fs::create_dir(&dir).unwrap();
    chmod(&dir, 0o1777);
    fs::write(dir.join("f"), b"x").unwrap();
    assert!(!works_for(UID, UID, "rm -f \"$1\"", &dir.join("f")));
    assert!(!works_for(UID, UID, "mv \"$1\" \"$1\"2", &dir.join("f")));
    chown(dir.join("f"), Some(UID), None).unwrap();
    assert!(works_for(UID, UID, "rm -f \"$1\"", &dir.join("f")));
}

#[test]
fn every_change_of_an_inode_moves_its_ctime() {
    let Some(mounted) = mounted() else { return };
    let file = mounted.file("f");
    fs::write(&file, b"x").unwrap();
    let ctime = || {
        let meta = fs::metadata(&file).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    };
    let (link, moved) = (mounted.file("link"), mounted.file("moved"));
    let steps: [(&str, &dyn Fn()); 9] = [
        ("chmod to what it is", &|| chmod(&file, 0o644)),
        ("chown to what it is", &|| {
            chown(&file, Some(0), Some(0)).unwrap()
        }),
        ("utimens", &|| {
            let times = fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_times(times)
                .unwrap()
        }),
        ("setxattr", &|| set(&file, "user.a", b"b").unwrap()),
        ("removexattr", &|| removexattr(&file, "user.a").unwrap()),
        ("link", &|| fs::hard_link(&file, &link).unwrap()),
        ("unlink", &|| fs::remove_file(&link).unwrap()),
        ("rename", &|| {
            fs::rename(&file, &moved).unwrap();
            fs::rename(&moved, &file).unwrap()
        }),
        ("truncate to what it is", &|| {
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(1)
                .unwrap()
        }),
    ];
    for (what, step) in steps {
        let before = ctime();
        std::thread::sleep(Duration::from_millis(2));
        step();
        assert!(ctime() > before, "{what}");
    }
}

#[test]
fn reading_moves_the_access_time_once_after_a_change() {
    let Some(mut mounted) = mounted() else { return };
    let file = mounted.file("f");
    fs::write(&file, b"contents").unwrap();
    let atime = |path: &Path| fs::metadata(path).unwrap().accessed().unwrap();
    let read = || {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(fs::read(&file).unwrap(), b"contents");
    };
    let written = atime(&file);
    read();
    let moved = atime(&file);
    assert!(moved > written, "although the contents were in the cache");
    read();
    assert_eq!(atime(&file), moved);
    mounted.remount();
    assert_eq!(atime(&file), moved);
    let dir_before = atime(&mounted.path());
    fs::read_dir(mounted.path()).unwrap().for_each(drop);
    assert!(atime(&mounted.path()) > dir_before);
}

#[test]
fn removed_files_and_directories_answer_while_somebody_holds_them() {
    let Some(mounted) = mounted() else { return };
    let (file, dir) = (mounted.file("f"), mounted.file("d"));
    fs::write(&file, b"still here").unwrap();
    fs::create_dir(&dir).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH);
    let held = [options.open(&file).unwrap(), options.open(&dir).unwrap()];
    fs::remove_file(&file).unwrap();
    fs::remove_dir(&dir).unwrap();
    for _ in 0..2 {
        for held in &held {
            assert_eq!(held.metadata().unwrap().nlink(), 0);
        }
        // Longer than the kernel believes attributes.
        std::thread::sleep(Duration::from_millis(1100));
    }
    let mut contents = String::new();
    let again = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&held[0])
    );
    File::open(again)
        .unwrap()
        .read_to_string(&mut contents)
        .unwrap();
    assert_eq!(contents, "still here");
    let status = || mounted.volume().status().unwrap();
    assert_eq!((status().files, status().directories), (1, 2));
    drop(held);
    wait_until("the end of the inodes", || {
        (status().files, status().directories) == (0, 1)
    });

    fs::create_dir(&dir).unwrap();
    let mut shell = Command::new("sh");
    let script = "rmdir ../d && ! ls . 2>/dev/null | grep . && ! touch new && sleep 1.1 && stat . >/dev/null";
    assert!(
        shell
            .args(["-c", script])
            .current_dir(&dir)
            .stderr(std::process::Stdio::null())
            .uid(0)
            .status()
            .unwrap()
            .success()
    );
}
