//! `s2sfs reload`.

use std::path::PathBuf;

use clap::Args;

use super::{output, target};
use crate::control::client::ClientError;
use crate::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub struct ReloadArguments {
    /// Mount point
    mountpoint: PathBuf,
    /// Mount options in place of those that the mount was made with; can be given many times
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Option<Vec<String>>,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &ReloadArguments) -> Outcome<()> {
    let mount = target::mount(&arguments.mountpoint)?;
    let client = target::client(&mount)?;
    let point = mount.point.display();
    let report = client.reload(arguments.options.clone()).map_err(|e| {
        let exit = match e {
            ClientError::Refused { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("{point}: the options stay as they are: {e}"))
    })?;
    match arguments.json {
        true => output::print_json(&report),
        false => output::print(&format!("{point}: {report}\n")),
    }
}
