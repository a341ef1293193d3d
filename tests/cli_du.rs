//! `s2sfs du`.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use cli::*;
use serde_json::Value;

/// Not root, and owner of nothing here.
const STRANGER: u32 = 65_534;

fn du(arguments: &[&OsStr]) -> Output {
    s2sfs([OsStr::new("du")].iter().chain(arguments))
}

fn report(arguments: &[&OsStr]) -> Value {
    let output = du(&[arguments, &[OsStr::new("--json")]].concat());
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn info(file: &Path) -> Value {
    let output = s2sfs(["info".as_ref(), "--json".as_ref(), file.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

fn sum(rows: &Value, key: &str) -> u64 {
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| number(row, key))
        .sum()
}

fn row<'v>(rows: &'v Value, name: &str) -> &'v Value {
    let mut found = rows.as_array().unwrap().iter();
    found
        .find(|row| row["name"] == name)
        .unwrap_or_else(|| panic!("{name} in {rows}"))
}

/// Files of several types and sizes, many of them so small that they share blocks.
fn fill(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (dir, extension, count, len) in [
        ("small", "txt", 60, 300),
        ("small/deep/er", "LOG", 3, 40_000),
        ("big", "bin", 1, 300_000),
        ("big", "", 2, 5000),
    ] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
        for number in 0..count {
            let name = format!("f{number}.{extension}");
            let path = root.join(dir).join(name.trim_end_matches('.'));
            std::fs::write(&path, sample(number + len as u64, len)).unwrap();
            files.push(path);
        }
    }
    std::fs::write(root.join("empty.txt"), "").unwrap();
    files.push(root.join("empty.txt"));
    files
}

#[test]
fn every_file_is_counted_with_its_share_by_directory_type_and_codec() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = fill(&bed.mnt);
    bed.settle();
    let mut codecs: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut logical, mut stored, mut extents) = (0, 0, 0);
    for file in &files {
        let info = info(file);
        logical += number(&info, "logical_bytes");
        stored += number(&info, "stored_bytes");
        extents += info["extents"].as_array().unwrap().len() as u64;
        for (name, usage) in info["codecs"].as_object().unwrap() {
            let codec = codecs.entry(name.clone()).or_default();
            codec.0 += number(usage, "stored_bytes");
            codec.1 += 1;
        }
    }
    // Neither another name of a file nor a link to one is another file.
    std::fs::hard_link(&files[0], bed.mnt.join("big/again.txt")).unwrap();
    std::os::unix::fs::symlink("big", bed.mnt.join("link")).unwrap();

    let report = report(&[bed.mnt.as_os_str()]);
    let total = &report["total"];
    assert_eq!(number(total, "logical_bytes"), logical);
    assert_eq!(number(total, "stored_bytes"), stored);
    assert_eq!(number(total, "extents"), extents);
    assert_eq!(
        number(total, "files"),
        files.len() as u64 + 1,
        "the link is a file, too"
    );
    assert_eq!(
        number(total, "dirty_bytes") + number(total, "staged_bytes"),
        0
    );
    let ratio = total["ratio"].as_f64().unwrap();
    assert!((ratio - logical as f64 / stored as f64).abs() < 1e-9);

    assert_eq!(sum(&report["types"], "stored_bytes"), stored);
    assert_eq!(number(row(&report["types"], "txt"), "files"), 61);
    assert_eq!(
        number(row(&report["types"], "log"), "logical_bytes"),
        120_000
    );
    assert_eq!(number(row(&report["types"], "(none)"), "files"), 3);
    assert_eq!(report["codecs"].as_array().unwrap().len(), codecs.len());
    for (name, (stored, files)) in codecs {
        let row = row(&report["codecs"], &name);
        assert_eq!(
            (number(row, "stored_bytes"), number(row, "files")),
            (stored, files)
        );
    }
    let directories = &report["directories"];
    let names = directories.as_array().unwrap().len();
    assert_eq!(names, 3, "{directories}");
    let top = row(directories, bed.mnt.to_str().unwrap());
    assert_eq!(number(top, "stored_bytes"), stored);
    let small = row(directories, bed.mnt.join("small").to_str().unwrap());
    assert!(number(small, "logical_bytes") >= 120_000 + 59 * 300);
}

#[test]
fn paths_depth_order_and_columns_are_as_asked_for() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    fill(&bed.mnt);
    bed.settle();
    let (small, big) = (bed.mnt.join("small"), bed.mnt.join("big"));
    let deep = report(&[small.as_os_str(), "--depth".as_ref(), "2".as_ref()]);
    assert_eq!(deep["directories"].as_array().unwrap().len(), 3);
    let flat = report(&[small.as_os_str(), "--depth".as_ref(), "0".as_ref()]);
    assert_eq!(flat["directories"].as_array().unwrap().len(), 1);
    assert_eq!(flat["total"], deep["total"]);

    // A path inside another one is not counted twice, and a file counts by itself.
    let file = big.join("f0.bin");
    let both = report(&[small.as_os_str(), file.as_os_str(), big.as_os_str()]);
    let apart =
        [&small, &big].map(|dir| number(&report(&[dir.as_os_str()])["total"], "stored_bytes"));
    assert_eq!(number(&both["total"], "stored_bytes"), apart[0] + apart[1]);
    let one = report(&[file.as_os_str()]);
    assert_eq!(
        number(&one["total"], "stored_bytes"),
        number(&info(&file), "stored_bytes")
    );

    for (sort, key) in [("size", "stored_bytes"), ("ratio", "ratio")] {
        let sorted = report(&[bed.mnt.as_os_str(), "--sort".as_ref(), sort.as_ref()]);
        let rows = sorted["types"].as_array().unwrap();
        let values: Vec<f64> = rows.iter().map(|row| row[key].as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b), "{sort}: {values:?}");
    }
    let by = report(&[
        bed.mnt.as_os_str(),
        "--by".as_ref(),
        "type".as_ref(),
        "--sort".as_ref(),
        "name".as_ref(),
    ]);
    assert!(by["directories"].is_null() && by["codecs"].is_null());
    assert_eq!(by["types"][0]["name"], "(none)");

    let shown = du(&[bed.mnt.as_os_str()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    for words in [
        "directory",
        "type",
        "codec",
        "  txt\n",
        "  total\n",
        "/big\n",
        "ratio",
    ] {
        assert!(shown.contains(words), "{words} is not in\n{shown}");
    }
}

#[test]
fn what_is_not_settled_or_not_written_yet_is_said() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let staged = bed.mnt.join("staged");
    std::fs::write(&staged, sample(1, 50_000)).unwrap();
    std::fs::File::open(&staged).unwrap().sync_all().unwrap();
    let total = report(&[bed.mnt.as_os_str()])["total"].clone();
    assert_eq!(
        number(&total, "staged_bytes"),
        number(&total, "stored_bytes")
    );
    assert_eq!(number(&total, "logical_bytes"), 50_000);
    // Not closed and not synced: in memory, unless the sync of every five seconds comes in between. Another process
    // has it open, because whoever starts a program closes its files there, and closing stages.
    wait_until("dirty data", || {
        let path = bed.mnt.join("dirty");
        let _ = std::fs::remove_file(&path);
        let mut writer = std::process::Command::new("sh")
            .args(["-c", "exec >\"$0\"; printf %07000d 0; read end"])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("the writing", || {
            std::fs::metadata(&path).is_ok_and(|meta| meta.len() == 7000)
        });
        let total = report(&[bed.mnt.as_os_str()])["total"].clone();
        let shown = String::from_utf8(du(&[bed.mnt.as_os_str()]).stdout).unwrap();
        assert!(shown.contains("will be settled"), "{shown}");
        writer.kill().unwrap();
        writer.wait().unwrap();
        number(&total, "dirty_bytes") == 7000
            && number(&total, "logical_bytes") == 50_000
            && shown.contains("not in the store yet")
    });
}

#[test]
fn more_files_than_one_request_takes_are_counted() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let count = 2 * s2sfs::control::MAX_INODES as u64 + 10;
    for number in 0..count {
        std::fs::File::create(bed.mnt.join(format!("{number}.e"))).unwrap();
    }
    let report = report(&[bed.mnt.as_os_str()]);
    assert_eq!(number(&report["total"], "files"), count);
    assert_eq!(number(row(&report["types"], "e"), "files"), count);
}

#[test]
fn users_who_may_not_ask_the_daemon_see_what_they_may_read() {
    if !can_mount() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("needs root to become somebody else");
    }
    let bed = Bed::mounted("");
    for dir in [bed.path(""), bed.mnt.clone()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let readable = bed.mnt.join("readable.txt");
    std::fs::write(&readable, sample(1, 100_000)).unwrap();
    let secret = bed.mnt.join("secret.key");
    std::fs::write(&secret, sample(2, 20_000)).unwrap();
    std::fs::create_dir(bed.mnt.join("closed")).unwrap();
    std::fs::write(bed.mnt.join("closed/file"), "x").unwrap();
    std::fs::set_permissions(&readable, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    bed.settle();
    let expected = report(&[readable.as_os_str()]);
    std::fs::set_permissions(bed.mnt.join("closed"), PermissionsExt::from_mode(0o700)).unwrap();

    let program = program_in(&bed.path(""));
    let as_stranger = |path: &Path| {
        let mut command = std::process::Command::new(&program);
        command.uid(STRANGER).gid(STRANGER).args(["du", "--json"]);
        finish(command.arg(path))
    };
    let output = as_stranger(&readable);
    assert!(output.status.success(), "{}", text(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found, expected);

    let output = as_stranger(&bed.mnt);
    assert_refused(
        &output,
        exit::FAILED,
        "one file or directory was not counted",
    );
    assert_refused(&output, exit::FAILED, "closed: Permission denied");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(number(&found["total"], "files"), 2);
    let unknown = row(&found["codecs"], "unknown");
    assert_eq!(number(unknown, "logical_bytes"), 20_000);
    assert!(number(unknown, "stored_bytes") < 20_000);
}

#[test]
fn what_lies_elsewhere_is_refused() {
    let bed = Bed::new();
    assert_refused(
        &du(&[bed.mnt.as_os_str()]),
        exit::NOT_A_STORE,
        "s2sfs mount",
    );
    assert_refused(&du(&[bed.path("none").as_os_str()]), exit::FAILED, "none");
    assert_refused(&du(&[]), exit::USAGE, "PATHS");
}
