//! The program: `s2sfs`, or `mount.s2sfs` when called by that name.

use std::process::ExitCode;

fn main() -> ExitCode {
    s2sfs::cli::main()
}
