//! A short fsx: random operations on two files through the kernel, each compared with memory.

mod common;

use common::mounted::{Mapper, Mounted};
use common::random::Random;
use common::{noise, quiet_options};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use s2sfs::volume::VolumeOptions;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

const LONGEST: u64 = 400_000;
/// Operations for each seed, unless the environment says otherwise (`make posix` does).
const OPERATIONS: usize = 2500;
const SEEDS: &str = "1 2 3";

/// An offset and a length inside `LONGEST`; half of them at page boundaries.
fn range(random: &mut Random) -> (u64, u64) {
    let mut offset = random.below(LONGEST as usize - 70_000) as u64;
    let mut len = 1 + random.below(70_000) as u64;
    if random.below(2) == 0 {
        offset -= offset % 4096;
        len = (len / 4096 + 1) * 4096;
    }
    (offset, len.min(LONGEST - offset))
}

/// Files on the mount and what they must hold.
struct Pair {
    mounted: Mounted,
    mapper: Option<Mapper>,
    files: Vec<File>,
    memory: [Vec<u8>; 2],
    random: Random,
}

fn options() -> VolumeOptions {
    VolumeOptions {
        settle_after: Duration::from_millis(300),
        ..quiet_options()
    }
}

impl Pair {
    fn new(seed: u64) -> Option<Pair> {
        let mut pair = Pair {
            mounted: Mounted::with(options())?,
            mapper: Mapper::start(),
            files: Vec::new(),
            memory: [Vec::new(), Vec::new()],
            random: Random::new(seed),
        };
        pair.reopen();
        Some(pair)
    }

    fn reopen(&mut self) {
        self.files = ["a", "b"]
            .iter()
            .map(|name| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(self.mounted.file(name))
                    .unwrap()
            })
            .collect();
    }

    fn set(&mut self, which: usize, offset: u64, data: &[u8]) {
        let memory = &mut self.memory[which];
        let end = offset as usize + data.len();
        memory.resize(memory.len().max(end), 0);
        memory[offset as usize..end].copy_from_slice(data);
    }

    /// Does one operation on both sides, and says which.
    fn step(&mut self) -> String {
        let which = self.random.below(2);
        let (offset, len) = range(&mut self.random);
        let size = self.memory[which].len() as u64;
        let file = &self.files[which];
        match self.random.below(40) {
            0..=8 => {
                let data = noise(self.random.next(), len as usize);
                file.write_all_at(&data, offset).unwrap();
                self.set(which, offset, &data);
                format!("write {which} {offset} {len}")
            }
            9..=14 => {
                let mut data = vec![0; len as usize];
                let read = file.read_at(&mut data, offset).unwrap();
                let end = size.min(offset + len);
                let expected = &self.memory[which][offset.min(end) as usize..end as usize];
                assert!(&data[..read] == expected, "read {which} {offset} {len}");
                format!("read {which} {offset} {len}")
            }
            15..=17 => {
                let to = self.random.below(LONGEST as usize) as u64;
                file.set_len(to).unwrap();
                self.memory[which].resize(to as usize, 0);
                format!("truncate {which} {to}")
            }
            18..=20 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, offset, len).unwrap();
                let end = size.min(offset + len) as usize;
                self.memory[which][(offset as usize).min(end)..end].fill(0);
                format!("punch {which} {offset} {len}")
            }
            21..=23 => {
                let keep = self.random.below(2) == 0;
                let mut flags = FallocateFlags::ZERO_RANGE;
                flags.set(FallocateFlags::KEEP_SIZE, keep);
                fallocate(file, flags, offset, len).unwrap();
                let end = if keep {
                    size.min(offset + len)
                } else {
                    offset + len
                };
                let start = offset.min(end);
                self.set(which, start, &vec![0; (end - start) as usize]);
                format!("zero {which} {offset} {len} keep {keep}")
            }
            24 => {
                fallocate(file, FallocateFlags::empty(), offset, len).unwrap();
                let longer = size.max(offset + len) as usize;
                self.memory[which].resize(longer, 0);
                format!("allocate {which} {offset} {len}")
            }
            25..=28 => self.copy(which, offset, len),
            29 => {
                file.sync_all().unwrap();
                format!("fsync {which}")
            }
            30..=35 => self.map(which, offset, len),
            36 => {
                self.mounted.volume().settle(&|_, _| {}).unwrap();
                "settle".into()
            }
            37 => {
                self.reopen();
                "reopen".into()
            }
            _ if self.random.below(15) == 0 => {
                self.files.clear();
                self.mounted.remount_with(options());
                self.reopen();
                "remount".into()
            }
            _ => {
                assert_eq!(file.metadata().unwrap().size(), size, "size of {which}");
                format!("stat {which}")
            }
        }
    }

    /// Copies from the other file, or inside the same where that does not overlap.
    fn copy(&mut self, which: usize, offset: u64, len: u64) -> String {
        let source = self.random.below(2);
        let from = range(&mut self.random).0;
        let len = len.min((self.memory[source].len() as u64).saturating_sub(from));
        if len == 0 || source == which && from.abs_diff(offset) < len {
            return "no copy".into();
        }
        let (mut at, mut to, mut left) = (from, offset, len as usize);
        while left > 0 {
            let (input, output) = (&self.files[source], &self.files[which]);
            let copied =
                copy_file_range(input, Some(&mut at), output, Some(&mut to), left).unwrap();
            assert!(
                copied > 0,
                "copy {source} {from} -> {which} {offset} {len}: nothing copied"
            );
            left -= copied;
        }
        let data = self.memory[source][from as usize..(from + len) as usize].to_vec();
        self.set(which, offset, &data);
        format!("copy {source} {from} -> {which} {offset} {len}")
    }

    /// Reads and writes through a shared mapping.
    fn map(&mut self, which: usize, offset: u64, len: u64) -> String {
        let size = self.memory[which].len() as u64;
        let len = len.min(size.saturating_sub(offset));
        let path = self.mounted.file(["a", "b"][which]);
        let Some(mapper) = self.mapper.as_mut().filter(|_| len > 0) else {
            return "no mapping".into();
        };
        let range = offset as usize..(offset + len) as usize;
        if self.random.below(2) == 0 {
            let data = mapper.read(&path, offset, len);
            assert!(
                data == self.memory[which][range],
                "map {which} {offset} {len}"
            );
            return format!("mapread {which} {offset} {len}");
        }
        let data = noise(self.random.next(), len as usize);
        mapper.write(&path, offset, &data, self.random.below(2) == 0);
        self.memory[which][range].copy_from_slice(&data);
        format!("mapwrite {which} {offset} {len}")
    }

    fn check(&self) {
        for (file, memory) in self.files.iter().zip(&self.memory) {
            let mut data = vec![0; memory.len() + 10];
            let mut at = 0;
            loop {
                match file.read_at(&mut data[at..], at as u64).unwrap() {
                    0 => break,
                    read => at += read,
                }
            }
            assert!(data[..at] == memory[..], "the whole file");
        }
    }
}

fn run(seed: u64, operations: usize) {
    let Some(mut pair) = Pair::new(seed) else {
        return;
    };
    let mut log = Vec::new();
    for step in 0..operations {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let what = pair.step();
            if step % 50 == 0 {
                pair.check();
            }
            what
        }));
        match result {
            Ok(what) => log.push(what),
            Err(panic) => {
                let last = &log[log.len().saturating_sub(30)..];
                eprintln!("seed {seed}, step {step}, after:\n{}", last.join("\n"));
                std::panic::resume_unwind(panic);
            }
        }
    }
    pair.check();
    pair.files.clear();
    pair.mounted.remount_with(options());
    pair.reopen();
    pair.check();
    pair.files.clear();
    pair.mounted.check();
}

#[test]
fn random_operations_through_the_kernel_agree_with_memory() {
    let operations = std::env::var("RANDOM_OPS").map_or(OPERATIONS, |n| n.parse().unwrap());
    let seeds = std::env::var("RANDOM_SEEDS").unwrap_or(SEEDS.into());
    for seed in seeds.split_whitespace() {
        run(seed.parse::<u64>().unwrap() << 32 | 0x5eed, operations);
    }
}
