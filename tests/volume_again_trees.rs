//! Coding again trees that lie in each other, or in themselves, on full disks, and below damage.

mod common;
#[path = "common/in_time.rs"]
mod in_time;

use common::*;
use in_time::soon;
use s2sfs::store::{Op, OpenOptions, SimStorage, Storage, Store, Transaction};
use s2sfs::volume::{POLICY, ROOT, Recoded, Volume, VolumeOptions};
use std::sync::Arc;

const KIB: usize = 1 << 10;

fn set(volume: &Volume, ino: u64, policy: &str) {
    let value = policy.as_bytes();
    volume.setxattr(ino, POLICY, value, false, false).unwrap();
}

fn mkdir(volume: &Volume, parent: u64, name: &str) -> u64 {
    let made = volume.mkdir(parent, name.as_bytes(), 0o755, caller());
    made.unwrap().ino
}

fn again(volume: &Arc<Volume>, inos: &[u64]) -> Recoded {
    let (volume, inos) = (volume.clone(), inos.to_vec());
    let recoded = soon(move || volume.settle_again(&inos, Some(&|_, _| {}))).unwrap();
    assert_eq!(recoded.first_failure, None);
    assert_eq!(recoded.passed, recoded.total);
    recoded
}

fn codecs_of(volume: &Volume, ino: u64) -> Vec<String> {
    let info = volume.file_info(ino).unwrap();
    info.codecs.keys().cloned().collect()
}

/// Changes one key of a volume that is not open.
fn patch(storage: &SimStorage, key: Vec<u8>, value: impl FnOnce(&Store) -> Vec<u8>) {
    let store = open_store(storage);
    let value = value(&store);
    let ops = vec![Op::Put { key, value }];
    store.commit(Transaction { ops }).unwrap();
    store.close().unwrap();
}

fn key(tag: u8, ino: u64, rest: &[u8]) -> Vec<u8> {
    [&[tag][..], &ino.to_be_bytes(), rest].concat()
}

#[test]
fn trees_and_files_that_are_named_twice_are_coded_once() {
    let (_storage, volume) = fresh();
    let sub = mkdir(&volume, ROOT, "sub");
    let inner = put_in(&volume, sub, "inner.txt", &text(1, 50 * KIB)).ino;
    let outer = put(&volume, "outer.txt", &text(2, 40 * KIB)).ino;
    settle(&volume);
    set(&volume, ROOT, "off");
    let recoded = again(&volume, &[outer, ROOT, sub, inner, sub, ROOT]);
    assert_eq!(recoded.total, 90 * KIB as u64);
    assert_eq!((recoded.coded, recoded.kept), (90 * KIB as u64, 0));
    volume.shutdown().unwrap();
}

#[test]
fn a_directory_that_lies_in_itself_comes_to_an_end() {
    let (storage, volume) = fresh();
    let a = mkdir(&volume, ROOT, "a");
    let b = mkdir(&volume, a, "b");
    let file = put_in(&volume, b, "f.txt", &text(1, 50 * KIB)).ino;
    settle(&volume);
    set(&volume, ROOT, "off");
    volume.shutdown().unwrap();
    drop(volume);
    patch(&storage, key(b'D', b, b"up"), |store| {
        store.get(&key(b'D', ROOT, b"a")).unwrap().unwrap()
    });
    let volume = open(&storage);
    assert_eq!(volume.lookup(b, b"up").unwrap().ino, a);
    let recoded = again(&volume, &[ROOT]);
    assert_eq!(recoded.coded, 50 * KIB as u64);
    assert!(contents(&volume, file) == text(1, 50 * KIB));
    volume.shutdown().unwrap();
}

#[test]
fn files_below_a_damaged_directory_keep_neither_themselves_nor_others_from_being_settled() {
    let (storage, volume) = fresh();
    let bad = mkdir(&volume, ROOT, "bad");
    let sub = mkdir(&volume, bad, "sub");
    let below = put_in(&volume, sub, "below.txt", &text(1, 50 * KIB)).ino;
    let beside = put(&volume, "beside.txt", &text(2, 50 * KIB)).ino;
    volume.shutdown().unwrap();
    drop(volume);
    patch(&storage, key(b'I', bad, b""), |_| vec![0xff; 3]);
    let volume = open(&storage);
    assert!(volume.getattr(bad).is_err());
    settle(&volume);
    for (ino, seed) in [(below, 1), (beside, 2)] {
        assert_eq!(codecs_of(&volume, ino), ["zstd"]);
        assert!(contents(&volume, ino) == text(seed, 50 * KIB));
    }
    volume.shutdown().unwrap();
}

#[test]
fn space_that_coding_again_leaves_behind_is_used_before_the_disk_counts_as_full() {
    let storage = SimStorage::new();
    let options = OpenOptions {
        create: true,
        memory_index: true,
        segment_bytes: 1 << 20,
        ..OpenOptions::default()
    };
    let store = Store::open(Arc::new(storage.clone()), &options).unwrap();
    // Small blocks, of which many fit into what settling leaves free of a disk of a few megabytes.
    let options = VolumeOptions {
        extent: 16 << 10,
        ..quiet_options()
    };
    let volume = Volume::open(store, codecs(), options).unwrap();
    set(&volume, ROOT, "off");
    // Half of every byte can be saved, but not by LZ4.
    let data = |i| -> Vec<u8> { noise(i, 1 << 20).iter().map(|byte| byte & 15).collect() };
    let files: Vec<u64> = (0..4)
        .map(|i| put(&volume, &format!("{i}"), &data(i)).ino)
        .collect();
    settle(&volume);
    volume.removexattr(ROOT, POLICY).unwrap();
    let space = storage.free_space().unwrap();
    // Less than one batch needs beside the blocks that it replaces.
    storage.set_capacity(space.total - space.available + (1 << 20));
    let recoded = again(&volume, &[ROOT]);
    assert_eq!((recoded.coded, recoded.kept), (4 << 20, 0));
    for (i, ino) in files.iter().enumerate() {
        assert!(contents(&volume, *ino) == data(i as u64));
    }
    volume.shutdown().unwrap();
}
