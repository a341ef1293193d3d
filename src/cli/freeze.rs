//! `s2sfs freeze` and `s2sfs thaw`.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::target;
use crate::control::mountinfo::Mount;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::parse_time;

#[derive(Debug, Args)]
pub struct FreezeArguments {
    /// Mount point
    mountpoint: PathBuf,
    /// Thaw by itself after this time, such as 30s, 5m or 1h
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = timeout)]
    timeout: Duration,
    /// Run this command while the mount is frozen, and thaw when it ends, however it ends
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct ThawArguments {
    /// Mount point
    mountpoint: PathBuf,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("no time at all".into()),
        time => Ok(time),
    }
}

pub fn freeze(arguments: &FreezeArguments) -> Outcome<()> {
    let mount = target::mount(&arguments.mountpoint)?;
    let point = mount.point.display();
    if target::client(&mount)?
        .status()
        .context(point)?
        .frozen
        .is_some()
    {
        let message = format!("{} is frozen already", mount.point.display());
        return Err(Failure::new(Exit::Busy, message));
    }
    // What programs wrote through memory maps is in the kernel only.
    let root = File::open(&mount.point).context(mount.point.display())?;
    rustix::fs::syncfs(&root).context(mount.point.display())?;
    drop(root);
    let client = target::client(&mount)?;
    match arguments.command.split_first() {
        Some((program, rest)) => {
            let held = client.hold_freeze(arguments.timeout);
            let held = held.context(mount.point.display())?;
            let mut command = Command::new(program);
            let ended = run(command.args(rest));
            let lasted = held.end().context(mount.point.display())?;
            judge(&mount, &program.to_string_lossy(), ended, lasted)
        }
        None => client
            .freeze(arguments.timeout)
            .context(mount.point.display()),
    }
}

pub fn thaw(arguments: &ThawArguments) -> Outcome<()> {
    let mount = target::mount(&arguments.mountpoint)?;
    let thawed = target::client(&mount)?.thaw();
    thawed.context(mount.point.display())
}

/// Runs a command to its end. Signals that would end this program go to the command instead.
fn run(command: &mut Command) -> std::io::Result<ExitStatus> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let handle = signals.handle();
    let mut child = command.spawn()?;
    let pid = pid_of(&child);
    let forward = std::thread::spawn(move || {
        for signal in signals.forever() {
            // The terminal has told the command itself of an interrupt.
            if signal != SIGINT
                && let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal))
            {
                let _ = kill_process(pid, signal);
            }
        }
    });
    let status = child.wait();
    handle.close();
    let _ = forward.join();
    status
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn judge(
    mount: &Mount,
    program: &str,
    ended: std::io::Result<ExitStatus>,
    lasted: bool,
) -> Outcome<()> {
    let point = mount.point.display();
    match ended {
        Err(e) => Err(Failure::failed(format!("{program}: {e}"))),
        Ok(_) if !lasted => Err(Failure::failed(format!(
            "{point} was thawed before {program} had ended: what it has copied may not be of one moment"
        ))),
        Ok(status) if !status.success() => Err(Failure::failed(format!("{program}: {status}"))),
        Ok(_) => Ok(()),
    }
}
