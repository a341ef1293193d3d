//! Lanes: groups of network models are decoded beside each other, what readers wait for first, and a device
//! that fails is replaced without anything being lost.

#[path = "common/network_model.rs"]
mod network_model;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use s2sfs::codec::{CodecError, Codecs, Device, Layout, Receiver};
use s2sfs::model::ModelError;
use s2sfs::model::network::simd::Simd;
use s2sfs::model::network::{Batch, Engine, Memory, Sequence, Step};

/// Size of the groups of these tests.
const GROUP: usize = 1024;

fn model_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| network_model::file(1))
}

fn codecs(threads: usize) -> Codecs {
    let codecs = Codecs::with_model(model_file()).unwrap();
    codecs.on(Device::Cpu, threads)
}

/// Text of the project, again and again.
fn text() -> &'static [u8] {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let bytes = network_model::TEXT.bytes().cycle();
        bytes.take(16 * GROUP).collect()
    })
}

/// The test text as a block.
fn block(codecs: &Codecs, group: usize) -> (Vec<u8>, Arc<Layout>) {
    let raw = text();
    let (encoded, _) = codecs.encode_by_model(raw, group, None, None).unwrap();
    let layout = codecs.open(&encoded.payload).unwrap();
    (encoded.payload, Arc::new(layout))
}

/// What a group should decode to.
fn expected(layout: &Layout, group: usize) -> &'static [u8] {
    let range = &layout.groups[group];
    &text()[range.start as usize..range.end as usize]
}

type Outcome = (usize, Result<Vec<u8>, CodecError>);

/// Collects a group and sends it at the end.
struct Collector {
    number: usize,
    bytes: Vec<u8>,
    urgent: Arc<AtomicBool>,
    wanted: usize,
    ends: mpsc::Sender<Outcome>,
    /// Called before each piece is taken.
    on_piece: Box<dyn FnMut() + Send>,
}

impl Collector {
    fn new(number: usize, urgent: bool, ends: &mpsc::Sender<Outcome>) -> Collector {
        Collector {
            number,
            bytes: Vec::new(),
            urgent: Arc::new(AtomicBool::new(urgent)),
            wanted: usize::MAX,
            ends: ends.clone(),
            on_piece: Box::new(|| ()),
        }
    }
}

impl Receiver for Collector {
    fn piece(&mut self, bytes: &[u8]) -> bool {
        (self.on_piece)();
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() < self.wanted
    }

    fn is_urgent(&self) -> bool {
        self.urgent.load(SeqCst)
    }

    fn end(self: Box<Self>, result: Result<(), CodecError>) {
        let collector = *self;
        let bytes = result.map(|()| collector.bytes);
        collector.ends.send((collector.number, bytes)).unwrap();
    }
}

/// Decodes every group of the text for a receiver, and checks what arrives.
fn decode_all_groups(codecs: &Codecs, urgent: impl Fn(usize) -> bool) {
    let (payload, layout) = block(codecs, GROUP);
    let (ends, ended) = mpsc::channel();
    for group in 0..layout.groups.len() {
        let receiver = Box::new(Collector::new(group, urgent(group), &ends));
        codecs.decode_for(payload.clone(), &layout, group, None, receiver);
    }
    drop(ends);
    let mut seen: Vec<usize> = ended
        .iter()
        .map(|(group, bytes)| {
            assert_eq!(bytes.unwrap(), expected(&layout, group), "group {group}");
            group
        })
        .collect();
    seen.sort_unstable();
    let all: Vec<usize> = (0..layout.groups.len()).collect();
    assert_eq!(seen, all, "every receiver gets its end exactly once");
}

/// The processor in the role of a device that works so many times before it fails for good.
struct Failing {
    engine: Simd,
    budget: Arc<AtomicI64>,
    failures: Arc<AtomicUsize>,
}

impl Failing {
    fn spend(&self) -> Result<(), ModelError> {
        match self.budget.fetch_sub(1, SeqCst) > 0 {
            true => Ok(()),
            false => {
                self.failures.fetch_add(1, SeqCst);
                Err(ModelError::Device("out of memory".into()))
            }
        }
    }
}

impl Engine for Failing {
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>, ModelError> {
        self.engine.encode(latents)
    }

    fn hidden(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>, ModelError> {
        self.spend()?;
        self.engine.hidden(sequences)
    }

    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>, ModelError> {
        self.spend()?;
        let batch = self.engine.batch(slots)?;
        Ok(Box::new(FailingBatch {
            device: self,
            batch,
        }))
    }

    fn class_logits(&self, _: &[i8]) -> Result<Vec<i32>, ModelError> {
        panic!("the heads belong on the processor");
    }

    fn token_logits(&self, _: &[i8], _: usize) -> Result<Vec<i32>, ModelError> {
        panic!("the heads belong on the processor");
    }
}

struct FailingBatch<'a> {
    device: &'a Failing,
    batch: Box<dyn Batch + 'a>,
}

impl Batch for FailingBatch<'_> {
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<(), ModelError> {
        self.device.spend()?;
        self.batch.start(slot, memory)
    }

    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>, ModelError> {
        self.device.spend()?;
        self.batch.step(steps)
    }
}

/// Codecs with a device that fails after `budget` uses, and the number of its failures.
fn with_failing_device(budget: i64) -> (Codecs, Arc<AtomicUsize>) {
    let codecs = codecs(2);
    let failures = Arc::new(AtomicUsize::new(0));
    let (network, _) = network_model::network(1);
    let device = Failing {
        engine: Simd::new(network, 1),
        budget: Arc::new(AtomicI64::new(budget)),
        failures: failures.clone(),
    };
    codecs.set_engine("test:0", Arc::new(device));
    (codecs, failures)
}

#[test]
fn groups_are_decoded_beside_each_other_in_any_number_of_lanes() {
    for threads in [1, 2, 5] {
        decode_all_groups(&codecs(threads), |group| group % 3 == 0);
    }
}

#[test]
fn a_device_encodes_and_decodes_as_the_processor_does() {
    let (on_device, failures) = with_failing_device(i64::MAX);
    let (on_cpu, _) = block(&codecs(1), GROUP);
    assert_eq!(block(&on_device, GROUP).0, on_cpu);
    decode_all_groups(&on_device, |_| false);
    let raw = on_device.decode_all(&on_cpu, None).unwrap();
    assert_eq!(raw, text());
    assert_eq!(failures.load(SeqCst), 0);
    assert!(on_device.engine().ends_with("test:0"));
}

#[test]
fn what_a_failing_device_was_at_goes_on_on_the_processor() {
    for budget in [0, 1, 2, 3, 5, 17, 18, 19, 40, 100, 250] {
        let (codecs, failures) = with_failing_device(budget);
        decode_all_groups(&codecs, |group| group % 2 == 0);
        assert_eq!(failures.load(SeqCst), 1, "budget {budget}");
        let engine = codecs.engine();
        assert!(!engine.contains("test:0"), "{engine} is given up");
        let (payload, _) = block(&codecs, GROUP);
        let raw = codecs.decode_all(&payload, None).unwrap();
        assert_eq!(raw, text());
        assert_eq!(failures.load(SeqCst), 1, "it is not used again");
    }
}

#[test]
fn encoding_goes_on_on_the_processor_when_the_device_fails() {
    let (codecs, failures) = with_failing_device(0);
    let (payload, _) = block(&codecs, GROUP);
    assert_eq!(payload, block(&self::codecs(1), GROUP).0);
    assert_eq!(failures.load(SeqCst), 1);
}

#[test]
fn threads_that_encode_at_the_same_time_get_their_own_rows() {
    let (codecs, _) = with_failing_device(i64::MAX);
    let text = text();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let codecs = &codecs;
            scope.spawn(move || {
                for round in 0..4 {
                    let raw = &text[number * 700 + round..][..1500 + 100 * number];
                    let (encoded, _) = codecs.encode_by_model(raw, GROUP, None, None).unwrap();
                    let back = codecs.decode_all(&encoded.payload, None).unwrap();
                    assert_eq!(back, raw);
                }
            });
        }
    });
}

/// Many copies of one long group are on their way in a single lane, and the first piece of the first has come,
/// when `more` is called. Gives the order in which they and what `more` adds end.
fn order_of_ends(
    waiting: usize,
    more: impl FnOnce(&Codecs, &mpsc::Sender<Outcome>, &[Arc<AtomicBool>]),
) -> Vec<usize> {
    let codecs = codecs(1);
    let (payload, layout) = block(&codecs, 16 * GROUP);
    assert_eq!(layout.groups.len(), 1);
    let (ends, ended) = mpsc::channel();
    let (reached, at_piece) = mpsc::channel();
    let (go_on, going_on) = mpsc::channel::<()>();
    let mut urgencies = Vec::new();
    let going_on = Mutex::new(Some(going_on));
    let stop = Arc::new(going_on);
    for number in 0..waiting {
        let mut receiver = Collector::new(number, false, &ends);
        urgencies.push(receiver.urgent.clone());
        let (reached, stop) = (reached.clone(), stop.clone());
        receiver.on_piece = Box::new(move || {
            if let Some(going_on) = stop.lock().unwrap().take() {
                reached.send(()).unwrap();
                going_on.recv().unwrap();
            }
        });
        codecs.decode_for(payload.clone(), &layout, 0, None, Box::new(receiver));
    }
    at_piece.recv().unwrap();
    more(&codecs, &ends, &urgencies);
    go_on.send(()).unwrap();
    drop(ends);
    let numbers = ended.iter().map(|(number, bytes)| {
        assert_eq!(bytes.unwrap(), expected(&layout, 0), "stream {number}");
        number
    });
    numbers.collect()
}

#[test]
fn a_group_that_a_reader_waits_for_overtakes_all_others() {
    // more than a lane takes at a time, so that the reader's group gets the place of another
    let order = order_of_ends(20, |codecs, ends, _| {
        let (payload, layout) = block(codecs, 16 * GROUP);
        let receiver = Box::new(Collector::new(99, true, ends));
        codecs.decode_for(payload, &layout, 0, None, receiver);
    });
    assert_eq!(order.len(), 21);
    assert_eq!(order[0], 99, "{order:?}");
}

#[test]
fn read_ahead_that_a_reader_comes_to_wait_for_overtakes_the_rest() {
    let order = order_of_ends(20, |_, _, urgencies| {
        urgencies[17].store(true, SeqCst);
        urgencies[3].store(true, SeqCst);
    });
    assert_eq!(order.len(), 20);
    let mut first = order[..2].to_vec();
    first.sort_unstable();
    assert_eq!(first, [3, 17], "{order:?}");
}

#[test]
fn a_receiver_that_wants_no_more_ends_its_group_early() {
    let codecs = codecs(1);
    let (payload, layout) = block(&codecs, 16 * GROUP);
    let (ends, ended) = mpsc::channel();
    let mut receiver = Collector::new(0, true, &ends);
    receiver.wanted = 5000;
    codecs.decode_for(payload, &layout, 0, None, Box::new(receiver));
    let (_, bytes) = ended.recv().unwrap();
    assert_eq!(bytes.unwrap(), &text()[..8192]);
}

#[test]
fn a_stream_that_panics_ends_alone() {
    let codecs = codecs(1);
    let (payload, layout) = block(&codecs, GROUP);
    let (ends, ended) = mpsc::channel();
    for group in 0..layout.groups.len() {
        let mut receiver = Collector::new(group, true, &ends);
        if group == 3 {
            receiver.on_piece = Box::new(|| panic!("as this test wants"));
        }
        codecs.decode_for(payload.clone(), &layout, group, None, Box::new(receiver));
    }
    drop(ends);
    let outcomes: Vec<Outcome> = ended.iter().collect();
    assert_eq!(outcomes.len(), layout.groups.len());
    for (group, bytes) in outcomes {
        match bytes {
            Ok(bytes) => assert_eq!(bytes, expected(&layout, group)),
            Err(_) => assert_eq!(group, 3),
        }
    }
    decode_all_groups(&codecs, |_| true);
}

#[test]
fn every_receiver_hears_of_the_end_when_the_codecs_go() {
    let codecs = codecs(1);
    let (payload, layout) = block(&codecs, 16 * GROUP);
    let (ends, ended) = mpsc::channel();
    for number in 0..30 {
        let receiver = Box::new(Collector::new(number, number % 2 == 0, &ends));
        codecs.decode_for(payload.clone(), &layout, 0, None, receiver);
    }
    drop(codecs);
    drop(ends);
    let outcomes: Vec<Outcome> = ended.iter().collect();
    assert_eq!(outcomes.len(), 30);
    for (number, bytes) in outcomes {
        match bytes {
            Ok(bytes) => assert_eq!(bytes, expected(&layout, 0), "stream {number}"),
            Err(CodecError::Stopped) => {}
            Err(error) => panic!("stream {number}: {error}"),
        }
    }
}

#[test]
fn a_damaged_group_ends_with_an_error_and_the_others_are_whole() {
    let codecs = codecs(2);
    let (mut payload, layout) = block(&codecs, GROUP);
    let damaged = layout.groups.len() - 1;
    let last = payload.len() - 20;
    payload[last] ^= 0x10;
    let (ends, ended) = mpsc::channel();
    for group in 0..layout.groups.len() {
        let receiver = Box::new(Collector::new(group, true, &ends));
        codecs.decode_for(payload.clone(), &layout, group, None, receiver);
    }
    drop(ends);
    for (group, bytes) in ended {
        match bytes {
            Ok(bytes) => assert_eq!(bytes, expected(&layout, group)),
            Err(error) => {
                assert!(matches!(error, CodecError::Damaged(_)), "{error}");
                assert_eq!(group, damaged);
                continue;
            }
        }
        assert_ne!(group, damaged, "damage is found");
    }
}
