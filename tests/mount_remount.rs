//! Remounting read-only and back.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use cli::{Bed, assert_refused, can_mount, exit, finish, helper, sample};
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn remount(bed: &Bed, options: &str) -> Output {
    finish(
        helper()
            .arg(&bed.store)
            .arg(&bed.mnt)
            .arg("-o")
            .arg(options),
    )
}

#[test]
fn a_mount_becomes_read_only_with_everything_on_the_disk_and_writable_again() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let mut file = fs::File::create(bed.mnt.join("f")).unwrap();
    file.write_all(&sample(1, 300_000)).unwrap();
    assert_refused(&remount(&bed, "remount,ro"), exit::HELPER_FAILED, "busy");
    drop(file);
    assert!(remount(&bed, "remount,ro").status.success());
    let error = fs::write(bed.mnt.join("g"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(bed.status(&bed.mnt)["dirty_bytes"], 0);
    assert!(remount(&bed, "rw,remount,user_id=0").status.success());
    fs::write(bed.mnt.join("g"), b"x").unwrap();
    assert_eq!(fs::read(bed.mnt.join("f")).unwrap(), sample(1, 300_000));
    bed.umount();
    assert!(bed.check().status.success());
}

#[test]
fn what_cannot_be_remounted_is_refused_with_the_reason() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    fs::write(bed.mnt.join("f"), b"x").unwrap();
    bed.umount();
    assert_refused(
        &remount(&bed, "remount,ro"),
        exit::HELPER_FAILED,
        "not mounted",
    );
    bed.mount("ro");
    assert_refused(
        &remount(&bed, "remount,rw"),
        exit::HELPER_FAILED,
        "mount it again",
    );
    let mut other = helper();
    fs::create_dir(bed.path("other")).unwrap();
    other
        .arg(bed.path("other"))
        .arg(&bed.mnt)
        .args(["-o", "remount,ro"]);
    assert_refused(&finish(&mut other), exit::HELPER_USAGE, "what is mounted");
}

#[test]
fn syncing_the_mount_point_stages_and_syncs_everything() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    // Another process, because every child of this one would close the file, which stages it.
    // With the file as standard output, so that the shell writes to it without another descriptor.
    let script = "exec > \"$1\"; printf 'some data'; read wait";
    let mut writer = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(bed.mnt.join("f"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let dirty = || bed.status(&bed.mnt)["dirty_bytes"].as_u64().unwrap();
    cli::wait_until("writing", || dirty() > 0);
    assert!(finish(Command::new("sync").arg(&bed.mnt)).status.success());
    assert_eq!(dirty(), 0);
    writer.kill().unwrap();
    writer.wait().unwrap();
}
