//! send and receive: a store goes through a pipe as it is, or not at all.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
mod common;
#[path = "common/compare.rs"]
mod compare;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use cli::*;
use common::stop::StopWhenDropped;
use compare::{ALL, assert_same_tree, make_oddities, tree};
use proptest::prelude::*;
use s2sfs::store::carry;
use s2sfs::store::{OpenOptions, RealStorage, Storage};
use s2sfs::transfer::wire::{FrameKind, FrameReader, FrameWriter, MAX_PAYLOAD, STREAM_VERSION};
use s2sfs::transfer::{Received, WireError, receive, send};
use s2sfs::volume::ROOT;
use uuid::Uuid;

fn send_to(store: &Path, stream: &Path) -> Output {
    let mut command = program();
    command.arg("send").arg(store).stdin(Stdio::null());
    command
        .stdout(File::create(stream).unwrap())
        .output()
        .unwrap()
}

fn receive_from(stream: &Path, store: &Path, more: &[&str]) -> Output {
    let mut command = program();
    command.arg("receive").arg(store).args(more);
    command.stdin(File::open(stream).unwrap()).output().unwrap()
}

fn command(name: &str, paths: &[&Path]) -> Output {
    let mut command = program();
    finish(command.arg(name).args(paths))
}

/// Directories of a test: an original and a store of it, settled and with a staged file more.
fn filled(dir: &Path) -> (PathBuf, PathBuf) {
    let (original, store) = (dir.join("original"), dir.join("store"));
    make_oddities(&original);
    let output = s2sfs([
        "import".as_ref(),
        "--settle".as_ref(),
        "-opolicy=fast".as_ref(),
        original.as_os_str(),
        store.as_os_str(),
    ]);
    assert_ok(&output);
    fs::write(original.join("late"), sample(77, 50_000)).unwrap();
    assert_ok(&command("import", &[&original, &store]));
    (original, store)
}

fn uuid_of(store: &Path) -> String {
    let output = s2sfs(["status".as_ref(), "--json".as_ref(), store.as_os_str()]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["uuid"].as_str().unwrap().to_owned()
}

/// Kind and body.
type Frame = (FrameKind, Vec<u8>);

#[test]
fn a_store_that_was_sent_is_received_with_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (original, store) = filled(dir.path());
    let before = compare::fingerprint(&store);
    assert_ok(&send_to(&store, &path("stream")));
    assert_eq!(
        compare::fingerprint(&store),
        before,
        "sending changes nothing"
    );
    assert_ok(&receive_from(&path("stream"), &path("new"), &[]));
    assert_eq!(uuid_of(&path("new")), uuid_of(&store));
    assert_ok(&command("check", &[&path("new")]));
    assert_ok(&command("export", &[&path("new"), &path("copy")]));
    assert_same_tree(&original, &path("copy"), ALL);

    assert_ok(&receive_from(
        &path("stream"),
        &path("own"),
        &["--new-uuid"],
    ));
    assert_ne!(uuid_of(&path("own")), uuid_of(&store));
    assert_ok(&command("check", &[&path("own")]));
    assert_ok(&command("export", &[&path("own"), &path("second copy")]));
    assert_same_tree(&original, &path("second copy"), ALL);

    let again = receive_from(&path("stream"), &path("new"), &[]);
    assert_refused(&again, exit::USAGE, "is not empty");
    assert!(receiving(dir.path()).is_empty());
}

/// What attempts to receive have left in a directory.
fn receiving(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .map(|name| name.into_string().unwrap())
        .filter(|name| name.contains("receiving"))
        .collect()
}

#[test]
fn a_mounted_store_is_sent_as_it_is_while_it_is_written() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("segment=1M,policy=fast");
    let files = write_tree(&bed.mnt);
    bed.settle();
    let inodes = |root: &Path| -> Vec<(PathBuf, u64)> {
        let tree = tree(root)
            .into_iter()
            .map(|(path, meta)| (path, meta.ino()));
        tree.filter(|(path, _)| !path.starts_with("busy")).collect()
    };
    let before = inodes(&bed.mnt);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&stop);
        scope.spawn(|| {
            // Files that come and go, so that segments die and checkpoints are due meanwhile.
            fs::create_dir(bed.mnt.join("busy")).unwrap();
            for round in 0u64.. {
                if stop.load(SeqCst) {
                    return;
                }
                let path = bed.mnt.join(format!("busy/{}", round % 5));
                fs::write(&path, sample(round, 200_000)).unwrap();
            }
        });
        for round in 0..3 {
            std::thread::sleep(Duration::from_millis(200));
            let stream = bed.path("stream");
            // The store, or where it is mounted.
            let place = if round == 1 { &bed.mnt } else { &bed.store };
            assert_ok(&send_to(place, &stream));
            let new = Bed::on(&bed.path(&format!("new {round}")));
            assert_ok(&receive_from(&stream, &new.store, &[]));
            assert_ok(&new.check());
            new.mount("");
            assert_tree(&new.mnt, &files);
            assert_eq!(inodes(&new.mnt), before);
            new.umount();
        }
    });
    // Nothing of it is left behind: the store goes on and closes.
    let output = s2sfs(["reclaim".as_ref(), bed.mnt.as_os_str()]);
    assert_ok(&output);
    bed.umount();
    assert_ok(&bed.check());
}

#[test]
fn unmounting_does_not_wait_for_a_pipe_and_ends_the_stream_early() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    fs::write(bed.mnt.join("file"), compare_noise()).unwrap();
    let mut child = program();
    let child = child.arg("send").arg(&bed.store).stdin(Stdio::null());
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Nothing is sent before the store is held, and the pipe is full before the file has gone through.
    let pipe = child.stdout.as_mut().unwrap();
    let mut stream = vec![0];
    pipe.read_exact(&mut stream).unwrap();
    bed.umount();
    pipe.read_to_end(&mut stream).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_refused(&output, exit::FAILED, "the store could not be held");
    fs::write(bed.path("stream"), stream).unwrap();
    let output = receive_from(&bed.path("stream"), &bed.path("new"), &[]);
    assert_refused(&output, exit::DAMAGED, "ends too early");
    assert!(!bed.path("new").exists());
}

fn compare_noise() -> Vec<u8> {
    common::noise(9, 4 << 20)
}

#[test]
fn a_stream_that_is_cut_or_foreign_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (stream, new) = (path("stream"), path("new"));
    let longer = [small_stream(), b"x"].concat();
    for (bytes, code, words) in [
        (&b""[..], exit::NOT_A_STORE, "no stream"),
        (
            &b"PK\x03\x04 something else"[..],
            exit::NOT_A_STORE,
            "no stream",
        ),
        (&small_stream()[..12], exit::DAMAGED, "ends too early"),
        (&small_stream()[..200], exit::DAMAGED, "ends too early"),
        (
            &small_stream()[..small_stream().len() - 1],
            exit::DAMAGED,
            "ends too early",
        ),
        (&longer[..], exit::DAMAGED, "follows its end"),
    ] {
        fs::write(&stream, bytes).unwrap();
        assert_refused(&receive_from(&stream, &new, &[]), code, words);
        assert!(!new.exists() && receiving(dir.path()).is_empty());
    }
    fs::create_dir(&new).unwrap();
    fs::write(&stream, small_stream()).unwrap();
    assert_ok(&receive_from(&stream, &new, &[]));
}

#[test]
fn a_killed_receive_leaves_no_store_and_the_next_one_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new");
    let mut child = program();
    let child = child.arg("receive").arg(&new).stdin(Stdio::piped());
    let mut child = child.stderr(Stdio::null()).spawn().unwrap();
    let stream = small_stream();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&stream[..stream.len() - 1]).unwrap();
    let arrived = |name: &String| {
        let log = fs::read_dir(dir.path().join(name).join("log"));
        log.is_ok_and(|mut files| files.next().is_some())
    };
    wait_until("the first file", || {
        receiving(dir.path()).iter().any(arrived)
    });
    // Somebody else cannot do the same meanwhile.
    let whole = dir.path().join("stream");
    fs::write(&whole, stream).unwrap();
    assert_refused(&receive_from(&whole, &new, &[]), exit::BUSY, "in use");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!new.exists());
    let left = dir.path().join(&receiving(dir.path())[0]);
    let options = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    let opened = common::patient::open_store(&left, &options);
    assert!(opened.is_err(), "nothing there is a store, or becomes one");
    assert_ok(&unless_busy(|| receive_from(&whole, &new, &[])));
    assert!(receiving(dir.path()).is_empty());
    assert_ok(&command("check", &[&new]));
}

#[test]
fn a_damaged_store_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (_, store) = filled(dir.path());
    let segments = fs::read_dir(store.join("log"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let blocks = segments.filter(|path| path.extension().is_some_and(|e| e == "b"));
    let segment = blocks
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&segment, bytes).unwrap();
    let stream = dir.path().join("stream");
    assert_refused(&send_to(&store, &stream), exit::DAMAGED, "damaged record");
    let output = receive_from(&stream, &dir.path().join("new"), &[]);
    assert_refused(&output, exit::DAMAGED, "ends too early");
}

/// A stream of a small store without models, and the data in it.
fn small_stream() -> &'static [u8] {
    static STREAM: OnceLock<Vec<u8>> = OnceLock::new();
    STREAM.get_or_init(|| {
        let (storage, volume) = common::fresh();
        common::put(&volume, "text", &common::text(1, 30_000));
        common::settle(&volume);
        common::put(&volume, "staged", &common::noise(2, 3000));
        volume.shutdown().unwrap();
        drop(volume);
        let store = common::open_store(&storage);
        let held = store.hold().unwrap();
        let mut stream = Vec::new();
        let stop = AtomicBool::new(false);
        send(
            &storage,
            held.files(),
            &mut stream,
            &stop,
            &mut || Ok(()),
            &|_, _| {},
        )
        .unwrap();
        stream
    })
}

fn take(stream: &[u8], store: &Path) -> Result<Received, WireError> {
    let stop = AtomicBool::new(false);
    receive(&mut &stream[..], store, false, &stop, &|_, _| {})
}

/// Receives what is no whole stream: must fail, and leave nothing.
fn assert_fails(stream: &[u8], dir: &Path) -> WireError {
    let new = dir.join("new");
    let error = take(stream, &new).expect_err("it was taken");
    assert_eq!(
        fs::read_dir(dir).unwrap().count(),
        0,
        "{error} left something"
    );
    error
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_changed_byte_and_every_cut_is_an_error(at: prop::sample::Index, bit in 0u8..8, cut: bool) {
        let dir = tempfile::tempdir().unwrap();
        let mut stream = small_stream().to_vec();
        let at = at.index(stream.len());
        match cut {
            true => stream.truncate(at),
            false => stream[at] ^= 1 << bit,
        }
        assert_fails(&stream, dir.path());
    }

    #[test]
    fn any_bytes_behind_a_right_head_are_an_error(tail in prop::collection::vec(any::<u8>(), 0..300), keep in 0usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let stream = [&small_stream()[..16 + keep], &tail].concat();
        assert_fails(&stream, dir.path());
    }

    #[test]
    fn frames_come_back_as_they_were_written(payloads in prop::collection::vec((1u8..=5, prop::collection::vec(any::<u8>(), 0..2000)), 0..20)) {
        let kinds = [FrameKind::Store, FrameKind::File, FrameKind::Data, FrameKind::FileEnd, FrameKind::End];
        let mut stream = Vec::new();
        let mut writer = FrameWriter::new(&mut stream).unwrap();
        for (kind, payload) in &payloads {
            let (front, back) = payload.split_at(payload.len() / 3);
            writer.frame(kinds[*kind as usize - 1], &[front, back]).unwrap();
        }
        let mut input = &stream[..];
        let mut reader = FrameReader::new(&mut input).unwrap();
        for (kind, payload) in &payloads {
            let (found, bytes) = reader.read().unwrap();
            prop_assert_eq!(found, kinds[*kind as usize - 1]);
            prop_assert_eq!(bytes, &payload[..]);
        }
        prop_assert!(matches!(reader.read(), Err(WireError::Truncated(_))));
    }

    #[test]
    fn a_store_of_any_contents_arrives_as_it_was(files in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..6), settle: bool) {
        let (storage, volume) = common::fresh();
        for (number, data) in files.iter().enumerate() {
            common::put(&volume, &format!("f{number}"), data);
        }
        if settle {
            common::settle(&volume);
        }
        // As a mounted store is sent: without closing it.
        let held = volume.hold().unwrap();
        let (mut stream, stop) = (Vec::new(), AtomicBool::new(false));
        send(&storage, held.files(), &mut stream, &stop, &mut || Ok(()), &|_, _| {}).unwrap();
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let received = receive(&mut &stream[..], &dir.path().join("new"), true, &stop, &|_, _| {}).unwrap();
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let store = common::patient::open_store(&dir.path().join("new"), &options).unwrap();
        prop_assert_eq!(store.uuid(), received.uuid);
        let copy = s2sfs::volume::Volume::open(store, common::codecs(), common::quiet_options()).unwrap();
        for (number, data) in files.iter().enumerate() {
            let name = format!("f{number}");
            let stat = copy.lookup(ROOT, name.as_bytes()).unwrap();
            prop_assert_eq!(stat.ino, volume.lookup(ROOT, name.as_bytes()).unwrap().ino);
            prop_assert_eq!(&common::contents(&copy, stat.ino), data);
        }
    }
}

const DESCRIPTION: &str =
    "uuid = \"6d2e1f0c-3c0d-4f7e-9b59-7f0b1f6f2d11\"\nformat = 1\nfeatures = []\n";

/// A stream of these frames, with right checksums.
fn forged(frames: &[(FrameKind, Vec<u8>)]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut writer = FrameWriter::new(&mut stream).unwrap();
    for (kind, payload) in frames {
        writer.frame(*kind, &[payload]).unwrap();
    }
    stream
}

fn announce(files: u64, bytes: u64, description: &str) -> (FrameKind, Vec<u8>) {
    let counts = [files.to_le_bytes(), bytes.to_le_bytes()].concat();
    (FrameKind::Store, [&counts, description.as_bytes()].concat())
}

fn file(path: &str, len: u64) -> (FrameKind, Vec<u8>) {
    (
        FrameKind::File,
        [&len.to_le_bytes(), path.as_bytes()].concat(),
    )
}

fn data(bytes: &[u8]) -> (FrameKind, Vec<u8>) {
    (FrameKind::Data, bytes.to_vec())
}

fn file_end(bytes: &[u8]) -> (FrameKind, Vec<u8>) {
    (FrameKind::FileEnd, blake3::hash(bytes).as_bytes().to_vec())
}

fn end(contents: &[&[u8]]) -> (FrameKind, Vec<u8>) {
    let mut all = blake3::Hasher::new();
    for bytes in contents {
        all.update(blake3::hash(bytes).as_bytes());
    }
    (FrameKind::End, all.finalize().as_bytes().to_vec())
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("in");
    for path in [
        "../evil",
        "log/../../evil",
        "/etc/evil",
        "log/",
        "log",
        "",
        "s2sfs.toml",
        "lock",
        "control.sock",
        "index/clean",
        "log/reserve",
        "log/00000001.x",
        "log/1.j",
        "log/00000001.j.tmp",
        "log/0000000A.j",
        "log/00000001.j/x",
        "log/00000001.j\0",
        "models/.hidden",
        "models/../evil",
        "models/a/b",
        "models/x.tmp",
        "models/caf\u{e9}",
        &format!("models/{}", "x".repeat(251)),
    ] {
        fs::create_dir_all(&dir).unwrap();
        let stream = forged(&[
            announce(1, 4, DESCRIPTION),
            file(path, 4),
            data(b"evil"),
            file_end(b"evil"),
            end(&[b"evil"]),
        ]);
        let error = assert_fails(&stream, &dir).to_string();
        assert!(
            error.contains("a file that no store has"),
            "{path:?}: {error}"
        );
    }
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1);
}

#[test]
fn frames_that_contradict_each_other_are_refused() {
    let (name, other) = ("log/00000001.j", "log/00000002.j");
    let start = |files, bytes| announce(files, bytes, DESCRIPTION);
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("begin with a store", vec![file(name, 4)]),
        ("too short", vec![(FrameKind::Store, vec![1; 15])]),
        ("brings more", vec![start(1, 3), file(name, 4)]),
        ("brings more", vec![start(1, 9), file(name, u64::MAX)]),
        ("brings more", vec![start(0, 9), file(name, 4)]),
        (
            "or has twice",
            vec![
                start(2, 8),
                file(name, 4),
                data(b"1234"),
                file_end(b"1234"),
                file(name, 4),
            ],
        ),
        (
            "does not belong",
            vec![start(1, 4), file(name, 4), data(b"12345")],
        ),
        (
            "does not belong",
            vec![start(1, 4), file(name, 4), data(b"")],
        ),
        (
            "does not belong",
            vec![start(1, 4), file(name, 4), data(b"123"), file_end(b"123")],
        ),
        (
            "does not belong",
            vec![start(2, 8), file(name, 4), file(other, 4)],
        ),
        ("does not belong", vec![start(1, 4), start(1, 4)]),
        ("does not belong", vec![start(1, 4), data(b"1234")]),
        (
            "hash of",
            vec![start(1, 4), file(name, 4), data(b"1234"), file_end(b"12_4")],
        ),
        (
            "hash of",
            vec![
                start(1, 4),
                file(name, 4),
                data(b"1234"),
                (FrameKind::FileEnd, vec![]),
            ],
        ),
        ("are missing", vec![start(1, 4), end(&[])]),
        (
            "are missing",
            vec![
                start(1, 8),
                file(name, 4),
                data(b"1234"),
                file_end(b"1234"),
                end(&[b"1234"]),
            ],
        ),
        (
            "are missing",
            vec![
                start(1, 4),
                file(name, 4),
                data(b"1234"),
                file_end(b"1234"),
                end(&[b"12_4"]),
            ],
        ),
        (
            "a file that",
            vec![start(1, 4), (FrameKind::File, vec![4; 7])],
        ),
        ("store description", vec![announce(0, 0, "not = [toml")]),
        (
            "format version 9",
            vec![announce(0, 0, &DESCRIPTION.replace("= 1", "= 9"))],
        ),
        (
            "'sharding'",
            vec![announce(0, 0, &DESCRIPTION.replace("[]", "['sharding']"))],
        ),
    ];
    for (words, frames) in cases {
        let dir = tempfile::tempdir().unwrap();
        let error = assert_fails(&forged(&frames), dir.path()).to_string();
        assert!(error.contains(words), "not '{words}': {error}");
    }
}

#[test]
fn frames_out_of_order_too_long_or_of_a_newer_stream_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stream = forged(&[announce(0, 0, DESCRIPTION), end(&[])]);
    let first = 21 + 16 + DESCRIPTION.len();
    let swapped = [
        &stream[..16],
        &stream[16 + first..],
        &stream[16..16 + first],
    ]
    .concat();
    let error = assert_fails(&swapped, dir.path()).to_string();
    assert!(error.contains("not in order"), "{error}");

    let crc_at = |bytes: &mut [u8], from: usize, to: usize| {
        let crc = crc32c::crc32c(&bytes[from..to]);
        bytes[to..to + 4].copy_from_slice(&crc.to_le_bytes());
    };
    let mut long = stream.clone();
    long[17..21].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
    crc_at(&mut long, 16, 29);
    let error = assert_fails(&long, dir.path()).to_string();
    assert!(error.contains("longer than any"), "{error}");

    let mut newer = stream.clone();
    newer[8..12].copy_from_slice(&(STREAM_VERSION + 1).to_le_bytes());
    crc_at(&mut newer, 0, 12);
    let error = assert_fails(&newer, dir.path()).to_string();
    assert!(
        error.contains("version 2, this program reads up to 1"),
        "{error}"
    );
}

#[test]
fn a_received_store_under_another_uuid_is_refused_where_its_segments_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("new");
    take(small_stream(), &new).unwrap();
    let storage = RealStorage::new(&new);
    let text = carry::description_bytes(&storage).unwrap();
    let uuid = carry::uuid_of_description("here", &text).unwrap();
    let segment = storage.list("log").unwrap()[0].name.clone();
    let path = format!("log/{segment}");
    let len = fs::metadata(new.join(&path)).unwrap().len();
    let file = carry::StoreFile { path, len };
    carry::verify_file(&storage, uuid, &file).unwrap();
    let other = Uuid::new_v4();
    assert!(carry::verify_file(&storage, other, &file).is_err());
    carry::change_uuid(&storage, &file, uuid, other).unwrap();
    carry::verify_file(&storage, other, &file).unwrap();
    assert_eq!(fs::metadata(new.join(&file.path)).unwrap().len(), len);
}
