//! The daemon's end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::protocol::{MAX_REQUEST, Reply, Request};
use super::{MAX_INODES, ScrubAction, ScrubOptions, ScrubStatus, Service, ServiceError, socket};

/// More connections than this at once are dropped.
const MAX_CONNECTIONS: usize = 64;
/// A client that sends or takes nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How soon it is seen that a client which waits for something or holds something is gone, or that what it holds ends.
const CLIENT_INTERVAL: Duration = Duration::from_millis(100);
/// How often a client that waits for a scrub hears of it.
const SCRUB_INTERVAL: Duration = Duration::from_millis(200);

/// Where the daemon is in its life.
enum Phase {
    Running(Arc<dyn Service>),
    Stopping,
    Stopped { error: Option<String> },
}

struct Shared {
    phase: Mutex<Phase>,
    changed: Condvar,
    connections: AtomicUsize,
}

impl Shared {
    /// Who answers, until the volume is being closed.
    fn service(&self) -> Option<Arc<dyn Service>> {
        match &*self.phase.lock() {
            Phase::Running(service) => Some(service.clone()),
            Phase::Stopping | Phase::Stopped { .. } => None,
        }
    }
}

/// Answers requests until the process ends.
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Server {
    /// Binds the socket at `path` and starts to answer for `service`.
    pub fn start(path: &Path, service: Arc<dyn Service>) -> io::Result<Server> {
        let listener = socket::bind(path)?;
        let shared = Arc::new(Shared {
            phase: Mutex::new(Phase::Running(service)),
            changed: Condvar::new(),
            connections: AtomicUsize::new(0),
        });
        let for_thread = shared.clone();
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept_loop(&listener, &for_thread))?;
        Ok(Server {
            shared,
            path: path.to_owned(),
        })
    }

    /// Refuses new requests and removes the socket. To be called while the store's lock is held, so
    /// that the socket of a daemon that comes after us cannot be hit.
    pub fn stopping(&self) {
        *self.shared.phase.lock() = Phase::Stopping;
        if let Err(e) = std::fs::remove_file(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {e}", self.path.display());
        }
    }

    /// Tells those who wait that the volume is closed. Connections stay open until the process ends.
    pub fn stopped(&self, error: Option<String>) {
        *self.shared.phase.lock() = Phase::Stopped { error };
        self.shared.changed.notify_all();
        // The waiters' threads write one line each; give them the time for it.
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.shared.connections.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn accept_loop(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                log::warn!("control socket: {e}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if shared.connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let for_thread = shared.clone();
        let spawned = std::thread::Builder::new()
            .name("control-client".into())
            .spawn(move || {
                if let Err(e) = serve(&stream, &for_thread) {
                    log::debug!("control client: {e}");
                }
                for_thread.connections.fetch_sub(1, Ordering::AcqRel);
                if matches!(*for_thread.phase.lock(), Phase::Stopped { .. }) {
                    // Its end shall be the end of the process.
                    std::mem::forget(stream);
                }
            });
        if let Err(e) = spawned {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            log::warn!("control socket: {e}");
        }
    }
}

fn serve(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(e) => {
            return send(
                stream,
                &error(ServiceError::new(format!("bad request: {e}"))),
            );
        }
    };
    match (shared.service(), request) {
        (Some(service), request) => respond(stream, shared, &*service, request),
        (None, Request::Wait) => wait_until_stopped(stream, shared),
        (None, _) => send(stream, &unmounted("")),
    }
}

fn respond(
    stream: &UnixStream,
    shared: &Shared,
    service: &dyn Service,
    request: Request,
) -> io::Result<()> {
    let progress = progress_sender(stream);
    let reply = match request {
        Request::Wait => return wait_until_stopped(stream, shared),
        Request::Hold => return hold(stream, shared, service),
        Request::Freeze {
            timeout_ms,
            hold: true,
        } => return hold_freeze(stream, shared, service, Duration::from_millis(timeout_ms)),
        Request::Scrub {
            action,
            options,
            wait,
        } => match service.scrub(action, options) {
            Ok(now) if wait => return follow_scrub(stream, shared, service, now),
            now => now.map(scrubbing),
        },
        Request::Freeze { timeout_ms, .. } => {
            let frozen = service.freeze(Duration::from_millis(timeout_ms));
            frozen.map(|_| Reply::Frozen)
        }
        Request::Thaw => service.thaw(None).map(|()| Reply::Done),
        Request::Status => service.status().map(|status| Reply::Status {
            status: Box::new(status),
        }),
        Request::Info { ino } => service.file_info(ino).map(|info| Reply::Info {
            info: Box::new(info),
        }),
        Request::Usage { inos } => usage(service, &inos),
        Request::Settle => service.settle(&progress).map(|()| Reply::Done),
        Request::Again { inos, wait: false } => {
            let begun = service.settle_again(&inos, None);
            begun.map(|_| Reply::Done)
        }
        Request::Again { inos, wait: true } => {
            let coded = service.settle_again(&inos, Some(&progress));
            coded.map(|coded| Reply::Coded {
                coded: Box::new(coded),
            })
        }
        Request::Reclaim => {
            let reclaimed = service.reclaim(&progress);
            reclaimed.map(|(freed, copied)| Reply::Reclaimed { freed, copied })
        }
        Request::Reload { options } => {
            let report = service.reload(options);
            report.map(|report| Reply::Reloaded { report })
        }
    };
    send(stream, &reply.unwrap_or_else(error))
}

fn usage(service: &dyn Service, inos: &[u64]) -> Result<Reply, ServiceError> {
    if inos.len() > MAX_INODES {
        let why = format!("more than {MAX_INODES} inodes in one request");
        return Err(ServiceError::new(why));
    }
    Ok(Reply::Usage {
        files: service.usage(inos),
    })
}

/// Freezes for as long as the client stays.
fn hold_freeze(
    stream: &UnixStream,
    shared: &Shared,
    service: &dyn Service,
    timeout: Duration,
) -> io::Result<()> {
    let number = match service.freeze(timeout) {
        Ok(number) => number,
        Err(e) => return send(stream, &error(e)),
    };
    let ended = send(stream, &Reply::Frozen)
        .and_then(|()| wait_for_client(stream, shared, &|| false))
        .inspect_err(|e| log::debug!("whoever has frozen the file system is gone: {e}"));
    let by_client = matches!(ended, Ok(Client::Said | Client::Left));
    let early = service.thaw(Some(number)).is_err() || !by_client;
    send(stream, &Reply::Thawed { early })
}

/// Holds the files of the store for a client, until it says that it is done, is gone, or the volume is closed.
fn hold(stream: &UnixStream, shared: &Shared, service: &dyn Service) -> io::Result<()> {
    let mut outcome = Ok(());
    let held = service.hold(&mut |files, ends| {
        let held = Reply::Held {
            files: files.to_vec(),
        };
        outcome = send(stream, &held).and_then(|()| match wait_for_client(stream, shared, ends)? {
            Client::Said => send(stream, &Reply::Done),
            Client::Left => Ok(()),
            Client::Unmounted => send(stream, &unmounted("")),
        });
    });
    match held {
        Ok(()) => outcome,
        Err(e) => send(stream, &error(e)),
    }
}

/// Why a client need not be waited for any more.
enum Client {
    Said,
    /// It has at least nothing more to say.
    Left,
    Unmounted,
}

/// Waits until the client says something, or leaves, or the volume is being unmounted or closed: `over` knows of it first.
fn wait_for_client(
    mut stream: &UnixStream,
    shared: &Shared,
    over: &dyn Fn() -> bool,
) -> io::Result<Client> {
    stream.set_read_timeout(Some(CLIENT_INTERVAL))?;
    while shared.service().is_some() && !over() {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return Ok(Client::Left),
            Ok(_) => return Ok(Client::Said),
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Client::Unmounted)
}

/// A signal for the process may end a wait early, too.
fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Tells how a scrub goes until none is under way, the client is gone, or the volume is closed.
fn follow_scrub(
    stream: &UnixStream,
    shared: &Shared,
    service: &dyn Service,
    mut now: ScrubStatus,
) -> io::Result<()> {
    loop {
        let over = !now.is_active();
        send(stream, &scrubbing(now))?;
        if over {
            return Ok(());
        }
        std::thread::sleep(SCRUB_INTERVAL);
        if shared.service().is_none() {
            return send(stream, &unmounted("; the scrub goes on at the next mount"));
        }
        now = match service.scrub(ScrubAction::Status, ScrubOptions::default()) {
            Ok(now) => now,
            Err(e) => return send(stream, &error(e)),
        };
    }
}

/// Tells the client when the volume is closed, if it stays for that.
fn wait_until_stopped(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let pid = std::process::id();
    send(stream, &Reply::Waiting { pid })?;
    let mut phase = shared.phase.lock();
    while !has_left(stream)? {
        if let Phase::Stopped { error } = &*phase {
            let error = error.clone();
            drop(phase);
            return send(stream, &Reply::Stopped { error });
        }
        shared.changed.wait_for(&mut phase, CLIENT_INTERVAL);
    }
    Ok(())
}

/// Whether the other end is closed; not if it has only nothing more to say.
fn has_left(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    match rustix::event::poll(&mut fds, Some(&Timespec::default())) {
        Err(Errno::INTR) => Ok(false),
        ready => Ok(ready? > 0),
    }
}

/// Reports progress at a bounded rate. A client that went away does not stop the settling.
fn progress_sender(stream: &UnixStream) -> impl Fn(u64, u64) {
    let next = Mutex::new(Some(Instant::now()));
    move |done, total| {
        let mut next = next.lock();
        if next.is_some_and(|at| at <= Instant::now()) {
            let sent = send(stream, &Reply::Progress { done, total });
            *next = sent.ok().map(|()| Instant::now() + PROGRESS_INTERVAL);
        }
    }
}

fn scrubbing(now: ScrubStatus) -> Reply {
    Reply::Scrub {
        scrub: Box::new(now),
    }
}

fn unmounted(besides: &str) -> Reply {
    let why = "the file system is being unmounted";
    error(ServiceError::new(format!("{why}{besides}")))
}

fn error(e: ServiceError) -> Reply {
    Reply::Error {
        message: e.message,
        errno: e.errno,
    }
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
