//! Answers `GET /metrics` over HTTP/1.1, on a Unix socket or a loopback port.
//!
//! One request at a time, one request per connection, and a short deadline for each: a client that is slow
//! or hostile keeps others waiting for at most that long.

use std::fs::Permissions;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::metrics;
use super::{MetricsAddress, Service};

/// Longest request, headers included.
const MAX_REQUEST: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// For the whole of one connection.
const DEADLINE: Duration = Duration::from_secs(2);
const WRONG_METHOD: &str = "405 Method Not Allowed";

/// Something that can be waited on for bytes.
trait Connection: Read + Write {
    fn patience(&self, time: Duration) -> io::Result<()>;
}

impl Connection for UnixStream {
    fn patience(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Connection for TcpStream {
    fn patience(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    /// The listener, whatever its kind, as something that can be shut down.
    listener: UnixStream,
    /// The socket's file, with its device and inode.
    file: Option<(PathBuf, (u64, u64))>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Binds the address and begins to answer for `service`.
    ///
    /// # Errors
    /// If the address is taken, or something else than a socket is in its place.
    pub fn start(address: &MetricsAddress, service: Arc<dyn Service>) -> io::Result<MetricsServer> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::Builder::new().name("metrics".into());
        let (listener, file, thread) = match address {
            MetricsAddress::Unix(path) => {
                let listener = bind(path)?;
                let file = Some((path.clone(), identity(path)?));
                let own = OwnedFd::from(listener.try_clone()?);
                let next = move || listener.accept().map(|(stream, _)| stream);
                let thread = thread.spawn(move || accept(next, &*service, &stop))?;
                (own, file, thread)
            }
            MetricsAddress::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                let own = OwnedFd::from(listener.try_clone()?);
                let next = move || listener.accept().map(|(stream, _)| stream);
                let thread = thread.spawn(move || accept(next, &*service, &stop))?;
                (own, None, thread)
            }
        };
        Ok(MetricsServer {
            listener: listener.into(),
            file,
            stopping,
            thread: Some(thread),
        })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stopping.store(true, SeqCst);
        // Ends the wait for the next connection; whoever is connected is answered within the deadline.
        match self.listener.shutdown(Shutdown::Both) {
            Ok(()) => {
                if let Some(thread) = self.thread.take() {
                    // If it does not end well, it has ended all the same.
                    let _ = thread.join();
                }
            }
            Err(e) => log::warn!("metrics socket: {e}"),
        }
        if let Some((path, bound)) = &self.file
            && identity(path).is_ok_and(|found| found == *bound)
        {
            // A file that is gone already needs nothing.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Binds a socket for its owner and group. One that nobody answers on is replaced, but no other file.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "not a socket"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(io::Error::from(ErrorKind::AddrInUse));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn accept<C: Connection>(
    next: impl Fn() -> io::Result<C>,
    service: &dyn Service,
    stopping: &AtomicBool,
) {
    loop {
        let connection = next();
        if stopping.load(SeqCst) {
            return;
        }
        match connection {
            Ok(mut connection) => {
                if let Err(error) = answer(&mut connection, service) {
                    log::debug!("metrics client: {error}");
                }
            }
            Err(error) => {
                log::warn!("metrics socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn answer(connection: &mut impl Connection, service: &dyn Service) -> io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let reply = match read_request(connection, deadline)? {
        Request::Get(path) if path == "/metrics" => match body(service) {
            Ok(body) => reply("200 OK", metrics::CONTENT_TYPE, &body),
            Err(why) => plain("503 Service Unavailable", &why),
        },
        Request::Get(_) => plain("404 Not Found", "metrics are at /metrics"),
        Request::Other => plain(WRONG_METHOD, "only GET"),
        Request::Bad => plain("400 Bad Request", "not a request"),
        Request::TooLong => plain("431 Request Header Fields Too Large", "too long"),
    };
    let mut rest = reply.as_bytes();
    while !rest.is_empty() {
        connection.patience(left(deadline)?)?;
        match connection.write(rest)? {
            0 => return Err(io::Error::from(ErrorKind::WriteZero)),
            written => rest = &rest[written..],
        }
    }
    connection.flush()
}

fn body(service: &dyn Service) -> Result<String, String> {
    let status = service.status().map_err(|error| error.message)?;
    metrics::exposition(status).map_err(|error| error.to_string())
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// The path without what follows a question mark.
    Get(String),
    Other,
    Bad,
    TooLong,
}

fn read_request(connection: &mut impl Connection, deadline: Instant) -> io::Result<Request> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        connection.patience(left(deadline)?)?;
        let count = connection.read(&mut piece)?;
        if count == 0 {
            return Ok(Request::Bad);
        }
        bytes.extend_from_slice(&piece[..count]);
        if let Some(request) = parse(&bytes) {
            return Ok(request);
        }
        if bytes.len() > MAX_REQUEST {
            return Ok(Request::TooLong);
        }
    }
}

/// The request, once its headers are complete.
fn parse(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => Some(match (request.method, request.path) {
            (Some("GET"), Some(target)) => {
                let path = target.split('?').next().unwrap_or_default();
                Request::Get(path.to_owned())
            }
            _ => Request::Other,
        }),
        Err(httparse::Error::TooManyHeaders) => Some(Request::TooLong),
        Err(_) => Some(Request::Bad),
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::Error::from(ErrorKind::TimedOut)),
        false => Ok(left),
    }
}

fn plain(status: &str, text: &str) -> String {
    reply(status, "text/plain; charset=utf-8", &format!("{text}\n"))
}

fn reply(status: &str, content_type: &str, body: &str) -> String {
    let allow = match status {
        WRONG_METHOD => "Allow: GET\r\n",
        _ => "",
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let get = |path: &str| Some(Request::Get(path.into()));
        for (bytes, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", get("/metrics")),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", get("/metrics")),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Request::Other)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", None),
            ("\u{1}\u{2}\r\n\r\n", Some(Request::Bad)),
            ("", None),
        ] {
            assert_eq!(parse(bytes.as_bytes()), expected, "{bytes:?}");
        }
        let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
        let request = format!("GET / HTTP/1.1\r\n{many}\r\n");
        assert_eq!(parse(request.as_bytes()), Some(Request::TooLong));
    }

    #[test]
    fn only_sockets_that_nobody_answers_on_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(bind(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let path = dir.path().join("socket");
        let listener = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }
}
