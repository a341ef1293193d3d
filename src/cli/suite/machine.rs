//! What the figures were measured on.

use serde::Serialize;

use crate::cli::output;

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    pub version: String,
    pub commit: String,
}

impl Machine {
    /// In one line.
    pub fn text(&self) -> String {
        format!(
            "s2sfs {} ({}), {} x {}, {} of memory, Linux {}",
            self.version,
            self.commit,
            self.cpus,
            self.cpu,
            output::bytes(self.memory_bytes),
            self.kernel,
        )
    }
}

/// Bytes that a new process could have without swapping; 0 if the kernel does not say.
pub fn available_memory() -> u64 {
    memory_field("MemAvailable")
}

fn memory_field(name: &str) -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let text = field(&meminfo, name);
    let kib = text.trim_end_matches("kB").trim().parse::<u64>();
    kib.unwrap_or(0) << 10
}

pub fn describe() -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    Machine {
        cpu: field(&cpuinfo, "model name"),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get()),
        memory_bytes: memory_field("MemTotal"),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .into(),
        version: env!("CARGO_PKG_VERSION").into(),
        commit: commit(),
    }
}

/// The value of the first `name : value` line.
fn field(text: &str, name: &str) -> String {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or_else(|| "unknown".into(), |(_, value)| value.trim().to_string())
}

fn commit() -> String {
    let output = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_string()
        }
        _ => "unknown".into(),
    }
}
