//! `plot-training`: a figure that is XML, with a line in each panel for each log, and no figure of damaged logs.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cli::{assert_refused, exit, s2sfs, text};
use tempfile::TempDir;

const HEAD: &str = "step,phase,reward,latents,entropy,latent_bits,residual,total,without\n";
/// Curves of one log: five panels of one, and one of three.
const CURVES: usize = 8;

fn log(dir: &Path, name: &str, lines: u64) -> PathBuf {
    let line = |step: u64| {
        let phase = if step <= lines / 2 { "copy" } else { "a2c" };
        let part = step as f64 / lines as f64;
        format!(
            "{},{phase},-{part},{},2.5,40,{},2.1,2.0\n",
            10 * step,
            6.0 * part,
            2.0 - part / 9.0
        )
    };
    let path = dir.join(name);
    std::fs::write(
        &path,
        HEAD.to_owned() + &(1..=lines).map(line).collect::<String>(),
    )
    .unwrap();
    path
}

fn plot(logs: &[&Path], output: &Path) -> std::process::Output {
    let start = [Path::new("plot-training").as_os_str()];
    let logs = logs.iter().map(|path| path.as_os_str());
    let output = [Path::new("-o").as_os_str(), output.as_os_str()];
    s2sfs(start.into_iter().chain(logs).chain(output))
}

#[test]
fn every_panel_has_a_line_for_each_log() {
    let dir = TempDir::new().unwrap();
    let logs = [
        log(dir.path(), "a & <b>.csv", 20),
        log(dir.path(), "c.csv", 7),
        log(dir.path(), "d.csv", 1),
    ];
    for count in 1..=logs.len() {
        let logs: Vec<&Path> = logs[..count].iter().map(PathBuf::as_path).collect();
        let svg = dir.path().join("out.svg");
        let output = plot(&logs, &svg);
        assert!(output.status.success(), "{}", text(&output));
        let text = std::fs::read_to_string(svg).unwrap();
        let document = roxmltree::Document::parse(&text).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let mut colours: BTreeMap<&str, usize> = BTreeMap::new();
        for line in document
            .descendants()
            .filter(|node| node.has_tag_name("polyline"))
        {
            *colours
                .entry(line.attribute("stroke").unwrap())
                .or_default() += 1;
        }
        // axes and grid
        colours.remove("#808080");
        assert_eq!(colours.len(), count);
        assert!(
            colours.values().all(|&lines| lines == CURVES),
            "{colours:?}"
        );
        let texts = document.descendants().filter(|node| node.is_text());
        let words: Vec<&str> = texts
            .filter_map(|node| node.text())
            .map(str::trim)
            .collect();
        for path in &logs {
            let name = path.to_str().unwrap();
            assert_eq!(
                words.iter().filter(|&&word| word == name).count(),
                1,
                "{name}"
            );
        }
    }
}

#[test]
fn damaged_logs_are_refused_by_line() {
    let dir = TempDir::new().unwrap();
    let good = log(dir.path(), "good.csv", 4);
    let bad = dir.path().join("bad.csv");
    let lines = std::fs::read_to_string(&good).unwrap();
    let svg = dir.path().join("out.svg");
    for (damaged, words) in [
        (lines.replace("step,phase", "phase,step"), "line 1:"),
        (lines.replace("40,a2c", "40,a3c"), "line 5:"),
        (lines.replace("20,copy", "10,copy"), "line 3:"),
        (lines.replace("20,copy,-0.5", "20,copy,-0.x"), "line 3:"),
        (lines.replace("20,copy,-0.5", "20,copy,NaN"), "line 3:"),
        (lines[..lines.len() - 5].to_owned(), "line 5:"),
        (lines.replace("2.0\n", "2.0,7\n"), "line 2:"),
        (HEAD.to_owned(), "no lines"),
        (String::new(), "line 1:"),
    ] {
        assert_ne!(damaged, lines);
        std::fs::write(&bad, damaged).unwrap();
        let output = plot(&[&good, &bad], &svg);
        assert_refused(&output, exit::USAGE, words);
        assert_refused(&output, exit::USAGE, "bad.csv");
        assert!(!svg.exists());
    }
    let output = plot(&[&dir.path().join("missing.csv")], &svg);
    assert_refused(&output, exit::FAILED, "missing.csv");
}
