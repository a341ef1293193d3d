//! Where log messages go: standard error, and for a daemon in the background syslog or a file.

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
const SYSLOG_SOCKET: &str = "/dev/log";
/// syslog facility "daemon".
const FACILITY: u8 = 3 << 3;
const FALLBACK_FILE: &str = "/var/log/s2sfs.log";

/// A place for messages.
pub enum Sink {
    Stderr,
    Syslog(UnixDatagram),
    File(File),
    Nowhere,
}

struct Logger {
    sink: RwLock<Sink>,
}

static LOGGER: Logger = Logger {
    sink: RwLock::new(Sink::Stderr),
};

/// Starts logging to standard error, panics included.
pub fn init(default: LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level().unwrap_or(default));
        std::panic::set_hook(Box::new(|info| log::error!("internal error: {info}")));
    }
}

/// Opens the log of a daemon in the background: `file` or, without one, syslog. Where there is no
/// syslog daemon, a file in /var/log is used.
pub fn open_background(file: Option<&Path>) -> io::Result<Sink> {
    match file {
        Some(path) => open(path).map(Sink::File),
        None => Ok(syslog()
            .or_else(|_| open(Path::new(FALLBACK_FILE)).map(Sink::File))
            .unwrap_or(Sink::Nowhere)),
    }
}

/// Sends everything from now on to `sink`, from level info up unless the environment says otherwise.
pub fn redirect(sink: Sink) {
    *LOGGER.sink.write() = sink;
    log::set_max_level(level().unwrap_or(LevelFilter::Info));
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
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_777), (2026, 11, 20));
    }
}
