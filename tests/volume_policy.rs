//! Policies of directories and files: which one counts, and what it does to what is settled.

mod common;

use common::patient::wait_until;
use common::*;
use s2sfs::codec::{CodecId, Codecs, EncodeOptions, Policy, Verify};
use s2sfs::store::SimOp;
use s2sfs::volume::{POLICY, Place, ROOT, RenameMode, Volume, VolumeOptions};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const KIB: usize = 1 << 10;

fn mkdir(volume: &Volume, parent: u64, name: &str) -> u64 {
    volume
        .mkdir(parent, name.as_bytes(), 0o755, caller())
        .unwrap()
        .ino
}

fn effective(volume: &Volume, ino: u64) -> String {
    let shown = volume
        .getxattr(ino, b"user.s2sfs.effective_policy")
        .unwrap();
    let shown = String::from_utf8(shown).unwrap();
    assert_eq!(volume.effective_policy(ino).unwrap().name(), shown);
    shown
}

fn place(parent: u64, name: &str) -> Place<'_> {
    Place {
        parent,
        name: name.as_bytes(),
    }
}

fn blocks_of(volume: &Volume, ino: u64) -> BTreeSet<u64> {
    let info = volume.file_info(ino).unwrap();
    info.extents.iter().map(|extent| extent.block).collect()
}

#[test]
fn the_file_itself_decides_then_the_nearest_directory_then_the_mount() {
    let (storage, volume) = fresh();
    let outer = mkdir(&volume, ROOT, "outer");
    let inner = mkdir(&volume, outer, "inner");
    let file = put_in(&volume, inner, "f", b"x").ino;
    assert_eq!(effective(&volume, file), "balanced");
    set_policy(&volume, outer, "ratio");
    assert_eq!(effective(&volume, file), "ratio");
    assert_eq!(effective(&volume, inner), "ratio");
    set_policy(&volume, inner, "fast");
    assert_eq!(effective(&volume, file), "fast");
    assert_eq!(effective(&volume, outer), "ratio");
    set_policy(&volume, file, "off");
    assert_eq!(effective(&volume, file), "off");
    assert_eq!(volume.own_policy(file).unwrap(), Some(Policy::Off));
    volume.removexattr(file, POLICY).unwrap();
    volume.removexattr(inner, POLICY).unwrap();
    assert_eq!(effective(&volume, file), "ratio");
    assert_eq!(volume.own_policy(file).unwrap(), None);
    assert_eq!(effective(&volume, ROOT), "balanced");
    let volume = remount(&storage, volume);
    assert_eq!(effective(&volume, file), "ratio");
    set_policy(&volume, ROOT, "fast");
    volume.removexattr(outer, POLICY).unwrap();
    assert_eq!(effective(&volume, file), "fast");
}

#[test]
fn what_is_renamed_or_linked_elsewhere_has_the_policy_of_its_new_place() {
    let (_storage, volume) = fresh();
    let (off, fast) = (mkdir(&volume, ROOT, "off"), mkdir(&volume, ROOT, "fast"));
    set_policy(&volume, off, "off");
    set_policy(&volume, fast, "fast");
    let moved = mkdir(&volume, off, "moved");
    let file = put_in(&volume, moved, "f", b"x").ino;
    assert_eq!(effective(&volume, file), "off");
    volume
        .rename(
            place(off, "moved"),
            place(fast, "moved"),
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(effective(&volume, file), "fast");
    volume
        .rename(
            place(ROOT, "off"),
            place(ROOT, "fast"),
            RenameMode::Exchange,
        )
        .unwrap();
    assert_eq!(
        effective(&volume, file),
        "fast",
        "the names are exchanged, not the policies"
    );
    volume
        .rename(place(moved, "f"), place(off, "f"), RenameMode::Replace)
        .unwrap();
    assert_eq!(effective(&volume, file), "off");
    // Of several names the last one counts, also when the others and their directory are gone.
    volume.link(file, fast, "g".as_bytes()).unwrap();
    assert_eq!(effective(&volume, file), "fast");
    let gone = mkdir(&volume, ROOT, "gone");
    set_policy(&volume, gone, "ratio");
    volume.link(file, gone, b"h").unwrap();
    assert_eq!(effective(&volume, file), "ratio");
    volume.unlink(gone, b"h").unwrap();
    volume.rmdir(ROOT, b"gone").unwrap();
    assert_eq!(effective(&volume, file), "balanced", "the mount's");
}

#[test]
fn the_attribute_is_an_ordinary_one_but_for_its_value() {
    let (_storage, volume) = fresh();
    let file = put(&volume, "f", b"x").ino;
    let set = |value: &[u8], create, replace| volume.setxattr(file, POLICY, value, create, replace);
    for wrong in ["", "best", "Ratio", "off\n", "ratio "] {
        assert_eq!(
            errno(set(wrong.as_bytes(), false, false)),
            libc::EINVAL,
            "{wrong:?}"
        );
    }
    assert_eq!(errno(set(b"off", false, true)), libc::ENODATA);
    assert!(volume.listxattr(file).unwrap().is_empty());
    set(b"off", true, false).unwrap();
    assert_eq!(errno(set(b"fast", true, false)), libc::EEXIST);
    set(b"fast", false, true).unwrap();
    assert_eq!(volume.getxattr(file, POLICY).unwrap(), b"fast");
    assert_eq!(volume.listxattr(file).unwrap(), [POLICY.to_vec()]);
    volume.removexattr(file, POLICY).unwrap();
    assert_eq!(errno(volume.removexattr(file, POLICY)), libc::ENODATA);
    assert_eq!(errno(volume.getxattr(file, POLICY)), libc::ENODATA);
    let virtual_one = b"user.s2sfs.effective_policy";
    assert_eq!(
        errno(volume.setxattr(file, virtual_one, b"off", false, false)),
        libc::EPERM
    );
    let link = volume.symlink(ROOT, b"l", b"f", caller()).unwrap().ino;
    assert_eq!(
        errno(volume.setxattr(link, POLICY, b"off", false, false)),
        libc::EPERM
    );
}

#[test]
fn small_files_of_different_policies_never_share_a_block() {
    let (_storage, volume) = fresh();
    let dirs: Vec<u64> = ["off", "fast", "ratio"]
        .iter()
        .map(|policy| {
            let dir = mkdir(&volume, ROOT, policy);
            set_policy(&volume, dir, policy);
            dir
        })
        .collect();
    let mut files = vec![Vec::new(); dirs.len()];
    for i in 0..30u64 {
        for (dir, files) in dirs.iter().zip(&mut files) {
            files.push(put_in(&volume, *dir, &format!("{i}.txt"), &text(i, 700)).ino);
        }
    }
    // One file of its own mind among the others.
    let own = files[2].pop().unwrap();
    set_policy(&volume, own, "off");
    files[0].push(own);
    settle(&volume);
    let blocks: Vec<BTreeSet<u64>> = files
        .iter()
        .map(|files| {
            files
                .iter()
                .flat_map(|ino| blocks_of(&volume, *ino))
                .collect()
        })
        .collect();
    for (at, some) in blocks.iter().enumerate() {
        for other in &blocks[at + 1..] {
            assert!(some.is_disjoint(other));
        }
    }
    for ino in &files[0] {
        assert_eq!(codecs_of(&volume, *ino), ["lz4"]);
    }
    for ino in files[1].iter().chain(&files[2]) {
        assert_eq!(codecs_of(&volume, *ino), ["zstd"]);
    }
    assert!(
        blocks[0].len() < files[0].len(),
        "they share blocks among themselves"
    );
    for (seed, ino) in files[0][..29].iter().enumerate() {
        assert!(contents(&volume, *ino) == text(seed as u64, 700));
    }
}

#[test]
fn each_policy_codes_in_its_own_way() {
    let storage = s2sfs::store::SimStorage::new();
    let volume = Volume::open(open_store(&storage), model_codecs(), quiet_options()).unwrap();
    let data = include_bytes!("../docs/format.md")[..20 * KIB].to_vec();
    let files: Vec<u64> = Policy::ALL
        .iter()
        .map(|policy| {
            let ino = put(&volume, policy.name(), &data).ino;
            set_policy(&volume, ino, policy.name());
            ino
        })
        .collect();
    settle(&volume);
    let groups: Vec<u64> = files
        .iter()
        .map(|ino| volume.file_info(*ino).unwrap().extents[0].group_bytes)
        .collect();
    assert_eq!(codecs_of(&volume, files[0]), ["model"]);
    assert_eq!(codecs_of(&volume, files[1]), ["model"]);
    assert_eq!(codecs_of(&volume, files[2]), ["zstd"]);
    assert_eq!(codecs_of(&volume, files[3]), ["lz4"]);
    // One group has no length of its own.
    assert_eq!(groups[0], 0, "ratio codes the whole extent as one group");
    assert!(groups[1] > 0 && groups[1] <= 17 * KIB as u64, "{groups:?}");
    for ino in files {
        assert!(contents(&volume, ino) == data);
    }
}

#[test]
fn a_policy_that_is_set_while_a_block_is_being_settled_counts_for_it() {
    let (storage, volume) = fresh();
    let ino = put(&volume, "f.txt", &text(1, 100 * KIB)).ino;
    let (setter, once) = (Arc::downgrade(&volume), Arc::new(AtomicBool::new(false)));
    let done = once.clone();
    storage.set_hook(Some(Arc::new(move |op, path| {
        // The settled block is being appended; no extent shows it yet.
        if op == SimOp::Write && path.ends_with(".b") && !once.swap(true, SeqCst) {
            set_policy(&setter.upgrade().expect("the volume is open"), ino, "off");
        }
    })));
    settle(&volume);
    storage.set_hook(None);
    assert!(
        done.load(SeqCst),
        "no block was written: {:?}",
        storage.files()
    );
    assert_eq!(codecs_of(&volume, ino), ["lz4"]);
    assert!(contents(&volume, ino) == text(1, 100 * KIB));
}

#[test]
fn nothing_settles_while_files_are_read_if_settling_is_to_wait_for_that() {
    let storage = s2sfs::store::SimStorage::new();
    let idle = Duration::from_secs(2);
    let options = VolumeOptions {
        settle_after: Duration::ZERO,
        idle,
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    let begun = Instant::now();
    let ino = put(&volume, "f.txt", &text(1, 100 * KIB)).ino;
    let waits = || volume.status().unwrap().settle.queue_bytes > 0;
    let (mut last, mut pause) = (begun, Duration::ZERO);
    while begun.elapsed() < Duration::from_millis(3500) {
        let now = Instant::now();
        volume.read(ino, 0, 10).unwrap();
        let waits = waits();
        // On a busy machine nobody may have read for long enough.
        pause = pause.max(last.elapsed());
        assert!(waits || pause > idle / 2, "settled while it was read");
        last = now;
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_until("settling when nobody reads", || !waits());
    volume.shutdown().unwrap();
    drop(volume);
    // Who asks for it need not wait.
    let options = VolumeOptions {
        idle: Duration::from_secs(3600),
        ..quiet_options()
    };
    let volume = open_with(&storage, options);
    put(&volume, "g.txt", &text(2, 100 * KIB));
    settle(&volume);
}

#[test]
fn what_is_not_verified_is_coded_the_same() {
    for raw in [text(1, 50 * KIB), noise(1, 9 * KIB), vec![0; 5000]] {
        let encode = |codecs: &Codecs, policy, verify| {
            let options = EncodeOptions {
                policy,
                verify,
                ..EncodeOptions::default()
            };
            codecs.encode(&raw, &options, None).unwrap()
        };
        for policy in Policy::ALL {
            let full = encode(&codecs(), policy, Verify::Full);
            for verify in [Verify::Sample, Verify::Off] {
                assert!(encode(&codecs(), policy, verify).payload == full.payload);
            }
            let off = policy == Policy::Off;
            assert!(!off || matches!(full.codec, CodecId::Raw | CodecId::Lz4));
            assert!(codecs().decode_all(&full.payload, None).unwrap() == raw);
        }
    }
}
