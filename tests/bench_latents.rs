//! `bench-latents`: its figures are those of payloads that the codecs make, they add up, and latents never cost a byte.

#[path = "common/cli.rs"]
#[allow(dead_code)]
mod cli;
#[path = "common/s2s.rs"]
mod s2s;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cli::{assert_refused, exit, finish, program, text};
use s2sfs::codec::{Codecs, Grouping};
use s2sfs::train::s2s::recipe::Purpose;
use s2sfs::train::s2s::session::COMPRESSOR;
use s2sfs::train::s2s::writer::Writer;
use serde_json::Value;
use tempfile::TempDir;

const SAMPLES: usize = 3;
const CLASSES: [(&str, &str); 2] = [
    ("code", include_str!("../src/model/tokenizer.rs")),
    ("docs", include_str!("../docs/durability.md")),
];
/// Bytes of a class.
const LEN: usize = 3000;

struct Bed {
    dir: TempDir,
    model: PathBuf,
    compressor: PathBuf,
}

/// A corpus, and a model that has been trained for a moment with its compressor.
fn bed() -> &'static Bed {
    static BED: OnceLock<Bed> = OnceLock::new();
    BED.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let order = s2s::order(dir.path(), s2s::recipe(8));
        s2s::trained(&order).unwrap();
        let model = dir.path().join("tiny.s2m");
        std::fs::write(&model, s2s::model_of(&order.output, false)).unwrap();
        for (class, text) in CLASSES {
            let class = dir.path().join("corpus").join(class);
            std::fs::create_dir_all(&class).unwrap();
            std::fs::write(class.join("text"), &text[..LEN]).unwrap();
        }
        Bed {
            compressor: order.output.join(COMPRESSOR),
            model,
            dir,
        }
    })
}

fn command(arguments: &[&str]) -> std::process::Command {
    let bed = bed();
    let mut command = program();
    command
        .arg("bench-latents")
        .arg(bed.dir.path().join("corpus"))
        .arg("--model")
        .arg(&bed.model)
        .args(arguments);
    command
}

fn report(arguments: &[&str]) -> Value {
    let output = finish(command(arguments).arg("--json"));
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn compressor() -> &'static str {
    bed().compressor.to_str().unwrap()
}

fn number(row: &Value, name: &str) -> u64 {
    let value = row[name].as_u64();
    value.unwrap_or_else(|| panic!("{name} of {row}"))
}

/// The row of one way.
fn row<'a>(report: &'a Value, class: &str, groups: &str, way: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    let of =
        |row: &&Value| row["class"] == class && row["groups"] == groups && row["latents"] == way;
    let mut found = rows.iter().filter(of);
    let one = found
        .next()
        .unwrap_or_else(|| panic!("no {way} of {groups} of {class}"));
    assert!(found.next().is_none());
    one
}

#[test]
fn figures_are_those_of_real_payloads_and_latents_never_cost_a_byte() {
    let samples = SAMPLES.to_string();
    let report = report(&[
        "--compressor",
        compressor(),
        "--own",
        compressor(),
        "--samples",
        &samples,
        "--chunk",
        "16,128",
        "--group",
        "1024",
        "--examples",
        "2",
    ]);
    assert_eq!(report["rows"].as_array().unwrap().len(), 2 * 3 * 4);
    let codecs = Codecs::with_model(&std::fs::read(&bed().model).unwrap()).unwrap();
    let groupings = [
        ("16 tokens", Grouping::Tokens(16)),
        ("128 tokens", Grouping::Tokens(128)),
        ("1024 bytes", Grouping::Bytes(1024)),
    ];
    // the same seeds in the same order as the command has them
    let load = |purpose| Writer::load(Path::new(compressor()), purpose, SAMPLES).unwrap();
    let (own, shared) = (load(Purpose::Chunk), load(Purpose::Extent));
    for (class, text) in CLASSES {
        let raw = &text.as_bytes()[..LEN];
        for (groups, grouping) in groupings {
            let of = |way| row(&report, class, groups, way);
            let size = |way| number(of(way), "payload_bytes");
            let plain = codecs.encode_by_model(raw, grouping, None, None).unwrap();
            assert_eq!(size("none"), plain.0.payload.len() as u64);
            for (way, writer) in [("own", &own), ("shared", &shared)] {
                let (encoded, latents) =
                    codecs.encode_smallest(raw, grouping, Some(writer)).unwrap();
                assert_eq!(size(way), encoded.payload.len() as u64);
                let layout = codecs.open(&encoded.payload).unwrap();
                assert_eq!(
                    number(of(way), "latent_bytes"),
                    layout.latent_bytes() as u64
                );
                assert_eq!(of(way)["kept"].as_f64().unwrap() > 0.0, latents.is_some());
                assert_eq!(latents.is_some(), layout.latent_bytes() > 0);
                assert!(size(way) <= size("none"));
            }
            assert_eq!(size("best"), size("own").min(size("shared")));
            for way in ["none", "own", "shared", "best"] {
                check_sums(of(way), size("none"));
            }
        }
    }
    check_examples(&report);
}

fn check_sums(row: &Value, none: u64) {
    let [payload, raw] = ["payload_bytes", "raw_bytes"].map(|name| number(row, name));
    let parts = ["code_bytes", "latent_bytes", "header_bytes"].map(|name| number(row, name));
    assert_eq!((raw, payload), (LEN as u64, parts.iter().sum()));
    assert!(parts[0] > 0 && parts[2] > 0);
    let close = |name: &str, expected: f64| {
        let found = row[name].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 1e-9,
            "{name}: {found}, not {expected}"
        );
    };
    close("ratio", raw as f64 / payload as f64);
    close("of_none", payload as f64 / none as f64);
    let latents = row["latents_per_string"].as_f64().unwrap() * number(row, "strings") as f64;
    assert_eq!(latents > 0.5, row["kept"].as_f64().unwrap() > 0.0);
    close("bits_per_latent", 8.0 * parts[1] as f64 / latents.max(0.5));
    assert!(
        row["entropy"].as_f64().unwrap() <= (number(row, "distinct").max(1) as f64).log2() + 1e-9
    );
    let times = [
        "decode_ms_median",
        "decode_ms_p99",
        "encode_tokens_per_second",
        "decode_mb_per_second",
    ];
    assert!(
        times.iter().all(|name| row[name].as_f64().unwrap() > 0.0),
        "{row}"
    );
}

/// Examples are of latents that rows have in use.
fn check_examples(report: &Value) {
    let used = |example: &&Value| {
        let rows = report["rows"].as_array().unwrap().iter();
        let mut rows = rows.filter(|r| ["groups", "latents"].iter().all(|k| r[k] == example[k]));
        rows.any(|row| number(row, "distinct") > 0)
    };
    let examples = report["examples"].as_array().unwrap();
    assert_eq!(examples.iter().filter(used).count(), examples.len());
    let kept = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .any(|row| number(row, "strings") > 0);
    assert_eq!(kept, !examples.is_empty());
}

#[test]
fn another_model_can_stand_for_no_latents() {
    let report = report(&[
        "--without",
        "full",
        "--compressor",
        compressor(),
        "--group",
        "2048",
        "--class",
        "docs",
    ]);
    let ways = report["rows"].as_array().unwrap().iter();
    let ways: Vec<&str> = ways.map(|row| row["latents"].as_str().unwrap()).collect();
    assert_eq!(ways, ["none", "empty", "shared"]);
    let of = |way| row(&report, "docs", "2048 bytes", way);
    let raw = &CLASSES[1].1.as_bytes()[..LEN];
    let default = Codecs::with_embedded("full").unwrap();
    let (encoded, _) = default.encode_by_model(raw, 2048, None, None).unwrap();
    assert_eq!(
        number(of("none"), "payload_bytes"),
        encoded.payload.len() as u64
    );
    assert!(number(of("shared"), "payload_bytes") <= number(of("empty"), "payload_bytes"));
    check_sums(of("shared"), encoded.payload.len() as u64);
}

#[test]
fn chunks_of_fewer_tokens_are_groups_of_their_own_that_decode() {
    let codecs = Codecs::with_model(&std::fs::read(&bed().model).unwrap()).unwrap();
    let raw = &CLASSES[0].1.as_bytes()[..LEN];
    for tokens in [1, 16, 100, 128] {
        let grouping = Grouping::Tokens(tokens);
        let (encoded, _) = codecs.encode_by_model(raw, grouping, None, None).unwrap();
        let layout = codecs.open(&encoded.payload).unwrap();
        let groups = codecs.group_tokens(raw, grouping).unwrap();
        let all: usize = groups.iter().map(Vec::len).sum();
        assert_eq!(layout.groups.len(), all.div_ceil(tokens));
        assert_eq!(layout.chunks as usize, groups.len());
        assert_eq!(codecs.decode_all(&encoded.payload, None).unwrap(), raw);
    }
}

#[test]
fn programs_that_are_not_installed_are_told_apart_from_those_that_are() {
    let shown = |path: &Path| {
        let arguments = [
            "--own",
            compressor(),
            "--chunk",
            "128",
            "--class",
            "code",
            "--peers",
            "--json",
        ];
        let output = finish(command(&arguments).env("PATH", path));
        assert!(output.status.success(), "{}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["peers"].as_array().unwrap().clone()
    };
    let empty = TempDir::new().unwrap();
    let none = shown(empty.path());
    assert!(none.len() >= 5 && none.iter().all(|row| row["whole_bytes"].is_null()));
    // a program of that name that "compresses" to 5 bytes
    let fake = TempDir::new().unwrap();
    let gzip = fake.path().join("gzip");
    std::fs::write(&gzip, "#!/bin/sh\nprintf 12345\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&gzip, mode).unwrap();
    let some = shown(fake.path());
    for row in some {
        let is_gzip = row["program"].as_str().unwrap().starts_with("gzip");
        let expected = is_gzip.then_some(5);
        assert_eq!(row["whole_bytes"].as_u64(), expected, "{row}");
        assert_eq!(row["pieces_bytes"].as_u64(), expected, "{row}");
        assert_eq!(number(&row, "raw_bytes"), LEN as u64);
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let output = finish(&mut command(&[]));
    assert_refused(&output, exit::USAGE, "--compressor or --own");
    let output = finish(&mut command(&["--own", compressor(), "--chunk", "129"]));
    assert_refused(&output, exit::USAGE, "129");
    let mut other = program();
    let corpus = bed().dir.path().join("corpus");
    other
        .arg("bench-latents")
        .arg(corpus)
        .args(["--model", "default", "--own", compressor()]);
    assert_refused(&finish(&mut other), exit::USAGE, "reads no such latents");
}
