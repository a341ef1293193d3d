//! The daemon's end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::protocol::{MAX_REQUEST, Reply, Request};
use super::{MAX_INODES, ScrubAction, ScrubOptions, ScrubStatus, Service, ServiceError, socket};

/// More connections than this at once are dropped.
const MAX_CONNECTIONS: usize = 64;
/// A client that sends or takes nothing for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked whether the volume of a client that holds a freeze is unmounted.
const CLIENT_INTERVAL: Duration = Duration::from_millis(500);
/// How often a client that waits for a scrub hears of it.
const SCRUB_INTERVAL: Duration = Duration::from_millis(200);

/// How soon a client that holds the store loses it when the volume is closed.
const HOLD_INTERVAL: Duration = Duration::from_millis(100);

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
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(e) => {
            return send(
                stream,
                &Reply::Error {
                    message: format!("bad request: {e}"),
                    errno: None,
                },
            );
        }
    };
    if request == Request::Wait {
        send(
            stream,
            &Reply::Waiting {
                pid: std::process::id(),
            },
        )?;
        return send(
            stream,
            &Reply::Stopped {
                error: wait_until_stopped(shared),
            },
        );
    }
    let service = match &*shared.phase.lock() {
        Phase::Running(service) => service.clone(),
        _ => {
            return send(
                stream,
                &error(ServiceError::new("the file system is being unmounted")),
            );
        }
    };
    if let Request::Freeze {
        timeout_ms,
        hold: true,
    } = request
    {
        let timeout = Duration::from_millis(timeout_ms);
        return hold_freeze(stream, shared, service.as_ref(), timeout);
    }

    if request == Request::Hold {
        return hold(stream, shared, service.as_ref());
    }
    let reply = answer(stream, &request, service.as_ref()).unwrap_or_else(error);
    match (&request, &reply) {
        (Request::Scrub { wait: true, .. }, Reply::Scrub { scrub }) => {
            follow_scrub(stream, shared, service.as_ref(), scrub)
        }
        _ => send(stream, &reply),
    }
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
    if let Err(e) = send(stream, &Reply::Frozen).and_then(|()| wait_for_end(stream, shared)) {
        log::debug!("whoever has frozen the file system is gone: {e}");
    }
    let early = service.thaw(Some(number)).is_err();
    send(stream, &Reply::Thawed { early })
}

/// Waits until the client says that it is done, or is gone, or the volume is unmounted.
fn wait_for_end(mut stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_INTERVAL))?;
    let mut word = [0; 64];
    while matches!(&*shared.phase.lock(), Phase::Running(_)) {
        match stream.read(&mut word) {
            Ok(0) => return Ok(()),
            Err(e)
                if !matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Holds the files of the store for a client, until it says that it is done, is gone, or the volume is closed.
fn hold(mut stream: &UnixStream, shared: &Shared, service: &dyn Service) -> io::Result<()> {
    let mut outcome = Ok(());
    let held = service.hold(&mut |files, ends| {
        let held = Reply::Held {
            files: files.to_vec(),
        };
        outcome = send(stream, &held).and_then(|()| {
            stream.set_read_timeout(Some(HOLD_INTERVAL))?;
            loop {
                let running = matches!(&*shared.phase.lock(), Phase::Running(_));
                if !running || ends() {
                    let why = "the file system is being unmounted";
                    return send(stream, &error(ServiceError::new(why)));
                }
                match stream.read(&mut [0; 64]) {
                    Ok(0) => return Ok(()),
                    Ok(_) => return send(stream, &Reply::Done),
                    Err(e) if is_timeout(&e) => {}
                    Err(e) => return Err(e),
                }
            }
        });
    });
    match held {
        Ok(()) => outcome,
        Err(e) => send(stream, &error(e)),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Tells how a scrub goes until none is under way, the client is gone, or the volume is closed.
fn follow_scrub(
    stream: &UnixStream,
    shared: &Shared,
    service: &dyn Service,
    first: &ScrubStatus,
) -> io::Result<()> {
    let mut now = first.clone();
    loop {
        let over = !now.is_active();
        send(
            stream,
            &Reply::Scrub {
                scrub: Box::new(now),
            },
        )?;
        if over {
            return Ok(());
        }
        std::thread::sleep(SCRUB_INTERVAL);
        if !matches!(&*shared.phase.lock(), Phase::Running(_)) {
            let why = "the file system is being unmounted; the scrub goes on at the next mount";
            return send(stream, &error(ServiceError::new(why)));
        }
        now = match service.scrub(ScrubAction::Status, ScrubOptions::default()) {
            Ok(now) => now,
            Err(e) => return send(stream, &error(e)),
        };
    }
}

fn answer(
    stream: &UnixStream,
    request: &Request,
    service: &dyn Service,
) -> Result<Reply, ServiceError> {
    Ok(match *request {
        Request::Again { ref inos, wait } => {
            let progress = progress_sender(stream);
            let coded = service.settle_again(inos, wait.then_some(&progress))?;
            match wait {
                true => Reply::Coded {
                    coded: Box::new(coded),
                },
                false => Reply::Done,
            }
        }
        Request::Freeze { timeout_ms, .. } => {
            service.freeze(Duration::from_millis(timeout_ms))?;
            Reply::Frozen
        }
        Request::Thaw => {
            service.thaw(None)?;
            Reply::Done
        }
        Request::Status => Reply::Status {
            status: Box::new(service.status()?),
        },
        Request::Info { ino } => Reply::Info {
            info: Box::new(service.file_info(ino)?),
        },
        Request::Usage { ref inos } => {
            if inos.len() > MAX_INODES {
                let why = format!("more than {MAX_INODES} inodes in one request");
                return Err(ServiceError::new(why));
            }
            Reply::Usage {
                files: service.usage(inos),
            }
        }
        Request::Settle => {
            service.settle(&progress_sender(stream))?;
            Reply::Done
        }
        Request::Scrub {
            action, options, ..
        } => Reply::Scrub {
            scrub: Box::new(service.scrub(action, options)?),
        },
        Request::Reclaim => {
            let (freed, copied) = service.reclaim(&progress_sender(stream))?;
            Reply::Reclaimed { freed, copied }
        }
        Request::Reload { ref options } => Reply::Reloaded {
            report: service.reload(options.clone())?,
        },
        Request::Wait | Request::Hold => Reply::Done,
    })
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

fn wait_until_stopped(shared: &Shared) -> Option<String> {
    let mut phase = shared.phase.lock();
    loop {
        if let Phase::Stopped { error } = &*phase {
            return error.clone();
        }
        shared.changed.wait(&mut phase);
    }
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
