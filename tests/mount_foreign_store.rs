//! A store that another machine wrote, read-only: it mounts, and not one bit of it changes.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/compare.rs"]
mod compare;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli::*;

/// Copies a store as a backup program does: the files and nothing else.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&entry.path(), &target),
            kind if kind.is_file() => {
                fs::copy(entry.path(), target).unwrap();
            }
            _ => {}
        }
    }
}

/// Takes all permissions to write away.
fn protect(path: &Path) {
    for (inside, meta) in compare::tree(path).into_iter().rev() {
        let mode = if meta.is_dir() { 0o555 } else { 0o444 };
        fs::set_permissions(path.join(inside), fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn unprotect(path: &Path) {
    for inside in compare::tree(path).into_keys() {
        let path = path.join(inside);
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// A file system that takes no changes, bound over a directory; none where that cannot be had.
struct Frozen<'a>(Option<&'a Path>);

impl Frozen<'_> {
    fn new(path: &Path) -> Frozen<'_> {
        let mount = |arguments: &[&str]| {
            let mut command = Command::new("mount");
            command.args(arguments).arg(path);
            command.status().is_ok_and(|status| status.success())
        };
        let text = path.to_str().unwrap();
        if !mount(&["--bind", text]) {
            skipped("nothing can be bound here: only permissions protect the store");
            return Frozen(None);
        }
        let frozen = Frozen(Some(path));
        assert!(mount(&["-o", "remount,bind,ro"]));
        frozen
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

/// A store that was not even closed, with settled and staged files, copied to `to`.
fn write_elsewhere(to: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let bed = Bed::mounted("segment=1M,policy=fast");
    let mut files = write_tree(&bed.mnt);
    bed.settle();
    let late = sample(99, 150_000);
    fs::write(bed.mnt.join("late"), &late).unwrap();
    files.push(("late".into(), late));
    rustix::fs::syncfs(fs::File::open(&bed.mnt).unwrap()).unwrap();
    fs::File::open(bed.mnt.join("late"))
        .unwrap()
        .sync_all()
        .unwrap();
    kill(bed.pid());
    copy(&bed.store, to);
    for gone in ["index", "lock"] {
        let path = to.join(gone);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    files
}

/// A command of another machine, which has another name.
fn elsewhere() -> Command {
    let there = "hostname s2sfs-elsewhere && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-c", there, "sh"]);
    command
}

fn mount_elsewhere(bed: &Bed, options: &str) {
    let possible = elsewhere().arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        skipped("no other host name can be had here");
        return bed.mount(options);
    }
    let mut command = elsewhere();
    command.args([env!("CARGO_BIN_EXE_s2sfs"), "mount", "-o", options]);
    let output = finish(command.args([&bed.store, &bed.mnt]));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_store_from_another_machine_mounts_read_only_and_not_one_bit_of_it_changes() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("from elsewhere");
    let files = write_elsewhere(&store);
    protect(&store);
    let frozen = Frozen::new(&store);
    let before = compare::fingerprint(&store);
    let bed = Bed::on(&store);
    mount_elsewhere(&bed, "ro,settle_after=never");
    assert_tree(&bed.mnt, &files);
    let refused = fs::write(bed.mnt.join("new"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let status = bed.status(&bed.mnt);
    assert_eq!(status["read_only"], true);
    let copy = dir.path().join("copy");
    let export = s2sfs(["export".as_ref(), bed.mnt.as_os_str(), copy.as_os_str()]);
    assert!(export.status.success(), "{}", text(&export));
    assert_tree(&copy, &files);
    assert_eq!(compare::fingerprint(&store), before);
    bed.umount();
    assert_eq!(
        compare::fingerprint(&store),
        before,
        "unmounting has changed it"
    );

    // Everything that only reads does so without a mount, too.
    let check = bed.check();
    assert!(check.status.success(), "{}", text(&check));
    assert_eq!(bed.status(&store)["mounted"], false);
    let second = dir.path().join("second");
    let export = s2sfs(["export".as_ref(), store.as_os_str(), second.as_os_str()]);
    assert!(export.status.success(), "{}", text(&export));
    assert_tree(&second, &files);
    let stream = fs::File::create(dir.path().join("stream")).unwrap();
    let mut send = program();
    let sent = send
        .arg("send")
        .arg(&store)
        .stdout(stream)
        .status()
        .unwrap();
    assert!(sent.success());
    assert_eq!(compare::fingerprint(&store), before);

    if frozen.0.is_some() {
        let output = bed.try_mount("");
        assert!(!output.status.success(), "nobody can write there");
        assert_eq!(compare::fingerprint(&store), before);
    }
    drop(frozen);
    unprotect(&store);
}

/// A copy has no lock file, and a reader makes none.
#[test]
fn two_readers_share_a_store_and_no_writer_comes_between() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let files = write_elsewhere(&store);
    let (one, two) = (Bed::on(&store), Bed::on(&store));
    one.mount("ro");
    two.mount("ro");
    assert_tree(&one.mnt, &files);
    assert_tree(&two.mnt, &files);
    let write = || {
        s2sfs([
            "check".as_ref(),
            "--rebuild-index".as_ref(),
            store.as_os_str(),
        ])
    };
    one.umount();
    assert_refused(&write(), exit::BUSY, "is in use by another process");
    two.umount();
    let output = write();
    assert!(output.status.success(), "{}", text(&output));
}
