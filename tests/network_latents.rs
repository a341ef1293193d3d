//! Blocks with latents: what the encoder of the network reads is stored with the block, for all groups or for
//! each, and every engine decodes with it.

#[path = "common/moment.rs"]
mod moment;
#[path = "common/network_model.rs"]
mod network_model;
#[path = "common/network.rs"]
mod networks;
#[path = "common/random.rs"]
mod random;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use candle_core::Device;
use proptest::prelude::*;
use random::Random;
use s2sfs::codec::{
    AnchorSource, CodecId, Codecs, EncodeOptions, Grouping, LatentWriter, Latents, Policy,
};
use s2sfs::model::latents::{LatentCounts, LatentPrior};
use s2sfs::model::network::reference::Reference;
use s2sfs::model::network::simd::{Kernel, Simd};
use s2sfs::model::{Model, ModelError, NetworkParts};
use s2sfs::train::corpus::Random as TrainingRandom;
use s2sfs::train::network::evaluate::Computer;
use s2sfs::train::network::export::export;
use s2sfs::train::network::float::{FloatNetwork, Sample};

const ALPHABET: usize = 20;
const MOST: usize = 6;
const TEXT: &str = network_model::TEXT;

fn prior(alphabet: usize, most: usize) -> LatentPrior {
    LatentPrior::new(&LatentCounts::new(alphabet, most).unwrap())
}

fn untrained(base: Option<&Model>, prior: Option<LatentPrior>) -> Result<Model, ModelError> {
    let (network, tokenizer) = network_model::with_latents(TEXT, (400, 16), (ALPHABET, MOST), 5);
    let adaptation = base_model().fresh(0).adaptation;
    let parts = NetworkParts {
        name: "latents".into(),
        tokenizer,
        network: Arc::new(network),
        prior,
        adaptation,
    };
    Model::with_network(base, parts)
}

fn base_model() -> &'static Arc<Model> {
    static BASE: OnceLock<Arc<Model>> = OnceLock::new();
    BASE.get_or_init(|| Arc::new(Model::from_bytes(network_model::base_file()).unwrap()))
}

/// A model with tables.
fn file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let model = untrained(Some(base_model()), Some(prior(ALPHABET, MOST))).unwrap();
        model.to_bytes().unwrap()
    })
}

fn codecs_of(file: &[u8]) -> Codecs {
    Codecs::with_model_and_base(file, Some(network_model::base_file())).unwrap()
}

fn codecs() -> &'static Codecs {
    static CODECS: OnceLock<Codecs> = OnceLock::new();
    CODECS.get_or_init(|| codecs_of(file()))
}

/// The network alone: nothing but latents and tokens decides what is written.
fn alone() -> &'static Codecs {
    static CODECS: OnceLock<Codecs> = OnceLock::new();
    CODECS.get_or_init(|| {
        let model = untrained(None, Some(prior(ALPHABET, MOST))).unwrap();
        Codecs::with_model(&model.to_bytes().unwrap()).unwrap()
    })
}

fn encode(codecs: &Codecs, raw: &[u8], group: usize, latents: &Latents) -> Vec<u8> {
    let encoded = codecs.encode_by_model(raw, group, None, Some(latents));
    encoded.unwrap().0.payload
}

fn shared(latents: &[u16]) -> Latents {
    Latents {
        shared: latents.to_vec(),
        own: vec![],
    }
}

/// Different latents for each group of a block, and one group without any.
fn own(groups: usize) -> Latents {
    let string = |group: usize| {
        (0..group % 4)
            .map(|i| (group * 3 + i) as u16 % 20)
            .collect()
    };
    Latents {
        shared: vec![7, 1],
        own: (0..groups).map(string).collect(),
    }
}

fn groups_of(codecs: &Codecs, raw: &[u8], group: usize) -> usize {
    let payload = encode(codecs, raw, group, &shared(&[]));
    codecs.open(&payload).unwrap().groups.len()
}

#[test]
fn blocks_with_latents_come_back_whole_and_group_by_group() {
    let raw = &TEXT.as_bytes()[..9000];
    for codecs in [codecs(), alone()] {
        let count = groups_of(codecs, raw, 1000);
        for latents in [shared(&[3]), shared(&[0, 19, 4, 4, 4, 9]), own(count)] {
            let payload = encode(codecs, raw, 1000, &latents);
            assert_eq!(codecs.decode_all(&payload, None).unwrap(), raw);
            let layout = codecs.open(&payload).unwrap();
            for group in (0..count).rev() {
                let range = &layout.groups[group];
                let mut bytes = Vec::new();
                let sink = &mut |piece: &[u8]| {
                    bytes.extend_from_slice(piece);
                    true
                };
                codecs
                    .decode_group(&payload, &layout, group, None, sink)
                    .unwrap();
                assert_eq!(bytes, raw[range.start as usize..range.end as usize]);
            }
        }
    }
}

/// A model with tables whose mixer is that of the tables, so that what histories say counts.
fn mixing(prior: Option<LatentPrior>) -> Model {
    let mut model = untrained(Some(base_model()), prior).unwrap();
    let (mut params, known) = (model.fresh(0).params, base_model().fresh(0).params);
    params.weights.first = known.weights.first;
    params.weights.last = known.weights.last;
    (params.histories, params.matches) = (known.histories, known.matches);
    model.set_params(params);
    model
}

/// A model with tables whose latents stand for these letters, which TEXT does not have in this order.
const STRANGE: &[u8; MOST] = b"QXZJ~^";

fn standing_for_letters() -> Codecs {
    let (_, tokenizer) = network_model::with_latents(TEXT, (400, 16), (ALPHABET, MOST), 5);
    let tokens = tokenizer.token_ids(STRANGE).unwrap();
    assert_eq!(tokens.len(), MOST, "letters are tokens of their own");
    let glosses = (0..ALPHABET).map(|latent| tokens[latent % MOST]).collect();
    let prior = prior(ALPHABET, MOST).with_glosses(glosses).unwrap();
    let file = mixing(Some(prior.clone())).to_bytes().unwrap();
    let find = |_: &_| Some(base_model().clone());
    let again = Model::from_bytes_and(&file, &find).unwrap();
    assert_eq!(again.expert().unwrap().prior, Some(prior));
    codecs_of(&file)
}

#[test]
fn what_latents_stand_for_is_known_before_a_group_begins() {
    let told = standing_for_letters();
    let strange = |from: usize| STRANGE.iter().cycle().skip(from).take(MOST);
    let raw: Vec<u8> = (0..40)
        .flat_map(|i| strange(i % 3).chain(b". "))
        .copied()
        .collect();
    let latents = shared(&[0, 1, 2, 3, 4, 5]);
    let len = |codecs: &Codecs| {
        let coded = codecs.encode_by_model(&raw, Grouping::Tokens(8), None, Some(&latents));
        coded.unwrap().0.payload.len()
    };
    let plain = codecs_of(&mixing(Some(prior(ALPHABET, MOST))).to_bytes().unwrap());
    let (with, without) = (len(&told), len(&plain));
    assert!(
        with + 40 < without,
        "{with} {without}: a byte in each group"
    );
    // groups alone and together, with latents of their own and after an anchor
    let anchor = AnchorSource {
        block: 9,
        start: 0,
        bytes: TEXT.as_bytes()[..3000].into(),
    };
    let text = [&raw[..100], &TEXT.as_bytes()[3000..6000]].concat();
    let groups = groups_of(&told, &text, 300);
    for latents in [latents, own(groups)] {
        for anchor in [None, Some(&anchor)] {
            let coded = told.encode_by_model(&text, 300, anchor, Some(&latents));
            let (encoded, snapshot) = coded.unwrap();
            let decoded = told.decode_all(&encoded.payload, snapshot.as_deref());
            assert_eq!(decoded.unwrap(), text);
            let other = plain.encode_by_model(&text, 300, anchor, Some(&latents));
            assert_ne!(other.unwrap().0.payload[11..], encoded.payload[11..]);
        }
    }
}

#[test]
fn latents_that_stand_for_tokens_that_there_are_not_are_refused() {
    for (token, good) in [(399, true), (400, false), (u16::MAX, false)] {
        let prior = prior(ALPHABET, MOST).with_glosses(vec![token; ALPHABET]);
        assert_eq!(untrained(None, prior.ok()).is_ok(), good, "{token}");
    }
}

#[test]
fn latents_change_what_the_network_says_and_nothing_costs_nothing() {
    let raw = &TEXT.as_bytes()[..4000];
    let none = encode(alone(), raw, 1000, &shared(&[]));
    let plain = alone().encode_by_model(raw, 1000, None, None).unwrap();
    assert_eq!(none, plain.0.payload);
    let groups = groups_of(alone(), raw, 1000);
    let empty = Latents {
        shared: vec![],
        own: vec![vec![]; groups],
    };
    assert_eq!(encode(alone(), raw, 1000, &empty), none);
    let mut written = vec![none, encode(alone(), raw, 1000, &own(groups))];
    for latents in [[1, 2], [2, 1], [1, 3]] {
        written.push(encode(alone(), raw, 1000, &shared(&latents)));
    }
    // the codes of the groups differ, not only the header
    let mut codes: Vec<&[u8]> = written.iter().map(|p| &p[p.len() - 200..]).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), written.len());
}

#[test]
fn every_engine_writes_the_same_and_reads_the_others() {
    let raw = &TEXT.as_bytes()[2000..6000];
    let latents = own(groups_of(codecs(), raw, 700));
    let payload = encode(codecs(), raw, 700, &latents);
    let find = |_: &_| Some(base_model().clone());
    let model = Model::from_bytes_and(file(), &find).unwrap();
    let network = &model.expert().unwrap().network;
    let on = |engine: s2sfs::codec::SharedEngine| {
        let codecs = codecs_of(file());
        codecs.set_engine("test", engine);
        codecs
    };
    let reference = Reference::new(network.clone(), &[Device::Cpu]).unwrap();
    let mut all = vec![on(Arc::new(reference))];
    for kernel in Kernel::available() {
        all.push(on(Arc::new(
            Simd::new(network.clone(), 2).with_kernel(kernel),
        )));
    }
    for codecs in &all {
        assert_eq!(encode(codecs, raw, 700, &latents), payload);
        assert_eq!(codecs.decode_all(&payload, None).unwrap(), raw);
    }
}

/// Proposes the same latents for every block, and counts the blocks.
#[derive(Debug)]
struct Proposals(Vec<Latents>, AtomicUsize);

impl LatentWriter for Proposals {
    fn write(&self, groups: &[Vec<u16>]) -> Result<Vec<Latents>, String> {
        assert!(groups.iter().all(|tokens| !tokens.is_empty()));
        self.1.fetch_add(1, Relaxed);
        Ok(self.0.clone())
    }

    fn sizes(&self) -> [usize; 3] {
        [400, ALPHABET, MOST]
    }
}

/// Bytes of the texts that latents of a trained network name, and what they are made of.
const NAMED: usize = 96;
const LETTERS: &[u8; 16] = b"QXZJ~^%$#@&+=?!;";

/// Letters at equal distances around the circle: only who knows which text it is knows what follows a letter.
fn named(text: usize) -> Vec<u8> {
    let letter = |at: usize| LETTERS[at * (2 * text + 1) % LETTERS.len()];
    (0..NAMED).map(letter).collect()
}

/// A model, the network alone, that has learned for a moment that latent k names text k. It sees one token, so
/// without latents it cannot tell texts apart.
fn model_that_knows(texts: usize) -> Vec<u8> {
    let (network, tokenizer) = network_model::with_latents(TEXT, (400, 16), (ALPHABET, MOST), 5);
    let mut config = network.config().clone();
    config.window = 1;
    let tokens: Vec<Vec<u16>> = (0..texts)
        .map(|text| tokenizer.token_ids(&named(text)).unwrap())
        .collect();
    assert!(tokens.iter().all(|tokens| tokens.len() == NAMED));
    let names: Vec<[u16; 1]> = (0..texts).map(|text| [text as u16]).collect();
    let pairs = tokens.iter().zip(&names);
    let with = pairs.map(|(tokens, latents)| Sample { tokens, latents });
    let samples: Vec<Sample> = with
        .chain(tokens.iter().map(|tokens| Sample::from(&tokens[..])))
        .collect();
    let floats = FloatNetwork::new(config, &mut TrainingRandom(3), &Device::Cpu);
    let floats = floats.unwrap();
    moment::train(&floats, &mut Computer::Candle, &samples, 70);
    let parts = NetworkParts {
        name: "names".into(),
        tokenizer,
        network: Arc::new(export(&floats).unwrap()),
        prior: Some(prior(ALPHABET, MOST)),
        adaptation: base_model().fresh(0).adaptation,
    };
    let model = Model::with_network(None, parts).unwrap();
    model.to_bytes().unwrap()
}

#[test]
fn of_what_a_writer_proposes_the_smallest_is_kept_if_it_is_smaller_than_none() {
    let texts = 4;
    let file = model_that_knows(texts);
    let all = (0..texts as u16 + 2).map(|latent| shared(&[latent]));
    let writer = Arc::new(Proposals(all.collect(), AtomicUsize::new(0)));
    let plain = Codecs::with_model(&file).unwrap();
    let codecs = Codecs::with_model(&file).unwrap().writing(writer.clone());
    let options = EncodeOptions {
        policy: Policy::Ratio,
        ..EncodeOptions::default()
    };
    for text in 0..texts {
        let raw = named(text);
        let none = plain.encode(&raw, &options, None).unwrap();
        let each = writer.0.iter();
        let each: Vec<usize> = each
            .map(|latents| encode(&plain, &raw, NAMED, latents).len())
            .collect();
        let least = each.iter().min().unwrap();
        assert_eq!(each[text], *least, "its own name is best: {each:?}");
        assert!(*least < none.payload.len(), "{each:?}");
        let encoded = codecs.encode(&raw, &options, None).unwrap();
        assert_eq!(
            (encoded.codec, encoded.payload.len()),
            (CodecId::Model, *least)
        );
        let decoded = plain.decode_all(&encoded.payload, None).unwrap();
        assert_eq!(decoded, raw);
    }
    assert_eq!(writer.1.load(Relaxed), texts);
    // what no latent helps is stored as without
    let other = &TEXT.as_bytes()[500..700];
    let none = plain.encode(other, &options, None).unwrap();
    let encoded = codecs.encode(other, &options, None).unwrap();
    assert!(encoded.payload.len() <= none.payload.len());
}

#[test]
fn the_prior_belongs_to_the_model_and_stays_with_it() {
    let find = |_: &_| Some(base_model().clone());
    let again = Model::from_bytes_and(file(), &find).unwrap();
    assert_eq!(again.to_bytes().unwrap(), file());
    let prior_of = |model: &Model| model.expert().unwrap().prior.clone();
    assert_eq!(prior_of(&again), Some(prior(ALPHABET, MOST)));
    for wrong in [
        None,
        Some(prior(ALPHABET + 1, MOST)),
        Some(prior(ALPHABET, MOST - 1)),
    ] {
        assert!(untrained(None, wrong).is_err());
    }
    for at in (file().len() - 120..file().len()).step_by(7) {
        let mut bad = file().to_vec();
        bad[at] ^= 4;
        assert!(Model::from_bytes_and(&bad, &find).is_err(), "byte {at}");
        assert!(Model::from_bytes_and(&file()[..at], &find).is_err());
    }
}

#[test]
fn latents_that_do_not_fit_are_errors() {
    let raw = &TEXT.as_bytes()[..3000];
    let refused = |latents: &Latents| {
        let encoded = alone().encode_by_model(raw, 1000, None, Some(latents));
        encoded.is_err()
    };
    assert!(refused(&shared(&[ALPHABET as u16])), "not of the alphabet");
    assert!(refused(&shared(&[0; MOST + 1])), "too many");
    let groups = groups_of(alone(), raw, 1000);
    let mut long = own(groups);
    long.own[1] = vec![0; MOST];
    assert!(refused(&long), "too many together");
    assert!(refused(&own(groups + 3)), "for other groups");
    // a model without encoder
    let plain = Codecs::with_model(&network_model::file(1)).unwrap();
    let encoded = plain.encode_by_model(raw, 1000, None, Some(&shared(&[1])));
    assert!(encoded.is_err());
    let mut payload = encode(alone(), raw, 1000, &shared(&[1]));
    let hash = plain
        .encode_by_model(raw, 1000, None, None)
        .unwrap()
        .0
        .payload[3..11]
        .to_vec();
    payload[3..11].copy_from_slice(&hash);
    assert!(plain.decode_all(&payload, None).is_err());
}

#[test]
fn damaged_latents_are_errors() {
    let raw = &TEXT.as_bytes()[..3000];
    let latents = own(groups_of(alone(), raw, 500));
    let payload = encode(alone(), raw, 500, &latents);
    let mut random = Random::new(9);
    for _ in 0..200 {
        let mut bad = payload.clone();
        // the header: its latents come first
        let at = 11 + random.below(24);
        bad[at] ^= 1 << random.below(8);
        if let Ok(decoded) = alone().decode_all(&bad, None) {
            assert_eq!(decoded, raw, "byte {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_latents_come_back(
        shared in prop::collection::vec(0..ALPHABET as u16, 0..=3),
        own in prop::collection::vec(prop::collection::vec(0..ALPHABET as u16, 0..=MOST - 3), 1..40),
    ) {
        let groups = own.len();
        let latents = Latents { shared, own };
        let prior = prior(ALPHABET, MOST);
        let coded = latents.encode(&prior, groups).unwrap();
        let decoded = Latents::decode(&coded, &prior, groups, MOST).unwrap();
        for group in 0..groups {
            prop_assert_eq!(decoded.of_group(group), latents.of_group(group));
        }
        prop_assert_eq!(decoded.is_empty(), latents.is_empty());
    }
}
