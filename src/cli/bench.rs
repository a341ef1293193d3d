//! `s2sfs bench`: ratio and speed of the codecs on plain files, without a store or a mount; and what measures stores.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::compress::{codecs, encode_options};
use super::container::{anchor_source, decode, in_parallel, read_batch};
use super::output::{self, Patience, megabytes_per_second};
use super::scale;
use crate::codec::{CodecId, Codecs, EncodeOptions, Policy};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::Settings;

// `bench scale` is the subcommand; a file of that name is `bench ./scale`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct BenchArguments {
    #[command(subcommand)]
    what: Option<BenchCommand>,
    /// Files to measure
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Mount options that matter here: extent, group, threads, model, device
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure what stores cost as they grow: time, memory and disk, and how each grows
    Scale(scale::ScaleArguments),
    /// One phase of that, in a process of its own
    #[command(hide = true)]
    ScaleStep(scale::StepArguments),
}

/// Result of one way to encode.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    raw_bytes: u64,
    stored_bytes: u64,
    ratio: f64,
    model_share: f64,
    encode_mb_per_second: f64,
    decode_mb_per_second: f64,
}

pub fn run(arguments: &BenchArguments) -> Outcome<()> {
    match &arguments.what {
        None => run_files(arguments),
        Some(BenchCommand::Scale(arguments)) => scale::run(arguments),
        Some(BenchCommand::ScaleStep(arguments)) => scale::run_step(arguments),
    }
}

fn run_files(arguments: &BenchArguments) -> Outcome<()> {
    let settings = Settings::parse(&arguments.options).map_err(Failure::usage)?;
    let codecs = codecs(&settings)?;
    let files = arguments
        .files
        .iter()
        .map(|path| {
            Ok((
                encode_options(&settings),
                extents(path, settings.extent as usize)?,
            ))
        })
        .collect::<Outcome<Vec<_>>>()?;
    let waiting = Patience::waiting("measuring");
    let mut rows = vec![measure(
        "staging",
        &codecs,
        &settings,
        &files,
        &|raw, _, _| Ok(codecs.encode_fast(raw).payload),
    )?];
    for (way, policy) in [
        ("fast", Policy::Fast),
        ("balanced", Policy::Balanced),
        ("ratio", Policy::Ratio),
    ] {
        rows.push(measure(
            way,
            &codecs,
            &settings,
            &files,
            &|raw, options, first| {
                let options = EncodeOptions { policy, ..*options };
                let anchor = first.map(anchor_source);
                codecs
                    .encode(raw, &options, anchor.as_ref())
                    .map(|e| e.payload)
                    .context("encoding")
            },
        )?);
    }
    drop(waiting);
    if arguments.json {
        return output::print_json(&rows);
    }
    output::print(&table(&rows))
}

type Extents = Vec<Vec<u8>>;
/// Encodes one extent, given the first one of its file if it is a later one.
type Encode<'a> = dyn Fn(&[u8], &EncodeOptions, Option<&[u8]>) -> Outcome<Vec<u8>> + Sync + 'a;

fn extents(path: &Path, extent: usize) -> Outcome<Extents> {
    let mut file = File::open(path).context(path.display())?;
    read_batch(&mut file, extent, usize::MAX).context(path.display())
}

/// Encodes and decodes all files, checks that they come back, and takes the time of both.
fn measure(
    way: &'static str,
    codecs: &Codecs,
    settings: &Settings,
    files: &[(EncodeOptions, Extents)],
    encode: &Encode<'_>,
) -> Outcome<Row> {
    let mut sums = Sums::default();
    for (options, extents) in files {
        let first = extents.first().map(Vec::as_slice);
        let numbers: Vec<usize> = (0..extents.len()).collect();
        let start = Instant::now();
        let payloads = in_parallel(&numbers, settings.threads, |&i| {
            encode(&extents[i], options, first.filter(|_| i > 0))
        });
        sums.encode_time += start.elapsed();
        let payloads = payloads.into_iter().collect::<Outcome<Vec<_>>>()?;
        let start = Instant::now();
        let decoded = in_parallel(&payloads, settings.threads, |payload| {
            decode(codecs, payload, first)
        });
        sums.decode_time += start.elapsed();
        for ((raw, payload), decoded) in extents.iter().zip(&payloads).zip(decoded) {
            if decoded.context("decoding")? != *raw {
                return Err(Failure::new(
                    Exit::Damaged,
                    format!("{way}: decodes to other bytes"),
                ));
            }
            sums.add(raw, payload);
        }
    }
    Ok(sums.row(way))
}

#[derive(Default)]
struct Sums {
    raw: u64,
    stored: u64,
    model: u64,
    encode_time: Duration,
    decode_time: Duration,
}

impl Sums {
    fn add(&mut self, raw: &[u8], payload: &[u8]) {
        self.raw += raw.len() as u64;
        self.stored += payload.len() as u64;
        if payload.first() == Some(&(CodecId::Model as u8)) {
            self.model += raw.len() as u64;
        }
    }

    fn row(&self, way: &'static str) -> Row {
        Row {
            way,
            raw_bytes: self.raw,
            stored_bytes: self.stored,
            ratio: crate::control::ratio(self.raw, self.stored),
            model_share: crate::control::ratio(self.model, self.raw),
            encode_mb_per_second: megabytes_per_second(self.raw, self.encode_time),
            decode_mb_per_second: megabytes_per_second(self.raw, self.decode_time),
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<10} {:>12} {:>12} {:>8} {:>8} {:>13} {:>13}\n",
        "way", "bytes", "stored", "ratio", "model", "encode MB/s", "decode MB/s"
    );
    for row in rows {
        text.push_str(&format!(
            "{:<10} {:>12} {:>12} {:>8.3} {:>7.1}% {:>13.2} {:>13.2}\n",
            row.way,
            row.raw_bytes,
            row.stored_bytes,
            row.ratio,
            row.model_share * 100.0,
            row.encode_mb_per_second,
            row.decode_mb_per_second
        ));
    }
    text
}
