//! A short run of every fuzz target, over its seeds, mutations of them and random bytes. `make fuzz` runs
//! the same targets for longer, guided by coverage.

#[path = "common/random.rs"]
mod random;

use random::Random;
use std::time::{Duration, Instant};

use s2sfs::fuzzing::{TARGETS, seeds};

/// For each target.
const TIME: Duration = Duration::from_millis(400);

fn some_bytes(random: &mut Random, most: usize) -> Vec<u8> {
    let len = random.below(most);
    random.bytes(len)
}

/// A few bytes changed, cut out, doubled or put in.
fn mutated(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut data = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let (at, other) = (random.below(data.len()), random.below(data.len() + 1));
        match random.below(6) {
            0 => data.truncate(other),
            1 => {
                let piece = data[at.min(other)..at.max(other)].to_vec();
                data.splice(at..at, piece);
            }
            2 => {
                let piece = some_bytes(random, 20);
                data.splice(at..at, piece);
            }
            3 if !data.is_empty() => data[at] = random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            _ if !data.is_empty() => data[at] ^= 1 << random.below(8),
            _ => {}
        }
    }
    data
}

#[test]
fn no_decoder_panics_or_accepts_what_it_would_not_write() {
    let mut random = Random::new(0);
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has nothing to start from");
        let begun = Instant::now();
        let mut runs = 0u64;
        for seed in &seeds {
            target(seed);
            for len in 0..seed.len().min(64) {
                target(&seed[..len]);
            }
        }
        while runs < 20 || begun.elapsed() < TIME {
            let input = match random.below(4) {
                0 => some_bytes(&mut random, 300),
                _ => {
                    let seed = &seeds[random.below(seeds.len())];
                    mutated(&mut random, seed)
                }
            };
            target(&input);
            runs += 1;
        }
    }
}

/// Writes the seeds of every target below the directory that S2SFS_FUZZ_SEEDS names, for `make fuzz`.
#[test]
fn seeds_are_written_where_asked() {
    let dir = tempfile::tempdir().unwrap();
    let asked = std::env::var_os("S2SFS_FUZZ_SEEDS");
    let root = asked.map_or(dir.path().to_owned(), std::path::PathBuf::from);
    for (name, _) in TARGETS {
        std::fs::create_dir_all(root.join(name)).unwrap();
        for (number, seed) in seeds(name).iter().enumerate() {
            std::fs::write(root.join(name).join(format!("seed-{number}")), seed).unwrap();
        }
    }
    assert!(root.join("record/seed-0").exists());
}

#[test]
fn every_target_has_its_file_for_the_fuzzer() {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let file = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(file.contains(&format!("fuzzing::{name}(data)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
