//! Threads that decode streams by continuous batching: streams join and leave at every step.
//!
//! On the processor every lane steps a few streams of its own, and those that a reader waits for hold up all
//! others of their lane. On a device one lane steps all streams together, as many as the device has slots,
//! for there company costs little. When the device fails, its streams go on in the lanes of the processor.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::model::ModelError;
use crate::model::network::Engine;

use super::engines::Evaluator;
use super::lockstep::{Ended, Lockstep, Sink, Stream};
use super::model_codec::model_error;
use super::network_codec::GroupDecoder;
use super::{CodecError, Result};

/// Most streams of a lane on the processor: more gain little speed.
const LANE_SLOTS: usize = 8;
/// Streams on a device.
const DEVICE_SLOTS: usize = 256;
/// What a stream takes that starts from an anchor: nearly all of it is the state of its adaptive experts.
const STREAM_BYTES: u64 = 10 << 20;

/// Streams of each of `lanes` lanes on the processor that share `memory` bytes; one in any case.
fn lane_slots(memory: u64, lanes: usize) -> usize {
    let streams = memory / STREAM_BYTES / lanes.max(1) as u64;
    streams.clamp(1, LANE_SLOTS as u64) as usize
}

/// How often the lanes of the processor ask whether the device still works.
const CHECK_DEVICE: Duration = Duration::from_secs(1);

/// Who waits for a group that is decoded in a lane.
pub trait Receiver: Send {
    /// Gets verified bytes in order; false if no more are wanted, which ends the stream.
    fn piece(&mut self, bytes: &[u8]) -> bool;

    /// A reader waits for the bytes now. Asked again at every step.
    fn is_urgent(&self) -> bool;

    /// Called exactly once: all bytes have been given, no more were wanted, or why there are none.
    fn end(self: Box<Self>, result: Result<()>);
}

impl Sink for Box<dyn Receiver> {
    fn piece(&mut self, bytes: &[u8]) -> bool {
        self.as_mut().piece(bytes)
    }
}

/// Makes the decoder of a stream when its turn comes, because decoders take memory.
pub(super) type Start = Box<dyn FnOnce() -> Result<Box<GroupDecoder>> + Send>;

enum Job {
    New(Start, Box<dyn Receiver>),
    /// Was decoded elsewhere so far.
    Moved(Stream<Box<dyn Receiver>>),
}

impl Job {
    fn is_urgent(&self) -> bool {
        match self {
            Job::New(_, receiver) => receiver.is_urgent(),
            Job::Moved(stream) => stream.sink.is_urgent(),
        }
    }

    fn receiver(self) -> Box<dyn Receiver> {
        match self {
            Job::New(_, receiver) => receiver,
            Job::Moved(stream) => stream.sink,
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    stopping: bool,
}

struct Shared {
    evaluator: Arc<Evaluator>,
    /// Streams of a lane on the processor.
    slots: usize,
    /// Under it only the evaluator's lock on its device is taken.
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// See the module. Threads are started for the first stream.
pub(super) struct Lanes {
    shared: Arc<Shared>,
    count: usize,
}

/// Why a lane leaves an engine.
enum Leaving {
    Stopped,
    /// The device has been given up meanwhile.
    Waited,
    Failed(ModelError),
}

impl Lanes {
    /// `count` lanes on the processor, of which the first one serves the device as long as there is one. On the
    /// processor their streams take at most about `memory` bytes, or what one for each lane takes.
    pub fn new(evaluator: Arc<Evaluator>, count: usize, memory: u64) -> Lanes {
        let shared = Shared {
            evaluator,
            slots: lane_slots(memory, count),
            queue: Mutex::default(),
            changed: Condvar::new(),
        };
        Lanes {
            shared: Arc::new(shared),
            count: count.max(1),
        }
    }

    /// Queues a stream. Those that a reader waits for come first.
    pub fn submit(&self, start: Start, receiver: Box<dyn Receiver>) {
        let mut queue = self.shared.queue.lock();
        if queue.threads.is_empty() {
            queue.threads = self.threads();
        }
        if queue.threads.is_empty() {
            drop(queue);
            receiver.end(Err(CodecError::Unavailable("no thread decodes".into())));
            return;
        }
        queue.jobs.push_back(Job::New(start, receiver));
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Decodes groups for which nobody waits yet, and waits for them. The error is that of the first group that
    /// has one.
    pub fn decode(&self, starts: impl Iterator<Item = Start>) -> Result<Vec<u8>> {
        let results: Vec<mpsc::Receiver<Result<Vec<u8>>>> = starts
            .map(|start| {
                let (sender, result) = mpsc::channel();
                let bytes = Vec::new();
                self.submit(start, Box::new(Whole { bytes, sender }));
                result
            })
            .collect();
        let mut all = Vec::new();
        for result in results {
            all.extend(result.recv().unwrap_or(Err(CodecError::Stopped))?);
        }
        Ok(all)
    }

    /// Streams that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }

    fn threads(&self) -> Vec<JoinHandle<()>> {
        let lane = |number: usize| {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name(format!("lane-{number}"));
            thread.spawn(move || shared.lane(number))
        };
        let started = (0..self.count).map(lane);
        let logged = started.inspect(|thread| {
            if let Err(error) = thread {
                log::error!("starting a thread that decodes: {error}");
            }
        });
        logged.flatten().collect()
    }
}

/// All bytes of a group for one who waits for them, but not urgently.
struct Whole {
    bytes: Vec<u8>,
    sender: mpsc::Sender<Result<Vec<u8>>>,
}

impl Receiver for Whole {
    fn piece(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        true
    }

    fn is_urgent(&self) -> bool {
        false
    }

    fn end(self: Box<Self>, result: Result<()>) {
        // Who has got an error of another group does not wait any more.
        let Whole { bytes, sender } = *self;
        let _ = sender.send(result.map(|()| bytes));
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let threads = {
            let mut queue = self.shared.queue.lock();
            queue.stopping = true;
            std::mem::take(&mut queue.threads)
        };
        self.shared.changed.notify_all();
        for thread in threads {
            // The last one that knows the codecs may be a receiver in a lane, which cannot wait for itself.
            if rayon::current_thread_index().is_none()
                && thread.thread().id() != std::thread::current().id()
                && thread.join().is_err()
            {
                log::error!("a thread that decodes panicked");
            }
        }
    }
}

type Running<'a> = Lockstep<'a, Box<dyn Receiver>>;

impl Shared {
    /// Body of a thread.
    fn lane(&self, number: usize) {
        loop {
            // Whatever panics in a receiver ends the streams of the lane, not the lane.
            match catch_unwind(AssertUnwindSafe(|| self.serve(number))) {
                Ok(Leaving::Stopped) => return,
                Ok(Leaving::Waited) => {}
                Ok(Leaving::Failed(error)) => {
                    self.evaluator.give_up_device(&error);
                    self.changed.notify_all();
                }
                Err(_) => log::error!("lane {number} panicked"),
            }
        }
    }

    /// Decodes on whatever there is for this lane.
    fn serve(&self, number: usize) -> Leaving {
        let cpu = &*self.evaluator.cpu;
        match self.evaluator.device() {
            None => self.drive(cpu, None),
            Some(device) if number == 0 => self.drive(cpu, Some(&*device)),
            Some(_) => self.wait_for_failure(),
        }
    }

    /// Waits until the device is given up, or the lane is to end.
    fn wait_for_failure(&self) -> Leaving {
        let mut queue = self.queue.lock();
        while !queue.stopping && self.evaluator.device().is_some() {
            // Those who encode may find out, and do not know of the lanes.
            self.changed.wait_for(&mut queue, CHECK_DEVICE);
        }
        match queue.stopping {
            true => Leaving::Stopped,
            false => Leaving::Waited,
        }
    }

    /// Decodes on the device, or on the processor if there is none, until that is over.
    fn drive(&self, cpu: &dyn Engine, device: Option<&dyn Engine>) -> Leaving {
        let (engine, slots) = match device {
            Some(device) => (device, DEVICE_SLOTS),
            None => (cpu, self.slots),
        };
        let mut running = match Running::new(engine, cpu, slots) {
            Ok(running) => running,
            Err(error) => return self.failed(error, Vec::new(), device.is_some()),
        };
        loop {
            match self.admit(&mut running, device.is_some()) {
                Ok(true) => {}
                Ok(false) => return Leaving::Stopped,
                Err((stream, error)) => {
                    let mut streams = running.suspend_all();
                    streams.push(stream);
                    return self.failed(error, streams, device.is_some());
                }
            }
            if running.is_empty() {
                continue;
            }
            match step(&mut running, device.is_some()) {
                Ok(ended) => ended.into_iter().for_each(end),
                Err(error) => return self.failed(error, running.suspend_all(), device.is_some()),
            }
        }
    }

    /// The streams of a device that fails go on elsewhere; those of the processor can go nowhere.
    fn failed(
        &self,
        error: ModelError,
        streams: Vec<Stream<Box<dyn Receiver>>>,
        device: bool,
    ) -> Leaving {
        match device {
            true => {
                let mut queue = self.queue.lock();
                for stream in streams.into_iter().rev() {
                    queue.jobs.push_front(Job::Moved(stream));
                }
            }
            false => {
                for stream in streams {
                    let result = Err(model_error(error.clone()));
                    let sink = stream.sink;
                    end(Ended { sink, result });
                }
            }
        }
        Leaving::Failed(error)
    }

    /// Takes streams in whose turn it is, and waits for one if there is nothing to do. False if the lane is to
    /// end. On an error the stream that could not be taken in comes back.
    fn admit(
        &self,
        running: &mut Running,
        device: bool,
    ) -> std::result::Result<bool, (Stream<Box<dyn Receiver>>, ModelError)> {
        loop {
            let Some(job) = self.next_job(running, device) else {
                return Ok(!self.is_stopping(running));
            };
            let stream = match job {
                Job::Moved(stream) => stream,
                Job::New(start, sink) => match guarded(start) {
                    Ok(decoder) => Stream { decoder, sink },
                    Err(error) => {
                        sink.end(Err(error));
                        continue;
                    }
                },
            };
            if let Some(ended) = running.join(stream)? {
                end(ended);
            }
            // Other lanes want their share, too.
            if !device && !running.is_empty() {
                return Ok(true);
            }
        }
    }

    /// The next job for a lane, for which there is room then. Waits if the lane has nothing to do; None if it
    /// should go on with what it has, or ends.
    fn next_job(&self, running: &mut Running, device: bool) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopping {
                return None;
            }
            let urgent = queue.jobs.iter().position(Job::is_urgent);
            let busy = !device && running.any(|receiver| receiver.is_urgent());
            let next = urgent.or((!busy && !queue.jobs.is_empty()).then_some(0));
            if let Some(at) = next {
                if running.has_room() {
                    return queue.jobs.remove(at);
                }
                // what nobody waits for makes room
                if urgent.is_some()
                    && let Some(stream) = running.suspend(|receiver| !receiver.is_urgent())
                {
                    let job = queue.jobs.remove(at);
                    queue.jobs.push_back(Job::Moved(stream));
                    return job;
                }
            }
            if !running.is_empty() {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// If so, ends everything.
    fn is_stopping(&self, running: &mut Running) -> bool {
        let mut queue = self.queue.lock();
        if !queue.stopping {
            return false;
        }
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        let left = running.suspend_all().into_iter().map(Job::Moved);
        for job in left.chain(jobs) {
            job.receiver().end(Err(CodecError::Stopped));
        }
        true
    }
}

/// One step: on the processor of those for whom readers wait, if there are any, otherwise of all.
fn step(
    running: &mut Running,
    device: bool,
) -> std::result::Result<Vec<Ended<Box<dyn Receiver>>>, ModelError> {
    // A decoder that panics must not leave readers waiting.
    let attempt = AssertUnwindSafe(|| match device {
        true => running.step_on_all_processors(|_| true),
        false => {
            let pressing = running.any(|receiver| receiver.is_urgent());
            running.step(|receiver| !pressing || receiver.is_urgent())
        }
    });
    catch_unwind(attempt).unwrap_or_else(|_| Err(ModelError::Device("a step panicked".into())))
}

/// The decoder of a stream; a panic counts as damage.
fn guarded(start: Start) -> Result<Box<GroupDecoder>> {
    let panicked = |_| Err(CodecError::Damaged("starting to decode panicked".into()));
    catch_unwind(AssertUnwindSafe(start)).unwrap_or_else(panicked)
}

fn end(ended: Ended<Box<dyn Receiver>>) {
    ended.sink.end(ended.result);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Codecs, chooser::ANCHOR_BYTES};

    #[test]
    fn a_stream_takes_no_more_than_is_counted_for_it() {
        let codecs = Codecs::with_embedded("net-small").unwrap();
        let state = codecs
            .encoding_model()
            .unwrap()
            .after(&[b'a'; ANCHOR_BYTES]);
        let size = state.size() as u64;
        assert!((STREAM_BYTES / 2..STREAM_BYTES).contains(&size), "{size}");
    }

    #[test]
    fn all_streams_of_the_processor_share_the_memory() {
        assert_eq!(lane_slots(0, 4), 1);
        assert_eq!(lane_slots(256 << 20, 2), LANE_SLOTS);
        assert_eq!(lane_slots(256 << 20, 8), 3);
        assert_eq!(lane_slots(256 << 20, 1000), 1);
    }
}
