//! `s2sfs measure`.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;

use super::output;
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::train::published::{CandleT5, Checkpoint, Measured, PublishedError, measure};

#[derive(Debug, Args)]
pub struct MeasureArguments {
    /// Directory of a published T5: config.json, model.safetensors, tokenizer.json
    #[arg(long, value_name = "DIR")]
    published: PathBuf,
    /// Files to measure
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub fn run(arguments: &MeasureArguments) -> Outcome<()> {
    let mut sizes = Vec::with_capacity(arguments.files.len());
    for file in &arguments.files {
        sizes.push(file.metadata().context(file.display())?.len());
    }
    let checkpoint = Checkpoint::load(&arguments.published, &Device::Cpu).map_err(explain)?;
    let mut model = CandleT5::new(&checkpoint).map_err(explain)?;
    let bar = output::progress_bar("measuring");
    bar.set_length(sizes.iter().sum());
    let mut total = Measured::default();
    let mut table = row(
        ["bytes", "pieces", "unknown", "bits/byte"].map(str::to_owned),
        "file",
    );
    for file in &arguments.files {
        let data = std::fs::read(file).context(file.display())?;
        let mut progress = |bytes: u64, bits: f64| {
            bar.set_position(total.bytes + bytes);
            let so_far = (total.bits + bits) / (total.bytes + bytes).max(1) as f64;
            bar.set_message(format!("measuring, {so_far:.3} bits per byte"));
        };
        let measured = measure(&checkpoint, &mut model, &data, &mut progress).map_err(explain)?;
        total.add(measured);
        table += &figures(&measured, &file.display().to_string());
    }
    bar.finish_and_clear();
    if arguments.files.len() > 1 {
        table += &figures(&total, "total");
    }
    output::print(&table)
}

fn explain(error: PublishedError) -> Failure {
    Failure::new(exit_of(&error), error)
}

/// How a command ends that cannot use a published model.
pub fn exit_of(error: &PublishedError) -> Exit {
    match error {
        PublishedError::Read { .. } | PublishedError::Device(_) => Exit::Failed,
        PublishedError::Mismatch(_) | PublishedError::Missing { .. } => Exit::Usage,
        _ => Exit::Damaged,
    }
}

fn figures(measured: &Measured, name: &str) -> String {
    let columns = [
        measured.bytes.to_string(),
        measured.pieces.to_string(),
        measured.unknown.to_string(),
        format!("{:.4}", measured.bits_per_byte()),
    ];
    row(columns, name)
}

fn row([bytes, pieces, unknown, bits]: [String; 4], name: &str) -> String {
    format!("{bytes:>12} {pieces:>12} {unknown:>9} {bits:>10}  {name}\n")
}
