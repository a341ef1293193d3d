//! `s2sfs check`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Directory of the store, which must not be mounted
    store: PathBuf,
    /// Make the index anew from the log first
    #[arg(long)]
    rebuild_index: bool,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}
pub fn run(a: &CheckArguments) -> crate::exit::Outcome<()> {
    let _ = (&a.store, a.rebuild_index, a.json);
    Ok(())
}
