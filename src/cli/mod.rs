//! The command line.

mod bench;
mod check;
mod completions;
mod compress;
mod container;
mod corpus;
mod du;
mod export;
mod freeze;
mod import;
mod info;
mod latents;
mod man;
mod measure;
mod memory;
mod models;
mod mount;
mod moving;
mod output;
mod peers;
mod plot;
mod plot_bars;
mod plot_training;
mod policy;
mod receive;
mod reclaim;
mod reload;
mod report;
mod scale;
mod scrub;
mod send;
mod settle;
mod status;
mod suite;
mod sums;
mod target;
mod top;
mod train;
mod train_network;
mod train_s2s;
mod umount;
mod walk;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::exit::{Exit, Failure, Outcome};
use crate::logging;

/// Name under which mount(8) calls the program.
const MOUNT_HELPER: &str = "mount.s2sfs";
/// Name under which mount(8) looks for what remounts a mount, by its type in the kernel's list.
const REMOUNT_HELPER: &str = "mount.fuse.s2sfs";

/// A file system that stores file contents compressed by a model.
#[derive(Debug, Parser)]
#[command(name = "s2sfs", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a store
    Mount(mount::MountArguments),
    /// Unmount, and wait until the daemon has finished
    Umount(umount::UmountArguments),
    /// Wait until all staged data is settled into its final codec, or code settled data again
    Settle(settle::SettleArguments),
    /// Show or set the policies of files and directories, which say how their data is settled
    Policy(policy::PolicyArguments),
    /// Make everything durable and hold up all changes, to copy the store while it is mounted
    Freeze(freeze::FreezeArguments),
    /// Let changes go on after a freeze
    Thaw(freeze::ThawArguments),
    /// Verify everything that a mounted store holds, in the background
    Scrub(scrub::ScrubArguments),
    /// Give back the space of data that no file needs any more
    Reclaim(reclaim::ReclaimArguments),
    /// Read the options of a mounted store again, and apply those that can be changed while it is mounted
    Reload(reload::ReloadArguments),
    /// Show the figures of a mounted or unmounted store
    Status(status::StatusArguments),
    /// Watch throughput, queue, cache and latencies of a mounted store, live
    Top(top::TopArguments),
    /// Show codec, ratio and extents of a file on a mount
    Info(info::InfoArguments),
    /// Show what the files under some paths take, by directory, type and codec
    Du(du::DuArguments),
    /// Verify every checksum and reference of an unmounted store, and decode every block
    Check(check::CheckArguments),
    /// Copy a directory into a store, new or not, mounted or not
    Import(import::ImportArguments),
    /// Copy everything in a store, mounted or not, to a directory
    Export(export::ExportArguments),
    /// Write a whole store to a pipe
    Send(send::SendArguments),
    /// Make a store of what `send` has written
    Receive(receive::ReceiveArguments),
    /// Train a model from the files of a directory
    Train(train::TrainArguments),
    /// Compress a plain file
    Compress(compress::CompressArguments),
    /// Decompress a file that `compress` made
    Decompress(compress::DecompressArguments),
    /// Measure what plain files would cost, coded by a published model alone
    Measure(measure::MeasureArguments),
    /// Measure ratio and speed of the codecs on plain files
    Bench(bench::BenchArguments),
    /// Measure whole stores, mounted, against mksquashfs (see `make bench`)
    #[command(hide = true)]
    BenchStore(suite::SuiteArguments),
    /// Compare models at equal groups and anchors, class by class
    BenchModels(models::ModelsArguments),
    /// Measure what latents are worth, class by class
    BenchLatents(latents::LatentsArguments),
    /// Draw what a store holds and how its daemon does, as one page of HTML
    Plot(report::ReportArguments),
    /// Draw logs of training with latents as SVG
    PlotTraining(plot_training::PlotArguments),
    /// Print a script that completes commands and mount options in a shell
    Completions(completions::CompletionsArguments),
    /// Print a manual page
    #[command(hide = true)]
    Man(man::ManArguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    memory::configure_allocator();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called_as_helper = arguments
        .first()
        .and_then(|name| Path::new(name).file_name())
        .is_some_and(|name| name == MOUNT_HELPER || name == REMOUNT_HELPER);
    if called_as_helper {
        return finish(MOUNT_HELPER, run_helper(&arguments))
            .for_mount_helper()
            .into();
    }
    finish("s2sfs", run(&arguments)).into()
}

fn run(arguments: &[OsString]) -> Outcome<()> {
    let arguments = Arguments::try_parse_from(arguments).map_err(usage)?;
    logging::init(match arguments.command {
        Command::Mount(ref mount) if mount.foreground() => log::LevelFilter::Info,
        _ => log::LevelFilter::Warn,
    });
    match arguments.command {
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Settle(arguments) => settle::run(&arguments),
        Command::Policy(arguments) => policy::run(&arguments),
        Command::Freeze(arguments) => freeze::freeze(&arguments),
        Command::Thaw(arguments) => freeze::thaw(&arguments),
        Command::Scrub(arguments) => scrub::run(&arguments),
        Command::Reclaim(arguments) => reclaim::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Info(arguments) => info::run(&arguments),
        Command::Du(arguments) => du::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Send(arguments) => send::run(&arguments),
        Command::Receive(arguments) => receive::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Compress(arguments) => compress::compress(&arguments),
        Command::Decompress(arguments) => compress::decompress(&arguments),
        Command::Measure(arguments) => measure::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::BenchStore(arguments) => suite::run(&arguments),
        Command::BenchModels(arguments) => models::run(&arguments),
        Command::BenchLatents(arguments) => latents::run(&arguments),
        Command::Plot(arguments) => report::run(&arguments),
        Command::PlotTraining(arguments) => plot_training::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

fn run_helper(arguments: &[OsString]) -> Outcome<()> {
    let arguments = mount::HelperArguments::try_parse_from(arguments).map_err(usage)?;
    logging::init(log::LevelFilter::Warn);
    mount::run_helper(&arguments)
}

/// Help and version are printed and are no failure; anything else of clap's is wrong usage.
fn usage(error: clap::Error) -> Failure {
    let exit = if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Ok
    };
    // A closed standard output is not worth a message.
    let _ = error.print();
    Failure::new(exit, "")
}

fn finish(program: &str, outcome: Outcome<()>) -> Exit {
    match outcome {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("{program}: {failure}");
            }
            failure.exit
        }
    }
}

/// The definition of all commands, for the manual pages.
fn definition() -> clap::Command {
    Arguments::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_of_the_commands_is_sound() {
        super::definition().debug_assert();
    }

    // clap looks for this in debug builds only
    #[test]
    fn no_two_options_of_a_command_share_a_letter() {
        for command in super::definition().get_subcommands() {
            let mut letters: Vec<char> = command
                .get_arguments()
                .filter_map(|a| a.get_short())
                .collect();
            let count = letters.len();
            letters.sort_unstable();
            letters.dedup();
            assert_eq!(letters.len(), count, "{}", command.get_name());
        }
    }
}
