//! Starting the daemon in the background, and waiting until its mount answers.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGKILL, SIGTERM};
use signal_hook::iterator::Signals;

use super::{DAEMON_FLAG, READY, Request};
use crate::exit::{Context, Exit, Failure, Outcome};

/// What a Rust program exits with after a panic.
const PANICKED: i32 = 101;

impl Request {
    /// Mounts with the daemon in the background; returns when the mount answers. Interrupted by SIGINT
    /// or SIGTERM, it ends the daemon and leaves nothing mounted.
    pub fn launch(&self) -> Outcome<()> {
        self.start_daemon().inspect_err(|_| self.undo())
    }

    fn start_daemon(&self) -> Outcome<()> {
        let no_means =
            |e: io::Error| Failure::new(Exit::System, format!("cannot start the daemon: {e}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(no_means)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("s2sfs")
            .args(self.daemon_arguments())
            // Those are for the service that has called us, and for as long as it waits.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(no_means)?;
        let pid = Pid::from_child(&child);
        let (interrupts, interrupted) = (signals.handle(), AtomicBool::new(false));
        let ready = std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in signals.forever() {
                    interrupted.store(true, SeqCst);
                    // It may have ended; then there is nothing to interrupt.
                    let _ = kill_process(pid, Signal::TERM);
                }
            });
            let ready = wait_until_ready(&mut child);
            interrupts.close();
            ready
        });
        if interrupted.load(SeqCst) {
            child.wait().context("cannot wait for the daemon")?;
            return Err(Failure::new(Exit::Interrupted, "interrupted"));
        }
        if ready {
            // The first request of another process: proves that the daemon serves.
            std::fs::metadata(&self.mountpoint).context(format!(
                "{} is mounted but does not answer",
                self.mountpoint.display()
            ))?;
            return Ok(());
        }
        Err(why_it_ended(
            child.wait().context("cannot wait for the daemon")?,
        ))
    }

    fn daemon_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["mount".into(), DAEMON_FLAG.into()];
        for list in &self.option_lists {
            arguments.extend(["-o".into(), list.into()]);
        }
        arguments.push("--".into());
        arguments.extend([self.store.clone().into(), self.mountpoint.clone().into()]);
        arguments
    }
}

fn wait_until_ready(child: &mut Child) -> bool {
    let Some(output) = child.stdout.take() else {
        return false;
    };
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).is_ok() && line.trim_end() == READY
}

/// The failure of a daemon that ended before it was ready. It has said why, unless it was killed.
fn why_it_ended(status: ExitStatus) -> Failure {
    let message = format!("the daemon ended before it was ready: {status}");
    match (status.code(), status.signal()) {
        // By the system, for want of memory, or by somebody who knows why.
        (_, Some(SIGKILL)) => Failure::new(Exit::System, message),
        (Some(PANICKED), _) | (_, Some(_)) => Failure::new(Exit::Internal, message),
        (Some(code), _) if code != 0 => Failure::new(Exit::from_code(code), ""),
        _ => Failure::failed(message),
    }
}
