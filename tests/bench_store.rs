//! `bench-store`, the command behind `make bench`: one run measures the store and the other file systems on the same files.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use cli::{finish, program, skipped, text};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A class of three files, and one that is empty.
fn corpus(dir: &Path) {
    let class = dir.join("text");
    std::fs::create_dir_all(class.join("below")).unwrap();
    std::fs::write(class.join("a.md"), include_str!("../docs/format.md")).unwrap();
    std::fs::write(class.join("below/b.rs"), include_str!("bench_store.rs")).unwrap();
    std::fs::write(class.join("empty"), "").unwrap();
}

fn can_measure() -> bool {
    let squashfs = Command::new("mksquashfs").arg("-version").output();
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        skipped("needs root and /dev/fuse, to mount");
        return false;
    }
    if squashfs.is_err() {
        skipped("needs mksquashfs, to compare with");
        return false;
    }
    true
}

#[test]
fn every_file_system_is_measured_or_says_why_not() {
    if !can_measure() {
        return;
    }
    let dir = TempDir::new().unwrap();
    corpus(&dir.path().join("corpus"));
    let (results, document) = (dir.path().join("results"), dir.path().join("page.md"));
    std::fs::write(
        &document,
        "<!-- bench:begin -->\nof last year\n<!-- bench:end -->\n",
    )
    .unwrap();
    let mut command = program();
    command
        .arg("bench-store")
        .arg("--classes-only")
        .args(["--reads", "2"]);
    command.arg("--corpus").arg(dir.path().join("corpus"));
    command
        .arg("--results")
        .arg(&results)
        .arg("--splice")
        .arg(&document);
    let output = finish(&mut command);
    assert!(output.status.success(), "{}", text(&output));
    let json = std::fs::read(results.join("results.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let own = &json["classes"][0];
    let raw = include_str!("../docs/format.md").len() + include_str!("bench_store.rs").len();
    assert_eq!(own["raw_bytes"], raw);
    let positive = |speeds: &Value, name: &str| {
        assert!(speeds[name].as_f64().unwrap() > 0.0, "{name}: {speeds}");
    };
    for name in [
        "cold_read_mb_per_second",
        "hot_read_mb_per_second",
        "change_us",
        "cpu_ms_per_mb",
    ] {
        positive(&own["speeds"], name);
    }
    assert_eq!(own["speeds"]["random_reads"], 2);
    let rivals = json["rivals"].as_array().unwrap();
    assert_eq!(rivals.len(), 8);
    for rival in rivals {
        match rival["why_not"].as_str() {
            Some(why) => eprintln!("{}: {why}", rival["system"]),
            None => {
                positive(rival, "stored_bytes");
                positive(&rival["speeds"], "look_up_us");
            }
        }
    }
    let page = std::fs::read_to_string(&document).unwrap();
    for system in ["s2sfs", "squashfs xz 1M", "btrfs zstd:15", "zpaq -m5"] {
        assert!(page.contains(system), "{system}: {page}");
    }
    assert!(!page.contains("of last year"));
    for name in ["bench-sizes.svg", "bench-speeds.svg"] {
        assert!(page.contains(&format!("(plots/{name})")), "{page}");
        let beside = std::fs::read_to_string(dir.path().join("plots").join(name)).unwrap();
        let own = std::fs::read_to_string(results.join("plots").join(name)).unwrap();
        assert_eq!(own, beside);
        let document = roxmltree::Document::parse(&own).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let words = document.descendants().filter(|node| node.is_text());
        let words: Vec<&str> = words
            .filter_map(|node| node.text())
            .map(str::trim)
            .collect();
        let systems = rivals.iter().map(|rival| rival["system"].as_str().unwrap());
        let programs = json["programs"].as_array().unwrap();
        let programs = programs.iter().map(|row| row["program"].as_str().unwrap());
        let programs = programs.map(|name| format!("{name}, one stream"));
        let programs = programs.filter(|_| name == "bench-sizes.svg");
        let names = systems
            .map(str::to_owned)
            .chain(programs)
            .chain(["s2sfs".into()]);
        // how often a name stands in the figure: in a panel for each class and measure
        let panels = if name == "bench-sizes.svg" { 1 } else { 4 };
        for expected in names {
            let count = words.iter().filter(|word| **word == expected).count();
            assert_eq!(count, panels, "{expected} in {name}");
        }
        let titles = words
            .iter()
            .filter(|word| word.starts_with("text: "))
            .count();
        assert_eq!(titles, panels, "{name}");
    }
}
