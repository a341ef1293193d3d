//! `s2sfs compress` and `s2sfs decompress`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::container::{self, ContainerError, Totals};
use super::output::{self, bytes, percent};
use crate::codec::{Codecs, EncodeOptions};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::Settings;

/// Extension of compressed files.
const EXTENSION: &str = "s2s";

#[derive(Debug, Args)]
pub struct CompressArguments {
    /// File to compress
    file: PathBuf,
    /// Where to write [default: FILE.s2s]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(short, long)]
    force: bool,
    /// Mount options that matter here: policy, extent, group, threads, model, device
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

#[derive(Debug, Args)]
pub struct DecompressArguments {
    /// File that `compress` made
    file: PathBuf,
    /// Where to write [default: FILE without .s2s]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(short, long)]
    force: bool,
    /// Mount options that matter here: threads, model, device
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

pub fn compress(arguments: &CompressArguments) -> Outcome<()> {
    let settings = Settings::parse(&arguments.options).map_err(Failure::usage)?;
    let target = arguments.output.clone().unwrap_or_else(|| {
        let mut name = arguments.file.clone().into_os_string();
        name.push(format!(".{EXTENSION}"));
        name.into()
    });
    let codecs = codecs(&settings)?;
    let options = encode_options(&settings);
    let run = |input: &mut dyn Read, output: &mut dyn Write, progress: &dyn Fn(u64)| {
        let extent = settings.extent as usize;
        container::compress(
            &codecs,
            &options,
            extent,
            settings.threads,
            input,
            output,
            progress,
        )
    };
    let totals = convert(
        "compressing",
        &arguments.file,
        &target,
        arguments.force,
        run,
    )?;
    report(&arguments.file, &target, &totals);
    Ok(())
}

pub fn decompress(arguments: &DecompressArguments) -> Outcome<()> {
    let settings = Settings::parse(&arguments.options).map_err(Failure::usage)?;
    let target = match &arguments.output {
        Some(target) => target.clone(),
        None if arguments.file.extension().is_some_and(|e| e == EXTENSION) => {
            arguments.file.with_extension("")
        }
        None => {
            let name = arguments.file.display();
            return Err(Failure::usage(format!(
                "{name} does not end in .{EXTENSION}: use --output"
            )));
        }
    };
    let codecs = codecs(&settings)?;
    let run = |input: &mut dyn Read, output: &mut dyn Write, progress: &dyn Fn(u64)| {
        container::decompress(&codecs, settings.threads, input, output, progress)
    };
    convert(
        "decompressing",
        &arguments.file,
        &target,
        arguments.force,
        run,
    )
    .map(drop)
}

/// The codecs under the given settings.
pub fn codecs(settings: &Settings) -> Outcome<Codecs> {
    crate::mount::codecs(settings)
}

/// How files are encoded under the given settings.
pub fn encode_options(settings: &Settings) -> EncodeOptions {
    EncodeOptions {
        policy: settings.policy,
        group: settings.group,
        verify: settings.verify,
    }
}

/// Runs `run` from one file into another, which appears only when it is complete.
fn convert(
    what: &'static str,
    source: &Path,
    target: &Path,
    force: bool,
    run: impl Fn(&mut dyn Read, &mut dyn Write, &dyn Fn(u64)) -> Result<Totals, ContainerError>,
) -> Outcome<Totals> {
    let file = File::open(source).context(source.display())?;
    let bar = output::progress_bar(what);
    bar.set_length(file.metadata().context(source.display())?.len());
    if !force && target.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!(
            "{} exists: use --force",
            target.display()
        )));
    }
    let mut input = BufReader::new(bar.wrap_read(file));
    let written = output::replace(target, |file| {
        let mut output = BufWriter::new(file);
        let totals = run(&mut input, &mut output, &|_| ())?;
        output.flush()?;
        Ok(totals)
    });
    bar.finish_and_clear();
    written.map_err(|e| explain(source, &e))
}

fn explain(source: &Path, error: &ContainerError) -> Failure {
    let exit = match error {
        ContainerError::Io(_) => Exit::Failed,
        ContainerError::Codec(_) | ContainerError::Damaged { .. } => Exit::Damaged,
        ContainerError::Foreign | ContainerError::Newer(_) => Exit::NotAStore,
    };
    Failure::new(exit, format!("{}: {error}", source.display()))
}

fn report(source: &Path, target: &Path, totals: &Totals) {
    eprintln!(
        "{}: {} -> {} ({}), ratio {:.3}, {} by the model",
        source.display(),
        bytes(totals.raw_bytes),
        bytes(totals.stored_bytes),
        target.display(),
        crate::control::ratio(totals.raw_bytes, totals.stored_bytes),
        percent(totals.model_bytes, totals.raw_bytes),
    );
}
