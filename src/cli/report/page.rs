//! The page: figures in tables, and charts.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::charts::{self, Bars};
use super::survey::Survey;
use crate::cli::output::{bytes, micros, percent, utc};
use crate::cli::sums::Sums;
use crate::control::Status;
use crate::volume::printable;

/// Types that the chart shows, and the table.
const CHART_TYPES: usize = 12;
const TABLE_TYPES: usize = 100;

const STYLE: &str = "\
:root { color-scheme: light dark; font-family: sans-serif; line-height: 1.4; }\n\
body { max-width: 1180px; margin: 1.5em auto; padding: 0 1em; }\n\
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.6em; }\n\
table { border-collapse: collapse; } td, th { padding: 0.15em 0.8em; text-align: right; }\n\
th { border-bottom: 1px solid gray; } td:first-child, th:first-child { text-align: left; }\n\
.charts { display: flex; flex-wrap: wrap; gap: 1em; } .charts svg { max-width: 100%; height: auto; }\n\
.bad { color: #d45050; }\n";

/// The page as HTML that is XML as well.
///
/// # Errors
/// If a chart cannot be drawn.
pub fn render(status: &Status, survey: &Survey) -> Result<String, String> {
    let title = format!("s2sfs store {}", status.store);
    let mut page = format!(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n\
         <meta charset=\"utf-8\"/>\n<meta name=\"viewport\" content=\"width=device-width\"/>\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    page.push_str(&facts(status, survey));
    page.push_str("<div class=\"charts\">\n");
    for chart in charts(status, survey)? {
        page.push_str(&chart);
        page.push('\n');
    }
    page.push_str("</div>\n");
    page.push_str(&sums_table(
        "By type",
        "type",
        &largest(&survey.counts.types, TABLE_TYPES),
    ));
    page.push_str(&sums_table(
        "By codec",
        "codec",
        &largest(&survey.counts.codecs, TABLE_TYPES),
    ));
    page.push_str(&sums_table("By age", "younger than", &survey.by_age()));
    page.push_str(&sums_table("By size", "shorter than", &survey.by_size()));
    if status.mounted {
        page.push_str(&latency_table(status));
    }
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

fn facts(status: &Status, survey: &Survey) -> String {
    let total = &survey.counts.total;
    let mounted = match (&status.mountpoint, status.mounted) {
        (Some(point), true) => format!("at {point}, for {:.0} s", status.uptime_seconds),
        _ => "no".into(),
    };
    let mut rows = vec![
        ("as of", utc(survey.time())),
        ("uuid", status.uuid.clone()),
        ("mounted", mounted),
        (
            "files",
            format!("{}, {} directories", total.files, status.directories),
        ),
        ("contents", bytes(status.logical_bytes)),
        (
            "on the disk",
            format!(
                "{}, {} of it dead",
                bytes(status.stored_bytes),
                bytes(status.dead_bytes)
            ),
        ),
        ("ratio", format!("{:.2}", status.ratio)),
        ("models", bytes(status.model_bytes)),
        (
            "still staged",
            format!(
                "{} ({})",
                bytes(status.staged_bytes),
                percent(total.staged, total.stored)
            ),
        ),
    ];
    if status.mounted {
        let errors = &status.errors;
        rows.push((
            "errors since the mount",
            format!(
                "{} EIO, {} disk full, {} of settling",
                errors.io, errors.no_space, errors.settle
            ),
        ));
    }
    let mut text = String::from("<table>\n");
    for (name, value) in rows {
        let _ = writeln!(text, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
    }
    text.push_str("</table>\n");
    if let Some(why) = &status.failed {
        let _ = writeln!(text, "<p class=\"bad\">{}</p>", escape(why));
    }
    if survey.failures > 0 {
        let what = format!("{} files or directories could not be read", survey.failures);
        let _ = writeln!(text, "<p class=\"bad\">{what}</p>");
    }
    text
}

fn charts(status: &Status, survey: &Survey) -> Result<Vec<String>, String> {
    let types = largest(&survey.counts.types, CHART_TYPES);
    let codecs = largest(&survey.counts.codecs, CHART_TYPES);
    let mut charts = vec![
        charts::bars("ratio by type, most stored bytes first", &ratios(&types))?,
        charts::bars(
            "ratio by age of the files: younger than",
            &ratios(&survey.by_age()),
        )?,
        charts::bars("ratio by codec", &ratios(&codecs))?,
        charts::bars(
            "contents (above) and stored bytes (below) by codec",
            &sizes(&codecs),
        )?,
        charts::bars(
            "contents (above) and stored bytes (below) by type",
            &sizes(&types),
        )?,
        charts::bars("files by size: shorter than", &files(&survey.by_size()))?,
    ];
    if status.mounted {
        let latency = status.latency.all();
        charts.push(charts::times(
            "how long things took since the mount",
            &latency,
        )?);
    }
    Ok(charts)
}

/// The rows with the most stored bytes.
fn largest(sums: &BTreeMap<String, Sums>, most: usize) -> Vec<(String, Sums)> {
    let mut rows: Vec<(String, Sums)> = sums.iter().map(|(name, s)| (name.clone(), *s)).collect();
    rows.sort_by_key(|(_, sums)| std::cmp::Reverse((sums.stored, sums.files)));
    rows.truncate(most);
    rows
}

fn ratios(rows: &[(String, Sums)]) -> Vec<Bars> {
    let stored = rows.iter().filter(|(_, sums)| sums.stored > 0);
    stored
        .map(|(name, sums)| Bars::one(name, sums.ratio(), format!("{:.2}", sums.ratio())))
        .collect()
}

fn sizes(rows: &[(String, Sums)]) -> Vec<Bars> {
    let bar = |size: u64| (size as f64, bytes(size));
    rows.iter()
        .map(|(name, sums)| Bars {
            name: name.clone(),
            bars: vec![bar(sums.logical), bar(sums.stored)],
        })
        .collect()
}

fn files(rows: &[(String, Sums)]) -> Vec<Bars> {
    rows.iter()
        .map(|(name, sums)| {
            let text = format!("{} ({})", sums.files, bytes(sums.logical));
            Bars::one(name, sums.files as f64, text)
        })
        .collect()
}

fn sums_table(title: &str, what: &str, rows: &[(String, Sums)]) -> String {
    let rows = rows.iter().map(|(name, sums)| {
        let ratio = match sums.stored {
            0 => "-".into(),
            _ => format!("{:.2}", sums.ratio()),
        };
        [
            name.clone(),
            sums.files.to_string(),
            sums.extents.to_string(),
            bytes(sums.logical),
            bytes(sums.stored),
            ratio,
        ]
    });
    table(
        title,
        [what, "files", "extents", "contents", "stored", "ratio"],
        rows,
    )
}

fn latency_table(status: &Status) -> String {
    let all = status.latency.all();
    let rows = all.iter().filter(|(_, latency)| latency.count > 0);
    let rows = rows.map(|(name, latency)| {
        [
            name.replace('_', " "),
            latency.count.to_string(),
            micros(latency.p50_micros),
            micros(latency.p90_micros),
            micros(latency.p99_micros),
            micros(latency.max_micros),
        ]
    });
    let head = ["", "count", "p50", "p90", "p99", "longest"];
    table("Latency since the mount", head, rows)
}

fn table<const N: usize>(
    title: &str,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut text = format!("<h2>{title}</h2>\n<table>\n<tr>");
    for name in head {
        let _ = write!(text, "<th>{name}</th>");
    }
    text.push_str("</tr>\n");
    for row in rows {
        text.push_str("<tr>");
        for cell in &row {
            let _ = write!(text, "<td>{}</td>", escape(cell));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table>\n");
    text
}

/// Text as HTML and XML have it.
fn escape(text: &str) -> String {
    printable(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
