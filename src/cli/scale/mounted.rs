//! The same with a daemon and the kernel between: small files through a mount.

use std::path::Path;
use std::time::{Duration, Instant};

use super::step::{Values, directories, sample, small_file};
use crate::cli::suite::mounted::{Bed, Bench, run, timed};
use crate::cli::suite::speeds::memory_of;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;

/// How long a killed daemon may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// Measures a store of `count` small files on a mount.
pub fn measure(work: &Path, options: &str, count: u64) -> Outcome<Values> {
    let bench = Bench {
        work: work.to_owned(),
        options: Some(options.to_owned()),
    };
    let mut values = Values::new();
    let mut note = |name: &str, time: Duration| {
        values.insert(name.into(), time.as_secs_f64().max(1e-9));
    };
    let bed = bench.fresh(&format!("mounted-{count}"))?;
    note("create", timed(|| create(&bed, count))?.1);
    let filled = memory_of(bed.daemon()?)?;
    note("unmount", timed(|| bed.umount())?.1);
    note("mount", timed(|| bed.mount())?.1);
    let mounted = memory_of(bed.daemon()?)?;
    let (mut numbers, part) = sample(count);
    let each = |number| {
        let path = bed.mountpoint.join(path_of(number));
        path.symlink_metadata().context(path.display()).map(drop)
    };
    let (_, time) = timed(|| numbers.try_for_each(each))?;
    note("lookup", time.mul_f64(part));
    note("readdir", timed(|| read_directories(&bed, count))?.1);
    let (mut numbers, part) = sample(count);
    let (_, time) = timed(|| numbers.try_for_each(|n| compare(&bed, n)))?;
    note("read", time.mul_f64(part));
    let served = memory_of(bed.daemon()?)?;
    kill(&bed)?;
    note("recover", timed(|| bed.mount())?.1);
    let recovered = memory_of(bed.daemon()?)?;
    let (mut numbers, part) = sample(count);
    let remove = |number| {
        let path = bed.mountpoint.join(path_of(number));
        std::fs::remove_file(&path).context(path.display())
    };
    let (_, time) = timed(|| numbers.try_for_each(remove))?;
    note("unlink", time.mul_f64(part));
    bed.umount()?;
    for (name, memory) in [
        ("filled", filled.now),
        ("mounted", mounted.now),
        ("serving", served.now),
        ("peak_filling", filled.peak),
        ("peak_serving", served.peak),
        ("peak_recovering", recovered.peak),
    ] {
        values.insert(format!("{name}_rss_bytes"), memory as f64);
    }
    Ok(values)
}

fn path_of(number: u64) -> String {
    let (dir, name, _) = small_file(number);
    format!("{dir}/{name}")
}

/// Makes the files, as durable as `sync` makes them.
fn create(bed: &Bed, count: u64) -> Outcome<()> {
    let mut last = String::new();
    for number in 0..count {
        let (dir, name, bytes) = small_file(number);
        let dir_path = bed.mountpoint.join(&dir);
        if dir != last {
            std::fs::create_dir(&dir_path).context(dir_path.display())?;
            last = dir;
        }
        let path = dir_path.join(name);
        std::fs::write(&path, bytes).context(path.display())?;
    }
    let root = std::fs::File::open(&bed.mountpoint).context(bed.mountpoint.display())?;
    rustix::fs::syncfs(&root).context("sync")
}

fn read_directories(bed: &Bed, count: u64) -> Outcome<()> {
    let mut found = 0;
    for dir in 0..directories(count) {
        let path = bed.mountpoint.join(format!("{dir:06}"));
        for entry in std::fs::read_dir(&path).context(path.display())? {
            entry.context(path.display())?;
            found += 1;
        }
    }
    match found == count {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "{found} files of {count} are listed"
        ))),
    }
}

fn compare(bed: &Bed, number: u64) -> Outcome<()> {
    let path = bed.mountpoint.join(path_of(number));
    let bytes = std::fs::read(&path).context(path.display())?;
    match bytes == small_file(number).2 {
        true => Ok(()),
        false => Err(Failure::new(
            Exit::Damaged,
            format!("{} has other bytes than were written", path.display()),
        )),
    }
}

/// Changes something, and kills the daemon.
fn kill(bed: &Bed) -> Outcome<()> {
    let made = bed.mountpoint.join("killed");
    std::fs::create_dir(&made).context(made.display())?;
    let pid = i32::try_from(bed.daemon()?).ok();
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::failed("the daemon has no pid"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("kill")?;
    let begun = Instant::now();
    while !mount::is_dead(&bed.mountpoint) {
        if begun.elapsed() > DYING {
            return Err(Failure::failed("the daemon does not die"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut command = std::process::Command::new("/proc/self/exe");
    run(command.arg("umount").arg(&bed.mountpoint)).map(drop)
}
