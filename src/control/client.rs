//! The command line's end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use thiserror::Error;

use super::mountinfo::Mount;
use super::protocol::{MAX_REPLY, Reply, Request};
use super::{
    AgainStatus, FileInfo, FileUsage, ReloadReport, ScrubAction, ScrubOptions, ScrubStatus, Status,
    socket,
};
use crate::store::carry::StoreFile;

/// Why a request got no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("cannot reach the daemon: {0}")]
    Unreachable(#[source] io::Error),
    #[error("the daemon ended before it answered; see its log")]
    Died,
    #[error("the daemon's answer makes no sense: {0}")]
    Nonsense(String),
    #[error("{message}")]
    Refused { message: String, errno: Option<i32> },
}

type Result<T> = std::result::Result<T, ClientError>;

/// A connection, good for one request.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the daemon of a writable mount of `store`.
    pub fn of_store(store: &Path) -> Result<Client> {
        Client::connect(&socket::store_socket(store))
    }

    /// Connects to the daemon behind a mount.
    pub fn of_mount(mount: &Mount) -> Result<Client> {
        if let Ok(stream) = socket::connect_read_only(&mount.point) {
            return Ok(Client { stream });
        }
        Client::of_store(&mount.store())
    }

    fn connect(path: &Path) -> Result<Client> {
        let stream = socket::connect(path).map_err(ClientError::Unreachable)?;
        Ok(Client { stream })
    }

    pub fn status(self) -> Result<Status> {
        match self.request(&Request::Status)?.next()? {
            Reply::Status { status } => Ok(*status),
            other => Err(unexpected(other)),
        }
    }

    pub fn info(self, ino: u64) -> Result<FileInfo> {
        match self.request(&Request::Info { ino })?.next()? {
            Reply::Info { info } => Ok(*info),
            other => Err(unexpected(other)),
        }
    }

    /// How each of these files is stored, in the same order; at most [`super::MAX_INODES`].
    pub fn usage(self, inos: Vec<u64>) -> Result<Vec<FileUsage>> {
        let asked = inos.clone();
        match self.request(&Request::Usage { inos })?.next()? {
            Reply::Usage { files } if files.iter().map(|file| file.ino).eq(asked) => Ok(files),
            other => Err(unexpected(other)),
        }
    }

    /// Returns when all is settled; `progress` gets (done, total) bytes on the way.
    pub fn settle(self, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let mut replies = self.request(&Request::Settle)?;
        loop {
            match replies.next()? {
                Reply::Progress { done, total } => progress(done, total),
                Reply::Done => return Ok(()),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Codes files and trees, named by their inodes, again. Waits for it if there is somebody to tell the
    /// progress, and returns what was done.
    pub fn settle_again(
        self,
        inos: &[u64],
        progress: Option<&mut dyn FnMut(u64, u64)>,
    ) -> Result<Option<AgainStatus>> {
        let request = Request::Again {
            inos: inos.to_vec(),
            wait: progress.is_some(),
        };
        let mut replies = self.request(&request)?;
        let mut progress = progress;
        loop {
            match replies.next()? {
                Reply::Progress { done, total } => {
                    if let Some(progress) = &mut progress {
                        progress(done, total);
                    }
                }
                Reply::Coded { coded } => return Ok(Some(*coded)),
                Reply::Done => return Ok(None),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Holds up all changes of files, for so long at most.
    pub fn freeze(self, timeout: Duration) -> Result<()> {
        self.start_freeze(timeout, false).map(drop)
    }

    /// The same for as long as what is returned lives.
    pub fn hold_freeze(self, timeout: Duration) -> Result<Freeze> {
        let replies = self.start_freeze(timeout, true)?;
        Ok(Freeze { replies })
    }

    fn start_freeze(self, timeout: Duration, hold: bool) -> Result<Replies> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let mut replies = self.request(&Request::Freeze { timeout_ms, hold })?;
        match replies.next()? {
            Reply::Frozen => Ok(replies),
            other => Err(unexpected(other)),
        }
    }

    /// Lets changes go on.
    pub fn thaw(self) -> Result<()> {
        match self.request(&Request::Thaw)?.next()? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Starts, pauses, resumes or stops scrubbing, or only asks how it stands.
    pub fn scrub(self, action: ScrubAction, options: ScrubOptions) -> Result<ScrubStatus> {
        let wait = false;
        let request = Request::Scrub {
            action,
            options,
            wait,
        };
        match self.request(&request)?.next()? {
            Reply::Scrub { scrub } => Ok(*scrub),
            other => Err(unexpected(other)),
        }
    }

    /// Starts a scrub, or joins the one under way, and returns how it ended.
    pub fn scrub_to_end(
        self,
        options: ScrubOptions,
        mut progress: impl FnMut(&ScrubStatus),
    ) -> Result<ScrubStatus> {
        let request = Request::Scrub {
            action: ScrubAction::Start,
            options,
            wait: true,
        };
        let mut replies = self.request(&request)?;
        loop {
            match replies.next()? {
                Reply::Scrub { scrub } if scrub.is_active() => progress(&scrub),
                Reply::Scrub { scrub } => return Ok(*scrub),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Gives back the space of dead data; returns bytes given back and live bytes copied for it.
    pub fn reclaim(self, mut progress: impl FnMut(u64, u64)) -> Result<(u64, u64)> {
        let mut replies = self.request(&Request::Reclaim)?;
        loop {
            match replies.next()? {
                Reply::Progress { done, total } => progress(done, total),
                Reply::Reclaimed { freed, copied } => return Ok((freed, copied)),
                other => return Err(unexpected(other)),
            }
        }
    }

    /// Holds the files of the store as they are now.
    pub fn hold(self) -> Result<HeldStore> {
        let mut replies = self.request(&Request::Hold)?;
        match replies.next()? {
            Reply::Held { files } => Ok(HeldStore { replies, files }),
            other => Err(unexpected(other)),
        }
    }

    /// Has the daemon read the options of the mount again, under other ones of the command line if any
    /// are given.
    pub fn reload(self, options: Option<Vec<String>>) -> Result<ReloadReport> {
        match self.request(&Request::Reload { options })?.next()? {
            Reply::Reloaded { report } => Ok(report),
            other => Err(unexpected(other)),
        }
    }

    /// Prepares to wait for the end of the daemon.
    pub fn wait(self) -> Result<Waiter> {
        let mut replies = self.request(&Request::Wait)?;
        match replies.next()? {
            Reply::Waiting { pid } => {
                // Opened while the daemon is known to live, so the number cannot mean another process.
                // Without it (old kernel, other namespace) the end of the connection has to do.
                let process = i32::try_from(pid)
                    .ok()
                    .and_then(Pid::from_raw)
                    .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
                Ok(Waiter { replies, process })
            }
            other => Err(unexpected(other)),
        }
    }

    fn request(mut self, request: &Request) -> Result<Replies> {
        self.stream
            .set_write_timeout(Some(Duration::from_secs(10)))
            .map_err(ClientError::Unreachable)?;
        let line =
            serde_json::to_string(request).map_err(|e| ClientError::Nonsense(e.to_string()))?;
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .map_err(ClientError::Unreachable)?;
        Ok(Replies {
            reader: BufReader::new(self.stream),
        })
    }
}

struct Replies {
    reader: BufReader<UnixStream>,
}

impl Replies {
    fn next(&mut self) -> Result<Reply> {
        let mut line = String::new();
        (&mut self.reader)
            .take(MAX_REPLY)
            .read_line(&mut line)
            .map_err(ClientError::Unreachable)?;
        if line.is_empty() {
            return Err(ClientError::Died);
        }
        match serde_json::from_str(&line) {
            Ok(Reply::Error { message, errno }) => Err(ClientError::Refused { message, errno }),
            Ok(reply) => Ok(reply),
            Err(e) => Err(ClientError::Nonsense(e.to_string())),
        }
    }
}

/// A freeze that ends with this connection, however it ends.
pub struct Freeze {
    replies: Replies,
}

impl Freeze {
    /// Thaws. True if the freeze lasted until now, false if the timeout or somebody else has ended it.
    pub fn end(mut self) -> Result<bool> {
        self.replies
            .reader
            .get_ref()
            .shutdown(Shutdown::Write)
            .map_err(ClientError::Unreachable)?;
        match self.replies.next()? {
            Reply::Thawed { early } => Ok(!early),
            other => Err(unexpected(other)),
        }
    }
}

/// The files of a mounted store, which stay as they are as long as this is there.
pub struct HeldStore {
    replies: Replies,
    files: Vec<StoreFile>,
}

impl HeldStore {
    pub fn files(&self) -> &[StoreFile] {
        &self.files
    }

    /// Lets go of the files. An error if something came between, so that they may have changed.
    pub fn release(mut self) -> Result<()> {
        let said = self.replies.reader.get_mut().write_all(b"done\n");
        match self.replies.next() {
            Ok(Reply::Done) => said.map_err(ClientError::Unreachable),
            Ok(other) => Err(unexpected(other)),
            Err(error) => Err(error),
        }
    }
}

/// Waits for the end of a daemon.
pub struct Waiter {
    replies: Replies,
    process: Option<OwnedFd>,
}

impl Waiter {
    /// Returns when the daemon has closed the store and its process is gone.
    pub fn until_stopped(mut self) -> Result<()> {
        let outcome = match self.replies.next()? {
            Reply::Stopped { error: None } => Ok(()),
            Reply::Stopped {
                error: Some(message),
            } => Err(ClientError::Refused {
                message,
                errno: None,
            }),
            other => Err(unexpected(other)),
        };
        let mut rest = Vec::new();
        let _ = self.replies.reader.read_to_end(&mut rest);
        if let Some(process) = &self.process {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            while let Err(rustix::io::Errno::INTR) = rustix::event::poll(&mut fds, None) {}
        }
        outcome
    }
}

fn unexpected(reply: Reply) -> ClientError {
    ClientError::Nonsense(format!("{reply:?}"))
}
