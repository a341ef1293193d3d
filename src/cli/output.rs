//! How figures are shown to people.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::exit::{Context, Outcome};
use crate::logging::civil;

/// What takes less is not worth a line on the screen.
const APPEARS: Duration = Duration::from_secs(1);

/// Bytes in the largest binary unit that leaves at least one digit.
pub fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{count} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A time in microseconds in a unit that fits.
pub fn micros(time: u64) -> String {
    match time {
        0..1000 => format!("{time} us"),
        1000..1_000_000 => format!("{:.1} ms", time as f64 / 1e3),
        1_000_000..120_000_000 => format!("{:.1} s", time as f64 / 1e6),
        _ => format!("{:.0} min", time as f64 / 60e6),
    }
}

/// A share in percent.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// A time in seconds since 1970 as people write it, in UTC.
pub fn utc(seconds: u64) -> String {
    let (year, month, day) = civil((seconds / 86_400) as i64);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// Decimal megabytes per second.
pub fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

/// A Markdown table with its columns aligned, the first `names` of them to the left and the others to the right.
pub fn table<const N: usize>(head: [&str; N], names: usize, rows: &[[String; N]]) -> String {
    let length = |text: &str| text.chars().count();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| length(&row[column]));
        cells.chain([length(head[column]), 3]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        text.push('|');
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let padding = " ".repeat(width - length(cell));
            text.push_str(&match column < names {
                true => format!(" {cell}{padding} |"),
                false => format!(" {padding}{cell} |"),
            });
        }
        text.push('\n');
    };
    line(head);
    line(std::array::from_fn(|column| match column < names {
        true => "---",
        false => "--:",
    }));
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
    text
}

/// The nearest-rank percentile of sorted values; 0 without values.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// Prints text, or fails as a command whose output is closed.
pub fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("standard output")
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl Serialize) -> Outcome<()> {
    print(&(serde_json::to_string_pretty(value).context("JSON")? + "\n"))
}

/// Has `write` write a file that appears, or takes the place of the one that is there, only when it is complete.
/// Behind a symbolic link it is the file that is replaced, not the link. What is there and no regular file, such as a
/// device or a pipe, stays and is written to.
///
/// # Errors
/// Those of `write` and of the system; nothing is left of the new file then.
pub fn replace<T, E: From<io::Error>>(
    target: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    let target = match fs::metadata(target) {
        Ok(meta) if !meta.is_file() => {
            return write(&mut OpenOptions::new().write(true).open(target)?);
        }
        Ok(_) => target.canonicalize()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !target.is_symlink() => target.to_owned(),
        Err(e) => return Err(e.into()),
    };
    let mut partial = target.clone().into_os_string();
    partial.push(format!(".{}.partial", std::process::id()));
    let mut file = File::create_new(&partial)?;
    let written = write(&mut file).and_then(|done| {
        file.sync_all()?;
        fs::rename(&partial, &target)?;
        Ok(done)
    });
    if written.is_err() {
        // What has gone wrong before is what counts.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// A progress bar in bytes on standard error, if that is a terminal.
pub fn progress_bar(what: &'static str) -> ProgressBar {
    let template = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
    styled(ProgressBar::new(0), template).with_message(what)
}

/// A progress bar of `len` steps that shows the share that is done, on standard error, if that is a terminal.
pub fn share_bar(len: u64) -> ProgressBar {
    styled(
        ProgressBar::new(len),
        "{msg} [{bar:30}] {percent} % ETA {eta}",
    )
}

/// A count or a clock on standard error for what has no known end, if that is a terminal and it takes
/// longer than a second. Goes away when it is dropped.
pub struct Patience {
    bar: ProgressBar,
    appears: Instant,
}

impl Patience {
    /// Shows how many `things` there were so far.
    pub fn counting(things: &'static str) -> Patience {
        Patience::new(things, "{spinner} {human_pos} {msg} ({elapsed})")
    }

    /// Shows that `what` still goes on, by itself.
    pub fn waiting(what: &'static str) -> Waiting {
        let patience = Patience::new(what, "{spinner} {msg} ({elapsed})");
        let (stop, stopped) = mpsc::channel();
        let bar = patience.bar.clone();
        let thread = std::thread::spawn(move || {
            let still = |wait| stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout);
            while still(APPEARS) {
                bar.tick();
            }
        });
        Waiting {
            patience,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn new(what: &'static str, template: &str) -> Patience {
        Patience {
            bar: styled(ProgressBar::new_spinner(), template).with_message(what),
            appears: Instant::now() + APPEARS,
        }
    }

    pub fn set(&self, count: u64) {
        if Instant::now() >= self.appears {
            self.bar.set_position(count);
        }
    }

    /// Writes a line to standard error beside the count.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.finish();
    }
}

/// See [`Patience::waiting`].
pub struct Waiting {
    patience: Patience,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // The thread ends when the other end of its channel does.
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.patience.finish();
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_a_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_735_689_599), "2024-12-31 23:59 UTC");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(percent(1, 8), "12.5 %");
        let times = [0, 999, 1000, 59_940_000, 7_200_000_000].map(micros);
        assert_eq!(times, ["0 us", "999 us", "1.0 ms", "59.9 s", "120 min"]);
    }

    #[test]
    fn the_columns_of_tables_are_aligned() {
        let row = |name: &str, number: &str| [name.to_owned(), number.to_owned()];
        let text = table(["é", "bytes"], 1, &[row("long", "1"), row("b", "20")]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| é    | bytes |");
        assert_eq!(lines[1], "| ---  |   --: |");
        assert_eq!(lines[2], "| long |     1 |");
        assert_eq!(lines[3], "| b    |    20 |");
    }

    fn put(target: &Path, text: &str) -> io::Result<()> {
        replace(target, |file| file.write_all(text.as_bytes()))
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        put(&file, "new").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        put(&link, "newer").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer");
        let failed = replace(&file, |file| {
            file.write_all(b"half")?;
            Err::<(), _>(io::Error::other("the rest is missing"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the rest is missing");
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer");
        fs::remove_file(&file).unwrap();
        assert!(put(&link, "a link that leads nowhere").is_err());
        fs::create_dir(&file).unwrap();
        assert!(put(&file, "a directory").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_regular_file_stays_and_is_written_to() {
        use std::os::unix::fs::FileTypeExt;
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        put(&pipe, "through it").unwrap();
        assert_eq!(reader.join().unwrap(), "through it");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 50.0);
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&values[..1], 99), 1.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }
}
