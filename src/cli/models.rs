//! `s2sfs bench-models`: models side by side, at equal groups and anchors, for each class of a corpus.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::compress::codecs;
use super::container::in_parallel;
use super::output::{self, megabytes_per_second};
use super::suite::files;
use crate::codec::{ANCHOR_BYTES, AnchorSource, Codecs, Measured};
use crate::control::ratio;
use crate::exit::{Context, Outcome};
use crate::options::{ModelChoice, Settings};

#[derive(Debug, Args)]
pub struct ModelsArguments {
    /// Corpus: a directory with a subdirectory for each class
    corpus: PathBuf,
    /// Models to compare; the first is what the others are compared with
    #[arg(long = "model", value_name = "NAME|FILE", required = true)]
    models: Vec<PathBuf>,
    /// Classes to measure [default: all]
    #[arg(long = "class", value_name = "NAME")]
    classes: Vec<String>,
    /// Bytes of each class, spread over its files
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    bytes: usize,
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

/// An extent, and the beginning of its file if it is a later one.
struct Extent {
    raw: Vec<u8>,
    anchor: Option<AnchorSource>,
}

pub fn run(arguments: &ModelsArguments) -> Outcome<()> {
    let models = arguments
        .models
        .iter()
        .map(|path| {
            let settings = Settings {
                model: ModelChoice::of(path),
                ..Settings::default()
            };
            Ok((path.display().to_string(), codecs(&settings)?))
        })
        .collect::<Outcome<Vec<_>>>()?;
    let mut rows = Vec::new();
    for class in files::classes(&arguments.corpus, &arguments.classes)? {
        let extents = extents(arguments, &class)?;
        let name = class.file_name().unwrap_or_default().to_string_lossy();
        let mut first = None;
        for (model, codecs) in &models {
            let measured = measure(arguments, codecs, &extents)?;
            let first = *first.get_or_insert(measured.payload_bytes);
            rows.push(row(&name, model, &measured, first));
        }
    }
    match arguments.json {
        true => output::print_json(&rows),
        false => output::print(&table(&rows)),
    }
}

/// Extents from all files of a class in turn: the beginning, and if anchors are wanted also what follows.
fn extents(arguments: &ModelsArguments, class: &Path) -> Outcome<Vec<Extent>> {
    let entries = files::tree(class)?;
    let total: u64 = entries.iter().map(|entry| entry.len).sum();
    let share = arguments.bytes as f64 / total.max(1) as f64;
    let extent = Settings::default().extent as usize;
    let mut extents = Vec::new();
    // a part of every file in proportion to its length, the remainders handed on
    let mut due = 0.0;
    for entry in &entries {
        due += entry.len as f64 * share.min(1.0);
        let len = (due as usize).min(entry.len as usize);
        if len == 0 {
            continue;
        }
        due -= len as f64;
        let path = class.join(&entry.path);
        let raw = std::fs::read(&path).context(path.display())?;
        let raw = &raw[..len.min(raw.len())];
        let head: Arc<[u8]> = Arc::from(&raw[..raw.len().min(ANCHOR_BYTES)]);
        let mut parts: Vec<&[u8]> = raw.chunks(extent).collect();
        if arguments.anchors && raw.len() > ANCHOR_BYTES && parts.len() == 1 {
            parts = vec![&raw[..ANCHOR_BYTES], &raw[ANCHOR_BYTES..]];
        }
        for (number, raw) in parts.into_iter().enumerate() {
            let anchor = (arguments.anchors && number > 0).then(|| AnchorSource {
                block: 0,
                start: 0,
                bytes: head.clone(),
            });
            let raw = raw.to_vec();
            extents.push(Extent { raw, anchor });
        }
    }
    Ok(extents)
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
    let mut text = format!(
        "{:<10} {:<28} {:>9} {:>7} {:>8} {:>6} {:>7} {:>7} {:>7} {:>8} {:>8}\n",
        "class",
        "model",
        "bytes",
        "ratio",
        "of first",
        "heads",
        "B/token",
        "ends",
        "saved",
        "enc MB/s",
        "dec MB/s"
    );
    for row in rows {
        let name: String = row.model.chars().rev().take(28).collect();
        let name: String = name.chars().rev().collect();
        text.push_str(&format!(
            "{:<10} {:<28} {:>9} {:>7.3} {:>8.4} {:>5.0}% {:>7.2} {:>7.3} {:>7.3} {:>8.3} {:>8.3}\n",
            row.class,
            name,
            row.raw_bytes,
            row.ratio,
            row.of_first,
            100.0 * row.evaluated,
            row.bytes_per_token,
            row.end_bits,
            row.saved_bits,
            row.encode_mb_per_second,
            row.decode_mb_per_second,
        ));
    }
    text
}
