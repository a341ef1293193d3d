//! The daemon: opens the store, serves the mount, and closes the store when it is unmounted.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use log::LevelFilter;
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::reload::Reloader;
use super::supervision::{Answer, Supervision, probe};
use super::volume::{Opened, VolumeService, open_volume};
use super::{READY, Request};
use crate::control::client::Client;
use crate::control::mountinfo;
use crate::control::{self, MetricsServer, Server, Service};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::fuse::{self, MountError, MountHandle, MountOptions};
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
    logging::describe(&request.store, &request.mountpoint);
    if readiness == Readiness::Foreground {
        logging::set_level(request.settings.log_level);
    }
    prepare_process(readiness)?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
    let opened = open_when_free(&request.store, &request.settings, &mut signals)?;
    let volume = &opened.volume;
    let mount = Arc::new(mount_volume(volume, request)?);
    let supervision = Arc::new(Supervision::new(volume.clone(), mount.mountpoint()));
    let reloader = Arc::new(Reloader::new(volume.clone(), supervision.clone(), request));
    let service: Arc<dyn Service> =
        Arc::new(VolumeService::new(&opened, request, reloader.clone()));
    let server = start_control(request, &service);
    let metrics = start_metrics(request, &service);
    let watched = Watched {
        mount,
        reloader,
        supervision: supervision.clone(),
        // Who closes a terminal wants to end what runs there.
        hangup_ends: io::stdin().is_terminal(),
    };
    let served = serve(request, Arc::new(watched), signals, log);
    supervision.stopping();
    // The volume still holds the store's lock, so this is our own socket.
    if let Some(server) = &server {
        server.stopping();
    }
    // So that the next daemon of the store finds the address free.
    drop(metrics);
    let outcome = served.and(close(volume, request));
    match &outcome {
        Ok(()) => log::info!("{} is unmounted and closed", request.store.display()),
        Err(failure) => log::error!("{failure}"),
    }
    if let Some(server) = &server {
        let failure = outcome.as_ref().err();
        server.stopped(failure.map(|failure| failure.message.clone()));
    }
    supervision.stopped();
    outcome
}

/// What the threads that watch signals and session need.
struct Watched {
    mount: Arc<MountHandle>,
    reloader: Arc<Reloader>,
    supervision: Arc<Supervision>,
    hangup_ends: bool,
}

/// Mounts, or closes the volume.
fn mount_volume(volume: &Arc<Volume>, request: &Request) -> Outcome<MountHandle> {
    fuse::mount(volume.clone(), &request.mountpoint, &fuse_options(request)).map_err(|error| {
        if let Err(failure) = close(volume, request) {
            log::error!("{failure}");
        }
        mount_failure(&error)
    })
}

fn mount_failure(error: &MountError) -> Failure {
    let denied = matches!(error, MountError::Mount { source, .. }
        if source.kind() == io::ErrorKind::PermissionDenied);
    let exit = if denied { Exit::Denied } else { Exit::Failed };
    Failure::new(exit, error)
}

/// Closes the volume if its session has not done so.
fn close(volume: &Volume, request: &Request) -> Outcome<()> {
    volume
        .shutdown()
        .context(format!("closing {}", request.store.display()))
}

/// Says that the mount is there, and returns when it has gone.
fn serve(
    request: &Request,
    watched: Arc<Watched>,
    signals: Signals,
    log: Option<Sink>,
) -> Outcome<()> {
    let (events, ended) = channel();
    let mount = &watched.mount;
    watch_session(mount.clone(), events.clone())?;
    watch_signals(signals, watched.clone(), events)?;
    let answers = probe(mount.mountpoint()).context("the mount does not answer");
    let announced = answers.and_then(|answer| {
        if answer != Answer::Fuse {
            return Err(Failure::failed("the mount is gone already"));
        }
        announce(log, request.settings.log_level)
            .context("nobody waits for this mount any more")?;
        watched.supervision.ready().context("thread")
    });
    if let Err(failure) = announced {
        log::error!("{failure}: unmounting");
        return mount.terminate().map_err(Failure::failed).and(Err(failure));
    }
    log::info!(
        "{} is mounted at {}",
        request.store.display(),
        request.mountpoint.display()
    );
    // No event at all means that both watchers are gone, and with them the mount.
    ended.recv().unwrap_or(Ok(()))
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
fn open_when_free(store: &Path, settings: &Settings, signals: &mut Signals) -> Outcome<Opened> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        if signals.pending().any(|signal| signal != SIGHUP) {
            return Err(Failure::new(Exit::Interrupted, "interrupted"));
        }
        match open_volume(store, settings) {
            Err(failure) if failure.exit == Exit::Busy && Instant::now() < deadline => {
                if let Some(holder) = holder(store) {
                    return Err(holder);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

/// Who has the store mounted, if that mount is still there.
fn holder(store: &Path) -> Option<Failure> {
    let status = Client::of_store(store).ok()?.status().ok()?;
    let point = status.mountpoint?;
    let mount = mountinfo::mount_at(Path::new(&point)).ok()??;
    let pid = status.pid.unwrap_or_default();
    (mount.store() == store).then(|| {
        let message = format!(
            "store {} is already mounted at {point} (pid {pid})",
            store.display()
        );
        Failure::new(Exit::Busy, message)
    })
}

/// A mount without metrics is better than none.
fn start_metrics(request: &Request, service: &Arc<dyn Service>) -> Option<MetricsServer> {
    let address = request.settings.metrics.as_ref()?;
    MetricsServer::start(address, service.clone())
        .inspect_err(|error| log::error!("no metrics at {address}: {error}"))
        .ok()
}

fn start_control(request: &Request, service: &Arc<dyn Service>) -> Option<Server> {
    let path = if request.settings.read_only {
        control::read_only_socket(&request.mountpoint)
    } else {
        control::store_socket(&request.store)
    };
    let service = service.clone();
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

/// Tells the launcher that the mount answers. A daemon in the background has a log of its own, and lets go of its
/// launcher's terminal.
fn announce(log: Option<Sink>, level: Option<LevelFilter>) -> io::Result<()> {
    let Some(log) = log else {
        return Ok(());
    };
    logging::redirect(log);
    logging::set_level(level);
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stderr(&null)?;
    writeln!(io::stdout(), "{READY}")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

fn fuse_options(request: &Request) -> MountOptions {
    let kernel = &request.settings.kernel;
    let flags = [
        (kernel.noatime, "noatime"),
        (kernel.noexec, "noexec"),
        (kernel.nosuid, "nosuid"),
        (!kernel.nosuid, "suid"),
        (kernel.nodev, "nodev"),
        (!kernel.nodev, "dev"),
        (kernel.sync, "sync"),
        (kernel.dirsync, "dirsync"),
    ];
    MountOptions {
        source: request.store.to_string_lossy().into_owned(),
        read_only: request.settings.read_only,
        allow_other: kernel.allow_other,
        flags: flags
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| name.to_string())
            .collect(),
        ..MountOptions::default()
    }
}

/// Turns the end of the FUSE session into an event.
fn watch_session(mount: Arc<MountHandle>, events: Sender<Outcome<()>>) -> Outcome<()> {
    let watch = move || {
        let _ = events.send(mount.wait().map_err(Failure::failed));
    };
    std::thread::Builder::new()
        .name("session-end".into())
        .spawn(watch)
        .context("thread")?;
    Ok(())
}

/// Turns SIGTERM and SIGINT into an unmount, by force of detaching if files are open, and SIGHUP into
/// a reload of the options.
fn watch_signals(
    mut signals: Signals,
    watched: Arc<Watched>,
    events: Sender<Outcome<()>>,
) -> Outcome<()> {
    let watch = move || {
        for signal in signals.forever() {
            if signal == SIGHUP && !watched.hangup_ends {
                // What is wrong with them is in the log.
                let _ = watched.reloader.reload(None);
                continue;
            }
            let mount = &watched.mount;
            log::info!(
                "signal {signal}: unmounting {}",
                mount.mountpoint().display()
            );
            watched.supervision.stopping();
            let _ = events.send(mount.terminate().map_err(Failure::failed));
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .context("thread")?;
    Ok(())
}
