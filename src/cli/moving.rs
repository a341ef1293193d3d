//! What import, export, send and receive have in common.

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use clap::Args;
use indicatif::ProgressBar;
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::output::{self, bytes};
use crate::control::mountinfo::{self, Mount};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;
use crate::transfer::{
    CopyError, CopyOptions, Pattern, Report, Target, Tree, Verify, Watch, WireError, copy, measure,
};

/// Options of import and export.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// How much of what was written is read back and compared with what was read
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    verify: VerifyArgument,
    /// Leave out what this pattern matches: names, or with a slash in it paths (can be given several times)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<OsString>,
    /// Threads that read and write (default: as the mount option says)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Machine-readable summary
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum VerifyArgument {
    /// Every file
    #[default]
    Full,
    /// One file out of 16
    Sample,
    /// No file; files that are there already are believed to be the same if size and time are
    Off,
}

impl From<VerifyArgument> for Verify {
    fn from(argument: VerifyArgument) -> Verify {
        match argument {
            VerifyArgument::Full => Verify::Full,
            VerifyArgument::Sample => Verify::Sample,
            VerifyArgument::Off => Verify::Off,
        }
    }
}

impl CopyArguments {
    pub fn options(&self, threads: usize, one_file_system: bool) -> CopyOptions {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let patterns = self.exclude.iter();
        CopyOptions {
            threads: self.threads.map_or(threads, usize::from),
            verify: self.verify.into(),
            exclude: patterns.map(|text| Pattern::new(text.as_bytes())).collect(),
            one_file_system,
            as_root: user.is_root(),
            owner: (user.as_raw(), group.as_raw()),
        }
    }
}

/// Becomes true with the first signal that asks the program to end; the second one ends it at once.
pub fn stop_on_signals() -> Outcome<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let code = Exit::Failed as i32;
        signal_hook::flag::register_conditional_shutdown(signal, code, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .context("cannot handle signals")?;
    }
    Ok(stop)
}

/// Directories on the way down to a file are open while it is copied.
pub fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::debug!("cannot raise the limit of open files: {error}");
    }
}

/// The absolute path of something that may not exist yet, without symbolic links.
pub fn absolute(path: &Path) -> Outcome<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let full = std::path::absolute(path).context(path.display())?;
            let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
                return Err(error).context(path.display());
            };
            Ok(parent.canonicalize().context(path.display())?.join(name))
        }
        other => other.context(path.display()),
    }
}

/// The mount that a path means: one at exactly this place, or one of the store there.
pub fn mount_of(path: &Path) -> Outcome<Option<Mount>> {
    if !path.exists() {
        return Ok(None);
    }
    let at = mountinfo::mount_at(path).context(path.display())?;
    if let Some(mount) = at.filter(Mount::is_s2sfs) {
        return Ok(Some(mount));
    }
    let store = path.canonicalize().context(path.display())?;
    let mounts = mountinfo::mounts().context("mounts")?;
    let mut of_store = mounts
        .into_iter()
        .filter(|mount| mount.is_s2sfs() && mount.store() == store);
    Ok(of_store.find(|mount| !mount::is_dead(&mount.point)))
}

pub fn is_read_only(mount: &Mount) -> bool {
    rustix::fs::statvfs(&mount.point)
        .is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Fails if one of two directories lies in the other.
pub fn check_apart(one: &Path, other: &Path) -> Outcome<()> {
    if one.starts_with(other) || other.starts_with(one) {
        return Err(Failure::usage(format!(
            "{} and {} must not lie inside each other",
            one.display(),
            other.display()
        )));
    }
    Ok(())
}

/// How a copy has ended.
pub type Copied = Result<Report, CopyError>;

/// Copies a tree with a progress bar, whose length is found out meanwhile.
pub fn copy_tree<S: Tree, T: Target>(
    what: &'static str,
    source: &S,
    target: &T,
    options: &CopyOptions,
    stop: &AtomicBool,
    last: &(dyn Fn() + Sync),
) -> Copied {
    let bar = output::progress_bar(what);
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        if !bar.is_hidden() {
            scope.spawn(|| measure_for(&bar, source, options, &done));
        }
        let watch = Watch {
            stop,
            progress: &|bytes| bar.inc(bytes),
            last,
        };
        let result = copy(source, target, options, &watch);
        done.store(true, Relaxed);
        result
    });
    bar.finish_and_clear();
    result
}

fn measure_for<S: Tree>(bar: &ProgressBar, source: &S, options: &CopyOptions, done: &AtomicBool) {
    let measured = measure(source, options, done, &|bytes| bar.inc_length(bytes));
    if let Err(error) = measured {
        log::debug!("measuring: {error}");
    }
}

/// Tells what was copied, and fails if anything was not, or if what had to be done after it has failed.
pub fn tell(arguments: &CopyArguments, copied: Copied, after: Outcome<()>) -> Outcome<()> {
    match (tell_copied(arguments, copied), after) {
        (Err(copied), Err(after)) => {
            eprintln!("s2sfs: {copied}");
            Err(after)
        }
        (copied, after) => copied.and(after),
    }
}

fn tell_copied(arguments: &CopyArguments, copied: Copied) -> Outcome<()> {
    let report = copied.map_err(|error| match error {
        CopyError::Interrupted => {
            Failure::failed("interrupted; the same command goes on where this one has ended")
        }
        error => Failure::failed(format!(
            "{error}; what is complete has its name, and the same command goes on from there"
        )),
    })?;
    match arguments.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    if report.failures == 0 {
        return Ok(());
    }
    for failed in &report.failed {
        eprintln!("s2sfs: {}: {}", failed.path, failed.why);
    }
    let listed = report.failed.len() as u64;
    if report.failures > listed {
        eprintln!("s2sfs: and {} more", report.failures - listed);
    }
    Err(Failure::failed(format!(
        "{} could not be copied as they are; everything else is there",
        plural(report.failures, "thing")
    )))
}

fn plural(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn describe(report: &Report) -> String {
    let mut text = format!(
        "{} with {}, {} of them read back and compared\n",
        plural(report.files, "file"),
        bytes(report.bytes),
        report.verified
    );
    let directories = match report.directories {
        1 => "1 directory".to_owned(),
        count => format!("{count} directories"),
    };
    let _ = write!(text, "{directories}");
    let counts = [
        (report.symlinks, "symlink"),
        (report.hard_links, "hard link"),
        (report.special, "special file"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        let _ = write!(text, ", {}", plural(count, what));
    }
    text.push('\n');
    if report.unchanged > 0 {
        let _ = writeln!(text, "{} there already", plural(report.unchanged, "file"));
    }
    if report.excluded > 0 {
        let _ = writeln!(text, "{} left out", plural(report.excluded, "name"));
    }
    text
}

/// What a failure of a stream means to a command.
pub fn wire_failure(error: &WireError) -> Failure {
    let exit = match error {
        WireError::Store(error) => return mount::store_failure(error),
        WireError::Foreign | WireError::Newer { .. } => Exit::NotAStore,
        WireError::Truncated(_) | WireError::Damaged { .. } => Exit::Damaged,
        WireError::Busy(_) => Exit::Busy,
        WireError::Refused(_) => Exit::Usage,
        WireError::Io(_) | WireError::Interrupted => Exit::Failed,
    };
    Failure::new(exit, error)
}
