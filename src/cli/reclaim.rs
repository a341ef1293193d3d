//! `s2sfs reclaim`.

use std::path::PathBuf;

use clap::Args;

use super::output::{self, bytes};
use super::target;
use crate::exit::{Context, Outcome};

#[derive(Debug, Args)]
pub struct ReclaimArguments {
    /// Mount point
    mountpoint: PathBuf,
}

pub fn run(arguments: &ReclaimArguments) -> Outcome<()> {
    let mount = target::mount(&arguments.mountpoint)?;
    let bar = output::progress_bar("reclaiming");
    let reclaimed = target::client(&mount)?.reclaim(|done, total| {
        bar.set_length(total);
        bar.set_position(done.min(total));
    });
    bar.finish_and_clear();
    let (freed, copied) = reclaimed.context(mount.point.display())?;
    output::print(&format!(
        "{} given back ({} of segments dropped, {} of live data copied for it)\n",
        bytes(freed.saturating_sub(copied)),
        bytes(freed),
        bytes(copied)
    ))
}
