//! Bit histories in a byte: how often a context saw zeros and ones, and which came last.
//!
//! State 0 is "never seen". Counts are bounded together, so that a context which saw both bits
//! forgets the rarer one's distant past (nonstationary counters of the PAQ family).

use std::sync::LazyLock;

/// Most of the larger count, by the smaller count.
const BOUND: [u8; 6] = [44, 20, 12, 8, 6, 5];

/// What remains of the count of the bit that was not seen this time.
const DISCOUNTED: [u8; 45] = {
    let mut table = [7u8; 45];
    let small = [0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6];
    let mut i = 0;
    while i < small.len() {
        table[i] = small[i];
        i += 1;
    }
    table
};

#[derive(Clone, Copy, PartialEq, Eq)]
struct History {
    n: [u8; 2],
    last: u8,
}

fn allowed(n: [u8; 2]) -> bool {
    let (small, large) = (n[0].min(n[1]), n[0].max(n[1]));
    BOUND
        .get(small as usize)
        .is_some_and(|&bound| large <= bound)
}

fn after(history: History, bit: u8) -> History {
    let (seen, other) = (bit as usize, 1 - bit as usize);
    let mut n = history.n;
    n[other] = DISCOUNTED[n[other] as usize];
    n[seen] += 1;
    while !allowed(n) {
        if n[seen] >= n[other] {
            n[seen] -= 1
        } else {
            n[other] -= 1
        }
    }
    // which bit came last is implied where only one was ever seen
    let last = if n[0] == 0 || n[1] == 0 { 0 } else { bit };
    History { n, last }
}

/// The state machine.
#[derive(Debug)]
pub struct States {
    next: [[u8; 2]; 256],
    /// Number of observations that a state remembers; what replacement goes by.
    total: [u8; 256],
    count: usize,
}

static STATES: LazyLock<Box<States>> = LazyLock::new(|| Box::new(build()));

/// The one state machine of the program.
pub fn states() -> &'static States {
    &STATES
}

fn build() -> States {
    let mut histories = vec![History { n: [0, 0], last: 0 }];
    let mut states = States {
        next: [[0; 2]; 256],
        total: [0; 256],
        count: 0,
    };
    let mut at = 0;
    while at < histories.len() && at < 256 {
        states.total[at] = histories[at].n[0] + histories[at].n[1];
        for bit in 0..2u8 {
            let next = after(histories[at], bit);
            let index = histories
                .iter()
                .position(|h| *h == next)
                .unwrap_or_else(|| {
                    histories.push(next);
                    histories.len() - 1
                });
            states.next[at][bit as usize] = index as u8;
        }
        at += 1;
    }
    states.count = histories.len();
    states
}

impl States {
    /// The state after seeing `bit` in `state`.
    #[inline(always)]
    pub fn next(&self, state: u8, bit: u32) -> u8 {
        self.next[state as usize][(bit & 1) as usize]
    }

    /// How many observations a state stands for.
    #[inline(always)]
    pub fn total(&self, state: u8) -> u8 {
        self.total[state as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_states_fit_a_byte() {
        assert!(states().count <= 256, "{} states", states().count);
    }

    #[test]
    fn long_runs_saturate_and_one_surprise_shortens_them() {
        let states = states();
        let run = (0..100).fold(0, |s, _| states.next(s, 1));
        assert_eq!(states.next(run, 1), run);
        assert_eq!(states.total(run), 44);
        assert!(states.total(states.next(run, 0)) <= 8);
    }
}
