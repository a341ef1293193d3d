//! Training of the network: it learns, goes on where it stopped, and what is exported is what was trained.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/decoder.rs"]
mod decoder;
#[path = "common/moment.rs"]
mod moment;

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use cli::{Bed, assert_refused, exit, s2sfs, text};
use decoder::decoder;
use moment::{by_columns, train};
use s2sfs::model::network::simd::Simd;
use s2sfs::model::network::{FeedForward, Network};
use s2sfs::train::corpus::Random;
use s2sfs::train::network::NetworkError;
use s2sfs::train::network::checkpoint::{Checkpoint, State};
use s2sfs::train::network::evaluate::{Computer, exact_cost};
use s2sfs::train::network::export::export;
use s2sfs::train::network::float::{FloatNetwork, Sample};
use s2sfs::train::network::recipe::{Recipe, Shape, Training};
use s2sfs::train::network::session::{self, CHECKPOINT, News, Order};

/// Text as tokens: the letters of this file's own source, folded to the vocabulary.
fn tokens(below: usize) -> Vec<u16> {
    let text = include_str!("train_network.rs");
    text.bytes().map(|b| u16::from(b) % below as u16).collect()
}

#[test]
fn a_network_learns_and_its_exact_form_costs_at_most_one_percent_more() {
    for (feed_forward, by_hand) in [
        (FeedForward::Relu, true),
        (FeedForward::SquaredRelu, true),
        (FeedForward::SquaredRelu, false),
    ] {
        let config = decoder(feed_forward);
        let data = tokens(config.vocab_size);
        let sequences: Vec<Sample> = data.chunks(2 * config.window).map(Sample::from).collect();
        let network = FloatNetwork::new(config.clone(), &mut Random(1), &Device::Cpu).unwrap();
        let mut computer = match by_hand {
            true => Computer::new(&network, &Device::Cpu, 2),
            false => Computer::Candle,
        };
        train(
            &network,
            &mut computer,
            &sequences,
            if by_hand { 200 } else { 60 },
        );
        let float = computer.cost(&network, &sequences).unwrap();
        let uniform = (config.vocab_size as f64).ln() * data.len() as f64;
        assert!(
            float < 0.7 * uniform,
            "{float} nats; without learning {uniform}"
        );
        let exact = Arc::new(export(&network).unwrap());
        let engine = Simd::new(exact.clone(), 1);
        let cost = exact_cost(&engine, &exact, &sequences).unwrap();
        assert!(
            (cost / float - 1.0).abs() < 0.01,
            "exact {cost}, float {float}"
        );
    }
}

/// Changes a network so that it computes the same in floats, but with weights that no scale of the exact network holds in
/// the units of training, and with negative gains.
fn outgrow(network: &FloatNetwork) {
    for layer in &network.layers {
        let attention = &layer.attention;
        let signs = [1.0, -1.0, -1.0];
        for var in [
            &attention.norm,
            &attention.query,
            &attention.key,
            &attention.value,
        ] {
            by_columns(var, &signs);
        }
        for var in [&layer.norm, &layer.up] {
            by_columns(var, &signs);
        }
        for var in [&attention.output, &layer.down] {
            by_columns(var, &[16.0]);
        }
        // negative scores with keys that are turned, negative gains with outputs that are
        for var in [
            &attention.score,
            &attention.gain,
            &attention.key,
            &attention.output,
        ] {
            by_columns(var, &[-1.0]);
        }
    }
    for var in network.ngrams.iter().chain([&network.tokens]) {
        by_columns(var, &[16.0]);
    }
    by_columns(&network.norm, &[-0.25, 0.25]);
    for head in [&network.class_head, &network.token_head] {
        by_columns(head, &[-4.0, 4.0]);
    }
}

#[test]
fn weights_that_outgrow_the_units_of_training_are_exported_in_others() {
    let config = decoder(FeedForward::SquaredRelu);
    let data = tokens(config.vocab_size);
    let sequences: Vec<Sample> = data.chunks(2 * config.window).map(Sample::from).collect();
    let mut network = FloatNetwork::new(config, &mut Random(1), &Device::Cpu).unwrap();
    let mut computer = Computer::new(&network, &Device::Cpu, 2);
    train(&network, &mut computer, &sequences, 100);
    let exact_cost = |network: &FloatNetwork| {
        let exact = Arc::new(export(network).unwrap());
        let engine = Simd::new(exact.clone(), 1);
        exact_cost(&engine, &exact, &sequences).unwrap()
    };
    network.rounded = false;
    let float = computer.cost(&network, &sequences).unwrap();
    let exact = exact_cost(&network);
    outgrow(&network);
    let other_float = computer.cost(&network, &sequences).unwrap();
    assert!(
        (other_float / float - 1.0).abs() < 2e-3,
        "{float} {other_float}"
    );
    let other_exact = exact_cost(&network);
    assert!(
        (other_exact / exact - 1.0).abs() < 0.02,
        "{exact} {other_exact}"
    );
}

/// Where there is a GPU and the feature `cuda`, candle trains there; it must be there if `S2SFS_NEEDS_CUDA` is set.
#[test]
fn training_by_hand_and_by_candle_go_the_same_way() {
    let config = decoder(FeedForward::SquaredRelu);
    let data = tokens(config.vocab_size);
    let sequences: Vec<Sample> = data.chunks(2 * config.window).map(Sample::from).collect();
    let device = Device::cuda_if_available(0).unwrap();
    let needed = std::env::var_os("S2SFS_NEEDS_CUDA").is_some();
    assert!(device.is_cuda() || !needed, "there is no CUDA device");
    let by_hand = Computer::new(
        &FloatNetwork::new(config.clone(), &mut Random(1), &Device::Cpu).unwrap(),
        &Device::Cpu,
        2,
    );
    assert!(matches!(by_hand, Computer::Fused(_)));
    let ways = [(Device::Cpu, by_hand), (device, Computer::Candle)];
    let [one, two] = ways.map(|(device, mut computer)| {
        let network = FloatNetwork::new(config.clone(), &mut Random(1), &device).unwrap();
        let before = computer.cost(&network, &sequences).unwrap();
        train(&network, &mut computer, &sequences, 25);
        (before, computer.cost(&network, &sequences).unwrap())
    });
    assert!((one.0 / two.0 - 1.0).abs() < 1e-4, "{one:?} {two:?}");
    assert!(one.1 < 0.8 * one.0, "{one:?}");
    assert!((one.1 / two.1 - 1.0).abs() < 0.01, "{one:?} {two:?}");
}

/// A directory of training files: the project's own text, in two kinds.
fn make_corpus(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (from, kind, most) in [("docs", "text", 6), ("src/store", "code", 20)] {
        let to = dir.join(kind);
        std::fs::create_dir_all(&to).unwrap();
        let mut paths: Vec<_> = std::fs::read_dir(root.join(from))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        paths.sort();
        for path in paths.into_iter().take(most) {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn recipe(steps: u64) -> Recipe {
    Recipe {
        network: Shape {
            d_model: 32,
            layers: 1,
            heads: 2,
            d_ff: 64,
            window: 16,
            vocabulary: 300,
            class_tokens: 20,
            buckets: 8,
            max_distance: 16,
            ..Shape::default()
        },
        training: Training {
            batch_tokens: 1500,
            sequence: 40,
            steps: Some(steps),
            warm_up: 3,
            decay_from: 1.0,
            evaluate_steps: 5,
            held_out_tokens: 3000,
            ..Training::default()
        },
    }
}

fn order(bed: &Bed, output: &str, steps: u64) -> Order {
    Order {
        dir: bed.path("corpus"),
        output: bed.path(output),
        recipe: recipe(steps),
        from: None,
        tokenizer: None,
        resume: false,
        device: Device::Cpu,
        threads: 2,
    }
}

fn run(order: &Order) -> Result<session::Outcome, NetworkError> {
    session::run(order, &|_: News| ())
}

const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

fn files(order: &Order) -> Vec<Vec<u8>> {
    FILES
        .map(|name| std::fs::read(order.output.join(name)).unwrap())
        .to_vec()
}

#[test]
fn a_run_that_was_interrupted_gives_the_same_network_bit_for_bit() {
    let bed = Bed::new();
    make_corpus(&bed.path("corpus"));
    let whole = order(&bed, "whole", 14);
    run(&whole).unwrap();
    let mut again = order(&bed, "again", 14);
    again.threads = 1;
    run(&again).unwrap();
    assert!(files(&whole) == files(&again), "two runs differ");
    // the first half ends as if it had been stopped, then goes on
    let mut parts = order(&bed, "parts", 6);
    run(&parts).unwrap();
    assert!(files(&whole) != files(&parts));
    parts.recipe = recipe(14);
    parts.resume = true;
    let outcome = run(&parts).unwrap();
    assert_eq!((outcome.step, outcome.tokens), (14, 14 * 1500));
    assert!(files(&whole) == files(&parts), "going on made a difference");
    Network::from_bytes(&files(&parts)[0], &files(&parts)[1]).unwrap();
}

#[test]
fn the_mean_of_the_ends_of_cycles_is_kept_and_taken_where_it_is_better() {
    let bed = Bed::new();
    make_corpus(&bed.path("corpus"));
    let mut whole = order(&bed, "whole", 40);
    whole.recipe.training.cycles = 4;
    whole.recipe.training.decay_from = 0.2;
    let outcome = run(&whole).unwrap();
    assert!([1, 4].contains(&outcome.averaged));
    // a run that was interrupted has the same mean, and one more end when it goes on
    let mut parts = order(&bed, "parts", 40);
    parts.recipe = whole.recipe.clone();
    parts.recipe.training.steps = Some(10);
    parts.recipe.training.cycles = 1;
    run(&parts).unwrap();
    let ends = |order: &Order| {
        let path = order.output.join(CHECKPOINT);
        let checkpoint = Checkpoint::<State>::read(&path, &Device::Cpu);
        checkpoint.unwrap().state.averaged
    };
    assert_eq!((ends(&whole), ends(&parts)), (4, 1));
    parts.recipe.training.steps = Some(20);
    parts.resume = true;
    let twice = run(&parts).unwrap();
    assert_eq!(ends(&parts), 2);
    // asked again without more to do, it chooses the same
    let again = run(&parts).unwrap();
    assert_eq!((ends(&parts), again.averaged), (2, twice.averaged));
    assert_eq!(again.exact, twice.exact);
}

#[test]
fn a_checkpoint_that_is_damaged_or_does_not_fit_is_refused() {
    let bed = Bed::new();
    make_corpus(&bed.path("corpus"));
    let mut order = order(&bed, "out", 2);
    run(&order).unwrap();
    order.resume = true;
    let refused = |order: &Order, why: &str| {
        let error = run(order).unwrap_err().to_string();
        let checkpoint = order.output.join(CHECKPOINT).display().to_string();
        assert!(
            error.contains(why) && error.contains(&checkpoint),
            "{error}"
        );
    };
    let mut other = order.clone();
    other.recipe.network.d_ff = 128;
    refused(&other, "another configuration");
    let extra = order.dir.join("text/extra");
    std::fs::write(&extra, "one more file").unwrap();
    refused(&order, "another set of training data");
    std::fs::remove_file(&extra).unwrap();
    // the same files in the same order, but one of another kind
    let places = ["text/benchmarks.md", "code/zz"].map(|name| order.dir.join(name));
    std::fs::rename(&places[0], &places[1]).unwrap();
    refused(&order, "another set of training data");
    std::fs::rename(&places[1], &places[0]).unwrap();
    let path = order.output.join(CHECKPOINT);
    let good = std::fs::read(&path).unwrap();
    let in_values = good.len() - 1000;
    let in_state = good.windows(8).position(|word| word == b"\"tokens\\");
    let in_state = in_state.unwrap() + "\"tokens\\\":".len();
    let [values, state] = [in_values, in_state].map(|place| {
        let mut damaged = good.clone();
        damaged[place] ^= 1;
        damaged
    });
    for bad in [&values[..], &state, &good[..good.len() / 2], b""] {
        std::fs::write(&path, bad).unwrap();
        refused(&order, "damaged");
    }
    std::fs::write(&path, &good).unwrap();
    run(&order).unwrap();
}

#[test]
fn a_network_that_loses_more_than_one_percent_is_not_written() {
    let bed = Bed::new();
    make_corpus(&bed.path("corpus"));
    let mut order = order(&bed, "out", 30);
    // such rates without any rounding make weights that 8 bits do not hold
    order.recipe.training.float_phase = 1.0;
    order.recipe.training.matrix_rate = 2.0;
    order.recipe.training.rate = 0.05;
    let error = run(&order).unwrap_err();
    let NetworkError::Lossy(outcome) = &error else {
        panic!("{error}");
    };
    assert!(outcome.loss() > session::LOSS_MAX, "{outcome}");
    assert!(error.to_string().contains("more than 1 %"), "{error}");
    assert!(FILES.iter().all(|name| !order.output.join(name).exists()));
    Checkpoint::<State>::read(&order.output.join(CHECKPOINT), &Device::Cpu).unwrap();
}

#[test]
fn the_command_trains_and_goes_on_and_says_what_is_wrong() {
    let bed = Bed::new();
    make_corpus(&bed.path("corpus"));
    let config = bed.path("tiny.toml");
    std::fs::write(&config, toml::to_string(&recipe(6)).unwrap()).unwrap();
    let (dir, out) = (bed.path("corpus"), bed.path("out"));
    let train = |more: &[&str]| {
        let fixed = ["train", "-o"].map(String::from);
        let paths = [&out, &dir].map(|path| path.display().to_string());
        let network = ["--network".to_string(), config.display().to_string()];
        let more = more.iter().map(|argument| argument.to_string());
        s2sfs(fixed.into_iter().chain(paths).chain(network).chain(more))
    };
    let output = train(&["--resume"]);
    assert_refused(&output, exit::USAGE, "to go on from");
    let output = train(&[]);
    assert!(output.status.success(), "{}", text(&output));
    for word in ["training the vocabulary", "step 5", "loss of quantisation"] {
        assert!(text(&output).contains(word), "{word}: {}", text(&output));
    }
    assert_refused(&train(&[]), exit::USAGE, "--resume");
    let output = train(&["--resume", "--steps", "10"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("10 steps"), "{}", text(&output));
    let output = train(&["--resume", "--steps", "12", "--seed", "2"]);
    assert_refused(&output, exit::USAGE, "another configuration");
    let output = train(&["--resume", "--minutes=-1"]);
    assert_refused(&output, exit::USAGE, "minutes must be more than 0");
    assert_refused(
        &train(&["--force", "--device", "gpu"]),
        exit::USAGE,
        "cuda:N",
    );
    for (useless, named) in [
        (&["--force", "--resume"][..], "--resume"),
        (&["--base", "default.s2m"], "--base"),
        (&["--with-network", "net"], "--with-network"),
        (&["--name", "net"], "--name"),
        (&["--buckets", "10000"], "--buckets"),
        (&["--mixer-bytes", "10000"], "--mixer-bytes"),
        (&["--threads", "0"], "1..=1024"),
        (&["--threads", "1025"], "1..=1024"),
    ] {
        assert_refused(&train(useless), exit::USAGE, named);
    }
    let tokenizer = bed.path("tokenizer.json");
    std::fs::write(&tokenizer, "{}").unwrap();
    let name = tokenizer.display().to_string();
    assert_refused(
        &train(&["--force", "--tokenizer", &name]),
        exit::DAMAGED,
        &name,
    );
    assert!(
        FILES.iter().all(|file| out.join(file).exists()),
        "nothing is taken away before training begins"
    );
    std::fs::remove_dir_all(dir.join("code")).unwrap();
    std::fs::remove_dir_all(dir.join("text")).unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    assert_refused(&train(&["--force"]), exit::USAGE, "0 bytes");
    std::fs::write(dir.join("one"), vec![b'a'; 100_000]).unwrap();
    assert_refused(&train(&["--force"]), exit::USAGE, "too few files");
    std::fs::write(&config, "[network]\nlayres = 3\n").unwrap();
    assert_refused(&train(&["--force"]), exit::USAGE, "layres");
    std::fs::write(&config, "[network]\nlatents = 3\n").unwrap();
    assert_refused(&train(&["--force"]), exit::USAGE, "latents must be 0");
}
