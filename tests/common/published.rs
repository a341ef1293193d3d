//! Checkpoints of published models, made at random, and T5 once more in plain numbers.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use s2sfs::train::corpus::Random;
use serde_json::{Value, json};

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// The kinds of published models, small: T5 v1.0, v1.1 and flan-t5, ByT5.
pub const KINDS: [&str; 3] = ["t5", "flan-t5", "byt5"];

/// A `config.json`.
pub fn config(kind: &str) -> Value {
    let mut config = json!({
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 40,
        "d_kv": 8,
        "d_model": 24,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": true,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": 3,
        "num_layers": 2,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "vocab_size": 48,
    });
    let more = match kind {
        "t5" => json!({}),
        "flan-t5" => json!({
            "feed_forward_proj": "gated-gelu",
            "num_decoder_layers": 3,
            "relative_attention_max_distance": 128,
            "tie_word_embeddings": false,
        }),
        _ => json!({
            "feed_forward_proj": "gated-gelu",
            "num_decoder_layers": 1,
            "tie_word_embeddings": false,
            "tokenizer_class": "ByT5Tokenizer",
            "vocab_size": 264,
        }),
    };
    merge(&mut config, &more);
    config
}

/// Sets fields.
pub fn merge(config: &mut Value, more: &Value) {
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
}

pub fn number(config: &Value, name: &str) -> usize {
    config[name].as_u64().unwrap() as usize
}

fn decoder_layers(config: &Value) -> usize {
    let layers = config["num_decoder_layers"].as_u64();
    layers.map_or(number(config, "num_layers"), |n| n as usize)
}

fn gated(config: &Value) -> bool {
    config["feed_forward_proj"] == "gated-gelu"
}

fn tied(config: &Value) -> bool {
    config["tie_word_embeddings"] != false
}

/// The tensors of Hugging Face's `T5ForConditionalGeneration`.
fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let of = |name| number(config, name);
    let (d, ff, inner) = (of("d_model"), of("d_ff"), of("num_heads") * of("d_kv"));
    let mut all = vec![("shared.weight".to_owned(), vec![of("vocab_size"), d])];
    if !tied(config) {
        all.push(("lm_head.weight".into(), vec![of("vocab_size"), d]));
    }
    for (stack, layers) in [
        ("encoder", of("num_layers")),
        ("decoder", decoder_layers(config)),
    ] {
        let bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let buckets = of("relative_attention_num_buckets");
        all.push((format!("{stack}.{bias}"), vec![buckets, of("num_heads")]));
        all.push((format!("{stack}.final_layer_norm.weight"), vec![d]));
        for layer in 0..layers {
            let mut parts = vec!["SelfAttention"];
            if stack == "decoder" {
                parts.push("EncDecAttention");
            }
            parts.push("DenseReluDense");
            for (at, part) in parts.iter().enumerate() {
                let block = format!("{stack}.block.{layer}.layer.{at}");
                all.push((format!("{block}.layer_norm.weight"), vec![d]));
                let matrices = match (*part, gated(config)) {
                    ("DenseReluDense", false) => vec![("wi", ff, d), ("wo", d, ff)],
                    ("DenseReluDense", true) => {
                        vec![("wi_0", ff, d), ("wi_1", ff, d), ("wo", d, ff)]
                    }
                    _ => vec![
                        ("q", inner, d),
                        ("k", inner, d),
                        ("v", inner, d),
                        ("o", d, inner),
                    ],
                };
                for (name, rows, columns) in matrices {
                    all.push((format!("{block}.{part}.{name}.weight"), vec![rows, columns]));
                }
            }
        }
    }
    all
}

/// Random tensors, large enough for every part to matter.
pub fn tensors(config: &Value, seed: u64) -> Tensors {
    let mut random = Random(seed);
    let mut even = || (random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let mut all = Tensors::new();
    for (name, shape) in shapes(config) {
        let size = match shape.as_slice() {
            [_] => 0.3,
            _ if name.contains("relative") => 2.0,
            _ if name == "shared.weight" => 3.0,
            [_, columns] => 2.5 / (*columns as f32).sqrt(),
            _ => unreachable!(),
        };
        let middle = if shape.len() == 1 { 0.7 } else { 0.0 };
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| middle + size * even()).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        all.insert(name, tensor);
    }
    all
}

/// A `tokenizer.json` in the way of SentencePiece's unigram models.
pub fn tokenizer() -> Value {
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "\u{2581}",
        "\u{2581}the",
        "the",
        "a",
        "b",
        "c",
        "e",
        "h",
        "t",
        "ing",
        "\u{2581}a",
        "i",
        "n",
        "g",
    ];
    let vocab: Vec<Value> = pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| {
            json!([
                piece,
                if id < 3 {
                    0.0
                } else {
                    -2.0 - id as f64 / 100.0
                }
            ])
        })
        .collect();
    json!({
        "version": "1.0",
        // saved by mistake with some models
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
            "split": true},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false},
    })
}

pub fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), serde_json::to_vec(value).unwrap()).unwrap();
}

/// Writes a whole checkpoint.
pub fn save(dir: &Path, config: &Value, tensors: &Tensors) {
    write(dir, "config.json", config);
    if config["tokenizer_class"].is_null() {
        write(dir, "tokenizer.json", &tokenizer());
    }
    candle_core::safetensors::save(tensors, dir.join("model.safetensors")).unwrap();
}

type Rows = Vec<Vec<f64>>;

/// T5 as the paper has it, one number at a time.
pub struct Plain<'a> {
    config: &'a Value,
    tensors: HashMap<String, Rows>,
}

impl<'a> Plain<'a> {
    pub fn new(config: &'a Value, tensors: &Tensors) -> Plain<'a> {
        let rows = |tensor: &Tensor| -> Rows {
            let tensor = tensor.to_dtype(DType::F64).unwrap();
            match tensor.rank() {
                1 => vec![tensor.to_vec1().unwrap()],
                _ => tensor.to_vec2().unwrap(),
            }
        };
        let tensors = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), rows(tensor)));
        Plain {
            config,
            tensors: tensors.collect(),
        }
    }

    fn of(&self, name: &str) -> &Rows {
        &self.tensors[&format!("{name}.weight")]
    }

    fn multiply(&self, rows: &Rows, matrix: &str) -> Rows {
        let dot = |row: &[f64], other: &[f64]| row.iter().zip(other).map(|(a, b)| a * b).sum();
        let matrix = self.of(matrix);
        rows.iter()
            .map(|row| matrix.iter().map(|other| dot(row, other)).collect())
            .collect()
    }

    fn normalise(&self, rows: &Rows, gain: &str) -> Rows {
        let gain = &self.of(gain)[0];
        let scaled = |row: &Vec<f64>| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let values = row.iter().zip(gain);
            values.map(|(x, g)| x / (mean + 1e-6).sqrt() * g).collect()
        };
        rows.iter().map(scaled).collect()
    }

    /// The bucket of a key's position minus the query's.
    fn bucket(&self, relative: i64, encoder: bool) -> usize {
        let mut buckets = number(self.config, "relative_attention_num_buckets");
        let (mut first, mut distance) = (0, (-relative).max(0) as usize);
        if encoder {
            buckets /= 2;
            first = if relative > 0 { buckets } else { 0 };
            distance = relative.unsigned_abs() as usize;
        }
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        let share = (distance as f64 / exact as f64).ln() / (128.0 / exact as f64).ln();
        first + (exact + (share * (buckets - exact) as f64) as usize).min(buckets - 1)
    }

    fn attend(&self, block: &str, x: &Rows, memory: Option<&Rows>) -> Rows {
        let name = match memory {
            None => format!("{block}.SelfAttention"),
            Some(_) => format!("{block}.EncDecAttention"),
        };
        let inputs = self.normalise(x, &format!("{block}.layer_norm"));
        let others = memory.unwrap_or(&inputs);
        let queries = self.multiply(&inputs, &format!("{name}.q"));
        let keys = self.multiply(others, &format!("{name}.k"));
        let values = self.multiply(others, &format!("{name}.v"));
        let stack = block.split('.').next().unwrap();
        let bias = self.of(&format!(
            "{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        ));
        let (heads, d_kv) = (
            number(self.config, "num_heads"),
            number(self.config, "d_kv"),
        );
        let mut context = vec![vec![0.0; heads * d_kv]; queries.len()];
        for (i, (query, context)) in queries.iter().zip(&mut context).enumerate() {
            let seen = match (stack, memory) {
                ("decoder", None) => i + 1,
                _ => keys.len(),
            };
            for (head, part) in parts(heads, d_kv).enumerate() {
                let score = |j: usize| {
                    let product: f64 = part.clone().map(|at| query[at] * keys[j][at]).sum();
                    let bucket = self.bucket(j as i64 - i as i64, stack == "encoder");
                    product + memory.map_or(bias[bucket][head], |_| 0.0)
                };
                let weights = softmax(&(0..seen).map(score).collect::<Vec<f64>>());
                for at in part.clone() {
                    context[at] = weights.iter().zip(&values).map(|(w, v)| w * v[at]).sum();
                }
            }
        }
        add(x, &self.multiply(&context, &format!("{name}.o")))
    }

    fn feed_forward(&self, block: &str, x: &Rows) -> Rows {
        let inputs = self.normalise(x, &format!("{block}.layer_norm"));
        let name = format!("{block}.DenseReluDense");
        let hidden: Rows = if gated(self.config) {
            let gelu = |x: f64| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            };
            let gates = self.multiply(&inputs, &format!("{name}.wi_0"));
            let through = self.multiply(&inputs, &format!("{name}.wi_1"));
            let row = |(gate, row): (&Vec<f64>, &Vec<f64>)| {
                gate.iter().zip(row).map(|(&g, x)| gelu(g) * x).collect()
            };
            gates.iter().zip(&through).map(row).collect()
        } else {
            let rows = self.multiply(&inputs, &format!("{name}.wi"));
            let relu = |row: Vec<f64>| row.into_iter().map(|x| x.max(0.0)).collect();
            rows.into_iter().map(relu).collect()
        };
        add(x, &self.multiply(&hidden, &format!("{name}.wo")))
    }

    fn stack(&self, stack: &str, layers: usize, pieces: &[u32], memory: Option<&Rows>) -> Rows {
        let embedding = self.of("shared");
        let mut x: Rows = pieces
            .iter()
            .map(|&id| embedding[id as usize].clone())
            .collect();
        for layer in 0..layers {
            let block = |at| format!("{stack}.block.{layer}.layer.{at}");
            x = self.attend(&block(0), &x, None);
            let mut last = 1;
            if memory.is_some() {
                x = self.attend(&block(1), &x, memory);
                last = 2;
            }
            x = self.feed_forward(&block(last), &x);
        }
        self.normalise(&x, &format!("{stack}.final_layer_norm"))
    }

    /// Logits behind every piece that the decoder reads, the start among them.
    pub fn logits(&self, inputs: &[u32], pieces: &[u32]) -> Rows {
        let memory = self.stack("encoder", number(self.config, "num_layers"), inputs, None);
        let layers = decoder_layers(self.config);
        let mut hidden = self.stack("decoder", layers, pieces, Some(&memory));
        if !tied(self.config) {
            return self.multiply(&hidden, "lm_head");
        }
        let root = (number(self.config, "d_model") as f64).sqrt();
        hidden.iter_mut().flatten().for_each(|x| *x /= root);
        self.multiply(&hidden, "shared")
    }

    /// Cost in bits of a chunk, the encoder reading the end of a text only.
    pub fn cost(&self, chunk: &[u32]) -> f64 {
        let mut inputs = vec![0];
        inputs.extend(&chunk[..chunk.len() - 1]);
        let rows = self.logits(&[1], &inputs);
        let costs = rows.iter().zip(chunk);
        costs
            .map(|(row, &id)| -softmax(row)[id as usize].log2())
            .sum()
    }
}

/// The places of every head in a row.
fn parts(heads: usize, d_kv: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..heads).map(move |head| head * d_kv..(head + 1) * d_kv)
}

pub fn softmax(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|x| (x - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

fn add(x: &Rows, y: &Rows) -> Rows {
    let row = |(x, y): (&Vec<f64>, &Vec<f64>)| x.iter().zip(y).map(|(a, b)| a + b).collect();
    x.iter().zip(y).map(row).collect()
}
