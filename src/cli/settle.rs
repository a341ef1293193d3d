//! `s2sfs settle`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{self, bytes};
use super::target;
use crate::control::mountinfo::{self, Mount};
use crate::control::{AgainStatus, MAX_INODES};
use crate::exit::{Context, Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub struct SettleArguments {
    /// Mount points; with --again files and directories on a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Code all data of these files and directories anew, with the model and the policies of now
    #[arg(long)]
    again: bool,
    /// Return at once, and leave the work to the daemon; see how it goes with `s2sfs status`
    #[arg(long, requires = "again", conflicts_with = "json")]
    no_wait: bool,
    /// Machine-readable output
    #[arg(long, requires = "again")]
    json: bool,
}

pub fn run(arguments: &SettleArguments) -> Outcome<()> {
    match arguments.again {
        true => again(arguments),
        false => arguments.paths.iter().try_for_each(|path| settle(path)),
    }
}

fn settle(path: &Path) -> Outcome<()> {
    let mount = target::mount(path)?;
    let bar = output::progress_bar("settling");
    let settled = target::client(&mount)?.settle(|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    settled.context(mount.point.display())
}

fn again(arguments: &SettleArguments) -> Outcome<()> {
    let mut sum = AgainStatus::default();
    for (mount, inos) in by_mount(&arguments.paths)? {
        for inos in inos.chunks(MAX_INODES) {
            let client = target::client(&mount)?;
            let bar = output::progress_bar("settling again");
            let mut progress = |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            };
            let coded = match arguments.no_wait {
                true => client.settle_again(inos, None),
                false => client.settle_again(inos, Some(&mut progress)),
            };
            bar.finish_and_clear();
            let coded = coded.context(mount.point.display())?;
            sum.add(coded.unwrap_or_default());
        }
    }
    match (arguments.no_wait, arguments.json) {
        (true, _) => return Ok(()),
        (_, true) => output::print_json(&sum)?,
        _ => output::print(&describe(&sum))?,
    }
    match sum.failures {
        0 => Ok(()),
        count => Err(Failure::failed(format!(
            "{count} blocks were not coded again and stay as they were; the first: {}",
            sum.first_failure.unwrap_or_default()
        ))),
    }
}

/// The inodes of some files and directories, by the mount on which they lie.
fn by_mount(paths: &[PathBuf]) -> Outcome<Vec<(Mount, Vec<u64>)>> {
    let mut found: Vec<(Mount, Vec<u64>)> = Vec::new();
    for path in paths {
        let name = path.display();
        let meta = std::fs::metadata(path).context(&name)?;
        let mount = mountinfo::mount_of_device(meta.dev()).context(&name)?;
        let mount = mount.ok_or_else(|| {
            Failure::new(
                Exit::NotAStore,
                format!("{name} does not lie on an s2sfs mount"),
            )
        })?;
        match found.iter_mut().find(|(other, _)| *other == mount) {
            Some((_, inos)) => inos.push(meta.ino()),
            None => found.push((mount, vec![meta.ino()])),
        }
    }
    Ok(found)
}

fn describe(sum: &AgainStatus) -> String {
    let mut text = format!(
        "{} coded again, {} stay as they were; stored as {} before, {} now\n",
        bytes(sum.coded_bytes),
        bytes(sum.kept_bytes),
        bytes(sum.before_bytes),
        bytes(sum.after_bytes)
    );
    if sum.skipped_bytes > 0 {
        text += &format!(
            "{} were changed meanwhile: they settle as new data does\n",
            bytes(sum.skipped_bytes)
        );
    }
    text
}
