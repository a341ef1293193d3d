//! Volumes whose data is settled by a model with a network, on its own and beside the default model.

mod common;

use common::*;
use s2sfs::codec::{Codecs, Device};
use s2sfs::store::SimStorage;
use s2sfs::volume::{Volume, VolumeOptions, WriteMode};
use std::sync::{Arc, OnceLock};

const KIB: usize = 1 << 10;

fn network_codecs() -> Arc<Codecs> {
    static CODECS: OnceLock<Arc<Codecs>> = OnceLock::new();
    let load = || {
        let codecs = Codecs::with_embedded("net-small").expect("the model loads");
        Arc::new(codecs.on(Device::Cpu, 2))
    };
    CODECS.get_or_init(load).clone()
}

fn open_as(storage: &SimStorage, codecs: Arc<Codecs>, cache_bytes: u64) -> Arc<Volume> {
    let options = VolumeOptions {
        cache_bytes,
        ..quiet_options()
    };
    Volume::open(open_store(storage), codecs, options).expect("the volume opens")
}

fn open_network(storage: &SimStorage) -> Arc<Volume> {
    open_as(storage, network_codecs(), 64 << 20)
}

fn close(volume: Arc<Volume>) {
    volume.shutdown().unwrap();
}

fn prose(len: usize) -> Vec<u8> {
    let sources = [
        include_str!("../docs/user-guide.md"),
        include_str!("../docs/durability.md"),
        include_str!("../docs/format.md"),
    ];
    let text = sources.concat().into_bytes();
    text.into_iter().cycle().take(len).collect()
}

/// The names of the models that the blocks of a file need.
fn models(volume: &Volume, ino: u64) -> Vec<String> {
    volume.file_info(ino).unwrap().models
}

fn network_name() -> String {
    network_codecs().encoding_model_name().unwrap()
}

#[test]
fn text_is_settled_with_the_network_and_read_back_cold_anywhere() {
    let storage = SimStorage::new();
    let volume = open_network(&storage);
    let data = prose(60 * KIB);
    let ino = put(&volume, "text.md", &data).ino;
    settle(&volume);
    assert_eq!(models(&volume, ino), [network_name()]);
    close(volume);
    let volume = open_network(&storage);
    std::thread::scope(|scope| {
        for reader in 0..6usize {
            let (volume, data) = (&volume, &data);
            scope.spawn(move || {
                for i in 0..4usize {
                    let offset = (reader * 17_389 + i * 9_973) % (56 * KIB);
                    let read = volume.read(ino, offset as u64, 4000).unwrap();
                    assert!(read == data[offset..offset + 4000], "at {offset}");
                }
            });
        }
    });
    assert!(contents(&volume, ino) == data);
    let decoded = volume.status().unwrap().io.decoded_bytes;
    assert!(decoded <= 60 << 10, "{decoded} bytes were decoded");
    close(volume);
}

#[test]
fn a_cache_too_small_for_anything_reads_right() {
    let storage = SimStorage::new();
    let volume = open_as(&storage, network_codecs(), 1 << 10);
    let data = prose(40 * KIB);
    let ino = put(&volume, "text.md", &data).ino;
    settle(&volume);
    assert!(contents(&volume, ino) == data);
    close(volume);
}

#[test]
fn blocks_of_two_models_share_a_store_and_an_anchor() {
    let storage = SimStorage::new();
    let first = prose(128 * KIB);
    let volume = open_network(&storage);
    let ino = put(&volume, "all.md", &first).ino;
    settle(&volume);
    close(volume);
    // the rest of the file is settled by the default model, from the anchor that begins the file
    let volume = open_as(&storage, model_codecs(), 64 << 20);
    let second = prose(140 * KIB)[12 * KIB..].to_vec();
    let end = first.len() as u64;
    let mode = WriteMode::default();
    volume.write(ino, end, &second, mode).unwrap();
    volume.flush(ino).unwrap();
    settle(&volume);
    close(volume);
    let volume = open_network(&storage);
    assert_eq!(models(&volume, ino).len(), 2, "{:?}", models(&volume, ino));
    let all = [first, second].concat();
    // by turns, so that the states after the anchor that both models need are made beside each other
    for i in 0..16usize {
        let offset = (i % 2) * 128 * KIB + i * 7 * KIB;
        let read = volume.read(ino, offset as u64, 3000).unwrap();
        assert!(read == all[offset..offset + 3000], "at {offset}");
    }
    assert!(contents(&volume, ino) == all);
    close(volume);
}

#[test]
fn what_the_network_does_not_make_smaller_is_left_to_the_default_model() {
    let storage = SimStorage::new();
    let volume = open_network(&storage);
    // a table of numbers without any language
    let mut random = random::Random::new(5);
    let rows = (0..4000u32).map(|row| format!("{row},{}\n", random.below(10_000)));
    let data: Vec<u8> = rows.collect::<String>().into_bytes();
    let ino = put(&volume, "numbers.csv", &data).ino;
    settle(&volume);
    assert!(!models(&volume, ino).contains(&network_name()));
    assert!(contents(&volume, ino) == data);
    close(volume);
}
