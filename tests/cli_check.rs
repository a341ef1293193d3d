//! check, and what becomes of damaged stores.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::path::{Path, PathBuf};

use cli::*;

/// An unmounted store with settled and with staged files.
fn filled() -> (Bed, Vec<(PathBuf, Vec<u8>)>) {
    let bed = Bed::mounted("");
    let mut files = write_tree(&bed.mnt);
    bed.settle();
    let late = sample(99, 150_000);
    std::fs::write(bed.mnt.join("late.txt"), &late).unwrap();
    files.push(("late.txt".into(), late));
    bed.umount();
    (bed, files)
}

#[test]
fn a_good_store_has_no_damage() {
    if !can_mount() {
        return;
    }
    let (bed, _) = filled();
    let output = bed.check();
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    let output = s2sfs(["check".as_ref(), "--json".as_ref(), bed.store.as_os_str()]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["damage"].as_array().unwrap().len(), 0);
    assert!(report["blocks"].as_u64().unwrap() > 0);
}

#[test]
fn a_deleted_index_is_made_again_by_the_next_mount_or_by_check() {
    if !can_mount() {
        return;
    }
    let (bed, files) = filled();
    for by_check in [false, true] {
        let index = bed.store.join("index");
        if index.exists() {
            std::fs::remove_dir_all(&index).unwrap();
        }
        if by_check {
            let output = s2sfs([
                "check".as_ref(),
                "--rebuild-index".as_ref(),
                bed.store.as_os_str(),
            ]);
            assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
        }
        bed.mount("");
        assert_tree(&bed.mnt, &files);
        bed.umount();
    }
}

#[test]
fn one_changed_byte_in_a_block_is_found_and_hits_no_other_file() {
    if !can_mount() {
        return;
    }
    let (bed, files) = filled();
    let segment = largest_file(&bed.store.join("log"));
    let len = std::fs::metadata(&segment).unwrap().len();
    flip(&segment, len / 2);
    let output = bed.check();
    assert_eq!(
        output.status.code(),
        Some(exit::DAMAGED),
        "{}",
        text(&output)
    );
    let said = text(&output);
    bed.mount("");
    let mut hit = 0;
    for (path, contents) in &files {
        match std::fs::read(bed.mnt.join(path)) {
            Ok(found) => assert!(found == *contents, "{} shows wrong bytes", path.display()),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                assert!(
                    said.contains(path.to_str().unwrap()),
                    "{} is not in {said}",
                    path.display()
                );
                hit += 1;
            }
        }
    }
    assert!(hit < files.len());
}

fn repair(bed: &Bed, json: bool) -> std::process::Output {
    let mut arguments = vec!["check".as_ref(), "--repair".as_ref(), bed.store.as_os_str()];
    if json {
        arguments.push("--json".as_ref());
    }
    s2sfs(arguments)
}

#[test]
fn repair_keeps_all_that_is_intact_lists_what_is_lost_and_has_nothing_to_do_twice() {
    if !can_mount() {
        return;
    }
    let (bed, files) = filled();
    let output = repair(&bed, false);
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    assert!(
        text(&output).contains("nothing to mend"),
        "{}",
        text(&output)
    );
    let segment = largest_file(&bed.store.join("log"));
    let len = std::fs::metadata(&segment).unwrap().len();
    flip(&segment, len / 2);
    std::fs::remove_file(bed.store.join("s2sfs.toml")).unwrap();
    assert_refused(
        &bed.try_mount(""),
        exit::HELPER_FAILED,
        "not an s2sfs store",
    );
    let output = bed.check();
    assert_eq!(
        output.status.code(),
        Some(exit::DAMAGED),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("s2sfs.toml") && text(&output).contains(" bytes "));

    let output = repair(&bed, true);
    assert_eq!(
        output.status.code(),
        Some(exit::REPAIRED),
        "{}",
        text(&output)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lost = report["lost"].as_array().unwrap();
    assert!(!lost.is_empty(), "{report}");
    let aside = bed.store.join(report["aside"].as_str().unwrap());
    let kept = std::fs::read_to_string(aside.join("report.txt")).unwrap();
    let first = lost[0]["paths"][0].as_str().unwrap();
    assert!(kept.contains("LOST") && kept.contains(first), "{kept}");
    assert!(aside.join(segment.file_name().unwrap()).exists());

    let output = bed.check();
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    assert!(
        text(&output).contains(&format!("LOST {first}")),
        "{}",
        text(&output)
    );
    let output = repair(&bed, false);
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    bed.mount("");
    for (path, contents) in &files {
        let named = lost
            .iter()
            .any(|range| range["paths"][0].as_str() == path.to_str());
        match std::fs::read(bed.mnt.join(path)) {
            Ok(found) => assert!(!named && found == *contents, "{}", path.display()),
            Err(error) => assert!(named && error.raw_os_error() == Some(libc::EIO), "{error}"),
        }
    }
    // A lost file is a file like any other: it can be written again.
    let again = sample(5, 5000);
    std::fs::write(bed.mnt.join(first), &again).unwrap();
    assert!(std::fs::read(bed.mnt.join(first)).unwrap() == again);
}

#[test]
fn foreign_missing_and_newer_stores_are_told_apart_from_damaged_ones() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    assert_refused(&bed.check(), exit::NOT_A_STORE, "store");
    std::fs::create_dir(&bed.store).unwrap();
    assert_refused(&bed.check(), exit::NOT_A_STORE, "store");
    bed.mount("");
    bed.umount();
    let toml = bed.store.join("s2sfs.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let newer: String = text
        .lines()
        .map(|line| {
            if line.contains('=') && line.contains("format") {
                "format = 999\n".into()
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    assert_ne!(newer, text);
    std::fs::write(&toml, newer).unwrap();
    assert_refused(&bed.check(), exit::NOT_A_STORE, "999");
    assert_refused(&bed.try_mount(""), exit::HELPER_FAILED, "999");
}

#[test]
fn garbage_in_the_log_directory_is_an_error_and_not_a_crash() {
    if !can_mount() {
        return;
    }
    let (bed, _) = filled();
    for item in std::fs::read_dir(bed.store.join("log")).unwrap() {
        let path = item.unwrap().path();
        let len = std::fs::metadata(&path).unwrap().len() as usize;
        std::fs::write(&path, sample(1, len)).unwrap();
    }
    let output = bed.check();
    assert_eq!(
        output.status.code(),
        Some(exit::DAMAGED),
        "{}",
        text(&output)
    );
    let output = bed.try_mount("");
    assert_eq!(
        output.status.code(),
        Some(exit::HELPER_FAILED),
        "{}",
        text(&output)
    );
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

fn largest_file(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|item| item.unwrap().path());
    files
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap()
}

fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

#[test]
fn the_store_keeps_the_model_and_a_damaged_copy_is_repaired_by_the_next_mount() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    bed.umount();
    let models = bed.store.join("models");
    let model = largest_file(&models);
    let good = std::fs::read(&model).unwrap();
    flip(&model, good.len() as u64 / 2);
    bed.mount("");
    bed.umount();
    assert!(std::fs::read(&model).unwrap() == good);
    std::fs::remove_file(&model).unwrap();
    bed.mount("");
    assert!(std::fs::read(&model).unwrap() == good);
}

#[test]
fn blocks_of_a_model_of_ones_own_are_read_by_the_copy_in_the_store_and_not_without() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    let (texts, model) = (bed.path("texts"), bed.path("own.s2m"));
    std::fs::create_dir(&texts).unwrap();
    for number in 0..8 {
        std::fs::write(texts.join(format!("{number}.txt")), sample(number, 60_000)).unwrap();
    }
    let output = s2sfs([
        "train".as_ref(),
        texts.as_os_str(),
        "-o".as_ref(),
        model.as_os_str(),
        "--buckets=20000".as_ref(),
    ]);
    assert!(output.status.success(), "{}", text(&output));
    bed.mount(&format!("policy=ratio,model={}", model.display()));
    let contents = sample(1234, 200_000);
    std::fs::write(bed.mnt.join("file.txt"), &contents).unwrap();
    bed.settle();
    let status = bed.status(&bed.mnt);
    assert!(
        status["codecs"]["model"]["extents"].as_u64() > Some(0),
        "{status}"
    );
    bed.umount();

    bed.mount("");
    assert!(std::fs::read(bed.mnt.join("file.txt")).unwrap() == contents);
    bed.umount();
    assert_eq!(bed.check().status.code(), Some(exit::OK));
    let name = status["model"].as_str().unwrap();
    std::fs::remove_file(bed.store.join("models").join(name)).unwrap();
    let output = bed.check();
    assert_eq!(
        output.status.code(),
        Some(exit::DAMAGED),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("file.txt"), "{}", text(&output));
    bed.mount("");
    let error = std::fs::read(bed.mnt.join("file.txt")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let wrong = bed.path("texts/0.txt");
    bed.umount();
    let output = bed.try_mount(&format!("model={}", wrong.display()));
    assert_refused(&output, exit::HELPER_FAILED, "0.txt");
}
