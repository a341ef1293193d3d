//! freeze, thaw, policy and settle --again as a user sees them, on a mount.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use cli::*;
use rustix::process::{Signal, kill_process};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

fn run<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> std::process::Output {
    s2sfs(words)
}

fn ok<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> String {
    let output = run(words);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn word(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn is_frozen(bed: &Bed) -> bool {
    !bed.status(&bed.mnt)["frozen"].is_null()
}

/// Ends a freeze when it is dropped, so that a failing test does not wait for those who are held up.
struct Thaw<'a>(&'a Bed);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        run([word("thaw"), self.0.mnt.as_os_str()]);
    }
}

#[test]
fn more_writers_than_the_daemon_has_threads_are_held_up_and_readers_are_not() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    // The kernel keeps a directory locked in which somebody waits to make a name.
    let busy = bed.mnt.join("busy");
    std::fs::create_dir(&busy).unwrap();
    ok([word("freeze"), bed.mnt.as_os_str()]);
    let finished = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let _thaw = Thaw(&bed);
        for i in 0..24 {
            let (busy, finished) = (&busy, &finished);
            scope.spawn(move || {
                let path = busy.join(format!("new {i}"));
                match i % 3 {
                    0 => std::fs::create_dir(&path).unwrap(),
                    _ => std::fs::write(&path, sample(i, 50_000)).unwrap(),
                }
                finished.fetch_add(1, SeqCst);
            });
        }
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            assert_tree(&bed.mnt, &files);
            for (path, _) in &files {
                // Never answered from what the kernel remembers.
                let mut value = [0; 64];
                rustix::fs::getxattr(bed.mnt.join(path), "user.s2sfs.codec", &mut value[..])
                    .unwrap();
                let open = std::fs::File::open(bed.mnt.join(path)).unwrap();
                open.sync_all().unwrap();
            }
            std::fs::read_dir(&bed.mnt).unwrap().for_each(drop);
        }
        assert_eq!(finished.load(SeqCst), 0);
        let shown = bed.status(&bed.mnt);
        assert!(shown["frozen"]["seconds_left"].as_f64().unwrap() > 200.0);
        let again = run([word("freeze"), bed.mnt.as_os_str()]);
        assert_refused(&again, exit::BUSY, "frozen already");
        let settle = run([word("settle"), bed.mnt.as_os_str()]);
        assert_refused(&settle, exit::FAILED, "frozen");
        ok([word("thaw"), bed.mnt.as_os_str()]);
    });
    assert_eq!(finished.load(SeqCst), 24);
    let thaw = run([word("thaw"), bed.mnt.as_os_str()]);
    assert_refused(&thaw, exit::FAILED, "not frozen");
    assert!(std::fs::read(busy.join("new 1")).unwrap() == sample(1, 50_000));
    bed.umount();
    assert_eq!(bed.check().status.code(), Some(exit::OK));
}

#[test]
fn a_copy_that_is_made_while_frozen_mounts_and_the_command_is_told_apart_from_its_failures() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    let copy = bed.path("copy");
    ok([
        word("freeze"),
        bed.mnt.as_os_str(),
        word("--"),
        word("cp"),
        word("-a"),
        bed.store.as_os_str(),
        copy.as_os_str(),
    ]);
    assert!(!is_frozen(&bed));
    std::fs::write(bed.mnt.join("later"), "not in the copy").unwrap();
    let other = Bed::on(&copy);
    other.mount("");
    assert_tree(&other.mnt, &files);
    assert!(!other.mnt.join("later").exists());
    other.umount();
    assert_eq!(other.check().status.code(), Some(exit::OK));

    let point = bed.mnt.as_os_str();
    let failed = run([word("freeze"), point, word("--"), word("false")]);
    assert_refused(&failed, exit::FAILED, "false: exit status: 1");
    assert!(!is_frozen(&bed));
    let missing = run([word("freeze"), point, word("--"), word("/no/such/program")]);
    assert_refused(&missing, exit::FAILED, "/no/such/program");
    assert!(!is_frozen(&bed));
    let late = run([
        word("freeze"),
        point,
        word("--timeout=200ms"),
        word("--"),
        word("sleep"),
        word("3"),
    ]);
    assert_refused(&late, exit::FAILED, "may not be of one moment");
    let wrong = run([word("freeze"), point, word("--timeout=0")]);
    assert_refused(&wrong, exit::USAGE, "no time at all");

    // Killed in the middle, without a chance to thaw.
    let mut held = program()
        .args([word("freeze"), point, word("--"), word("sleep"), word("30")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the freeze", || is_frozen(&bed));
    held.kill().unwrap();
    held.wait().unwrap();
    wait_until("the thaw", || !is_frozen(&bed));
}

#[test]
fn the_end_of_the_daemon_ends_a_freeze() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    ok([word("freeze"), bed.mnt.as_os_str()]);
    // Nothing is open: an ordinary unmount.
    bed.umount();
    bed.mount("");
    assert_tree(&bed.mnt, &files);
    ok([word("freeze"), bed.mnt.as_os_str()]);
    let pid = bed.pid();
    std::thread::scope(|scope| {
        let _thaw = Thaw(&bed);
        for i in 0..12 {
            let mnt = &bed.mnt;
            // Held up, and answered one way or the other.
            scope.spawn(move || std::fs::write(mnt.join(format!("held {i}")), "x"));
        }
        std::thread::sleep(Duration::from_millis(200));
        kill_process(pid, Signal::TERM).unwrap();
        wait_until("the unmount", || !bed.is_mounted());
    });
    bed.mount("");
    assert_tree(&bed.mnt, &files);
    bed.umount();
    assert_eq!(bed.check().status.code(), Some(exit::OK));
}

fn policies(arguments: &[&OsStr]) -> Vec<(String, Option<String>, String)> {
    let words = [word("policy"), word("--json")];
    let shown = ok(words.into_iter().chain(arguments.iter().copied()));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let rows = shown.as_array().unwrap().iter();
    rows.map(|row| {
        let path = text(&row["path"]).unwrap();
        (path, text(&row["own"]), text(&row["effective"]).unwrap())
    })
    .collect()
}

#[test]
fn policies_are_set_shown_listed_and_taken_away() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("policy=fast");
    write_tree(&bed.mnt);
    let (dir, file) = (bed.mnt.join("d1"), bed.mnt.join("d1/file 1.txt"));
    let show = |path: &Path| policies(&[path.as_os_str()])[0].clone();
    assert_eq!(show(&file).2, "fast");
    ok([word("policy"), word("--set=ratio"), dir.as_os_str()]);
    ok([word("policy"), word("--set=off"), file.as_os_str()]);
    assert_eq!(
        (show(&dir).1.as_deref(), show(&dir).2.as_str()),
        (Some("ratio"), "ratio")
    );
    assert_eq!(show(&file).1.as_deref(), Some("off"));
    let all = policies(&[word("-R"), bed.mnt.as_os_str()]);
    let paths: Vec<&str> = all.iter().map(|(path, ..)| path.as_str()).collect();
    let expected = [&bed.mnt, &dir, &file].map(|path| path.to_str().unwrap());
    assert_eq!(paths, expected);
    let table = ok([word("policy"), file.as_os_str()]);
    assert!(table.contains("off        off"), "{table}");
    // As any other program sees and copies it.
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(&dir, "user.s2sfs.policy", &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"ratio");
    ok([
        word("policy"),
        word("--unset"),
        file.as_os_str(),
        dir.as_os_str(),
    ]);
    ok([word("policy"), word("--unset"), file.as_os_str()]);
    assert_eq!((show(&file).1, show(&file).2.as_str()), (None, "fast"));

    let wrong = run([word("policy"), word("--set=best"), dir.as_os_str()]);
    assert_refused(&wrong, exit::USAGE, "ratio, balanced, fast or off");
    let elsewhere = bed.path("elsewhere");
    std::fs::write(&elsewhere, "x").unwrap();
    let wrong = run([word("policy"), word("--set=off"), elsewhere.as_os_str()]);
    assert_refused(&wrong, exit::NOT_A_STORE, "s2sfs mount");
}

#[test]
fn what_cannot_be_read_does_not_end_a_listing_of_policies() {
    const STRANGER: u32 = 65_432;
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("needs root to become somebody else");
    }
    let bed = Bed::mounted("");
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    open(&bed.path(""), 0o755);
    open(&bed.mnt, 0o755);
    for name in ["a\u{1b}[31m", "closed", "z"] {
        let dir = bed.mnt.join(name);
        std::fs::create_dir(&dir).unwrap();
        open(&dir, if name == "closed" { 0o700 } else { 0o755 });
        ok([word("policy"), word("--set=ratio"), dir.as_os_str()]);
    }
    // The program where everybody may run it.
    let program = bed.path("s2sfs");
    std::fs::copy(env!("CARGO_BIN_EXE_s2sfs"), &program).unwrap();
    let mut command = std::process::Command::new(&program);
    command.uid(STRANGER).gid(STRANGER).args(["policy", "-R"]);
    let output = finish(command.arg(&bed.mnt));
    assert_refused(&output, exit::FAILED, "closed: Permission denied");
    assert_refused(
        &output,
        exit::FAILED,
        "one file or directory was not looked at",
    );
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains("/a?[31m\n") && shown.contains("/z\n"),
        "{shown}"
    );
}

#[test]
fn settled_data_is_coded_again_and_what_it_gains_is_said() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("policy=fast,verify=sample,idle=1ms");
    let files = write_tree(&bed.mnt);
    bed.settle();
    let codecs = |bed: &Bed| {
        let status = bed.status(&bed.mnt);
        let codecs = status["codecs"].as_object().unwrap().keys();
        codecs.cloned().collect::<Vec<_>>()
    };
    assert_eq!(codecs(&bed), ["zstd"]);
    ok([word("policy"), word("--set=off"), bed.mnt.as_os_str()]);
    let point = bed.mnt.as_os_str();
    let done = ok([word("settle"), word("--again"), word("--json"), point]);
    let done: serde_json::Value = serde_json::from_str(&done).unwrap();
    let total: usize = files.iter().map(|(_, contents)| contents.len()).sum();
    assert_eq!(done["total_bytes"], total);
    assert_eq!(done["done_bytes"], total);
    assert!(done["after_bytes"].as_u64().unwrap() > done["before_bytes"].as_u64().unwrap());
    assert!(!codecs(&bed).contains(&"zstd".to_owned()));
    assert_tree(&bed.mnt, &files);
    ok([word("policy"), word("--unset"), point]);
    let inside = bed.mnt.join("d0");
    let said = ok([word("settle"), word("--again"), inside.as_os_str()]);
    assert!(said.contains("coded again"), "{said}");
    ok([word("settle"), word("--again"), word("--no-wait"), point]);
    wait_until("coding again", || bed.status(&bed.mnt)["again"].is_null());
    assert_tree(&bed.mnt, &files);
    let wrong = run([word("settle"), word("--again"), bed.store.as_os_str()]);
    assert_refused(&wrong, exit::NOT_A_STORE, "s2sfs mount");
    bed.umount();
    assert_eq!(bed.check().status.code(), Some(exit::OK));
}
