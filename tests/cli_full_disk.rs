//! A full disk under the store. Needs root, for a small tmpfs.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/random.rs"]
mod random;

use random::noise;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use cli::*;

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Option<Tmpfs> {
        std::fs::create_dir(path).unwrap();
        let size = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Tmpfs(path.to_owned()));
        }
        skipped("needs root, to mount a small tmpfs");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_gives_enospc_then_unlink_works_and_frees_the_space() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let Some(disk) = Tmpfs::mount(&bed.store, "48M") else {
        return;
    };
    bed.mount("dirty=1M");
    std::fs::write(bed.mnt.join("small"), "kept").unwrap();
    std::fs::File::open(bed.mnt.join("small"))
        .unwrap()
        .sync_all()
        .unwrap();

    let (complete, error) = fill(&bed.mnt, "big");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert!(complete > 0);
    assert_eq!(std::fs::read(bed.mnt.join("small")).unwrap(), b"kept");
    for number in 0..=complete {
        let _ = std::fs::remove_file(bed.mnt.join(format!("big{number}")));
    }
    assert!(!bed.mnt.join("big0").exists());
    wait_until("room for new data", || {
        write_synced(&bed.mnt.join("again"), &noise(77, 2 << 20)).is_ok()
    });
    bed.umount();
    let output = bed.check();
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    bed.mount("");
    assert_eq!(std::fs::read(bed.mnt.join("small")).unwrap(), b"kept");
    assert_eq!(
        std::fs::read(bed.mnt.join("again")).unwrap(),
        noise(77, 2 << 20)
    );
    bed.umount();
    drop(disk);
}

/// Writes files of noise until that fails; returns how many are complete, and the error.
fn fill(dir: &Path, name: &str) -> (u64, io::Error) {
    for number in 0..1000 {
        if let Err(error) = write_synced(
            &dir.join(format!("{name}{number}")),
            &noise(number, 4 << 20),
        ) {
            return (number, error);
        }
    }
    panic!("the disk never became full");
}

fn write_synced(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(contents)?;
    file.sync_all()
}
