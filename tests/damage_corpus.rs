//! The corpus of damaged stores: right bytes or an error, the right files named, and a repair that keeps
//! everything that is intact. `make damage` runs many random mutations.

mod common;
#[path = "common/damaged.rs"]
#[allow(dead_code)]
mod damaged;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::random::Random;
use damaged::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use s2sfs::codec::Codecs;
use s2sfs::store::{OpenOptions, RealStorage, Store};
use s2sfs::train::{Progress, TrainOptions, train};
use s2sfs::volume::{Volume, repair};

/// What takes longer than this hangs: it takes a moment on an idle machine.
const HANGS: Duration = Duration::from_secs(180);

fn prose() -> Vec<u8> {
    let sources = [
        include_str!("../docs/format.md"),
        include_str!("../docs/durability.md"),
    ];
    sources.concat().into_bytes()
}

/// A small model, its file, and the name of that.
fn model() -> &'static (String, Vec<u8>) {
    static MODEL: OnceLock<(String, Vec<u8>)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..8 {
            std::fs::write(dir.path().join(format!("{number}.txt")), prose()).unwrap();
        }
        let options = TrainOptions {
            name: "tiny".into(),
            buckets: 20_000,
            vocabulary: 600,
            dictionary: 0,
            seed: 1,
            plain: false,
        };
        let quiet = |_: &str, _: usize, _: usize, _: Option<f64>| {};
        let model = train(dir.path(), &options, &Progress::new(&quiet)).unwrap();
        let file = model.to_bytes().unwrap();
        let codecs = Codecs::with_model(&file).unwrap();
        (codecs.encoding_model_name().unwrap(), file)
    })
}

/// The stores to be damaged: closed and crashed, with and without a model.
fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let prose = prose();
        let plain = Arc::new(Codecs::without_model());
        let (name, file) = model();
        let coded = Arc::new(Codecs::with_model(file).unwrap());
        let models = [(name.as_str(), file.as_slice())];
        vec![
            build("closed", plain.clone(), &prose, &[], true),
            build("crashed", plain, &prose, &[], false),
            build("closed with model", coded.clone(), &prose, &models, true),
            build("crashed with model", coded, &prose, &models, false),
        ]
    })
}

/// The segments of one kind.
fn segments<'a>(image: &'a Image, kind: &str) -> Vec<&'a String> {
    image
        .keys()
        .filter(|path| path.starts_with("log/") && path.ends_with(kind))
        .collect()
}

#[test]
fn the_stores_to_be_damaged_are_sound_and_have_everything_in_them() {
    for base in bases() {
        let outcome = examine(base, &base.image, true, "untouched");
        assert!(outcome.mounts && outcome.before.broken.is_empty());
        let report = outcome.check.unwrap();
        assert_eq!(
            (report.damage, report.lost),
            (vec![], vec![]),
            "{}",
            base.name
        );
        assert!(
            outcome.before.good.len() >= 16,
            "{:?}",
            outcome.before.good.keys()
        );
        for (path, bytes) in &outcome.before.good {
            assert_eq!(
                base.versions[&base.names[path]].last(),
                Some(bytes),
                "{path}"
            );
        }
        let mut kinds: Vec<u8> = base
            .image
            .iter()
            .filter(|(path, _)| path.starts_with("log/"))
            .flat_map(|(_, bytes)| records(bytes))
            .map(|(_, kind, _)| kind)
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds, [1, 2, 3, 4, 5], "{}", base.name);
    }
}

type Harm = (&'static str, fn(&mut Vec<u8>, usize, usize));

/// What can happen to the record of this length at this offset.
const HARMS: [Harm; 9] = [
    ("flipped bit in the length", |bytes, at, _| {
        bytes[at + 5] ^= 4
    }),
    ("flipped bit in the object", |bytes, at, _| {
        bytes[at + 9] ^= 1
    }),
    ("flipped bit in the header checksum", |bytes, at, _| {
        bytes[at + 25] ^= 16
    }),
    ("flipped bit in the record checksum", |bytes, at, _| {
        bytes[at + 30] ^= 128
    }),
    ("flipped bit in the body", |bytes, at, len| {
        bytes[at + (32 + len) / 2] ^= 8
    }),
    ("a length of 4 GB", |bytes, at, _| {
        bytes[at + 4..at + 8].fill(0xff)
    }),
    ("zeroed 512 bytes", |bytes, at, _| {
        bytes.iter_mut().skip(at).take(512).for_each(|b| *b = 0)
    }),
    ("zeroed 4 KiB", |bytes, at, _| {
        bytes.iter_mut().skip(at).take(4096).for_each(|b| *b = 0)
    }),
    ("truncated", |bytes, at, len| bytes.truncate(at + len / 2)),
];

#[test]
fn every_type_of_record_damaged_in_every_way_costs_only_itself() {
    let thorough = std::env::var("S2SFS_MUTATIONS").is_ok();
    for (base_number, base) in bases().iter().enumerate() {
        for (path, original) in base
            .image
            .iter()
            .filter(|(path, _)| path.starts_with("log/"))
        {
            let mut seen = std::collections::BTreeMap::new();
            for (at, kind, len) in records(original) {
                // The first ones of each type in each file; with a model, which takes time, only blocks.
                let count = seen.entry(kind).or_insert(0);
                *count += 1;
                if *count > 3 || !thorough && (*count > 1 || base_number > 1 && kind != 3) {
                    continue;
                }
                for (number, (what, harm)) in HARMS.iter().enumerate() {
                    if !thorough && base_number > 1 && number % 4 != 1 {
                        continue;
                    }
                    let mut image = base.image.clone();
                    harm(image.get_mut(path).unwrap(), at, len);
                    let label = format!("{path}, record of type {kind} at {at}: {what}");
                    let outcome = examine(base, &image, number % 3 == *count % 3, &label);
                    if path.ends_with(".c") || path.ends_with(".d") {
                        assert!(outcome.mounts, "{label}: {:?}", outcome.refused);
                        assert!(outcome.before.broken.is_empty(), "{label}");
                    } else if path.ends_with(".b") {
                        assert!(outcome.mounts, "{label}: {:?}", outcome.refused);
                    }
                }
            }
        }
    }
}

#[test]
fn both_copies_of_a_checkpoint_damaged_in_different_places_lose_nothing() {
    for base in bases() {
        let path = segments(&base.image, ".c")[0].clone();
        let copy = path.replace(".c", ".d");
        let len = base.image[&path].len();
        for (first, second) in [
            (60, len - 10),
            (len / 2, 70),
            (5, len / 3),
            (len / 3, len / 3 + 200),
        ] {
            let mut image = base.image.clone();
            image.get_mut(&path).unwrap()[first] ^= 1;
            image.get_mut(&copy).unwrap()[second] ^= 1;
            let outcome = examine(
                base,
                &image,
                true,
                &format!("copies damaged at {first}, {second}"),
            );
            assert!(outcome.mounts && outcome.before.broken.is_empty());
            assert_eq!(outcome.before.good.len(), outcome.after.good.len());
        }
    }
}

#[test]
fn a_checkpoint_lost_in_both_copies_is_reported_and_repaired_as_far_as_the_journal_goes() {
    for base in bases() {
        let path = segments(&base.image, ".c")[0].clone();
        for harm in ["page", "all", "missing"] {
            let mut image = base.image.clone();
            for path in [&path, &path.replace(".c", ".d")] {
                let bytes = image.get_mut(path).unwrap();
                match harm {
                    "page" => bytes[90] ^= 1,
                    "all" => bytes.fill(7),
                    _ => drop(image.remove(path)),
                }
            }
            let outcome = examine(base, &image, true, &format!("both copies: {harm}"));
            assert!(!outcome.mounts);
            let text = format!("{:?}", outcome.check);
            let named = text.contains("in both copies") || text.contains("no checkpoint");
            assert!(named, "{harm}: {text}");
        }
    }
}

#[test]
fn files_of_the_log_missing_swapped_doubled_or_foreign_are_found_and_put_right() {
    for base in bases() {
        for kind in [".j", ".b"] {
            let paths = segments(&base.image, kind);
            for path in &paths {
                let mut image = base.image.clone();
                image.remove(*path);
                examine(base, &image, true, &format!("{path} missing"));

                let mut image = base.image.clone();
                let double = format!("log/00000fff{kind}");
                image.insert(double.clone(), image[*path].clone());
                let outcome = examine(base, &image, true, &format!("{path} doubled"));
                assert!(format!("{:?}", outcome.check).contains("under a wrong name"));
                assert_eq!(outcome.after.broken.len(), 0, "{path} doubled");
            }
            if let [first, .., last] = paths[..] {
                let mut image = base.image.clone();
                let (a, b) = (image[first].clone(), image[last].clone());
                image.insert(first.clone(), b);
                image.insert(last.clone(), a);
                let outcome = examine(base, &image, true, &format!("{first} and {last} swapped"));
                assert_eq!(
                    outcome.after.broken.len(),
                    0,
                    "swapped {kind}: {:?}",
                    outcome.repair
                );
                assert_eq!(
                    outcome.after.good.len(),
                    base.versions.len() + 1,
                    "swapped {kind}"
                );
            }
        }
        // A number that two kinds of segments claim.
        let journal = segments(&base.image, ".j")[0];
        for kind in [".b", ".c", ".d"] {
            let mut image = base.image.clone();
            let checkpoint = image[segments(&base.image, ".c")[0]].clone();
            image.insert(journal.replace(".j", kind), checkpoint);
            let outcome = examine(
                base,
                &image,
                true,
                &format!("{journal} has a double {kind}"),
            );
            assert!(outcome.mounts && outcome.after.broken.is_empty());
            assert!(!outcome.check.unwrap().damage.is_empty());
        }
        let mut image = base.image.clone();
        image.insert("log/00000002.txt".into(), b"hello".to_vec());
        image.insert("log/zzzz.j".into(), b"hello".to_vec());
        image.insert("log/ffffffffffffffff.j".into(), b"hello".to_vec());
        image.insert("log/00000009.j.tmp".into(), b"hello".to_vec());
        image.insert("thesis.tex".into(), b"hello".to_vec());
        let outcome = examine(base, &image, true, "unknown files");
        assert!(outcome.mounts && outcome.before.broken.is_empty());
    }
}

#[test]
fn blocks_that_changed_places_are_no_blocks() {
    for base in bases() {
        let path = segments(&base.image, ".b")[0];
        let found = records(&base.image[path]);
        for pair in found.windows(2) {
            let [(a, _, a_len), (b, _, b_len)] = pair[..] else {
                unreachable!()
            };
            let mut image = base.image.clone();
            let bytes = image.get_mut(path).unwrap();
            let both = [bytes[b..b + b_len].to_vec(), bytes[a..a + a_len].to_vec()].concat();
            bytes[a..b + b_len].copy_from_slice(&both);
            let outcome = examine(
                base,
                &image,
                true,
                &format!("blocks at {a} and {b} swapped"),
            );
            assert!(outcome.mounts && !outcome.before.broken.is_empty());
        }
    }
}

#[test]
fn a_damaged_or_missing_description_is_made_again_from_the_log() {
    for base in bases() {
        let text = String::from_utf8(base.image["s2sfs.toml"].clone()).unwrap();
        let other = text.replace(
            |c: char| c.is_ascii_hexdigit() && c != 'f' && c != 'e' && c != 'a',
            "1",
        );
        let cases: [(&str, Option<Vec<u8>>); 5] = [
            ("missing", None),
            ("empty", Some(Vec::new())),
            ("garbage", Some(vec![0xfe; 3000])),
            ("cut", Some(text.as_bytes()[..12].to_vec())),
            ("of another store", Some(other.into_bytes())),
        ];
        for (what, bytes) in cases {
            let mut image = base.image.clone();
            match bytes {
                Some(bytes) => image.insert("s2sfs.toml".into(), bytes),
                None => image.remove("s2sfs.toml"),
            };
            let outcome = examine(base, &image, true, &format!("description {what}"));
            if !outcome.mounts && outcome.repair.is_some() {
                assert_eq!(outcome.after.good.len(), base.versions.len() + 1, "{what}");
            }
        }
    }
}

#[test]
fn a_damaged_model_is_named_with_the_files_that_need_it_and_nothing_is_given_up_for_it() {
    let (name, file) = model();
    let base = &bases()[2];
    let path = format!("models/{name}");
    for harm in ["flipped", "cut", "missing", "another"] {
        let mut image = base.image.clone();
        let bytes = image.get_mut(&path).unwrap();
        match harm {
            "flipped" => bytes[file.len() / 2] ^= 1,
            "cut" => bytes.truncate(file.len() / 2),
            "missing" => drop(image.remove(&path)),
            _ => *bytes = default_model().to_vec(),
        }
        let codecs = Codecs::without_model();
        let there = image.get(&path).cloned();
        codecs.set_model_source(Box::new(move |_| there.clone()));
        let harmed = Base {
            codecs: Arc::new(codecs),
            image: Image::new(),
            versions: base.versions.clone(),
            names: base.names.clone(),
            links: base.links.clone(),
            xattrs: base.xattrs.clone(),
            ..*base
        };
        let outcome = examine(&harmed, &image, true, &format!("model {harm}"));
        let report = outcome.check.unwrap();
        let needed = report
            .damage
            .iter()
            .find(|d| d.model.as_deref() == Some(name));
        assert!(!needed.expect("the model is named").files.is_empty());
        // With the model back, everything is.
        let disk = disk_of(&image);
        mend(&harmed, &disk).unwrap();
        disk.kill();
        let mut mended = image_of(&disk);
        mended.insert(path.clone(), file.clone());
        let outcome = examine(base, &mended, false, "model put back");
        assert!(outcome.before.broken.is_empty() && outcome.check.unwrap().damage.is_empty());
    }
}

#[test]
fn a_repair_that_is_interrupted_anywhere_can_be_repeated() {
    for base in &bases()[..2] {
        let blocks = segments(&base.image, ".b")[0];
        let journal = segments(&base.image, ".j");
        let mut image = base.image.clone();
        image.get_mut(blocks).unwrap()[100] ^= 1;
        if let Some(last) = journal.last() {
            image.get_mut(*last).unwrap()[60] ^= 1;
        }
        for cut in 0..36 {
            examine_interrupted(base, &image, cut, "a block and the journal");
        }
    }
}

#[test]
fn random_mutations_never_panic_hang_or_show_wrong_bytes() {
    let count = std::env::var("S2SFS_MUTATIONS").ok();
    let count: u64 = count.map_or(150, |count| {
        count.parse().expect("S2SFS_MUTATIONS is a number")
    });
    let first: u64 = std::env::var("S2SFS_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let panics = count_panics();
    bases();
    let (watchdog, begun) = (Watchdog::new(HANGS), Instant::now());
    let (mut mounted, mut repaired, mut lost, mut slowest) = (0, 0, 0, Duration::ZERO);
    for seed in first..first + count {
        watchdog.turn();
        let turn = Instant::now();
        let mut random = Random::new(seed);
        let base = &bases()[if random.below(25) == 0 {
            2 + random.below(2)
        } else {
            random.below(2)
        }];
        let mut image = base.image.clone();
        let mut label = format!("seed {seed}");
        for _ in 0..1 + random.below(4) {
            label.push_str(&format!("; {}", mutate(&mut image, &mut random)));
        }
        let outcome = examine(base, &image, random.below(3) == 0, &label);
        mounted += u64::from(outcome.mounts);
        if let Some(repair) = &outcome.repair {
            repaired += 1;
            lost += u64::from(!repair.lost.is_empty());
        }
        slowest = slowest.max(turn.elapsed());
    }
    let peak = peak_memory() >> 20;
    println!(
        "{count} mutations in {:.1?}: {mounted} mount, {repaired} repaired, {lost} with losses; slowest {slowest:.1?}, peak {peak} MiB",
        begun.elapsed()
    );
    assert_eq!(panics.load(SeqCst), 0, "a thread has panicked");
    assert!(slowest < HANGS, "{slowest:?}");
    assert!(peak < 2048, "{peak} MiB of memory were used");
}

/// A store on a real disk with its index in sled, one file in it, and that file's contents.
fn real_store(root: &std::path::Path) -> (OpenOptions, Vec<u8>) {
    let options = OpenOptions {
        create: true,
        index_cache_bytes: 0,
        segment_bytes: 16 << 10,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(RealStorage::new(root)), &options).unwrap();
    let volume = Volume::open(store, common::codecs(), volume_options()).unwrap();
    let data = common::noise(5, 50_000);
    common::put(&volume, "noise", &data);
    common::settle(&volume);
    common::put(&volume, "staged", &data[..20_000]);
    volume.shutdown().unwrap();
    (options, data)
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The first segment of a kind.
fn first(root: &std::path::Path, kind: &str) -> std::path::PathBuf {
    let entries = std::fs::read_dir(root.join("log")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let of_kind = paths.filter(|path| path.extension().is_some_and(|e| e == kind));
    of_kind.min().expect("a segment")
}

/// Puts a fifo in the place of a file.
fn fifo(path: &std::path::Path) {
    std::fs::remove_file(path).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
}

type Prank = Box<dyn Fn(&std::path::Path)>;

#[test]
fn strange_things_in_the_place_of_files_and_a_damaged_index_are_no_danger() {
    let sound = tempfile::tempdir().unwrap();
    let (options, data) = real_store(sound.path());
    let pranks: Vec<(&str, Prank)> = vec![
        (
            "directory for blocks",
            Box::new(|root| {
                let path = first(root, "b");
                std::fs::remove_file(&path).unwrap();
                std::fs::create_dir(&path).unwrap();
            }),
        ),
        (
            "dangling link for the journal",
            Box::new(|root| {
                let path = first(root, "j");
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("/nowhere/at/all", &path).unwrap();
            }),
        ),
        (
            "link to itself for blocks",
            Box::new(|root| {
                let path = first(root, "b");
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink(&path, &path).unwrap();
            }),
        ),
        ("fifo for blocks", Box::new(|root| fifo(&first(root, "b")))),
        (
            "fifo for the journal",
            Box::new(|root| fifo(&first(root, "j"))),
        ),
        (
            "fifo for a checkpoint",
            Box::new(|root| fifo(&first(root, "c"))),
        ),
        (
            "fifo for the description",
            Box::new(|root| fifo(&root.join("s2sfs.toml"))),
        ),
        (
            "device for blocks",
            Box::new(|root| {
                let path = first(root, "b");
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            }),
        ),
        (
            "lock of garbage",
            Box::new(|root| std::fs::write(root.join("lock"), b"garbage").unwrap()),
        ),
        (
            "no lock",
            Box::new(|root| std::fs::remove_file(root.join("lock")).unwrap()),
        ),
        (
            "index of garbage",
            Box::new(|root| {
                for entry in std::fs::read_dir(root.join("index")).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        std::fs::write(path, vec![0x5a; 50_000]).unwrap();
                    }
                }
            }),
        ),
        (
            "flipped index",
            Box::new(|root| {
                let path = root.join("index/db");
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 3;
                bytes[middle] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }),
        ),
        (
            "a file for the index",
            Box::new(|root| {
                std::fs::remove_dir_all(root.join("index")).unwrap();
                std::fs::write(root.join("index"), b"index").unwrap();
            }),
        ),
        (
            "a sparse terabyte for a mark",
            Box::new(|root| {
                let file = std::fs::File::create(root.join("index/clean")).unwrap();
                file.set_len(1 << 40).unwrap();
            }),
        ),
        (
            "a sparse terabyte for the description",
            Box::new(|root| {
                let file = std::fs::File::create(root.join("s2sfs.toml")).unwrap();
                file.set_len(1 << 40).unwrap();
            }),
        ),
    ];
    let watchdog = Watchdog::new(HANGS);
    for (what, prank) in pranks {
        watchdog.turn();
        let dir = tempfile::tempdir().unwrap();
        copy_tree(sound.path(), dir.path());
        prank(dir.path());
        let storage = || Arc::new(RealStorage::new(dir.path()));
        let read = |store: Store| {
            let Ok(volume) = Volume::open(store, common::codecs(), volume_options()) else {
                return 0;
            };
            let mut good = 0;
            for (name, expected) in [("noise", &data[..]), ("staged", &data[..20_000])] {
                let Ok(stat) = volume.lookup(s2sfs::volume::ROOT, name.as_bytes()) else {
                    continue;
                };
                let size = stat.attr.size as usize;
                if let Ok(bytes) = volume.read(stat.ino, 0, size) {
                    assert!(bytes == expected, "{what}: wrong bytes in {name}");
                    good += 1;
                }
            }
            volume.shutdown().unwrap();
            good
        };
        let before = Store::open(
            storage(),
            &OpenOptions {
                read_only: true,
                create: false,
                ..options.clone()
            },
        )
        .map(read);
        let report = repair(storage(), &options, &common::codecs(), 1, &|_, _| {});
        let report = report.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(
            report.remaining.is_empty(),
            "{what}: {:?}",
            report.remaining
        );
        let store = Store::open(storage(), &options).unwrap_or_else(|e| panic!("{what}: {e}"));
        let after = read(store);
        assert!(after >= before.unwrap_or(0), "{what}");
        if !what.contains("blocks") && !what.contains("journal") {
            assert_eq!(after, 2, "{what}");
        }
        let again = repair(storage(), &options, &common::codecs(), 1, &|_, _| {}).unwrap();
        assert!(!again.changed, "{what}: {again:?}");
    }
}

/// Changes bytes in the body of a record, and makes all its checksums right again.
fn forge(image: &mut Image, path: &str, random: &mut Random) {
    let head = &image[path][..48];
    let (store, seq) = (head[12..28].to_vec(), head[28..36].to_vec());
    let found = records(&image[path]);
    let (at, _, len) = found[random.below(found.len())];
    let bytes = image.get_mut(path).unwrap();
    for _ in 0..1 + random.below(6) {
        let body = at + 32 + random.below(len - 32);
        if body < bytes.len() {
            bytes[body] = [0, 1, 0x7f, 0x80, 0xff, random.next() as u8][random.below(6)];
        }
    }
    if random.below(4) == 0 {
        // Fields of the header, but not its length.
        bytes[at + 2 + [0, 1, 6, 8, 13, 14, 20][random.below(7)]] = random.next() as u8;
        bytes[at + 4..at + 8].copy_from_slice(&((len - 32) as u32).to_le_bytes());
    }
    let place = [&store[..], &seq, &(at as u64).to_le_bytes()].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&place), &bytes[at..at + 24]);
    bytes[at + 24..at + 28].copy_from_slice(&crc.to_le_bytes());
    let whole = crc32c::crc32c_append(crc, &bytes[at + 32..at + len]);
    bytes[at + 28..at + 32].copy_from_slice(&whole.to_le_bytes());
}

#[test]
fn forged_records_with_right_checksums_never_panic_hang_or_take_much_memory() {
    let count = std::env::var("S2SFS_MUTATIONS").map_or(100, |n| n.parse::<u64>().unwrap() / 5);
    let panics = count_panics();
    bases();
    let watchdog = Watchdog::new(HANGS);
    for seed in 0..count {
        watchdog.turn();
        let mut random = Random::new(seed ^ 0xf0f0_f0f0);
        let base = &bases()[if random.below(12) == 0 {
            2 + random.below(2)
        } else {
            random.below(2)
        }];
        let mut image = base.image.clone();
        let paths: Vec<String> = image
            .keys()
            .filter(|path| path.starts_with("log/"))
            .cloned()
            .collect();
        for _ in 0..1 + random.below(3) {
            let path = paths[random.below(paths.len())].clone();
            forge(&mut image, &path, &mut random);
            if path.ends_with(".c") && random.below(2) == 0 {
                image.insert(path.replace(".c", ".d"), image[&path].clone());
            }
        }
        let disk = disk_of(&image);
        let visit = |volume: &Volume| {
            for (_, ino) in names_of_any(volume) {
                let size = volume
                    .getattr(ino)
                    .map_or(0, |stat| stat.attr.size.min(1 << 20));
                let _ = volume.read(ino, 0, size as usize);
                let _ = (
                    volume.readlink(ino),
                    volume.listxattr(ino),
                    volume.file_info(ino),
                );
            }
        };
        for writable in [false, true] {
            let how = OpenOptions {
                create: false,
                read_only: !writable,
                ..options()
            };
            let disk = disk_of(&image);
            if let Ok(store) = Store::open(Arc::new(disk), &how)
                && let Ok(volume) = Volume::open(store, base.codecs.clone(), volume_options())
            {
                visit(&volume);
                if writable {
                    let _ = volume.settle(&|_, _| {});
                }
                let _ = volume.shutdown();
            }
        }
        let _ = mend(base, &disk);
        disk.kill();
        if let Ok(store) = Store::open(Arc::new(disk), &options())
            && let Ok(volume) = Volume::open(store, base.codecs.clone(), volume_options())
        {
            visit(&volume);
            let _ = volume.shutdown();
        }
    }
    assert_eq!(panics.load(SeqCst), 0, "a thread has panicked");
    assert!(peak_memory() >> 20 < 2048, "{} MiB", peak_memory() >> 20);
}

/// Like [`names`], for volumes that may contain anything.
fn names_of_any(volume: &Volume) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut todo = vec![s2sfs::volume::ROOT];
    while let Some(dir) = todo.pop() {
        for entry in volume.list(dir).unwrap_or_default() {
            if entry.kind == s2sfs::volume::FileKind::Directory && found.len() < 1000 {
                todo.push(entry.ino);
            }
            found.push((String::from_utf8_lossy(&entry.name).into_owned(), entry.ino));
        }
    }
    found
}

/// Damages one file, or the set of files; says how.
fn mutate(image: &mut Image, random: &mut Random) -> String {
    let paths: Vec<String> = image
        .keys()
        .filter(|path| !path.starts_with("models/"))
        .cloned()
        .collect();
    let Some(path) = paths.get(random.below(paths.len())).cloned() else {
        return "nothing is left".into();
    };
    let other = paths[random.below(paths.len())].clone();
    let len = image[&path].len();
    let (at, to) = (random.below(len), random.below(len));
    let size = [1, 16, 512, 4096][random.below(4)];
    let bytes = image.get_mut(&path).expect("a file");
    let what = match random.below(14) {
        0..=3 => {
            let bit = random.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            format!("bit {bit} of {at} flipped")
        }
        4 | 5 => {
            bytes
                .iter_mut()
                .skip(at)
                .take(size)
                .for_each(|byte| *byte = 0);
            format!("{size} bytes at {at} zeroed")
        }
        6 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        7 => {
            for byte in bytes.iter_mut().skip(at).take(size) {
                *byte = random.next() as u8;
            }
            format!("{size} bytes at {at} random")
        }
        8 => {
            for offset in 0..size {
                if at + offset < len && to + offset < len {
                    bytes.swap(at + offset, to + offset);
                }
            }
            format!("{size} bytes at {at} and {to} swapped")
        }
        9 => {
            let copied: Vec<u8> = bytes.iter().skip(at).take(size).copied().collect();
            bytes.splice(to..to, copied);
            format!("{size} bytes of {at} inserted at {to}")
        }
        10 => {
            let end = (at + size).min(len);
            bytes.drain(at..end);
            format!("{size} bytes at {at} taken out")
        }
        11 => {
            image.remove(&path);
            "removed".into()
        }
        12 => {
            let (a, b) = (image[&path].clone(), image[&other].clone());
            image.insert(path.clone(), b);
            image.insert(other.clone(), a);
            format!("swapped with {other}")
        }
        _ => {
            let kind = ["j", "b", "c", "d"][random.below(4)];
            let double = format!("log/{:08x}.{kind}", random.below(40));
            image.insert(double.clone(), image[&path].clone());
            format!("copied to {double}")
        }
    };
    format!("{path}: {what}")
}

fn default_model() -> &'static [u8] {
    let name = Codecs::with_embedded("full").unwrap().encoding_model_name();
    Codecs::embedded_file(&name.unwrap()).unwrap()
}
