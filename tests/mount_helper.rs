//! `mount.s2sfs` as mount(8) calls it: its flags, options and exit codes.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cli::*;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};

/// Exit codes of mount(8) that the other tests do not need.
const SYSTEM: i32 = 2;
const INTERNAL: i32 = 4;
const INTERRUPTED: i32 = 8;

fn call(bed: &Bed, arguments: &[&str]) -> Output {
    finish(helper().arg(&bed.store).arg(&bed.mnt).args(arguments))
}

/// The options of a mount as the kernel shows them.
fn shown(bed: &Bed) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mnt = bed.mnt.to_str().unwrap();
    let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(mnt));
    let options = line.unwrap().split(' ').nth(3).unwrap();
    options.split(',').map(str::to_owned).collect()
}

#[test]
fn all_unknown_options_are_named_with_hints_and_nothing_is_made() {
    let bed = Bed::new();
    let output = call(
        &bed,
        &["-o", "cahce=1M,ro,umask=022", "-o", "polcy=fast,nofail"],
    );
    let expected = "unknown options cahce=1M (did you mean cache?), umask=022, polcy=fast (did you mean policy?)";
    assert_refused(&output, exit::HELPER_USAGE, expected);
    let output = call(&bed, &["-o", "threads=0,extent=100K,foo"]);
    for words in [
        "option threads=0",
        "option extent=100K",
        "unknown option foo",
    ] {
        assert_refused(&output, exit::HELPER_USAGE, words);
    }
    assert!(!bed.store.exists());
}

#[test]
fn a_sloppy_mount_ignores_unknown_options_but_no_wrong_values() {
    let bed = Bed::new();
    let output = call(&bed, &["-s", "-o", "foo,cache=lots"]);
    assert_refused(&output, exit::HELPER_USAGE, "not a number");
    if !can_mount() {
        return;
    }
    let output = call(
        &bed,
        &["-s", "-o", "foo,threads=3,bar=x\\,y,settle_after=never"],
    );
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.status(&bed.mnt)["threads"], 3);
}

#[test]
fn a_fake_mount_checks_everything_and_changes_nothing() {
    let bed = Bed::new();
    let output = call(&bed, &["-f", "-v", "-o", "cache=1M,nofail"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("would be mounted"));
    assert_refused(&call(&bed, &["-f", "-o", "foo"]), exit::HELPER_USAGE, "foo");
    let remount = call(&bed, &["-f", "-o", "remount,ro"]);
    assert_refused(&remount, exit::HELPER_FAILED, "not mounted");
    let nowhere = finish(helper().arg("-f").arg(&bed.store).arg(bed.path("no")));
    assert_refused(&nowhere, exit::HELPER_FAILED, "mount point");
    std::fs::write(&bed.store, "a file").unwrap();
    assert_refused(&call(&bed, &["-f"]), exit::HELPER_FAILED, "not a directory");
    assert!(!bed.is_mounted());
}

#[test]
fn the_letters_of_mount_mean_what_they_mean_there() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    bed.umount();
    let output = call(
        &bed,
        &[
            "-n",
            "-v",
            "-r",
            "-t",
            "fuse.s2sfs",
            "-o",
            "rw,settle_after=never",
        ],
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("mounted at"));
    assert!(shown(&bed).contains(&"ro".into()));
    bed.umount();
    let output = call(&bed, &["-w", "-o", "ro,settle_after=never", "-t", "s2sfs"]);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{}",
        text(&output)
    );
    assert!(shown(&bed).contains(&"rw".into()));
    assert_refused(&call(&bed, &["-t", "ext4"]), exit::HELPER_USAGE, "s2sfs");
    assert_refused(&call(&bed, &["-z"]), exit::HELPER_USAGE, "-z");
    assert_refused(
        &finish(helper().arg(&bed.store)),
        exit::HELPER_USAGE,
        "MOUNTPOINT",
    );
}

#[test]
fn flags_reach_the_kernel_and_their_opposites_take_them_back() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("needs root: others may not mount with suid and dev");
        return;
    }
    let flags = ["noexec", "nosuid", "nodev", "sync", "noatime"];
    let bed = Bed::mounted("dirsync,noexec,nosuid,nodev,sync,noatime");
    for flag in flags.iter().chain(&["dirsync"]) {
        assert!(
            shown(&bed).contains(&flag.to_string()),
            "{flag}: {:?}",
            shown(&bed)
        );
    }
    bed.umount();
    bed.mount("noexec,nosuid,nodev,sync,noatime,exec,suid,dev,async,relatime");
    for flag in flags {
        assert!(
            !shown(&bed).contains(&flag.to_string()),
            "{flag}: {:?}",
            shown(&bed)
        );
    }
    bed.umount();
    bed.mount("user");
    for flag in ["noexec", "nosuid", "nodev"] {
        assert!(shown(&bed).contains(&flag.to_string()), "{flag}");
    }
    bed.umount();
    bed.mount("users,exec,allow_other,default_permissions");
    assert!(!shown(&bed).contains(&"noexec".into()));
    for flag in ["nosuid", "default_permissions", "allow_other"] {
        assert!(shown(&bed).contains(&flag.to_string()), "{flag}");
    }
    bed.umount();
    bed.mount("no_allow_other");
    assert!(!shown(&bed).contains(&"allow_other".into()));
}

#[test]
fn commas_may_be_in_every_path_and_are_escaped_in_options() {
    if !can_mount() {
        return;
    }
    let mut bed = Bed::new();
    bed.store = bed.path("sto,re");
    let place = bed.path("mn,t \"x\"");
    std::fs::create_dir(&place).unwrap();
    bed.mnt.clone_from(&place);
    for log in ["a\\,b.log", "\"a,b.log\""] {
        let mut call = helper();
        call.current_dir(bed.path("")).arg(&bed.store).arg(&bed.mnt);
        let output = finish(call.args(["-o", &format!("log={log},threads=3")]));
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(bed.status(&place)["threads"], 3);
        std::fs::write(place.join("f"), "x").unwrap();
        bed.umount();
        let log = std::fs::read_to_string(bed.path("a,b.log")).unwrap();
        assert!(log.contains("sto,re is unmounted and closed"), "{log}");
        std::fs::remove_file(bed.path("a,b.log")).unwrap();
    }
    assert_refused(
        &call(&bed, &["-o", "log=\"a,ro"]),
        exit::HELPER_USAGE,
        "not closed",
    );
}

/// A helper that waits, because somebody else has the store.
struct Waiting {
    child: std::process::Child,
    daemon: Pid,
    _lock: File,
}

fn waiting(bed: &Bed) -> Waiting {
    let lock = File::open(bed.store.join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let child = helper()
        .arg(&bed.store)
        .arg(&bed.mnt)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let tasks = format!("/proc/{0}/task/{0}/children", child.id());
    let daemon = || {
        let text = std::fs::read_to_string(&tasks).unwrap_or_default();
        text.split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
    };
    wait_until("the daemon's start", || {
        daemon().is_some_and(has_opened_signals)
    });
    Waiting {
        daemon: Pid::from_raw(daemon().unwrap()).unwrap(),
        child,
        _lock: lock,
    }
}

/// The daemon catches SIGTERM: it is past its start.
fn has_opened_signals(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let name = std::fs::read_link(format!("/proc/{pid}/exe"));
    name.is_ok() && mask.is_some_and(|mask| mask & (1 << (15 - 1)) != 0)
}

impl Waiting {
    fn end(mut self) -> (i32, String) {
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (self.child.wait().unwrap().code().unwrap(), text)
    }
}

#[test]
fn an_interrupted_mount_leaves_nothing_behind_and_a_killed_daemon_is_told_from_a_faulty_one() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    bed.umount();
    let interrupted = waiting(&bed);
    let daemon = interrupted.daemon;
    kill_process(Pid::from_child(&interrupted.child), Signal::INT).unwrap();
    assert_eq!(interrupted.end().0, INTERRUPTED);
    assert!(rustix::process::test_kill_process(daemon).is_err());
    assert!(!bed.is_mounted());

    // SIGSEGV from outside does not end the daemon at once: its runtime takes it for an overflow of the stack first.
    for (signal, code) in [(Signal::KILL, SYSTEM), (Signal::ABORT, INTERNAL)] {
        let killed = waiting(&bed);
        kill_process(killed.daemon, signal).unwrap();
        let (found, text) = killed.end();
        assert_eq!(found, code, "{text}");
        assert!(text.contains("before it was ready"), "{text}");
    }
    bed.mount("");
}

#[test]
fn a_system_without_open_files_is_the_systems_fault() {
    let bed = Bed::new();
    let script = "ulimit -n 4; exec -a mount.s2sfs \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_s2sfs")]);
    let output = finish(command.arg(&bed.store).arg(&bed.mnt));
    assert_refused(&output, SYSTEM, "cannot start the daemon");
    assert!(!bed.store.exists());
}

/// Runs a script with real mount(8) in a mount name space of its own, in which /sbin has the helper under
/// both of its names and nothing else. False where that is not possible.
fn with_mount(bed: &Bed, script: &str) -> bool {
    if !can_mount() {
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("needs root, for mount(8)");
        return false;
    }
    let sbin = bed.path("sbin");
    std::fs::create_dir(&sbin).unwrap();
    for name in ["mount.s2sfs", "mount.fuse.s2sfs"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_s2sfs"), sbin.join(name)).unwrap();
    }
    let prepared = format!(
        "set -e\nmount --bind '{}' \"$(readlink -f /sbin)\"\n\
         trap 's2sfs umount \"$MNT\" 2>/dev/null || true' EXIT\n{script}",
        sbin.display()
    );
    let program = Path::new(env!("CARGO_BIN_EXE_s2sfs")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = finish(
        Command::new("unshare")
            .args([
                "--mount",
                // The unmounts of other tests take effect there, too; else they would wait for its end.
                "--propagation",
                "slave",
                "bash",
                "-c",
                &prepared,
            ])
            .env("PATH", format!("{}:{path}", program.display()))
            .env("STORE", &bed.store)
            .env("MNT", &bed.mnt)
            .env("DIR", bed.path("")),
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(!bed.is_mounted());
    assert_eq!(bed.check().status.code(), Some(exit::OK));
    true
}

#[test]
fn mount_mounts_and_remounts_both_types() {
    with_mount(
        &Bed::new(),
        r#"
        for type in s2sfs fuse.s2sfs; do
            mount -v -t $type -o settle_after=never,noatime "$STORE" "$MNT"
            findmnt -n -o FSTYPE "$MNT" | grep -qx fuse.s2sfs
            findmnt -n -o OPTIONS "$MNT" | grep -q noatime
            echo hello > "$MNT/f"
            mount -o remount,ro "$MNT"
            ! touch "$MNT/f" 2>/dev/null
            mount -o remount,rw "$MNT"
            [ "$(cat "$MNT/f")" = hello ]
            umount "$MNT"
        done
        mount -r -t s2sfs "$STORE" "$MNT"
        findmnt -n -o OPTIONS "$MNT" | grep -q '^ro'
        umount "$MNT"
        # Refusals keep their codes on the way through mount(8).
        code=0; mount -t s2sfs -o foo,bar "$STORE" "$MNT" 2>"$DIR/err" || code=$?
        [ $code -eq 1 ] && grep -q 'unknown options foo, bar' "$DIR/err"
        code=0; mount -t s2sfs /proc/version "$MNT" 2>/dev/null || code=$?
        [ $code -eq 32 ]
        mount -s -t s2sfs -o foo "$STORE" "$MNT"
        mount -f -t s2sfs "$STORE" "$DIR"
        "#,
    );
}

#[test]
fn lines_of_fstab_are_mounted_by_their_mount_point() {
    with_mount(
        &Bed::new(),
        r#"
        mkdir "$DIR/a b"
        cat > "$DIR/fstab" <<END
$STORE $MNT s2sfs defaults,noauto,x-systemd.automount 0 0
$STORE $DIR/a\\040b s2sfs user,nofail,_netdev,comment=mine,settle_after=never,log=$DIR/x\\,y.log 0 0
END
        mount -T "$DIR/fstab" "$MNT"
        echo hello > "$MNT/f"
        umount "$MNT"
        # noauto: not with all the others. nofail and user, as fstab has them, are no trouble.
        mount -a -T "$DIR/fstab"
        ! mountpoint -q "$MNT"
        [ "$(cat "$DIR/a b/f")" = hello ]
        findmnt -n -o OPTIONS "$DIR/a b" | grep -q nosuid
        mount -T "$DIR/fstab" -o remount,ro "$DIR/a b"
        s2sfs umount "$DIR/a b"
        grep -q 'is unmounted and closed' "$DIR/x,y.log"
        mount -T "$DIR/fstab" "$MNT"
        "#,
    );
}

#[test]
fn the_mount_goes_into_the_name_space_that_it_is_asked_for() {
    with_mount(
        &Bed::new(),
        r#"
        unshare --mount --propagation private sleep 60 &
        other=$!
        until [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do sleep 0.01; done
        mount -N $other -t s2sfs -o settle_after=never "$STORE" "$MNT"
        ! mountpoint -q "$MNT"
        nsenter --mount=/proc/$other/ns/mnt sh -c 'echo hello > "$MNT/f"'
        [ ! -e "$MNT/f" ]
        nsenter --mount=/proc/$other/ns/mnt s2sfs umount "$MNT"
        kill $other
        code=0; mount.s2sfs -N /dev/null "$STORE" "$MNT" 2>/dev/null || code=$?
        [ $code -eq 1 ]
        mount -t s2sfs "$STORE" "$MNT"
        [ "$(cat "$MNT/f")" = hello ]
        "#,
    );
}
