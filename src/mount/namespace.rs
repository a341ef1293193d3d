//! Mount name spaces: mount(8) leaves it to its helpers to enter the one that its `-N` names.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::exit::{Exit, Failure, Outcome};

/// Moves this process, which must have a single thread, into the mount name space of a process or of a
/// file such as /proc/PID/ns/mnt. Needs root.
pub fn enter_namespace(of: &Path) -> Outcome<()> {
    let is_pid = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let path = match of.to_str().filter(|text| is_pid(text)) {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
        None => of.to_owned(),
    };
    let name = path.display();
    let file = File::open(&path).map_err(|e| Failure::usage(format!("name space {name}: {e}")))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(|e| {
        let exit = match e {
            Errno::PERM => Exit::Denied,
            Errno::INVAL => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("name space {name}: {e}"))
    })
}
