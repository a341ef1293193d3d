//! The daemon: opens the store, serves the mount, and closes the store when it is unmounted.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::notify::notify;
use super::volume::{VolumeService, open_volume};
use super::{READY, Request, unmount};
use crate::control::client::Client;
use crate::control::{self, Server};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::fuse;
use crate::logging::{self, Sink};
use crate::options::Settings;
use crate::volume::Volume;

/// How long a mount waits for the previous daemon of the store to finish.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Whom to tell that the mount answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The process that launched this one, over standard output.
    Launcher,
    /// A service manager or a terminal; messages stay on standard error.
    Foreground,
}

/// Serves one mount until it is unmounted.
pub fn run(request: &Request, readiness: Readiness) -> Outcome<()> {
    let log = match readiness {
        Readiness::Launcher => Some(open_log(&request.settings)?),
        Readiness::Foreground => None,
    };
    prepare_process(readiness)?;
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
    let volume = open_when_free(&request.store, &request.settings)?;
    let outcome = serve(request, log, &volume, signals);
    let (server, outcome) = match outcome {
        Ok(server) => (server, Ok(())),
        Err(failure) => (None, Err(failure)),
    };
    notify("STOPPING=1");
    if let Some(server) = &server {
        server.stopping();
    }
    let closed = volume
        .shutdown()
        .context(format!("closing {}", request.store.display()));
    if let Err(failure) = &closed {
        log::error!("{failure}");
    } else {
        log::info!("{} is unmounted and closed", request.store.display());
    }
    if let Some(server) = &server {
        server.stopped(closed.as_ref().err().map(|failure| failure.message.clone()));
    }
    outcome.and(closed)
}

/// Mounts, says so, and returns when the mount is gone.
fn serve(
    request: &Request,
    log: Option<Sink>,
    volume: &Arc<Volume>,
    signals: Signals,
) -> Outcome<Option<Server>> {
    let mountpoint = &request.mountpoint;
    let options = fuse_options(request);
    let mount = fuse::mount(volume.clone(), mountpoint, &options)
        .context(format!("cannot mount at {}", mountpoint.display()))?;
    let server = start_control(request, volume);
    let (events, ended) = channel();
    watch_signals(signals, mountpoint, events.clone())?;
    watch_session(mount, events)?;
    log::info!(
        "{} is mounted at {}",
        request.store.display(),
        mountpoint.display()
    );
    if let Err(e) = announce(log) {
        log::error!("nobody waits for this mount any more ({e}): unmounting");
        stop_mount(mountpoint);
    }
    wait_for_end(&ended);
    Ok(server)
}

fn prepare_process(readiness: Readiness) -> Outcome<()> {
    if readiness == Readiness::Launcher {
        // Survives the end of the terminal that the mount was made from.
        rustix::process::setsid().context("setsid")?;
    }
    std::env::set_current_dir("/").context("/")?;
    // The store holds everybody's data: its files are for its owner alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit of open files: {e}");
    }
    Ok(())
}

/// Opens the store, after waiting for a daemon that is just finishing with it.
fn open_when_free(store: &Path, settings: &Settings) -> Outcome<Arc<Volume>> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match open_volume(store, settings) {
            Err(failure) if failure.exit == Exit::Busy => {
                if let Some(holder) = holder(store) {
                    return Err(holder);
                }
                if Instant::now() >= deadline {
                    return Err(failure);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// Who has the store mounted, if its daemon answers.
fn holder(store: &Path) -> Option<Failure> {
    let status = Client::of_store(store).ok()?.status().ok()?;
    let place = status.mountpoint.unwrap_or_else(|| "another place".into());
    let pid = status.pid.unwrap_or_default();
    Some(Failure::new(
        Exit::Busy,
        format!(
            "store {} is already mounted at {place} (pid {pid})",
            store.display()
        ),
    ))
}

fn start_control(request: &Request, volume: &Arc<Volume>) -> Option<Server> {
    let path = if request.settings.read_only {
        control::read_only_socket(&request.mountpoint)?
    } else {
        control::store_socket(&request.store)
    };
    let service = Arc::new(VolumeService::new(volume.clone(), request));
    let started = if request.settings.read_only {
        control::prepare_runtime_dir(&path).and_then(|()| Server::start(&path, service))
    } else {
        Server::start(&path, service)
    };
    started
        .inspect_err(|e| log::warn!("no control socket at {}: {e}", path.display()))
        .ok()
}

fn open_log(settings: &Settings) -> Outcome<Sink> {
    let name = settings
        .log
        .as_deref()
        .unwrap_or(Path::new("log"))
        .display();
    logging::open_background(settings.log.as_deref()).context(name)
}

/// Says that the mount answers. A daemon in the background has a log of its own, and lets go of its
/// launcher's terminal.
fn announce(log: Option<Sink>) -> io::Result<()> {
    let Some(log) = log else {
        notify("READY=1");
        return Ok(());
    };
    logging::redirect(log);
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stderr(&null)?;
    writeln!(io::stdout(), "{READY}")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

fn fuse_options(request: &Request) -> fuse::MountOptions {
    let kernel = &request.settings.kernel;
    fuse::MountOptions {
        fs_name: request.store.to_string_lossy().into_owned(),
        read_only: request.settings.read_only,
        allow_other: kernel.allow_other,
        no_atime: kernel.noatime,
        no_exec: kernel.noexec,
        no_suid: kernel.nosuid,
        no_dev: kernel.nodev,
        sync: kernel.sync,
        dir_sync: kernel.dirsync,
    }
}

/// Why the daemon's work is over.
enum End {
    Unmounted,
    Detached,
}

fn wait_for_end(ended: &Receiver<End>) {
    // An error means that both watchers are gone, and with them the mount.
    if let Ok(End::Detached) = ended.recv() {
        log::warn!("files were still open when the mount was taken away");
    }
}

/// Turns the end of the FUSE session into an event.
fn watch_session(mount: fuse::MountHandle, events: Sender<End>) -> Outcome<()> {
    let watch = move || {
        if let Err(e) = mount.wait() {
            log::error!("serving the mount: {e}");
        }
        let _ = events.send(End::Unmounted);
    };
    std::thread::Builder::new()
        .name("session".into())
        .spawn(watch)
        .context("thread")?;
    Ok(())
}

/// Turns SIGTERM, SIGINT and SIGHUP into an unmount.
fn watch_signals(mut signals: Signals, mountpoint: &Path, events: Sender<End>) -> Outcome<()> {
    let mountpoint = mountpoint.to_owned();
    let watch = move || {
        for signal in signals.forever() {
            log::info!("signal {signal}: unmounting {}", mountpoint.display());
            if stop_mount(&mountpoint) {
                let _ = events.send(End::Detached);
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .context("thread")?;
    Ok(())
}

/// Unmounts, by force of detaching if files are open. True if the session may live on for them.
fn stop_mount(mountpoint: &Path) -> bool {
    match unmount::unmount(mountpoint) {
        Ok(()) => false,
        Err(e) => {
            log::warn!("cannot unmount {}: {e}; detaching it", mountpoint.display());
            if let Err(e) = unmount::detach(mountpoint) {
                log::error!("cannot detach {}: {e}", mountpoint.display());
            }
            true
        }
    }
}
