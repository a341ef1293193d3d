//! The messages of the control socket: one JSON object per line, one request per connection.

use serde::{Deserialize, Serialize};

use super::{
    AgainStatus, FileInfo, FileUsage, ReloadReport, ScrubAction, ScrubOptions, ScrubStatus, Status,
};
use crate::store::carry::StoreFile;

/// Longest request line that the daemon reads.
pub const MAX_REQUEST: u64 = 64 << 10;
/// Longest reply line that a client reads; a file of many extents makes a long one.
pub const MAX_REPLY: u64 = 256 << 20;

/// What a command asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    Status,
    Settle,
    /// Codes files and trees again. Answered with `Progress` now and then and with `Coded`, or without `wait`
    /// with `Done` at once.
    Again {
        inos: Vec<u64>,
        wait: bool,
    },
    /// Holds up all changes for `timeout_ms` at most. Answered with `Frozen`. With `hold` the client stays
    /// connected, until it says something or shuts down its end, or is gone, and with it the freeze; then answered with
    /// `Thawed`.
    Freeze {
        timeout_ms: u64,
        #[serde(default)]
        hold: bool,
    },
    /// Answered with `Done`.
    Thaw,
    Info {
        ino: u64,
    },
    /// Asks about at most [`MAX_INODES`](super::MAX_INODES) files.
    Usage {
        inos: Vec<u64>,
    },
    /// Answered with one `Scrub`; with `wait` with one now and then until no scrub is under way.
    Scrub {
        action: ScrubAction,
        #[serde(default)]
        options: ScrubOptions,
        #[serde(default)]
        wait: bool,
    },
    /// Answered with `Progress` now and then, and with `Reclaimed`.
    Reclaim,
    /// Answered with `Held`. The files stay as they are until the client sends a line, which is answered with
    /// `Done` if nothing has come between, or closes the connection.
    Hold,
    /// Answered with `Reloaded`. Without options, those of the mount count.
    Reload {
        #[serde(default)]
        options: Option<Vec<String>>,
    },
    /// Answered with `Waiting` at once, and with `Stopped` when the daemon has finished.
    Wait,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    Status {
        status: Box<Status>,
    },
    Info {
        info: Box<FileInfo>,
    },
    Usage {
        files: Vec<FileUsage>,
    },
    Progress {
        done: u64,
        total: u64,
    },
    Done,
    Coded {
        coded: Box<AgainStatus>,
    },
    Frozen,
    /// `early` if somebody else, the timeout or the unmount has ended the freeze before.
    Thawed {
        early: bool,
    },
    Scrub {
        scrub: Box<ScrubStatus>,
    },
    Reclaimed {
        freed: u64,
        copied: u64,
    },
    Held {
        files: Vec<StoreFile>,
    },
    Reloaded {
        report: ReloadReport,
    },
    Waiting {
        pid: u32,
    },
    /// The volume is closed; `error` if closing it failed.
    Stopped {
        error: Option<String>,
    },
    Error {
        message: String,
        errno: Option<i32>,
    },
}

#[cfg(test)]
mod tests {
    use super::super::MAX_INODES;
    use super::*;

    #[test]
    fn messages_are_one_line_and_read_back_the_same() {
        let request = Request::Info { ino: 7 };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"request":"info","ino":7}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);

        let request = Request::Usage {
            inos: vec![u64::MAX; MAX_INODES],
        };
        let line = serde_json::to_string(&request).unwrap();
        assert!((line.len() as u64) < MAX_REQUEST);

        let reply = Reply::Error {
            message: "two\nlines".into(),
            errno: Some(5),
        };
        let line = serde_json::to_string(&reply).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
    }
}
