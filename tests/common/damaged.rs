//! Stores to be damaged, and what must hold for them whatever the damage is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use s2sfs::codec::{Codecs, Policy};
use s2sfs::store::{Fault, OpenOptions, SimStorage, Storage, Store, StoreError};
use s2sfs::volume::{
    CheckReport, FileKind, ROOT, RepairReport, Volume, VolumeOptions, WriteMode, check, repair,
};

use super::common::{caller, noise, put, put_in, quiet_options, settle, text};

/// All files of a store.
pub type Image = BTreeMap<String, Vec<u8>>;

/// A sound store, and what is in it.
pub struct Base {
    pub name: &'static str,
    pub image: Image,
    pub codecs: Arc<Codecs>,
    /// Everything that a file ever held, as far as it was committed, by inode.
    pub versions: BTreeMap<u64, Vec<Vec<u8>>>,
    /// The inode of every name.
    pub names: BTreeMap<String, u64>,
    /// Targets of symlinks.
    pub links: BTreeMap<u64, Vec<u8>>,
    pub xattrs: BTreeMap<u64, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Everything is in the checkpoint: no earlier state can come back.
    pub closed: bool,
}

pub fn options() -> OpenOptions {
    OpenOptions {
        create: true,
        memory_index: true,
        segment_bytes: 16 << 10,
        ..OpenOptions::default()
    }
}

pub fn volume_options() -> VolumeOptions {
    VolumeOptions {
        extent: 4096,
        policy: Policy::Ratio,
        threads: 1,
        cache_bytes: 4 << 20,
        ..quiet_options()
    }
}

pub fn image_of(disk: &SimStorage) -> Image {
    let files = disk.files();
    files
        .into_iter()
        .map(|path| (path.clone(), disk.contents(&path).unwrap()))
        .filter(|(path, _)| path != "lock" && path != "log/reserve")
        .collect()
}

pub fn disk_of(image: &Image) -> SimStorage {
    let disk = SimStorage::new();
    disk.mkdir("").unwrap();
    for (path, bytes) in image {
        if let Some((dir, _)) = path.rsplit_once('/') {
            disk.mkdir(dir).unwrap();
            disk.sync_dir("").unwrap();
        }
        let file = disk.create(path).unwrap();
        file.write_at(0, &[bytes]).unwrap();
        file.sync_data().unwrap();
    }
    for dir in ["", "log", "models"] {
        disk.sync_dir(dir).unwrap();
    }
    disk
}

fn open_volume(disk: &SimStorage, codecs: &Arc<Codecs>) -> Arc<Volume> {
    let store = Store::open(Arc::new(disk.clone()), &options()).expect("a sound store opens");
    Volume::open(store, codecs.clone(), volume_options()).expect("a sound volume opens")
}

/// Builds a store with every kind of thing in it. `prose` is what the codecs' model knows.
pub fn build(
    name: &'static str,
    codecs: Arc<Codecs>,
    prose: &[u8],
    models: &[(&str, &[u8])],
    closed: bool,
) -> Base {
    let disk = SimStorage::new();
    let volume = open_volume(&disk, &codecs);
    let mut base = Base {
        name,
        image: Image::new(),
        codecs: codecs.clone(),
        versions: BTreeMap::new(),
        names: BTreeMap::new(),
        links: BTreeMap::new(),
        xattrs: BTreeMap::new(),
        closed,
    };
    let dir = volume.mkdir(ROOT, b"dir", 0o755, caller()).unwrap().ino;
    let sub = volume.mkdir(dir, b"sub", 0o755, caller()).unwrap().ino;
    let mut add = |volume: &Volume, parent: u64, name: &str, data: &[u8]| {
        let ino = put_in(volume, parent, name, data).ino;
        base.versions.insert(ino, vec![Vec::new(), data.to_vec()]);
        ino
    };
    for number in 0..8u64 {
        let len = 200 + number as usize * 90;
        let at = number as usize * 1000;
        add(
            &volume,
            sub,
            &format!("small{number}.txt"),
            &prose[at..at + len],
        );
    }
    let book = add(&volume, dir, "book.txt", &prose[..10_000]);
    add(&volume, dir, "noise.bin", &noise(1, 9000));
    let changed = add(&volume, ROOT, "changed.txt", &prose[3000..9500]);
    let sparse = add(&volume, ROOT, "sparse", b"");
    volume
        .write(sparse, 20_000, b"far away", WriteMode::default())
        .unwrap();
    volume.flush(sparse).unwrap();
    let mut far = vec![0; 20_000];
    far.extend_from_slice(b"far away");
    base.versions.get_mut(&sparse).unwrap().push(far);
    volume.link(book, sub, b"same book").unwrap();
    let long = text(9, 600);
    for (name, target) in [("short", &b"dir/book.txt"[..]), ("long", &long)] {
        let ino = volume
            .symlink(ROOT, name.as_bytes(), target, caller())
            .unwrap()
            .ino;
        base.links.insert(ino, target.to_vec());
    }
    for (attribute, value) in [("user.short", &b"value"[..]), ("user.long", &noise(4, 700))] {
        volume
            .setxattr(book, attribute.as_bytes(), value, false, false)
            .unwrap();
        let attributes = base.xattrs.entry(book).or_default();
        attributes.insert(attribute.into(), value.to_vec());
    }
    settle(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    for (name, bytes) in models {
        let store = Store::open(Arc::new(disk.clone()), &options()).unwrap();
        store.put_model(name, bytes).unwrap();
        store.close().unwrap();
    }
    let volume = open_volume(&disk, &codecs);
    let mut add = |parent: u64, name: &str, data: &[u8]| {
        let ino = put_in(&volume, parent, name, data).ino;
        base.versions.insert(ino, vec![Vec::new(), data.to_vec()]);
    };
    add(dir, "staged.txt", &prose[500..6500]);
    volume.sync_log().unwrap();
    add(ROOT, "staged.bin", &noise(2, 5000));
    volume.sync_log().unwrap();
    volume
        .write(changed, 1000, &noise(3, 2000), WriteMode::default())
        .unwrap();
    volume.flush(changed).unwrap();
    let mut newer = prose[3000..9500].to_vec();
    newer[1000..3000].copy_from_slice(&noise(3, 2000));
    base.versions.get_mut(&changed).unwrap().push(newer);
    volume.sync_log().unwrap();
    let later = put(&volume, "last", b"the last file");
    base.versions
        .insert(later.ino, vec![Vec::new(), b"the last file".to_vec()]);
    volume.sync_log().unwrap();
    base.names = names(&volume).into_iter().collect();
    match closed {
        true => volume.shutdown().unwrap(),
        false => volume.abandon(),
    }
    drop(volume);
    disk.kill();
    base.image = image_of(&disk);
    base
}

/// All names with their inodes.
pub fn names(volume: &Volume) -> Vec<(String, u64)> {
    let (mut names, mut todo) = (Vec::new(), vec![(ROOT, String::new())]);
    while let Some((dir, path)) = todo.pop() {
        for entry in volume.list(dir).unwrap_or_default() {
            let path = format!("{path}{}", String::from_utf8_lossy(&entry.name));
            assert!(path.len() < 4000, "a circle of directories");
            if entry.kind == FileKind::Directory {
                todo.push((entry.ino, format!("{path}/")));
            }
            names.push((path, entry.ino));
        }
    }
    names
}

/// What a volume shows of a base: the files that can be read, and those that cannot.
#[derive(Debug, Default)]
pub struct Seen {
    pub good: BTreeMap<String, Vec<u8>>,
    pub broken: BTreeSet<String>,
}

/// Reads everything. Wrong bytes fail the test.
pub fn look(base: &Base, volume: &Volume, mixed: bool, what: &dyn Fn() -> String) -> Seen {
    let mut seen = Seen::default();
    for (path, ino) in names(volume) {
        let Ok(stat) = volume.getattr(ino) else {
            seen.broken.insert(path);
            continue;
        };
        match stat.attr.kind {
            FileKind::Regular => {
                let versions = base.versions.get(&ino);
                let versions =
                    versions.unwrap_or_else(|| panic!("{}: {path} was never there", what()));
                match look_at_file(volume, ino, stat.attr.size, versions, mixed) {
                    Ok(Some(bytes)) => drop(seen.good.insert(path.clone(), bytes)),
                    Ok(None) => drop(seen.broken.insert(path.clone())),
                    Err(why) => panic!("{}: {path}: {why}", what()),
                }
            }
            FileKind::Symlink => {
                if let Ok(target) = volume.readlink(ino) {
                    assert!(
                        Some(&target) == base.links.get(&ino),
                        "{}: {path} leads elsewhere",
                        what()
                    );
                }
            }
            _ => {}
        }
        for (name, value) in base.xattrs.get(&ino).into_iter().flatten() {
            if let Ok(found) = volume.getxattr(ino, name) {
                assert!(found == *value, "{}: another attribute of {path}", what());
            }
        }
    }
    seen
}

/// The contents, or `None` if they cannot be read as a whole. Err: they are wrong.
fn look_at_file(
    volume: &Volume,
    ino: u64,
    size: u64,
    versions: &[Vec<u8>],
    mixed: bool,
) -> Result<Option<Vec<u8>>, String> {
    let at = |offset: usize, piece: &[u8]| {
        versions
            .iter()
            .any(|version| version.get(offset..offset + piece.len()) == Some(piece))
    };
    let pieces = |broken: bool| {
        for offset in (0..size).step_by(512) {
            match volume.read(ino, offset, 512) {
                Ok(piece) if at(offset as usize, &piece) => {}
                Ok(_) => return Err(format!("wrong bytes at {offset} of {size} ({broken})")),
                Err(_) if broken => {}
                Err(error) => return Err(format!("a part cannot be read, the whole can: {error}")),
            }
        }
        Ok(())
    };
    if size > 1 << 20 {
        return Err(format!("it has {size} bytes"));
    }
    match volume.read(ino, 0, size as usize) {
        Ok(bytes) if versions.contains(&bytes) => Ok(Some(bytes)),
        Ok(bytes) if mixed => pieces(false).map(|()| Some(bytes)),
        Ok(bytes) => Err(format!("wrong contents, {} bytes of {size}", bytes.len())),
        Err(_) => pieces(true).map(|()| None),
    }
}

/// What came of one damaged store.
#[derive(Debug, Default)]
pub struct Outcome {
    pub mounts: bool,
    pub refused: Option<String>,
    pub before: Seen,
    pub check: Option<CheckReport>,
    pub repair: Option<RepairReport>,
    pub after: Seen,
}

/// Opens, reads, checks and (if asked) repairs a damaged store, and asserts everything that must hold.
pub fn examine(base: &Base, image: &Image, with_repair: bool, label: &str) -> Outcome {
    let what = || format!("{}, {label}", base.name);
    let mut outcome = Outcome::default();
    let disk = disk_of(image);
    let readable = OpenOptions {
        create: false,
        read_only: true,
        ..options()
    };
    match Store::open(Arc::new(disk.clone()), &readable) {
        Ok(store) => {
            if let Ok(volume) = Volume::open(store, base.codecs.clone(), volume_options()) {
                outcome.mounts = true;
                outcome.before = look(base, &volume, false, &what);
                volume.shutdown().unwrap();
            }
        }
        Err(error) => outcome.refused = Some(error.to_string()),
    }
    disk.kill();
    assert!(
        image_of(&disk) == *image,
        "{}: a reader has changed the store",
        what()
    );
    let store = match Store::open_damaged(Arc::new(disk.clone()), &options(), false) {
        Ok(store) => Arc::new(store),
        // Only what says that it is not ours, or nothing at all.
        Err(StoreError::NewerFormat { .. } | StoreError::UnknownFeature { .. }) => return outcome,
        Err(error) => panic!("{}: no check: {error}", what()),
    };
    let report =
        check(&store, &base.codecs, 1, &|_, _| {}).unwrap_or_else(|e| panic!("{}: {e}", what()));
    drop(store);
    disk.kill();
    assert!(
        image_of(&disk) == *image,
        "{}: a check has changed the store",
        what()
    );
    if outcome.mounts {
        let named: BTreeSet<String> = report.damage.iter().flat_map(|d| d.files.clone()).collect();
        assert_eq!(
            named,
            outcome.before.broken,
            "{}: check names other files: {report:#?}",
            what()
        );
    } else {
        assert!(
            !report.damage.is_empty(),
            "{}: it does not mount, and check finds nothing",
            what()
        );
    }
    if with_repair {
        examine_repair(base, image, &report, &mut outcome, &what);
    }
    outcome.check = Some(report);
    outcome
}

pub fn mend(base: &Base, disk: &SimStorage) -> s2sfs::volume::Result<RepairReport> {
    repair(
        Arc::new(disk.clone()),
        &options(),
        &base.codecs,
        1,
        &|_, _| {},
    )
}

fn examine_repair(
    base: &Base,
    image: &Image,
    found: &CheckReport,
    outcome: &mut Outcome,
    what: &dyn Fn() -> String,
) {
    let disk = disk_of(image);
    let report = mend(base, &disk).unwrap_or_else(|e| panic!("{}: repair: {e}", what()));
    let models = found.damage.iter().all(|damage| damage.model.is_some());
    // Names of files are put right before the check of a repair.
    assert!(
        report.changed || models || report.found.is_empty(),
        "{}",
        what()
    );
    assert!(
        report.remaining.iter().all(|d| d.model.is_some()),
        "{}: {:#?}",
        what(),
        report.remaining
    );
    disk.kill();
    let mended = image_of(&disk);
    let again = mend(base, &disk).unwrap_or_else(|e| panic!("{}: second repair: {e}", what()));
    disk.kill();
    assert!(
        !again.changed && image_of(&disk) == mended,
        "{}: a second repair: {again:#?}",
        what()
    );
    let store = Store::open(Arc::new(disk.clone()), &options());
    let store = store.unwrap_or_else(|e| panic!("{}: after the repair: {e}", what()));
    let volume = Volume::open(store, base.codecs.clone(), volume_options());
    let volume = volume.unwrap_or_else(|e| panic!("{}: after the repair: {e}", what()));
    let mixed = !outcome.mounts;
    outcome.after = look(base, &volume, mixed, what);
    for (path, bytes) in &outcome.before.good {
        // A journal that a mount could not see may turn up under another name, with newer contents.
        let newest = base
            .names
            .get(path)
            .and_then(|ino| base.versions[ino].last());
        if newest != Some(bytes) {
            continue;
        }
        let there = outcome.after.good.get(path) == Some(bytes);
        assert!(
            there,
            "{}: {path} was readable before the repair: {report:#?}",
            what()
        );
    }
    let lost: BTreeSet<String> = again
        .lost
        .iter()
        .flat_map(|range| range.paths.clone())
        .collect();
    let needy = again.remaining.iter().flat_map(|d| d.files.clone());
    let told: BTreeSet<String> = lost.into_iter().chain(needy).collect();
    assert_eq!(
        told,
        outcome.after.broken,
        "{}: other files are lost than was said",
        what()
    );
    use_it(base, &volume, &outcome.after, what);
    volume.shutdown().unwrap();
    drop(volume);
    disk.kill();
    let store = Arc::new(Store::open_damaged(Arc::new(disk), &options(), false).unwrap());
    let report = check(&store, &base.codecs, 1, &|_, _| {}).unwrap();
    let new: Vec<_> = report.damage.iter().filter(|d| d.model.is_none()).collect();
    assert!(new.is_empty(), "{}: damage after use: {new:#?}", what());
    outcome.repair = Some(again);
}

/// A repaired volume is one like any other: lost ranges can be overwritten, cut off and removed.
fn use_it(base: &Base, volume: &Volume, seen: &Seen, what: &dyn Fn() -> String) {
    macro_rules! done {
        ($call:expr) => {
            $call.unwrap_or_else(|error| panic!("{}: use after repair: {error}", what()))
        };
    }
    for (number, path) in seen.broken.iter().enumerate() {
        let Some((_, ino)) = names(volume).into_iter().find(|(name, _)| name == path) else {
            continue;
        };
        let Ok(size) = volume.getattr(ino).map(|stat| stat.attr.size) else {
            continue;
        };
        if number % 3 == 0 {
            let data = noise(number as u64, size as usize);
            done!(volume.write(ino, 0, &data, WriteMode::default()));
            done!(volume.flush(ino));
            assert!(done!(volume.read(ino, 0, size as usize)) == data);
        } else if number % 3 == 1 {
            let set = s2sfs::volume::SetAttr {
                size: Some(size / 2),
                ..Default::default()
            };
            done!(volume.setattr(ino, set));
        } else if let Ok(stat) = volume.lookup(ROOT, path.as_bytes()) {
            assert_eq!(stat.ino, ino);
            done!(volume.unlink(ROOT, path.as_bytes()));
        }
    }
    let data = text(99, 3000);
    let ino = put(volume, "new file", &data).ino;
    // Staged data whose model or block is gone stays as it is; all else settles.
    let _ = volume.settle(&|_, _| {});
    assert!(
        done!(volume.read(ino, 0, 4096)) == data,
        "{}: {}",
        what(),
        base.name
    );
}

/// A repair that the power is cut from, at any operation, can be repeated.
pub fn examine_interrupted(base: &Base, image: &Image, cut: u64, label: &str) {
    let what = || format!("{}, {label}, cut at {cut}", base.name);
    let disk = disk_of(image);
    disk.set_fault(Some(Fault::PowerCutAt(cut)));
    let _ = mend(base, &disk);
    disk.crash(cut);
    let outcome = examine(
        base,
        &image_of(&disk),
        true,
        &format!("{label}, cut at {cut}"),
    );
    let whole = examine(base, image, true, label);
    let survivors = |seen: &Seen| seen.good.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(
        survivors(&outcome.after),
        survivors(&whole.after),
        "{}",
        what()
    );
}

/// Ends the process if nothing moves for a while: a hang cannot be caught otherwise.
pub struct Watchdog {
    turns: Arc<AtomicU64>,
}

impl Watchdog {
    pub fn new(limit: Duration) -> Watchdog {
        let turns = Arc::new(AtomicU64::new(0));
        let seen = Arc::downgrade(&turns);
        std::thread::spawn(move || {
            let (mut last, mut since) = (0, std::time::Instant::now());
            while let Some(turns) = seen.upgrade() {
                let now = turns.load(SeqCst);
                if now != last {
                    (last, since) = (now, std::time::Instant::now());
                }
                if since.elapsed() > limit {
                    eprintln!("turn {now} takes longer than {limit:?}: it hangs");
                    std::process::abort();
                }
                drop(turns);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Watchdog { turns }
    }

    pub fn turn(&self) {
        self.turns.fetch_add(1, SeqCst);
    }
}

/// Panics of all threads so far; those of workers would else go unnoticed.
pub fn count_panics() -> &'static AtomicU64 {
    static PANICS: AtomicU64 = AtomicU64::new(0);
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, SeqCst);
            before(info);
        }));
    });
    &PANICS
}

/// The most memory that this process ever took, in bytes.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// Where the records of a segment lie: offset, type and length.
pub fn records(bytes: &[u8]) -> Vec<(usize, u8, usize)> {
    let (mut found, mut at) = (Vec::new(), 48);
    while let Some(header) = bytes.get(at..at + 32) {
        if &header[..2] != b"s2" {
            break;
        }
        let len = 32 + u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        found.push((at, header[2], len));
        at += len;
    }
    found
}
