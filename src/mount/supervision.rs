//! What a service manager is told while a mount is there: that it answers, how it stands, and how far
//! its end has come. See sd_notify(3).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use parking_lot::{Condvar, Mutex};

use super::notify::{is_supervised, notify, reloading, watchdog};
use crate::volume::Volume;

/// How often the status text is made anew.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How often the manager hears of a stop that goes on.
const STOP_INTERVAL: Duration = Duration::from_secs(2);
/// A stop that gets nowhere for so long gets no more time than the unit gives it.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// The time that is asked for while a stop goes on.
const EXTENSION: Duration = Duration::from_secs(60);

/// `f_type` of FUSE file systems.
const FUSE_MAGIC: u64 = 0x6573_5546;

/// Who answered for a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Fuse,
    /// Another file system: the mount is hidden under it, or was taken out of the tree by a lazy unmount.
    Other,
}

/// Asks the mount through the kernel for something that the kernel never knows by itself. Hangs if the
/// mount does, and fails if its daemon does not serve any more.
pub fn probe(mountpoint: &Path) -> io::Result<Answer> {
    let answer = rustix::fs::statfs(mountpoint)?;
    Ok(match answer.f_type as u64 & 0xffff_ffff {
        FUSE_MAGIC => Answer::Fuse,
        _ => Answer::Other,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The mount may not answer yet.
    Starting,
    Running,
    Stopping,
    Stopped,
}

struct Shared {
    phase: Mutex<Phase>,
    changed: Condvar,
    volume: Arc<Volume>,
    mountpoint: PathBuf,
}

/// Talks to the service manager, if there is one, from threads of its own.
pub struct Supervision {
    shared: Arc<Shared>,
}

impl Supervision {
    pub fn new(volume: Arc<Volume>, mountpoint: &Path) -> Supervision {
        Supervision {
            shared: Arc::new(Shared {
                phase: Mutex::new(Phase::Starting),
                changed: Condvar::new(),
                volume,
                mountpoint: mountpoint.to_owned(),
            }),
        }
    }

    /// Says that the mount answers.
    pub fn ready(&self) -> io::Result<()> {
        let mut phase = self.shared.phase.lock();
        // It may have been told to stop already.
        if *phase == Phase::Starting {
            *phase = Phase::Running;
            notify("READY=1");
        }
        drop(phase);
        if is_supervised() {
            // Never joined: if the mount hangs, so does this thread, which is its purpose.
            let shared = self.shared.clone();
            std::thread::Builder::new()
                .name("supervision".into())
                .spawn(move || shared.run())?;
            let shared = self.shared.clone();
            std::thread::Builder::new()
                .name("status-text".into())
                .spawn(move || shared.tell_status())?;
        }
        Ok(())
    }

    /// Tells of a reload around it, if the mount is ready and not about to go.
    pub fn reload<T>(&self, reload: impl FnOnce() -> T) -> T {
        let told = self.shared.while_running(reloading);
        let outcome = reload();
        if told {
            self.shared.while_running(|| notify("READY=1"));
        }
        outcome
    }

    /// The mount is going away, by whatever cause.
    pub fn stopping(&self) {
        let mut phase = self.shared.phase.lock();
        if matches!(*phase, Phase::Starting | Phase::Running) {
            *phase = Phase::Stopping;
            notify("STOPPING=1");
            self.shared.changed.notify_all();
        }
    }

    pub fn stopped(&self) {
        *self.shared.phase.lock() = Phase::Stopped;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        self.watch();
        self.see_off();
    }

    /// Nothing that only counts for a mount that is there may be said after `STOPPING=1`. False if it was not said.
    fn while_running(&self, say: impl FnOnce()) -> bool {
        let phase = self.phase.lock();
        let running = *phase == Phase::Running;
        if running {
            say();
        }
        running
    }

    /// Waits, but not beyond the end of `phase`. True if it lasts.
    fn pause(&self, phase: Phase, time: Duration) -> bool {
        let mut now = self.phase.lock();
        if *now == phase {
            self.changed.wait_for(&mut now, time);
        }
        *now == phase
    }

    /// Proves again and again that the mount answers.
    fn watch(&self) {
        let watchdog = watchdog();
        let interval = watchdog.map_or(STATUS_INTERVAL, |w| (w / 3).min(STATUS_INTERVAL));
        loop {
            match probe(&self.mountpoint) {
                // Nothing is known against a mount that cannot be reached, and files may be open in it.
                Ok(Answer::Fuse | Answer::Other) if watchdog.is_some() => notify("WATCHDOG=1"),
                Ok(_) => {}
                Err(e) => log::warn!("{} does not answer: {e}", self.mountpoint.display()),
            }
            if !self.pause(Phase::Running, interval) {
                return;
            }
        }
    }

    /// Says how the mount stands. What that takes grows with the store, so the watchdog does not wait for it.
    fn tell_status(&self) {
        let mut said = String::new();
        loop {
            let status = self.describe();
            if status != said {
                self.while_running(|| notify(&format!("STATUS={status}")));
                said = status;
            }
            if !self.pause(Phase::Running, STATUS_INTERVAL) {
                return;
            }
        }
    }

    /// Asks for time as long as the end makes progress.
    fn see_off(&self) {
        let (mut left, mut moved) = (None, Instant::now());
        loop {
            let now = self.volume.dirty_bytes();
            if left != Some(now) {
                (left, moved) = (Some(now), Instant::now());
            }
            if moved.elapsed() < STOP_PATIENCE {
                let time = EXTENSION.as_micros();
                let status = match now {
                    0 => "Closing the store".into(),
                    bytes => format!("Writing {} to the store", HumanBytes(bytes)),
                };
                notify(&format!(
                    "EXTEND_TIMEOUT_USEC={time}\nWATCHDOG=1\nSTATUS={status}"
                ));
            }
            if !self.pause(Phase::Stopping, STOP_INTERVAL) {
                return;
            }
        }
    }

    /// One line for `systemctl status`.
    fn describe(&self) -> String {
        let point = self.mountpoint.display();
        let status = match self.volume.status() {
            Ok(status) => status,
            Err(e) => return format!("Mounted at {point}: {e}"),
        };
        if let Some(why) = &status.failed {
            return format!("Mounted at {point}, FAILING: {why}");
        }
        let settling = match status.settle.queue_bytes {
            0 => "settled".into(),
            bytes => format!("{} wait for settling", HumanBytes(bytes)),
        };
        format!(
            "Mounted at {point}: {} in {} (ratio {:.2}), {settling}",
            HumanBytes(status.logical_bytes),
            HumanBytes(status.stored_bytes),
            status.ratio
        )
    }
}
