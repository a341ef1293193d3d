//! Stores of newer versions are refused by every command, in clear words, and stay as they are.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/compare.rs"]
mod compare;
#[path = "common/patient.rs"]
mod patient;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;

use cli::*;
use s2sfs::store::{FORMAT_VERSION, Op, OpenOptions, Transaction};

/// A store with a file in it, in a directory with another directory.
fn store() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    fs::create_dir(dir.path().join("files")).unwrap();
    fs::write(dir.path().join("files/a"), sample(1, 5000)).unwrap();
    let output = run(dir.path(), &["import", "files", "store"]);
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    (dir, path)
}

/// None of these tests has its store in use while it runs a command.
fn run(dir: &Path, arguments: &[&str]) -> Output {
    unless_busy(|| finish(program().current_dir(dir).args(arguments)))
}

/// Every command that opens a store.
const COMMANDS: [&[&str]; 9] = [
    &["check", "store"],
    &["check", "--repair", "store"],
    &["check", "--rebuild-index", "store"],
    &["status", "store"],
    &["import", "files", "store"],
    &["export", "store", "copy"],
    &["send", "store"],
    &["mount", "store", "mnt"],
    &["mount", "-o", "ro", "store", "mnt"],
];

fn assert_all_refuse(dir: &Path, commands: &[&[&str]], words: &str) {
    fs::create_dir_all(dir.join("mnt")).unwrap();
    let before = compare::fingerprint(&dir.join("store"));
    for arguments in commands {
        let output = run(dir, arguments);
        eprintln!("{arguments:?}");
        assert_refused(&output, exit::NOT_A_STORE, words);
        assert_eq!(
            compare::fingerprint(&dir.join("store")),
            before,
            "{arguments:?} has changed it"
        );
    }
    assert!(!dir.join("copy").exists());
}

#[test]
fn a_store_of_a_newer_version_is_refused_with_both_versions() {
    let (dir, store) = store();
    let path = store.join("s2sfs.toml");
    let text = fs::read_to_string(&path).unwrap();
    // A newer description may not have the same fields, nor of the same kinds.
    for newer in [
        text.replace("format = 1", "format = 2"),
        "format = 2\nuuid = 17\n[features]\nx = 1\n".into(),
    ] {
        fs::write(&path, newer).unwrap();
        let words = format!("format version 2, this program reads up to {FORMAT_VERSION}");
        assert_all_refuse(dir.path(), &COMMANDS, &words);
    }
}

#[test]
fn a_store_with_an_unknown_feature_is_refused_by_its_name() {
    let (dir, store) = store();
    let path = store.join("s2sfs.toml");
    let text = fs::read_to_string(&path).unwrap();
    let newer = text.replace("features = []", "features = [\"sharding\"]");
    assert_ne!(text, newer);
    fs::write(&path, newer).unwrap();
    assert_all_refuse(
        dir.path(),
        &COMMANDS,
        "the feature 'sharding', which this program does not have",
    );
}

#[test]
fn a_segment_of_a_newer_version_is_refused_with_both_versions() {
    let (dir, store) = store();
    for entry in fs::read_dir(store.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 3;
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    }
    let words = format!("format version 3, this program reads up to {FORMAT_VERSION}");
    assert_all_refuse(dir.path(), &COMMANDS[3..], &words);
}

#[test]
fn a_volume_of_a_newer_version_is_refused_with_both_versions() {
    let (dir, path) = store();
    let store = patient::open_store(&path, &OpenOptions::default()).unwrap();
    let newer = Op::Put {
        key: b"Mformat".to_vec(),
        value: vec![2],
    };
    store.commit(Transaction { ops: vec![newer] }).unwrap();
    store.close().unwrap();
    drop(store);
    // Sending does not look into the volume, and neither does making the index anew.
    let commands: Vec<&[&str]> = COMMANDS
        .into_iter()
        .filter(|arguments| !matches!(arguments[..], ["send", _] | [_, "--rebuild-index", _]))
        .collect();
    // Who opens it for writing may end a segment before the volume is looked at, but changes nothing in it.
    let read_only: Vec<&[&str]> = commands
        .iter()
        .copied()
        .filter(|arguments| !matches!(arguments[..], ["import", ..] | ["mount", "store", _]))
        .collect();
    let words = "format version 2, this program reads up to 1";
    assert_all_refuse(dir.path(), &read_only, words);
    for arguments in commands {
        assert_refused(&run(dir.path(), arguments), exit::NOT_A_STORE, words);
    }
    let store = patient::open_store(&path, &OpenOptions::default()).unwrap();
    assert_eq!(store.get(b"Mformat").unwrap(), Some(vec![2]));
}

#[test]
fn a_stream_of_a_newer_store_is_refused_before_anything_is_written() {
    let (dir, _) = store();
    let output = run(dir.path(), &["send", "store"]);
    // The description is the end of the first frame; what it says is changed with its checksum.
    let mut stream = output.stdout;
    let len = u32::from_le_bytes(stream[17..21].try_into().unwrap()) as usize;
    let frame = 37..37 + len;
    let mut places = stream[frame.clone()].windows(10);
    let at = frame.start + 9 + places.position(|w| w == b"format = 1").unwrap();
    stream[at] = b'2';
    let crc = crc32c::crc32c_append(crc32c::crc32c(&stream[16..29]), &stream[frame]);
    stream[33..37].copy_from_slice(&crc.to_le_bytes());
    fs::write(dir.path().join("stream"), stream).unwrap();
    let mut command = program();
    let command = command.args(["receive", "new"]).current_dir(dir.path());
    let input = File::open(dir.path().join("stream")).unwrap();
    let output = command.stdin(input).output().unwrap();
    assert_refused(
        &output,
        exit::NOT_A_STORE,
        "format version 2, this program reads up to 1",
    );
    assert!(!dir.path().join("new").exists());
}
