//! Other file systems with the same files, measured as ours is.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::compare::{self, SQUASHFS_OPTIONS};
use super::files::{self, Entry};
use super::mounted::{run, timed};
use super::speeds::{self, Mounted, Speeds};
use crate::control::mountinfo::mount_at;
use crate::exit::{Context, Failure, Outcome};

/// How long a daemon may take to mount.
const MOUNTING: Duration = Duration::from_secs(10);
/// Room of a file system that is filled by copying.
const ROOM: u64 = 512 << 20;

/// A file system to compare with.
struct Rival {
    name: &'static str,
    kind: Kind,
}

enum Kind {
    /// An image made by `mksquashfs` with these options; mounted by the kernel, or by a daemon.
    Squashfs(&'static [&'static str], By),
    /// An image made by `mkfs.erofs` with these options.
    Erofs(&'static [&'static str]),
    /// A file system on a loop device, mounted with these options, that the files are copied into.
    Btrfs(&'static str),
    /// A directory, passed through by a daemon that does nothing else: the floor for what FUSE costs.
    Bindfs,
}

enum By {
    Kernel,
    Squashfuse,
}

const RIVALS: [Rival; 8] = [
    Rival {
        name: "squashfs zstd-19 128K",
        kind: Kind::Squashfs(&SQUASHFS_OPTIONS, By::Kernel),
    },
    Rival {
        name: "squashfs zstd-19 1M",
        kind: Kind::Squashfs(
            &["-comp", "zstd", "-Xcompression-level", "19", "-b", "1M"],
            By::Kernel,
        ),
    },
    Rival {
        name: "squashfs xz 128K",
        kind: Kind::Squashfs(&["-comp", "xz", "-b", "128K"], By::Kernel),
    },
    Rival {
        name: "squashfs xz 1M",
        kind: Kind::Squashfs(&["-comp", "xz", "-b", "1M"], By::Kernel),
    },
    Rival {
        name: "squashfuse zstd-19 128K",
        kind: Kind::Squashfs(&SQUASHFS_OPTIONS, By::Squashfuse),
    },
    Rival {
        name: "erofs lz4hc 64K",
        kind: Kind::Erofs(&["-zlz4hc,12", "-C65536"]),
    },
    Rival {
        name: "btrfs zstd:15",
        kind: Kind::Btrfs("compress-force=zstd:15"),
    },
    Rival {
        name: "bindfs, not compressed",
        kind: Kind::Bindfs,
    },
];

/// A file system with the files of a class. What could not be measured says why.
#[derive(Debug, Serialize)]
pub struct RivalRow {
    pub class: String,
    pub system: String,
    pub raw_bytes: u64,
    pub stored_bytes: Option<u64>,
    /// Until the files are in it, in their final form.
    pub write_mb_per_second: Option<f64>,
    pub speeds: Option<Speeds>,
    pub why_not: Option<String>,
}

/// Measures all rivals with the files of a class. One that is not there or fails has a row that says so.
pub fn measure(work: &Path, class: &Path, entries: &[Entry], reads: usize) -> Vec<RivalRow> {
    let raw_bytes = entries.iter().map(|entry| entry.len).sum();
    let name = class.file_name().unwrap_or_default().to_string_lossy();
    let row = |rival: &Rival| {
        eprintln!("class {name}, {}", rival.name);
        let mut row = RivalRow {
            class: name.clone().into_owned(),
            system: rival.name.to_owned(),
            raw_bytes,
            stored_bytes: None,
            write_mb_per_second: None,
            speeds: None,
            why_not: None,
        };
        if let Err(failure) = fill(&mut row, rival, work, (class, entries), reads) {
            row.why_not = Some(failure.to_string());
        }
        row
    };
    RIVALS.iter().map(row).collect()
}

fn fill(
    row: &mut RivalRow,
    rival: &Rival,
    work: &Path,
    (class, entries): (&Path, &[Entry]),
    reads: usize,
) -> Outcome<()> {
    let mut bed = RivalBed::new(rival, work)?;
    let (stored, time) = timed(|| bed.make(class))?;
    row.stored_bytes = Some(stored);
    row.write_mb_per_second = Some(row.raw_bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9));
    row.speeds = Some(speeds::measure(&mut bed, class, entries, reads)?);
    Ok(())
}

/// One rival, its image or directory, and its mount point. Unmounted and deleted when dropped.
struct RivalBed<'a> {
    rival: &'a Rival,
    image: PathBuf,
    mountpoint: PathBuf,
    daemon: Option<Child>,
}

impl<'a> RivalBed<'a> {
    fn new(rival: &'a Rival, work: &Path) -> Outcome<RivalBed<'a>> {
        let bed = RivalBed {
            rival,
            image: work.join("rival.image"),
            mountpoint: work.join("rival.mnt"),
            daemon: None,
        };
        std::fs::create_dir_all(&bed.mountpoint).context(bed.mountpoint.display())?;
        Ok(bed)
    }

    /// Puts the files of `tree` in; returns the bytes that they take there.
    fn make(&mut self, tree: &Path) -> Outcome<u64> {
        let image = self.image.clone();
        match &self.rival.kind {
            Kind::Squashfs(options, _) => {
                compare::make_squashfs(tree, &image, options)?;
            }
            Kind::Erofs(options) => {
                let mut command = Command::new("mkfs.erofs");
                run(command.args(*options).arg(&image).arg(tree))?;
            }
            Kind::Btrfs(_) => return self.fill_btrfs(tree),
            Kind::Bindfs => {
                run(Command::new("cp").arg("-r").arg(tree).arg(&image))?;
                return compare::allocated(&image);
            }
        }
        Ok(std::fs::metadata(&image).context(image.display())?.len())
    }

    /// What the files take beside what an empty file system takes.
    fn fill_btrfs(&mut self, tree: &Path) -> Outcome<u64> {
        let image = std::fs::File::create(&self.image).context(self.image.display())?;
        image.set_len(ROOM).context(self.image.display())?;
        run(Command::new("mkfs.btrfs").arg("-q").arg(&self.image))?;
        self.mount()?;
        let used = || {
            let status =
                rustix::fs::statvfs(&self.mountpoint).context(self.mountpoint.display())?;
            Ok::<u64, Failure>((status.f_blocks - status.f_bfree) * status.f_frsize)
        };
        let empty = used()?;
        let target = self.mountpoint.join("class");
        run(Command::new("cp").arg("-r").arg(tree).arg(&target))?;
        run(Command::new("sync").arg("-f").arg(&target))?;
        Ok(used()?.saturating_sub(empty))
    }

    fn mount(&mut self) -> Outcome<()> {
        let (file_system, options) = match &self.rival.kind {
            Kind::Squashfs(_, By::Squashfuse) => {
                return self.start(&["squashfuse", "-f"]);
            }
            Kind::Bindfs => return self.start(&["bindfs", "-f"]),
            Kind::Squashfs(..) => ("squashfs", "loop,ro".to_owned()),
            Kind::Erofs(_) => ("erofs", "loop,ro".to_owned()),
            Kind::Btrfs(options) => ("btrfs", format!("loop,{options}")),
        };
        let mut command = Command::new("mount");
        command.args(["-t", file_system, "-o", &options]);
        run(command.arg(&self.image).arg(&self.mountpoint)).map(drop)
    }

    /// Starts a daemon that mounts, and waits until it has.
    fn start(&mut self, command: &[&str]) -> Outcome<()> {
        let mut daemon = Command::new(command[0]);
        daemon
            .args(&command[1..])
            .arg(&self.image)
            .arg(&self.mountpoint);
        daemon
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let daemon = self.daemon.insert(daemon.spawn().context(command[0])?);
        let begun = Instant::now();
        while !matches!(mount_at(&self.mountpoint), Ok(Some(_))) {
            let ended = daemon.try_wait().context(command[0])?;
            if ended.is_some() || begun.elapsed() > MOUNTING {
                return Err(Failure::failed(format!("{} does not mount", command[0])));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn umount(&mut self) -> Outcome<()> {
        let is_mounted = matches!(mount_at(&self.mountpoint), Ok(Some(_)));
        if is_mounted {
            run(Command::new("umount").arg(&self.mountpoint))?;
        }
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        if !is_mounted {
            // it would not end by itself; if it has, there is nothing to kill
            let _ = daemon.kill();
        }
        daemon.wait().context("daemon").map(drop)
    }
}

impl Mounted for RivalBed<'_> {
    fn root(&self) -> PathBuf {
        match self.rival.kind {
            Kind::Btrfs(_) => self.mountpoint.join("class"),
            _ => self.mountpoint.clone(),
        }
    }

    fn restart_cold(&mut self) -> Outcome<()> {
        self.umount()?;
        match self.image.is_dir() {
            true => files::forget_cached(&self.image)?,
            false => files::forget_file(&self.image)?,
        }
        self.mount()
    }

    fn daemon(&self) -> Outcome<Option<u32>> {
        Ok(self.daemon.as_ref().map(Child::id))
    }

    fn is_writable(&self) -> bool {
        matches!(self.rival.kind, Kind::Btrfs(_) | Kind::Bindfs)
    }
}

impl Drop for RivalBed<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.umount() {
            eprintln!("{}: {failure}", self.rival.name);
            return;
        }
        let _ = std::fs::remove_dir(&self.mountpoint);
        let _ = match self.image.is_dir() {
            true => std::fs::remove_dir_all(&self.image),
            false => std::fs::remove_file(&self.image),
        };
    }
}
