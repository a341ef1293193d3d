//! Where log messages go: standard error, and for a daemon in the background the journal, syslog or a file.
//!
//! Under systemd, where standard error is the journal, messages go to it with their priority and fields:
//! `S2SFS_STORE`, `S2SFS_MOUNT` and `S2SFS_PART`, the part of the program that speaks.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

/// Environment variable that sets the level: off, error, warn, info (default), debug or trace.
pub const LEVEL_VARIABLE: &str = "S2SFS_LOG";
const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";
/// By which systemd says that standard error is the journal: device and inode.
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";
/// Longest message in the journal; a datagram must fit into the socket's buffer.
const JOURNAL_MESSAGE_MAX: usize = 32 << 10;
const SYSLOG_SOCKET: &str = "/dev/log";
/// syslog facility "daemon".
const FACILITY: u8 = 3 << 3;
const FALLBACK_FILE: &str = "/var/log/s2sfs.log";

/// A place for messages.
pub enum Sink {
    Stderr,
    /// Standard error with `<N>` in front of every line, which the journal takes as the priority.
    Prioritised,
    Journal(UnixDatagram),
    Syslog(UnixDatagram),
    File(File),
    Nowhere,
}

struct Logger {
    sink: RwLock<Sink>,
    /// Fields of every message in the journal.
    fields: RwLock<Vec<(&'static str, String)>>,
}

static LOGGER: Logger = Logger {
    sink: RwLock::new(Sink::Stderr),
    fields: RwLock::new(Vec::new()),
};

/// Starts logging to standard error, panics included.
pub fn init(default: LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level().unwrap_or(default));
        if stderr_is_journal() {
            *LOGGER.sink.write() = journal(Path::new(JOURNAL_SOCKET)).unwrap_or(Sink::Prioritised);
        }
        std::panic::set_hook(Box::new(|info| log::error!("internal error: {info}")));
    }
}

/// Adds fields to every message that goes to the journal from now on.
pub fn describe(store: &Path, mountpoint: &Path) {
    *LOGGER.fields.write() = vec![
        ("S2SFS_STORE", store.display().to_string()),
        ("S2SFS_MOUNT", mountpoint.display().to_string()),
    ];
}

/// Opens the log of a daemon in the background: `file` or, without one, the journal or syslog. Where
/// there is neither, a file in /var/log is used.
pub fn open_background(file: Option<&Path>) -> io::Result<Sink> {
    match file {
        Some(path) => open(path).map(Sink::File),
        None => Ok(journal(Path::new(JOURNAL_SOCKET))
            .or_else(|_| syslog())
            .or_else(|_| open(Path::new(FALLBACK_FILE)).map(Sink::File))
            .unwrap_or(Sink::Nowhere)),
    }
}

/// Sends everything from now on to `sink`.
pub fn redirect(sink: Sink) {
    *LOGGER.sink.write() = sink;
}

/// Logs from `explicit` up, or without it as the environment has it, or else from info up.
pub fn set_level(explicit: Option<LevelFilter>) {
    log::set_max_level(explicit.or_else(level).unwrap_or(LevelFilter::Info));
}

/// Whether standard error is the stream to the journal that systemd speaks of.
fn stderr_is_journal() -> bool {
    let stream = std::env::var(JOURNAL_VARIABLE).unwrap_or_default();
    let stat = rustix::fs::fstat(io::stderr());
    stat.is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn journal(path: &Path) -> io::Result<Sink> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(Sink::Journal(socket))
}

fn level() -> Option<LevelFilter> {
    std::env::var(LEVEL_VARIABLE).ok()?.parse().ok()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

fn syslog() -> io::Result<Sink> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG_SOCKET)?;
    socket.set_nonblocking(true)?;
    Ok(Sink::Syslog(socket))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Libraries are chatty. fuser warns of every unmount that somebody else did.
        let most = match metadata.target().split("::").next() {
            Some("s2sfs") => Level::Trace,
            Some("fuser") => Level::Error,
            _ => Level::Warn,
        };
        metadata.level() <= most && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let pid = std::process::id();
        // A message that cannot be delivered is lost: there is nobody left to tell.
        let _ = match &*self.sink.read() {
            Sink::Stderr => {
                let line = format!("s2sfs: {}{}\n", prefix(record.level()), record.args());
                io::stderr().write_all(line.as_bytes())
            }
            Sink::Prioritised => {
                let priority = severity(record.level());
                let text = record.args().to_string();
                let lines = text.lines().map(|line| format!("<{priority}>{line}\n"));
                io::stderr().write_all(lines.collect::<String>().as_bytes())
            }
            Sink::Journal(socket) => {
                let entry = journal_entry(record, &self.fields.read());
                socket.send(&entry).map(drop)
            }
            Sink::Syslog(socket) => {
                let priority = FACILITY | severity(record.level());
                let line = format!("<{priority}>s2sfs[{pid}]: {}", record.args());
                socket.send(line.as_bytes()).map(drop)
            }
            Sink::File(file) => {
                let line = format!(
                    "{} s2sfs[{pid}] {}: {}\n",
                    timestamp(),
                    record.level(),
                    record.args()
                );
                (&*file).write_all(line.as_bytes())
            }
            Sink::Nowhere => Ok(()),
        };
    }

    fn flush(&self) {}
}

/// A message in the journal's own protocol, see systemd.journal-fields(7).
fn journal_entry(record: &Record, fields: &[(&'static str, String)]) -> Vec<u8> {
    let mut message = record.args().to_string();
    let mut end = message.len().min(JOURNAL_MESSAGE_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    let mut entry = Vec::new();
    let mut field = |name: &str, value: &str| {
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    };
    field("PRIORITY", &severity(record.level()).to_string());
    field("SYSLOG_IDENTIFIER", "s2sfs");
    field("S2SFS_PART", part_of(record.target()));
    for (name, value) in fields {
        field(name, value);
    }
    field("MESSAGE", &message);
    entry
}

/// The layer that speaks, or the library.
fn part_of(target: &str) -> &str {
    let mut names = target.split("::");
    match (names.next(), names.next()) {
        (Some("s2sfs"), Some(layer)) => layer,
        (Some(library), _) => library,
        (None, _) => target,
    }
}

fn prefix(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        _ => "",
    }
}

fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Now in UTC, as 2026-01-31T12:00:00.000Z.
fn timestamp() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (days, seconds) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        now.subsec_millis()
    )
}

/// Date of the day `days` after 1970-01-01 in the Gregorian calendar. Counts in years that begin in
/// March, so that the leap day is the last one.
pub fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the journal gets of a warning.
    fn entry(message: &str) -> Vec<u8> {
        let mut builder = Record::builder();
        builder.level(Level::Warn).target("s2sfs::volume::stage");
        let fields = [("S2SFS_STORE", "/data".to_owned())];
        journal_entry(&builder.args(format_args!("{message}")).build(), &fields)
    }

    #[test]
    fn the_journal_gets_fields_and_messages_of_several_lines() {
        let head = "PRIORITY=4\nSYSLOG_IDENTIFIER=s2sfs\nS2SFS_PART=volume\nS2SFS_STORE=/data\n";
        assert_eq!(entry("full"), format!("{head}MESSAGE=full\n").as_bytes());
        let mut expected = format!("{head}MESSAGE\n").into_bytes();
        expected.extend_from_slice(b"\x03\0\0\0\0\0\0\0a\nb\n");
        assert_eq!(entry("a\nb"), expected);
        let long = entry(&"\u{e4}".repeat(JOURNAL_MESSAGE_MAX));
        assert!(long.len() < JOURNAL_MESSAGE_MAX + 200);
        assert_eq!(part_of("fuser::session"), "fuser");
    }

    #[test]
    fn messages_arrive_at_a_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(journal(&path).is_err());
        let receiver = UnixDatagram::bind(&path).unwrap();
        let logger = Logger {
            sink: RwLock::new(journal(&path).unwrap()),
            fields: RwLock::default(),
        };
        log::set_max_level(LevelFilter::Warn);
        let mut builder = Record::builder();
        builder.level(Level::Error).target("s2sfs::store");
        logger.log(&builder.args(format_args!("broken")).build());
        let mut bytes = [0; 200];
        let len = receiver.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..len]);
        assert!(text.contains("PRIORITY=3\n") && text.ends_with("MESSAGE=broken\n"));
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}
