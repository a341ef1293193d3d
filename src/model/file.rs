//! The model file: sections of compressed, checksummed data. docs/format.md has the byte tables.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::adaptive::Histories;
use super::bytecode::ByteCode;
use super::contexts::CONTEXTS;
use super::latents::LatentPrior;
use super::mixer::{RATE_MAX, Rates, WEIGHT_MAX};
use super::predictor::{Adaptation, Params};
use super::runs::Runs;
use super::tables::{BUCKET, Line, Tables, WAYS};
use super::tokenizer::Tokenizer;
use super::{Model, ModelError, ModelHash, file_network};

const MAGIC: &[u8; 8] = b"S2SMODEL";
/// Version of models that have tables of their own, and of models with a network.
const VERSION: u32 = 1;
const NETWORK_VERSION: u32 = 2;
/// Version of models that have a mixer of their own for the tables of a base.
const MIXER_VERSION: u32 = 3;
/// Version of models whose tables know bytes by a code of their own.
const CODE_VERSION: u32 = 4;
/// Version of models that have a mixer of their own and runs.
const RUNS_VERSION: u32 = 5;
/// The sections, in their order.
const TAGS: [&[u8; 4]; 6] = [b"info", b"tokn", b"dict", b"logi", b"parm", b"tabl"];
const CODE_TAGS: [&[u8; 4]; 7] = [
    b"info", b"tokn", b"dict", b"code", b"logi", b"parm", b"tabl",
];
const NETWORK_TAGS: [&[u8; 4]; 6] = [b"info", b"base", b"tokn", b"parm", b"nete", b"netw"];
const MIXER_TAGS: [&[u8; 4]; 4] = [b"info", b"base", b"hist", b"parm"];
const RUNS_TAGS: [&[u8; 4]; 5] = [b"info", b"base", b"hist", b"parm", b"runs"];
/// Level at which sections are compressed: models are made once and shipped.
const LEVEL: i32 = 19;
/// Most bytes of a section when unpacked; what a damaged header can make us allocate.
const SECTION_MAX: usize = 1 << 30;

/// What a model says about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub name: String,
    /// Experts that the model has: "tables", "match", "adaptive", "network".
    pub experts: Vec<String>,
    /// Bytes it was trained on.
    pub trained_bytes: u64,
    /// Cost of training data that it was not trained on, in bits per byte.
    pub held_out_bits_per_byte: f64,
    /// Rates of adaptation: mixer layers one and two, histories, curves.
    pub rates: [i32; 4],
}

/// The hash that names a model file.
pub fn hash_of(file: &[u8]) -> ModelHash {
    let mut hash = ModelHash::default();
    hash.copy_from_slice(&blake3::hash(file).as_bytes()[..16]);
    hash
}

/// A hash as it is shown and named: two hexadecimal digits for each byte.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn damaged(what: impl Into<String>) -> ModelError {
    ModelError::Damaged(what.into())
}

pub(super) fn put_section(
    file: &mut Vec<u8>,
    tag: &[u8; 4],
    raw: &[u8],
    level: i32,
) -> Result<(), ModelError> {
    let packed = zstd::bulk::compress(raw, level).map_err(|e| damaged(e.to_string()))?;
    file.extend_from_slice(tag);
    file.extend_from_slice(&(raw.len() as u64).to_le_bytes());
    file.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    file.extend_from_slice(&crc32c::crc32c(&packed).to_le_bytes());
    file.extend_from_slice(&packed);
    Ok(())
}

pub(super) struct Sections<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Sections<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], ModelError> {
        if len > self.rest.len() {
            return Err(damaged("cut short"));
        }
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn number(&mut self) -> Result<usize, ModelError> {
        let bytes = self.take(8)?.try_into().map_err(|_| damaged("number"))?;
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| damaged("number too large"))
    }

    /// Mixer weights, which are checked.
    pub(super) fn weights(&mut self, weights: &mut [i32]) -> Result<(), ModelError> {
        let words = self.take(4 * weights.len())?.as_chunks::<4>().0;
        for (weight, &word) in weights.iter_mut().zip(words) {
            *weight = i32::from_le_bytes(word);
            if !(-WEIGHT_MAX..=WEIGHT_MAX).contains(weight) {
                return Err(damaged("a weight is out of range"));
            }
        }
        Ok(())
    }

    /// Probabilities, of which any is good.
    pub(super) fn probabilities(&mut self, probabilities: &mut [u16]) -> Result<(), ModelError> {
        let words = self.take(2 * probabilities.len())?.as_chunks::<2>().0;
        for (p, &word) in probabilities.iter_mut().zip(words) {
            *p = u16::from_le_bytes(word);
        }
        Ok(())
    }

    /// Err unless everything has been read.
    pub(super) fn end(&self) -> Result<(), ModelError> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(damaged("parameters are too long")),
        }
    }

    /// Unpacks the next section, which must have this tag.
    pub(super) fn section(&mut self, tag: &[u8; 4]) -> Result<Vec<u8>, ModelError> {
        let name = String::from_utf8_lossy(tag).into_owned();
        if self.take(4)? != tag {
            return Err(damaged(format!("section {name} is missing")));
        }
        let (raw_len, packed_len) = (self.number()?, self.number()?);
        let check = self.take(4)?;
        let packed = self.take(packed_len)?;
        if crc32c::crc32c(packed).to_le_bytes() != check {
            return Err(damaged(format!("checksum of section {name}")));
        }
        if raw_len > SECTION_MAX {
            return Err(damaged(format!("section {name} is too large")));
        }
        let raw = zstd::bulk::decompress(packed, raw_len)
            .map_err(|e| damaged(format!("section {name}: {e}")))?;
        if raw.len() != raw_len {
            Err(damaged(format!("length of section {name}")))
        } else {
            Ok(raw)
        }
    }
}

/// A section's tag and unpacked bytes.
pub(super) type Section = ([u8; 4], Vec<u8>);

/// The sections of a good model file, for fuzzing.
pub(super) fn split_sections(file: &[u8]) -> Result<Vec<Section>, ModelError> {
    let (version, mut sections) = open(file)?;
    let tags: &[_] = match version {
        VERSION => &TAGS,
        NETWORK_VERSION => &NETWORK_TAGS,
        MIXER_VERSION => &MIXER_TAGS,
        RUNS_VERSION => &RUNS_TAGS,
        _ => &CODE_TAGS,
    };
    let mut all: Vec<Section> = tags
        .iter()
        .map(|tag| Ok((**tag, sections.section(tag)?)))
        .collect::<Result<_, ModelError>>()?;
    if !sections.rest.is_empty() {
        all.push((*b"late", sections.section(b"late")?));
    }
    Ok(all)
}

/// The version and the sections of a model file.
fn open(file: &[u8]) -> Result<(u32, Sections<'_>), ModelError> {
    if file.len() < 12 || &file[..8] != MAGIC {
        return Err(ModelError::NotAModel);
    }
    let found = u32::from_le_bytes([file[8], file[9], file[10], file[11]]);
    if !(VERSION..=RUNS_VERSION).contains(&found) {
        return Err(ModelError::Version {
            found,
            known: RUNS_VERSION,
        });
    }
    Ok((found, Sections { rest: &file[12..] }))
}

/// The base that the model in this file names, if any.
///
/// # Errors
/// If it is not a model file, or its beginning is damaged.
pub fn base_of(file: &[u8]) -> Result<Option<ModelHash>, ModelError> {
    let (version, mut sections) = open(file)?;
    if [VERSION, CODE_VERSION].contains(&version) {
        return Ok(None);
    }
    sections.section(b"info")?;
    base_from(&sections.section(b"base")?)
}

/// A model file of these sections, good or not.
pub(super) fn join_sections(sections: &[Section]) -> Result<Vec<u8>, ModelError> {
    let mut file = MAGIC.to_vec();
    let has = |wanted: &[u8; 4]| sections.iter().any(|(tag, _)| tag == wanted);
    // the rarest section first
    let versions = [
        (b"netw", NETWORK_VERSION),
        (b"runs", RUNS_VERSION),
        (b"hist", MIXER_VERSION),
        (b"code", CODE_VERSION),
    ];
    let version = versions.iter().find(|(tag, _)| has(tag));
    let version = version.map_or(VERSION, |&(_, version)| version);
    file.extend_from_slice(&version.to_le_bytes());
    for (tag, raw) in sections {
        put_section(&mut file, tag, raw, 1)?;
    }
    Ok(file)
}

/// Table lines as planes: all check bytes, then the slots of node 1, of node 2, and so on. A slot has a
/// byte only if its parent was trained, because it is never trained otherwise. The lengths of the planes
/// come first, so that one pass over the lines can read them all.
fn planes_of(tables: &Tables) -> Vec<u8> {
    let buckets = || tables.lines().iter().flatten();
    let plane = |node: usize| {
        let kept = buckets().filter(move |bucket| bucket[node / 2] != 0);
        kept.map(move |bucket| bucket[node]).collect::<Vec<u8>>()
    };
    let planes: Vec<Vec<u8>> = (1..BUCKET).map(plane).collect();
    let lines = tables.line_counts().into_iter();
    let mut out = Vec::new();
    for number in lines.chain(planes.iter().map(Vec::len)) {
        out.extend_from_slice(&(number as u64).to_le_bytes());
    }
    out.extend(buckets().map(|bucket| bucket[0]));
    out.extend(planes.iter().flatten());
    out
}

fn tables_from(section: &[u8]) -> Result<Tables, ModelError> {
    let mut reader = Sections { rest: section };
    let mut counts = [0usize; CONTEXTS];
    let mut lengths = [0usize; BUCKET - 1];
    for number in counts.iter_mut().chain(&mut lengths) {
        *number = reader.number()?;
    }
    let total = counts
        .iter()
        .try_fold(0usize, |sum, &count| sum.checked_add(count));
    let lines = total.filter(|&lines| lines <= SECTION_MAX / size_of::<Line>());
    let lines = lines.ok_or_else(|| damaged("tables are too large"))?;
    let checks = reader.take(lines * WAYS)?;
    let mut planes = [&[] as &[u8]; BUCKET - 1];
    for (plane, length) in planes.iter_mut().zip(lengths) {
        *plane = reader.take(length)?;
    }
    let mut tables = Tables::with_lines(&counts);
    let buckets = tables.lines_mut().iter_mut().flatten();
    for (bucket, &check) in buckets.zip(checks).filter(|(_, check)| **check != 0) {
        bucket[0] = check;
        for node in 1..BUCKET {
            if bucket[node / 2] != 0 {
                let (&slot, rest) = planes[node - 1]
                    .split_first()
                    .ok_or_else(|| damaged("a plane is cut short"))?;
                bucket[node] = slot;
                planes[node - 1] = rest;
            }
        }
    }
    if reader.rest.is_empty() && planes.iter().all(|plane| plane.is_empty()) {
        Ok(tables)
    } else {
        Err(damaged("tables are too long"))
    }
}

fn params_bytes(params: &Params) -> Vec<u8> {
    let mut out = Vec::new();
    let weights = &params.weights;
    put_weights(&mut out, weights.first.as_flattened());
    put_weights(&mut out, weights.last.as_flattened());
    put_probabilities(&mut out, params.histories.as_flattened());
    put_probabilities(&mut out, params.matches.as_flattened());
    put_probabilities(&mut out, params.curves.as_flattened());
    out
}

fn params_from(bytes: &[u8]) -> Result<Params, ModelError> {
    let mut params = Params::default();
    let mut reader = Sections { rest: bytes };
    reader.weights(params.weights.first.as_flattened_mut())?;
    reader.weights(params.weights.last.as_flattened_mut())?;
    reader.probabilities(params.histories.as_flattened_mut())?;
    reader.probabilities(params.matches.as_flattened_mut())?;
    reader.probabilities(params.curves.as_flattened_mut())?;
    reader.end()?;
    Ok(params)
}

pub(super) fn put_weights(out: &mut Vec<u8>, weights: &[i32]) {
    out.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
}

pub(super) fn put_probabilities(out: &mut Vec<u8>, probabilities: &[u16]) {
    out.extend(probabilities.iter().flat_map(|p| p.to_le_bytes()));
}

pub(super) fn adaptation_from(rates: [i32; 4]) -> Result<Adaptation, ModelError> {
    let mixer = Rates {
        first: rates[0],
        last: rates[1],
    };
    let in_range = (0..=RATE_MAX).contains(&rates[0])
        && (0..=RATE_MAX).contains(&rates[1])
        && (1..=15).contains(&rates[2])
        && (1..=15).contains(&rates[3]);
    if !in_range {
        return Err(damaged("a rate is out of range"));
    }
    Ok(Adaptation {
        mixer,
        histories: rates[2] as u32,
        curves: rates[3] as u32,
        least_error: 0,
        runs: None,
    })
}

/// The section `hist`: the contexts with histories, and the least error that the mixer learns from.
fn histories_from(section: &[u8]) -> Result<(Histories, u32), ModelError> {
    let &[a, b, c, d] = section else {
        return Err(damaged("histories have the wrong size"));
    };
    let histories = Histories::from_mask(u16::from_le_bytes([a, b]));
    let histories = histories.ok_or_else(|| damaged("histories of unknown contexts"))?;
    Ok((histories, u32::from(u16::from_le_bytes([c, d]))))
}

fn rates_of(adaptation: Adaptation) -> [i32; 4] {
    let Rates { first, last } = adaptation.mixer;
    [
        first,
        last,
        adaptation.histories as i32,
        adaptation.curves as i32,
    ]
}

impl Model {
    /// A model of its parts; [`Model::to_bytes`] makes a file of it.
    pub fn from_parts(
        mut info: ModelInfo,
        tokenizer: Tokenizer,
        dictionary: Vec<u8>,
        (code, tables): (ByteCode, Tables),
        logits: [i16; 256],
        params: Params,
        adaptation: Adaptation,
    ) -> Model {
        info.rates = rates_of(adaptation);
        let hash = ModelHash::default();
        Model {
            hash,
            info,
            tokenizer,
            dictionary: Arc::new(dictionary),
            tables: Arc::new(tables),
            code: Arc::new(code),
            logits,
            params,
            adaptation,
            histories: Histories::All,
            base: None,
            network: None,
            base_params: None,
        }
    }

    /// The same tables and vocabulary with other parameters, under another name.
    pub fn with_params(&self, name: String, params: Params, adaptation: Adaptation) -> Model {
        Model {
            hash: ModelHash::default(),
            info: ModelInfo {
                name,
                rates: rates_of(adaptation),
                ..self.info.clone()
            },
            tokenizer: self.tokenizer.clone(),
            dictionary: self.dictionary.clone(),
            tables: self.tables.clone(),
            code: self.code.clone(),
            logits: self.logits,
            params,
            adaptation,
            histories: Histories::All,
            base: None,
            network: None,
            base_params: None,
        }
    }

    /// The same tables and vocabulary with a mixer of its own for these histories, in a model that names this one as its
    /// base. It has untrained parameters.
    ///
    /// # Errors
    /// If this model has a base itself.
    pub fn with_mixer_for(
        &self,
        name: String,
        histories: Histories,
        adaptation: Adaptation,
    ) -> Result<Model, ModelError> {
        if self.base.is_some() || self.network.is_some() {
            return Err(damaged("a base cannot have a base itself"));
        }
        Ok(Model {
            histories,
            base: Some(self.hash),
            ..self.with_params(name, Params::untrained(&adaptation), adaptation)
        })
    }

    /// The model as a file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        self.packed(LEVEL)
    }

    /// The model as a file with its tables compressed at another level. For tests, which take long at the usual one.
    #[doc(hidden)]
    pub fn packed(&self, level: i32) -> Result<Vec<u8>, ModelError> {
        let mut file = MAGIC.to_vec();
        let info = serde_json::to_vec(&self.info).map_err(|e| damaged(e.to_string()))?;
        let vocabulary = self.tokenizer.to_json()?;
        let params = params_bytes(&self.params);
        if let Some(expert) = &self.network {
            let (learned, network) = self.network_sections(expert)?;
            let base = self.base.as_ref().map_or(&[] as &[u8], |base| base);
            let params = if self.has_history() { params } else { vec![] };
            file.extend_from_slice(&NETWORK_VERSION.to_le_bytes());
            put_section(&mut file, b"info", &info, LEVEL)?;
            put_section(&mut file, b"base", base, LEVEL)?;
            put_section(&mut file, b"tokn", &vocabulary, LEVEL)?;
            put_section(&mut file, b"parm", &params, LEVEL)?;
            put_section(&mut file, b"nete", &learned, LEVEL)?;
            put_section(&mut file, b"netw", &network, LEVEL)?;
            if let Some(prior) = &expert.prior {
                put_section(&mut file, b"late", &prior.to_bytes(), LEVEL)?;
            }
            return Ok(file);
        }
        if let Some(base) = &self.base {
            let mut histories = self.histories.mask().to_le_bytes().to_vec();
            histories.extend((self.adaptation.least_error as u16).to_le_bytes());
            let runs = self.adaptation.runs;
            let version = runs.map_or(MIXER_VERSION, |_| RUNS_VERSION);
            file.extend_from_slice(&version.to_le_bytes());
            put_section(&mut file, b"info", &info, LEVEL)?;
            put_section(&mut file, b"base", base, LEVEL)?;
            put_section(&mut file, b"hist", &histories, LEVEL)?;
            put_section(&mut file, b"parm", &params, LEVEL)?;
            if let Some(runs) = runs {
                put_section(&mut file, b"runs", &runs.to_bytes(&self.params.runs), LEVEL)?;
            }
            return Ok(file);
        }
        let version = match self.code.is_plain() {
            true => VERSION,
            false => CODE_VERSION,
        };
        file.extend_from_slice(&version.to_le_bytes());
        put_section(&mut file, b"info", &info, LEVEL)?;
        put_section(&mut file, b"tokn", &vocabulary, LEVEL)?;
        put_section(&mut file, b"dict", &self.dictionary, LEVEL)?;
        if version == CODE_VERSION {
            let (order, lengths) = self.code.parts();
            put_section(&mut file, b"code", &[order, lengths].concat(), LEVEL)?;
        }
        let logits: Vec<u8> = self.logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        put_section(&mut file, b"logi", &logits, LEVEL)?;
        put_section(&mut file, b"parm", &params, LEVEL)?;
        put_section(&mut file, b"tabl", &planes_of(&self.tables), level)?;
        Ok(file)
    }

    /// Reads the file of a model that needs no base. Every value is checked against the bounds that
    /// exactness rests on.
    pub fn from_bytes(file: &[u8]) -> Result<Model, ModelError> {
        Model::from_bytes_and(file, &|_| None)
    }

    /// [`Model::from_bytes`] for any model; `bases` finds the base that it names.
    pub fn from_bytes_and(
        file: &[u8],
        bases: &dyn Fn(&ModelHash) -> Option<Arc<Model>>,
    ) -> Result<Model, ModelError> {
        let (version, mut sections) = open(file)?;
        let info: ModelInfo = serde_json::from_slice(&sections.section(b"info")?)
            .map_err(|e| damaged(format!("info: {e}")))?;
        let mut model = match version {
            VERSION | CODE_VERSION => {
                Model::with_tables(info, &mut sections, version == CODE_VERSION)?
            }
            MIXER_VERSION => Model::with_mixer(info, &mut sections, bases, false)?,
            RUNS_VERSION => Model::with_mixer(info, &mut sections, bases, true)?,
            _ => Model::read_network(info, &mut sections, bases)?,
        };
        model.hash = hash_of(file);
        Ok(model)
    }

    fn with_tables(
        info: ModelInfo,
        sections: &mut Sections,
        has_code: bool,
    ) -> Result<Model, ModelError> {
        let tokenizer = Tokenizer::from_json(&sections.section(b"tokn")?)?;
        let dictionary = sections.section(b"dict")?;
        let code = match has_code {
            true => code_from(&sections.section(b"code")?)?,
            false => ByteCode::plain(),
        };
        let logits = logits_from(&sections.section(b"logi")?)?;
        let params = params_from(&sections.section(b"parm")?)?;
        let tables = tables_from(&sections.section(b"tabl")?)?;
        let adaptation = adaptation_from(info.rates)?;
        Ok(Model {
            hash: ModelHash::default(),
            info,
            tokenizer,
            dictionary: Arc::new(dictionary),
            tables: Arc::new(tables),
            code: Arc::new(code),
            logits,
            params,
            adaptation,
            histories: Histories::All,
            base: None,
            network: None,
            base_params: None,
        })
    }

    fn with_mixer(
        info: ModelInfo,
        sections: &mut Sections,
        bases: &dyn Fn(&ModelHash) -> Option<Arc<Model>>,
        has_runs: bool,
    ) -> Result<Model, ModelError> {
        let base = base_from(&sections.section(b"base")?)?;
        let base = base.ok_or_else(|| damaged("a mixer without tables"))?;
        let base = find_base(&base, bases)?;
        let (histories, least_error) = histories_from(&sections.section(b"hist")?)?;
        let mut params = params_from(&sections.section(b"parm")?)?;
        let mut runs = None;
        if has_runs {
            let (found, probabilities) = Runs::from_bytes(&sections.section(b"runs")?)?;
            (runs, params.runs) = (Some(found), probabilities);
        }
        sections.end()?;
        let adaptation = Adaptation {
            least_error,
            runs,
            ..adaptation_from(info.rates)?
        };
        Ok(Model {
            info: info.clone(),
            histories,
            base: Some(base.hash),
            ..base.with_params(info.name, params, adaptation)
        })
    }

    fn read_network(
        info: ModelInfo,
        sections: &mut Sections,
        bases: &dyn Fn(&ModelHash) -> Option<Arc<Model>>,
    ) -> Result<Model, ModelError> {
        let base = base_from(&sections.section(b"base")?)?;
        let base = base.map(|hash| find_base(&hash, bases)).transpose()?;
        base.as_deref().map(Model::check_joinable).transpose()?;
        let tokenizer = Tokenizer::from_json(&sections.section(b"tokn")?)?;
        let params = sections.section(b"parm")?;
        let params = match &base {
            Some(_) => params_from(&params)?,
            None if params.is_empty() => Params::default(),
            None => return Err(damaged("parameters of tables that are not there")),
        };
        let learned = sections.section(b"nete")?;
        let network = sections.section(b"netw")?;
        let adaptation = adaptation_from(info.rates)?;
        let (mut expert, params) =
            file_network::read(&tokenizer, params, base.is_some(), &learned, &network)?;
        let has_encoder = expert.network.config().max_latents > 0;
        let prior = has_encoder.then(|| LatentPrior::from_bytes(&sections.section(b"late")?));
        expert.set_prior(prior.transpose()?)?;
        Ok(Model::assemble(
            info,
            tokenizer,
            base.as_deref(),
            params,
            adaptation,
            expert,
        ))
    }
}

fn base_from(section: &[u8]) -> Result<Option<ModelHash>, ModelError> {
    match section.len() {
        0 => Ok(None),
        _ => ModelHash::try_from(section)
            .map(Some)
            .map_err(|_| damaged("the name of the base has the wrong length")),
    }
}

/// A base has tables of its own, so there are no chains of bases.
fn find_base(
    hash: &ModelHash,
    bases: &dyn Fn(&ModelHash) -> Option<Arc<Model>>,
) -> Result<Arc<Model>, ModelError> {
    let name = || hex(hash);
    let base = bases(hash).ok_or_else(|| ModelError::NeedsBase(name()))?;
    match base.hash == *hash && base.base.is_none() && base.network.is_none() {
        true => Ok(base),
        false => Err(damaged(
            "the base is another model, or has a base or a network itself",
        )),
    }
}

/// The section `code`: the bytes in the order of their codewords, and the lengths of these.
fn code_from(section: &[u8]) -> Result<ByteCode, ModelError> {
    let (&[order, lengths], []) = section.as_chunks::<256>() else {
        return Err(damaged("the code has the wrong size"));
    };
    let code = ByteCode::new(&order, &lengths)?;
    match code.is_plain() {
        true => Err(damaged("a code of bytes that says nothing")),
        false => Ok(code),
    }
}

fn logits_from(bytes: &[u8]) -> Result<[i16; 256], ModelError> {
    let mut logits = [0i16; 256];
    if bytes.len() != 2 * logits.len() {
        return Err(damaged("logits have the wrong size"));
    }
    for (logit, pair) in logits.iter_mut().zip(bytes.chunks_exact(2)) {
        *logit = i16::from_le_bytes([pair[0], pair[1]]);
        if i32::from(*logit).abs() > super::logistic::STRETCH_MAX {
            return Err(damaged("a logit is out of range"));
        }
    }
    if logits[0] != 0 {
        return Err(damaged(
            "a slot that was never trained must be worth nothing",
        ));
    }
    Ok(logits)
}
