//! Changes the flags of a mount that is there: `mount -o remount,ro` and back.

use std::fs::File;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, mount_remount};

use crate::control::client::Client;
use crate::control::mountinfo::{self, Mount};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::options::{Settings, split_all};

/// The option that asks for a remount.
const REMOUNT: &str = "remount";

/// Flags of a mount as statvfs shows them and mount(2) takes them.
const KEPT: [(StatVfsMountFlags, MountFlags); 8] = [
    (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
    (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
    (StatVfsMountFlags::NODEV, MountFlags::NODEV),
    (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    (StatVfsMountFlags::SYNCHRONOUS, MountFlags::SYNCHRONOUS),
    (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
    (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
    (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
];

/// Whether the values of some `-o` arguments ask for a remount.
pub fn is_remount(lists: &[String]) -> bool {
    // Lists that make no sense are refused by whoever parses them.
    split_all(lists).is_ok_and(|options| options.iter().any(|option| option == REMOUNT))
}

/// Finds out whether a remount would be tried, and changes nothing.
pub fn check_remount(store: &Path, mountpoint: &Path, lists: &[String]) -> Outcome<()> {
    find(store, mountpoint, lists).map(drop)
}

/// The mount of `store` at `mountpoint`, and the single options.
fn find(store: &Path, mountpoint: &Path, lists: &[String]) -> Outcome<(Mount, Vec<String>)> {
    let options = split_all(lists).map_err(Failure::usage)?;
    Settings::from_options(&options).map_err(Failure::usage)?;
    let name = &mountpoint.display().to_string();
    let mount = mountinfo::mount_at(mountpoint)
        .context(name)?
        .filter(Mount::is_s2sfs)
        .ok_or_else(|| Failure::new(Exit::NotAStore, format!("{name} is not mounted")))?;
    if mount.store() != store.canonicalize().context(store.display())? {
        let at = mount.store();
        return Err(Failure::usage(format!(
            "what is mounted at {name} is {}",
            at.display()
        )));
    }
    Ok((mount, options))
}

/// Remounts `store` at `mountpoint`. Flags that the options do not name stay as they are, and so does
/// everything that only counts when a store is opened, such as the size of the cache. When the mount has
/// become read-only, everything that was written is on the disk.
pub fn remount(store: &Path, mountpoint: &Path, lists: &[String]) -> Outcome<()> {
    let (mount, options) = find(store, mountpoint, lists)?;
    let name = &mountpoint.display().to_string();
    let shown = rustix::fs::statvfs(&mount.point).context(name)?.f_flag;
    let now = KEPT
        .iter()
        .filter(|(shown_as, _)| shown.contains(*shown_as))
        .fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag);
    let flags = changed(now, &options);
    if now.contains(MountFlags::RDONLY) && !flags.contains(MountFlags::RDONLY) {
        check_writable(&mount)?;
    }
    mount_remount(&mount.point, flags, c"").context(format!("remounting {name}"))?;
    if flags.contains(MountFlags::RDONLY) {
        // The daemon takes this for a sync of everything.
        File::open(&mount.point)
            .and_then(|root| root.sync_all())
            .context(format!("{name} is read-only now, but syncing it failed"))?;
    }
    Ok(())
}

/// A store that was opened read-only stays so as long as its daemon runs.
fn check_writable(mount: &Mount) -> Outcome<()> {
    let status = Client::of_mount(mount)
        .and_then(Client::status)
        .context(mount.point.display())?;
    match status.read_only {
        true => Err(Failure::failed(format!(
            "{} was mounted with ro, so that its store is open for reading only: unmount it and mount it again",
            mount.point.display()
        ))),
        false => Ok(()),
    }
}

/// `flags` after the options.
fn changed(mut flags: MountFlags, options: &[String]) -> MountFlags {
    for option in options {
        let (flag, on) = match option.as_str() {
            "ro" | "read_only" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            _ => continue,
        };
        flags.set(flag, on);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_flags_change_and_the_last_word_counts() {
        let now = MountFlags::NOSUID | MountFlags::RELATIME;
        let lists = ["remount,ro,rw,nodev".to_string(), "ro,cache=1G".to_string()];
        assert!(is_remount(&lists));
        assert_eq!(
            changed(now, &split_all(&lists).unwrap()),
            now | MountFlags::RDONLY | MountFlags::NODEV
        );
        assert!(!is_remount(&["ro,x-remount".to_string()]));
    }
}
