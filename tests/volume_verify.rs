//! `verify=sample`: the first blocks of a mount are verified, then one of sixteen, and all once one was wrong.

mod common;

use common::*;
use s2sfs::codec::{Codecs, EncodeOptions, Encoded, Policy, SAMPLED, Verify};
use s2sfs::model::ModelError;
use s2sfs::model::network::simd::Simd;
use s2sfs::model::network::{Batch, Engine, Memory, Sequence};
use s2sfs::store::SimStorage;
use s2sfs::volume::{Volume, VolumeOptions};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

/// Prose that never changes, which the network makes smaller than anything else does.
const PROSE: &[u8] = include_bytes!("../LICENSE-APACHE");
/// Contents that are tried, and bytes of each.
const BLOCKS: usize = 112;
const LEN: usize = 300;
/// As documented: so many blocks of a mount are verified in any case.
const FIRST: usize = 16;

/// The processor in the role of a device that computes a little wrong while it is told to: what it helps to
/// encode does not decode.
struct Faulty {
    engine: Simd,
    wrong: Arc<AtomicBool>,
}

impl Engine for Faulty {
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>, ModelError> {
        self.engine.encode(latents)
    }

    fn hidden(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>, ModelError> {
        let mut rows = self.engine.hidden(sequences)?;
        if self.wrong.load(SeqCst) {
            for value in rows.iter_mut().flatten() {
                *value -= value.signum();
            }
        }
        Ok(rows)
    }

    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>, ModelError> {
        self.engine.batch(slots)
    }

    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>, ModelError> {
        self.engine.class_logits(rows)
    }

    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>, ModelError> {
        self.engine.token_logits(rows, class)
    }
}

/// Codecs that trust everything so far, and what makes their network wrong.
fn faulty(wrong: bool) -> (Arc<Codecs>, Arc<AtomicBool>) {
    let codecs = Codecs::with_embedded("net-small").unwrap();
    let wrong = Arc::new(AtomicBool::new(wrong));
    let model = codecs.encoding_model().unwrap();
    let network = model.network().unwrap().network.clone();
    let engine = Faulty {
        engine: Simd::new(network, 1),
        wrong: wrong.clone(),
    };
    codecs.set_engine("faulty", Arc::new(engine));
    (Arc::new(codecs), wrong)
}

fn content(number: usize) -> Vec<u8> {
    let at = number * (PROSE.len() - LEN) / BLOCKS;
    PROSE[at..at + LEN].to_vec()
}

fn encode(codecs: &Codecs, raw: &[u8], verify: Verify) -> Encoded {
    let options = EncodeOptions {
        policy: Policy::Ratio,
        verify,
        ..EncodeOptions::default()
    };
    codecs.encode(raw, &options, None).unwrap()
}

fn is_right(codecs: &Codecs, encoded: &Encoded, raw: &[u8]) -> bool {
    codecs
        .decode_all(&encoded.payload, None)
        .is_ok_and(|found| found == raw)
}

type Contents = Vec<Vec<u8>>;

/// Contents that are verified when one of sixteen is, and others.
fn contents_by_fate() -> &'static (Contents, Contents) {
    static FATES: OnceLock<(Contents, Contents)> = OnceLock::new();
    FATES.get_or_init(|| {
        let (mut verified, mut others) = (Vec::new(), Vec::new());
        let (mut codecs, _) = faulty(true);
        for raw in (0..BLOCKS).map(content) {
            let encoded = encode(&codecs, &raw, Verify::Sample);
            match is_right(&codecs, &encoded, &raw) {
                false => others.push(raw),
                true => {
                    verified.push(raw);
                    // These trust nothing any more.
                    codecs = faulty(true).0;
                }
            }
        }
        (verified, others)
    })
}

#[test]
fn every_block_is_verified_or_none_or_one_of_sixteen() {
    let (codecs, _) = faulty(true);
    for raw in (0..8).map(content) {
        let careless = encode(&codecs, &raw, Verify::Off);
        assert!(
            !is_right(&codecs, &careless, &raw),
            "it is not wrong at all"
        );
    }
    for raw in (0..8).map(content) {
        let careful = encode(&codecs, &raw, Verify::Full);
        assert!(is_right(&codecs, &careful, &raw));
    }
    let (verified, others) = contents_by_fate();
    let expected = BLOCKS / SAMPLED as usize;
    assert_eq!(SAMPLED, 16);
    assert!(
        (expected / 2..=expected * 2).contains(&verified.len()),
        "{} of {BLOCKS} were verified",
        verified.len()
    );
    // Those codecs have found one wrong.
    for raw in &others[..4] {
        let sampled = encode(&codecs, raw, Verify::Sample);
        assert!(is_right(&codecs, &sampled, raw), "nothing is trusted now");
    }
}

fn open_sampling(storage: &SimStorage, codecs: Arc<Codecs>) -> Arc<Volume> {
    let options = VolumeOptions {
        policy: Policy::Ratio,
        verify: Verify::Sample,
        ..quiet_options()
    };
    Volume::open(open_store(storage), codecs, options).unwrap()
}

/// Whether a file was settled with the network, which it is not if that was found wrong.
fn settles_by_model(volume: &Volume, name: &str, raw: &[u8]) -> bool {
    let ino = put(volume, name, raw).ino;
    settle(volume);
    codecs_of(volume, ino) == ["model"]
}

#[test]
fn the_first_blocks_of_a_mount_are_verified_and_later_ones_are_sampled() {
    let (verified, others) = contents_by_fate();
    for before in [FIRST - 1, FIRST] {
        let storage = SimStorage::new();
        let (codecs, wrong) = faulty(false);
        let volume = open_sampling(&storage, codecs);
        for number in 0..before {
            let name = format!("right {number}");
            assert!(settles_by_model(&volume, &name, &content(number)));
        }
        wrong.store(true, SeqCst);
        let trusted = settles_by_model(&volume, "next", &others[0]);
        assert_eq!(trusted, before == FIRST, "block {}", before + 1);
        assert!(!settles_by_model(&volume, "sampled", &verified[0]));
        assert!(
            !settles_by_model(&volume, "last", &others[1]),
            "nothing is trusted now"
        );
        volume.shutdown().unwrap();
        drop(volume);

        // The one that nobody has verified is an error, and never other bytes.
        let volume = open_sampling(&storage, faulty(false).0);
        let read = |name: &str| {
            let ino = volume
                .lookup(s2sfs::volume::ROOT, name.as_bytes())
                .unwrap()
                .ino;
            volume.read(ino, 0, LEN)
        };
        match trusted {
            true => assert_eq!(errno(read("next")), libc::EIO),
            false => assert!(read("next").unwrap() == others[0]),
        }
        assert!(read("sampled").unwrap() == verified[0]);
        assert!(read("last").unwrap() == others[1]);
    }
}
