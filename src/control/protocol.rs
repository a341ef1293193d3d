//! The messages of the control socket: one JSON object per line, one request per connection.

use serde::{Deserialize, Serialize};

use super::{FileInfo, ReloadReport, ScrubAction, ScrubOptions, ScrubStatus, Status};

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
    Info {
        ino: u64,
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
    Progress {
        done: u64,
        total: u64,
    },
    Done,
    Scrub {
        scrub: Box<ScrubStatus>,
    },
    Reclaimed {
        freed: u64,
        copied: u64,
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
    use super::*;

    #[test]
    fn messages_are_one_line_and_read_back_the_same() {
        let request = Request::Info { ino: 7 };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"request":"info","ino":7}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);

        let reply = Reply::Error {
            message: "two\nlines".into(),
            errno: Some(5),
        };
        let line = serde_json::to_string(&reply).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
    }
}
