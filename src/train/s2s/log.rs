//! What training did, step by step, as CSV: for tables, plots and whoever wants to see what became of the latents.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Result, S2sError};

/// The file in the directory of the output.
pub const LOG: &str = "log.csv";
const COLUMNS: &str = "step,phase,reward,latents,entropy,latent_bits,residual,total,without\n";

/// One line: means over the strings of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Line {
    pub step: u64,
    pub rewarded: bool,
    /// Minus the bits saved and paid, with the factor of the step; 0 while copying.
    pub reward: f64,
    /// Latents of a string.
    pub latents: f64,
    /// Of an action, in nats.
    pub entropy: f64,
    /// Bits of a string under the prior.
    pub latent_bits: f64,
    /// Bits per byte with latents: what is left to code, and that and the latents.
    pub residual: f64,
    pub total: f64,
    /// Bits per byte without latents.
    pub without: f64,
}

impl Line {
    fn csv(&self) -> String {
        let phase = if self.rewarded { "a2c" } else { "copy" };
        format!(
            "{},{phase},{:.4},{:.3},{:.4},{:.3},{:.5},{:.5},{:.5}\n",
            self.step,
            self.reward,
            self.latents,
            self.entropy,
            self.latent_bits,
            self.residual,
            self.total,
            self.without
        )
    }
}

/// A log that is being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Begins a log in a directory, or goes on with the one there behind the line of `step`.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(dir: &Path, step: u64) -> Result<Log> {
        let path = dir.join(LOG);
        let failed = |source| S2sError::Read {
            path: path.clone(),
            source,
        };
        let old = match std::fs::read_to_string(&path) {
            Ok(text) if step > 0 => text,
            _ => String::new(),
        };
        let is_past = |line: &&str| {
            let number = line.split(',').next().and_then(|n| n.parse::<u64>().ok());
            number.is_some_and(|number| number <= step)
        };
        let kept = old.lines().skip(1).filter(is_past);
        let text: String = kept.flat_map(|line| [line, "\n"]).collect();
        std::fs::write(&path, format!("{COLUMNS}{text}")).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Log {
            file: file.map_err(failed)?,
            path,
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let written = self.file.write_all(line.csv().as_bytes());
        written.map_err(|source| S2sError::Read {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_behind_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), 0).unwrap();
        for step in 1..=5 {
            let line = Line {
                step,
                ..Line::default()
            };
            log.write(&line).unwrap();
        }
        let mut log = Log::open(dir.path(), 3).unwrap();
        let line = Line {
            step: 4,
            rewarded: true,
            ..Line::default()
        };
        log.write(&line).unwrap();
        let text = std::fs::read_to_string(dir.path().join(LOG)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[0].starts_with("step,phase,reward"));
        assert!(lines[3].starts_with("3,copy,") && lines[4].starts_with("4,a2c,"));
        assert_eq!(lines[4].split(',').count(), lines[0].split(',').count());
        assert_eq!(Log::open(dir.path(), 0).unwrap().path, dir.path().join(LOG));
        let text = std::fs::read_to_string(dir.path().join(LOG)).unwrap();
        assert_eq!(text, COLUMNS);
    }
}
