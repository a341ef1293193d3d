//! What of a model file belongs to its network: the sections `nete` and `netw`. docs/format.md has the
//! byte tables.

use std::sync::Arc;

use super::adaptive::Histories;
use super::ends::Ends;
use super::file::{Sections, damaged, put_probabilities, put_weights};
use super::latents::LatentPrior;
use super::matcher::LENGTH_BUCKETS;
use super::merges::Merges;
use super::mixer::Weights;
use super::network::Network;
use super::predictor::{Adaptation, Params, straight};
use super::tables::Tables;
use super::tokenizer::Tokenizer;
use super::tokens::PlainCurves;
use super::vocabulary::{DECISIONS, Vocabulary};
use super::walk::Division;
use super::{Expert, Model, ModelError, ModelHash, ModelInfo};

/// In the first byte of `nete`: end-of-token decisions know the outlook.
const OUTLOOK: u8 = 0x80;

/// What a model with a network is made of, beside the tables of its base.
#[derive(Debug)]
pub struct NetworkParts {
    pub name: String,
    /// Tokens sorted by their bytes.
    pub tokenizer: Tokenizer,
    pub network: Arc<Network>,
    /// What latents cost, if the network has an encoder for them.
    pub prior: Option<LatentPrior>,
    pub adaptation: Adaptation,
}

impl Expert {
    /// What turns the logits of a network into decisions.
    ///
    /// # Errors
    /// If the tokenizer's tokens are not sorted or not those of the network.
    pub fn new(tokenizer: &Tokenizer, network: Arc<Network>) -> Result<Expert, ModelError> {
        let vocabulary = Vocabulary::new(tokenizer)?;
        Ok(Expert {
            division: Division::new(&vocabulary, network.config())?,
            merges: Merges::new(tokenizer, &vocabulary)?,
            vocabulary,
            network,
            skip: LENGTH_BUCKETS,
            plain: None,
            prior: None,
        })
    }

    /// Says what latents cost.
    ///
    /// # Errors
    /// If the network has an encoder and there is no prior, or the other way round, or it is one of other latents or
    /// stands for tokens of another vocabulary.
    pub(super) fn set_prior(&mut self, prior: Option<LatentPrior>) -> Result<(), ModelError> {
        let config = self.network.config();
        let sizes = |prior: &LatentPrior| (prior.alphabet(), prior.most());
        if prior.as_ref().map_or((0, 0), sizes) != (config.latent_vocab, config.max_latents) {
            return Err(damaged("the prior is not for the latents of the network"));
        }
        let glosses = prior.as_ref().map_or(&[] as &[u16], LatentPrior::glosses);
        if glosses
            .iter()
            .any(|&token| usize::from(token) >= config.vocab_size)
        {
            return Err(damaged("a latent stands for a token that there is not"));
        }
        self.prior = prior;
        Ok(())
    }
}

impl Model {
    /// An untrained model with a network: on top of the tables of `base`, or with the network alone.
    ///
    /// # Errors
    /// If the tokenizer does not fit the network, or `base` has a network itself or a code of bytes.
    pub fn with_network(base: Option<&Model>, parts: NetworkParts) -> Result<Model, ModelError> {
        if base.is_some_and(|base| base.base.is_some() || base.network.is_some()) {
            return Err(damaged("a base cannot have a base or a network itself"));
        }
        base.map(Model::check_joinable).transpose()?;
        let mut expert = Expert::new(&parts.tokenizer, parts.network)?;
        expert.set_prior(parts.prior)?;
        let params = match base {
            Some(_) => Params::with_network(expert.vocabulary.len()),
            None => {
                expert.plain = Some(Box::new([straight(); DECISIONS]));
                Params::default()
            }
        };
        let experts: &[&str] = match base {
            Some(_) => &["tables", "match", "adaptive", "network"],
            None => &["network"],
        };
        let rates = parts.adaptation;
        let info = ModelInfo {
            name: parts.name,
            experts: experts.iter().map(|name| (*name).to_owned()).collect(),
            rates: [
                rates.mixer.first,
                rates.mixer.last,
                rates.histories as i32,
                rates.curves as i32,
            ],
            ..ModelInfo::default()
        };
        Ok(Model::assemble(
            info,
            parts.tokenizer,
            base,
            params,
            rates,
            expert,
        ))
    }

    /// The same tables, mixer and vocabulary with another network, which may have been trained further or read
    /// latents where the one before did not. It has no hash until it is a file.
    ///
    /// # Errors
    /// If there is no network to replace, or the other one does not fit vocabulary or prior.
    pub fn with_other_network(
        &self,
        network: Arc<Network>,
        prior: Option<LatentPrior>,
    ) -> Result<Model, ModelError> {
        let before = self.expert()?;
        let mut expert = Expert::new(&self.tokenizer, network)?;
        expert.set_prior(prior)?;
        expert.skip = before.skip;
        expert.plain.clone_from(&before.plain);
        Ok(Model {
            hash: ModelHash::default(),
            info: self.info.clone(),
            tokenizer: self.tokenizer.clone(),
            dictionary: self.dictionary.clone(),
            tables: self.tables.clone(),
            code: self.code.clone(),
            logits: self.logits,
            params: self.params.clone(),
            adaptation: self.adaptation,
            histories: self.histories,
            base: self.base,
            network: Some(expert),
            base_params: self.base_params.clone(),
        })
    }

    /// Whether a network can join these tables.
    pub(super) fn check_joinable(&self) -> Result<(), ModelError> {
        match self.code.is_plain() {
            true => Ok(()),
            false => Err(damaged(
                "a network joins tables that know bytes by their bits (train --plain)",
            )),
        }
    }

    /// A model with a network of its parts.
    pub(super) fn assemble(
        info: ModelInfo,
        tokenizer: Tokenizer,
        base: Option<&Model>,
        params: Params,
        adaptation: Adaptation,
        expert: Expert,
    ) -> Model {
        let mut model = Model {
            hash: ModelHash::default(),
            info,
            tokenizer,
            dictionary: Arc::default(),
            tables: Arc::new(Tables::default()),
            code: Default::default(),
            logits: [0; 256],
            params,
            adaptation,
            histories: Histories::All,
            base: None,
            network: Some(expert),
            base_params: None,
        };
        if let Some(base) = base {
            model.dictionary = base.dictionary.clone();
            model.tables = base.tables.clone();
            model.logits = base.logits;
            model.base = Some(base.hash);
            model.base_params = Some(Arc::new(base.params.clone()));
        }
        model
    }

    /// Sets from which length class of a match on the heads are not evaluated.
    pub fn set_skip(&mut self, skip: usize) {
        if let Some(expert) = &mut self.network {
            expert.skip = skip.min(LENGTH_BUCKETS);
        }
    }

    /// Replaces the refinement of a model that leaves the table experts out.
    pub fn set_plain(&mut self, curves: PlainCurves) {
        if let Some(plain) = self.network.as_mut().and_then(|e| e.plain.as_mut()) {
            **plain = curves;
        }
    }

    /// The sections `nete` and `netw`.
    pub(super) fn network_sections(
        &self,
        expert: &Expert,
    ) -> Result<(Vec<u8>, Vec<u8>), ModelError> {
        let outlook = self.params.ends.as_ref().is_some_and(Ends::has_outlook);
        let mut learned = vec![expert.skip as u8 | if outlook { OUTLOOK } else { 0 }];
        if let Some(curves) = &expert.plain {
            put_probabilities(&mut learned, curves.as_flattened());
        }
        if let Some(ends) = &self.params.ends {
            let weights = &self.params.weights;
            put_weights(&mut learned, weights.network.as_flattened());
            put_weights(&mut learned, &weights.last_network);
            put_weights(&mut learned, ends.weights.as_flattened());
            put_probabilities(&mut learned, &ends.matches);
            put_probabilities(&mut learned, &ends.tokens);
            put_probabilities(&mut learned, ends.histories.as_flattened());
        }
        let (config, tensors) = expert.network.to_bytes()?;
        let mut network = (config.len() as u64).to_le_bytes().to_vec();
        network.extend_from_slice(&config);
        network.extend_from_slice(&tensors);
        Ok((learned, network))
    }
}

/// Reads the two sections; `params` get what they say about the mixer of a model with tables.
pub(super) fn read(
    tokenizer: &Tokenizer,
    mut params: Params,
    tables: bool,
    learned: &[u8],
    network: &[u8],
) -> Result<(Expert, Params), ModelError> {
    let mut reader = Sections { rest: network };
    let len = reader.number()?;
    let config = reader.take(len)?;
    let network = Network::from_bytes(config, reader.rest)?;
    let mut expert = Expert::new(tokenizer, Arc::new(network))?;
    let mut reader = Sections { rest: learned };
    let first = reader.take(1)?[0];
    let outlook = first & OUTLOOK != 0;
    expert.skip = usize::from(first & !OUTLOOK);
    if outlook && !tables {
        return Err(damaged("an outlook without tables"));
    }
    if expert.skip > LENGTH_BUCKETS {
        return Err(damaged("an impossible length of matches"));
    }
    if tables {
        let ends = Ends::new(expert.vocabulary.len(), outlook);
        read_mixer(&mut reader, &mut params, ends)?;
    } else {
        let mut curves: Box<PlainCurves> = Box::new([straight(); DECISIONS]);
        reader.probabilities(curves.as_flattened_mut())?;
        expert.plain = Some(curves);
    }
    reader.end()?;
    Ok((expert, params))
}

fn read_mixer(reader: &mut Sections, params: &mut Params, ends: Ends) -> Result<(), ModelError> {
    let Weights {
        network,
        last_network,
        ..
    } = Weights::with_network();
    let weights = &mut params.weights;
    (weights.network, weights.last_network) = (network, last_network);
    reader.weights(weights.network.as_flattened_mut())?;
    reader.weights(&mut weights.last_network)?;
    let ends = params.ends.insert(ends);
    reader.weights(ends.weights.as_flattened_mut())?;
    reader.probabilities(&mut ends.matches)?;
    reader.probabilities(&mut ends.tokens)?;
    reader.probabilities(ends.histories.as_flattened_mut())
}
