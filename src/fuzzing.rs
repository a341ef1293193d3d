//! Entry points for fuzzing: each hands hostile bytes to real decoders and asserts what must hold of
//! whatever they accept. They panic if it does not, which is what a fuzzer looks for.
//!
//! `make fuzz` runs them with cargo-fuzz, `tests/fuzz_smoke.rs` for a moment with `cargo test`.

use std::sync::{Arc, OnceLock};

use crate::codec::{AnchorSource, Codecs, EncodeOptions, MAX_RAW_LEN, Policy};
use crate::control::protocol::{Reply, Request};
use crate::model::{self, Model};
use crate::store::fuzz as store;
use crate::volume::fuzz as volume;

/// Decoding takes time, and a header is free to promise a megabyte: longer ones are left out.
const LONGEST: u32 = 8 << 10;

/// An entry point.
pub type Target = fn(&[u8]);

/// All entry points by name.
pub const TARGETS: [(&str, Target); 13] = [
    ("record", record),
    ("segment", segment),
    ("transaction", transaction),
    ("checkpoint", checkpoint),
    ("block_entry", block_entry),
    ("description", description),
    ("volume", volume),
    ("payload", payload),
    ("model_payload", model_payload),
    ("model_file", model_file),
    ("tokenizer", tokenizer),
    ("dictionary", dictionary),
    ("control", control),
];

pub fn record(data: &[u8]) {
    store::record(data);
}

pub fn segment(data: &[u8]) {
    store::segment(data);
}

pub fn transaction(data: &[u8]) {
    store::transaction(data);
}

pub fn checkpoint(data: &[u8]) {
    store::checkpoint(data);
}

pub fn block_entry(data: &[u8]) {
    store::block_entry(data);
}

pub fn description(data: &[u8]) {
    store::description(data);
}

pub fn volume(data: &[u8]) {
    volume::keys_and_values(data);
}

struct Tiny {
    file: Vec<u8>,
    name: [u8; 8],
    codecs: Codecs,
}

impl Tiny {
    fn new(model: &Model, base: Option<&[u8]>) -> Tiny {
        let file = model.to_bytes().expect("a model file");
        let mut name = [0; 8];
        name.copy_from_slice(&model::hash_of(&file)[..8]);
        let codecs = Codecs::with_model_and_base(&file, base).expect("a good model");
        Tiny { file, name, codecs }
    }
}

/// Codecs with a small model: with tables, with tables and a network, with a network alone, with tables that
/// know bytes by a code, with runs on tables of another model.
struct Tinies {
    kinds: [Tiny; 5],
    /// The model with tables, as it is read from its file.
    base: Arc<Model>,
}

fn tinies() -> &'static Tinies {
    static TINIES: OnceLock<Tinies> = OnceLock::new();
    TINIES.get_or_init(|| {
        let tables = Tiny::new(&model::fuzz::tiny_model(), None);
        let base = Arc::new(Model::from_bytes(&tables.file).expect("a good model"));
        let both = model::fuzz::tiny_network_model(Some(&base));
        let both = Tiny::new(&both, Some(&tables.file));
        let alone = Tiny::new(&model::fuzz::tiny_network_model(None), None);
        let coded = Tiny::new(&model::fuzz::tiny_coded_model(), None);
        let running = model::fuzz::tiny_running_model(&base);
        let running = Tiny::new(&running, Some(&tables.file));
        let kinds = [tables, both, alone, coded, running];
        Tinies { kinds, base }
    })
}

/// Codecs with a small model that has tables.
fn tiny() -> &'static Tiny {
    &tinies().kinds[0]
}

/// One of them, and the rest of the input.
fn pick_tiny(data: &[u8]) -> Option<(&'static Tiny, &[u8])> {
    let (pick, rest) = data.split_first()?;
    let kinds = &tinies().kinds;
    Some((&kinds[usize::from(*pick) % kinds.len()], rest))
}

/// Payloads of any codec: as they are, and the bytes themselves encoded and decoded.
pub fn payload(data: &[u8]) {
    let codecs = &tiny().codecs;
    decode(codecs, data, None);
    let raw = &data[..data.len().min(MAX_RAW_LEN)];
    let staged = codecs.encode_fast(raw);
    let back = codecs.decode_all(&staged.payload, None);
    assert_eq!(back.expect("what was staged"), raw);
}

/// Decodes a payload whose header promises little enough; what comes out has the promised length.
fn decode(codecs: &Codecs, payload: &[u8], anchor: Option<&[u8]>) {
    let Ok(layout) = codecs.open(payload) else {
        return;
    };
    assert!(layout.raw_len as usize <= MAX_RAW_LEN);
    let mut at = 0;
    for group in &layout.groups {
        assert!(group.start == at && group.end > at);
        at = group.end;
    }
    assert_eq!(at, layout.raw_len);
    if layout.raw_len > LONGEST {
        return;
    }
    let snapshot = anchor
        .filter(|_| layout.anchor.is_some())
        .and_then(|anchor| codecs.snapshot(&layout, anchor).ok());
    if let Ok(raw) = codecs.decode_all(payload, snapshot.as_deref()) {
        assert_eq!(raw.len(), layout.raw_len as usize);
    }
}

/// Payloads of the model codec, behind a header that names the model: groups, checksums, anchors.
pub fn model_payload(data: &[u8]) {
    let Some((Tiny { name, codecs, .. }, [long, len, rest @ ..])) = pick_tiny(data) else {
        return;
    };
    let raw_len = usize::from(*long) * 8 + usize::from(*len);
    let mut payload = vec![3, raw_len as u8 | 0x80, (raw_len >> 7) as u8 & 0x7f];
    payload.extend_from_slice(name);
    payload.extend_from_slice(rest);
    decode(codecs, &payload, Some(&rest[..rest.len().min(256)]));
    if rest.len() <= 1024 {
        round_trip(codecs, rest, *len);
    }
}

fn round_trip(codecs: &Codecs, raw: &[u8], pick: u8) {
    let options = EncodeOptions {
        policy: Policy::Ratio,
        group: Some(1 << (6 + pick % 6)),
        ..EncodeOptions::default()
    };
    let history: Arc<[u8]> = raw.iter().rev().copied().collect();
    let anchor = AnchorSource {
        block: 1,
        start: 0,
        bytes: history.clone(),
    };
    let encoded = codecs.encode(raw, &options, (pick & 64 != 0).then_some(&anchor));
    let encoded = encoded.expect("everything can be encoded");
    let layout = codecs.open(&encoded.payload).expect("what was encoded");
    let snapshot = encoded
        .anchor
        .map(|_| codecs.snapshot(&layout, &history).expect("a state"));
    let back = codecs.decode_all(&encoded.payload, snapshot.as_deref());
    assert_eq!(back.expect("what was encoded"), raw);
}

pub fn model_file(data: &[u8]) {
    if let Some((tiny, data)) = pick_tiny(data) {
        model::fuzz::model_file(&tiny.file, &tinies().base, data);
    }
}

pub fn tokenizer(data: &[u8]) {
    model::fuzz::tokenizer(data);
}

/// A dictionary of the zstd codec and something encoded with it: the first two bytes say where it ends.
pub fn dictionary(data: &[u8]) {
    let [a, b, rest @ ..] = data else {
        return;
    };
    let at = usize::from(u16::from_le_bytes([*a, *b]));
    let (dictionary, body) = rest.split_at(rest.len().min(at));
    let limit = LONGEST as usize;
    if let Ok(mut unpack) = zstd::bulk::Decompressor::with_dictionary(dictionary)
        && let Ok(raw) = unpack.decompress(body, limit)
    {
        assert!(raw.len() <= limit);
    }
    let packer = zstd::bulk::Compressor::with_dictionary(3, dictionary);
    let packed = packer.and_then(|mut packer| packer.compress(body));
    if let Ok(packed) = packed {
        let back = zstd::bulk::Decompressor::with_dictionary(dictionary)
            .and_then(|mut unpack| unpack.decompress(&packed, body.len()));
        assert_eq!(back.expect("what was packed"), body);
    }
}

/// Messages of the control socket.
pub fn control(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let line = serde_json::to_vec(&request).expect("a request");
        assert!(!line.contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<Request>(&line).ok(), Some(request));
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        let line = serde_json::to_vec(&reply).expect("a reply");
        assert!(!line.contains(&b'\n') && serde_json::from_slice::<Reply>(&line).is_ok());
    }
}

/// Inputs that a target accepts, to start from. Made here, so that they follow the format.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let kinds = &tinies().kinds;
    let codecs = &tiny().codecs;
    // one of each kind of model
    let each = |seeds: &dyn Fn(&Tiny) -> Vec<Vec<u8>>| -> Vec<Vec<u8>> {
        let seeds = |(pick, tiny)| -> Vec<Vec<u8>> {
            let picked = |seed: Vec<u8>| [&[pick as u8][..], &seed].concat();
            seeds(tiny).into_iter().map(picked).collect()
        };
        kinds.iter().enumerate().flat_map(seeds).collect()
    };
    let text = b"the quick brown fox jumps over the lazy dog; ".repeat(9);
    match target {
        "volume" => volume::seeds(),
        "payload" => {
            let options = EncodeOptions::default();
            let settled = codecs.encode(&text, &options, None);
            vec![
                codecs.encode_fast(&text).payload,
                settled.expect("text").payload,
                codecs.encode_fast(b"abc").payload,
            ]
        }
        "model_payload" => each(&|_| vec![[&[0, 40, 0, 1, 1, 0x12, 0x34][..], &text].concat()]),
        "model_file" => each(&|tiny| model::fuzz::model_seeds(&tiny.file)),
        "tokenizer" => model::fuzz::tokenizer_seeds(),
        "dictionary" => vec![[&[100, 0][..], &text].concat()],
        "control" => [
            r#"{"request":"status"}"#,
            r#"{"request":"info","ino":7}"#,
            r#"{"request":"scrub","action":"start","options":{"fast":true,"rate":5},"wait":true}"#,
            r#"{"reply":"status","status":{"files":3,"codecs":{"raw":{"extents":1}},"ratio":1.5}}"#,
            r#"{"reply":"scrub","scrub":{"state":"paused","findings":[{"files":[{"path":"a"}]}]}}"#,
        ]
        .map(|line| line.as_bytes().to_vec())
        .to_vec(),
        _ => store::seeds(target),
    }
}
