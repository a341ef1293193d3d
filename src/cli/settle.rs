//! `s2sfs settle`.

use std::path::PathBuf;

use clap::Args;

use super::{output, target};
use crate::exit::{Context, Outcome};

#[derive(Debug, Args)]
pub struct SettleArguments {
    /// Mount point
    mountpoint: PathBuf,
}

pub fn run(arguments: &SettleArguments) -> Outcome<()> {
    let mount = target::mount(&arguments.mountpoint)?;
    let bar = output::progress_bar("settling");
    let settled = target::client(&mount)?.settle(|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    settled.context(mount.point.display())
}
