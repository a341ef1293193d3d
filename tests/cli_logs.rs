//! What the daemon logs, where, and how much.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use cli::*;
use rustix::process::{Pid, Signal, kill_process};

/// Mounts in the foreground and unmounts again; returns what came on standard error. `journal` says that
/// it is the journal's.
fn foreground(options: &str, journal: bool) -> String {
    let bed = Bed::new();
    let path = bed.path("stderr");
    let stderr = File::create(&path).unwrap();
    let meta = stderr.metadata().unwrap();
    let mut command = program();
    command
        .args(["mount", "--foreground", "-o", options])
        .arg(&bed.store)
        .arg(&bed.mnt);
    // Of another file, as when a service redirects its standard error.
    let inode = meta.ino() + u64::from(!journal);
    command.env("JOURNAL_STREAM", format!("{}:{inode}", meta.dev()));
    let mut child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
    wait_until("mount", || bed.is_mounted());
    wait_until("answer", || std::fs::read_dir(&bed.mnt).is_ok());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn lines_carry_their_priority_where_the_journal_reads_them() {
    if !can_mount() {
        return;
    }
    if std::path::Path::new("/run/systemd/journal/socket").exists() {
        return skipped("here the messages go to the journal itself");
    }
    let shown = foreground("threads=1", true);
    assert!(
        shown.contains("<6>") && shown.contains("is mounted at"),
        "{shown}"
    );
    assert!(shown.lines().all(|line| line.starts_with('<')), "{shown}");
    let plain = foreground("threads=1", false);
    assert!(
        plain.contains("s2sfs: ") && !plain.contains("<6>"),
        "{plain}"
    );
}

#[test]
fn the_option_sets_the_level() {
    if !can_mount() {
        return;
    }
    assert_eq!(foreground("threads=1,log_level=off", true), "");
    let bed = Bed::new();
    let log = bed.path("log");
    for (level, lines) in [("error", false), ("info", true), ("debug", true)] {
        bed.mount(&format!("log={},log_level={level}", log.display()));
        bed.umount();
        wait_until("the end of the daemon", || !bed.is_mounted());
        let shown = std::fs::read_to_string(&log).unwrap();
        assert_eq!(shown.contains("is mounted at"), lines, "{level}: {shown}");
    }
    let output = bed.try_mount("log_level=loud");
    assert_refused(&output, exit::HELPER_USAGE, "debug or trace");
}
