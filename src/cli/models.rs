//! `s2sfs bench-models`: models side by side, at equal groups and anchors, for each class of a corpus.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::compress::codecs;
use super::container::in_parallel;
use super::corpus::{CorpusArguments, Extent};
use super::output::{self, Patience, megabytes_per_second};
use crate::codec::{Codecs, Measured};
use crate::control::ratio;
use crate::exit::{Context, Outcome};
use crate::options::{ModelChoice, Settings};

#[derive(Debug, Args)]
pub struct ModelsArguments {
    #[command(flatten)]
    corpus: CorpusArguments,
    /// Models to compare; the first is what the others are compared with
    #[arg(long = "model", value_name = "NAME|FILE", required = true)]
    models: Vec<PathBuf>,
    /// Bytes of a group
    #[arg(long, value_name = "N", default_value_t = 16 << 10)]
    group: usize,
    /// Start the later extents of a file from its beginning
    #[arg(long)]
    anchors: bool,
    /// Extents that are coded at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

/// One model on one class.
#[derive(Debug, Serialize)]
struct Row {
    class: String,
    model: String,
    raw_bytes: u64,
    payload_bytes: u64,
    ratio: f64,
    /// Size against that of the first model.
    of_first: f64,
    /// Share of the tokens for which the network's heads are evaluated.
    evaluated: f64,
    bytes_per_token: f64,
    /// Bits per byte for end-of-token decisions, and what forced bits would have cost.
    end_bits: f64,
    saved_bits: f64,
    encode_mb_per_second: f64,
    decode_mb_per_second: f64,
}

pub fn run(arguments: &ModelsArguments) -> Outcome<()> {
    let models = arguments.models.iter();
    let models = models.map(|path| Ok((path.display().to_string(), codecs_of(path)?)));
    let models = models.collect::<Outcome<Vec<_>>>()?;
    let waiting = Patience::waiting("measuring");
    let mut rows = Vec::new();
    for class in arguments.corpus.classes()? {
        let extents = arguments.corpus.extents(&class, arguments.anchors)?;
        let mut first = None;
        for (model, codecs) in &models {
            let measured = measure(arguments, codecs, &extents)?;
            let first = *first.get_or_insert(measured.payload_bytes);
            rows.push(row(&class.name, model, &measured, first));
        }
    }
    drop(waiting);
    match arguments.json {
        true => output::print_json(&rows),
        false => output::print(&table(&rows)),
    }
}

/// Codecs that encode with a model, for nothing else than measuring.
pub fn codecs_of(model: &Path) -> Outcome<Codecs> {
    codecs(&Settings {
        model: ModelChoice::of(model),
        ..Settings::default()
    })
}

fn measure(arguments: &ModelsArguments, codecs: &Codecs, extents: &[Extent]) -> Outcome<Measured> {
    let one =
        |extent: &Extent| codecs.measure(&extent.raw, arguments.group, extent.anchor.as_ref());
    let mut sum = Measured::default();
    for measured in in_parallel(extents, arguments.threads, one) {
        sum += measured.context("measuring")?;
    }
    Ok(sum)
}

fn row(class: &str, model: &str, measured: &Measured, first: u64) -> Row {
    let per_byte = |bits: f64| bits / measured.raw_bytes.max(1) as f64;
    let counts = measured.counts;
    Row {
        class: class.to_owned(),
        model: model.to_owned(),
        raw_bytes: measured.raw_bytes,
        payload_bytes: measured.payload_bytes,
        ratio: ratio(measured.raw_bytes, measured.payload_bytes),
        of_first: ratio(measured.payload_bytes, first),
        evaluated: ratio(counts.evaluated, counts.tokens),
        bytes_per_token: ratio(counts.bytes, counts.tokens),
        end_bits: per_byte(measured.costs.ends),
        saved_bits: per_byte(measured.costs.saved),
        encode_mb_per_second: megabytes_per_second(measured.raw_bytes, measured.encoding),
        decode_mb_per_second: megabytes_per_second(measured.raw_bytes, measured.decoding),
    }
}

fn table(rows: &[Row]) -> String {
    let head = [
        "class", "model", "bytes", "ratio", "of first", "heads", "B/token", "ends", "saved",
        "enc MB/s", "dec MB/s",
    ];
    let cells = |row: &Row| {
        [
            row.class.clone(),
            row.model.clone(),
            row.raw_bytes.to_string(),
            format!("{:.3}", row.ratio),
            format!("{:.4}", row.of_first),
            format!("{:.0} %", 100.0 * row.evaluated),
            format!("{:.2}", row.bytes_per_token),
            format!("{:.3}", row.end_bits),
            format!("{:.3}", row.saved_bits),
            format!("{:.3}", row.encode_mb_per_second),
            format!("{:.3}", row.decode_mb_per_second),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    output::table(head, 2, &rows)
}
