//! `s2sfs receive`.

use std::io::{self, BufReader, IsTerminal};
use std::path::PathBuf;

use clap::Args;

use super::moving;
use super::output::{self, bytes};
use crate::exit::{Failure, Outcome};
use crate::transfer::receive;

/// What `--help` says besides.
const HELP: &str = "\
The stream comes from standard input. Nothing appears under the name of the new store before all of it is
there, verified and on the disk; if anything goes wrong before, nothing is left.

The new store has the inode numbers and the uuid of the old one. Do not use both as if they were two: with
--new-uuid they are.";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ReceiveArguments {
    /// Directory of the new store, which must be empty or not exist
    store: PathBuf,
    /// Give the new store a uuid of its own
    #[arg(long)]
    new_uuid: bool,
}

pub fn run(arguments: &ReceiveArguments) -> Outcome<()> {
    let input = io::stdin();
    if input.is_terminal() {
        let message = "nobody types a store: give it the output of s2sfs send";
        return Err(Failure::usage(message));
    }
    let stop = moving::stop_on_signals()?;
    let bar = output::progress_bar("receiving");
    let mut input = BufReader::with_capacity(1 << 20, input.lock());
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let store = &arguments.store;
    let received = receive(&mut input, store, arguments.new_uuid, &stop, &progress);
    bar.finish_and_clear();
    let received = received.map_err(|e| moving::wire_failure(&e))?;
    output::print(&format!(
        "{} is here, with {} files of {} and the uuid {}\n",
        store.display(),
        received.files,
        bytes(received.bytes),
        received.uuid
    ))
}
