//! The compressor: a T5 (Raffel et al. 2020) that reads tokens and writes latents, with a head that says which
//! latent comes next (the actor) and one that says what is still to be rewarded (the critic).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::log_softmax;

use super::{Config, Result, S2sError};
use crate::train::corpus::Random;
use crate::train::network::checkpoint;
use crate::train::network::float::{Parameter, normal};
use crate::train::t5::{self, DECODER, ENCODER, Memory, NEVER, Stack, multiply};

/// Files of a directory.
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// Tensors that are not of a stack.
const TOKENS: &str = "encoder.embed_tokens.weight";
const LATENTS: &str = "decoder.embed_tokens.weight";
const ACTOR: &str = "lm_head.weight";
const CRITIC: &str = "value_head.weight";

/// A compressor in floats.
#[derive(Debug)]
pub struct Compressor {
    config: Config,
    /// Tokens x `d_model`.
    tokens: Var,
    /// Latents and the end x `d_model`.
    latents: Var,
    /// Latents and the end x `d_model`.
    actor: Var,
    /// 1 x `d_model`.
    critic: Var,
    encoder: Stack,
    decoder: Stack,
}

/// What a compressor thinks of strings of latents: batch x actions, an action being a latent or the end. Behind the
/// most latents the end is no action. Everything but `taken` has gradients.
#[derive(Debug)]
pub struct Evaluation {
    /// Log-probability of each action in nats; 0 where there is none.
    pub log_probs: Tensor,
    /// Entropy of what each action was chosen from in nats; 0 where there is none.
    pub entropies: Tensor,
    /// The critic in front of each action; 0 where there is none.
    pub values: Tensor,
    /// 1 for actions, 0 behind the last one of a string.
    pub taken: Tensor,
}

impl Evaluation {
    /// Mean cost in nats of the actions: the loss of a compressor that learns to write given strings.
    ///
    /// # Errors
    /// If the device fails.
    pub fn loss(&self) -> Result<Tensor> {
        Ok((self.log_probs.sum_all()? / self.taken.sum_all()?)?.neg()?)
    }
}

/// Every tensor of a compressor, with its shape.
fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (d, alphabet) = (config.sizes.d_model, config.latent_vocab + 1);
    let mut all = vec![
        (TOKENS.to_owned(), vec![config.vocab_size, d]),
        (LATENTS.to_owned(), vec![alphabet, d]),
        (ACTOR.to_owned(), vec![alphabet, d]),
        (CRITIC.to_owned(), vec![1, d]),
    ];
    for stack in [ENCODER, DECODER] {
        all.extend(t5::tensors(stack, config.sizes.layers, &config.layers()));
    }
    all
}

/// A parameter that nothing has trained. Gains are 1; heads and what writes into the residual stream are 0; all
/// others are normal with 1 / sqrt(inputs), queries smaller, because T5 does not scale its scores. Biases are such
/// that positions differ from the beginning: nothing else tells the encoder the order of its tokens.
fn untrained(
    name: &str,
    shape: &[usize],
    config: &Config,
    random: &mut Random,
    device: &Device,
) -> candle_core::Result<Var> {
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
    if ends(&["layer_norm.weight"]) {
        return Var::ones(shape, DType::F32, device);
    }
    let nothing = [ACTOR, CRITIC, ".o.weight", ".wo.weight"];
    if ends(&nothing) {
        return Var::zeros(shape, DType::F32, device);
    }
    let inputs = match name {
        // one row of an embedding is all that comes out
        TOKENS | LATENTS => 1,
        _ if name.ends_with("_bias.weight") => 1,
        _ if name.ends_with(".q.weight") => config.sizes.d_model * config.layers().d_kv,
        _ => config.sizes.d_model,
    };
    normal(random, shape, 1.0 / (inputs as f64).sqrt(), device)
}

impl Compressor {
    /// A compressor that has learned nothing: all latents and the end are equally likely.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(config: Config, random: &mut Random, device: &Device) -> Result<Compressor> {
        let mut vars = HashMap::new();
        for (name, shape) in tensors(&config) {
            let var = untrained(&name, &shape, &config, random, device)?;
            vars.insert(name, var);
        }
        Compressor::from_vars(config, vars)
    }

    fn from_vars(config: Config, mut vars: HashMap<String, Var>) -> Result<Compressor> {
        let mut var = |name: &str| {
            let missing = || S2sError::Config(format!("{name} is missing"));
            vars.remove(name).ok_or_else(missing)
        };
        let (layers, sizes) = (config.sizes.layers, config.layers());
        Ok(Compressor {
            tokens: var(TOKENS)?,
            latents: var(LATENTS)?,
            actor: var(ACTOR)?,
            critic: var(CRITIC)?,
            encoder: Stack::new(ENCODER, layers, sizes, &mut var)?,
            decoder: Stack::new(DECODER, layers, sizes, &mut var)?,
            config,
        })
    }

    /// Reads a compressor from a directory that [`Compressor::save`] wrote.
    ///
    /// # Errors
    /// If a file cannot be read, is damaged, or does not fit the other. The error names the file.
    pub fn load(dir: &Path, device: &Device) -> Result<Compressor> {
        let path = dir.join(CONFIG);
        let wrong = |what: String| S2sError::File {
            path: path.clone(),
            what,
        };
        let config: Config =
            serde_json::from_slice(&read(&path)?).map_err(|e| wrong(e.to_string()))?;
        config.check().map_err(wrong)?;
        let path = dir.join(WEIGHTS);
        let wrong = |what: String| S2sError::File {
            path: path.clone(),
            what,
        };
        let (json, mut found) = checkpoint::parse_tensors(&read(&path)?, device).map_err(wrong)?;
        if serde_json::from_str::<Config>(&json).ok().as_ref() != Some(&config) {
            return Err(wrong(format!("is of another compressor than {CONFIG}")));
        }
        let mut vars = HashMap::new();
        for (name, shape) in tensors(&config) {
            let tensor = found.remove(&name);
            let tensor = tensor.ok_or_else(|| wrong(format!("{name} is missing")))?;
            if tensor.dims() != shape {
                let dims = tensor.dims();
                let what = format!("{name} has the shape {dims:?} instead of {shape:?}");
                return Err(wrong(what));
            }
            if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Err(wrong(format!("{name} holds values that are not finite")));
            }
            vars.insert(name, Var::from_tensor(&tensor)?);
        }
        Compressor::from_vars(config, vars)
    }

    /// Writes the compressor into a directory, which is made if need be; one that is there already is replaced,
    /// file by file.
    ///
    /// # Errors
    /// If the device fails or the disk refuses.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|source| S2sError::Read {
            path: dir.to_owned(),
            source,
        })?;
        let json = serde_json::to_string_pretty(&self.config)
            .map_err(|error| S2sError::Config(error.to_string()))?;
        checkpoint::write_whole(&dir.join(CONFIG), json.as_bytes()).map_err(S2sError::Network)?;
        let named = |parameter: Parameter| (parameter.name, parameter.var.as_tensor().clone());
        let all: Vec<_> = self.parameters().into_iter().map(named).collect();
        checkpoint::save_tensors(&dir.join(WEIGHTS), json, &all).map_err(S2sError::Network)
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where its parameters are.
    pub fn device(&self) -> &Device {
        self.tokens.device()
    }

    /// All parameters by name.
    pub fn parameters(&self) -> Vec<Parameter> {
        let single = |name: &str, var: &Var| Parameter {
            name: name.to_owned(),
            var: var.clone(),
            is_matrix: false,
            is_embedding: [TOKENS, LATENTS].contains(&name),
        };
        let mut all = vec![
            single(TOKENS, &self.tokens),
            single(LATENTS, &self.latents),
            single(ACTOR, &self.actor),
            single(CRITIC, &self.critic),
        ];
        all.extend(self.encoder.parameters());
        all.extend(self.decoder.parameters());
        all
    }

    /// What the encoder makes of inputs, 1 to [`Sizes::input`](super::Sizes::input) tokens each.
    ///
    /// # Errors
    /// If there are no inputs, one has no tokens or too many, a token is not of the vocabulary, or the device
    /// fails.
    pub fn read(&self, inputs: &[&[u16]]) -> Result<Memory> {
        let longest = inputs.iter().map(|input| input.len()).max().unwrap_or(0);
        let shortest = inputs.iter().map(|input| input.len()).min().unwrap_or(0);
        let most = self.config.sizes.input;
        if shortest == 0 || longest > most {
            let what = format!("{shortest} to {longest} tokens; 1 to {most} are possible");
            return Err(S2sError::Input(what));
        }
        let mut ids = Vec::with_capacity(inputs.len() * longest);
        let mut hidden = Vec::with_capacity(ids.capacity());
        for input in inputs {
            let padding = longest - input.len();
            ids.extend(input.iter().map(|&token| u32::from(token)));
            ids.extend(std::iter::repeat_n(0, padding));
            hidden.extend(input.iter().map(|_| 0f32));
            hidden.extend(std::iter::repeat_n(NEVER, padding));
        }
        let x = self.embed(&self.tokens, &ids, inputs.len())?;
        let hidden = match shortest < longest {
            true => {
                let shape = (inputs.len(), 1, 1, longest);
                Some(Tensor::from_vec(hidden, shape, self.device())?)
            }
            false => None,
        };
        let rows = self.encoder.read(&x, hidden.as_ref(), None)?;
        Ok(Memory { rows, hidden })
    }

    /// What the compressor thinks of strings of latents, one for each input in `memory`.
    ///
    /// # Errors
    /// If there is another number of strings than inputs, a string is too long, a latent is not of the alphabet,
    /// or the device fails.
    pub fn evaluate(&self, memory: &Memory, strings: &[&[u16]]) -> Result<Evaluation> {
        let (config, batch) = (&self.config, strings.len());
        if memory.rows.dim(0)? != batch {
            let inputs = memory.rows.dim(0)?;
            let what = format!("{batch} strings of latents for {inputs} inputs");
            return Err(S2sError::Input(what));
        }
        for string in strings {
            config.check_string(string)?;
        }
        let actions = |string: &&[u16]| config.actions(string.len());
        let longest = strings.iter().map(actions).max().unwrap_or(0);
        let (mut inputs, mut chosen, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for string in strings {
            let action = |at: usize| string.get(at).map_or(config.end(), |&l| u32::from(l));
            chosen.extend((0..longest).map(action));
            inputs.extend((0..longest).map(|at| match at {
                0 => config.end(),
                _ => action(at - 1),
            }));
            let count = config.actions(string.len());
            taken.extend((0..longest).map(|at| f32::from(u8::from(at < count))));
        }
        let device = self.device();
        let taken = Tensor::from_vec(taken, (batch, longest), device)?;
        let chosen = Tensor::from_vec(chosen, (batch, longest, 1), device)?;
        let x = self.embed(&self.latents, &inputs, batch)?;
        let rows = self.decoder.read(&x, None, Some(memory))?;
        let logs = log_softmax(&multiply(&rows, &self.actor)?, D::Minus1)?;
        let entropies = (logs.exp()? * &logs)?.sum(D::Minus1)?.neg()?;
        Ok(Evaluation {
            log_probs: (logs.gather(&chosen, 2)?.squeeze(2)? * &taken)?,
            entropies: (entropies * &taken)?,
            values: (multiply(&rows, &self.critic)?.squeeze(2)? * &taken)?,
            taken,
        })
    }

    /// A decoder that will write a string for each input in `memory`.
    pub(super) fn writer(&self, memory: &Memory) -> Result<t5::Reader<'_>> {
        Ok(self.decoder.steps(Some(memory))?)
    }

    /// Tells `writer` the newest latent of each string, or the end before the first; says what comes next: logits,
    /// batch x latents and end, and values, batch.
    pub(super) fn next(
        &self,
        writer: &mut t5::Reader,
        newest: &[u32],
    ) -> Result<(Vec<Vec<f32>>, Vec<f32>)> {
        let x = self.embed(&self.latents, newest, newest.len())?;
        let rows = writer.read(&x)?.squeeze(1)?;
        let logits = multiply(&rows, &self.actor)?.to_vec2()?;
        let values = multiply(&rows, &self.critic)?.squeeze(1)?.to_vec1()?;
        Ok((logits, values))
    }

    /// Rows of an embedding: batch x positions x `d_model`.
    fn embed(&self, table: &Var, ids: &[u32], batch: usize) -> Result<Tensor> {
        let rows = table.dim(0)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(S2sError::Input(format!("{id} of {rows} possible")));
        }
        let x = table.index_select(&Tensor::new(ids, self.device())?, 0)?;
        Ok(x.reshape((batch, (), self.config.sizes.d_model))?)
    }
}

impl Config {
    /// Number of decisions that make a string of `len` latents.
    pub(super) fn actions(&self, len: usize) -> usize {
        (len + 1).min(self.max_latents)
    }

    fn check_string(&self, string: &[u16]) -> Result<()> {
        let most = self.max_latents;
        if string.len() > most {
            let what = format!("{} latents, the most are {most}", string.len());
            return Err(S2sError::Input(what));
        }
        let outside = |&&latent: &&u16| usize::from(latent) >= self.latent_vocab;
        match string.iter().find(outside) {
            Some(latent) => Err(S2sError::Input(format!(
                "latent {latent} of an alphabet of {}",
                self.latent_vocab
            ))),
            None => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| S2sError::Read {
        path: path.to_owned(),
        source,
    })
}
