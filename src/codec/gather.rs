//! Fills a device: token strings that several threads have at the same time go there together.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parking_lot::{Condvar, Mutex};

use crate::model::ModelError;
use crate::model::network::{Batch, Engine, Memory, Sequence};

use super::engines::SharedEngine;

/// Tokens that are sent together, so that the memory of the device is bounded. One string may be longer.
const TOKENS: usize = 1 << 17;

type Rows = Result<Vec<Vec<i8>>, ModelError>;

/// Strings that wait for their rows, and where these go.
struct Request {
    number: u64,
    strings: Vec<Vec<u16>>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: Vec<Request>,
    /// Rows that nobody has fetched yet.
    ready: Vec<(u64, Rows)>,
    /// A thread is using the device.
    busy: bool,
}

/// An engine whose teacher-forced path takes the strings of all threads that wait.
///
/// Whoever finds the device free takes what has gathered, its own strings among them, and leaves the rows for
/// the others; the lock is not held meanwhile.
pub(super) struct Gather {
    engine: SharedEngine,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Gather {
    pub fn new(engine: SharedEngine) -> Gather {
        Gather {
            engine,
            queue: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn submit(&self, strings: Vec<Vec<u16>>) -> u64 {
        let mut queue = self.queue.lock();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push(Request { number, strings });
        number
    }

    /// Waits for the rows of a request; uses the device for it and others if it is free.
    fn fetch(&self, number: u64) -> Rows {
        let mut queue = self.queue.lock();
        loop {
            if let Some(at) = queue.ready.iter().position(|(n, _)| *n == number) {
                return queue.ready.swap_remove(at).1;
            }
            if queue.busy {
                self.changed.wait(&mut queue);
                continue;
            }
            let requests = take(&mut queue.waiting);
            queue.busy = true;
            drop(queue);
            let found = self.run(&requests);
            queue = self.queue.lock();
            queue.busy = false;
            queue.ready.extend(found);
            self.changed.notify_all();
        }
    }

    fn run(&self, requests: &[Request]) -> Vec<(u64, Rows)> {
        let memory = &Memory::default();
        let strings = requests.iter().flat_map(|request| &request.strings);
        let sequences: Vec<Sequence> = strings.map(|tokens| Sequence { tokens, memory }).collect();
        // A device that panics must not leave the others waiting.
        let attempt = AssertUnwindSafe(|| self.engine.hidden(&sequences));
        let found = catch_unwind(attempt).unwrap_or_else(|_| Err(panicked()));
        if matches!(found, Err(ModelError::Input(_))) && requests.len() > 1 {
            // no fault of the others
            let each = requests.chunks(1).flat_map(|request| self.run(request));
            return each.collect();
        }
        let mut rows = found.map(Vec::into_iter);
        requests
            .iter()
            .map(|request| {
                let part = match &mut rows {
                    Ok(rows) => Ok(rows.take(request.strings.len()).collect()),
                    Err(error) => Err(error.clone()),
                };
                (request.number, part)
            })
            .collect()
    }
}

fn panicked() -> ModelError {
    ModelError::Device("its driver panicked".into())
}

/// The oldest requests, as many as go together.
fn take(waiting: &mut Vec<Request>) -> Vec<Request> {
    let mut tokens = 0;
    let many = waiting
        .iter()
        .take_while(|request| {
            let before = tokens;
            tokens += request.strings.iter().map(Vec::len).sum::<usize>();
            before == 0 || tokens <= TOKENS
        })
        .count();
    waiting.drain(..many).collect()
}

impl Engine for Gather {
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>, ModelError> {
        self.engine.encode(latents)
    }

    fn hidden(&self, sequences: &[Sequence]) -> Rows {
        if sequences.iter().any(|s| s.memory.len > 0) {
            return self.engine.hidden(sequences);
        }
        let strings = sequences.iter().map(|s| s.tokens.to_vec()).collect();
        self.fetch(self.submit(strings))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64, lengths: &[usize]) -> Request {
        let strings = lengths.iter().map(|&len| vec![0; len]).collect();
        Request { number, strings }
    }

    #[test]
    fn requests_go_together_up_to_the_limit_and_a_long_one_alone() {
        let half = TOKENS / 2;
        let mut waiting = vec![
            request(0, &[half, 1]),
            request(1, &[half - 1]),
            request(2, &[2 * TOKENS]),
            request(3, &[]),
            request(4, &[1]),
        ];
        let mut numbers = Vec::new();
        while !waiting.is_empty() {
            let taken = take(&mut waiting);
            numbers.push(taken.iter().map(|r| r.number).collect::<Vec<_>>());
        }
        assert_eq!(numbers, [vec![0, 1], vec![2], vec![3, 4]]);
    }
}
