//! The control socket with a service of the test's own, good and bad clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use s2sfs::control::client::{Client, ClientError};
use s2sfs::control::{
    FileInfo, ReloadReport, ScrubAction, ScrubOptions, ScrubState, ScrubStatus, Server, Service,
    ServiceError, Status, store_socket,
};

#[derive(Default)]
struct Fake {
    /// Requests about scrubbing so far.
    asked: AtomicU64,
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
}

fn serve(store: &Path) -> Server {
    Server::start(&store_socket(store), Arc::new(Fake::default())).unwrap()
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
