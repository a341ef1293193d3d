//! Published T5 checkpoints: they compute what T5 is, here and in candle-transformers; what is wrong with one
//! is said; and a network can start from one.

#[path = "common/published.rs"]
mod published;

use std::path::Path;
use std::process::Command;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::log_softmax;
use s2sfs::model::network::{self, FeedForward};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::float::{FloatNetwork, Parameter, Sample};
use s2sfs::train::network::optimiser::{Optimiser, Rates};
use s2sfs::train::published::{CandleT5, Checkpoint, FloatT5, PublishedError, measure, start};
use serde_json::{Value, json};
use tempfile::TempDir;

use published::{KINDS, Plain, Tensors, config, merge, number, save, tensors, tokenizer, write};

/// A random checkpoint on disk.
fn saved(config: &Value, seed: u64) -> (TempDir, Tensors) {
    let dir = TempDir::new().unwrap();
    let tensors = tensors(config, seed);
    save(dir.path(), config, &tensors);
    (dir, tensors)
}

fn load(dir: &Path) -> Result<Checkpoint, PublishedError> {
    Checkpoint::load(dir, &Device::Cpu)
}

fn pieces(random: &mut Random, count: usize, config: &Value) -> Vec<u32> {
    let vocabulary = number(config, "vocab_size");
    (0..count)
        .map(|_| random.below(vocabulary) as u32)
        .collect()
}

/// Largest difference, as a part of the largest value.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0f64, |most, x| most.max(x.abs()));
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max) / most
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

const CLOSE: f64 = 1e-4;

#[test]
fn logits_are_the_same_in_candle_transformers_ours_and_plain_numbers() {
    for kind in KINDS {
        let config = config(kind);
        let (dir, tensors) = saved(&config, 3);
        let checkpoint = load(dir.path()).unwrap();
        let ours = FloatT5::new(&checkpoint).unwrap();
        let mut theirs = CandleT5::new(&checkpoint).unwrap();
        let plain = Plain::new(&config, &tensors);
        let mut random = Random(5);
        for (inputs, outputs) in [(1, 1), (1, 20), (7, 2), (40, 9), (150, 33), (3, 150)] {
            let case = format!("{kind}, {inputs} and {outputs} pieces");
            let batch = 2;
            let read = pieces(&mut random, batch * inputs, &config);
            let written = pieces(&mut random, batch * outputs, &config);
            let memory = ours.encode(&read, inputs).unwrap();
            let logits = ours.logits(&memory, &written, outputs).unwrap();
            let expected: Vec<f64> = read
                .chunks(inputs)
                .zip(written.chunks(outputs))
                .flat_map(|(read, written)| plain.logits(read, written).concat())
                .collect();
            let off = difference(&values(&logits), &expected);
            assert!(off < CLOSE, "ours, {case}: off by {off}");

            let read = Tensor::from_vec(read, (batch, inputs), &Device::Cpu).unwrap();
            let written = Tensor::from_vec(written, (batch, outputs), &Device::Cpu).unwrap();
            let memory = theirs.encode(&read).unwrap();
            theirs.restart();
            let at_once = theirs.step(&written, &memory).unwrap();
            theirs.restart();
            for at in 0..outputs {
                let step = written.narrow(1, at, 1).unwrap().contiguous().unwrap();
                let stepped = theirs.step(&step, &memory).unwrap();
                let row = logits.narrow(1, at, 1).unwrap().squeeze(1).unwrap();
                let off = difference(&values(&stepped), &values(&row));
                assert!(off < CLOSE, "step {at}, {case}: off by {off}");
                if at + 1 == outputs {
                    let off = difference(&values(&at_once), &values(&row));
                    assert!(off < CLOSE, "at once, {case}: off by {off}");
                }
            }
        }
    }
}

#[test]
fn measuring_finds_the_cost_that_plain_numbers_have() {
    let config = config("byt5");
    let (dir, tensors) = saved(&config, 7);
    let plain = Plain::new(&config, &tensors);
    // more chunks than are computed together, and one that is not full
    let data = &include_bytes!("published_t5.rs")[..17 * 128 + 50];
    let ids: Vec<u32> = data.iter().map(|&b| u32::from(b) + 3).collect();
    let expected: f64 = ids.chunks(128).map(|chunk| plain.cost(chunk)).sum();

    let checkpoint = load(dir.path()).unwrap();
    let mut model = CandleT5::new(&checkpoint).unwrap();
    let mut seen = Vec::new();
    let mut progress = |bytes, bits| seen.push((bytes, bits));
    let measured = measure(&checkpoint, &mut model, data, &mut progress).unwrap();
    assert!(
        (measured.bits / expected - 1.0).abs() < CLOSE,
        "{measured:?}, {expected} bits"
    );
    assert_eq!((measured.pieces, measured.unknown), (data.len() as u64, 0));
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].0, 16 * 128);
    assert_eq!(seen[1], (data.len() as u64, measured.bits));

    let files = [dir.path().join("one"), dir.path().join("empty")];
    std::fs::write(&files[0], data).unwrap();
    std::fs::write(&files[1], b"").unwrap();
    let output = command(dir.path(), &files);
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = expected / data.len() as f64;
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 4, "{text}");
    for row in [1, 3] {
        assert_eq!(rows[row][..3], ["2226", "2226", "0"], "{text}");
        let printed: f64 = rows[row][3].parse().unwrap();
        assert!((printed / expected - 1.0).abs() < 2.0 * CLOSE, "{text}");
    }
    assert_eq!(rows[2][..4], ["0", "0", "0", "0.0000"], "{text}");
}

fn command(checkpoint: &Path, files: &[std::path::PathBuf]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_s2sfs"))
        .args(["measure", "--published"])
        .arg(checkpoint)
        .args(files)
        .output()
        .unwrap()
}

#[test]
fn a_tokenizer_of_pieces_is_read_and_its_losses_are_counted() {
    let (dir, _) = saved(&config("t5"), 11);
    let checkpoint = load(dir.path()).unwrap();
    let encoded = checkpoint
        .pieces()
        .encode(b"the the \xff teaching")
        .unwrap();
    // _the _the _ <unk> _ t e a c h ing, which the truncation in the file would have cut
    assert_eq!(encoded.ids, [4, 4, 3, 2, 3, 11, 9, 6, 8, 10, 12]);
    assert_eq!(encoded.unknown, 1);
    let mut model = CandleT5::new(&checkpoint).unwrap();
    let measured = measure(&checkpoint, &mut model, b"the the \xff", &mut |_, _| ()).unwrap();
    assert_eq!(
        (measured.bytes, measured.pieces, measured.unknown),
        (9, 4, 1)
    );
    for (token, pieces) in [
        (&b" the"[..], &[4][..]),
        (b"the", &[5]),
        (b"ing", &[12]),
        (b" b", &[3, 7]),
        (b"\xff", &[]),
        (b"\n", &[]),
    ] {
        assert_eq!(checkpoint.pieces().of_token(token).unwrap(), pieces);
    }
}

/// What loading says about a checkpoint after some damage.
fn complaint(kind: &str, damage: impl Fn(&Path, &mut Value, &mut Tensors)) -> String {
    let dir = TempDir::new().unwrap();
    let mut config = config(kind);
    let mut tensors = tensors(&config, 13);
    save(dir.path(), &config, &tensors);
    damage(dir.path(), &mut config, &mut tensors);
    load(dir.path()).unwrap_err().to_string()
}

fn assert_says(complaint: &str, words: &[&str]) {
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in {complaint:?}");
    }
}

#[test]
fn a_configuration_that_is_not_that_of_a_t5_is_refused() {
    let missing = complaint("t5", |dir, _, _| {
        std::fs::remove_file(dir.join("config.json")).unwrap();
    });
    assert_says(&missing, &["config.json is missing", "copy it from"]);
    for (more, words) in [
        (json!({"d_model": null}), "invalid type"),
        (json!({"d_model": 0}), "d_model is 0"),
        (json!({"num_layers": 1u64 << 60}), "num_layers is"),
        (json!({"feed_forward_proj": "gated-silu"}), "gated-silu"),
        (json!({"feed_forward_proj": "gelu"}), "gelu"),
        (json!({"model_type": "bert"}), "bert"),
        (
            json!({"is_encoder_decoder": false}),
            "not an encoder and a decoder",
        ),
        (json!({"eos_token_id": 48}), "eos_token_id is 48"),
        (
            json!({"decoder_start_token_id": 99}),
            "decoder_start_token_id is 99",
        ),
        (
            json!({"relative_attention_num_buckets": 30}),
            "num_buckets is 30",
        ),
        (
            json!({"relative_attention_max_distance": 16}),
            "max_distance 16",
        ),
        (
            json!({"layer_norm_epsilon": -1.0}),
            "layer_norm_epsilon is -1",
        ),
    ] {
        let complaint = complaint("t5", |dir, config, _| {
            merge(config, &more);
            write(dir, "config.json", config);
        });
        assert_says(&complaint, &["config.json", words]);
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let missing = complaint("t5", |dir, _, _| {
        std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    });
    assert_says(&missing, &["tokenizer.json is missing", "copy it from"]);
    let other = complaint("t5", |dir, _, _| {
        std::fs::rename(dir.join("tokenizer.json"), dir.join("spiece.model")).unwrap();
    });
    assert_says(
        &other,
        &["tokenizer.json is missing", "from spiece.model by"],
    );
    let cut = complaint("t5", |dir, _, _| {
        let json = serde_json::to_vec(&tokenizer()).unwrap();
        std::fs::write(dir.join("tokenizer.json"), &json[..json.len() / 2]).unwrap();
    });
    assert_says(&cut, &["tokenizer.json", "EOF"]);
    let other = complaint("t5", |dir, _, _| {
        let mut json = tokenizer();
        json["model"]["type"] = "BPE".into();
        write(dir, "tokenizer.json", &json);
    });
    assert_says(&other, &["tokenizer.json", "a model of type BPE"]);
    let small = complaint("t5", |dir, config, _| {
        merge(config, &json!({"vocab_size": 16}));
        write(dir, "config.json", config);
    });
    assert_says(
        &small,
        &["tokenizer.json", "17 pieces", "config.json says 16"],
    );
    let bytes = complaint("byt5", |dir, config, _| {
        merge(config, &json!({"vocab_size": 256}));
        write(dir, "config.json", config);
    });
    assert_says(&bytes, &["259 pieces", "config.json says 256"]);
}

#[test]
fn weights_that_are_missing_cut_or_of_another_shape_are_refused() {
    let whole = "model.safetensors";
    let resave = |dir: &Path, tensors: &Tensors| {
        candle_core::safetensors::save(tensors, dir.join(whole)).unwrap();
    };
    let missing = complaint("t5", |dir, _, _| {
        std::fs::remove_file(dir.join(whole)).unwrap()
    });
    assert_says(&missing, &[whole, "is missing", "copy it from"]);
    let pickled = complaint("t5", |dir, _, _| {
        std::fs::rename(dir.join(whole), dir.join("pytorch_model.bin")).unwrap();
    });
    assert_says(
        &pickled,
        &[whole, "from pytorch_model.bin by save_pretrained"],
    );

    let full = {
        let (dir, _) = saved(&config("t5"), 13);
        std::fs::read(dir.path().join(whole)).unwrap()
    };
    for len in [0, 7, 8, 100, full.len() / 2, full.len() - 1] {
        let cut = complaint("t5", |dir, _, _| {
            std::fs::write(dir.join(whole), &full[..len]).unwrap()
        });
        assert_says(&cut, &[whole, "truncated or damaged, copy it again"]);
    }

    let names: Vec<String> = tensors(&config("flan-t5"), 13).into_keys().collect();
    for name in &names {
        let absent = complaint("flan-t5", |dir, _, tensors| {
            tensors.remove(name);
            resave(dir, tensors);
        });
        assert_says(&absent, &[whole, name, "missing"]);
        let turned = complaint("flan-t5", |dir, _, tensors| {
            let count = tensors[name].elem_count();
            let tensor = tensors[name].reshape((1, count)).unwrap();
            tensors.insert(name.clone(), tensor);
            resave(dir, tensors);
        });
        assert_says(
            &turned,
            &[whole, name, "has the shape [1, ", "config.json asks for ["],
        );
    }

    let name = "decoder.block.1.layer.1.EncDecAttention.k.weight";
    for (what, words) in [
        ("type", "is of type U32, not floats"),
        ("nan", "not finite"),
    ] {
        let complaint = complaint("flan-t5", |dir, _, tensors| {
            let tensor = match what {
                "type" => tensors[name].to_dtype(DType::U32).unwrap(),
                _ => (&tensors[name] * f64::NAN).unwrap(),
            };
            tensors.insert(name.into(), tensor);
            resave(dir, tensors);
        });
        assert_says(&complaint, &[whole, name, words]);
    }
    // the command says the same
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let output = command(dir.path(), &[file]);
    assert_eq!(output.status.code(), Some(2));
    assert_says(
        &String::from_utf8_lossy(&output.stderr),
        &["config.json is missing"],
    );
}

/// Divides the weights into two files.
fn divide(dir: &Path, tensors: &Tensors) -> Value {
    let mut map = serde_json::Map::new();
    for (part, parity) in [("model-1.safetensors", 0), ("model-2.safetensors", 1)] {
        let chosen: Tensors = tensors
            .iter()
            .filter(|(name, _)| name.len() % 2 == parity)
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        candle_core::safetensors::save(&chosen, dir.join(part)).unwrap();
        map.extend(chosen.into_keys().map(|name| (name, part.into())));
    }
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let index = json!({"metadata": {}, "weight_map": map});
    write(dir, "model.safetensors.index.json", &index);
    index
}

#[test]
fn weights_in_parts_in_half_precision_or_under_another_name_are_read() {
    let config = config("t5");
    let (dir, tensors) = saved(&config, 17);
    let index = divide(dir.path(), &tensors);
    let checkpoint = load(dir.path()).unwrap();
    for (name, tensor) in &tensors {
        let read = checkpoint.tensor(name).unwrap();
        assert_eq!(values(read), values(tensor), "{name}");
    }
    std::fs::remove_file(dir.path().join("model-2.safetensors")).unwrap();
    assert_says(
        &load(dir.path()).unwrap_err().to_string(),
        &["model-2.safetensors"],
    );
    for (name, file, words) in [
        (
            "shared.weight",
            json!("../model.safetensors"),
            "is not the name of a file",
        ),
        ("shared.weight", json!(3), "invalid type"),
    ] {
        let mut index = index.clone();
        index["weight_map"][name] = file;
        write(dir.path(), "model.safetensors.index.json", &index);
        let complaint = load(dir.path()).unwrap_err().to_string();
        assert_says(&complaint, &["model.safetensors.index.json", words]);
    }

    for dtype in [DType::F16, DType::BF16] {
        let dir = TempDir::new().unwrap();
        let halves: Tensors = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap()))
            .collect();
        save(dir.path(), &config, &halves);
        let checkpoint = load(dir.path()).unwrap();
        for (name, tensor) in &halves {
            let read = checkpoint.tensor(name).unwrap();
            assert_eq!(
                (values(read), read.dtype()),
                (values(tensor), DType::F32),
                "{name}"
            );
        }
    }

    let mut moved = tensors.clone();
    let embedding = moved.remove("shared.weight").unwrap();
    moved.insert("decoder.embed_tokens.weight".into(), embedding.clone());
    // older checkpoints have tensors that nothing uses
    moved.insert(
        "decoder.block.0.layer.1.EncDecAttention.spare".into(),
        embedding.clone(),
    );
    let dir = TempDir::new().unwrap();
    save(dir.path(), &config, &moved);
    let checkpoint = load(dir.path()).unwrap();
    assert_eq!(values(checkpoint.embedding().unwrap()), values(&embedding));
}

#[test]
fn our_float_network_has_all_parameters_and_learns() {
    for kind in ["t5", "flan-t5"] {
        let config = config(kind);
        let (dir, tensors) = saved(&config, 19);
        let model = FloatT5::new(&load(dir.path()).unwrap()).unwrap();
        let parameters = model.parameters();
        assert_eq!(parameters.len(), tensors.len());
        for parameter in &parameters {
            let name = &parameter.name;
            assert_eq!(values(&parameter.var), values(&tensors[name]), "{name}");
        }
        let text: Vec<u32> = include_bytes!("published_t5.rs")[..32 * 16]
            .iter()
            .map(|&b| u32::from(b) % 40)
            .collect();
        let loss = || {
            let memory = model.encode(&text, 16).unwrap();
            model.loss(&memory, &text, 16).unwrap()
        };
        let gradients = |loss: &Tensor| -> Vec<Tensor> {
            let all = loss.backward().unwrap();
            let of = |p: &Parameter| all.get(p.var.as_tensor()).unwrap().clone();
            parameters.iter().map(of).collect()
        };
        let first = loss();
        for (parameter, gradient) in parameters.iter().zip(gradients(&first)) {
            assert!(
                values(&gradient).iter().any(|&g| g != 0.0),
                "{}",
                parameter.name
            );
        }
        let mut optimiser = Optimiser::new(model.parameters(), 1).unwrap();
        let rates = Rates {
            matrices: 0.02,
            others: 0.01,
        };
        for _ in 0..30 {
            optimiser.step(&gradients(&loss()), rates).unwrap();
        }
        let (first, last) = (values(&first)[0], values(&loss())[0]);
        assert!(last < 0.6 * first, "{kind}: {first} -> {last}");
    }
}

#[test]
fn inputs_that_are_none_are_refused() {
    let (dir, _) = saved(&config("t5"), 19);
    let model = FloatT5::new(&load(dir.path()).unwrap()).unwrap();
    for (pieces, positions) in [(vec![], 1), (vec![1, 2, 3], 2), (vec![1], 0), (vec![48], 1)] {
        let refused = model.encode(&pieces, positions);
        assert!(
            matches!(refused, Err(PublishedError::Input(_))),
            "{pieces:?}"
        );
    }
}

/// A network of the exact architecture that fits a checkpoint.
fn shape(config: &Value, vocab_size: usize) -> network::Config {
    network::Config {
        vocab_size,
        latent_vocab: 0,
        window: 16,
        max_latents: 0,
        d_model: number(config, "d_model"),
        d_kv: number(config, "d_kv"),
        d_ff: number(config, "d_ff"),
        num_heads: number(config, "num_heads"),
        num_layers: 0,
        num_decoder_layers: 2,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        feed_forward: FeedForward::Relu,
        ngrams: None,
        classes: vec![0],
    }
}

fn all_bytes() -> Vec<[u8; 1]> {
    (0..=255).map(|b| [b]).collect()
}

fn slices(tokens: &[[u8; 1]]) -> Vec<&[u8]> {
    tokens.iter().map(|token| token.as_slice()).collect()
}

/// A byte-level checkpoint with ReLU, whose cross-attention adds nothing and which is sure of what it says.
fn decisive() -> (TempDir, Value) {
    let mut config = config("byt5");
    let more =
        json!({"feed_forward_proj": "relu", "num_decoder_layers": 2, "d_model": 48, "d_kv": 16});
    merge(&mut config, &more);
    let mut tensors = tensors(&config, 23);
    for (name, tensor) in &mut tensors {
        if name.ends_with("EncDecAttention.o.weight") {
            *tensor = tensor.zeros_like().unwrap();
        }
        if name == "lm_head.weight" {
            *tensor = (&*tensor * 2.0).unwrap();
        }
    }
    let dir = TempDir::new().unwrap();
    save(dir.path(), &config, &tensors);
    (dir, config)
}

/// Mean cost in nats of bytes by the published model, other pieces left out, and its likeliest chunks.
fn likely(model: &FloatT5, chunks: usize, positions: usize) -> (f64, Vec<u16>) {
    let memory = model.encode(&vec![1; chunks], 1).unwrap();
    let mut random = Random(29);
    let mut streams: Vec<Vec<u32>> = (0..chunks).map(|_| vec![0]).collect();
    let mut nats = 0.0;
    for at in 0..positions {
        let logits = model.logits(&memory, &streams.concat(), at + 1).unwrap();
        let bytes = logits.narrow(1, at, 1).unwrap().squeeze(1).unwrap();
        let bytes = bytes.narrow(1, 3, 256).unwrap().contiguous().unwrap();
        let costs: Vec<Vec<f32>> = log_softmax(&bytes, D::Minus1).unwrap().to_vec2().unwrap();
        for (stream, costs) in streams.iter_mut().zip(costs) {
            let likeliest = (0..256)
                .max_by(|&a, &b| costs[a].total_cmp(&costs[b]))
                .unwrap();
            // the first byte is any, so that chunks differ
            let byte = if at == 0 {
                random.below(256)
            } else {
                likeliest
            };
            nats -= f64::from(costs[byte]);
            stream.push(byte as u32 + 3);
        }
    }
    let ids = streams.iter().flat_map(|stream| stream[1..].iter());
    let tokens = ids.map(|&id| id as u16 - 3).collect();
    (nats / (chunks * positions) as f64, tokens)
}

#[test]
fn a_network_that_starts_from_a_checkpoint_knows_what_the_checkpoint_knows() {
    let (dir, config) = decisive();
    let model = FloatT5::new(&load(dir.path()).unwrap()).unwrap();
    let (expected, tokens) = likely(&model, 24, 16);
    let vocabulary = all_bytes();
    let shape = shape(&config, 256);
    let mut begun = start(
        &load(dir.path()).unwrap(),
        shape.clone(),
        &slices(&vocabulary),
        &mut Random(1),
        &Device::Cpu,
    )
    .unwrap();
    let chunks: Vec<Sample> = tokens.chunks(16).map(Sample::from).collect();
    let loss = |network: &FloatNetwork| values(&network.loss(&chunks).unwrap())[0];
    let fresh = FloatNetwork::new(shape, &mut Random(1), &Device::Cpu).unwrap();
    let without = loss(&fresh);
    assert!(
        expected < 0.6 * without,
        "{expected} of {without}: the checkpoint knows nothing"
    );
    for (rounded, within) in [(false, 1e-3), (true, 0.1)] {
        begun.network.rounded = rounded;
        let cost = loss(&begun.network);
        assert!(
            (cost / expected - 1.0).abs() < within,
            "{cost} nats; the checkpoint {expected}"
        );
    }
    let taken = begun.taken.join("\n");
    for part in [
        "embedding and head of 256 of 256",
        "attention of 2",
        "feed-forward of 2",
    ] {
        assert!(taken.contains(part), "{taken}");
    }
    assert!(
        begun.left.join("\n").contains("cross-attention"),
        "{:?}",
        begun.left
    );
}

#[test]
fn what_does_not_fit_starts_from_nothing_and_is_said() {
    let config = config("flan-t5");
    let (dir, tensors) = saved(&config, 31);
    let checkpoint = load(dir.path()).unwrap();
    let vocabulary: [&[u8]; 5] = [b" b", b"\xff", b"a", b"ing", b"the"];
    let begin = |change: &dyn Fn(&mut network::Config)| {
        let mut shape = shape(&config, 5);
        change(&mut shape);
        start(
            &checkpoint,
            shape,
            &vocabulary,
            &mut Random(1),
            &Device::Cpu,
        )
    };
    let begun = begin(&|shape| shape.num_decoder_layers = 4).unwrap();
    let left = begun.left.join("\n");
    assert_says(
        &left,
        &[
            "gated GELU",
            "1 layers that only the network has",
            "1 tokens",
        ],
    );
    assert_says(
        &begun.taken.join("\n"),
        &["4 of 5 tokens", "attention of 3 layers"],
    );
    let bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let bias = values(&tensors[bias].t().unwrap());
    for (index, layer) in begun.network.layers.iter().enumerate() {
        assert!(values(&layer.down).iter().all(|&x| x == 0.0));
        let nothing = vec![0.0; bias.len()];
        let expected = if index < 3 { &bias } else { &nothing };
        assert_eq!(&values(&layer.bias), expected);
    }

    // rows of the embedding: the pieces of " b" are 3 and 7, "\xff" has none, the last row is the start
    let published: Vec<Vec<f64>> = tensors["shared.weight"]
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec2()
        .unwrap();
    let mean = |ids: &[usize]| -> Vec<f64> {
        let sum = |at| ids.iter().map(|&id| published[id][at]).sum::<f64>();
        (0..24)
            .map(|at| sum(at) / ids.len() as f64 * begun.residual)
            .collect()
    };
    let all: Vec<usize> = (0..48).collect();
    let rows: Vec<Vec<f64>> = [&[3, 7][..], &all, &[6], &[12], &[5], &[0]]
        .map(mean)
        .to_vec();
    let off = difference(&values(&begun.network.tokens), &rows.concat());
    assert!(off < 1e-6, "off by {off}");

    let heads = begin(&|shape| shape.num_heads = 2).unwrap().left.join("\n");
    assert_says(
        &heads,
        &["attention: 3 heads of 8 in the checkpoint, 2 heads of 8 in the network"],
    );
    let wide = begin(&|shape| shape.d_model = 32).unwrap_err().to_string();
    assert_says(&wide, &["d_model is 24, that of the network 32"]);
    let few = begin(&|shape| shape.vocab_size = 6)
        .unwrap_err()
        .to_string();
    assert_says(&few, &["a vocabulary of 5 tokens for a network of 6"]);
    let none = begin(&|shape| shape.classes = vec![1])
        .unwrap_err()
        .to_string();
    assert_says(&none, &["the classes do not divide the vocabulary"]);
}

#[test]
fn the_command_trains_from_a_checkpoint() {
    let (dir, config) = decisive();
    let recipe = dir.path().join("recipe.toml");
    // the rates rise so slowly that what is trained stays what it was
    let text = "[network]\nd_model = 48\nlayers = 2\nheads = 3\nd_kv = 16\nd_ff = 40\nfeed_forward = \"relu\"\n\
        vocabulary = 300\n[training]\nbatch_tokens = 256\nwarm_up = 1000000000\nheld_out_tokens = 256\n";
    std::fs::write(&recipe, text).unwrap();
    let output = dir.path().join("output");
    let train = |from: &Path| {
        let command = Command::new(env!("CARGO_BIN_EXE_s2sfs"))
            .arg("train")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
            .args(["--steps", "1", "--network"])
            .arg(&recipe)
            .arg("--from")
            .arg(from)
            .arg("--output")
            .arg(&output)
            .output()
            .unwrap();
        String::from_utf8(command.stderr).unwrap()
    };
    let said = train(&dir.path().join("none"));
    assert_says(&said, &["none/config.json is missing"]);
    assert!(!said.contains("training the vocabulary"), "{said}");
    let said = train(dir.path());
    assert_says(
        &said,
        &[
            "taken: attention of 2 layers",
            "not taken: encoder",
            "bits per byte",
        ],
    );
    let load = |file: &Path| candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let published = load(&dir.path().join("model.safetensors"));
    let trained = load(&output.join("checkpoint.safetensors"));
    let bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    let expected = values(&published[bias].t().unwrap());
    let off = difference(&values(&trained["decoder.1.attention.bias"]), &expected);
    assert!(off < 1e-5, "off by {off}; {config}");
}
