//! The compressor of Seq2Seq2Seq: it writes latents in two ways that agree, learns to copy, learns from rewards,
//! and comes back from disk the same, or not at all.

use std::path::Path;

use candle_core::{Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use s2sfs::model::latents::{LatentCounts, LatentPrior};
use s2sfs::model::network::FeedForward;
use s2sfs::train::corpus::Random;
use s2sfs::train::s2s::a2c::{Episode, Options, losses};
use s2sfs::train::s2s::{Choice, Compressor, Config, S2sError, Sizes, Written};
use tempfile::TempDir;

const TOKENS: usize = 6;
const LATENTS: usize = 5;
const MOST: usize = 7;
const INPUT: usize = 12;

fn sizes() -> Sizes {
    Sizes {
        input: INPUT,
        d_model: 16,
        layers: 2,
        heads: 2,
        d_ff: 24,
        feed_forward: FeedForward::SquaredRelu,
    }
}

/// A compressor with no parameter at a special value.
fn shaken(seed: u64) -> Compressor {
    let mut random = Random(seed);
    let config = Config::new(TOKENS, LATENTS, MOST, sizes()).unwrap();
    let compressor = Compressor::new(config, &mut random, &Device::Cpu).unwrap();
    for parameter in compressor.parameters() {
        let count = parameter.var.elem_count();
        let noise = |_| random.below(2001) as f32 / 1000.0 - 1.0;
        let noise: Vec<f32> = (0..count).map(noise).collect();
        let noise = Tensor::from_vec(noise, parameter.var.shape(), &Device::Cpu).unwrap();
        let moved = (parameter.var.as_tensor() + (noise * 0.4).unwrap()).unwrap();
        parameter.var.set(&moved).unwrap();
    }
    compressor
}

/// Inputs of all lengths.
fn inputs(random: &mut Random, count: usize) -> Vec<Vec<u16>> {
    let mut input = |len: usize| (0..len).map(|_| random.below(TOKENS) as u16).collect();
    (0..count).map(|at| input(1 + at % INPUT)).collect()
}

fn slices(strings: &[Vec<u16>]) -> Vec<&[u16]> {
    strings.iter().map(Vec::as_slice).collect()
}

fn latents(written: &[Written]) -> Vec<&[u16]> {
    written
        .iter()
        .map(|written| written.latents.as_slice())
        .collect()
}

fn assert_close(found: &Tensor, expected: &[&[f32]]) {
    let found = found.to_vec2::<f32>().unwrap();
    for (found, expected) in found.iter().zip(expected) {
        let (known, rest) = found.split_at(expected.len());
        for (one, two) in known.iter().zip(*expected) {
            assert!((one - two).abs() < 1e-4, "{found:?} {expected:?}");
        }
        assert!(rest.iter().all(|&x| x == 0.0), "{found:?} {expected:?}");
    }
}

#[test]
fn strings_cost_in_one_go_what_they_cost_latent_by_latent() {
    let compressor = shaken(1);
    let mut random = Random(2);
    let inputs = inputs(&mut random, 15);
    let sampled = Choice::Sampled {
        count: 3,
        temperature: 1.0,
    };
    for (choice, count) in [(Choice::Greedy, 1), (sampled, 3)] {
        let written = compressor
            .write(&slices(&inputs), choice, &mut random)
            .unwrap();
        assert_eq!(written.len(), inputs.len() * count);
        let lengths: Vec<usize> = written.iter().map(|w| w.latents.len()).collect();
        let full = lengths.iter().filter(|&&len| len == MOST).count();
        assert!(full > 0 && full < lengths.len(), "{lengths:?}");
        let repeated: Vec<&[u16]> = inputs
            .iter()
            .flat_map(|input| vec![input.as_slice(); count])
            .collect();
        let memory = compressor.read(&repeated).unwrap();
        let evaluation = compressor.evaluate(&memory, &latents(&written)).unwrap();
        let log_probs: Vec<&[f32]> = written.iter().map(|w| w.log_probs.as_slice()).collect();
        assert_close(&evaluation.log_probs, &log_probs);
        let values: Vec<&[f32]> = written.iter().map(|w| w.values.as_slice()).collect();
        assert_close(&evaluation.values, &values);
        let taken = written.iter().map(|w| vec![1.0; w.log_probs.len()]);
        let taken: Vec<Vec<f32>> = taken.collect();
        let taken: Vec<&[f32]> = taken.iter().map(Vec::as_slice).collect();
        assert_close(&evaluation.taken, &taken);
        let entropies = evaluation.entropies.to_vec2::<f32>().unwrap();
        let most = ((LATENTS + 1) as f32).ln() + 1e-5;
        for (entropies, written) in entropies.iter().zip(&written) {
            let (known, rest) = entropies.split_at(written.log_probs.len());
            assert!(known.iter().all(|e| (0.0..most).contains(e)));
            assert!(rest.iter().all(|&e| e == 0.0));
        }
    }
}

#[test]
fn strings_do_not_depend_on_what_is_written_with_them() {
    let compressor = shaken(3);
    let mut random = Random(4);
    let inputs = inputs(&mut random, 9);
    let together = compressor.write(&slices(&inputs), Choice::Greedy, &mut random);
    let together = together.unwrap();
    for (input, together) in inputs.iter().zip(&together) {
        let alone = compressor.write(&[input], Choice::Greedy, &mut random);
        assert_eq!(alone.unwrap()[0].latents, together.latents);
    }
    // the same seed gives the same samples, and nearly no temperature gives the likeliest
    let sampled = |temperature, seed| {
        let choice = Choice::Sampled {
            count: 2,
            temperature,
        };
        let written = compressor.write(&slices(&inputs), choice, &mut Random(seed));
        let written = written.unwrap().into_iter();
        written.map(|w| w.latents).collect::<Vec<_>>()
    };
    assert_eq!(sampled(1.0, 5), sampled(1.0, 5));
    assert_ne!(sampled(1.0, 5), sampled(1.0, 6));
    for (pair, greedy) in sampled(1e-4, 7).chunks(2).zip(&together) {
        assert_eq!(pair, [greedy.latents.clone(), greedy.latents.clone()]);
    }
}

#[test]
fn samples_come_as_often_as_they_are_likely() {
    let compressor = shaken(8);
    let input: &[u16] = &[3, 1, 4];
    let choice = Choice::Sampled {
        count: 4000,
        temperature: 1.0,
    };
    let written = compressor.write(&[input], choice, &mut Random(9)).unwrap();
    let memory = compressor.read(&[input; 1 + LATENTS]).unwrap();
    let strings: Vec<Vec<u16>> = (0..LATENTS as u16).map(|latent| vec![latent]).collect();
    let mut strings = slices(&strings);
    strings.push(&[]);
    let evaluation = compressor.evaluate(&memory, &strings).unwrap();
    let expected = evaluation.log_probs.to_vec2::<f32>().unwrap();
    for (string, expected) in strings.iter().zip(expected) {
        let begins = |w: &&Written| w.latents.first() == string.first();
        let share = written.iter().filter(begins).count() as f32 / 4000.0;
        // three standard deviations are at most 0.024
        assert!((share - expected[0].exp()).abs() < 0.03, "{string:?}");
    }
}

fn adam(compressor: &Compressor, rate: f64) -> AdamW {
    let vars = compressor.parameters().into_iter().map(|p| p.var).collect();
    let params = ParamsAdamW {
        lr: rate,
        weight_decay: 0.0,
        ..ParamsAdamW::default()
    };
    AdamW::new(vars, params).unwrap()
}

#[test]
fn it_learns_to_copy_its_input() {
    let mut random = Random(10);
    let sizes = Sizes {
        input: 2,
        d_model: 32,
        d_ff: 64,
        ..sizes()
    };
    let config = Config::new(4, 4, 4, sizes).unwrap();
    let compressor = Compressor::new(config, &mut random, &Device::Cpu).unwrap();
    let mut adam = adam(&compressor, 3e-3);
    let mut draw = |count: usize| -> Vec<Vec<u16>> {
        let mut input = |len: usize| (0..len).map(|_| random.below(4) as u16).collect();
        (0..count).map(|at| input(1 + at % 2)).collect()
    };
    let mut last = f32::MAX;
    for step in 0..400 {
        let inputs = draw(48);
        let memory = compressor.read(&slices(&inputs)).unwrap();
        let evaluation = compressor.evaluate(&memory, &slices(&inputs)).unwrap();
        let loss = evaluation.loss().unwrap();
        last = loss.to_scalar().unwrap();
        if step == 0 {
            // nothing is likelier than anything else
            assert!((last - 5f32.ln()).abs() < 1e-4, "{last}");
        }
        adam.backward_step(&loss).unwrap();
    }
    let inputs = draw(90);
    let written = compressor
        .write(&slices(&inputs), Choice::Greedy, &mut Random(0))
        .unwrap();
    let right = inputs
        .iter()
        .zip(&written)
        .filter(|(i, w)| **i == w.latents);
    let right = right.count();
    println!("loss {last}, {right} of 90 copied");
    assert!(right > 60, "{right} of 90 copied, loss {last}");
}

/// What strings are worth in the game below: 1 for each latent that is the first token, less 0.1 for each latent.
fn worth(input: &[u16], string: &[u16]) -> f64 {
    let hits = string.iter().filter(|&&latent| latent == input[0]).count();
    hits as f64 - 0.1 * string.len() as f64
}

#[test]
fn it_learns_from_rewards_what_to_write() {
    for (options, reuse) in [
        (Options::default(), 1),
        (
            Options {
                lambda: 1.0,
                entropy: 0.02,
                clip: 2.0,
                ..Options::default()
            },
            2,
        ),
    ] {
        let mut random = Random(11);
        let sizes = Sizes {
            input: 4,
            layers: 1,
            ..sizes()
        };
        let config = Config::new(4, 4, 4, sizes).unwrap();
        let compressor = Compressor::new(config, &mut random, &Device::Cpu).unwrap();
        let mut adam = adam(&compressor, 5e-3);
        let choice = Choice::Sampled {
            count: 4,
            temperature: 1.0,
        };
        let mut means = Vec::new();
        for _ in 0..200 {
            let inputs: Vec<Vec<u16>> = (0..12).map(|_| vec![random.below(4) as u16]).collect();
            let written = compressor
                .write(&slices(&inputs), choice, &mut random)
                .unwrap();
            let inputs: Vec<&[u16]> = written
                .iter()
                .enumerate()
                .map(|(at, _)| inputs[at / 4].as_slice())
                .collect();
            let strings = latents(&written);
            let each = inputs.iter().zip(&strings);
            let mean = each
                .map(|(input, string)| worth(input, string))
                .sum::<f64>();
            means.push(mean / strings.len() as f64);
            let costs: Vec<Vec<f64>> = written
                .iter()
                .map(|w| {
                    let cost = |at: usize| if at < w.latents.len() { 0.1 } else { 0.0 };
                    (0..w.log_probs.len()).map(cost).collect()
                })
                .collect();
            let episodes: Vec<Episode> = (0..written.len())
                .map(|at| Episode {
                    costs: &costs[at],
                    // the cost of latents is paid by the actions
                    residual: -worth(inputs[at], strings[at]) - 0.1 * strings[at].len() as f64,
                    behaviour: (reuse > 1).then_some(written[at].log_probs.as_slice()),
                })
                .collect();
            for _ in 0..reuse {
                let memory = compressor.read(&inputs).unwrap();
                let evaluation = compressor.evaluate(&memory, &strings).unwrap();
                let losses = losses(&evaluation, &episodes, 1.0, &options).unwrap();
                adam.backward_step(&losses.total).unwrap();
            }
        }
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        // the first strings were random
        let (first, last) = (mean(&means[..3]), mean(&means[190..]));
        println!("lambda {}: {first:.3} -> {last:.3}", options.lambda);
        assert!(first < 0.8, "{first}");
        assert!(last > first + 1.0, "{first} -> {last}");
    }
}

#[test]
fn what_strings_cost_fits_their_actions() {
    let compressor = shaken(12);
    let mut random = Random(13);
    let inputs = inputs(&mut random, 20);
    let choice = Choice::Sampled {
        count: 2,
        temperature: 2.0,
    };
    let written = compressor
        .write(&slices(&inputs), choice, &mut random)
        .unwrap();
    let mut counts = LatentCounts::new(LATENTS, MOST).unwrap();
    for string in latents(&written) {
        counts.add(string).unwrap();
    }
    let prior = LatentPrior::new(&counts);
    for written in written {
        let costs = prior.costs(&written.latents).unwrap();
        assert_eq!(costs.len(), written.log_probs.len());
    }
}

#[test]
fn a_compressor_comes_back_from_disk_the_same() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("compressor");
    let compressor = shaken(14);
    compressor.save(&dir).unwrap();
    // over one that is there
    compressor.save(&dir).unwrap();
    let loaded = Compressor::load(&dir, &Device::Cpu).unwrap();
    assert_eq!(loaded.config(), compressor.config());
    let inputs = inputs(&mut Random(15), 12);
    let choice = Choice::Sampled {
        count: 2,
        temperature: 0.7,
    };
    let write = |compressor: &Compressor| {
        let written = compressor.write(&slices(&inputs), choice, &mut Random(16));
        written.unwrap()
    };
    assert_eq!(write(&loaded), write(&compressor));
}

/// The error of loading, which must name the file.
fn refused(dir: &Path, file: &str) -> S2sError {
    let error = Compressor::load(dir, &Device::Cpu).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(file), "{message}");
    error
}

#[test]
fn damaged_directories_are_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let (config, weights) = (dir.join("config.json"), dir.join("model.safetensors"));
    refused(dir, "config.json");
    shaken(17).save(dir).unwrap();
    let good = std::fs::read(&weights).unwrap();
    let mut random = Random(18);
    for _ in 0..60 {
        let mut bad = good.clone();
        let at = random.below(bad.len());
        bad[at] ^= 1 << random.below(8);
        std::fs::write(&weights, bad).unwrap();
        refused(dir, "model.safetensors");
        std::fs::write(&weights, &good[..at]).unwrap();
        refused(dir, "model.safetensors");
    }
    std::fs::remove_file(&weights).unwrap();
    refused(dir, "model.safetensors");
    std::fs::write(&weights, &good).unwrap();
    Compressor::load(dir, &Device::Cpu).unwrap();

    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, file) in [
        ("\"d_model\": 16", "\"d_model\": 0", "config.json"),
        ("\"d_model\": 16", "\"d_model\": 17", "config.json"),
        ("\"d_model\": 16", "\"d_model\": -1", "config.json"),
        ("\"layers\": 2", "\"layers\": 999999999", "config.json"),
        ("\"version\": 1", "\"version\": 2", "config.json"),
        ("\"heads\"", "\"hats\"", "config.json"),
        ("}", "", "config.json"),
        // possible, but not these weights
        ("\"d_model\": 16", "\"d_model\": 32", "model.safetensors"),
        (
            "\"latent_vocab\": 5",
            "\"latent_vocab\": 6",
            "model.safetensors",
        ),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text, "{from}");
        std::fs::write(&config, bad).unwrap();
        refused(dir, file);
    }
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let compressor = shaken(19);
    let mut random = Random(20);
    let mut write = |inputs: &[&[u16]]| {
        let written = compressor.write(inputs, Choice::Greedy, &mut random);
        matches!(written, Err(S2sError::Input(_)))
    };
    assert!(write(&[]));
    assert!(write(&[&[]]));
    assert!(write(&[&[1], &[]]));
    assert!(write(&[&[0; INPUT + 1]]));
    assert!(write(&[&[TOKENS as u16]]));
    assert!(!write(&[&[0; INPUT]]));
    for (count, temperature) in [(0, 1.0), (1, 0.0), (1, -1.0), (1, f64::NAN)] {
        let choice = Choice::Sampled { count, temperature };
        assert!(compressor.write(&[&[1]], choice, &mut random).is_err());
    }
    let memory = compressor.read(&[&[1, 2]]).unwrap();
    let strings: [&[&[u16]]; 4] = [&[], &[&[1], &[2]], &[&[LATENTS as u16]], &[&[0; MOST + 1]]];
    for strings in strings {
        let evaluation = compressor.evaluate(&memory, strings);
        assert!(matches!(evaluation, Err(S2sError::Input(_))), "{strings:?}");
    }
    for change in [
        |sizes: &mut Sizes| sizes.heads = 3,
        |sizes: &mut Sizes| sizes.input = 0,
        |sizes: &mut Sizes| sizes.d_ff = 0,
    ] {
        let mut sizes = sizes();
        change(&mut sizes);
        assert!(Config::new(TOKENS, LATENTS, MOST, sizes).is_err());
    }
    assert!(Config::new(TOKENS, LATENTS, 129, sizes()).is_err());
    assert!(Config::new(TOKENS, 0, MOST, sizes()).is_err());
}
