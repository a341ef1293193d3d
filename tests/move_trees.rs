//! import and export: what goes in comes out.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/compare.rs"]
mod compare;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cli::*;
use compare::{ALL, Compare, assert_same_tree, make_oddities, set_times, tree};
use rustix::fs::{Mode, OFlags};

/// A directory for a test, with paths in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn oddities(&self) -> PathBuf {
        let path = self.path("original");
        make_oddities(&path);
        path
    }
}

fn run(command: &str, arguments: &[&OsStr]) -> Output {
    s2sfs([OsStr::new(command)].iter().chain(arguments))
}

fn import(dir: &Path, store: &Path, more: &[&str]) -> Output {
    let more: Vec<&OsStr> = more.iter().map(OsStr::new).collect();
    run(
        "import",
        &[&[dir.as_os_str(), store.as_os_str()], &more[..]].concat(),
    )
}

fn export(store: &Path, dir: &Path, more: &[&str]) -> Output {
    let more: Vec<&OsStr> = more.iter().map(OsStr::new).collect();
    run(
        "export",
        &[&[store.as_os_str(), dir.as_os_str()], &more[..]].concat(),
    )
}

fn summary(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)))
}

fn check(store: &Path) {
    assert_ok(&run("check", &[store.as_os_str()]));
}

/// Exports to a new directory and compares that with the original.
fn assert_holds(place: &Place, store: &Path, original: &Path) {
    let copy = place.path(&format!("copy {}", uuid::Uuid::new_v4()));
    assert_ok(&export(store, &copy, &[]));
    assert_same_tree(original, &copy, ALL);
}

#[test]
fn a_tree_that_is_imported_and_exported_is_the_same_in_every_attribute() {
    let place = Place::new();
    let (original, store) = (place.oddities(), place.path("store"));
    let output = import(&original, &store, &["--json"]);
    assert_ok(&output);
    let summary = summary(&output);
    assert_eq!(summary["failures"], 0);
    assert_eq!(summary["files"], summary["verified"]);
    assert!(summary["hard_links"].as_u64().unwrap() >= 5, "{summary}");
    check(&store);
    assert_holds(&place, &store, &original);
}

#[test]
fn an_export_changes_nothing_in_the_store() {
    let place = Place::new();
    let (original, store) = (place.oddities(), place.path("store"));
    assert_ok(&import(
        &original,
        &store,
        &["--settle", "-o", "policy=fast"],
    ));
    let before = compare::fingerprint(&store);
    assert_holds(&place, &store, &original);
    assert_eq!(compare::fingerprint(&store), before);
}

#[test]
fn what_was_imported_is_settled_where_that_is_asked_for() {
    let place = Place::new();
    let (original, store) = (place.path("original"), place.path("store"));
    fs::create_dir(&original).unwrap();
    write_tree(&original);
    assert_ok(&import(&original, &store, &[]));
    let staged = |store: &Path| {
        let output = run("status", &["--json".as_ref(), store.as_os_str()]);
        summary(&output)["staged_bytes"].as_u64().unwrap()
    };
    assert!(staged(&store) > 0);
    assert_ok(&import(
        &original,
        &store,
        &["--settle", "-o", "policy=fast"],
    ));
    assert_eq!(staged(&store), 0);
    assert_holds(&place, &store, &original);
}

/// A file with two names, like every other that this makes.
fn make_twin(one: &Path, two: &Path) {
    fs::write(one, "all alike").unwrap();
    set_times(one, (1, 2), (3, 4));
    fs::hard_link(one, two).unwrap();
}

#[test]
fn a_second_import_writes_only_what_has_changed() {
    let place = Place::new();
    let (original, store) = (place.oddities(), place.path("store"));
    for name in ["pair", "twin"] {
        make_twin(&original.join(name), &original.join("links").join(name));
    }
    assert_ok(&import(&original, &store, &[]));
    let again = import(&original, &store, &["--json"]);
    assert_ok(&again);
    assert_eq!(summary(&again)["files"], 0, "{}", text(&again));
    assert!(summary(&again)["unchanged"].as_u64().unwrap() > 15);

    // The same size and time do not hide other contents.
    let changed = original.join("text");
    let meta = fs::metadata(&changed).unwrap();
    let mut data = fs::read(&changed).unwrap();
    data[200_000] ^= 1;
    fs::write(&changed, &data).unwrap();
    set_times(&changed, (5, 6), (meta.mtime(), meta.mtime_nsec()));
    // Names are shared by others, of the same size, time and contents.
    for (one, two) in [("pair", "links/pair"), ("twin", "links/twin")] {
        fs::remove_file(original.join(one)).unwrap();
        fs::remove_file(original.join(two)).unwrap();
    }
    for (one, two) in [("pair", "twin"), ("links/pair", "links/twin")] {
        make_twin(&original.join(one), &original.join(two));
    }
    // A name becomes another file, and attributes come and go.
    fs::remove_file(original.join("links/b")).unwrap();
    fs::write(original.join("links/b"), "on its own").unwrap();
    fs::remove_file(original.join("dangling")).unwrap();
    std::os::unix::fs::symlink("elsewhere", original.join("dangling")).unwrap();
    fs::set_permissions(original.join("byte"), fs::Permissions::from_mode(0o604)).unwrap();
    let _ = rustix::fs::lremovexattr(&changed, "user.note");
    let third = import(&original, &store, &["--json"]);
    assert_ok(&third);
    assert_eq!(summary(&third)["files"], 3, "{}", text(&third));
    assert_holds(&place, &store, &original);
    check(&store);
}

/// Kills an import or export as soon as it has got far enough. True if it was killed in its midst.
fn kill_when(command: &str, from: &Path, to: &Path, far_enough: impl Fn() -> bool) -> bool {
    let mut child = program()
        .args([OsStr::new(command), from.as_os_str(), to.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !far_enough() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap().signal() == Some(libc::SIGKILL)
}

/// Attempts to kill something in its midst before a test gives up: on a busy machine it may end before that.
const ATTEMPTS: usize = 20;

/// Names of files that [`make_many`] makes.
const FILES: usize = 330;

fn make_many(original: &Path) {
    for number in 0..300u64 {
        let dir = original.join(format!("d{}", number % 7));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("f{number}"));
        let data = sample(number, 100 + (number as usize * 2003) % 120_000);
        fs::write(&path, data).unwrap();
        if number % 10 == 0 {
            fs::hard_link(&path, original.join(format!("link{number}"))).unwrap();
        }
    }
}

/// Whatever has its name in a copy that was interrupted is whole.
fn assert_whole(original: &Path, copy: &Path) -> usize {
    let mut files = 0;
    for (path, meta) in tree(copy) {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let unfinished = name.starts_with(b".s2sfs-");
        if meta.is_file() && !unfinished {
            files += 1;
            let same =
                compare::contents(&original.join(&path)) == compare::contents(&copy.join(&path));
            assert!(same, "{path:?} is half written");
        }
    }
    files
}

/// Bytes in the segments of a store, which may change meanwhile.
fn log_bytes(store: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(store.join("log")) else {
        return 0;
    };
    let segments = entries.flatten().map(|entry| entry.path());
    segments
        .filter(|path| path.extension().is_some_and(|kind| kind == "j"))
        .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
        .sum()
}

#[test]
fn an_import_that_was_killed_leaves_only_whole_files_and_goes_on() {
    let place = Place::new();
    let (original, store) = (place.path("original"), place.path("store"));
    make_many(&original);
    let mut partial = 0;
    for _ in 0..ATTEMPTS {
        let enough = log_bytes(&store) + (1 << 20);
        let killed = kill_when("import", &original, &store, || log_bytes(&store) >= enough);
        let copy = place.path("copy");
        assert_ok(&export(&store, &copy, &[]));
        let files = assert_whole(&original, &copy);
        fs::remove_dir_all(&copy).unwrap();
        if killed && files < FILES {
            partial += usize::from(files > 0);
        } else {
            // Nothing is left to do in this one.
            fs::remove_dir_all(&store).unwrap();
        }
        if partial == 3 {
            break;
        }
    }
    assert!(partial > 0, "it was never killed in its midst");
    assert_ok(&import(&original, &store, &[]));
    assert_holds(&place, &store, &original);
    check(&store);
}

/// Names of files that an export has made.
fn exported(copy: &Path) -> usize {
    let dirs = (0..7).filter_map(|dir| fs::read_dir(copy.join(format!("d{dir}"))).ok());
    let names = dirs.flatten().flatten().map(|entry| entry.file_name());
    names
        .filter(|name| !name.as_bytes().starts_with(b".s2sfs-"))
        .count()
}

#[test]
fn an_export_that_was_killed_goes_on_where_it_was_and_nowhere_else() {
    let place = Place::new();
    let (original, store) = (place.path("original"), place.path("store"));
    make_many(&original);
    assert_ok(&import(&original, &store, &[]));
    let copy = place.path("copy");
    let (mut interrupted, mut in_a_row) = (0, 0);
    for _ in 0..ATTEMPTS {
        let enough = [1, 100, 200][in_a_row].max(exported(&copy) + 1);
        let killed = kill_when("export", &store, &copy, || exported(&copy) >= enough);
        if killed && copy.join(".s2sfs-export").exists() {
            assert_whole(&original, &copy);
            interrupted += 1;
            in_a_row += 1;
        } else {
            // Nothing is left to do in this one.
            fs::remove_dir_all(&copy).unwrap();
            in_a_row = 0;
        }
        if in_a_row == 3 {
            break;
        }
    }
    assert!(interrupted > 0, "it was never killed in its midst");
    assert_ok(&export(&store, &copy, &[]));
    assert_same_tree(&original, &copy, ALL);
    // It is complete now, so the next one would be an export over something.
    assert_refused(&export(&store, &copy, &[]), exit::USAGE, "is not empty");
    fs::write(copy.join("d1/more"), "of somebody else").unwrap();
    assert_ok(&export(&store, &copy, &["--force"]));
    assert_eq!(fs::read(copy.join("d1/more")).unwrap(), b"of somebody else");
}

#[test]
fn parts_can_be_left_out_and_go_to_a_place_in_the_store() {
    let place = Place::new();
    let (original, store) = (place.path("original"), place.path("store"));
    for path in [
        "src/main.c",
        "src/main.o",
        "target/deep/big",
        "src/target",
        "notes",
    ] {
        let path = original.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let options = [
        "--into",
        "/backups/monday",
        "--exclude",
        "*.o",
        "--exclude",
        "target/",
    ];
    let output = import(&original, &store, &[&options[..], &["--json"]].concat());
    assert_ok(&output);
    assert_eq!(summary(&output)["excluded"], 2);
    let copy = place.path("copy");
    assert_ok(&export(&store, &copy, &["--exclude", "/backups/*/notes"]));
    let paths: Vec<PathBuf> = tree(&copy).into_keys().collect();
    let expected = [
        "",
        "backups",
        "backups/monday",
        "backups/monday/src",
        "backups/monday/src/main.c",
        "backups/monday/src/target",
    ];
    assert_eq!(paths, expected.map(PathBuf::from));
    let output = import(&original, &store, &["--into", "a/../b"]);
    assert_refused(&output, exit::USAGE, "'..'");
}

#[test]
fn directories_inside_each_other_are_refused() {
    let place = Place::new();
    let (dir, store) = (place.path("dir"), place.path("store"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    let inside = import(&dir, &dir.join("store"), &[]);
    assert_refused(&inside, exit::USAGE, "must not lie inside each other");
    assert!(!dir.join("store").exists());
    assert_ok(&import(&dir, &store, &[]));
    for wrong in [
        import(&store.join("log"), &store, &[]),
        export(&store, &store.join("copy"), &[]),
        export(&store, store.parent().unwrap(), &["--force"]),
    ] {
        assert_refused(&wrong, exit::USAGE, "must not lie inside each other");
    }
    assert_refused(&export(&store, &dir, &[]), exit::USAGE, "is not empty");
    assert_refused(&import(&dir, &dir, &[]), exit::USAGE, "inside each other");
    let nothing = place.path("nothing");
    assert_refused(
        &export(&nothing, &place.path("x"), &[]),
        exit::NOT_A_STORE,
        "nothing",
    );
    assert_refused(&import(&nothing, &store, &[]), exit::FAILED, "nothing");
    assert!(!place.path("x").exists());
}

#[test]
fn what_is_in_the_way_is_not_replaced_by_something_of_another_kind() {
    let place = Place::new();
    let (first, second) = (place.path("first"), place.path("second"));
    let store = place.path("store");
    for (dir, file, both) in [(&first, "a", "b"), (&second, "b", "a")] {
        fs::create_dir_all(dir.join(both)).unwrap();
        fs::write(dir.join(file), "x").unwrap();
        fs::write(dir.join("c"), dir.as_os_str().as_bytes()).unwrap();
    }
    assert_ok(&import(&first, &store, &[]));
    let output = import(&second, &store, &["--json"]);
    assert_refused(
        &output,
        exit::FAILED,
        "a: a file of the same name is in its place",
    );
    assert_refused(
        &output,
        exit::FAILED,
        "b: a directory of the same name is in its place",
    );
    let copy = place.path("copy");
    assert_ok(&export(&store, &copy, &[]));
    assert!(copy.join("a").is_file() && copy.join("b").is_dir());
    let replaced = fs::read(copy.join("c")).unwrap();
    assert_eq!(replaced, second.as_os_str().as_bytes());
}

#[test]
fn what_cannot_be_read_is_listed_and_all_else_is_there() {
    if !rustix::process::geteuid().is_root() {
        return skipped("needs root, to become somebody else");
    }
    let place = Place::new();
    fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let original = place.oddities();
    fs::create_dir(original.join("private")).unwrap();
    fs::write(original.join("private/file"), "x").unwrap();
    fs::set_permissions(original.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    let store = place.path("store");
    let mut command = Command::new(program_in(place.0.path()));
    command.args(["import".as_ref(), original.as_os_str(), store.as_os_str()]);
    let output = finish(command.uid(12_345).gid(12_345).current_dir("/"));
    assert_refused(
        &output,
        exit::FAILED,
        "unreadable: cannot read: Permission denied",
    );
    assert_refused(
        &output,
        exit::FAILED,
        "private: cannot read: Permission denied",
    );
    assert_refused(&output, exit::FAILED, "null: only root can make devices");
    assert_refused(
        &output,
        exit::FAILED,
        "could not be copied as they are; everything else",
    );
    check(&store);
    let copy = place.path("copy");
    assert_ok(&export(&store, &copy, &[]));
    let (left, right) = (tree(&original), tree(&copy));
    let missing: Vec<&PathBuf> = left.keys().filter(|p| !right.contains_key(*p)).collect();
    // Of a mode or list that shuts others out, of another owner's privileges, or for root alone.
    let mut expected = vec!["disk", "null", "private/file", "setgid", "unreadable"];
    if left[Path::new("lists/with")].mode() & 7 == 0 {
        expected.insert(1, "lists/with");
    }
    assert_eq!(missing, expected.iter().map(Path::new).collect::<Vec<_>>());
    assert!(right.values().all(|meta| meta.uid() == 12_345));
    // Not theirs to give away.
    assert_eq!(right[Path::new("setuid")].mode() & 0o7777, 0o755);
}

#[test]
fn a_tree_that_is_deeper_than_any_path_goes_in_and_out() {
    let place = Place::new();
    let (original, store) = (place.path("original"), place.path("store"));
    fs::create_dir(&original).unwrap();
    let name = "n".repeat(250);
    let open = |dir: &Path| rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    let mut dir = open(&original).unwrap();
    for _ in 0..20 {
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &name, OFlags::PATH, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&dir, "file", flags, Mode::RUSR).unwrap();
    rustix::io::write(&file, b"at the bottom").unwrap();
    rustix::fs::linkat(&dir, "file", &dir, "second", rustix::fs::AtFlags::empty()).unwrap();
    assert_ok(&import(&original, &store, &[]));
    let copy = place.path("copy");
    assert_ok(&export(&store, &copy, &[]));
    let mut dir = open(&copy).unwrap();
    for _ in 0..20 {
        dir = rustix::fs::openat(&dir, &name, OFlags::PATH, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&dir, "second", OFlags::RDONLY, Mode::empty()).unwrap();
    let mut data = [0; 64];
    let len = rustix::io::read(&file, &mut data).unwrap();
    assert_eq!(&data[..len], b"at the bottom");
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_nlink, 2);
}

#[test]
fn a_mounted_store_takes_in_and_gives_out_through_its_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let original = place.oddities();
    let bed = Bed::mounted("policy=fast");
    assert_ok(&import(
        &original,
        &bed.store,
        &["--into", "in/side", "--settle"],
    ));
    let what = Compare {
        access_times: false,
        ..ALL
    };
    assert_same_tree(&original, &bed.mnt.join("in/side"), what);
    let copy = place.path("copy");
    assert_ok(&export(&bed.mnt, &copy, &[]));
    assert_same_tree(&original, &copy.join("in/side"), what);
    let wrong = import(&original, &bed.store, &["-o", "policy=ratio"]);
    assert_refused(&wrong, exit::USAGE, "its mount has its own options");
    let wrong = import(&bed.mnt, &bed.store, &[]);
    assert_refused(&wrong, exit::USAGE, "inside each other");
    bed.umount();
    assert_holds(&place, &bed.store, &copy);
    bed.mount("ro");
    let wrong = import(&original, &bed.store, &[]);
    assert_refused(&wrong, exit::BUSY, "mounted read-only");
    bed.umount();
}

#[test]
fn file_systems_below_are_not_entered_where_that_is_asked_for() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (original, store) = (place.path("original"), place.path("store"));
    fs::create_dir_all(original.join("here")).unwrap();
    fs::write(original.join("here/file"), "x").unwrap();
    let mut bed = Bed::new();
    bed.mnt = original.join("other");
    fs::create_dir(&bed.mnt).unwrap();
    bed.mount("");
    fs::write(bed.mnt.join("file"), "x").unwrap();
    let output = import(&original, &store, &["-x", "--json"]);
    assert_ok(&output);
    assert_eq!(summary(&output)["excluded"], 1);
    bed.umount();
    let copy = place.path("copy");
    assert_ok(&export(&store, &copy, &[]));
    assert!(copy.join("here/file").exists() && copy.join("other").is_dir());
    assert!(!copy.join("other/file").exists());
}
