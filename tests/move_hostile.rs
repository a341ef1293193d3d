//! Copies from what is hostile, damaged or changes meanwhile, and to what is in the way: nothing is written
//! elsewhere, nothing is lost without a word.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Output as Ended, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use cli::*;
use rustix::fs::XattrFlags;
use s2sfs::store::carry::{self, StoreFile};
use s2sfs::store::{Op, OpenOptions, RealStorage, Store, Transaction};
use s2sfs::transfer::tree::{Contents, Meta, Output, Result, Target, Tree, TreeError};
use s2sfs::transfer::{
    CopyOptions, Failed, HostTree, Report, Verify, Watch, WireError, copy, measure, send,
};
use s2sfs::volume::ROOT;

type Dir = <HostTree as Tree>::Dir;
/// Is told what is about to be done in which directory to which name, and may say that it fails.
type Hook<'a> = Box<dyn Fn(&str, &Dir, &[u8]) -> Option<i32> + Send + Sync + 'a>;

/// A directory in which things happen.
struct Hooked<'a> {
    tree: HostTree,
    hook: Hook<'a>,
    /// Names that it claims to have besides.
    more: Vec<&'static [u8]>,
}

impl<'a> Hooked<'a> {
    fn new(
        path: &Path,
        hook: impl Fn(&str, &Dir, &[u8]) -> Option<i32> + Send + Sync + 'a,
    ) -> Hooked<'a> {
        Hooked {
            tree: HostTree::open(path).unwrap(),
            hook: Box::new(hook),
            more: Vec::new(),
        }
    }

    fn plain(path: &Path) -> Hooked<'a> {
        Hooked::new(path, |_, _, _| None)
    }

    fn ask(&self, what: &str, dir: &Dir, name: &[u8]) -> Result<()> {
        match (self.hook)(what, dir, name) {
            Some(errno) => Err(TreeError::Io(std::io::Error::from_raw_os_error(errno))),
            None => Ok(()),
        }
    }
}

impl Tree for Hooked<'_> {
    type Dir = Dir;

    fn root(&self) -> Result<Dir> {
        self.tree.root()
    }

    fn names(&self, dir: &Dir) -> Result<Vec<Vec<u8>>> {
        self.ask("names", dir, b"")?;
        let mut names = self.tree.names(dir)?;
        names.extend(self.more.iter().map(|name| name.to_vec()));
        Ok(names)
    }

    fn meta(&self, dir: &Dir, name: &[u8]) -> Result<Meta> {
        self.ask("meta", dir, name)?;
        self.tree.meta(dir, name)
    }

    fn open_dir(&self, dir: &Dir, name: &[u8]) -> Result<Dir> {
        self.tree.open_dir(dir, name)
    }

    fn symlink_target(&self, dir: &Dir, name: &[u8]) -> Result<Vec<u8>> {
        self.tree.symlink_target(dir, name)
    }

    fn attribute_names(&self, dir: &Dir, name: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.tree.attribute_names(dir, name)
    }

    fn attribute(&self, dir: &Dir, name: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.ask("attribute", dir, key)?;
        self.tree.attribute(dir, name, key)
    }

    fn open(&self, dir: &Dir, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        self.ask("open", dir, name)?;
        self.tree.open(dir, name)
    }
}

impl Target for Hooked<'_> {
    fn make_dir(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.ask("make_dir", dir, name)?;
        self.tree.make_dir(dir, name, wanted)
    }

    fn make_symlink(&self, dir: &Dir, name: &[u8], target: &[u8], wanted: &Meta) -> Result<()> {
        self.ask("make_symlink", dir, name)?;
        self.tree.make_symlink(dir, name, target, wanted)
    }

    fn make_node(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.ask("make_node", dir, name)?;
        self.tree.make_node(dir, name, wanted)
    }

    fn create(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<Box<dyn Output + '_>> {
        self.ask("create", dir, name)?;
        self.tree.create(dir, name, wanted)
    }

    fn link(&self, from: &Dir, name: &[u8], to: &Dir, new: &[u8]) -> Result<()> {
        self.ask("link", to, new)?;
        self.tree.link(from, name, to, new)
    }

    fn rename(&self, dir: &Dir, from: &[u8], to: &[u8]) -> Result<()> {
        self.ask("rename", dir, to)?;
        self.tree.rename(dir, from, to)
    }

    fn remove(&self, dir: &Dir, name: &[u8]) -> Result<()> {
        self.tree.remove(dir, name)
    }

    fn set_owner(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.tree.set_owner(dir, name, wanted)
    }

    fn set_mode_and_times(&self, dir: &Dir, name: &[u8], wanted: &Meta) -> Result<()> {
        self.ask("set_mode_and_times", dir, name)?;
        self.tree.set_mode_and_times(dir, name, wanted)
    }

    fn set_attribute(
        &self,
        dir: &Dir,
        name: &[u8],
        attribute: &s2sfs::transfer::tree::Attribute,
    ) -> Result<()> {
        self.tree.set_attribute(dir, name, attribute)
    }

    fn remove_attribute(&self, dir: &Dir, name: &[u8], attribute: &[u8]) -> Result<()> {
        self.tree.remove_attribute(dir, name, attribute)
    }

    fn barrier(&self) -> Result<()> {
        self.ask("barrier", &self.root()?, b"")?;
        self.tree.barrier()
    }

    fn sync_all(&self) -> Result<()> {
        self.ask("sync_all", &self.root()?, b"")?;
        self.tree.sync_all()
    }

    fn reopen(&self, dir: &Dir, name: &[u8]) -> Result<Box<dyn Contents + '_>> {
        self.tree.reopen(dir, name)
    }
}

fn options(threads: usize) -> CopyOptions {
    let root = rustix::process::geteuid();
    CopyOptions {
        threads,
        verify: Verify::Full,
        exclude: Vec::new(),
        one_file_system: false,
        as_root: root.is_root(),
        owner: (root.as_raw(), rustix::process::getegid().as_raw()),
    }
}

/// Copies with one thread, so that names are taken in their order.
fn copied<S: Tree, T: Target>(source: &S, target: &T, last: &(dyn Fn() + Sync)) -> Report {
    let watch = Watch {
        stop: &AtomicBool::new(false),
        progress: &|_| {},
        last,
    };
    copy(source, target, &options(1), &watch).unwrap()
}

fn failures(report: &Report) -> Vec<(&str, &str)> {
    let failed = report.failed.iter();
    failed
        .map(|Failed { path, why }| (path.as_str(), why.as_str()))
        .collect()
}

/// A directory with so many files that more than one of them is a job.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        for dir in ["from", "to"] {
            fs::create_dir(place.path(dir)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// `first` and `second` are names of one file, and what follows fills jobs of several names.
    fn twins() -> Place {
        let place = Place::new();
        fs::write(place.path("from/first"), "the twins").unwrap();
        fs::hard_link(place.path("from/first"), place.path("from/second")).unwrap();
        for number in 0..8 {
            fs::write(place.path(&format!("from/z{number}")), "filler").unwrap();
        }
        place
    }
}

fn first_time(done: &AtomicBool) -> bool {
    !done.swap(true, Relaxed)
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_takes_none_of_its_names_with_it() {
    let place = Place::twins();
    // So that what is left of it has several names still, which wait for the first.
    fs::hard_link(place.path("from/first"), place.path("from/third")).unwrap();
    fs::set_permissions(place.path("from"), fs::Permissions::from_mode(0o751)).unwrap();
    let done = AtomicBool::new(false);
    let source = Hooked::new(&place.path("from"), |what, _, name| {
        if what == "open" && name == b"first" && first_time(&done) {
            fs::write(place.path("new"), "another one").unwrap();
            fs::rename(place.path("new"), place.path("from/first")).unwrap();
        }
        None
    });
    let ended = AtomicBool::new(false);
    let target = Hooked::plain(&place.path("to"));
    let report = copied(&source, &target, &|| ended.store(true, Relaxed));
    assert_eq!(failures(&report), []);
    let read = |name: &str| fs::read_to_string(place.path("to").join(name)).unwrap();
    assert_eq!(read("first"), "another one");
    assert_eq!(read("second"), "the twins");
    assert_eq!(read("third"), "the twins");
    assert_eq!((report.files, report.hard_links), (10, 1));
    // Nobody holds on to the directory.
    assert!(ended.load(Relaxed));
    let mode = fs::metadata(place.path("to")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o751);
}

#[test]
fn a_file_that_changes_while_it_is_read_has_the_attributes_that_belong_to_its_contents() {
    let place = Place::new();
    let file = place.path("from/file");
    fs::write(&file, "before").unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&file, name, value, XattrFlags::empty()).is_ok()
    };
    if !set("user.old", b"1") || !set("user.both", b"1") {
        return skipped("the temporary directory takes no extended attributes");
    }
    let done = AtomicBool::new(false);
    let source = Hooked::new(&place.path("from"), |what, _, name| {
        if what == "open" && name == b"file" && first_time(&done) {
            fs::write(&file, "later").unwrap();
            rustix::fs::removexattr(&file, "user.old").unwrap();
            assert!(set("user.both", b"2"));
        }
        None
    });
    let target = Hooked::plain(&place.path("to"));
    let report = copied(&source, &target, &|| {});
    assert_eq!(failures(&report), []);
    let copy = place.path("to/file");
    assert_eq!(fs::read(&copy).unwrap(), b"later");
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&copy, "user.both", &mut value), Ok(1));
    assert_eq!(value[0], b'2');
    let old = rustix::fs::getxattr(&copy, "user.old", &mut value);
    assert_eq!(old, Err(rustix::io::Errno::NODATA));
}

#[test]
fn an_attribute_that_cannot_be_read_is_listed_and_all_else_of_the_file_is_there() {
    let place = Place::new();
    let (file, copy) = (place.path("from/file"), place.path("to/file"));
    fs::write(&file, "contents").unwrap();
    fs::write(&copy, "older").unwrap();
    let set = |path: &Path, name: &str| {
        rustix::fs::setxattr(path, name, b"x", XattrFlags::empty()).is_ok()
    };
    if !(set(&file, "user.bad") && set(&file, "user.good")) {
        return skipped("the temporary directory takes no extended attributes");
    }
    let source = Hooked::new(&place.path("from"), |what, _, name| {
        (what == "attribute" && name == b"user.bad").then_some(libc::EIO)
    });
    let report = copied(&source, &Hooked::plain(&place.path("to")), &|| {});
    let why = "cannot read attribute user.bad: Input/output error (os error 5)";
    assert_eq!(failures(&report), [("file", why)]);
    assert_eq!(fs::read(&copy).unwrap(), b"contents");
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&copy, "user.good", &mut value), Ok(1));

    // What an earlier copy could read is not taken away.
    assert!(set(&copy, "user.bad"));
    copied(&source, &Hooked::plain(&place.path("to")), &|| {});
    assert_eq!(rustix::fs::getxattr(&copy, "user.bad", &mut value), Ok(1));
}

#[test]
fn a_copy_ends_when_everything_in_it_is_durable_and_not_before() {
    let place = Place::twins();
    fs::create_dir(place.path("from/dir")).unwrap();
    symlink("first", place.path("from/link")).unwrap();
    let log = Mutex::new(Vec::new());
    let target = Hooked::new(&place.path("to"), |what, _, _| {
        log.lock().unwrap().push(what.to_owned());
        None
    });
    let source = Hooked::plain(&place.path("from"));
    let report = copied(&source, &target, &|| {
        log.lock().unwrap().push("last".into());
    });
    assert_eq!(failures(&report), []);
    let log = log.lock().unwrap();
    assert_eq!(log.last().unwrap(), "sync_all");
    let last = log.iter().position(|what| what == "last").unwrap();
    assert_eq!(log[last - 1], "barrier");
    // Only the root is dressed behind that.
    let changes = |log: &[String]| {
        let makes = ["create", "rename", "link", "make_dir", "make_symlink"];
        log.iter().any(|what| makes.contains(&what.as_str()))
    };
    assert!(changes(&log[..last]) && !changes(&log[last..]));

    let target = Hooked::new(&place.path("to"), |what, _, _| {
        (what == "sync_all").then_some(libc::EIO)
    });
    let report = copied(&source, &target, &|| {});
    let why = "cannot make it durable: Input/output error (os error 5)";
    assert_eq!(failures(&report), [(".", why)]);
}

#[test]
fn a_copy_that_cannot_be_opened_any_more_is_made_anew() {
    let place = Place::new();
    fs::write(place.path("from/file"), "contents").unwrap();
    let source = Hooked::plain(&place.path("from"));
    copied(&source, &Hooked::plain(&place.path("to")), &|| {});
    let target = Hooked::new(&place.path("to"), |what, _, name| {
        (what == "open" && name == b"file").then_some(libc::EACCES)
    });
    let report = copied(&source, &target, &|| {});
    assert_eq!((failures(&report), report.files), (vec![], 1));
    let again = copied(&source, &Hooked::plain(&place.path("to")), &|| {});
    assert_eq!((again.files, again.unchanged), (0, 1));
}

#[test]
fn a_directory_that_cannot_be_listed_in_the_target_is_left_out_and_the_rest_is_copied() {
    let place = Place::new();
    for path in ["from/bad", "from/good", "to/bad"] {
        fs::create_dir(place.path(path)).unwrap();
    }
    fs::write(place.path("from/bad/file"), "x").unwrap();
    fs::write(place.path("from/good/file"), "x").unwrap();
    let bad = fs::metadata(place.path("to/bad")).unwrap().ino();
    let target = Hooked::new(&place.path("to"), |what, dir, _| {
        let ino = rustix::fs::fstat(dir.as_fd()).unwrap().st_ino;
        (what == "names" && ino == bad).then_some(libc::EIO)
    });
    let report = copied(&Hooked::plain(&place.path("from")), &target, &|| {});
    let why = "cannot write: Input/output error (os error 5)";
    assert_eq!(failures(&report), [("bad", why)]);
    assert!(place.path("to/good/file").exists());
    assert!(!place.path("to/bad/file").exists());
}

#[test]
fn names_that_lead_elsewhere_are_refused_whatever_has_them() {
    let place = Place::new();
    fs::write(place.path("evil"), "from outside").unwrap();
    fs::create_dir(place.path("deep")).unwrap();
    fs::create_dir(place.path("deep/to")).unwrap();
    fs::write(place.path("from/file"), "x").unwrap();
    let source = Hooked {
        more: vec![b"../evil", b"..", b".", b"", b"nul\0byte"],
        ..Hooked::plain(&place.path("from"))
    };
    let target = Hooked::plain(&place.path("deep/to"));
    let report = copied(&source, &target, &|| {});
    assert_eq!((report.files, report.failures), (1, 5));
    let why = "this cannot be the name of a file";
    assert!(failures(&report).iter().all(|failed| failed.1 == why));
    assert!(!place.path("deep/evil").exists());
    assert_eq!(fs::read_dir(place.path("deep/to")).unwrap().count(), 1);
}

#[test]
fn a_panic_ends_a_copy_and_does_not_make_it_wait_for_ever() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let place = Place::twins();
        let source = Hooked::new(&place.path("from"), |what, _, name| {
            assert!(what != "open" || name != b"z3", "a fault of the program");
            None
        });
        let target = Hooked::plain(&place.path("to"));
        let watch = Watch {
            stop: &AtomicBool::new(false),
            progress: &|_| {},
            last: &|| {},
        };
        let attempt = || copy(&source, &target, &options(4), &watch).map(|_| ());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt));
        let _ = done.send(outcome.is_err());
    });
    let panicked = ended.recv_timeout(Duration::from_secs(20));
    assert_eq!(panicked, Ok(true), "it hangs");
}

#[test]
fn a_mode_is_not_changed_through_a_symlink_that_has_taken_the_place_of_a_file() {
    let place = Place::new();
    let (file, outside) = (place.path("from/file"), place.path("outside"));
    fs::write(&file, "x").unwrap();
    fs::write(&outside, "x").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
    let tree = HostTree::open(&place.path("from")).unwrap();
    let root = tree.root().unwrap();
    let mut wanted = tree.meta(&root, b"file").unwrap();
    wanted.perm = 0o4777;
    tree.set_mode_and_times(&root, b"file", &wanted).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&file), 0o4777);
    fs::remove_file(&file).unwrap();
    symlink(&outside, &file).unwrap();
    let error = tree.set_mode_and_times(&root, b"file", &wanted);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("has taken its place"), "{error}");
    assert_eq!(mode(&outside), 0o600);
}

#[test]
fn a_path_in_a_tree_does_not_lead_out_of_it_over_symlinks() {
    let place = Place::new();
    symlink(place.path("to"), place.path("from/out")).unwrap();
    for inside in ["out", "out/new"] {
        let error = HostTree::within(&place.path("from"), Path::new(inside)).err();
        assert!(error.is_some(), "{inside} was followed");
    }
    assert_eq!(fs::read_dir(place.path("to")).unwrap().count(), 0);
    HostTree::within(&place.path("from"), Path::new("a/b/c")).unwrap();
    HostTree::within(&place.path("from"), Path::new("a/b/c")).unwrap();
    assert!(place.path("from/a/b/c").is_dir());
}

fn run(command: &str, arguments: &[&Path]) -> Ended {
    finish(program().arg(command).args(arguments))
}

/// Imports or exports without loading a model for it.
fn quick(command: &str, arguments: &[&Path]) -> Ended {
    finish(program().args([command, "-opolicy=fast"]).args(arguments))
}

fn assert_ok(output: &Ended) {
    assert_eq!(output.status.code(), Some(exit::OK), "{}", text(output));
}

/// A store at `store` with `file`, and a directory `dir` with `below`.
fn make_store(place: &Place) {
    fs::write(place.path("from/file"), "x").unwrap();
    fs::create_dir(place.path("from/dir")).unwrap();
    fs::write(place.path("from/dir/below"), "y").unwrap();
    assert_ok(&quick(
        "import",
        &[&place.path("from"), &place.path("store")],
    ));
}

fn dirent(parent: u64, name: &[u8]) -> Vec<u8> {
    [b"D", &parent.to_be_bytes()[..], name].concat()
}

/// Puts a directory entry into the store, as only a program that means ill does.
fn plant(store: &Store, parent: u64, name: &[u8], value: Vec<u8>) {
    let key = dirent(parent, name);
    let ops = vec![Op::Put { key, value }];
    store.commit(Transaction { ops }).unwrap();
}

fn open_store(path: &Path) -> Store {
    let storage = Arc::new(RealStorage::new(path));
    Store::open(storage, &OpenOptions::default()).unwrap()
}

#[test]
fn a_store_whose_names_lead_elsewhere_is_damaged_and_nothing_is_written_there() {
    let place = Place::new();
    make_store(&place);
    for name in [&b"../evil"[..], b"..", b"nul\0byte"] {
        let store = open_store(&place.path("store"));
        let value = store.get(&dirent(ROOT, b"file")).unwrap().unwrap();
        plant(&store, ROOT, name, value);
        drop(store);
        let copy = place.path("to/deep");
        let output = quick("export", &[&place.path("store"), &copy]);
        assert_refused(&output, exit::FAILED, "damaged directory entry: bad name");
        assert!(!copy.exists() && !place.path("to/evil").exists());
        let key = dirent(ROOT, name);
        let ops = vec![Op::Delete { key }];
        let store = open_store(&place.path("store"));
        store.commit(Transaction { ops }).unwrap();
    }
}

#[test]
fn a_store_whose_directories_hold_themselves_is_exported_without_end_of_them() {
    let place = Place::new();
    make_store(&place);
    let store = open_store(&place.path("store"));
    let value = store.get(&dirent(ROOT, b"dir")).unwrap().unwrap();
    // Small numbers are one byte.
    let dir = u64::from(value[0]);
    let root = vec![ROOT as u8, value[1]];
    plant(&store, dir, b"again", value);
    plant(&store, dir, b"up", root);
    drop(store);
    let copy = place.path("copy");
    let output = quick("export", &[&place.path("store"), &copy]);
    for name in ["again", "up"] {
        let words = format!("dir/{name}: it is a directory that it lies in");
        assert_refused(&output, exit::FAILED, &words);
        assert!(!copy.join("dir").join(name).exists());
    }
    assert_eq!(fs::read(copy.join("dir/below")).unwrap(), b"y");
    assert_eq!(fs::read(copy.join("file")).unwrap(), b"x");
}

#[test]
fn the_mark_of_an_export_takes_no_name_that_somebody_has() {
    let place = Place::new();
    fs::write(place.path("from/.s2sfs-export"), "of the user").unwrap();
    make_store(&place);
    let (store, copy) = (place.path("store"), place.path("copy"));
    assert_ok(&quick("export", &[&store, &copy]));
    let mut names: Vec<_> = fs::read_dir(&copy)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".s2sfs-export", "dir", "file"]);
    let mark = copy.join(".s2sfs-export");
    assert_eq!(fs::read(mark).unwrap(), b"of the user");
}

#[test]
fn the_mark_of_an_export_is_not_written_through_a_symlink_and_knows_the_store() {
    let place = Place::new();
    make_store(&place);
    let (store, copy) = (place.path("store"), place.path("copy"));
    fs::create_dir(&copy).unwrap();
    fs::write(place.path("victim"), "precious").unwrap();
    symlink(place.path("victim"), copy.join(".s2sfs-export")).unwrap();
    let refused = quick("export", &[&store, &copy]);
    assert_refused(&refused, exit::USAGE, "is not empty");
    assert_ok(&quick("export", &[&store, &copy, Path::new("--force")]));
    assert_eq!(fs::read(place.path("victim")).unwrap(), b"precious");
    assert!(copy.join(".s2sfs-export").is_symlink());

    // An export that was killed at once has left no more than the name of its mark.
    let begun = place.path("begun");
    fs::create_dir(&begun).unwrap();
    fs::write(begun.join(".s2sfs-export"), "").unwrap();
    assert_ok(&quick("export", &[&store, &begun]));
    assert!(begun.join("file").exists() && !begun.join(".s2sfs-export").exists());

    // A store that was moved is the same one; one in its place is not.
    let uuid = s2sfs_uuid(&store);
    fs::remove_file(copy.join(".s2sfs-export")).unwrap();
    fs::write(copy.join(".s2sfs-export"), &uuid).unwrap();
    let moved = place.path("moved");
    fs::rename(&store, &moved).unwrap();
    assert_ok(&quick("import", &[&place.path("from"), &store]));
    let refused = quick("export", &[&store, &copy]);
    assert_refused(&refused, exit::USAGE, "is not empty");
    assert_ok(&quick("export", &[&moved, &copy]));
    assert!(!copy.join(".s2sfs-export").exists());
}

fn s2sfs_uuid(store: &Path) -> String {
    let storage = RealStorage::new(store);
    let description = carry::description_bytes(&storage).unwrap();
    let uuid = carry::uuid_of_description("store", &description);
    uuid.unwrap().to_string()
}

fn send_to(store: &Path, stream: &Path) {
    let mut command = program();
    command.arg("send").arg(store).stdin(Stdio::null());
    let output = command.stdout(File::create(stream).unwrap()).output();
    assert_ok(&output.unwrap());
}

fn receive_from(stream: &Path, store: &Path) -> Ended {
    let mut command = program();
    command.arg("receive").arg(store);
    command.stdin(File::open(stream).unwrap()).output().unwrap()
}

#[test]
fn what_is_in_the_place_of_a_half_received_store_is_removed_only_if_it_is_one() {
    let place = Place::new();
    make_store(&place);
    let (stream, new) = (place.path("stream"), place.path("new"));
    send_to(&place.path("store"), &stream);
    let site = place.path(".new.receiving");

    // A symlink to another store, and a directory with something else in it.
    fs::create_dir(place.path("log")).unwrap();
    fs::write(place.path("log/precious"), "x").unwrap();
    symlink(place.0.path(), &site).unwrap();
    let output = receive_from(&stream, &new);
    assert_refused(&output, exit::USAGE, "it is no directory of yours");
    assert!(place.path("log/precious").exists());
    fs::remove_file(&site).unwrap();
    fs::create_dir_all(site.join("log")).unwrap();
    fs::write(site.join("notes"), "x").unwrap();
    let output = receive_from(&stream, &new);
    assert_refused(&output, exit::USAGE, "has files that no interrupted");
    assert!(site.join("notes").exists() && site.join("log").exists());

    // What an attempt has left goes, and an index of something else with it.
    fs::remove_file(site.join("notes")).unwrap();
    fs::create_dir(site.join("index")).unwrap();
    fs::write(site.join("index/of"), "another store").unwrap();
    fs::write(site.join("s2sfs.toml"), "x").unwrap();
    assert_ok(&receive_from(&stream, &new));
    assert!(!site.exists() && !new.join("index/of").exists());
    assert_ok(&run("check", &[&new]));
}

#[test]
fn a_file_of_the_store_that_has_become_shorter_is_damage_and_no_wrong_usage() {
    let place = Place::new();
    make_store(&place);
    let store = place.path("store");
    fs::create_dir_all(store.join("models")).unwrap();
    fs::write(store.join("models/short"), "five.").unwrap();
    let files = [StoreFile {
        path: "models/short".into(),
        len: 10,
    }];
    let storage = RealStorage::new(&store);
    let sent = send(
        &storage,
        &files,
        &mut Vec::new(),
        &AtomicBool::new(false),
        &mut || Ok(()),
        &|_, _| {},
    );
    let is_damage = matches!(
        &sent,
        Err(WireError::Store(s2sfs::store::StoreError::Damaged { .. }))
    );
    assert!(is_damage, "{sent:?}");
}

#[test]
fn a_wide_directory_does_not_take_all_open_files() {
    let place = Place::new();
    for number in 0..800 {
        fs::create_dir(place.path(&format!("from/{number}"))).unwrap();
    }
    let script = "ulimit -n 150 && exec \"$0\" import -opolicy=fast --threads 1 \"$1\" \"$2\"";
    let program = env!("CARGO_BIN_EXE_s2sfs");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, program]);
    let output = finish(command.args([place.path("from"), place.path("store")]));
    assert_ok(&output);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("801 directories"), "{out}");
}

#[test]
fn measuring_counts_every_file_that_is_not_left_out() {
    let place = Place::new();
    fs::create_dir_all(place.path("from/a/b/c")).unwrap();
    for (path, len) in [
        ("top", 1),
        ("a/in", 10),
        ("a/b/in", 100),
        ("a/b/c/in", 1000),
    ] {
        fs::write(place.path("from").join(path), vec![7; len]).unwrap();
    }
    let source = HostTree::open(&place.path("from")).unwrap();
    let sum = Mutex::new(0);
    let found = |bytes| *sum.lock().unwrap() += bytes;
    let stop = AtomicBool::new(false);
    measure(&source, &options(1), &stop, &found).unwrap();
    assert_eq!(*sum.lock().unwrap(), 1111);
}

#[test]
fn nothing_is_imported_through_symlinks_in_a_mount_or_from_its_own_store() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("from/file"), "x").unwrap();
    let bed = Bed::mounted("policy=fast");
    symlink(place.path("to"), bed.mnt.join("out")).unwrap();
    let into = [Path::new("--into"), Path::new("out/side")];
    let from = place.path("from");
    let output = run("import", &[&[from.as_path(), &bed.mnt], &into[..]].concat());
    assert_refused(&output, exit::FAILED, "out/side: Not a directory");
    assert_eq!(fs::read_dir(place.path("to")).unwrap().count(), 0);
    let output = run("import", &[&bed.store, &bed.mnt]);
    assert_refused(&output, exit::USAGE, "must not lie inside each other");
    assert_ok(&run("import", &[&from, &bed.mnt]));
    bed.umount();
}

#[test]
fn what_was_not_copied_is_told_even_if_settling_fails_after_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("from/both")).unwrap();
    let bed = Bed::mounted("policy=fast");
    fs::write(bed.mnt.join("both"), "a file").unwrap();
    // Nobody answers who could settle.
    let (socket, aside) = (bed.store.join("control.sock"), bed.store.join("aside"));
    fs::rename(&socket, &aside).unwrap();
    let arguments = [&place.path("from"), &bed.mnt, Path::new("--settle")];
    let output = run("import", &arguments);
    fs::rename(&aside, &socket).unwrap();
    let words = "both: a file of the same name is in its place";
    assert_refused(&output, exit::FAILED, words);
    assert_refused(&output, exit::FAILED, "1 thing could not be copied");
    assert_refused(&output, exit::FAILED, "cannot reach the daemon");
    bed.umount();
}
