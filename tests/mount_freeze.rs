//! A frozen mount: what waits takes nothing from those who read.

mod common;
#[path = "common/in_time.rs"]
mod in_time;

use common::mounted::Mounted;
use common::noise;
use in_time::{SOON, soon};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const MIB: usize = 1 << 20;
const WRITERS: u64 = 80;

#[test]
fn whatever_waits_for_the_thaw_readers_are_answered_and_no_write_is_lost() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let path = |i| mounted.file(&format!("{i}"));
    let files: Vec<File> = (0..WRITERS)
        .map(|i| File::create(path(i)).unwrap())
        .collect();
    std::fs::write(mounted.file("read"), noise(0, 300_000)).unwrap();
    // Should readers wait, it thaws by itself, and the test ends.
    mounted.volume().freeze(2 * SOON).unwrap();
    let writers: Vec<_> = files
        .into_iter()
        .zip(1..)
        .map(|(file, seed)| {
            std::thread::spawn(move || file.write_all_at(&noise(seed, MIB), 0).unwrap())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(1000));
    let read = mounted.file("read");
    soon(move || {
        for _ in 0..20 {
            // Never answered from what the kernel remembers.
            let mut value = [0; 64];
            rustix::fs::getxattr(&read, "user.s2sfs.codec", &mut value[..]).unwrap();
            let file = File::open(&read).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let mut found = vec![0; 300_000];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == noise(0, 300_000));
            file.sync_all().unwrap();
        }
    });
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    mounted.volume().thaw(None).unwrap();
    for writer in writers {
        writer.join().unwrap();
    }
    for i in 0..WRITERS {
        assert!(std::fs::read(path(i)).unwrap() == noise(i + 1, MIB), "{i}");
    }
}
