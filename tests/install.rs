//! `make install` and `make uninstall`.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/markdown.rs"]
#[allow(dead_code)]
mod markdown;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

fn can_make() -> bool {
    let can = Command::new("make").arg("-v").output().is_ok();
    if !can {
        skipped("no make here");
    }
    can
}

fn try_make(root: &Path, arguments: &[&str]) -> Output {
    finish(
        Command::new("make")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["--no-print-directory", "PREFIX=/usr"])
            .arg(format!("DESTDIR={}", root.display()))
            .arg(format!("BUILT={}", env!("CARGO_BIN_EXE_s2sfs")))
            .args(arguments),
    )
}

fn make(root: &Path, target: &str) {
    let output = try_make(root, &[target]);
    assert!(output.status.success(), "make {target}: {}", text(&output));
}

#[test]
fn install_puts_everything_in_place_and_uninstall_leaves_nothing_of_it() {
    if !can_make() {
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
        "usr/share/doc/s2sfs/docs/user-guide.md",
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
    assert!(root.join("etc/s2sfs").is_dir());
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
    assert!(!root.join("etc/s2sfs").exists());
}

#[test]
fn mount_helpers_of_another_installation_are_neither_replaced_nor_removed() {
    if !can_make() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("sbin")).unwrap();
    fs::create_dir_all(root.join("etc/s2sfs")).unwrap();
    fs::write(root.join("etc/s2sfs/texts.conf"), "STORE=/data").unwrap();
    let link = root.join("sbin/mount.s2sfs");
    // As the Debian package has it; it leads nowhere here.
    std::os::unix::fs::symlink("../bin/s2sfs", &link).unwrap();
    let before = files(root);
    let refused = try_make(root, &["install"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("mount.s2sfs is not a link to"), "{said}");
    assert_eq!(files(root), before, "something was installed");
    make(root, "uninstall");
    assert_eq!(files(root), before);

    let forced = try_make(root, &["install", "FORCE=1"]);
    assert!(forced.status.success(), "{}", text(&forced));
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("/usr/bin/s2sfs"));
    make(root, "uninstall");
    let left: Vec<PathBuf> = files(root).into_iter().collect();
    assert_eq!(left, [Path::new("etc/s2sfs/texts.conf")]);
}

#[test]
fn prefixes_that_would_not_stand_in_a_unit_are_refused() {
    if !can_make() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for prefix in ["PREFIX=/opt/my programs", "UNITDIR=/a b", "SBINDIR=/a|b"] {
        for target in ["install", "uninstall"] {
            let output = try_make(dir.path(), &[target, prefix]);
            assert!(!output.status.success(), "{prefix}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("no spaces"), "{said}");
        }
    }
    assert_eq!(files(dir.path()), BTreeSet::new());
}

#[test]
fn the_links_of_installed_documents_lead_somewhere() {
    if !can_make() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "install");
    let mut count = 0;
    for path in files(dir.path()) {
        let path = dir.path().join(path);
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for (line, link) in markdown::links(&fs::read_to_string(&path).unwrap()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let target = path.parent().unwrap().join(file);
            assert!(target.exists(), "{}:{line}: {link}", path.display());
            count += 1;
        }
    }
    assert!(count > 50, "only {count} links were found");
}
