//! What the volume's tests share: volumes on simulated storage.
#![allow(dead_code)]

pub mod disk;
pub mod gate;
pub mod ledger;
pub mod mounted;
pub mod oracle;
pub mod patient;
pub mod random;
pub mod stop;

pub use random::noise;
use s2sfs::codec::Codecs;
use s2sfs::store::{OpenOptions, SimStorage, Store};
use s2sfs::volume::{Caller, POLICY, ROOT, Stat, Volume, VolumeOptions, WriteMode};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Codecs without a model, which is what most tests want: they settle in no time.
pub fn codecs() -> Arc<Codecs> {
    static CODECS: OnceLock<Arc<Codecs>> = OnceLock::new();
    CODECS
        .get_or_init(|| Arc::new(Codecs::without_model()))
        .clone()
}

/// The codecs of the program.
pub fn model_codecs() -> Arc<Codecs> {
    static CODECS: OnceLock<Arc<Codecs>> = OnceLock::new();
    let load = || Arc::new(Codecs::with_default_model().expect("the default model loads"));
    CODECS.get_or_init(load).clone()
}

/// Options under which nothing settles by itself.
pub fn quiet_options() -> VolumeOptions {
    VolumeOptions {
        settle_after: Duration::from_secs(3600),
        cache_bytes: 16 << 20,
        threads: 2,
        ..VolumeOptions::default()
    }
}

pub fn open_store(storage: &SimStorage) -> Store {
    let options = OpenOptions {
        create: true,
        memory_index: true,
        ..OpenOptions::default()
    };
    Store::open(Arc::new(storage.clone()), &options).expect("the store opens")
}

pub fn open_with(storage: &SimStorage, options: VolumeOptions) -> Arc<Volume> {
    Volume::open(open_store(storage), codecs(), options).expect("the volume opens")
}

pub fn open(storage: &SimStorage) -> Arc<Volume> {
    open_with(storage, quiet_options())
}

/// A fresh volume.
pub fn fresh() -> (SimStorage, Arc<Volume>) {
    let storage = SimStorage::new();
    let volume = open(&storage);
    (storage, volume)
}

/// Closes the volume and opens it again.
pub fn remount(storage: &SimStorage, volume: Arc<Volume>) -> Arc<Volume> {
    volume.shutdown().expect("the volume shuts down");
    drop(volume);
    open(storage)
}

pub fn caller() -> Caller {
    Caller {
        uid: 1000,
        gid: 1000,
        umask: 0,
    }
}

/// Makes a closed file in the root directory.
pub fn put(volume: &Volume, name: &str, data: &[u8]) -> Stat {
    put_in(volume, ROOT, name, data)
}

pub fn put_in(volume: &Volume, parent: u64, name: &str, data: &[u8]) -> Stat {
    let stat = volume
        .create(parent, name.as_bytes(), 0o644, caller())
        .expect("create");
    if !data.is_empty() {
        volume
            .write(stat.ino, 0, data, WriteMode::default())
            .expect("write");
    }
    volume.flush(stat.ino).expect("flush");
    volume.release(stat.ino);
    volume.getattr(stat.ino).expect("getattr")
}

/// The whole contents of a file.
pub fn contents(volume: &Volume, ino: u64) -> Vec<u8> {
    let size = volume.getattr(ino).expect("getattr").attr.size as usize;
    volume.read(ino, 0, size).expect("read")
}

pub fn settle(volume: &Volume) {
    volume.settle(&|_, _| {}).expect("settling works");
    let status = volume.status().expect("status");
    assert_eq!(status.settle.queue_bytes, 0, "something is still staged");
}

pub fn set_policy(volume: &Volume, ino: u64, policy: &str) {
    volume
        .setxattr(ino, POLICY, policy.as_bytes(), false, false)
        .expect("setting a policy");
}

/// The codecs of a file that is settled.
pub fn codecs_of(volume: &Volume, ino: u64) -> Vec<String> {
    let info = volume.file_info(ino).expect("info");
    assert_eq!(info.staged_bytes, 0, "it is settled");
    info.codecs.keys().cloned().collect()
}

/// What a failure is for the kernel.
pub fn errno<T: std::fmt::Debug>(result: s2sfs::volume::Result<T>) -> i32 {
    result.expect_err("it did not fail").errno()
}

/// Checks a whole store that is closed.
pub fn assert_sound(storage: &SimStorage) {
    let options = OpenOptions {
        read_only: true,
        memory_index: true,
        ..OpenOptions::default()
    };
    let store =
        Arc::new(Store::open(Arc::new(storage.clone()), &options).expect("the store opens"));
    let report = s2sfs::volume::check(&store, &codecs(), 1, &|_, _| {}).expect("checking");
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

/// Text that compresses, different for every seed.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let words = [
        "the ", "file ", "system ", "keeps ", "what ", "it ", "was ", "given ", "and ", "more\n",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        out.extend_from_slice(words[(state >> 33) as usize % words.len()].as_bytes());
    }
    out.truncate(len);
    out
}
