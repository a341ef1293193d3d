//! Codecs: how the bytes of one extent become the payload of one block, and back.
//!
//! A payload names its codec in its first byte and stands alone, except for the model that it names
//! by hash and the anchor that it may name by block id. docs/format.md has the byte tables.

mod chooser;
mod engines;
mod error;
mod fast;
mod gather;
mod lanes;
mod latents;
mod lockstep;
mod measure;
mod model_codec;
mod network_codec;
mod payload;
pub(crate) mod range_coder;
mod registry;
mod zstd_codec;

pub use chooser::ANCHOR_BYTES;
pub use engines::{Device, SharedEngine};
pub use error::CodecError;
pub use lanes::Receiver;
pub use latents::{LatentWriter, Latents};
pub use measure::Measured;
pub use model_codec::Grouping;
pub use payload::{AnchorRange, Layout};
pub use registry::{ModelSource, file_name};

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use lru::LruCache;
use parking_lot::Mutex;

use crate::model::adaptive::Histories;
use crate::model::predictor::State;
use crate::model::{Model, ModelHash};
use engines::{EngineTable, Engines, Evaluator};
use lockstep::Stream;
use network_codec::GroupDecoder;
use registry::Registry;

/// Result of every operation of this layer.
pub type Result<T> = std::result::Result<T, CodecError>;

/// Most decoded bytes of one block. Extents are at most 128 KiB by default; the limit leaves room.
pub const MAX_RAW_LEN: usize = 1 << 20;

/// How a payload is coded; the first byte of every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CodecId {
    Raw = 0,
    Lz4 = 1,
    Zstd = 2,
    Model = 3,
}

impl CodecId {
    /// All codecs, in the order of their ids.
    pub const ALL: [CodecId; 4] = [CodecId::Raw, CodecId::Lz4, CodecId::Zstd, CodecId::Model];

    /// The codec with this id, if there is one.
    pub fn from_byte(byte: u8) -> Option<CodecId> {
        CodecId::ALL.get(byte as usize).copied()
    }

    /// The name that status pages and `user.s2sfs.codec` show.
    pub fn name(self) -> &'static str {
        match self {
            CodecId::Raw => "raw",
            CodecId::Lz4 => "lz4",
            CodecId::Zstd => "zstd",
            CodecId::Model => "model",
        }
    }
}

/// What the chooser optimises for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Smallest size; random reads may decode a whole extent.
    Ratio,
    /// Nearly the smallest size, with random reads in mind.
    #[default]
    Balanced,
    /// Fast codecs only: nothing that reads slower than zstd.
    Fast,
    /// The codecs of staging only: nothing that reads slower than data that was written just now.
    Off,
}

impl Policy {
    pub const ALL: [Policy; 4] = [Policy::Ratio, Policy::Balanced, Policy::Fast, Policy::Off];

    /// The name in mount options and in `user.s2sfs.policy`.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Ratio => "ratio",
            Policy::Balanced => "balanced",
            Policy::Fast => "fast",
            Policy::Off => "off",
        }
    }

    /// The policy of this name, if there is one.
    pub fn parse(name: &[u8]) -> Option<Policy> {
        Policy::ALL
            .into_iter()
            .find(|policy| policy.name().as_bytes() == name)
    }

    /// Whether the model may encode.
    pub fn models(self) -> bool {
        matches!(self, Policy::Ratio | Policy::Balanced)
    }
}

/// Which blocks are decoded again and compared with the original before they count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// All.
    #[default]
    Full,
    /// One of [`SAMPLED`], chosen by a hash of its contents; all as soon as one of those is wrong.
    Sample,
    /// None.
    Off,
}

/// With [`Verify::Sample`] one block of so many is verified.
pub const SAMPLED: u64 = 16;

impl Verify {
    /// The choice of this name in mount options, if there is one.
    pub fn parse(name: &str) -> Option<Verify> {
        match name {
            "full" => Some(Verify::Full),
            "sample" => Some(Verify::Sample),
            "off" => Some(Verify::Off),
            _ => None,
        }
    }
}

/// How long reading takes, as far as the codec decides it: greater is slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadCost {
    /// 0 as fast as staged, 1 zstd, 2 a model, 3 a model with a network.
    pub class: u8,
    /// Bytes of the longest group, which a random read may have to decode.
    pub group: u32,
}

impl ReadCost {
    /// Clearly slower: another class of codec, or groups that are longer by more than a quarter.
    pub fn is_slower_than(&self, other: &ReadCost) -> bool {
        let longer = u64::from(self.group) * 4 > u64::from(other.group) * 5;
        self.class > other.class || self.class == other.class && self.class >= 2 && longer
    }

    /// The slower of the two in either respect.
    pub fn max(self, other: ReadCost) -> ReadCost {
        ReadCost {
            class: self.class.max(other.class),
            group: self.group.max(other.group),
        }
    }
}

/// How one extent is to be encoded.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions {
    pub policy: Policy,
    /// Upper bound of the group size in bytes; None lets the chooser decide.
    pub group: Option<u32>,
    pub verify: Verify,
}

/// Earlier bytes that an extent may use as its history.
#[derive(Debug, Clone)]
pub struct AnchorSource {
    pub block: u64,
    /// Position of `bytes` in the decoded bytes of the block.
    pub start: u32,
    pub bytes: Arc<[u8]>,
}

/// One encoded extent.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub codec: CodecId,
    pub payload: Vec<u8>,
    /// The anchor block that decoding needs, if the encoder used the one it was offered.
    pub anchor: Option<u64>,
}

/// State of a model's adaptive experts after an anchor; shared by all groups that start there. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct Snapshot {
    state: Arc<State>,
}

impl Snapshot {
    fn after(model: &Model, anchor: &[u8]) -> Snapshot {
        Snapshot {
            state: Arc::new(model.after(anchor)),
        }
    }

    /// Memory that the snapshot takes, for cache accounting.
    pub fn bytes(&self) -> usize {
        self.state.size()
    }
}

/// Snapshots kept for encoding: consecutive extents of a few files share their anchor.
const ENCODING_SNAPSHOTS: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Groups of one block that are decoded in lockstep.
const LOCKSTEP: usize = 16;

/// All codecs with the models they need. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Codecs {
    registry: Registry,
    engines: EngineTable,
    /// The model that encodes; None leaves raw and zstd.
    encoder: Option<[u8; 8]>,
    /// Who writes latents for the model that encodes.
    writer: Option<Arc<dyn LatentWriter>>,
    /// A block did not decode to what had been encoded: from now on all are verified that may be.
    distrusted: AtomicBool,
    /// By model and the hash of the anchor's bytes: block ids alone are only unique within one store.
    snapshots: Mutex<LruCache<(ModelHash, u128), Arc<Snapshot>>>,
}

impl Codecs {
    fn new(encoder: Option<[u8; 8]>) -> Codecs {
        let snapshots = Mutex::new(LruCache::new(ENCODING_SNAPSHOTS));
        Codecs {
            registry: Registry::default(),
            engines: EngineTable::new(),
            encoder,
            writer: None,
            distrusted: AtomicBool::new(false),
            snapshots,
        }
    }

    /// Codecs that encode with the model embedded in the program. It is loaded when first needed.
    pub fn with_default_model() -> Result<Codecs> {
        Codecs::with_embedded("default")
    }

    /// Codecs that encode with an embedded model, one of [`Codecs::embedded_names`].
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn with_embedded(name: &str) -> Result<Codecs> {
        let none = || CodecError::BadModel(format!("no model of the program is called {name}"));
        let model = registry::embedded_named(name).ok_or_else(none)?;
        Ok(Codecs::new(Some(model)))
    }

    /// The names of the embedded models.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        registry::embedded_names()
    }

    /// Codecs that encode without a model. They still decode whatever their models allow.
    pub fn without_model() -> Codecs {
        Codecs::new(None)
    }

    /// Codecs that encode with the model in `file`, whose base, if it names one, the program carries.
    pub fn with_model(file: &[u8]) -> Result<Codecs> {
        Codecs::with_model_and_base(file, None)
    }

    /// Codecs that encode with the model in `file`, whose base may be the one in `base`.
    pub fn with_model_and_base(file: &[u8], base: Option<&[u8]>) -> Result<Codecs> {
        let bad = |e: crate::model::ModelError| CodecError::BadModel(e.to_string());
        let mut codecs = Codecs::new(None);
        if let Some(base) = base {
            codecs.registry.add(Model::from_bytes(base).map_err(bad)?);
        }
        let model = codecs.registry.read(file, None).map_err(bad)?;
        codecs.encoder = Some(codecs.registry.add(model));
        Ok(codecs)
    }

    /// Evaluates the networks of models on this device, and, where that is the processor, decodes with them on
    /// so many threads. Otherwise it is the processor, and one thread.
    pub fn on(mut self, device: Device, threads: usize) -> Codecs {
        self.engines.device = device;
        self.engines.threads = threads;
        self
    }

    /// Lets the groups that are decoded at the same time on the processor by a model with a network take at most
    /// about so many bytes: fewer at a time where that is little, but one for every thread.
    pub fn within(mut self, stream_memory: u64) -> Codecs {
        self.engines.stream_memory = stream_memory;
        self
    }

    /// Tries the latents that this one writes, where the model that encodes can read them.
    pub fn writing(mut self, writer: Arc<dyn LatentWriter>) -> Codecs {
        self.writer = Some(writer);
        self
    }

    /// Whether the model that encodes has a network that reads what this one writes.
    pub fn reads(&self, writer: &dyn LatentWriter) -> bool {
        self.encoding_model().is_some_and(|model| {
            let config = model.network().map(|expert| expert.network.config());
            config.is_some_and(|config| {
                [config.vocab_size, config.latent_vocab, config.max_latents] == writer.sizes()
            })
        })
    }

    /// Uses this engine as the device of the network of the model that encodes; does nothing without a network.
    pub fn set_engine(&self, name: &str, engine: SharedEngine) {
        if let Some(model) = self.encoding_model() {
            self.engines.set(&model, name, engine);
        }
    }

    /// The model that is tried beside another one: slower than a lean mixer, faster than a network. It has the same tables.
    /// Nothing is slower than a mixer with all histories.
    fn beside(&self, model: &Model) -> Option<Arc<Model>> {
        if model.network().is_none() && model.histories() == Histories::All {
            return None;
        }
        match registry::slower_than(&registry::short(&model.hash)) {
            Some(slower) => self.registry.get(&slower).ok(),
            None => self.base_of(model),
        }
    }

    /// The model whose tables a model uses, if they are not its own.
    fn base_of(&self, model: &Model) -> Option<Arc<Model>> {
        let base = registry::short(&model.base()?);
        self.registry.get(&base).ok()
    }

    /// The file names of the models that are needed beside the embedded one of this name: those whose blocks it may leave.
    pub fn names_beside(name: &str) -> Vec<String> {
        let slower = registry::parse_name(name).and_then(|hash| registry::slower_than(&hash));
        let base = Codecs::embedded_file(name).and_then(Codecs::base_name);
        base.into_iter()
            .chain(slower.as_ref().map(file_name))
            .collect()
    }

    /// The file name of the model that the model in `file` needs as its base, if any.
    pub fn base_name(file: &[u8]) -> Option<String> {
        registry::base_name(file).as_ref().map(file_name)
    }

    /// Where to look for models that payloads name and the program does not carry.
    pub fn set_model_source(&self, source: ModelSource) {
        self.registry.set_source(source);
    }

    /// The contents of an embedded model by the name that its file has in a store.
    pub fn embedded_file(file_name: &str) -> Option<&'static [u8]> {
        registry::embedded_file(&registry::parse_name(file_name)?)
    }

    /// What is missing for decoding with the model of this name: nothing, the model itself, or its base.
    pub fn missing_model(&self, name: &[u8; 8]) -> Option<[u8; 8]> {
        self.registry.lacking(name)
    }

    /// The model that a file name stands for, if it is one that [`file_name`] gives.
    pub fn model_of_name(file_name: &str) -> Option<[u8; 8]> {
        registry::parse_name(file_name)
    }

    /// True if a file named after this model has these contents.
    pub fn is_model(name: &[u8; 8], file: &[u8]) -> bool {
        crate::model::hash_of(file)[..8] == *name
    }

    /// The file name of the model that encodes, if any.
    pub fn encoding_model_name(&self) -> Option<String> {
        self.encoder.as_ref().map(file_name)
    }

    /// What evaluates the model that encodes on this machine, for status pages.
    pub fn engine(&self) -> String {
        let tables = crate::model::predictor::engine();
        let model = self.encoder.as_ref().and_then(|m| self.registry.loaded(m));
        let device = model.and_then(|model| self.engines.device_name(&model));
        match device {
            Some(device) => format!("{tables}, {device}"),
            None => tables.to_owned(),
        }
    }

    /// Loads the model that encodes, so that the first reads need not wait for it.
    pub fn preload(&self) {
        if self.encoding_model().is_none() && self.encoder.is_some() {
            log::error!("the model that should encode cannot be loaded; using zstd instead");
        }
    }

    /// The model that encodes. One that cannot be loaded was logged, and counts as none.
    pub fn encoding_model(&self) -> Option<Arc<Model>> {
        self.registry.get(self.encoder.as_ref()?).ok()
    }

    /// The state after an anchor, remembered for the next extents of the same file.
    fn encoding_snapshot(&self, model: &Model, bytes: &[u8]) -> Arc<Snapshot> {
        let key = (model.hash, xxhash_rust::xxh3::xxh3_128(bytes));
        if let Some(snapshot) = self.snapshots.lock().get(&key) {
            return snapshot.clone();
        }
        let snapshot = Arc::new(Snapshot::after(model, bytes));
        self.snapshots.lock().put(key, snapshot.clone());
        snapshot
    }

    /// Encodes for staging: whatever is smaller of raw and LZ4, at the speed of LZ4.
    pub fn encode_fast(&self, raw: &[u8]) -> Encoded {
        fast::encode(raw)
    }

    /// Encodes for settling: the smallest payload that the policy allows, verified by decoding it unless
    /// the options say otherwise.
    pub fn encode(
        &self,
        raw: &[u8],
        options: &EncodeOptions,
        anchor: Option<&AnchorSource>,
    ) -> Result<Encoded> {
        chooser::encode(self, raw, options, anchor)
    }

    /// Whether what was encoded from `raw` is to be decoded and compared.
    fn verifies(&self, raw: &[u8], verify: Verify) -> bool {
        match verify {
            Verify::Full => true,
            Verify::Off => false,
            Verify::Sample => {
                self.distrusted.load(Relaxed)
                    || xxhash_rust::xxh3::xxh3_64(raw).is_multiple_of(SAMPLED)
            }
        }
    }

    /// How long reading a block takes. A model that cannot be loaded counts as one without a network.
    pub fn read_cost(&self, layout: &Layout) -> ReadCost {
        let network = || {
            let model = layout.model.as_ref();
            let model = model.and_then(|name| self.registry.get(name).ok());
            model.is_some_and(|model| model.network().is_some())
        };
        ReadCost {
            class: match layout.codec {
                CodecId::Raw | CodecId::Lz4 => 0,
                CodecId::Zstd => 1,
                CodecId::Model if network() => 3,
                CodecId::Model => 2,
            },
            group: layout
                .groups
                .iter()
                .map(|group| group.end - group.start)
                .max()
                .unwrap_or(0),
        }
    }

    /// Parses the header of a payload and checks it against the limits.
    pub fn open(&self, payload: &[u8]) -> Result<Layout> {
        payload::parse(payload)
    }

    /// Decodes one group. `sink` gets consecutive verified pieces until it returns false or the
    /// group ends. `snapshot` is the state after the anchor if `layout.anchor` names one.
    pub fn decode_group(
        &self,
        payload: &[u8],
        layout: &Layout,
        group: usize,
        snapshot: Option<&Snapshot>,
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<()> {
        check_group(layout, group, snapshot)?;
        let model = layout
            .model
            .as_ref()
            .map(|name| self.registry.get(name))
            .transpose()?;
        let body = &payload[layout.body..];
        match layout.codec {
            CodecId::Raw => {
                sink(body);
            }
            CodecId::Lz4 => {
                sink(&fast::decode(body, layout)?);
            }
            CodecId::Zstd => {
                sink(&zstd_codec::decode(body, layout, model.as_deref())?);
            }
            CodecId::Model => {
                let model = model.ok_or_else(|| CodecError::Damaged("no model is named".into()))?;
                match self.engines.of(&model) {
                    None => model_codec::decode(&model, payload, layout, group, snapshot, sink)?,
                    Some(Engines { evaluator, .. }) => {
                        let decoder = GroupDecoder::start(
                            &model,
                            &*evaluator.cpu,
                            payload,
                            layout,
                            group,
                            snapshot,
                        )?;
                        let alone = std::iter::once(Ok(Stream { decoder, sink }));
                        lockstep::decode_here(&*evaluator.cpu, 1, alone)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Decodes one group for `receiver`. Groups of models with a network are decoded in lanes, beside each
    /// other, after this has returned; all others on this thread.
    pub fn decode_for(
        &self,
        payload: Vec<u8>,
        layout: &Arc<Layout>,
        group: usize,
        snapshot: Option<Arc<Snapshot>>,
        mut receiver: Box<dyn Receiver>,
    ) {
        let (model, Engines { lanes, evaluator }) = match self.stepping(layout) {
            Ok(Some(found)) => found,
            Ok(None) => {
                let sink = &mut |piece: &[u8]| receiver.piece(piece);
                let result = self.decode_group(&payload, layout, group, snapshot.as_deref(), sink);
                return receiver.end(result);
            }
            Err(error) => return receiver.end(Err(error)),
        };
        if let Err(error) = check_group(layout, group, snapshot.as_deref()) {
            return receiver.end(Err(error));
        }
        let snapshot = snapshot.as_deref().cloned();
        let start = start_of((model, evaluator), payload, layout.clone(), group, snapshot);
        lanes.submit(start, receiver);
    }

    /// The model and its engines if a block is decoded step by step.
    fn stepping(&self, layout: &Layout) -> Result<Option<(Arc<Model>, Engines)>> {
        let (CodecId::Model, Some(name)) = (layout.codec, &layout.model) else {
            return Ok(None);
        };
        let model = self.registry.get(name)?;
        let engines = self.engines.of(&model);
        Ok(engines.map(|engines| (model, engines)))
    }

    /// Groups that wait for a lane.
    pub fn waiting(&self) -> usize {
        self.engines.waiting()
    }

    /// Decodes all groups of a payload of a model with a network: on the device beside everything else, on the
    /// processor here and now.
    fn decode_lockstep(
        &self,
        (model, engines): (&Arc<Model>, &Engines),
        payload: &[u8],
        layout: &Layout,
        snapshot: Option<&Snapshot>,
    ) -> Result<Vec<u8>> {
        let count = layout.groups.len();
        if engines.evaluator.device().is_some() {
            let payload: Arc<[u8]> = payload.into();
            let (layout, snapshot) = (Arc::new(layout.clone()), snapshot.cloned());
            let start = |group: usize| {
                let with = (model.clone(), engines.evaluator.clone());
                let (payload, layout) = (payload.clone(), layout.clone());
                start_of(with, payload, layout, group, snapshot.clone())
            };
            return engines.lanes.decode((0..count).map(start));
        }
        let mut groups: Vec<Vec<u8>> = vec![Vec::new(); count];
        let streams = groups.iter_mut().enumerate().map(|(group, bytes)| {
            let encoder = &*engines.evaluator.cpu;
            let decoder = GroupDecoder::start(model, encoder, payload, layout, group, snapshot)?;
            let sink = |span: &[u8]| {
                bytes.extend_from_slice(span);
                true
            };
            Ok(Stream { decoder, sink })
        });
        lockstep::decode_here(&*engines.evaluator.cpu, LOCKSTEP, streams)?;
        Ok(groups.concat())
    }

    /// Decodes a whole payload. `snapshot` as for [`Codecs::decode_group`].
    pub fn decode_all(&self, payload: &[u8], snapshot: Option<&Snapshot>) -> Result<Vec<u8>> {
        let layout = self.open(payload)?;
        if let Some((model, engines)) = self.stepping(&layout)? {
            check_snapshot(&layout, snapshot)?;
            return self.decode_lockstep((&model, &engines), payload, &layout, snapshot);
        }
        let mut raw = Vec::with_capacity(layout.raw_len as usize);
        for group in 0..layout.groups.len() {
            self.decode_group(payload, &layout, group, snapshot, &mut |piece| {
                raw.extend_from_slice(piece);
                true
            })?;
        }
        if raw.len() != layout.raw_len as usize {
            return Err(CodecError::Damaged(format!(
                "decodes to {} bytes instead of {}",
                raw.len(),
                layout.raw_len
            )));
        }
        Ok(raw)
    }

    /// The state after an anchor's bytes. All blocks with the same anchor and model may share it.
    pub fn snapshot(&self, layout: &Layout, anchor_bytes: &[u8]) -> Result<Arc<Snapshot>> {
        let name = layout.model.as_ref();
        let name = name.ok_or_else(|| CodecError::Damaged("no model is named".into()))?;
        let model = self.registry.get(name)?;
        Ok(Arc::new(Snapshot::after(&model, anchor_bytes)))
    }
}

/// What starts to decode a group when its turn has come in a lane.
fn start_of(
    (model, evaluator): (Arc<Model>, Arc<Evaluator>),
    payload: impl AsRef<[u8]> + Send + 'static,
    layout: Arc<Layout>,
    group: usize,
    snapshot: Option<Snapshot>,
) -> lanes::Start {
    Box::new(move || {
        let (encoder, payload) = (&*evaluator.cpu, payload.as_ref());
        GroupDecoder::start(&model, encoder, payload, &layout, group, snapshot.as_ref())
    })
}

fn check_group(layout: &Layout, group: usize, snapshot: Option<&Snapshot>) -> Result<()> {
    if group >= layout.groups.len() {
        return Err(CodecError::Damaged(format!("no group {group}")));
    }
    match layout.codec {
        CodecId::Model => check_snapshot(layout, snapshot),
        _ => Ok(()),
    }
}

/// A block has an anchor if and only if its groups start from a snapshot.
fn check_snapshot(layout: &Layout, snapshot: Option<&Snapshot>) -> Result<()> {
    match (&layout.anchor, snapshot) {
        (Some(anchor), None) => Err(CodecError::NeedsAnchor(anchor.block)),
        (None, Some(_)) => Err(CodecError::Damaged(
            "a snapshot for a block without anchor".into(),
        )),
        _ => Ok(()),
    }
}
