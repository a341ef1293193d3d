//! What is encoded together: the plan of one batch.

use super::{Candidate, Run};
use crate::codec::Policy;

/// Shorter runs share blocks, as far as they lie at the beginning of their file.
pub const PACK_BELOW: u32 = 32 << 10;
/// Shorter runs share blocks wherever they lie.
pub const PACK_TAIL_BELOW: u32 = 4 << 10;
/// Most runs in one pack: all their inodes are locked while it is swapped in.
const MAX_RUNS: usize = 512;
/// A pack of less than this may mix directories, to fill up.
const MIX_BELOW: usize = 64 << 10;
/// A pack of less than this may mix extensions.
const MIX_EXTENSIONS_BELOW: usize = 1 << 10;

/// Files that are alike: one policy, one directory, one extension.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Never mixed in a block.
    pub policy: Policy,
    pub extension: String,
    pub parent: u64,
}

/// One block to be: what it holds, in order.
#[derive(Debug, Clone)]
pub struct Job {
    pub class: Class,
    pub runs: Vec<Run>,
    pub len: usize,
    /// The file whose first block is offered as anchor.
    pub continues: Option<u64>,
}

/// Blocks in two phases: those of the second continue files that the first begins.
#[derive(Debug, Default)]
pub struct Plan {
    pub first: Vec<Job>,
    pub second: Vec<Job>,
}

/// Lower-case extension of a name, or nothing.
pub fn extension(name: &[u8]) -> String {
    let Some(dot) = name.iter().rposition(|b| *b == b'.') else {
        return String::new();
    };
    let ext = &name[dot + 1..];
    match dot > 0 && ext.len() <= 8 && ext.iter().all(u8::is_ascii_alphanumeric) {
        true => String::from_utf8_lossy(ext).to_ascii_lowercase(),
        false => String::new(),
    }
}

/// Sorts candidates into blocks of at most `window` bytes.
pub fn plan(candidates: Vec<Candidate>, window: usize) -> Plan {
    let mut plan = Plan::default();
    let mut small = Vec::new();
    for candidate in candidates {
        let class = Class {
            policy: candidate.policy,
            extension: extension(&candidate.name),
            parent: candidate.parent,
        };
        let run = candidate.run;
        let limit = if run.offset == 0 {
            PACK_BELOW
        } else {
            PACK_TAIL_BELOW
        };
        if run.len < limit && (run.len as usize) < window {
            small.push((class, candidate.name, run));
            continue;
        }
        let continues = (run.offset > 0).then_some(run.ino);
        let job = Job {
            class,
            len: run.len as usize,
            runs: vec![run],
            continues,
        };
        match continues {
            None => plan.first.push(job),
            Some(_) => plan.second.push(job),
        }
    }
    plan.first.extend(pack(small, window));
    plan.first.sort_by(|a, b| a.class.cmp(&b.class));
    plan
}

/// Fills packs in the order of policy, extension, directory and name.
fn pack(mut small: Vec<(Class, Vec<u8>, Run)>, window: usize) -> Vec<Job> {
    small.sort_by(|a, b| (&a.0, &a.1, a.2.ino, a.2.offset).cmp(&(&b.0, &b.1, b.2.ino, b.2.offset)));
    let mut jobs: Vec<Job> = Vec::new();
    for (class, _, run) in small {
        let len = run.len as usize;
        match jobs.last_mut() {
            Some(job) if job.len + len <= window && may_join(job, &class) => {
                job.len += len;
                job.runs.push(run);
            }
            _ => jobs.push(Job {
                class,
                len,
                runs: vec![run],
                continues: None,
            }),
        }
    }
    jobs
}

fn may_join(job: &Job, class: &Class) -> bool {
    if job.runs.len() >= MAX_RUNS || job.class.policy != class.policy {
        return false;
    }
    if job.class.extension != class.extension {
        return job.len < MIX_EXTENSIONS_BELOW;
    }
    job.class.parent == class.parent || job.len < MIX_BELOW
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(ino: u64, offset: u64, len: u32, parent: u64, name: &str) -> Candidate {
        Candidate {
            run: Run {
                ino,
                offset,
                len,
                extents: Vec::new(),
            },
            parent,
            name: name.into(),
            policy: Policy::Balanced,
        }
    }

    #[test]
    fn policies_are_never_mixed_in_a_block() {
        let candidates = (0..60).map(|i| {
            let mut file = candidate(i, 0, 100, 1, "a.txt");
            file.policy = Policy::ALL[i as usize % 4];
            file
        });
        let plan = plan(candidates.collect(), 128 << 10);
        assert_eq!(plan.first.len(), 4);
        for job in &plan.first {
            let same = |run: &Run| Policy::ALL[run.ino as usize % 4] == job.class.policy;
            assert!(job.runs.iter().all(same));
        }
    }

    #[test]
    fn small_files_of_a_class_share_blocks_in_the_order_of_their_names() {
        let files = ["c.rs", "a.rs", "b.rs", "x.py"];
        let candidates = files
            .iter()
            .enumerate()
            .map(|(i, name)| candidate(i as u64, 0, 2000, 1, name))
            .collect();
        let plan = plan(candidates, 128 << 10);
        let inos: Vec<Vec<u64>> = plan
            .first
            .iter()
            .map(|job| job.runs.iter().map(|run| run.ino).collect())
            .collect();
        assert_eq!(inos, vec![vec![3], vec![1, 2, 0]]);
    }

    #[test]
    fn packs_never_exceed_the_window() {
        let candidates = (0..100)
            .map(|i| candidate(i, 0, 30_000, 1, "a.txt"))
            .collect();
        let plan = plan(candidates, 128 << 10);
        assert_eq!(plan.first.len(), 25);
        assert!(plan.first.iter().all(|job| job.len <= 128 << 10));
    }

    #[test]
    fn later_windows_continue_their_file_and_tiny_tails_are_packed() {
        let window = 128 << 10;
        let candidates = vec![
            candidate(7, 0, window, 1, "big.log"),
            candidate(7, u64::from(window), window, 1, "big.log"),
            candidate(7, 2 * u64::from(window), 100, 1, "big.log"),
        ];
        let plan = plan(candidates, window as usize);
        assert_eq!((plan.first.len(), plan.second.len()), (2, 1));
        assert_eq!(plan.second[0].continues, Some(7));
    }

    #[test]
    fn extensions_are_short_and_plain() {
        assert_eq!(extension(b"a.TXT"), "txt");
        assert_eq!(extension(b".bashrc"), "");
        assert_eq!(extension(b"noext"), "");
        assert_eq!(extension(b"x.very long one"), "");
    }
}
