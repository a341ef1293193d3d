//! `s2sfs top`, as text and on a terminal.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex};

use cli::*;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// What programs write that give the screen back as it was.
const LEAVE_SCREEN: &str = "\u{1b}[?1049l";

#[test]
fn once_prints_one_frame_of_plain_text() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    write_tree(&bed.mnt);
    bed.settle();
    for path in [&bed.mnt, &bed.store] {
        let output = s2sfs([
            "top".as_ref(),
            "--interval".as_ref(),
            "0.2".as_ref(),
            path.as_os_str(),
        ]);
        assert!(output.status.success(), "{}", text(&output));
        let shown = String::from_utf8(output.stdout).unwrap();
        for words in [
            bed.mnt.to_str().unwrap(),
            "traffic",
            "read ",
            "settled",
            "queue      0 extents",
            "cache ",
            "ratio ",
            "scrub ",
            "reclaim    idle",
            "0 EIO",
            "settle batch",
        ] {
            assert!(shown.contains(words), "{words} is not in\n{shown}");
        }
        assert!(!shown.contains('\u{1b}'));
    }
    let output = s2sfs([
        "top".as_ref(),
        "--interval".as_ref(),
        "0".as_ref(),
        bed.mnt.as_os_str(),
    ]);
    assert_refused(&output, exit::USAGE, "interval");
    bed.umount();
    for path in [&bed.mnt, &bed.store] {
        let output = s2sfs(["top".as_ref(), "--once".as_ref(), path.as_os_str()]);
        assert_refused(&output, exit::NOT_A_STORE, "no s2sfs is mounted here");
    }
}

/// `s2sfs top` on a terminal of its own.
struct Screen {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    fn open(bed: &Bed) -> Screen {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = || {
            let mut options = File::options();
            options.read(true).write(true);
            let path = name.to_str().unwrap();
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, 0o400)
                .open(path)
                .unwrap()
        };
        let terminal: OwnedFd = slave().into();
        resize(&terminal, 40, 110);
        let child = program()
            .args(["top", "--interval", "0.2"])
            .arg(&bed.mnt)
            .env("TERM", "xterm")
            .stdin(slave())
            .stdout(slave())
            .spawn()
            .unwrap();
        let keys = File::from(master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, all) = (keys.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut piece) {
                all.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        Screen {
            child,
            keys,
            terminal,
            shown,
        }
    }

    fn press(&mut self, key: &[u8]) {
        self.keys.write_all(key).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, words: &str) {
        wait_until(words, || self.text().contains(words));
    }

    /// Waits for the end, after which the terminal is as it was.
    fn assert_restored(&mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.text());
        self.wait_for(LEAVE_SCREEN);
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        assert!(
            modes.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO)
        );
    }
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn keys_work_and_the_terminal_is_given_back() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let mut screen = Screen::open(&bed);
    screen.wait_for("traffic");
    screen.press(b"?");
    screen.wait_for("Ctrl-C");
    screen.press(b"?p");
    screen.wait_for("PAUSED");
    screen.press(b"p");
    resize(&screen.terminal, 10, 40);
    kill_process(Pid::from_child(&screen.child), Signal::WINCH).unwrap();
    screen.press(b"q");
    screen.assert_restored();
}

#[test]
fn a_daemon_that_goes_away_is_reported_and_a_signal_gives_the_terminal_back() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let mut screen = Screen::open(&bed);
    screen.wait_for("traffic");
    kill(bed.pid());
    screen.wait_for("answer:");
    assert!(
        screen.child.try_wait().unwrap().is_none(),
        "{}",
        screen.text()
    );
    kill_process(Pid::from_child(&screen.child), Signal::TERM).unwrap();
    screen.assert_restored();
}

/// A daemon that does nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Stopped {
        kill_process(pid, Signal::STOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn a_daemon_that_hangs_is_reported_and_keys_still_work() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let mut screen = Screen::open(&bed);
    screen.wait_for("traffic");
    let stopped = Stopped::new(bed.pid());
    screen.wait_for("answer:");
    screen.press(b"q");
    screen.assert_restored();
    drop(stopped);
}
