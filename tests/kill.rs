//! The daemon is killed while it writes, settles, reclaims and checkpoints. What was acknowledged is
//! there afterwards, bit for bit, and a check finds nothing.
//!
//! `S2SFS_KILL_ROUNDS` is the number of kills (default 10), `S2SFS_KILL_SEED` chooses other ones.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
mod common;

use cli::{Bed, can_mount, exit, kill, program, text};
use common::ledger::{Clock, Crash, Durability, Files, Writer, files_below};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const WRITERS: u64 = 3;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Small files of the log, so that a short round begins, ends and reclaims many of them.
fn options(round: u64) -> &'static str {
    match round % 5 {
        0 => "segment=128K,policy=fast,settle_after=20ms",
        1 => "segment=256K,policy=fast,settle_after=200ms,dirty=1M",
        2 => "segment=1M,policy=balanced,settle_after=100ms",
        3 => "segment=128K,policy=fast,settle_after=never,extent=16K",
        _ => "policy=fast,settle_after=50ms",
    }
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 31)
}

/// Asks for settling, reclaiming and a checkpoint, which will be interrupted.
fn settle_in_background(mnt: &Path) -> Child {
    program()
        .arg("settle")
        .arg(mnt)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// One round: writers at work, perhaps settling, and a kill.
fn round(bed: &Bed, writers: &mut [Writer], chance: u64) {
    let pid = bed.pid();
    let settle = chance
        .is_multiple_of(2)
        .then(|| settle_in_background(&bed.mnt));
    std::thread::scope(|scope| {
        for writer in writers.iter_mut() {
            scope.spawn(move || {
                // Ends with an error when the daemon is gone, which is what everybody waits for.
                let _ = writer.run(usize::MAX);
            });
        }
        let wait = 20 + (chance >> 8) % 350;
        std::thread::sleep(Duration::from_millis(wait));
        kill(pid);
    });
    if let Some(mut settle) = settle {
        settle.wait().unwrap();
    }
}

fn judge(writers: &mut [Writer], found: &Files, place: &str) {
    for (at, writer) in writers.iter_mut().enumerate() {
        let prefix = format!("w{at}/");
        let own: Files = found
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(path, bytes)| (path.clone(), bytes.clone()))
            .collect();
        writer
            .ledger
            .judge(&own, Crash::now())
            .unwrap_or_else(|why| panic!("{place}: {why}"));
        writer.ledger.adopt(&own);
    }
}

fn assert_clean(bed: &Bed, place: &str) {
    let output = bed.check();
    let clean = output.status.code() == Some(exit::OK);
    assert!(clean, "{place}: {}", text(&output));
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_acknowledged() {
    if !can_mount() {
        return;
    }
    let (rounds, seed) = (
        number("S2SFS_KILL_ROUNDS", 10),
        number("S2SFS_KILL_SEED", 1),
    );
    let bed = Bed::new();
    let ticks = Arc::new(AtomicU64::new(1));
    let clock: Clock = Arc::new(move || ticks.fetch_add(1, SeqCst));
    let writer = |at: u64| {
        let durability = Durability::SyncOrClose;
        let dir = format!("w{at}");
        Writer::new(&bed.mnt, &dir, clock.clone(), durability, mix(seed) ^ at)
    };
    let mut writers: Vec<Writer> = (0..WRITERS).map(writer).collect();
    let mut acknowledged = 0;
    for number in 0..rounds {
        let chance = mix(seed ^ (number << 20));
        let place = format!("round {number} of seed {seed}");
        bed.mount(options(number));
        judge(&mut writers, &files_below(&bed.mnt).unwrap(), &place);
        round(&bed, &mut writers, chance);
        acknowledged += writers.iter().map(|w| w.ledger.changes()).sum::<usize>();
        if chance.is_multiple_of(3) {
            assert_clean(&bed, &place);
        }
    }
    bed.mount("policy=fast");
    judge(&mut writers, &files_below(&bed.mnt).unwrap(), "the end");
    bed.settle();
    judge(
        &mut writers,
        &files_below(&bed.mnt).unwrap(),
        "the end, settled",
    );
    bed.umount();
    assert_clean(&bed, "the end");
    println!("FIGURES kills={rounds} acknowledged={acknowledged} lost=0");
}
