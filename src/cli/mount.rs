//! `s2sfs mount` and `mount.s2sfs`.

use std::path::{Path, PathBuf};

use clap::{Args, Parser};

use super::output::Patience;
use crate::exit::{Failure, Outcome};
use crate::mount::{self, Readiness, Request};
use crate::options;

#[derive(Debug, Args)]
#[command(after_help = options::help_text())]
pub struct MountArguments {
    /// Directory of the store; an empty or missing one is made into a store
    store: PathBuf,
    /// Where to mount it
    mountpoint: PathBuf,
    /// Mount options, comma-separated; a comma in a value is written \,
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
    /// Mount options, comma-separated; a comma in a value is written \,
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Mount read-only, as -o ro
    #[arg(short)]
    read_only: bool,
    /// Mount for reading and writing, as -o rw
    #[arg(short = 'w', overrides_with = "read_only")]
    writable: bool,
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
    /// Type of the file system: s2sfs or fuse.s2sfs
    #[arg(short = 't', value_name = "TYPE", value_parser = ["s2sfs", "fuse.s2sfs"])]
    fs_type: Option<String>,
    /// Mount in the mount name space of this process, or in the one that this file stands for
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
}

impl HelperArguments {
    /// The values of all `-o`, with what the other flags mean.
    fn option_lists(&self) -> Outcome<Vec<String>> {
        let mut lists = self.options.clone();
        let flags = [(self.read_only, "ro"), (self.writable, "rw")];
        lists.extend(
            flags
                .iter()
                .filter(|(on, _)| *on)
                .map(|(_, o)| o.to_string()),
        );
        match self.sloppy {
            true => options::known_only(&lists).map_err(Failure::usage),
            false => Ok(lists),
        }
    }
}

pub fn run_helper(arguments: &HelperArguments) -> Outcome<()> {
    if let Some(namespace) = &arguments.namespace {
        // Before there are threads, with which it cannot be done.
        mount::enter_namespace(namespace)?;
    }
    let (store, mountpoint) = (&arguments.store, &arguments.mountpoint);
    let options = arguments.option_lists()?;
    let say = |what: &str, store: &Path, mountpoint: &Path| {
        if arguments.verbose {
            println!("{} {what} at {}", store.display(), mountpoint.display());
        }
    };
    match (mount::is_remount(&options), arguments.fake) {
        (true, true) => mount::check_remount(store, mountpoint, &options)?,
        (true, false) => {
            mount::remount(store, mountpoint, &options)?;
            say("remounted", store, mountpoint);
        }
        (false, true) => {
            Request::check(store, mountpoint, &options)?;
            say("would be mounted", store, mountpoint);
        }
        (false, false) => {
            let request = Request::new(store, mountpoint, &options)?;
            let waiting = Patience::waiting("mounting");
            request.launch()?;
            drop(waiting);
            say("mounted", &request.store, &request.mountpoint);
        }
    }
    Ok(())
}
