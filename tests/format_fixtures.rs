//! Stores that earlier versions wrote stay readable: one fixture for every released format.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{contents, model_codecs, quiet_options};
use s2sfs::codec::Codecs;
use s2sfs::store::{OpenOptions, RealStorage, Store};
use s2sfs::volume::{ROOT, Volume};

fn fixture(name: &str, part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
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

/// A copy of a store: `format-1` has its files in model, zstd and raw blocks, `network-1` one by a network of
/// the first kind.
fn store_copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture(name, "store"), dir.path());
    dir
}

fn check(store: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_s2sfs"))
        .arg("check")
        .arg(store)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_store_of_format_1_reads_bit_for_bit() {
    let dir = store_copy("format-1");
    let store = Store::open(
        Arc::new(RealStorage::new(dir.path())),
        &OpenOptions::default(),
    )
    .unwrap();
    let volume = Volume::open(store, model_codecs(), quiet_options()).unwrap();
    for name in ["predictor.txt", "durability.md", "noise"] {
        let ino = volume.lookup(ROOT, name.as_bytes()).unwrap().ino;
        assert!(
            contents(&volume, ino)
                == std::fs::read(fixture("format-1", "content").join(name)).unwrap(),
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
    assert!(
        contents(&volume, log)
            == std::fs::read(fixture("format-1", "content/dir/app.log")).unwrap()
    );
    volume.shutdown().unwrap();
}

#[test]
fn a_store_of_format_1_passes_the_check() {
    check(store_copy("format-1").path());
}

#[test]
fn blocks_of_the_first_networks_read_bit_for_bit() {
    let dir = store_copy("network-1");
    check(dir.path());
    let model = std::fs::read_dir(dir.path().join("models")).unwrap();
    let model = std::fs::read(model.last().unwrap().unwrap().path()).unwrap();
    let base = Codecs::embedded_file(&Codecs::base_name(&model).unwrap());
    let codecs = Codecs::with_model_and_base(&model, base).unwrap();
    let store = Store::open(
        Arc::new(RealStorage::new(dir.path())),
        &OpenOptions::default(),
    )
    .unwrap();
    let volume = Volume::open(store, Arc::new(codecs), quiet_options()).unwrap();
    let ino = volume.lookup(ROOT, b"durability.md").unwrap().ino;
    let content = std::fs::read(fixture("network-1", "content/durability.md")).unwrap();
    assert!(contents(&volume, ino) == content);
    volume.shutdown().unwrap();
}
