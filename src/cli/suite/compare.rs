//! What other file systems need for the same files.

use std::path::Path;
use std::process::Command;

use super::files;
use super::mounted::run;
use crate::exit::{Context, Outcome};

/// The command that the tables are compared with.
pub const SQUASHFS_OPTIONS: [&str; 6] =
    ["-comp", "zstd", "-Xcompression-level", "19", "-b", "128K"];

/// Bytes of a squashfs image of `tree`.
pub fn squashfs(tree: &Path, work: &Path) -> Outcome<u64> {
    let image = work.join("compare.squashfs");
    make_squashfs(tree, &image, &SQUASHFS_OPTIONS)?;
    let len = std::fs::metadata(&image).context(image.display())?.len();
    std::fs::remove_file(&image).context(image.display())?;
    Ok(len)
}

/// Makes a squashfs image of `tree` with these options.
pub fn make_squashfs(tree: &Path, image: &Path, options: &[&str]) -> Outcome<()> {
    let mut command = Command::new("mksquashfs");
    command.arg(tree).arg(image).args(options);
    run(command.args(["-noappend", "-no-progress", "-quiet"])).map(drop)
}

/// Bytes that the files of `tree` take where they lie now.
pub fn allocated(tree: &Path) -> Outcome<u64> {
    Ok(files::tree(tree)?.iter().map(|entry| entry.allocated).sum())
}
