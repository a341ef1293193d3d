//! `make install` and `make uninstall`.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cli::{finish, skipped, text};

/// Everything below `root` that is not a directory.
fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for item in fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            match fs::symlink_metadata(&path).unwrap().is_dir() {
                true => dirs.push(path),
                false => {
                    found.insert(path.strip_prefix(root).unwrap().to_owned());
                }
            }
        }
    }
    found
}

fn make(root: &Path, target: &str) {
    let output = finish(
        Command::new("make")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["--no-print-directory", target, "PREFIX=/usr"])
            .arg(format!("DESTDIR={}", root.display()))
            .arg(format!("BUILT={}", env!("CARGO_BIN_EXE_s2sfs"))),
    );
    assert!(output.status.success(), "make {target}: {}", text(&output));
}

#[test]
fn install_puts_everything_in_place_and_uninstall_leaves_nothing_of_it() {
    if Command::new("make").arg("-v").output().is_err() {
        skipped("no make here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let foreign = ["usr/bin/s2sfs-other", "usr/share/doc/other/README.md"];
    for file in foreign {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), "not ours").unwrap();
    }
    make(root, "install");
    let installed = files(root);
    for file in [
        "usr/bin/s2sfs",
        "sbin/mount.s2sfs",
        "sbin/mount.fuse.s2sfs",
        "usr/share/man/man1/s2sfs.1",
        "usr/share/man/man5/s2sfs.toml.5",
        "usr/share/man/man8/mount.s2sfs.8",
        "usr/share/bash-completion/completions/s2sfs",
        "usr/share/zsh/site-functions/_s2sfs",
        "usr/share/fish/vendor_completions.d/s2sfs.fish",
        "usr/share/elvish/lib/s2sfs.elv",
        "etc/systemd/system/s2sfs@.service",
        "etc/systemd/system/s2sfs-scrub@.service",
        "etc/systemd/system/s2sfs-scrub@.timer",
        "usr/share/doc/s2sfs/user-guide.md",
        "usr/share/doc/s2sfs/LICENSE-MIT",
        "usr/share/doc/s2sfs/LICENSE-APACHE",
        "usr/share/doc/s2sfs/examples/mnt-texts.mount",
        "usr/share/doc/s2sfs/examples/texts.conf",
    ] {
        assert!(installed.contains(Path::new(file)), "{file} is missing");
        let target = root.join(file);
        match fs::read_link(&target) {
            Ok(link) => assert_eq!(link, Path::new("/usr/bin/s2sfs")),
            Err(_) => assert!(fs::metadata(&target).unwrap().len() > 0, "{file} is empty"),
        }
    }
    let unit = fs::read_to_string(root.join("etc/systemd/system/s2sfs@.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/s2sfs mount"));
    assert!(!unit.contains("@BINDIR@"));
    // What runs is what was installed.
    let output = finish(Command::new(root.join("usr/bin/s2sfs")).arg("--version"));
    assert!(output.status.success(), "{}", text(&output));

    // Again, over what is there; then everything of it goes, and nothing else.
    make(root, "install");
    assert_eq!(files(root), installed);
    make(root, "uninstall");
    let left: Vec<PathBuf> = files(root).into_iter().collect();
    assert_eq!(left, foreign.map(PathBuf::from));
    assert!(!root.join("usr/share/doc/s2sfs").exists());
}
