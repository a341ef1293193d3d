//! `bench scale`: growing stores are measured in all phases, the growth is fitted, and tables and figures say so.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use cli::{assert_refused, can_mount, exit, finish, program, s2sfs, text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

const PAGE: &str = "before\n<!-- scale:begin -->\nof last year\n<!-- scale:end -->\nafter\n";

fn measure(dir: &Path, more: &[&str]) -> Output {
    let work = dir.join("work");
    std::fs::create_dir_all(&work).unwrap();
    std::fs::write(dir.join("page.md"), PAGE).unwrap();
    let mut command = program();
    command
        .args(["bench", "scale", "--smallest", "20"])
        .args(more);
    command.arg("--results").arg(dir.join("results"));
    command.arg("--splice").arg(dir.join("page.md"));
    command.arg("--work").arg(&work);
    finish(&mut command)
}

fn json(dir: &Path) -> Value {
    let json = std::fs::read(dir.join("results/scale.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn fit<'a>(dimension: &'a Value, name: &str) -> &'a Value {
    let fits = dimension["fits"].as_array().unwrap();
    let found = fits.iter().find(|fit| fit[0] == name);
    &found.unwrap_or_else(|| panic!("no fit of {name}: {dimension}"))[1]
}

/// The words of a figure, and the colours of its lines.
fn figure(path: &Path) -> (Vec<String>, BTreeSet<String>) {
    let text = std::fs::read_to_string(path).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let words = document.descendants().filter(|node| node.is_text());
    let words = words.filter_map(|node| Some(node.text()?.trim().to_owned()));
    let lines = document
        .descendants()
        .filter(|node| node.has_tag_name("polyline"));
    let colours = lines.filter_map(|node| Some(node.attribute("stroke")?.to_owned()));
    let colours = colours.filter(|colour| colour != "#808080").collect();
    (words.collect(), colours)
}

#[test]
fn every_kind_of_store_is_measured_in_every_phase() {
    let dir = TempDir::new().unwrap();
    let kinds = ["files", "directory", "extents", "bytes"];
    let only = kinds.iter().flat_map(|kind| ["--only", kind]);
    let arguments: Vec<&str> = ["--largest", "60"].into_iter().chain(only).collect();
    let output = measure(dir.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output));
    let results = json(dir.path());
    assert_eq!(results["options"], "policy=fast,settle_after=never");
    let dimensions = results["dimensions"].as_array().unwrap();
    assert_eq!(dimensions.len(), kinds.len());
    for (dimension, kind) in dimensions.iter().zip(kinds) {
        assert_eq!(dimension["kind"], kind);
        assert_eq!(dimension["stopped"], Value::Null);
        let points = dimension["points"].as_array().unwrap();
        let counts: Vec<u64> = points
            .iter()
            .map(|p| p["count"].as_u64().unwrap())
            .collect();
        assert_eq!(counts, if kind == "bytes" { [2, 6] } else { [20, 60] });
        let mut names = vec![
            "create",
            "settle",
            "unmount",
            "mount",
            "read",
            "recover",
            "check",
            "unlink",
            "log_bytes",
            "snapshot_bytes",
            "settled_rss_bytes",
            "mounted_rss_bytes",
            "peak_recovering_rss_bytes",
            "peak_checking_rss_bytes",
        ];
        if matches!(kind, "files" | "directory") {
            names.extend(["lookup", "readdir"]);
        }
        for name in names {
            let values = points.iter().map(|p| p["values"][name].as_f64());
            assert!(
                values.clone().all(|v| v.is_some_and(|v| v > 0.0)),
                "{kind}, {name}: {values:?}"
            );
            assert!(fit(dimension, name)["exponent"].is_f64(), "{kind}, {name}");
        }
    }
    // extents of one file are 4 KiB whatever is around them: twice as much data is about twice as much log
    let extents = &dimensions[2];
    let log = fit(extents, "log_bytes")["exponent"].as_f64().unwrap();
    assert!((0.2..1.3).contains(&log), "{log}");
    let page = std::fs::read_to_string(dir.path().join("page.md")).unwrap();
    assert!(
        page.starts_with("before\n") && page.ends_with("after\n"),
        "{page}"
    );
    assert!(!page.contains("of last year"));
    for word in [
        "### Entries of one directory",
        "| mount after a kill ",
        "100,000,000 files",
    ] {
        assert!(page.contains(word), "{word}: {page}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path().join("work"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for name in ["scale-work.svg", "scale-store.svg", "scale-bytes.svg"] {
        assert!(page.contains(&format!("(plots/{name})")), "{page}");
        let (words, colours) = figure(&dir.path().join("plots").join(name));
        assert_eq!(
            figure(&dir.path().join("results/plots").join(name)).0,
            words
        );
        for kind in [
            "small files",
            "entries of one directory",
            "extents of one file",
        ] {
            assert!(
                words.iter().any(|word| word.ends_with(kind)),
                "{kind}: {words:?}"
            );
        }
        assert!(colours.len() >= 4, "{name}: {colours:?}");
    }
}

#[test]
fn small_files_are_measured_through_a_mount_too() {
    if !can_mount() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let output = measure(dir.path(), &["--largest", "600", "--only", "mounted"]);
    assert!(output.status.success(), "{}", text(&output));
    let results = json(dir.path());
    let dimension = &results["dimensions"][0];
    assert_eq!(
        dimension["points"].as_array().unwrap().len(),
        2,
        "{dimension}"
    );
    for name in [
        "create",
        "lookup",
        "readdir",
        "recover",
        "unlink",
        "serving_rss_bytes",
    ] {
        fit(dimension, name);
    }
}

#[test]
fn stores_stop_growing_where_the_time_would_not_do() {
    let dir = TempDir::new().unwrap();
    let output = measure(dir.path(), &["--limit-minutes", "0.001", "--only", "files"]);
    assert!(output.status.success(), "{}", text(&output));
    let results = json(dir.path());
    let dimension = &results["dimensions"][0];
    assert_eq!(dimension["points"].as_array().unwrap().len(), 1);
    let why = dimension["stopped"].as_str().unwrap();
    assert!(why.starts_with("time: 60 would take"), "{why}");
}

#[test]
fn a_file_can_still_be_measured_and_bad_limits_are_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("scale");
    std::fs::write(&file, "a few words, and a few more of them").unwrap();
    let output = s2sfs(["bench".as_ref(), file.as_os_str(), "--json".as_ref()]);
    assert!(output.status.success(), "{}", text(&output));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows[0]["raw_bytes"], 35);
    assert_refused(&s2sfs(["bench"]), exit::USAGE, "FILES");
    let results = dir.path().join("results");
    let limit = s2sfs([
        "bench".as_ref(),
        "scale".as_ref(),
        "--limit-minutes=0".as_ref(),
        "--results".as_ref(),
        results.as_os_str(),
    ]);
    assert_refused(&limit, exit::USAGE, "above 0");
}
