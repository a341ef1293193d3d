//! Completions, asked for as the shells ask for them.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::path::{Path, PathBuf};
use std::process::Command;

use cli::{finish, s2sfs, skipped, text};

/// The script for a shell in a file, or None, loudly, where the shell is missing.
fn script(shell: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    if Command::new(shell).args(["-c", "true"]).output().is_err() {
        skipped(&format!("no {shell} here: its completions were NOT tested"));
        return None;
    }
    let output = s2sfs(["completions", shell]);
    assert!(output.status.success(), "{}", text(&output));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("_s2sfs");
    std::fs::write(&path, output.stdout).unwrap();
    Some((dir, path))
}

/// A shell that finds no settings of a user, and nowhere to put its own but beside the script.
fn quiet(shell: &str, path: &Path) -> Command {
    let mut command = Command::new(shell);
    command.env("LC_ALL", "C.UTF-8");
    if let Some(home) = path.parent() {
        command.env("HOME", home);
    }
    for variable in ["ZDOTDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        command.env_remove(variable);
    }
    command
}

fn run(shell: &str, code: &str, path: &PathBuf) -> String {
    let output = finish(quiet(shell, path).args(["-c", code]).env("SCRIPT", path));
    assert!(output.status.success(), "{shell}: {}", text(&output));
    assert!(output.stderr.is_empty(), "{shell}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What bash would offer after `line`. Words break at = as they do in interactive shells.
fn bash(path: &PathBuf, line: &str) -> Vec<String> {
    let spaced = line.replace('=', " = ");
    let mut words: Vec<&str> = spaced.split_whitespace().collect();
    if line.ends_with(' ') {
        words.push("");
    }
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let code = format!(
        "source \"$SCRIPT\"; COMP_WORDS=({}); COMP_CWORD={}; COMP_LINE='{line}'; COMP_POINT={}; \
         compopt() {{ :; }}; _s2sfs_with_mount_options s2sfs '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len() - 1,
        line.len(),
        words[words.len() - 1],
        words[words.len().saturating_sub(2)],
    );
    run("bash", &code, path)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn bash_completes_commands_mount_options_and_their_values() {
    let Some((_dir, path)) = script("bash") else {
        return;
    };
    let complete = |line: &str| bash(&path, line);
    assert!(complete("s2sfs mo").contains(&"mount".into()));
    assert!(complete("s2sfs mount -o ").contains(&"cache=".into()));
    assert_eq!(complete("s2sfs mount -o pol"), ["policy="]);
    assert_eq!(complete("s2sfs mount /a /b -o ro,noat"), ["ro,noatime"]);
    assert_eq!(complete("s2sfs mount -o policy=ra"), ["ratio"]);
    assert_eq!(
        complete("s2sfs mount -o policy="),
        ["ratio", "balanced", "fast", "off"]
    );
    assert_eq!(
        complete("s2sfs reload -o cache=1G,settle"),
        ["1G,settle_after="]
    );
    // -o of other commands is something else.
    assert!(!complete("s2sfs train -o cach").contains(&"cache=".into()));
}

#[test]
fn zsh_takes_the_script_and_offers_mount_options() {
    let Some((_dir, path)) = script("zsh") else {
        return;
    };
    run("zsh", "zsh -n \"$SCRIPT\"", &path);
    // With what completion functions call replaced by what shows the arguments. Not to be dumped (-D): as root, a
    // dump to /dev/null would put a file in its place.
    let code = "autoload -Uz compinit; compinit -u -D; source \"$SCRIPT\"
        _values() { print -rl -- \"$@\" }
        _s2sfs_mount_options";
    let offered = run("zsh", code, &path);
    assert!(
        offered.contains("policy[What settling aims at"),
        "{offered}"
    );
    assert!(
        offered.contains("]:policy:(ratio balanced fast off)"),
        "{offered}"
    );
    assert!(offered.contains("]:log:_files"), "{offered}");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("#compdef s2sfs\n"));
    assert!(text.contains(":OPTIONS:_s2sfs_mount_options"));
}

#[test]
fn fish_completes_mount_options_and_their_values() {
    let Some((_dir, path)) = script("fish") else {
        return;
    };
    let complete = |line: &str| {
        run(
            "fish",
            &format!("source $SCRIPT; complete -C '{line}'"),
            &path,
        )
    };
    assert!(complete("s2sfs mo").contains("mount\t"));
    assert!(complete("s2sfs mount -o pol").contains("policy=ratio\tWhat settling"));
    assert!(complete("s2sfs mount -o ro,noat").contains("ro,noatime\t"));
    assert!(complete("s2sfs reload -o cac").contains("cache=\tMemory"));
}

#[test]
fn elvish_takes_the_script_and_offers_mount_options() {
    let Some((_dir, path)) = script("elvish") else {
        return;
    };
    let script = std::fs::read_to_string(&path).unwrap();
    // The module that editors have is not there in a script.
    let code = format!(
        "var edit: = (ns [&completion:=(ns [&arg-completer=[&]]) \
         &complex-candidate~={{|t &display=''| put $t }}])\n{script}\n\
         $edit:completion:arg-completer[s2sfs] s2sfs mount -o ro,no"
    );
    let output = finish(quiet("elvish", &path).args(["-c", &code]));
    assert!(output.status.success(), "{}", text(&output));
    let offered = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(offered.contains("ro,policy=ratio"), "{}", text(&output));
}
