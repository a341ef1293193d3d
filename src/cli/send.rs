//! `s2sfs send`.

use std::io::{self, BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;

use super::{moving, output};
use crate::control::client::{Client, HeldStore};
use crate::exit::{Failure, Outcome};
use crate::mount;
use crate::store::carry::StoreFile;
use crate::store::{OpenOptions, RealStorage};
use crate::transfer::{WireError, send};

/// What `--help` says besides.
const HELP: &str = "\
The stream goes to standard output, and `s2sfs receive` makes a store of it, such as on another machine:

    s2sfs send STORE | ssh HOST s2sfs receive NEWSTORE

Nothing is coded again: the stream is as long as the data in the log. Every record is verified on the way. A store
that is mounted is sent as it is at the beginning; writing to it goes on meanwhile.

The mount options of the store, in its options.toml, are not sent: copy that file into the new store if they are
wanted there.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct SendArguments {
    /// Directory of the store, or where it is mounted
    store: PathBuf,
}

pub fn run(arguments: &SendArguments) -> Outcome<()> {
    if io::stdout().is_terminal() {
        let message = "a store is not for reading: send it to a pipe or a file";
        return Err(Failure::usage(message));
    }
    let store = match moving::mount_of(&arguments.store)? {
        Some(mount) => mount.store(),
        None => arguments.store.clone(),
    };
    let stop = moving::stop_on_signals()?;
    // Whoever has it mounted for writing answers here.
    match Client::of_store(&store) {
        Ok(client) => {
            let held = client.hold();
            let held = held.map_err(|e| Failure::failed(format!("{}: {e}", store.display())))?;
            send_held(&store, held, &stop)
        }
        Err(_) => send_unmounted(&store, &stop),
    }
}

fn send_held(store: &Path, held: HeldStore, stop: &AtomicBool) -> Outcome<()> {
    let files = held.files().to_vec();
    let mut held = Some(held);
    write(store, &files, stop, &mut || {
        let released = held.take().map_or(Ok(()), HeldStore::release);
        released.map_err(|e| {
            let why = format!("the store could not be held as it was: {e}");
            WireError::Io(io::Error::other(why))
        })
    })
}

fn send_unmounted(store: &Path, stop: &AtomicBool) -> Outcome<()> {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let opened = mount::open_store(store, &options)?;
    let held = opened.hold().map_err(|e| mount::store_failure(&e))?;
    write(store, held.files(), stop, &mut || Ok(()))
}

fn write(
    store: &Path,
    files: &[StoreFile],
    stop: &AtomicBool,
    release: &mut dyn FnMut() -> Result<(), WireError>,
) -> Outcome<()> {
    let bar = output::progress_bar("sending");
    let storage = RealStorage::new(store);
    let mut out = BufWriter::new(io::stdout().lock());
    let sent = send(&storage, files, &mut out, stop, release, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    sent.map_err(|e| moving::wire_failure(&e))
}
