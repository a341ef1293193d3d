//! `s2sfs train`.

use std::path::PathBuf;

use clap::Args;

use crate::exit::Outcome;

#[derive(Debug, Args)]
pub struct TrainArguments {
    /// Directory of training files, with subdirectories
    dir: PathBuf,
    /// Where to write the model
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}
pub fn run(a: &TrainArguments) -> Outcome<()> {
    let _ = (&a.dir, &a.output);
    Ok(())
}
