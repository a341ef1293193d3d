//! Results as JSON and as Markdown tables, and their place in the project's documents.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::classes::ClassResult;
use super::figures;
use super::machine::Machine;
use super::rivals::RivalRow;
use super::special::{CopyIn, Expansion, SmallFiles};
use super::speeds::Speeds;
use crate::cli::output;
use crate::cli::peers::{self, PeerRow};
use crate::control::ratio;
use crate::exit::{Context, Failure, Outcome};

#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    /// Mount options of all stores; none means the defaults.
    pub options: Option<String>,
    pub classes: Vec<ClassResult>,
    /// Other file systems, and programs that make one stream of each class.
    pub rivals: Vec<RivalRow>,
    pub programs: Vec<PeerRow>,
    pub copy_in: Option<CopyIn>,
    pub small_files: Option<SmallFiles>,
    pub expansion: Option<Expansion>,
}

impl Results {
    pub fn new(machine: Machine, options: &Option<String>) -> Results {
        Results {
            machine,
            options: options.clone(),
            classes: Vec::new(),
            rivals: Vec::new(),
            programs: Vec::new(),
            copy_in: None,
            small_files: None,
            expansion: None,
        }
    }
}

/// Writes results.json, results.md and the figures, prints the tables, and splices them into documents. A document with
/// all tables gets the figures beside it.
pub fn write(results: &Results, dir: &Path, documents: &[PathBuf]) -> Outcome<()> {
    let json = serde_json::to_string_pretty(results).context("JSON")? + "\n";
    std::fs::write(dir.join("results.json"), json).context(dir.display())?;
    let full = full_text(results);
    std::fs::write(dir.join("results.md"), &full).context(dir.display())?;
    figures::write(results, dir)?;
    for document in documents {
        let sections = [("bench", full.as_str()), ("ratios", &ratio_table(results))];
        if splice_file(document, &sections)?.contains(&"bench") {
            figures::write(results, document.parent().unwrap_or(Path::new(".")))?;
        }
    }
    output::print(&full)
}

fn full_text(results: &Results) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}; mount options: {}.\n",
        results.machine.text(),
        results.options.as_deref().unwrap_or("the defaults"),
    );
    text.push_str(&size_table(results));
    text.push('\n');
    text.push_str(&speed_table(results));
    if !results.rivals.is_empty() {
        text.push_str("\nThe same files in other file systems:\n\n");
        text.push_str(&rival_table(results));
    }
    if !results.programs.is_empty() {
        text.push_str(
            "\nAll files of a class, joined, by programs that cannot be read from the middle:\n\n",
        );
        text.push_str(&peers::table(&results.programs));
    }
    text.push_str(&special_text(results));
    text.push('\n');
    text.push_str(&figures::links());
    text
}

/// Ours and the other file systems, class by class.
fn rival_table(results: &Results) -> String {
    let head = [
        "class",
        "file system",
        "stored",
        "ratio",
        "write MB/s",
        "cold read MB/s",
        "CPU ms/MB",
        "hot read MB/s",
        "random ms",
        "p99 ms",
        "look-up us",
        "change us",
        "daemon's RSS",
    ];
    let mut rows = Vec::new();
    for class in &results.classes {
        // in its final form when it is settled
        let seconds = 1.0 / (class.copy_in_mb_per_second * 1e3).max(1e-9)
            + 1.0 / class.settle_kb_per_second.max(1e-9);
        let own = RivalRow {
            class: class.class.clone(),
            system: figures::OWN.into(),
            raw_bytes: class.raw_bytes,
            stored_bytes: Some(class.stored_bytes),
            write_mb_per_second: Some(1e-3 / seconds),
            speeds: Some(class.speeds.clone()),
            why_not: None,
        };
        rows.push(rival_cells(&own));
        let others = results.rivals.iter().filter(|row| row.class == class.class);
        rows.extend(others.map(rival_cells));
    }
    output::table(head, 2, &rows)
}

fn rival_cells(row: &RivalRow) -> [String; 13] {
    let number = |value: Option<f64>| value.map_or("-".into(), significant);
    let speed = |of: fn(&Speeds) -> f64| number(row.speeds.as_ref().map(of));
    let stored = row.stored_bytes;
    let daemon = row.speeds.as_ref().and_then(|s| s.daemon_peak_rss_bytes);
    let system = match &row.why_not {
        None => row.system.clone(),
        Some(why) => format!("{}: {}", row.system, why.replace(['|', '\n'], " ")),
    };
    [
        row.class.clone(),
        system,
        stored.map_or("-".into(), grouped),
        number(stored.map(|stored| ratio(row.raw_bytes, stored))),
        number(row.write_mb_per_second),
        speed(|s| s.cold_read_mb_per_second),
        speed(|s| s.cpu_ms_per_mb),
        speed(|s| s.hot_read_mb_per_second),
        speed(|s| s.random_read_ms_median),
        speed(|s| s.random_read_ms_p99),
        speed(|s| s.look_up_us),
        number(row.speeds.as_ref().and_then(|s| s.change_us)),
        daemon.map_or("-".into(), output::bytes),
    ]
}

/// A number with three digits that count.
pub fn significant(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// The short table of the README.
fn ratio_table(results: &Results) -> String {
    let mut text = String::from("| files | squashfs (zstd -19) | s2sfs |\n|---|---|---|\n");
    for class in &results.classes {
        let _ = writeln!(
            text,
            "| {} | {:.2} | {} |",
            class.class,
            class.squashfs_ratio,
            emphasised(class.ratio, class.squashfs_ratio)
        );
    }
    text
}

fn emphasised(ratio: f64, other: f64) -> String {
    if ratio > other {
        format!("**{ratio:.2}**")
    } else {
        format!("{ratio:.2}")
    }
}

fn size_table(results: &Results) -> String {
    let mut text = String::from(
        "| class | files | bytes | squashfs | store | of it log | of it index | store / squashfs \
         | ratio squashfs | ratio s2sfs | model-coded |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for class in &results.classes {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {:.3} | {:.2} | {:.2} | {:.1} % |",
            class.class,
            class.files,
            grouped(class.raw_bytes),
            grouped(class.squashfs_bytes),
            grouped(class.stored_bytes),
            grouped(class.log_bytes),
            grouped(class.index_bytes),
            class.of_squashfs,
            class.squashfs_ratio,
            class.ratio,
            class.model_share * 100.0,
        );
    }
    text
}

fn speed_table(results: &Results) -> String {
    let mut text = String::from(
        "| class | copy in, MB/s | settle, KB/s | cold sequential read, KB/s \
         | cold random 4 KiB read, median ms | p99 ms | reads | daemon's peak RSS |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for class in &results.classes {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} | {} | {} |",
            class.class,
            class.copy_in_mb_per_second,
            class.settle_kb_per_second,
            class.speeds.cold_read_mb_per_second * 1e3,
            class.speeds.random_read_ms_median,
            class.speeds.random_read_ms_p99,
            class.speeds.random_reads,
            output::bytes(class.peak_rss_bytes),
        );
    }
    text
}

fn special_text(results: &Results) -> String {
    let mut text = String::new();
    if let Some(copy) = &results.copy_in {
        let _ = writeln!(
            text,
            "\nCopying in {} at once: {:.0} MB/s, {:.0} MB/s with the time of a sync.",
            output::bytes(copy.bytes),
            copy.mb_per_second,
            copy.mb_per_second_with_sync
        );
    }
    if let Some(small) = &results.small_files {
        let _ = writeln!(
            text,
            "\n{} files of together {} bytes: store {} ({:.2} of their bytes), of it log {} and \
             index {}; {} on an ordinary file system.",
            grouped(small.files as u64),
            grouped(small.raw_bytes),
            grouped(small.stored_bytes),
            small.of_raw,
            grouped(small.log_bytes),
            grouped(small.index_bytes),
            grouped(small.ordinary_bytes),
        );
    }
    if let Some(expansion) = &results.expansion {
        let _ = writeln!(
            text,
            "\nGrowth of a whole store: {:+.3} % with {} random bytes, {:+.3} % with {} bytes of a \
             zstd stream.",
            expansion.random_percent,
            grouped(expansion.random_raw_bytes),
            expansion.compressed_percent,
            grouped(expansion.compressed_raw_bytes),
        );
    }
    text
}

/// A number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Replaces the sections that a document marks for these tables; at least one must be there. Returns their names.
pub fn splice_file<'a>(document: &Path, sections: &[(&'a str, &str)]) -> Outcome<Vec<&'a str>> {
    let mut text = std::fs::read_to_string(document).context(document.display())?;
    let mut found = Vec::new();
    for (name, section) in sections {
        if let Some(spliced) = splice(&text, name, section) {
            text = spliced;
            found.push(*name);
        }
    }
    if found.is_empty() {
        return Err(Failure::usage(format!(
            "{} has no place for results",
            document.display()
        )));
    }
    std::fs::write(document, text).context(document.display())?;
    Ok(found)
}

/// Replaces what lies between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
fn splice(text: &str, name: &str, section: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {name}:begin -->"),
        format!("<!-- {name}:end -->"),
    );
    let from = text.find(&begin)? + begin.len();
    let to = from + text.get(from..)?.find(&end)?;
    Some(format!(
        "{}\n{}\n{}",
        &text[..from],
        section.trim_end(),
        &text[to..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_replaced_between_their_marks_only() {
        let text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nz\n";
        let spliced = splice(text, "x", "new\n").unwrap();
        assert_eq!(spliced, "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nz\n");
        assert_eq!(splice(&spliced, "x", "new\n").unwrap(), spliced);
        assert_eq!(splice(text, "y", "new"), None);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_167_360), "1,167,360");
        assert_eq!(grouped(100_000), "100,000");
    }
}
