//! Every promise of docs/durability.md names tests, every planted fault names one, and they all exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Whether `tests/FILE.rs` has this test.
fn is_test(file: &str, name: &str) -> bool {
    let path = format!("tests/{file}.rs");
    if !root().join(&path).exists() {
        return false;
    }
    let source = read(&path);
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else {
        return false;
    };
    before.trim_end().ends_with("#[test]")
}

fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = document
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no section {heading}"))
        .1;
    start.split("\n## ").next().unwrap_or_default()
}

/// The cells of the rows of the tables in a text, without heads and rules.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim().trim_matches('|');
        inner
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    let rule = |line: &str| line.starts_with("|-");
    lines
        .iter()
        .enumerate()
        .filter(|(at, line)| !rule(line) && !lines.get(at + 1).is_some_and(|next| rule(next)))
        .map(|(_, line)| cells(line))
        .collect()
}

/// The numbers of a list that begin its lines.
fn numbered(text: &str) -> Vec<u32> {
    text.lines()
        .filter_map(|line| line.split_once(". ")?.0.parse().ok())
        .collect()
}

#[test]
fn every_promise_names_tests_that_exist() {
    let document = read("docs/durability.md");
    let tested = rows(section(&document, "How this is tested"));
    let named: BTreeSet<&str> = tested.iter().map(|row| row[0].as_str()).collect();
    let events = document.split("\n## ").next().unwrap_or_default();
    let mut promises: Vec<String> = rows(events).into_iter().map(|row| row[0].clone()).collect();
    assert!(promises.len() > 10, "the table of events is not found");
    for heading in ["How", "Full disk"] {
        let numbers = numbered(section(&document, heading));
        assert!(!numbers.is_empty(), "{heading} has no list");
        promises.extend(numbers.iter().map(|number| format!("{heading} {number}")));
    }
    promises.extend(["Torn tail or damage".into(), "After a failed sync".into()]);
    for promise in &promises {
        assert!(
            named.contains(promise.as_str()),
            "nothing tests '{promise}'"
        );
    }
    for row in &tested {
        let tests: Vec<&str> = row[1].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "'{}' names no test", row[0]);
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or((test, ""));
            assert!(is_test(file, name), "'{}': there is no test {test}", row[0]);
        }
    }
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn every_planted_fault_names_a_test_that_exists() {
    let list = read("tests/mutants.txt");
    let mut listed = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [fault, file, name] = words[..] else {
            panic!("not fault, file and test: {line}");
        };
        assert!(
            is_test(file, name),
            "{fault}: there is no test {file}::{name}"
        );
        assert!(listed.insert(fault.to_owned()), "{fault} is listed twice");
    }
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut planted = BTreeSet::new();
    for path in files {
        let source = std::fs::read_to_string(&path).unwrap();
        for rest in source.split("planted(\"").skip(1) {
            planted.extend(rest.split('"').next().map(str::to_owned));
        }
    }
    assert_eq!(planted, listed);
    assert!(listed.len() >= 10);
}
