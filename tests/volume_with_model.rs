//! Volumes whose data is settled by the model: groups, anchors, partial and sequential reads.

mod common;

use common::*;
use s2sfs::store::SimStorage;
use s2sfs::volume::{Volume, VolumeOptions, WriteMode};
use std::sync::Arc;
use std::time::Instant;

const KIB: usize = 1 << 10;

fn open_model(storage: &SimStorage, cache_bytes: u64) -> Arc<Volume> {
    let options = VolumeOptions {
        cache_bytes,
        ..quiet_options()
    };
    Volume::open(open_store(storage), model_codecs(), options).expect("the volume opens")
}

/// English and a log, so that the model has something to do.
fn sample(len: usize) -> Vec<u8> {
    let sources = [
        include_str!("../src/volume/mod.rs"),
        include_str!("../src/cache/mod.rs"),
        include_str!("../src/settle/pipeline.rs"),
        include_str!("../src/volume/stage.rs"),
    ];
    sources
        .concat()
        .into_bytes()
        .into_iter()
        .cycle()
        .take(len)
        .collect()
}

#[test]
fn random_reads_of_model_coded_data_are_right_cold_and_warm() {
    let storage = SimStorage::new();
    let volume = open_model(&storage, 64 << 20);
    let data = sample(320 * KIB);
    let ino = put(&volume, "text.rs", &data).ino;
    settle(&volume);
    let info = volume.file_info(ino).unwrap();
    assert!(info.codecs.contains_key("model"), "{:?}", info.codecs);
    // the default model or its base, extent by extent
    assert!((1..=2).contains(&info.models.len()), "{:?}", info.models);
    volume.shutdown().unwrap();
    drop(volume);
    let volume = open_model(&storage, 64 << 20);
    let mut times = Vec::new();
    for i in 0..40usize {
        let offset = i * 104_729 % (316 * KIB);
        let begun = Instant::now();
        let read = volume.read(ino, offset as u64, 4096).unwrap();
        times.push(begun.elapsed());
        assert!(read == data[offset..offset + 4096], "at {offset}");
    }
    times.sort();
    eprintln!(
        "median of random reads: {:?}, longest {:?}",
        times[20], times[39]
    );
    assert!(contents(&volume, ino) == data);
}

#[test]
fn readers_of_one_group_share_its_decoding() {
    let storage = SimStorage::new();
    let volume = open_model(&storage, 64 << 20);
    let data = sample(100 * KIB);
    let ino = put(&volume, "text.rs", &data).ino;
    settle(&volume);
    volume.shutdown().unwrap();
    drop(volume);
    let volume = open_model(&storage, 64 << 20);
    std::thread::scope(|scope| {
        for start in 0..8usize {
            let (volume, data) = (&volume, &data);
            scope.spawn(move || {
                let offset = start * 700;
                let read = volume.read(ino, offset as u64, 3000).unwrap();
                assert!(read == data[offset..offset + 3000]);
            });
        }
    });
    assert!(contents(&volume, ino) == data);
    let decoded = volume.status().unwrap().io.decoded_bytes;
    assert!(decoded <= 100 << 10, "{decoded} bytes were decoded");
}

#[test]
fn a_tiny_cache_reads_anchored_data_right() {
    let storage = SimStorage::new();
    let volume = open_model(&storage, 1 << 10);
    let mut data = sample(300 * KIB);
    let ino = put(&volume, "all.log", &data).ino;
    settle(&volume);
    assert!(contents(&volume, ino) == data);
    volume
        .write(ino, 0, &noise(1, 130 * KIB), WriteMode::default())
        .unwrap();
    data[..130 * KIB].copy_from_slice(&noise(1, 130 * KIB));
    volume.flush(ino).unwrap();
    settle(&volume);
    assert!(
        contents(&volume, ino) == data,
        "an anchor outlives its file's first window"
    );
}

#[test]
fn many_small_files_are_packed_and_read_back() {
    let storage = SimStorage::new();
    let volume = open_model(&storage, 64 << 20);
    let all = sample(120 * KIB);
    let files: Vec<(u64, &[u8])> = all
        .chunks(600)
        .enumerate()
        .map(|(i, data)| (put(&volume, &format!("{i}.rs"), data).ino, data))
        .collect();
    settle(&volume);
    let volume = {
        volume.shutdown().unwrap();
        drop(volume);
        open_model(&storage, 64 << 20)
    };
    for (ino, data) in files.iter().rev() {
        assert!(contents(&volume, *ino) == *data);
    }
    let status = volume.status().unwrap();
    eprintln!("{} bytes in {}", status.logical_bytes, status.stored_bytes);
    assert!(
        status.stored_bytes < status.logical_bytes,
        "with everything counted"
    );
}
