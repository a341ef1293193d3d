//! Mounting and unmounting as a user sees it.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::process::{Command, Stdio};

use cli::*;
use rustix::process::{Signal, kill_process, test_kill_process};

#[test]
fn what_was_written_is_there_after_a_remount_settled_or_not() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    assert_tree(&bed.mnt, &files);
    bed.umount();
    bed.mount("");
    assert_tree(&bed.mnt, &files);
    bed.settle();
    assert_eq!(bed.status(&bed.mnt)["staged_bytes"], 0);
    assert_tree(&bed.mnt, &files);
    bed.umount();
    bed.mount("");
    assert_tree(&bed.mnt, &files);
    bed.umount();
    assert_eq!(bed.check().status.code(), Some(exit::OK));
}

#[test]
fn a_second_mount_of_the_same_store_is_refused_and_says_where_the_first_is() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let other = bed.path("other");
    std::fs::create_dir(&other).unwrap();
    let output = finish(helper().arg(&bed.store).arg(&other));
    assert_refused(&output, exit::HELPER_FAILED, "already mounted at");
    assert_refused(&output, exit::HELPER_FAILED, bed.mnt.to_str().unwrap());
    let output = s2sfs(["mount".as_ref(), bed.store.as_os_str(), other.as_os_str()]);
    assert_refused(&output, exit::BUSY, "already mounted at");
    assert_refused(
        &bed.try_mount(""),
        exit::HELPER_FAILED,
        "already mounted at",
    );
    assert_refused(&bed.check(), exit::BUSY, "in use");
}

#[test]
fn a_directory_with_foreign_files_is_refused_and_left_alone() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    std::fs::create_dir(&bed.store).unwrap();
    std::fs::write(bed.store.join("letter.txt"), "dear").unwrap();
    assert_refused(
        &bed.try_mount(""),
        exit::HELPER_FAILED,
        "not an s2sfs store",
    );
    let left: Vec<_> = std::fs::read_dir(&bed.store).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert!(!bed.is_mounted());
}

#[test]
fn wrong_options_and_places_are_refused_before_anything_is_made() {
    let bed = Bed::new();
    let refused = |options: &str, words| {
        assert_refused(&bed.try_mount(options), exit::HELPER_USAGE, words);
        assert!(!bed.store.exists());
    };
    refused("compress=zstd", "unknown option compress=zstd");
    refused("cache=huge", "not a number");
    refused("extent=100K", "power of two");
    let inside = bed.mnt.join("store");
    let output = finish(helper().arg(&inside).arg(&bed.mnt));
    assert_refused(&output, exit::HELPER_USAGE, "inside each other");
    assert!(!inside.exists());
    let output = finish(helper().arg(&bed.store).arg(bed.path("nowhere")));
    assert_refused(&output, exit::HELPER_FAILED, "mount point");
    let output = s2sfs(["mount", "-o", "what=ever", "a", "b"]);
    assert_refused(&output, exit::USAGE, "unknown option");
    assert_refused(&s2sfs(["frobnicate"]), exit::USAGE, "frobnicate");
}

#[test]
fn a_read_only_mount_of_a_missing_store_is_refused() {
    let bed = Bed::new();
    assert_refused(&bed.try_mount("ro"), exit::HELPER_FAILED, "store");
    assert!(!bed.store.exists());
}

#[test]
fn a_read_only_mount_shows_everything_and_changes_nothing() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    bed.umount();
    let before = listing(&bed.store);
    bed.mount("ro");
    assert_tree(&bed.mnt, &files);
    let error = std::fs::write(bed.mnt.join("new"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert_eq!(bed.status(&bed.mnt)["read_only"], true);
    bed.umount();
    assert_eq!(listing(&bed.store), before);
}

fn listing(dir: &std::path::Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for item in std::fs::read_dir(dir).unwrap() {
            let item = item.unwrap();
            let meta = item.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(item.path());
            } else {
                found.push((item.path(), meta.len()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn options_that_fstab_and_mount_pass_along_are_taken() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let output = finish(helper().arg(&bed.store).arg(&bed.mnt).args([
        "-n",
        "-v",
        "-t",
        "s2sfs",
        "-o",
        "rw,noauto,nofail,_netdev,x-systemd.automount,noatime",
        "-o",
        "cache=16M",
    ]));
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("mounted at"));
    let output = finish(
        helper()
            .args(["-f", "-o", "cache=1M"])
            .arg(bed.path("x"))
            .arg(bed.path("")),
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(!bed.path("x").exists());
}

#[test]
fn umount_waits_until_the_daemon_is_gone_and_the_store_is_free() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    for round in 0..5u64 {
        let pid = bed.pid();
        std::fs::write(bed.mnt.join("file"), sample(round, 3_000_000)).unwrap();
        bed.umount();
        assert!(!bed.is_mounted());
        assert!(!bed.store.join("control.sock").exists());
        // Gone, or a zombie that nobody has collected yet (there may be no init here).
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        assert!(stat.is_err() || stat.unwrap().contains(") Z "));
        bed.mount("");
        assert_eq!(
            std::fs::read(bed.mnt.join("file")).unwrap(),
            sample(round, 3_000_000)
        );
    }
}

#[test]
fn a_busy_mount_is_not_unmounted_and_says_so() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let file = std::fs::File::create(bed.mnt.join("open")).unwrap();
    let output = s2sfs(["umount".as_ref(), bed.mnt.as_os_str()]);
    assert_refused(&output, exit::BUSY, "busy");
    assert!(bed.is_mounted());
    drop(file);
    bed.umount();
    let output = s2sfs(["umount".as_ref(), bed.mnt.as_os_str()]);
    assert_refused(&output, exit::NOT_A_STORE, "no s2sfs is mounted");
}

#[test]
fn plain_umount_works_and_the_next_mount_waits_for_the_old_daemon() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("needs root, for umount(8)");
        return;
    }
    let bed = Bed::mounted("");
    for round in 0..5u64 {
        std::fs::write(bed.mnt.join("file"), sample(round, 8_000_000)).unwrap();
        assert!(
            Command::new("umount")
                .arg(&bed.mnt)
                .status()
                .unwrap()
                .success()
        );
        bed.mount("");
        assert_eq!(
            std::fs::read(bed.mnt.join("file")).unwrap(),
            sample(round, 8_000_000)
        );
    }
}

#[test]
fn sigterm_unmounts_and_keeps_everything_even_with_open_files() {
    if !can_mount() {
        return;
    }
    for keep_open in [false, true] {
        let bed = Bed::mounted("");
        let contents = sample(7, 500_000);
        std::fs::write(bed.mnt.join("file"), &contents).unwrap();
        let open = keep_open.then(|| std::fs::File::open(bed.mnt.join("file")).unwrap());
        let pid = bed.pid();
        kill_process(pid, Signal::TERM).unwrap();
        wait_until("the unmount", || !bed.is_mounted());
        wait_until("the end of the daemon", || !alive(pid));
        drop(open);
        bed.mount("");
        assert_eq!(std::fs::read(bed.mnt.join("file")).unwrap(), contents);
    }
}

/// A killed process is a zombie as soon as its first thread is dead, but holds its files until the last one is.
fn alive(pid: rustix::process::Pid) -> bool {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = std::fs::read_to_string(format!("{proc}/stat"));
    let threads = std::fs::read_dir(format!("{proc}/task")).map_or(0, Iterator::count);
    test_kill_process(pid).is_ok() && stat.is_ok_and(|stat| threads > 1 || !stat.contains(") Z "))
}

#[test]
fn after_sigkill_the_dead_mount_is_replaced_and_synced_data_is_there() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let contents = sample(9, 200_000);
    let path = bed.mnt.join("synced");
    std::fs::write(&path, &contents).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let pid = bed.pid();
    kill_process(pid, Signal::KILL).unwrap();
    wait_until("the end of the daemon", || !alive(pid));
    bed.mount("");
    assert_eq!(std::fs::read(&path).unwrap(), contents);
    let pid = bed.pid();
    kill_process(pid, Signal::KILL).unwrap();
    wait_until("the end of the daemon", || !alive(pid));
    bed.umount();
    assert!(!bed.is_mounted());
    assert_eq!(
        bed.check().status.code(),
        Some(exit::OK),
        "{}",
        text(&bed.check())
    );
}

#[test]
fn in_the_foreground_the_daemon_serves_until_sigint_and_notifies_the_service_manager() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let notify = bed.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(120)))
        .unwrap();
    let mut child = program()
        .args(["mount", "--foreground", "-o", "threads=1"])
        .arg(&bed.store)
        .arg(&bed.mnt)
        .env("NOTIFY_SOCKET", &notify)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let hear = || {
        let mut buffer = [0; 1024];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let says = |word: &str, message: String| message.lines().any(|line| line == word);
    while !says("READY=1", hear()) {}
    std::fs::write(bed.mnt.join("file"), "hello").unwrap();
    assert_eq!(bed.status(&bed.mnt)["pid"], child.id());
    kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!bed.is_mounted());
    while !says("STOPPING=1", hear()) {}
}

#[test]
fn a_failed_mount_leaves_no_daemon_and_no_new_directory() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let options = format!("log={}", bed.path("no/such/dir/log").display());
    assert_refused(&bed.try_mount(&options), exit::HELPER_FAILED, "log");
    assert!(!bed.store.exists());
    let options = format!("model={}", bed.path("no-model").display());
    assert_refused(&bed.try_mount(&options), exit::HELPER_FAILED, "no-model");
    assert!(!bed.is_mounted());
}

#[test]
fn the_daemon_logs_to_the_file_of_the_log_option() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let log = bed.path("daemon.log");
    bed.mount(&format!("log={}", log.display()));
    bed.umount();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("is unmounted and closed"), "{text}");
}
