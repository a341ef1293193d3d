//! Every command in the documents for users works as it stands there.
//!
//! Blocks that are set in by four spaces are commands. Those of a document are run in order, as one session of root in a
//! machine of its own (`common/docs_world.sh` says what is private there, and what stands for `cargo`, `sudo` and
//! `ssh`). Fenced blocks are files; their first line names them, and the session puts them there.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/markdown.rs"]
mod markdown;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli::{finish, program, skipped, text};
use markdown::Block;

/// The documents whose commands are run, and what was done before: nothing, or what the user guide begins with.
const DOCUMENTS: [(&str, &str); 6] = [
    ("README.md", ""),
    ("docs/user-guide.md", ""),
    ("docs/operations.md", INSTALLED),
    ("docs/expectations.md", INSTALLED),
    ("docs/troubleshooting.md", INSTALLED),
    ("docs/metrics.md", NOT_MOUNTED),
];

const NOT_MOUNTED: &str = "\
make install BUILT=target/release/s2sfs >/dev/null
mkdir -p /data /mnt
";

const INSTALLED: &str = "\
make install BUILT=target/release/s2sfs >/dev/null
mkdir -p /data /mnt
mount -t s2sfs /data /mnt
cp -r ~/texts /mnt
";

/// Commands that begin like this are not run here, and why. What can be known of them without running is tested.
const NOT_RUN: [(&str, &str); 9] = [
    ("make test", "this test is a part of it"),
    (
        "make deb",
        "takes cargo-deb from the network; scripts/deb-test.sh tests the package",
    ),
    ("apt ", "changes the system"),
    (
        "systemctl ",
        "no systemd runs here; tests/systemd_service.rs and systemd_units.rs test the units",
    ),
    ("journalctl ", "there is no journal here"),
    (
        "s2sfs top /mnt",
        "needs a terminal; tests/cli_top.rs gives it one",
    ),
    (
        "s2sfs train ",
        "takes minutes; tests/train_model.rs trains, and another model stands for its result",
    ),
    ("s2sfs freeze /mnt -- lvcreate", "needs a volume group"),
    (
        "curl http://127.0.0.1:9464/metrics",
        "another program may have the port; tests/cli_metrics.rs takes a free one",
    ),
];

/// Programs that not every machine has: where they are missing, their commands are not run, loudly.
const NOT_EVERYWHERE: [&str; 3] = ["rsync", "curl", "fuser"];

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(tree().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Without the comment behind it.
fn bare(command: &str) -> &str {
    command.split(" #").next().unwrap_or(command).trim()
}

fn reason_not_to_run(command: &str) -> Option<&'static str> {
    let command = bare(command);
    let entry = NOT_RUN.iter().find(|(start, _)| {
        command.starts_with(start) && (start.ends_with(' ') || is_whole(command, start))
    });
    entry.map(|(_, why)| *why)
}

/// Whether `start` ends where a word of the command does.
fn is_whole(command: &str, start: &str) -> bool {
    command[start.len()..]
        .chars()
        .next()
        .is_none_or(|next| next == ' ')
}

fn exists(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/sbin", "/sbin"]);
    dirs.into_iter()
        .any(|dir| Path::new(dir).join(program).is_file())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The shell commands that put a file of the document in its place and let what reads it read it.
fn place(name: &str, block: &Block) -> String {
    let at = format!("{name}:{}", block.line);
    let path = block.lines[0].strip_prefix("# ");
    let path = path.unwrap_or_else(|| panic!("{at}: its first line does not name a file"));
    let contents = block.lines.join("\n") + "\n";
    let check = match block.tag.as_deref() {
        Some("fstab") => format!("check_fstab {path}"),
        Some("sh") => format!("check_conf {path}"),
        Some("toml") => format!("check_toml {path}"),
        other => panic!("{at}: nothing is known of blocks of kind {other:?}"),
    };
    format!(
        "at {at} {path}\nprintf %s {} >{path}\n{check}\n",
        quoted(&contents)
    )
}

/// The session of a document.
fn session(name: &str, given: &str) -> String {
    let mut script = String::from(include_str!("common/docs_session.sh"));
    script.push_str(given);
    for block in markdown::blocks(&read(name)) {
        if block.tag.is_some() {
            script.push_str(&place(name, &block));
            continue;
        }
        for (line, command) in markdown::commands(&block) {
            let missing = NOT_EVERYWHERE.iter().find(|program| {
                bare(&command).split(' ').any(|word| word == **program) && !exists(program)
            });
            if let Some(program) = missing {
                skipped(&format!("{name}:{line}: {program} is not installed"));
            } else if reason_not_to_run(&command).is_none() {
                let at = quoted(&format!("{name}:{line}"));
                writeln!(script, "at {at} {}", quoted(&command)).unwrap();
                writeln!(script, "{command}").unwrap();
            }
        }
    }
    script.push_str("\nthe_end\n");
    script
}

/// Runs the commands of a document; says where it stopped if it did.
fn run(name: &str) {
    let root = rustix::process::geteuid().is_root();
    if !root
        || !Path::new("/dev/fuse").exists()
        || !["unshare", "make", "fusermount3", "cc"]
            .map(exists)
            .iter()
            .all(|&yes| yes)
    {
        skipped(
            "needs root, /dev/fuse, unshare, make, cc and fusermount3: no command of the documents was run",
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, given) = DOCUMENTS
        .iter()
        .find(|(document, _)| *document == name)
        .unwrap();
    let script = dir.path().join("session.sh");
    fs::write(&script, session(name, given)).unwrap();
    let world = tree().join("tests/common/docs_world.sh");
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "bash",
        ])
        .arg(world)
        .arg(tree())
        .arg(env!("CARGO_BIN_EXE_s2sfs"))
        .arg(dir.path().join("root"))
        .arg(&script);
    let output = finish(&mut command);
    assert!(output.status.success(), "{name}: {}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("the end\n"), "{name}: {}", text(&output));
}

#[test]
fn nothing_is_mounted_outside_of_private_name_spaces() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut command = Command::new("bash");
    command.arg(tree().join("tests/common/docs_world.sh"));
    command
        .arg(tree())
        .arg("/bin/true")
        .arg(&root)
        .arg("script");
    assert_eq!(finish(&mut command).status.code(), Some(2));
    assert!(!root.exists());
}

#[test]
fn the_commands_of_the_readme_work() {
    run("README.md");
}

#[test]
fn the_commands_of_the_user_guide_work() {
    run("docs/user-guide.md");
}

#[test]
fn the_commands_of_the_operations_guide_work() {
    run("docs/operations.md");
}

#[test]
fn the_commands_of_the_page_of_expectations_work() {
    run("docs/expectations.md");
}

#[test]
fn the_commands_of_the_page_of_metrics_work() {
    run("docs/metrics.md");
}

#[test]
fn the_commands_of_troubleshooting_work() {
    run("docs/troubleshooting.md");
}

/// All commands of all documents, with their places.
fn all_commands() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, _) in DOCUMENTS {
        for block in markdown::blocks(&read(name)) {
            if block.tag.is_none() {
                let commands = markdown::commands(&block).into_iter();
                found.extend(commands.map(|(line, text)| (format!("{name}:{line}"), text)));
            }
        }
    }
    found
}

#[test]
fn every_exception_is_still_needed() {
    let commands = all_commands();
    let used = |start: &str| {
        commands
            .iter()
            .any(|(_, command)| bare(command).starts_with(start))
    };
    for (start, _) in NOT_RUN {
        assert!(
            used(start),
            "no command begins with '{start}': drop the exception"
        );
    }
    for program in NOT_EVERYWHERE {
        let named = |command: &str| command.split(' ').any(|word| word == program);
        assert!(
            commands.iter().any(|(_, command)| named(bare(command))),
            "{program}"
        );
    }
}

/// The calls of `s2sfs` in a command line: their words up to what is not for it any more.
fn calls(command: &str) -> Vec<Vec<String>> {
    let words: Vec<&str> = bare(command).split_whitespace().collect();
    let starts = words
        .iter()
        .enumerate()
        .filter(|(at, word)| **word == "s2sfs" && (*at == 0 || words[at - 1] != "-t"));
    let ends = |word: &&&str| !["--", "|", ">", "<", "&&"].contains(*word);
    starts
        .map(|(start, _)| {
            words[start + 1..]
                .iter()
                .take_while(ends)
                .map(|word| (*word).to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn every_option_in_the_documents_is_known_to_the_program() {
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut count = 0;
    for (place, command) in all_commands() {
        for call in calls(&command) {
            let [name, arguments @ ..] = call.as_slice() else {
                panic!("{place}: s2sfs without a command");
            };
            let help = helps.entry(name.clone()).or_insert_with(|| {
                let output = finish(program().args([name, "--help"]));
                assert!(
                    output.status.success(),
                    "{place}: s2sfs {name}: {}",
                    text(&output)
                );
                String::from_utf8(output.stdout).unwrap()
            });
            for option in arguments.iter().filter(|word| word.starts_with('-')) {
                let option = option.split('=').next().unwrap();
                let known = |word: &str| word.trim_end_matches([',', '.']) == option;
                let mut words = help.split(|c: char| c.is_whitespace() || c == '=' || c == '[');
                assert!(words.any(known), "{place}: s2sfs {name} has no {option}");
                count += 1;
            }
        }
    }
    assert!(count > 10, "only {count} options were found");
}

#[test]
fn what_is_not_run_is_at_least_known() {
    let makefile = read("Makefile");
    for (place, command) in all_commands() {
        if reason_not_to_run(&command).is_none() {
            continue;
        }
        let parsed = finish(Command::new("bash").args(["-n", "-c", &command]));
        assert!(parsed.status.success(), "{place}: {}", text(&parsed));
        let words: Vec<&str> = bare(&command).split_whitespace().collect();
        match words[0] {
            "make" => {
                let target = format!("\n{}:", words[1]);
                assert!(makefile.contains(&target), "{place}: make {}", words[1]);
            }
            "s2sfs" => assert_eq!(calls(&command).len(), 1, "{place}"),
            "systemctl" => known_unit(&place, words[words.len() - 1]),
            other if !exists(other) => skipped(&format!("{place}: {other} is not installed")),
            _ => {}
        }
    }
}

/// Only our units are named, and those we have.
fn known_unit(place: &str, unit: &str) {
    let (template, instance) = unit
        .split_once('@')
        .unwrap_or_else(|| panic!("{place}: {unit}"));
    let kind = instance.split_once('.').map_or("service", |(_, kind)| kind);
    let file = format!("systemd/{template}@.{kind}");
    assert!(tree().join(&file).is_file(), "{place}: there is no {file}");
}

/// All Markdown files that are part of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in [".", "docs", "models"] {
        for item in fs::read_dir(tree().join(dir)).unwrap() {
            let path = item.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 10);
    found
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    for path in documents() {
        let contents = fs::read_to_string(&path).unwrap();
        for (line, link) in markdown::links(&contents) {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let place = format!("{}:{line}: {link}", path.display());
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => path.clone(),
                _ => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{place}: no such file");
            if !anchor.is_empty() {
                let anchors = markdown::anchors(&fs::read_to_string(&target).unwrap());
                assert!(
                    anchors.iter().any(|known| known == anchor),
                    "{place}: no such heading"
                );
            }
        }
    }
}

/// All sources as one text, with what a backslash continues in a string joined.
fn sources(dir: &Path, into: &mut String) {
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let mut lines = fs::read_to_string(&path).unwrap();
            while let Some(at) = lines.find("\\\n") {
                let rest = lines[at + 2..].trim_start().to_owned();
                lines.replace_range(at.., &rest);
            }
            into.push_str(&lines);
        }
    }
}

#[test]
fn the_messages_in_troubleshooting_are_those_of_the_program() {
    let mut code = String::new();
    sources(&tree().join("src"), &mut code);
    let contents = read("docs/troubleshooting.md");
    let rows = contents.lines().filter(|line| line.starts_with("| `"));
    let mut count = 0;
    for row in rows {
        let messages = row
            .split(" | ")
            .next()
            .unwrap()
            .split('`')
            .skip(1)
            .step_by(2);
        for message in messages {
            let parts = message
                .split("...")
                .map(|part| part.trim_matches([' ', ':', ',', ';', '\'']));
            let parts: Vec<&str> = parts.filter(|part| part.len() > 3).collect();
            assert!(!parts.is_empty(), "{message} says nothing");
            for part in parts {
                assert!(code.contains(part), "no source says '{part}' ({message})");
            }
            count += 1;
        }
    }
    assert!(count > 40, "only {count} messages were found");
}

#[test]
fn the_map_of_the_code_shows_what_is_there() {
    let contents = read("CONTRIBUTING.md");
    let mut named = Vec::new();
    for word in contents.split('`').skip(1).step_by(2) {
        let dir = word.split('/').next().unwrap();
        if word.contains('/')
            && !word.contains([' ', '*', '$'])
            && tree().join(dir).is_dir()
            && dir != "target"
        {
            let template = word.contains("NAME");
            assert!(template || tree().join(word).exists(), "there is no {word}");
            named.push(word);
        }
    }
    for item in fs::read_dir(tree().join("src")).unwrap() {
        let name = item.unwrap().file_name();
        let path = format!("src/{}", name.to_str().unwrap());
        let known = |word: &&str| word.trim_end_matches('/') == path;
        let is_root = ["src/lib.rs"].contains(&path.as_str());
        assert!(
            is_root
                || named.iter().any(known)
                || named.contains(&format!("{path}/mod.rs").as_str()),
            "{path} is not in the map"
        );
    }
}
