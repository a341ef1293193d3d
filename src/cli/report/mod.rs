//! `s2sfs plot`: a page about a store that shows itself in any browser, without anything from elsewhere.

mod charts;
mod page;
mod survey;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use survey::Survey;

use super::output::{self, Patience};
use super::walk::Walk;
use super::{status, target};
use crate::control::Status;
use crate::exit::{Context, Outcome};
use crate::mount;

#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Mount point, or directory of a store, mounted or not
    store: PathBuf,
    /// Page to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub fn run(arguments: &ReportArguments) -> Outcome<()> {
    let (status, survey) = look(&arguments.store)?;
    let page = page::render(&status, &survey).context("drawing")?;
    let target = &arguments.output;
    output::replace(target, |file| file.write_all(page.as_bytes())).context(target.display())
}

/// The figures of a store, and of its files: over the mount if it has one.
fn look(path: &Path) -> Outcome<(Status, Survey)> {
    let mut survey = Survey::new(Patience::counting("files"));
    let point = match target::find_mount(path)? {
        Some(mount) => Some(mount.point),
        // The directory of a mounted store.
        None => target::Daemon::find(path)
            .and_then(|daemon| daemon.status())
            .ok()
            .and_then(|status| status.mountpoint)
            .map(PathBuf::from),
    };
    let status = match point {
        Some(point) => {
            Walk::new(&mut survey).tree(&point)?;
            status::query(&point)?
        }
        None => mount::survey_unmounted(path, |file| survey.add_surveyed(&file))?,
    };
    survey.finish();
    Ok((status, survey))
}
