//! `s2sfs umount`.

use std::io;
use std::path::PathBuf;

use clap::Args;

use super::output::Patience;
use crate::control::client::{Client, ClientError};
use crate::control::mountinfo::{self, Mount};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::mount;

#[derive(Debug, Args)]
pub struct UmountArguments {
    /// Mount point
    mountpoint: PathBuf,
    /// Only take away a mount whose daemon is gone; without one there is nothing to do
    #[arg(long)]
    dead: bool,
}

pub fn run(arguments: &UmountArguments) -> Outcome<()> {
    let name = arguments.mountpoint.display();
    let mount = mountinfo::mount_at(&arguments.mountpoint)
        .context(&name)?
        .filter(Mount::is_s2sfs);
    let Some(mount) = mount else {
        return match arguments.dead {
            true => Ok(()),
            false => Err(Failure::new(
                Exit::NotAStore,
                format!("{name}: no s2sfs is mounted here"),
            )),
        };
    };
    if mount::is_dead(&mount.point) {
        return mount::detach(&mount.point).map_err(|e| refused(&mount, &e));
    }
    if arguments.dead {
        return Ok(());
    }
    // Before the mount goes: afterwards nobody may be there to ask.
    let waiter = Client::of_mount(&mount).and_then(Client::wait);
    mount::unmount(&mount.point).map_err(|e| refused(&mount, &e))?;
    let name = mount.store().display().to_string();
    let _waiting = Patience::waiting("waiting for the daemon");
    match waiter {
        Ok(waiter) => waiter.until_stopped().context(format!("closing {name}")),
        Err(ClientError::Unreachable(e)) => {
            log::warn!("unmounted, but cannot wait for the daemon of {name}: {e}");
            Ok(())
        }
        Err(e) => Err(Failure::failed(format!("closing {name}: {e}"))),
    }
}

fn refused(mount: &Mount, error: &io::Error) -> Failure {
    let point = mount.point.display();
    if error.kind() == io::ErrorKind::ResourceBusy {
        return Failure::new(
            Exit::Busy,
            format!("{point} is busy: a process has files open in it (try: fuser -vm {point})"),
        );
    }
    Failure::failed(format!("cannot unmount {point}: {error}"))
}
