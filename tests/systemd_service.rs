//! The unit s2sfs@.service, run the way systemd runs it: this test is the service manager at the other
//! end of the notify socket.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cli::*;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use s2sfs::control::client::Client;

/// What the unit says, for the instance whose configuration has these variables.
struct Unit {
    text: String,
    variables: Vec<(&'static str, String)>,
}

impl Unit {
    fn of(bed: &Bed, options: &str) -> Unit {
        let path = format!("{}/systemd/s2sfs@.service", env!("CARGO_MANIFEST_DIR"));
        let programs = Path::new(env!("CARGO_BIN_EXE_s2sfs")).parent().unwrap();
        let text = fs::read_to_string(path).unwrap();
        Unit {
            text: text.replace("@BINDIR@", programs.to_str().unwrap()),
            variables: vec![
                ("${STORE}", bed.store.display().to_string()),
                ("${MNT}", bed.mnt.display().to_string()),
                ("${OPTIONS}", options.to_string()),
            ],
        }
    }

    fn value(&self, key: &str) -> &str {
        let line = self.text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name == key).then_some(value)
        });
        line.unwrap_or_else(|| panic!("no {key}= in the unit"))
    }

    /// The words of a command line, with variables in place.
    fn command(&self, key: &str) -> Vec<String> {
        let words = self.value(key).trim_start_matches('-').split_whitespace();
        words
            .map(|word| {
                let variable = self.variables.iter().find(|(name, _)| *name == word);
                assert!(variable.is_some() || !word.contains('$'), "{word}");
                variable.map_or(word, |(_, value)| value).to_owned()
            })
            .collect()
    }

    fn run(&self, key: &str) {
        let command = self.command(key);
        let output = finish(Command::new(&command[0]).args(&command[1..]));
        assert!(output.status.success(), "{key}: {}", text(&output));
    }
}

/// A message, and when it arrived.
type Heard = (Instant, String);

/// The main process of the unit, and what it has said.
struct Service {
    child: Child,
    socket: UnixDatagram,
    heard: Receiver<Heard>,
    said: Vec<String>,
    /// What would be in the journal.
    log: PathBuf,
}

const WATCHDOG: Duration = Duration::from_millis(600);
/// After so long a silence, nothing that was said is still on its way.
const SETTLED: Duration = Duration::from_millis(500);

impl Service {
    fn start(bed: &Bed, unit: &Unit) -> Service {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let place = bed.path(&format!("notify-{}", COUNT.fetch_add(1, Ordering::SeqCst)));
        let socket = UnixDatagram::bind(&place).unwrap();
        let heard = listen(socket.try_clone().unwrap());
        assert_eq!(unit.value("Type"), "notify");
        let child = Command::new("sh")
            // systemd says for whom the watchdog is.
            .args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"])
            .args(unit.command("ExecStart"))
            .env("NOTIFY_SOCKET", &place)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .stdin(Stdio::null())
            .stderr(File::create(place.with_extension("log")).unwrap())
            .spawn()
            .unwrap();
        Service {
            child,
            socket,
            heard,
            said: Vec::new(),
            log: place.with_extension("log"),
        }
    }

    fn ready(bed: &Bed, unit: &Unit) -> Service {
        let mut service = Service::start(bed, unit);
        service.wait_for("READY=1");
        service
    }

    /// The next message, if it arrives within `time`.
    fn hear(&mut self, time: Duration) -> Option<Heard> {
        let heard = self.heard.recv_timeout(time).ok()?;
        self.said.push(heard.1.clone());
        Some(heard)
    }

    /// The next message for which `wanted` holds.
    fn hear_of(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Heard {
        let deadline = Instant::now() + Duration::from_secs(120);
        while let Some(heard) = self.hear(deadline.saturating_duration_since(Instant::now())) {
            if wanted(&heard.1) {
                return heard;
            }
        }
        panic!("no {what} in {:?}", self.said);
    }

    /// The next message that has a line which begins with `what`.
    fn wait_for(&mut self, what: &str) -> Heard {
        self.hear_of(what, |message| {
            message.lines().any(|line| line.starts_with(what))
        })
    }

    /// Stops the process, and waits until nothing of it runs and all it has said is heard.
    fn freeze(&mut self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until("the stop of all threads", || {
            let mut tasks = fs::read_dir(&tasks).unwrap().flatten();
            tasks.all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(')')
                    .next()
                    .is_some_and(|rest| rest.starts_with(" T"))
            })
        });
        while self.hear(SETTLED).is_some() {}
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What systemd does to stop a unit.
    fn stop(mut self, bed: &Bed, unit: &Unit) -> (ExitStatus, Vec<String>) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            self.hear(Duration::from_millis(20));
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "the daemon does not end"),
            }
        };
        while self.hear(SETTLED).is_some() {}
        unit.run("ExecStopPost");
        assert!(!bed.is_mounted());
        self.said.push(fs::read_to_string(&self.log).unwrap());
        (status, std::mem::take(&mut self.said))
    }

    fn stop_well(self, bed: &Bed, unit: &Unit) {
        let (status, said) = self.stop(bed, unit);
        assert!(status.success(), "{status}: {said:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Hears what arrives at a socket in a thread, until the socket is shut down. Whoever sends never waits for the test: the
/// kernel keeps only a few messages that nobody has read.
fn listen(socket: UnixDatagram) -> Receiver<Heard> {
    let (sender, heard) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = socket.recv(&mut buffer) {
            let message = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if sender.send((Instant::now(), message)).is_err() {
                return;
            }
        }
    });
    heard
}

fn has(said: &[String], what: &str) -> bool {
    let mut lines = said.iter().flat_map(|message| message.lines());
    lines.any(|line| line.starts_with(what))
}

#[test]
fn the_service_is_ready_only_when_the_mount_answers() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    fs::write(bed.mnt.join("f"), "hello").unwrap();
    bed.umount();
    let unit = Unit::of(&bed, "threads=2,policy=fast");
    let lock = File::open(bed.store.join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut service = Service::start(&bed, &unit);
    assert_eq!(
        service.hear(Duration::from_millis(700)),
        None,
        "it said something too early"
    );
    assert!(!bed.is_mounted());
    drop(lock);
    service.wait_for("READY=1");
    // At this very moment, without any waiting.
    assert!(bed.is_mounted());
    assert_eq!(fs::read_to_string(bed.mnt.join("f")).unwrap(), "hello");
    let (_, status) = service.wait_for("STATUS=Mounted at");
    assert!(status.contains("ratio"), "{status}");
    let (status, said) = service.stop(&bed, &unit);
    assert!(status.success());
    assert!(has(&said, "STOPPING=1"), "{said:?}");
}

#[test]
fn a_service_that_cannot_mount_is_never_ready_and_fails() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    fs::create_dir(&bed.store).unwrap();
    fs::write(bed.store.join("letter"), "dear").unwrap();
    let unit = Unit::of(&bed, "defaults");
    let mut service = Service::start(&bed, &unit);
    let status = service.child.wait().unwrap();
    assert_eq!(status.code(), Some(exit::NOT_A_STORE));
    assert_eq!(service.hear(SETTLED), None);
}

#[test]
fn a_service_that_fails_leaves_the_mount_of_somebody_else_alone() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("policy=fast");
    fs::write(bed.mnt.join("f"), "hello").unwrap();
    let pid = bed.pid();
    let unit = Unit::of(&bed, "defaults");
    let mut service = Service::start(&bed, &unit);
    assert_eq!(service.child.wait().unwrap().code(), Some(exit::BUSY));
    unit.run("ExecStopPost");
    assert_eq!(fs::read_to_string(bed.mnt.join("f")).unwrap(), "hello");
    assert_eq!(bed.pid(), pid);
    // Once its daemon is gone, the mount is only in the way.
    kill(pid);
    unit.run("ExecStopPost");
    assert!(!bed.is_mounted());
    unit.run("ExecStopPost");
}

#[test]
fn a_mount_in_the_background_says_nothing_for_the_service_that_made_it() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let place = bed.path("notify");
    let socket = UnixDatagram::bind(&place).unwrap();
    let mut mount = helper();
    mount.arg(&bed.store).arg(&bed.mnt);
    mount
        .env("NOTIFY_SOCKET", &place)
        .env("WATCHDOG_USEC", "300000");
    let mounted = finish(&mut mount);
    assert!(mounted.status.success(), "{}", text(&mounted));
    std::thread::sleep(Duration::from_millis(500));
    bed.umount();
    socket.set_nonblocking(true).unwrap();
    let mut said = [0; 4096];
    let said = socket
        .recv(&mut said)
        .map(|len| String::from_utf8_lossy(&said[..len]).into_owned());
    assert!(said.is_err(), "{said:?}");
}

#[test]
fn the_watchdog_hears_of_a_mount_that_answers_and_not_of_a_daemon_that_is_stopped() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let unit = Unit::of(&bed, "settle_after=never,policy=fast");
    let mut service = Service::ready(&bed, &unit);
    let beats: Vec<Instant> = (0..8).map(|_| service.wait_for("WATCHDOG=1").0).collect();
    // Any one of them may be late where the machine is busy.
    let mut gaps: Vec<Duration> = beats.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable();
    assert!(gaps[gaps.len() / 2] < WATCHDOG, "{gaps:?}");
    service.freeze();
    assert_eq!(service.hear(2 * WATCHDOG), None);
    kill_process(service.pid(), Signal::CONT).unwrap();
    service.wait_for("WATCHDOG=1");
    service.stop_well(&bed, &unit);
}

#[test]
fn the_status_tells_how_settling_stands() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let unit = Unit::of(&bed, "settle_after=never,policy=fast");
    let mut service = Service::ready(&bed, &unit);
    fs::write(bed.mnt.join("f"), sample(1, 400_000)).unwrap();
    service.hear_of("waiting", |said| said.contains("KiB wait for settling"));
    bed.settle();
    service.hear_of("end of settling", |said| said.contains(", settled"));
    service.stop_well(&bed, &unit);
}

#[test]
fn a_reload_by_the_units_command_changes_options_and_tells_when_it_is_done() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let unit = Unit::of(&bed, "cache=32M");
    let mut service = Service::ready(&bed, &unit);
    let limit = || {
        bed.status(&bed.mnt)["cache"]["limit_bytes"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(limit(), 32 << 20);
    // The administrator changes the configuration: systemd reads it again for ExecReload=.
    let changed = Unit::of(&bed, "cache=48M");
    let reload = changed.command("ExecReload");
    let output = finish(Command::new(&reload[0]).args(&reload[1..]));
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(limit(), 48 << 20);
    let (_, reloading) = service.wait_for("RELOADING=1");
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    service.wait_for("READY=1");

    let wrong = Unit::of(&bed, "cahce=1M").command("ExecReload");
    let output = finish(Command::new(&wrong[0]).args(&wrong[1..]));
    assert_refused(&output, exit::USAGE, "did you mean cache?");
    service.wait_for("READY=1");
    assert_eq!(limit(), 48 << 20);
    service.stop_well(&bed, &unit);
}

#[test]
fn a_reload_while_the_service_stops_does_not_make_it_ready_again() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let unit = Unit::of(&bed, "policy=fast");
    let mut service = Service::ready(&bed, &unit);
    // The stop waits some seconds for it.
    let open = File::open(&bed.mnt).unwrap();
    kill_process(service.pid(), Signal::TERM).unwrap();
    service.wait_for("STOPPING=1");
    let client = Client::of_store(&bed.store).unwrap();
    client.reload(None).unwrap();
    drop(open);
    let before = service.said.len();
    let (status, said) = service.stop(&bed, &unit);
    assert!(status.success(), "{status}: {said:?}");
    let after = &said[before..];
    assert!(
        !has(after, "READY=1") && !has(after, "RELOADING=1"),
        "{said:?}"
    );
}

#[test]
fn what_was_written_is_there_after_a_restart_of_the_service() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let unit = Unit::of(&bed, "threads=2,policy=fast");
    let service = Service::ready(&bed, &unit);
    let files = write_tree(&bed.mnt);
    service.stop_well(&bed, &unit);
    let service = Service::ready(&bed, &unit);
    assert_tree(&bed.mnt, &files);
    // A crash: systemd starts the unit again after ExecStopPost=.
    kill_process(service.pid(), Signal::KILL).unwrap();
    assert!(!service.stop(&bed, &unit).0.success());
    let service = Service::ready(&bed, &unit);
    assert_tree(&bed.mnt, &files);
    service.stop_well(&bed, &unit);
    assert_eq!(bed.check().status.code(), Some(exit::OK));
}

/// Writes and closes files until that fails, below a directory that stays reachable after a lazy unmount.
/// Returns the numbers of those that were closed without an error.
fn write_until_refused(dir: &File, writer: u64, closed: &AtomicU64) -> Vec<u64> {
    let mut kept = Vec::new();
    for number in (writer * 1_000_000).. {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let name = format!("f{number}");
        let Ok(fd) = rustix::fs::openat(dir, &name, flags, Mode::from_raw_mode(0o644)) else {
            return kept;
        };
        let mut file = File::from(fd);
        if file.write_all(&contents(number)).is_err() {
            return kept;
        }
        drop(file);
        // Dropping swallows what closing says. But a daemon that answers this, which the kernel never answers
        // from memory, had not closed the store when the file was closed.
        if rustix::fs::fstatfs(dir).is_err() {
            return kept;
        }
        kept.push(number);
        closed.fetch_add(1, Ordering::SeqCst);
        // The stop takes seconds while the directory is open; all that is written then is read again.
        std::thread::sleep(Duration::from_millis(5));
    }
    kept
}

fn contents(number: u64) -> Vec<u8> {
    sample(number, 500 + (number % 7) as usize * 4_000)
}

#[test]
fn a_stop_under_load_loses_nothing_that_was_written_and_closed() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let unit = Unit::of(&bed, "settle_after=never,threads=2,dirty=4M");
    let service = Service::ready(&bed, &unit);
    let dir = File::open(&bed.mnt).unwrap();
    let closed = AtomicU64::new(0);
    let (kept, status, said) = std::thread::scope(|scope| {
        let (dir, closed) = (&dir, &closed);
        let writers: Vec<_> = (0..3)
            .map(|writer| scope.spawn(move || write_until_refused(dir, writer, closed)))
            .collect();
        wait_until("some load", || closed.load(Ordering::SeqCst) >= 150);
        let (status, said) = service.stop(&bed, &unit);
        let kept = writers.into_iter().flat_map(|w| w.join().unwrap());
        (kept.collect::<Vec<u64>>(), status, said)
    });
    drop(dir);
    assert!(status.success(), "{status}");
    assert!(has(&said, "STOPPING=1"), "{said:?}");
    assert!(has(&said, "EXTEND_TIMEOUT_USEC="), "{said:?}");
    let service = Service::ready(&bed, &unit);
    for number in &kept {
        let found = fs::read(bed.mnt.join(format!("f{number}"))).unwrap();
        assert!(
            found == contents(*number),
            "file {number} has other contents"
        );
    }
    service.stop_well(&bed, &unit);
    assert_eq!(
        bed.check().status.code(),
        Some(exit::OK),
        "{}",
        text(&bed.check())
    );
}
