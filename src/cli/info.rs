//! `s2sfs info`.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use clap::Args;

use super::output::{self, bytes};
use super::target;
use crate::control::mountinfo;
use crate::control::{ExtentInfo, FileInfo};
use crate::exit::{Context, Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub struct InfoArguments {
    /// File on an s2sfs mount
    file: PathBuf,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &InfoArguments) -> Outcome<()> {
    let name = arguments.file.display();
    let meta = std::fs::metadata(&arguments.file).context(&name)?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{name} is not a regular file")));
    }
    let mount = mountinfo::mount_of_device(meta.dev())
        .context(&name)?
        .ok_or_else(|| {
            Failure::new(
                Exit::NotAStore,
                format!("{name} does not lie on an s2sfs mount"),
            )
        })?;
    let info = target::client(&mount)?.info(meta.ino()).context(&name)?;
    if arguments.json {
        return output::print_json(&info);
    }
    output::print(&format!("{name}\n{}", describe(&info)))
}

fn describe(info: &FileInfo) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "size {}, data {}, stored {}, ratio {:.2}, staged {}, dirty {}",
        bytes(info.size),
        bytes(info.logical_bytes),
        bytes(info.stored_bytes),
        info.ratio,
        bytes(info.staged_bytes),
        bytes(info.dirty_bytes),
    );
    for model in &info.models {
        let _ = writeln!(text, "model {model}");
    }
    if !info.extents.is_empty() {
        let _ = writeln!(
            text,
            "{:>12} {:>9} {:<8} {:>10} {:>9} {:>9} {:>7} {:>10}",
            "offset", "bytes", "codec", "block", "of bytes", "stored", "group", "anchor"
        );
    }
    for extent in &info.extents {
        text.push_str(&describe_extent(extent));
    }
    text
}

fn describe_extent(extent: &ExtentInfo) -> String {
    let codec = if extent.staged {
        format!("{}*", extent.codec)
    } else {
        extent.codec.clone()
    };
    let anchor = extent
        .anchor
        .map_or_else(|| "-".into(), |block| block.to_string());
    format!(
        "{:>12} {:>9} {:<8} {:>10} {:>9} {:>9} {:>7} {:>10}\n",
        extent.offset,
        extent.len,
        codec,
        extent.block,
        extent.block_raw_bytes,
        extent.block_stored_bytes,
        extent.group_bytes,
        anchor
    )
}
