//! `s2sfs mount` and `mount.s2sfs`.

use std::path::PathBuf;

use clap::{Args, Parser};

use super::output::Patience;
use crate::exit::Outcome;
use crate::mount::{self, Readiness, Request};
use crate::options;

#[derive(Debug, Args)]
#[command(after_help = options::help_text())]
pub struct MountArguments {
    /// Directory of the store; an empty or missing one is made into a store
    store: PathBuf,
    /// Where to mount it
    mountpoint: PathBuf,
    /// Mount options, comma-separated
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Do not go to the background; log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Serve for a launcher that waits on standard output
    #[arg(long, hide = true, conflicts_with = "foreground")]
    daemon: bool,
}

impl MountArguments {
    pub fn foreground(&self) -> bool {
        self.foreground
    }
}

pub fn run(arguments: &MountArguments) -> Outcome<()> {
    if mount::is_remount(&arguments.options) {
        return mount::remount(&arguments.store, &arguments.mountpoint, &arguments.options);
    }
    let request = Request::new(&arguments.store, &arguments.mountpoint, &arguments.options)?;
    if arguments.daemon {
        mount::run(&request, Readiness::Launcher)
    } else if arguments.foreground {
        mount::run(&request, Readiness::Foreground)
    } else {
        let _waiting = Patience::waiting("mounting");
        request.launch()
    }
}

/// The arguments that mount(8) gives to its helpers.
#[derive(Debug, Parser)]
#[command(
    name = "mount.s2sfs",
    version,
    about = "Mount an s2sfs store; called by mount(8) for the type s2sfs",
    after_help = options::help_text()
)]
pub struct HelperArguments {
    /// Directory of the store; an empty or missing one is made into a store
    store: PathBuf,
    /// Where to mount it
    mountpoint: PathBuf,
    /// Mount options, comma-separated
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Accept and ignore unknown mount options
    #[arg(short)]
    sloppy: bool,
    /// Check everything, but do not mount
    #[arg(short)]
    fake: bool,
    /// Accepted for mount(8): there is no /etc/mtab to write
    #[arg(short)]
    no_mtab: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// Accepted for mount(8)
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
    /// Accepted for mount(8): mount(8) enters the name space itself
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,
}

pub fn run_helper(arguments: &HelperArguments) -> Outcome<()> {
    let remount = mount::is_remount(&arguments.options);
    let options = if arguments.sloppy && !remount {
        options::known_only(&arguments.options)
    } else {
        arguments.options.clone()
    };
    if remount {
        return match arguments.fake {
            true => Ok(()),
            false => mount::remount(&arguments.store, &arguments.mountpoint, &options),
        };
    }
    if arguments.fake {
        return Request::check(&arguments.store, &arguments.mountpoint, &options);
    }
    let request = Request::new(&arguments.store, &arguments.mountpoint, &options)?;
    let waiting = Patience::waiting("mounting");
    request.launch()?;
    drop(waiting);
    if arguments.verbose {
        println!(
            "{} mounted at {}",
            request.store.display(),
            request.mountpoint.display()
        );
    }
    Ok(())
}
