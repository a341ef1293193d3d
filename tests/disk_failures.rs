//! The disk under a store fails: reads, writes and flushes give EIO, or it is full. The call that failed
//! says so, nothing acknowledged is lost, and after a remount (or with space again) work goes on.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
mod common;

use cli::{Bed, exit, skipped, wait_until};
use common::disk::{Disk, Ext4, scratch, unusable};
use common::{caller, contents, fresh, noise, open, put, text};
use s2sfs::store::{Fault, SimOp, SimStorage};
use s2sfs::volume::{ROOT, Volume, VolumeError, WriteMode};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

const EIO: Option<i32> = Some(libc::EIO);

fn write(volume: &Volume, name: &str, data: &[u8]) -> Result<u64, VolumeError> {
    let ino = volume.create(ROOT, name.as_bytes(), 0o644, caller())?.ino;
    volume.write(ino, 0, data, WriteMode::default())?;
    Ok(ino)
}

fn reopened(storage: &SimStorage, volume: Arc<Volume>, crash: u64) -> Arc<Volume> {
    volume.abandon();
    drop(volume);
    storage.crash(crash);
    open(storage)
}

#[test]
fn a_failed_write_of_the_log_is_an_error_until_the_next_mount_and_loses_nothing() {
    for seed in 0..8 {
        let (storage, volume) = fresh();
        let kept = put(&volume, "kept", &noise(seed, 50_000)).ino;
        volume.fsync(kept).unwrap();
        let ino = write(&volume, "failed", &noise(9, 50_000)).unwrap();
        storage.set_fault(Some(Fault::FailAll(SimOp::Write, libc::EIO)));
        assert_eq!(volume.fsync(ino).unwrap_err().errno(), libc::EIO);
        storage.set_fault(None);
        // The disk works again, but nobody knows what it has.
        assert_eq!(volume.fsync(ino).unwrap_err().errno(), libc::EIO);
        assert!(volume.mkdir(ROOT, b"d", 0o755, caller()).is_err());
        assert!(volume.unlink(ROOT, b"kept").is_err());
        assert!(contents(&volume, kept) == noise(seed, 50_000));
        let volume = reopened(&storage, volume, seed);
        assert!(contents(&volume, kept) == noise(seed, 50_000));
        let again = put(&volume, "again", b"works").ino;
        volume.fsync(again).unwrap();
        let volume = reopened(&storage, volume, seed);
        assert_eq!(contents(&volume, again), b"works");
    }
}

#[test]
fn a_failed_truncation_of_the_log_stops_changes_and_loses_nothing() {
    let (storage, volume) = fresh();
    let kept = put(&volume, "kept", &text(1, 50_000)).ino;
    volume.fsync(kept).unwrap();
    let ino = write(&volume, "f", &noise(9, 50_000)).unwrap();
    // No space, and the half-written record cannot be cut off either.
    storage.set_capacity(0);
    storage.set_fault(Some(Fault::FailAll(SimOp::Truncate, libc::EIO)));
    assert!(volume.fsync(ino).is_err());
    storage.set_capacity(1 << 30);
    storage.set_fault(None);
    let volume = reopened(&storage, volume, 3);
    assert!(contents(&volume, kept) == text(1, 50_000));
}

#[test]
fn a_failed_flush_of_settled_blocks_lets_go_of_nothing() {
    for seed in 0..3 {
        let (storage, volume) = fresh();
        let data = text(seed, 60_000);
        let ino = put(&volume, "f.txt", &data).ino;
        volume.fsync(ino).unwrap();
        // The journal is synced first and has nothing new, so the first flush is that of the blocks.
        storage.set_fault(Some(Fault::FailKind(SimOp::SyncData, 0, libc::EIO)));
        assert!(volume.settle(&|_, _| {}).is_err());
        assert!(contents(&volume, ino) == data);
        let volume = reopened(&storage, volume, seed);
        assert!(contents(&volume, ino) == data);
        volume.settle(&|_, _| {}).unwrap();
        let volume = reopened(&storage, volume, seed);
        assert!(contents(&volume, ino) == data);
    }
}

#[test]
fn a_failed_read_is_an_error_of_that_read_only() {
    let (storage, volume) = fresh();
    let data = noise(1, 400_000);
    let ino = put(&volume, "f", &data).ino;
    volume.settle(&|_, _| {}).unwrap();
    volume.shutdown().unwrap();
    drop(volume);
    let volume = open(&storage);
    storage.set_fault(Some(Fault::FailAll(SimOp::Read, libc::EIO)));
    let error = volume.read(ino, 0, 4096).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    // What cannot be read does not stop what can be written.
    let other = put(&volume, "other", b"written meanwhile").ino;
    volume.fsync(other).unwrap();
    storage.set_fault(None);
    assert!(contents(&volume, ino) == data, "the next read tries again");
    let volume = reopened(&storage, volume, 1);
    assert_eq!(contents(&volume, other), b"written meanwhile");
    assert!(contents(&volume, ino) == data);
}

#[test]
fn a_rename_onto_a_full_disk_leaves_the_old_file() {
    let (storage, volume) = fresh();
    let old = put(&volume, "name", &noise(1, 50_000)).ino;
    volume.fsync(old).unwrap();
    write(&volume, "new", &noise(2, 500_000)).unwrap();
    storage.set_capacity(0);
    let place = |name: &'static [u8]| s2sfs::volume::Place { parent: ROOT, name };
    let refused = volume.rename(place(b"new"), place(b"name"), Default::default());
    assert_eq!(refused.unwrap_err().errno(), libc::ENOSPC);
    assert_eq!(volume.lookup(ROOT, b"name").unwrap().ino, old);
    storage.set_capacity(1 << 30);
    volume
        .rename(place(b"new"), place(b"name"), Default::default())
        .unwrap();
    volume.sync_log().unwrap();
    let volume = reopened(&storage, volume, 5);
    let ino = volume.lookup(ROOT, b"name").unwrap().ino;
    assert!(contents(&volume, ino) == noise(2, 500_000));
}

/// A store on ext4 on a disk that fails on request.
struct Bench {
    bed: Bed,
    disk: Disk,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Option<Bench> {
        if let Some(why) = unusable() {
            skipped(why);
            return None;
        }
        let dir = scratch();
        let disk = Disk::new(dir.path(), 160 << 20);
        Ext4::make(&disk.device);
        let bed = Bed::on(&dir.path().join("ext4").join("store"));
        Some(Bench { bed, disk, dir })
    }

    fn ext4(&self) -> Ext4 {
        Ext4::mount(&self.disk.device, &self.dir.path().join("ext4"))
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.bed.mnt.join(name)
    }

    /// Unmounts the store, which must not be damaged, and what is below it.
    fn unmount_clean(&self, ext4: Ext4) {
        self.bed.umount();
        let output = self.bed.check();
        let code = output.status.code();
        assert_eq!(code, Some(exit::OK), "{}", cli::text(&output));
        ext4.unmount();
    }
}

fn write_synced(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(data)?;
    file.sync_all()
}

#[test]
fn a_disk_that_gives_eio_is_reported_by_fsync_and_loses_nothing_acknowledged() {
    let Some(bench) = Bench::new() else { return };
    for (round, flushes) in [false, true].into_iter().enumerate() {
        let ext4 = bench.ext4();
        bench.bed.mount("policy=fast");
        let data = noise(round as u64, 300_000);
        write_synced(&bench.file(&format!("kept{round}")), &data).unwrap();
        match flushes {
            true => bench.disk.fail_flushes(true),
            false => bench.disk.fail_writes(true),
        }
        let failed = write_synced(&bench.file("failed"), &noise(7, 300_000)).unwrap_err();
        // ext4 may have made itself read-only before the daemon wrote.
        let reported = [EIO, Some(libc::EROFS)].contains(&failed.raw_os_error());
        assert!(reported, "{failed}");
        bench.disk.fail_flushes(false);
        bench.disk.fail_writes(false);
        let refused = write_synced(&bench.file("refused"), b"x").unwrap_err();
        assert_eq!(refused.raw_os_error(), EIO, "{refused}");
        assert!(std::fs::read(bench.file(&format!("kept{round}"))).unwrap() == data);
        cli::kill(bench.bed.pid());
        common::disk::run("umount", &["-l", bench.bed.mnt.to_str().unwrap()]);
        ext4.unmount();
    }
    let ext4 = bench.ext4();
    bench.bed.mount("policy=fast");
    for round in 0..2 {
        let found = std::fs::read(bench.file(&format!("kept{round}"))).unwrap();
        assert!(found == noise(round, 300_000), "round {round}");
    }
    write_synced(&bench.file("again"), b"works").unwrap();
    bench.unmount_clean(ext4);
}

#[test]
fn a_disk_that_cannot_be_read_gives_eio_to_the_reader_and_works_again_later() {
    let Some(bench) = Bench::new() else { return };
    let ext4 = bench.ext4();
    bench.bed.mount("policy=fast");
    // Far more than what reading ahead brings into memory.
    let data = noise(1, 24 << 20);
    write_synced(&bench.file("f"), &data).unwrap();
    bench.bed.settle();
    bench.bed.umount();
    ext4.unmount();
    let ext4 = bench.ext4();
    bench.bed.mount("policy=fast");
    // Where this is not allowed, the length must do.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
    bench.disk.fail_reads(true);
    let failed = std::fs::read(bench.file("f")).unwrap_err();
    assert_eq!(failed.raw_os_error(), EIO, "{failed}");
    bench.disk.fail_reads(false);
    assert!(std::fs::read(bench.file("f")).unwrap() == data);
    bench.bed.umount();
    ext4.unmount();
}

#[test]
fn a_full_ext4_gives_enospc_keeps_what_was_acknowledged_and_goes_on_when_freed() {
    let Some(bench) = Bench::new() else { return };
    let ext4 = bench.ext4();
    bench.bed.mount("policy=fast,dirty=1M,segment=4M");
    let mut kept = 0;
    let error = loop {
        let name = format!("f{kept}");
        match write_synced(&bench.file(&name), &noise(kept, 3 << 20)) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 100, "the disk never became full");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    // Killed while it is full: what was acknowledged is there, and there is room to recover.
    cli::kill(bench.bed.pid());
    bench.bed.mount("policy=fast,dirty=1M,segment=4M");
    for number in 0..kept {
        let found = std::fs::read(bench.file(&format!("f{number}"))).unwrap();
        assert!(found == noise(number, 3 << 20), "file {number}");
    }
    for number in 0..kept / 2 {
        std::fs::remove_file(bench.file(&format!("f{number}"))).unwrap();
    }
    let _ = std::fs::remove_file(bench.file(&format!("f{kept}")));
    wait_until("room for new data", || {
        write_synced(&bench.file("again"), &noise(77, 3 << 20)).is_ok()
    });
    bench.unmount_clean(ext4);
}
