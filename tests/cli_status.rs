//! status, info and settle.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use cli::*;

/// The keys that scripts rely on.
const KEYS: [&str; 19] = [
    "version",
    "pid",
    "mountpoint",
    "store",
    "uuid",
    "logical_bytes",
    "stored_bytes",
    "model_bytes",
    "staged_bytes",
    "dirty_bytes",
    "index_bytes",
    "log_bytes",
    "ratio",
    "codecs",
    "cache",
    "settle",
    "io",
    "engine",
    "threads",
];

#[test]
fn status_has_its_fields_mounted_and_unmounted() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    bed.settle();
    let mounted = bed.status(&bed.mnt);
    let total: usize = files.iter().map(|(_, contents)| contents.len()).sum();
    for key in KEYS {
        assert!(!mounted[key].is_null(), "{key} is missing");
    }
    assert_eq!(mounted["logical_bytes"], total);
    assert_eq!(mounted["files"], files.len());
    assert_eq!(mounted["mountpoint"], bed.mnt.to_str().unwrap());
    assert_eq!(mounted["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(mounted["threads"], 2);
    let by_codec: u64 = mounted["codecs"]
        .as_object()
        .unwrap()
        .values()
        .map(|usage| usage["logical_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(by_codec, total as u64);
    // Anywhere on the mount, or the store itself, means the same daemon.
    assert_eq!(bed.status(&bed.mnt.join("d0"))["pid"], mounted["pid"]);
    assert_eq!(bed.status(&bed.store)["pid"], mounted["pid"]);

    bed.umount();
    let unmounted = bed.status(&bed.store);
    assert!(unmounted["pid"].is_null());
    assert_eq!(unmounted["mounted"], false);
    for key in ["logical_bytes", "files", "uuid", "staged_bytes"] {
        assert_eq!(unmounted[key], mounted[key], "{key}");
    }
    assert_eq!(unmounted["stored_bytes"], disk_usage(&bed.store));
    assert!(unmounted["ratio"].as_f64().unwrap() > 1.0);
}

/// Allocated bytes of everything in a store but models.
fn disk_usage(store: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = std::fs::metadata(store).unwrap().blocks() * 512;
    for item in std::fs::read_dir(store).unwrap() {
        let item = item.unwrap();
        let meta = item.metadata().unwrap();
        match (item.file_name().to_str().unwrap(), meta.is_dir()) {
            ("models", _) | ("reserve", _) => {}
            (_, true) => sum += disk_usage(&item.path()),
            (_, false) => sum += meta.blocks() * 512,
        }
    }
    sum
}

#[test]
fn status_of_something_else_is_refused() {
    let bed = Bed::new();
    let output = s2sfs(["status".as_ref(), bed.mnt.as_os_str()]);
    assert_refused(&output, exit::NOT_A_STORE, "store");
    let output = s2sfs(["status".as_ref(), bed.path("nothing").as_os_str()]);
    assert_refused(&output, exit::FAILED, "nothing");
    let output = s2sfs(["settle".as_ref(), bed.mnt.as_os_str()]);
    assert_refused(&output, exit::NOT_A_STORE, "no s2sfs is mounted");
}

#[test]
fn status_for_people_names_the_figures() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    write_tree(&bed.mnt);
    let output = s2sfs(["status".as_ref(), bed.mnt.as_os_str()]);
    let shown = String::from_utf8(output.stdout).unwrap();
    for word in [
        "store", "mounted", "logical", "stored", "ratio", "index", "staged", "cache",
    ] {
        assert!(shown.contains(word), "{word} is not in {shown}");
    }
}

#[test]
fn info_shows_the_extents_of_a_file_before_and_after_settling() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let file = bed.mnt.join("big.txt");
    std::fs::write(&file, sample(3, 400_000)).unwrap();
    std::fs::File::open(&file).unwrap().sync_all().unwrap();
    let info = info(&file);
    assert_eq!(info["size"], 400_000);
    assert!(info["staged_bytes"].as_u64().unwrap() > 0);
    bed.settle();
    let settled = self::info(&file);
    assert_eq!(settled["staged_bytes"], 0);
    assert_eq!(settled["logical_bytes"], 400_000);
    assert!(settled["ratio"].as_f64().unwrap() > 2.0);
    let extents = settled["extents"].as_array().unwrap();
    let covered: u64 = extents
        .iter()
        .map(|extent| extent["len"].as_u64().unwrap())
        .sum();
    assert_eq!(covered, 400_000);
    assert!(extents.iter().all(|extent| extent["staged"] == false));

    let output = s2sfs(["info".as_ref(), file.as_os_str()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("ratio"));
    let output = s2sfs(["info".as_ref(), bed.mnt.as_os_str()]);
    assert_refused(&output, exit::USAGE, "not a regular file");
    let elsewhere = bed.path("elsewhere");
    std::fs::write(&elsewhere, "x").unwrap();
    let output = s2sfs(["info".as_ref(), elsewhere.as_os_str()]);
    assert_refused(&output, exit::NOT_A_STORE, "s2sfs mount");
}

fn info(file: &std::path::Path) -> serde_json::Value {
    let output = s2sfs(["info".as_ref(), "--json".as_ref(), file.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}
