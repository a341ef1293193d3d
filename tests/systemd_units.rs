//! The units as systemd-analyze sees them.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cli::{finish, skipped, text};

/// The units as they are installed, in a temporary directory. None, loudly, without systemd-analyze.
fn units() -> Option<tempfile::TempDir> {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        skipped("no systemd-analyze here (Debian package systemd): the units were NOT verified");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_s2sfs")).parent().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    for place in [source.clone(), source.join("examples")] {
        let files = fs::read_dir(place)
            .unwrap()
            .map(|item| item.unwrap().path());
        for path in files.filter(|path| path.is_file()) {
            let unit = fs::read_to_string(&path).unwrap();
            let unit = unit.replace("@BINDIR@", programs.to_str().unwrap());
            fs::write(dir.path().join(path.file_name().unwrap()), unit).unwrap();
        }
    }
    Some(dir)
}

fn analyze(dir: &Path, arguments: &[&str], unit: &str) -> Output {
    let unit: PathBuf = dir.join(unit);
    finish(
        Command::new("systemd-analyze")
            .arg("--no-pager")
            .args(arguments)
            .arg(unit),
    )
}

const UNITS: [&str; 5] = [
    "s2sfs@test.service",
    "s2sfs-scrub@test.service",
    "s2sfs-scrub@test.timer",
    "mnt-texts.mount",
    "mnt-texts.automount",
];

#[test]
fn all_units_are_accepted_without_a_warning() {
    let Some(dir) = units() else {
        return;
    };
    for unit in UNITS {
        let output = analyze(dir.path(), &["verify", "--man=no"], unit);
        let about_us = String::from_utf8_lossy(&output.stderr)
            .lines()
            .any(|line| line.contains("s2sfs") || line.contains("mnt-texts"));
        assert!(
            output.status.success() && !about_us,
            "{unit}: {}",
            text(&output)
        );
    }
    // It does find what is wrong.
    let path = dir.path().join("s2sfs@.service");
    let broken = fs::read_to_string(&path)
        .unwrap()
        .replace("WatchdogSec=3min", "WatchdogSec=soon");
    fs::write(&path, broken).unwrap();
    let output = analyze(dir.path(), &["verify", "--man=no"], UNITS[0]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("soon"),
        "{}",
        text(&output)
    );
}

/// Ten times the exposure level that a unit may have: 10 is exposed to everything.
#[test]
fn services_are_no_more_exposed_than_mounting_needs() {
    let Some(dir) = units() else {
        return;
    };
    for (unit, most) in [
        ("s2sfs@test.service", "42"),
        ("s2sfs-scrub@test.service", "42"),
    ] {
        let threshold = format!("--threshold={most}");
        let arguments = ["security", "--offline=true", &threshold];
        let output = analyze(dir.path(), &arguments, unit);
        assert!(output.status.success(), "{unit}: {}", text(&output));
        let output = analyze(
            dir.path(),
            &["security", "--offline=true", "--threshold=5"],
            unit,
        );
        assert!(!output.status.success(), "the threshold does nothing");
    }
}

#[test]
fn nothing_in_the_service_gives_it_a_mount_name_space_in_which_the_mount_would_be_hidden() {
    let path = format!("{}/systemd/s2sfs@.service", env!("CARGO_MANIFEST_DIR"));
    let unit = fs::read_to_string(path).unwrap();
    let hiding = [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateIPC",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "BindPaths",
        "TemporaryFileSystem",
        "RootDirectory",
        "DynamicUser",
        "MountFlags",
    ];
    for key in unit
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| key)
    {
        assert!(!hiding.contains(&key), "{key}");
    }
}
