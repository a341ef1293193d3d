//! Opens a store as a volume under mount options, and answers requests about it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Request;
use super::models::{codecs_of_store, keep_model};
use super::reload::Reloader;
use crate::codec::Codecs;
use crate::control::{
    AgainStatus, FileInfo, FileUsage, ReloadReport, ScrubAction, ScrubOptions, ScrubStatus,
    Service, ServiceError, Status, WhileHeld,
};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::fuse;
use crate::options::Settings;
use crate::store::{OpenOptions, RealStorage, Store, StoreError};
use crate::volume::{self, RepairReport, SurveyedFile, Tuning, Volume, VolumeError, VolumeOptions};

/// Longer than any mount lasts, and short enough for clock arithmetic.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Opens the store at `path`, under its lock; a missing or empty one is made if the settings allow
/// changes.
pub fn open_store(path: &Path, options: &OpenOptions) -> Outcome<Store> {
    let storage = Arc::new(RealStorage::new(path));
    Store::open(storage, options).map_err(|e| store_failure(&e))
}

/// Opens the store at `path` read-only, however damaged it is, for a check.
pub fn open_damaged(path: &Path) -> Outcome<Store> {
    let storage = Arc::new(RealStorage::new(path));
    Store::open_damaged(storage, &OpenOptions::default(), false).map_err(|e| store_failure(&e))
}

/// Mends the store at `path`.
pub fn repair_store(
    path: &Path,
    codecs: &Arc<Codecs>,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Outcome<RepairReport> {
    let storage = Arc::new(RealStorage::new(path));
    // For who may not repair it, or should not: the reason, in the terms of every command.
    drop(
        Store::open_damaged(storage.clone(), &OpenOptions::default(), false)
            .map_err(|e| store_failure(&e))?,
    );
    volume::repair(storage, &OpenOptions::default(), codecs, threads, progress)
        .map_err(|e| volume_failure(path, &e))
}

/// A volume and the name of the model that encodes for it.
pub struct Opened {
    pub volume: Arc<Volume>,
    pub model: String,
}

/// Opens the store at `path` and the volume in it.
pub fn open_volume(path: &Path, settings: &Settings) -> Outcome<Opened> {
    let options = OpenOptions {
        create: !settings.read_only,
        read_only: settings.read_only,
        segment_bytes: settings.segment_bytes,
        ..OpenOptions::default()
    };
    // First, so that a wrong model does not leave a new store behind.
    let codecs = codecs_of_store(settings, path)?;
    let store = open_store(path, &options)?;
    keep_model(settings, &store, &codecs)?;
    let model = codecs.encoding_model_name().unwrap_or_default();
    let tuning = tuning(settings);
    let options = VolumeOptions {
        cache_bytes: tuning.cache_bytes,
        dirty_bytes: tuning.dirty_bytes,
        threads: settings.threads,
        policy: tuning.policy,
        extent: settings.extent,
        group: tuning.group,
        settle_after: tuning.settle_after,
        idle: settings.idle,
        verify: settings.verify,
        relatime: tuning.relatime,
        read_only: settings.read_only,
    };
    let codecs = Arc::new(codecs);
    let volume = std::thread::scope(|scope| {
        if settings.policy.models() {
            scope.spawn(|| codecs.preload());
        }
        Volume::open(store, codecs.clone(), options)
    });
    let volume = volume.map_err(|e| volume_failure(path, &e))?;
    Ok(Opened { volume, model })
}

/// What of the settings can be changed while the store is open.
pub fn tuning(settings: &Settings) -> Tuning {
    Tuning {
        cache_bytes: settings.cache_bytes,
        dirty_bytes: settings.dirty_bytes,
        policy: settings.policy,
        group: settings.group,
        settle_after: settings.settle_after.unwrap_or(NEVER),
        relatime: !settings.kernel.noatime,
    }
}

/// The status of a store that nobody has mounted.
pub fn unmounted_status(path: &Path) -> Outcome<Status> {
    let path = path.canonicalize().context(path.display())?;
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let store = open_store(&path, &options)?;
    let status = volume::file_totals(&store).map_err(|e| volume_failure(&path, &e))?;
    Ok(complete(status, &path))
}

/// Opens a store that nobody has mounted, without changing it, and visits its files.
pub fn survey_unmounted(path: &Path, visit: impl FnMut(SurveyedFile)) -> Outcome<Status> {
    let path = path.canonicalize().context(path.display())?;
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let store = open_store(&path, &options)?;
    volume::survey(&store, visit).map_err(|e| volume_failure(&path, &e))?;
    let status = volume::file_totals(&store).map_err(|e| volume_failure(&path, &e))?;
    Ok(complete(status, &path))
}

fn complete(status: Status, store: &Path) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        store: store.display().to_string(),
        ..status
    }
}

/// What a failure of the store means to a command.
pub fn store_failure(error: &StoreError) -> Failure {
    let exit = match error {
        StoreError::Locked(_) => Exit::Busy,
        StoreError::NotAStore(_)
        | StoreError::Missing(_)
        | StoreError::NewerFormat { .. }
        | StoreError::UnknownFeature { .. } => Exit::NotAStore,
        StoreError::Damaged { .. } => Exit::Damaged,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// What a failure of the volume in the store at `path` means to a command.
pub fn volume_failure(path: &Path, error: &VolumeError) -> Failure {
    let exit = match error {
        VolumeError::Damaged { .. } | VolumeError::Unreadable { .. } => Exit::Damaged,
        VolumeError::NewerFormat { .. } => Exit::NotAStore,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{}: {error}", path.display()))
}

/// Answers the control socket for a mounted volume.
pub struct VolumeService {
    volume: Arc<Volume>,
    model: String,
    store: PathBuf,
    mountpoint: PathBuf,
    started: Instant,
    reloader: Arc<Reloader>,
}

impl VolumeService {
    pub fn new(opened: &Opened, request: &Request, reloader: Arc<Reloader>) -> VolumeService {
        VolumeService {
            reloader,
            volume: opened.volume.clone(),
            model: opened.model.clone(),
            store: request.store.clone(),
            mountpoint: request.mountpoint.clone(),
            started: Instant::now(),
        }
    }
}

impl Service for VolumeService {
    fn status(&self) -> Result<Status, ServiceError> {
        let mut status = Status {
            pid: Some(std::process::id()),
            mounted: true,
            mountpoint: Some(self.mountpoint.display().to_string()),
            model: self.model.clone(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            ..self.volume.status().map_err(service_error)?
        };
        (status.errors.io, status.errors.no_space) = fuse::failures();
        Ok(complete(status, &self.store))
    }

    fn settle(&self, progress: &dyn Fn(u64, u64)) -> Result<(), ServiceError> {
        self.volume.settle(progress).map_err(service_error)
    }

    fn settle_again(
        &self,
        inos: &[u64],
        progress: Option<&dyn Fn(u64, u64)>,
    ) -> Result<AgainStatus, ServiceError> {
        let recoded = self.volume.settle_again(inos, progress);
        Ok(recoded.map_err(service_error)?.into())
    }

    fn freeze(&self, timeout: Duration) -> Result<u64, ServiceError> {
        self.volume.freeze(timeout).map_err(service_error)
    }

    fn thaw(&self, number: Option<u64>) -> Result<(), ServiceError> {
        self.volume.thaw(number).map_err(service_error)
    }

    fn scrub(
        &self,
        action: ScrubAction,
        options: ScrubOptions,
    ) -> Result<ScrubStatus, ServiceError> {
        self.volume.scrub(action, options).map_err(service_error)
    }

    fn reclaim(&self, progress: &dyn Fn(u64, u64)) -> Result<(u64, u64), ServiceError> {
        let report = self.volume.reclaim(progress).map_err(service_error)?;
        Ok((report.bytes_freed, report.bytes_copied))
    }

    fn hold(&self, held: &mut WhileHeld<'_>) -> Result<(), ServiceError> {
        let files = self.volume.hold().map_err(service_error)?;
        held(files.files(), &|| self.volume.is_stopping());
        Ok(())
    }

    fn reload(&self, options: Option<Vec<String>>) -> Result<ReloadReport, ServiceError> {
        self.reloader.reload(options).map_err(ServiceError::new)
    }

    fn file_info(&self, ino: u64) -> Result<FileInfo, ServiceError> {
        self.volume.file_info(ino).map_err(service_error)
    }

    fn usage(&self, inos: &[u64]) -> Vec<FileUsage> {
        let usage = |ino| self.volume.usage(ino);
        let told = |&ino| usage(ino).unwrap_or_else(|error| FileUsage::failed(ino, error));
        inos.iter().map(told).collect()
    }
}

fn service_error(error: VolumeError) -> ServiceError {
    ServiceError {
        errno: Some(error.errno()),
        message: error.to_string(),
    }
}
