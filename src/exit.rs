//! Exit codes, the same for every command, and the error that carries one to `main`.

use std::fmt;
use std::process::ExitCode;

/// How a command ended. The numbers are documented in s2sfs(1) and used by scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It worked; for `check` and `scrub`: no damage.
    Ok = 0,
    /// It failed: input/output, memory, a full disk.
    Failed = 1,
    /// The command line or an option is wrong.
    Usage = 2,
    /// The store, a model or a compressed file is damaged.
    Damaged = 3,
    /// The store is in use, or the mount point is busy.
    Busy = 4,
    /// The path is not a store, not mounted, or of a newer format.
    NotAStore = 5,
    /// `check --repair` has mended the store.
    Repaired = 6,
    /// A process died that should not have: a fault of the program.
    Internal = 70,
    /// The system has no memory, processes or files left for it.
    System = 71,
    /// The user may not do this.
    Denied = 77,
    /// SIGINT or SIGTERM came before it was done.
    Interrupted = 130,
}

impl Exit {
    /// Every code with its meaning, for the man page.
    pub const ALL: [(Exit, &'static str); 11] = [
        (
            Exit::Ok,
            "Success; for check and scrub: no damage found, or none but what an earlier repair has marked as lost.",
        ),
        (
            Exit::Failed,
            "The operation failed: input/output error, full disk, out of memory; for import and export: something could not be copied.",
        ),
        (Exit::Usage, "The command line or an option is wrong."),
        (
            Exit::Damaged,
            "The store, a model or a compressed file is damaged; for check --repair: something is left that it cannot mend.",
        ),
        (
            Exit::Busy,
            "The store is in use by another process, or the mount point is busy.",
        ),
        (
            Exit::NotAStore,
            "The path is not a store, not mounted, or of a newer format.",
        ),
        (
            Exit::Repaired,
            "check --repair has mended the store; what is lost was listed.",
        ),
        (
            Exit::Internal,
            "mount: the daemon died before it was ready, which is a fault of the program.",
        ),
        (
            Exit::System,
            "mount: the system has no memory, processes or open files left for the daemon.",
        ),
        (Exit::Denied, "mount: this user may not mount here."),
        (
            Exit::Interrupted,
            "mount: interrupted by a signal; nothing is mounted.",
        ),
    ];

    /// The code under the conventions of mount(8), which `mount.s2sfs` follows.
    pub fn for_mount_helper(self) -> MountExit {
        match self {
            Exit::Ok => MountExit::Success,
            Exit::Usage | Exit::Denied => MountExit::Usage,
            Exit::System => MountExit::System,
            Exit::Internal => MountExit::Internal,
            Exit::Interrupted => MountExit::Interrupted,
            _ => MountExit::Failed,
        }
    }

    /// The code with this number; unknown numbers count as failure.
    pub fn from_code(code: i32) -> Exit {
        Exit::ALL
            .iter()
            .map(|&(exit, _)| exit)
            .find(|&exit| exit as i32 == code)
            .unwrap_or(Exit::Failed)
    }
}

/// Exit codes of mount(8). 16 (trouble with /etc/mtab) does not occur, as there is none to write, and
/// neither does 64 (some mounts succeeded), as the helper makes one mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MountExit {
    Success = 0,
    Usage = 1,
    System = 2,
    Internal = 4,
    Interrupted = 8,
    Failed = 32,
}

impl MountExit {
    /// Every code with its meaning, for the man page.
    pub const ALL: [(MountExit, &'static str); 6] = [
        (MountExit::Success, "Success."),
        (
            MountExit::Usage,
            "Wrong arguments or options, or this user may not mount here.",
        ),
        (
            MountExit::System,
            "The system has no memory, processes or open files left for the daemon.",
        ),
        (
            MountExit::Internal,
            "The daemon died before it was ready, which is a fault of the program.",
        ),
        (
            MountExit::Interrupted,
            "Interrupted by a signal; nothing is mounted.",
        ),
        (
            MountExit::Failed,
            "The mount failed: wrong or damaged store, busy, not a directory and the like.",
        ),
    ];
}

impl From<MountExit> for ExitCode {
    fn from(exit: MountExit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// An error that ends a command.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    /// What to tell the user; empty if everything has been said.
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure {
            exit,
            message: message.to_string(),
        }
    }

    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    pub fn failed(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Failed, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Result of a command.
pub type Outcome<T> = Result<T, Failure>;

/// Adds what was being done to an error on its way to the user.
pub trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|e| Failure::failed(format!("{what}: {e}")))
    }
}
