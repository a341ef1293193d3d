//! Answers to the kernel, and how long it may believe them.

use super::convert::{errno, file_attr};
use crate::volume::{Stat, VolumeError};
use fuser::{Errno, Generation, ReplyAttr, ReplyEmpty, ReplyXattr};
use std::time::Duration;

/// How long the kernel may believe a name: nobody else changes them.
pub const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// How long the kernel may believe attributes. Short, because st_blocks changes by settling.
pub const ATTR_TTL: Duration = Duration::from_secs(1);
/// Inode numbers are never used twice.
pub const GENERATION: Generation = Generation(0);

pub fn reply_attr(operation: &str, result: Result<Stat, VolumeError>, reply: ReplyAttr) {
    match result {
        Ok(stat) => reply.attr(&ATTR_TTL, &file_attr(&stat)),
        Err(error) => reply.error(errno(operation, &error)),
    }
}

pub fn reply_empty(operation: &str, result: Result<(), VolumeError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(operation, &error)),
    }
}

pub fn reply_xattr(result: Result<Vec<u8>, VolumeError>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno("getxattr", &error)),
    }
}
