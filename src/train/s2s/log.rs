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

    fn parse(csv: &str) -> std::result::Result<Line, String> {
        let fields: Vec<&str> = csv.split(',').collect();
        let &[step, phase, ref numbers @ ..] = fields.as_slice() else {
            return Err("there is no phase".into());
        };
        let rewarded = match phase {
            "a2c" => true,
            "copy" => false,
            other => return Err(format!("no phase is called {other:?}")),
        };
        let number = |field: &&str| match field.parse() {
            Ok(number) if f64::is_finite(number) => Ok(number),
            _ => Err(format!("{field:?} is no number")),
        };
        let numbers: Vec<f64> = numbers
            .iter()
            .map(number)
            .collect::<std::result::Result<_, _>>()?;
        let Ok(
            [
                reward,
                latents,
                entropy,
                latent_bits,
                residual,
                total,
                without,
            ],
        ) = <[f64; 7]>::try_from(numbers)
        else {
            return Err(format!("{} columns", fields.len()));
        };
        Ok(Line {
            step: step.parse().map_err(|_| format!("{step:?} is no step"))?,
            rewarded,
            reward,
            latents,
            entropy,
            latent_bits,
            residual,
            total,
            without,
        })
    }
}

/// The lines of a log.
///
/// # Errors
/// If the file cannot be read, or is no such log; names the line.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).map_err(|source| S2sError::Read {
        path: path.to_owned(),
        source,
    })?;
    let damaged = |number: usize, what: &str| S2sError::File {
        path: path.to_owned(),
        what: format!("line {number}: {what}"),
    };
    let mut lines = text.lines().zip(1..);
    if lines.next().map(|(line, _)| line) != Some(COLUMNS.trim_end()) {
        return Err(damaged(1, "not the columns of a log of `train --s2s`"));
    }
    let mut read: Vec<Line> = Vec::new();
    for (line, number) in lines {
        let line = Line::parse(line).map_err(|what| damaged(number, &what))?;
        if read.last().is_some_and(|last| last.step >= line.step) {
            return Err(damaged(
                number,
                "its step is not behind that of the line before",
            ));
        }
        read.push(line);
    }
    Ok(read)
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
        let read = read(&dir.path().join(LOG)).unwrap();
        assert_eq!(
            read.iter().map(|l| l.step).collect::<Vec<_>>(),
            [1, 2, 3, 4]
        );
        assert_eq!(read[3], line);
        assert!(lines[0].starts_with("step,phase,reward"));
        assert!(lines[3].starts_with("3,copy,") && lines[4].starts_with("4,a2c,"));
        assert_eq!(lines[4].split(',').count(), lines[0].split(',').count());
        assert_eq!(Log::open(dir.path(), 0).unwrap().path, dir.path().join(LOG));
        let text = std::fs::read_to_string(dir.path().join(LOG)).unwrap();
        assert_eq!(text, COLUMNS);
    }
}
