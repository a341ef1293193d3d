//! Groups of the process behind a request.

use fuser::Request;

/// Whether the caller is in a group. The request has the primary group only; the others are asked of
/// the kernel, and a caller about whom nothing can be found out has none.
pub fn is_member(request: &Request, gid: u32) -> bool {
    request.gid() == gid
        || std::fs::read_to_string(format!("/proc/{}/status", request.pid()))
            .is_ok_and(|status| groups(&status).any(|group| group == gid))
}

/// The supplementary groups in the contents of /proc/PID/status.
fn groups(status: &str) -> impl Iterator<Item = u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|group| group.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn supplementary_groups_are_found() {
        let status = "Name:\tcat\nGid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nVmPeak:\t1 kB\n";
        assert_eq!(groups(status).collect::<Vec<_>>(), [4, 24, 1000]);
        assert_eq!(groups("Name:\tcat\nGroups:\t\n").count(), 0);
        assert_eq!(groups("").count(), 0);
    }
}
