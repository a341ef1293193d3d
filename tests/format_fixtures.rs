//! Stores that earlier versions wrote stay readable: one fixture for every released format.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{contents, model_codecs, quiet_options};
use s2sfs::store::{OpenOptions, RealStorage, Store};
use s2sfs::volume::{ROOT, Volume};

fn fixture(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/format-1")
        .join(part)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A copy of the store of format 1, which has its files in model, zstd and raw blocks.
fn store_copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture("store"), dir.path());
    dir
}

#[test]
fn a_store_of_format_1_reads_bit_for_bit() {
    let dir = store_copy();
    let store = Store::open(
        Arc::new(RealStorage::new(dir.path())),
        &OpenOptions::default(),
    )
    .unwrap();
    let volume = Volume::open(store, model_codecs(), quiet_options()).unwrap();
    for name in ["predictor.txt", "durability.md", "noise"] {
        let ino = volume.lookup(ROOT, name.as_bytes()).unwrap().ino;
        assert!(
            contents(&volume, ino) == std::fs::read(fixture("content").join(name)).unwrap(),
            "{name}"
        );
    }
    let info = volume
        .file_info(volume.lookup(ROOT, b"predictor.txt").unwrap().ino)
        .unwrap();
    assert!(info.codecs.contains_key("model"), "{:?}", info.codecs);
    let link = volume.lookup(ROOT, b"link").unwrap().ino;
    assert_eq!(volume.readlink(link).unwrap(), b"noise");
    let parent = volume.lookup(ROOT, b"dir").unwrap().ino;
    let log = volume.lookup(parent, b"app.log").unwrap().ino;
    assert!(contents(&volume, log) == std::fs::read(fixture("content/dir/app.log")).unwrap());
    volume.shutdown().unwrap();
}

#[test]
fn a_store_of_format_1_passes_the_check() {
    let dir = store_copy();
    let output = Command::new(env!("CARGO_BIN_EXE_s2sfs"))
        .arg("check")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
