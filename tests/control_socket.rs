//! The control socket with a service of the test's own, good and bad clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use s2sfs::control::client::{Client, ClientError};
use s2sfs::control::{
    AgainStatus, FileInfo, FileUsage, MAX_INODES, MetricsAddress, MetricsServer, ReloadReport,
    ScrubAction, ScrubOptions, ScrubState, ScrubStatus, Server, Service, ServiceError, Status,
    WhileHeld, store_socket,
};
use s2sfs::store::carry::StoreFile;

#[derive(Default)]
struct Fake {
    /// Requests about scrubbing so far.
    asked: AtomicU64,
    freezes: AtomicU64,
    /// The freeze that lasts, and its timeout.
    frozen: Mutex<Option<(u64, Duration)>>,
    /// How often the store was held and let go.
    let_go: AtomicU64,
    closing: AtomicBool,
}

impl Service for Fake {
    fn status(&self) -> Result<Status, ServiceError> {
        Ok(Status {
            uuid: "fake".into(),
            ..Status::default()
        })
    }

    fn reload(&self, options: Option<Vec<String>>) -> Result<ReloadReport, ServiceError> {
        Ok(ReloadReport {
            changed: options.unwrap_or_default(),
            kept: Vec::new(),
        })
    }

    fn settle(&self, progress: &dyn Fn(u64, u64)) -> Result<(), ServiceError> {
        progress(1, 2);
        progress(2, 2);
        Ok(())
    }

    fn settle_again(
        &self,
        inos: &[u64],
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<AgainStatus, ServiceError> {
        let total = inos.iter().sum();
        if let Some(progress) = progress {
            progress(1, total);
        }
        Ok(AgainStatus {
            total_bytes: total,
            ..AgainStatus::default()
        })
    }

    fn freeze(&self, timeout: Duration) -> Result<u64, ServiceError> {
        let number = self.freezes.fetch_add(1, Ordering::SeqCst) + 1;
        *self.frozen.lock().unwrap() = Some((number, timeout));
        Ok(number)
    }

    fn thaw(&self, number: Option<u64>) -> Result<(), ServiceError> {
        let mut frozen = self.frozen.lock().unwrap();
        match *frozen {
            Some((now, _)) if number.is_none_or(|number| number == now) => *frozen = None,
            _ => return Err(ServiceError::new("the file system is not frozen")),
        }
        Ok(())
    }

    fn scrub(
        &self,
        action: ScrubAction,
        options: ScrubOptions,
    ) -> Result<ScrubStatus, ServiceError> {
        let state = match (action, self.asked.fetch_add(1, Ordering::SeqCst)) {
            (ScrubAction::Start, _) | (ScrubAction::Status, 0..3) => ScrubState::Running,
            (ScrubAction::Pause, _) => ScrubState::Paused,
            _ => ScrubState::Idle,
        };
        Ok(ScrubStatus {
            state,
            fast: options.fast,
            rate: options.rate,
            ..ScrubStatus::default()
        })
    }

    fn reclaim(&self, progress: &dyn Fn(u64, u64)) -> Result<(u64, u64), ServiceError> {
        progress(1, 10);
        Ok((10, 3))
    }

    fn hold(&self, held: &mut WhileHeld<'_>) -> Result<(), ServiceError> {
        let file = StoreFile {
            path: "log/00000001.j".into(),
            len: 48,
        };
        held(&[file], &|| self.closing.load(Ordering::SeqCst));
        self.let_go.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn file_info(&self, ino: u64) -> Result<FileInfo, ServiceError> {
        match ino {
            7 => Ok(FileInfo {
                ino,
                size: 42,
                ..FileInfo::default()
            }),
            _ => Err(ServiceError {
                message: "no such file".into(),
                errno: Some(2),
            }),
        }
    }

    fn usage(&self, inos: &[u64]) -> Vec<FileUsage> {
        let usage = |&ino| FileUsage {
            ino,
            dirty_bytes: ino / 2,
            ..FileUsage::default()
        };
        inos.iter().map(usage).collect()
    }
}

fn serve(store: &Path) -> Server {
    Server::start(&store_socket(store), Arc::new(Fake::default())).unwrap()
}

#[test]
fn a_store_is_held_until_the_client_lets_go_is_gone_or_the_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let _server = Server::start(&store_socket(dir.path()), fake.clone()).unwrap();
    let hold = || Client::of_store(dir.path()).unwrap().hold().unwrap();
    let wait_for = |count| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while fake.let_go.load(Ordering::SeqCst) < count {
            assert!(std::time::Instant::now() < deadline, "it is still held");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let held = hold();
    assert_eq!(held.files()[0].path, "log/00000001.j");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(fake.let_go.load(Ordering::SeqCst), 0);
    held.release().unwrap();
    wait_for(1);
    drop(hold());
    wait_for(2);
    let held = hold();
    fake.closing.store(true, Ordering::SeqCst);
    wait_for(3);
    let error = held.release().unwrap_err().to_string();
    assert!(error.contains("is being unmounted"), "{error}");
}

#[test]
fn requests_are_answered_under_a_path_longer_than_a_socket_address() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("a".repeat(120)).join("b".repeat(120));
    std::fs::create_dir_all(&store).unwrap();
    let _server = serve(&store);
    let client = || Client::of_store(&store).unwrap();
    assert_eq!(client().status().unwrap().uuid, "fake");
    assert_eq!(client().info(7).unwrap().size, 42);
    match client().info(8) {
        Err(ClientError::Refused {
            message,
            errno: Some(2),
        }) => assert_eq!(message, "no such file"),
        other => panic!("{other:?}"),
    }
    let mut seen = Vec::new();
    client()
        .settle(|done, total| seen.push((done, total)))
        .unwrap();
    assert_eq!(seen.first(), Some(&(1, 2)));
}

#[test]
fn many_files_are_asked_about_at_once_but_not_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let ask = |count: usize| {
        let inos = (0..count as u64).map(|n| u64::MAX - n).collect();
        Client::of_store(dir.path()).unwrap().usage(inos)
    };
    let files = ask(MAX_INODES).unwrap();
    assert_eq!(files.len(), MAX_INODES);
    assert!(files.iter().all(|file| file.dirty_bytes == file.ino / 2));
    assert_eq!(ask(0).unwrap(), []);
    assert!(matches!(
        ask(MAX_INODES + 1),
        Err(ClientError::Refused { .. })
    ));
    assert!(ask(1 << 20).is_err());
    assert_eq!(ask(3).unwrap().len(), 3);
}

#[test]
fn whoever_waits_for_a_scrub_hears_of_it_until_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let client = || Client::of_store(dir.path()).unwrap();
    let options = ScrubOptions {
        fast: true,
        rate: Some(5),
    };
    let mut seen = 0;
    let end = client()
        .scrub_to_end(options, |now| {
            assert!(now.fast || seen > 0, "the options arrive");
            seen += 1;
        })
        .unwrap();
    assert_eq!((end.state, seen), (ScrubState::Idle, 3));
    let paused = client().scrub(ScrubAction::Pause, options).unwrap();
    assert_eq!((paused.state, paused.rate), (ScrubState::Paused, Some(5)));
    let old = talk(
        dir.path(),
        b"{\"request\":\"scrub\",\"action\":\"pause\"}\n",
    );
    assert!(old.contains("\"state\":\"paused\""), "{old}");

    let mut told = Vec::new();
    let (freed, copied) = client()
        .reclaim(|done, total| told.push((done, total)))
        .unwrap();
    assert_eq!((freed, copied, told), (10, 3, vec![(1, 10)]));
    server.stopping();
}

#[test]
fn nonsense_gets_an_error_and_does_not_disturb_others() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    for nonsense in ["\n", "{}\n", "{\"request\":\"explode\"}\n", "\u{1}\u{2}\n"] {
        assert!(
            talk(dir.path(), nonsense.as_bytes()).contains("bad request"),
            "{nonsense}"
        );
    }
    // Longer than any request: cut off, not read for ever.
    let _ = talk(dir.path(), &vec![b'x'; 1 << 20]);
    drop(UnixStream::connect(store_socket(dir.path())).unwrap());
    assert_eq!(
        Client::of_store(dir.path()).unwrap().status().unwrap().uuid,
        "fake"
    );
}

#[test]
fn a_freeze_ends_with_the_connection_that_holds_it_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Fake::default());
    let _server = Server::start(&store_socket(dir.path()), service.clone()).unwrap();
    let client = || Client::of_store(dir.path()).unwrap();
    let is_frozen = || service.frozen.lock().unwrap().is_some();
    let timeout = Duration::from_millis(2500);

    client().freeze(timeout).unwrap();
    assert_eq!(*service.frozen.lock().unwrap(), Some((1, timeout)));
    client().thaw().unwrap();
    assert!(client().thaw().is_err(), "there is nothing to thaw");

    let held = client().hold_freeze(timeout).unwrap();
    assert!(is_frozen());
    assert!(held.end().unwrap(), "it lasted to its end");
    assert!(!is_frozen());

    // As if the one who holds it were killed.
    drop(client().hold_freeze(timeout).unwrap());
    let deadline = Instant::now() + Duration::from_secs(60);
    while is_frozen() {
        assert!(Instant::now() < deadline, "nobody has thawed it");
        std::thread::sleep(Duration::from_millis(5));
    }

    let held = client().hold_freeze(timeout).unwrap();
    client().thaw().unwrap();
    client().freeze(timeout).unwrap();
    assert!(!held.end().unwrap(), "somebody else has ended it");
    assert!(is_frozen(), "the next one is somebody else's");
}

/// Sends a signal to every thread that serves a client.
fn disturb_clients(signal: rustix::process::Signal) {
    use rustix::process::{Pid, kill_process};
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        // The kernel gives a signal to the thread that was named, if that can take it.
        if name.trim_end() == "control-client" {
            let thread = task.file_name().to_str().unwrap().parse().unwrap();
            let _ = kill_process(Pid::from_raw(thread).unwrap(), signal);
        }
    }
}

#[test]
fn a_freeze_outlasts_signals_and_one_that_the_unmount_ends_has_not_lasted() {
    let dir = tempfile::tempdir().unwrap();
    let service = Arc::new(Fake::default());
    let server = Server::start(&store_socket(dir.path()), service.clone()).unwrap();
    let hold = || {
        let client = Client::of_store(dir.path()).unwrap();
        client.hold_freeze(Duration::from_secs(60)).unwrap()
    };
    let seen = Arc::new(AtomicBool::new(false));
    let signal = signal_hook::consts::SIGUSR1;
    signal_hook::flag::register(signal, seen.clone()).unwrap();
    let held = hold();
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        disturb_clients(rustix::process::Signal::USR1);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(seen.load(Ordering::SeqCst));
    assert!(service.frozen.lock().unwrap().is_some());
    assert!(held.end().unwrap(), "it lasted to its end");

    let held = hold();
    server.stopping();
    while service.frozen.lock().unwrap().is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!held.end().unwrap(), "the unmount has ended it");
}

#[test]
fn those_who_wait_for_the_end_and_leave_are_not_in_the_way_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    // More than may be connected at once: some are refused, as those before them are still seen off.
    for _ in 0..200 {
        if let Ok(waiter) = Client::of_store(dir.path()).unwrap().wait() {
            drop(waiter);
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while Client::of_store(dir.path()).unwrap().status().is_err() {
        assert!(Instant::now() < deadline, "nobody else is answered");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Who has only nothing more to say still hears of the end.
    let mut waiting = UnixStream::connect(store_socket(dir.path())).unwrap();
    waiting.write_all(b"{\"request\":\"wait\"}\n").unwrap();
    waiting.shutdown(std::net::Shutdown::Write).unwrap();
    let mut lines = BufReader::new(waiting).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"waiting\""));
    std::thread::sleep(Duration::from_millis(300));
    server.stopping();
    server.stopped(None);
    assert!(lines.next().unwrap().unwrap().contains("\"stopped\""));
}

#[test]
fn coding_again_is_waited_for_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let client = || Client::of_store(dir.path()).unwrap();
    let many: Vec<u64> = vec![u64::MAX >> 12; 2048];
    let mut told = Vec::new();
    let coded = client()
        .settle_again(&many, Some(&mut |done, total| told.push((done, total))))
        .unwrap();
    let total = many.iter().sum();
    assert_eq!(coded.unwrap().total_bytes, total);
    assert_eq!(told, [(1, total)]);
    assert_eq!(client().settle_again(&[5], None).unwrap(), None);
}

fn talk(store: &Path, message: &[u8]) -> String {
    let mut stream = UnixStream::connect(store_socket(store)).unwrap();
    let _ = stream.write_all(message);
    let mut answer = String::new();
    let _ = BufReader::new(stream).read_line(&mut answer);
    answer
}

#[test]
fn those_who_wait_hear_of_the_end_and_the_socket_is_gone_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let mut waiting = UnixStream::connect(store_socket(dir.path())).unwrap();
    waiting.write_all(b"{\"request\":\"wait\"}\n").unwrap();
    let mut lines = BufReader::new(waiting.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("\"waiting\""));
    server.stopping();
    assert!(!store_socket(dir.path()).exists());
    assert!(matches!(
        Client::of_store(dir.path()),
        Err(ClientError::Unreachable(_))
    ));
    server.stopped(Some("disk on fire".into()));
    assert!(lines.next().unwrap().unwrap().contains("disk on fire"));
    // The connection ends with the process, not before.
    waiting
        .set_read_timeout(Some(std::time::Duration::from_millis(100)))
        .unwrap();
    assert!(waiting.read(&mut [0; 1]).is_err());
}

#[test]
fn the_end_of_metrics_neither_waits_for_nor_removes_what_is_not_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("socket"), dir.path().join("other"));
    let start = || {
        let address = MetricsAddress::Unix(path.clone());
        MetricsServer::start(&address, Arc::new(Fake::default())).unwrap()
    };
    let end = |server: MetricsServer| {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(server);
            ended.send(()).unwrap();
        });
        end.recv_timeout(Duration::from_secs(10)).unwrap();
    };
    let server = start();
    let answers = UnixStream::connect(&path).unwrap();
    end(server);
    assert!(!path.exists());
    drop(answers);

    let server = start();
    let _another = UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    end(server);
    assert!(path.exists(), "that was of another daemon");
}

#[test]
fn only_the_owner_may_connect_and_a_stale_socket_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(store_socket(dir.path())).unwrap());
    let _server = serve(dir.path());
    let mode = std::fs::metadata(store_socket(dir.path()))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(Client::of_store(dir.path()).unwrap().status().is_ok());
}
