//! Options that a store brings along, and changing options while it is mounted.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use cli::*;
use rustix::process::{Signal, kill_process};

fn write_options(bed: &Bed, text: &str) {
    let path = bed.store.join("options.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn mount(bed: &Bed, options: &str) -> Output {
    let mut command = helper();
    command.arg(&bed.store).arg(&bed.mnt);
    finish(command.args(["-o", options]))
}

fn cache_limit(bed: &Bed) -> u64 {
    bed.status(&bed.mnt)["cache"]["limit_bytes"]
        .as_u64()
        .unwrap()
}

fn reload(bed: &Bed, arguments: &[&str]) -> Output {
    let mut command = program();
    command.arg("reload").arg(&bed.mnt).args(arguments);
    finish(&mut command)
}

#[test]
fn options_of_the_store_count_and_the_command_line_wins() {
    if !can_mount() {
        return;
    }
    let bed = Bed::new();
    // Before there is a store: the directory may be prepared.
    fs::create_dir(&bed.store).unwrap();
    write_options(
        &bed,
        "cache = \"32M\"\nthreads = 3\nsettle_after = \"never\"\nnoexec = true\n",
    );
    let output = mount(&bed, "cache=48M,threads=2");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(cache_limit(&bed), 48 << 20);
    assert_eq!(bed.status(&bed.mnt)["threads"], 2);
    bed.umount();
    let output = mount(&bed, "defaults");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(cache_limit(&bed), 32 << 20);
    assert_eq!(bed.status(&bed.mnt)["threads"], 3);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|l| l.contains(bed.mnt.to_str().unwrap()));
    assert!(line.unwrap().contains("noexec"));
}

#[test]
fn wrong_files_are_refused_with_all_that_is_wrong_and_the_store_stays_as_it_is() {
    let bed = Bed::new();
    fs::create_dir(&bed.store).unwrap();
    write_options(
        &bed,
        "cahce = 1\nro = \"yes\"\nlog = \"/etc/passwd\"\nfoo = true\n",
    );
    let output = mount(&bed, "defaults");
    for words in [
        "options.toml",
        "unknown options cahce (did you mean cache?), foo",
        "ro: expected true or false",
        "log is for the command line only",
    ] {
        assert_refused(&output, exit::HELPER_USAGE, words);
    }
    write_options(&bed, "cache = \n");
    assert_refused(&mount(&bed, "defaults"), exit::HELPER_USAGE, "options.toml");
    write_options(&bed, "cache = \"1M\"\n");
    let path = bed.store.join("options.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert_refused(
        &mount(&bed, "defaults"),
        exit::HELPER_USAGE,
        "only root or the user",
    );
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert_refused(
        &mount(&bed, "defaults"),
        exit::HELPER_USAGE,
        "symbolic link",
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::read_dir(&bed.store).unwrap().count(), 0);
}

#[test]
fn a_reload_applies_what_can_be_changed_and_names_the_rest() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    let data = sample(1, 100_000);
    fs::write(bed.mnt.join("f"), &data).unwrap();
    write_options(
        &bed,
        "dirty = \"8M\"\npolicy = \"fast\"\nextent = \"64K\"\n",
    );
    let output = reload(&bed, &["--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["changed"], serde_json::json!(["dirty", "policy"]));
    assert_eq!(report["kept"], serde_json::json!(["extent"]));
    // Other options in place of those of the mount.
    let output = reload(&bed, &["-o", "cache=5M,settle_after=10ms,threads=2"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("changed cache, settle_after"), "{said}");
    assert_eq!(cache_limit(&bed), 5 << 20);
    wait_until("settling", || bed.status(&bed.mnt)["staged_bytes"] == 0);
    assert!(fs::read(bed.mnt.join("f")).unwrap() == data);

    let output = reload(&bed, &["-o", "cache=7M,foo,bar"]);
    assert_refused(&output, exit::USAGE, "unknown options foo, bar");
    assert_eq!(cache_limit(&bed), 5 << 20);
    write_options(&bed, "what = 1\n");
    assert_refused(&reload(&bed, &[]), exit::USAGE, "unknown option what");
    assert_refused(
        &s2sfs(["reload".as_ref(), bed.path("").as_os_str()]),
        exit::NOT_A_STORE,
        "no s2sfs is mounted",
    );
}

#[test]
fn sighup_reads_the_options_again_and_the_mount_stays() {
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("");
    assert_eq!(cache_limit(&bed), 64 << 20);
    bed.umount();
    let output = mount(&bed, "settle_after=never");
    assert!(output.status.success(), "{}", text(&output));
    write_options(&bed, "cache = \"9M\"\n");
    kill_process(bed.pid(), Signal::HUP).unwrap();
    wait_until("the reload", || cache_limit(&bed) == 9 << 20);
    write_options(&bed, "cache = \"none\"\n");
    kill_process(bed.pid(), Signal::HUP).unwrap();
    fs::write(bed.mnt.join("f"), "still here").unwrap();
    bed.umount();
    write_options(&bed, "");
    assert_eq!(bed.check().status.code(), Some(exit::OK));
}
