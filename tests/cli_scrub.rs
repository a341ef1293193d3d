//! scrub and reclaim.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/random.rs"]
mod random;

use random::noise;
use std::path::Path;

use cli::*;

fn scrub(bed: &Bed, arguments: &[&str]) -> std::process::Output {
    let mut all = vec!["scrub".as_ref(), bed.mnt.as_os_str()];
    all.extend(arguments.iter().map(|a| std::ffi::OsStr::new(*a)));
    s2sfs(all)
}

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn scrub_ends_with_0_on_a_sound_store_and_with_3_on_a_damaged_one() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let files = write_tree(&bed.mnt);
    bed.settle();
    for arguments in [&[][..], &["--fast"], &["--rate", "100M"]] {
        let output = scrub(&bed, arguments);
        assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
        assert!(stdout(&output).contains(" 0 errors"), "{}", text(&output));
        assert!(output.stderr.is_empty(), "{}", text(&output));
    }
    let status = bed.status(&bed.mnt);
    assert_eq!(status["scrub"]["state"], "idle");
    assert!(status["scrub"]["last_completed"].as_u64() > Some(1_600_000_000));

    let (victim, _) = files.iter().max_by_key(|(_, data)| data.len()).unwrap();
    let (segment, offset) = place(&bed.mnt.join(victim));
    flip(&bed.store.join(&segment), offset + 50);
    let output = scrub(&bed, &[]);
    assert_eq!(
        output.status.code(),
        Some(exit::DAMAGED),
        "{}",
        text(&output)
    );
    for words in [
        victim.to_str().unwrap(),
        &segment,
        &format!("offset {offset}, block"),
    ] {
        assert!(
            stdout(&output).contains(words),
            "{words}: {}",
            text(&output)
        );
    }
    let output = scrub(&bed, &["--status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(status["last_errors"].as_u64().unwrap() > 0);
}

/// Where the first block of a file lies.
fn place(file: &Path) -> (String, u64) {
    let output = s2sfs(["info".as_ref(), "--json".as_ref(), file.as_os_str()]);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let extent = &info["extents"][0];
    (
        extent["segment"].as_str().unwrap().to_owned(),
        extent["segment_offset"].as_u64().unwrap(),
    )
}

fn flip(file: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

#[test]
fn a_scrub_in_the_background_is_paused_resumed_and_stopped() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    write_tree(&bed.mnt);
    bed.settle();
    let assert_ok = |arguments: &[&str]| {
        let output = scrub(&bed, arguments);
        assert_eq!(output.status.code(), Some(exit::OK), "{}", text(&output));
    };
    let state = || bed.status(&bed.mnt)["scrub"]["state"].clone();
    assert_refused(
        &scrub(&bed, &["--pause"]),
        exit::FAILED,
        "no scrub is under way",
    );
    assert_refused(
        &scrub(&bed, &["--start", "--stop"]),
        exit::USAGE,
        "cannot be used",
    );
    assert_refused(&scrub(&bed, &["--rate", "0"]), exit::USAGE, "above 0");
    assert_ok(&["--start", "--rate", "1"]);
    assert_eq!(state(), "running");
    assert_ok(&["--pause"]);
    assert_eq!(state(), "paused");
    let shown = stdout(&s2sfs(["status".as_ref(), bed.mnt.as_os_str()]));
    assert!(shown.contains("scrub          paused: "), "{shown}");
    bed.umount();
    bed.mount("");
    assert_eq!(state(), "paused");
    assert_ok(&["--resume"]);
    assert_eq!(state(), "running");
    assert_ok(&["--stop"]);
    assert_eq!(state(), "idle");
}

#[test]
fn reclaim_gives_back_the_space_of_what_was_removed() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    std::fs::write(bed.mnt.join("keep"), sample(1, 300_000)).unwrap();
    for number in 0..8 {
        let noise = noise(number + 1, 2_000_000);
        std::fs::write(bed.mnt.join(format!("{number}")), noise).unwrap();
    }
    rustix::fs::syncfs(std::fs::File::open(&bed.mnt).unwrap()).unwrap();
    for number in 0..8 {
        std::fs::remove_file(bed.mnt.join(format!("{number}"))).unwrap();
    }
    let before = bed.status(&bed.mnt)["log_bytes"].as_u64().unwrap();
    let output = s2sfs(["reclaim".as_ref(), bed.mnt.as_os_str()]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(stdout(&output).contains("given back"), "{}", text(&output));
    let after = bed.status(&bed.mnt);
    let left = after["log_bytes"].as_u64().unwrap();
    assert!(
        before > 10_000_000 && left < before / 4,
        "{before}, then {left}"
    );
    assert_eq!(after["reclaim"]["running"], false);
    assert!(after["reclaim"]["freed_bytes"].as_u64().unwrap() > 10_000_000);
    assert!(std::fs::read(bed.mnt.join("keep")).unwrap() == sample(1, 300_000));
}
