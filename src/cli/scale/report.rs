//! The results as JSON, as Markdown tables and as figures.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::fit::Fit;
use super::step::{EXTENT, Kind, SMALL_EXTENT, Values};
use crate::cli::output;
use crate::cli::plot::{Figure, Line, Panel, Stroke};
use crate::cli::suite::figures::PLOTS;
use crate::cli::suite::machine::Machine;
pub use crate::cli::suite::report::grouped;
use crate::cli::suite::report::{significant, splice_file};
use crate::exit::{Context, Outcome};

/// Section of a document that the tables replace.
const SECTION: &str = "scale";
/// A store of this many bytes is extrapolated to.
const LARGE_STORE: f64 = 1e14;
/// Bytes of a file on average in it.
const FILE: f64 = 1e6;

#[derive(Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    /// Mount options of all stores.
    pub options: String,
    pub limit_minutes: f64,
    pub minutes: f64,
    pub dimensions: Vec<Dimension>,
}

/// Stores of growing size of one kind.
#[derive(Debug, Serialize)]
pub struct Dimension {
    pub kind: Kind,
    /// Why there is no larger one; none if the largest that was asked for is there.
    pub stopped: Option<String>,
    pub points: Vec<Point>,
    /// How each value grows with the count of items.
    pub fits: Vec<(String, Fit)>,
}

/// One store.
#[derive(Debug, Serialize)]
pub struct Point {
    pub count: u64,
    /// That measuring it took, in all.
    pub seconds: f64,
    pub values: Values,
}

/// What is measured: its name in the results, and in words.
type Measure = (&'static str, &'static str);

/// Times of all items, in the order of the tables.
const TIMES: [Measure; 10] = [
    ("create", "create and sync"),
    ("settle", "settle"),
    ("unmount", "unmount"),
    ("mount", "mount"),
    ("lookup", "look up"),
    ("readdir", "list"),
    ("read", "read"),
    ("recover", "mount after a kill"),
    ("check", "check"),
    ("unlink", "remove"),
];
const SIZES: [Measure; 3] = [
    ("log_bytes", "log"),
    ("snapshot_bytes", "checkpoint and the rest"),
    ("index_bytes", "index"),
];
const MEMORY: [Measure; 8] = [
    ("filled_rss_bytes", "RSS after creating"),
    ("settled_rss_bytes", "RSS after settling"),
    ("mounted_rss_bytes", "RSS after mounting"),
    ("serving_rss_bytes", "RSS after reading"),
    ("peak_filling_rss_bytes", "peak RSS, creating"),
    ("peak_settling_rss_bytes", "peak RSS, settling"),
    (
        "peak_recovering_rss_bytes",
        "peak RSS, mounting after a kill",
    ),
    ("peak_checking_rss_bytes", "peak RSS, checking"),
];

/// Figures: file name, title, and what they show.
const FIGURES: [(&str, &str, &[Measure]); 3] = [
    (
        "scale-work.svg",
        "Seconds for all items",
        &[TIMES[0], TIMES[1], TIMES[4], TIMES[5], TIMES[6], TIMES[9]],
    ),
    (
        "scale-store.svg",
        "Seconds for the whole store",
        &[TIMES[3], TIMES[7], TIMES[2], TIMES[8]],
    ),
    (
        "scale-bytes.svg",
        "Bytes of memory and disk",
        &[
            MEMORY[5], MEMORY[2], MEMORY[6], MEMORY[7], SIZES[0], SIZES[1], SIZES[2],
        ],
    ),
];

/// What one item is.
pub fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Files => "small files",
        Kind::Directory => "entries of one directory",
        Kind::Extents => "extents of one file",
        Kind::Bytes => "extents of large files",
        Kind::Mounted => "small files, mounted",
    }
}

fn describe(kind: Kind) -> String {
    match kind {
        Kind::Files => "files of 512 bytes, 1,000 to a directory".into(),
        Kind::Directory => "files of 64 bytes in one directory, made in another order than that of their names".into(),
        Kind::Extents => format!("one file with extents of {} KiB", SMALL_EXTENT >> 10),
        Kind::Bytes => format!("files of 4 MiB, counted in extents of {} KiB", EXTENT >> 10),
        Kind::Mounted => "files of 512 bytes, 1,000 to a directory, made and read by system calls; memory is the daemon's".into(),
    }
}

impl Dimension {
    pub fn new(kind: Kind, points: Vec<Point>, stopped: Option<String>) -> Dimension {
        let measures = TIMES.iter().chain(&MEMORY).chain(&SIZES);
        let fits = measures.filter_map(|(name, _)| {
            let fit = Fit::of(&series(&points, name))?;
            Some(((*name).to_owned(), fit))
        });
        Dimension {
            kind,
            fits: fits.collect(),
            stopped,
            points,
        }
    }

    fn fit(&self, name: &str) -> Option<&Fit> {
        let found = self.fits.iter().find(|(measured, _)| measured == name);
        found.map(|(_, fit)| fit)
    }
}

/// The points that have a value, as (count, value).
fn series(points: &[Point], name: &str) -> Vec<(f64, f64)> {
    let place = |point: &Point| Some((point.count as f64, *point.values.get(name)?));
    points.iter().filter_map(place).collect()
}

/// Writes scale.json, scale.md and the figures, prints the tables, and splices them into documents.
pub fn write(results: &Results, dir: &Path, documents: &[PathBuf]) -> Outcome<()> {
    let json = serde_json::to_string_pretty(results).context("JSON")? + "\n";
    std::fs::write(dir.join("scale.json"), json).context(dir.display())?;
    let text = text(results);
    std::fs::write(dir.join("scale.md"), &text).context(dir.display())?;
    write_figures(results, dir)?;
    for document in documents {
        splice_file(document, &[(SECTION, &text)])?;
        write_figures(results, document.parent().unwrap_or(Path::new(".")))?;
    }
    output::print(&text)
}

fn write_figures(results: &Results, dir: &Path) -> Outcome<()> {
    let plots = dir.join(PLOTS);
    std::fs::create_dir_all(&plots).context(plots.display())?;
    for (name, title, measures) in FIGURES {
        let svg = figure(results, title, measures).svg().context("drawing")?;
        let path = plots.join(name);
        std::fs::write(&path, svg).context(path.display())?;
    }
    Ok(())
}

fn figure(results: &Results, title: &str, measures: &[Measure]) -> Figure {
    let panel = |dimension: &Dimension| Panel {
        title: format!("{title}: {}", name(dimension.kind)),
        lines: measures
            .iter()
            .enumerate()
            .map(|(series_number, (measure, _))| Line {
                series: series_number,
                stroke: Stroke::Bold,
                points: series(&dimension.points, measure),
            })
            .collect(),
        shades: Vec::new(),
    };
    Figure {
        x: "items".into(),
        legend: measures
            .iter()
            .map(|(_, words)| (*words).to_owned())
            .collect(),
        panels: results.dimensions.iter().map(panel).collect(),
        logarithmic: true,
    }
}

fn text(results: &Results) -> String {
    let mut text = format!(
        "{}; mount options: {}; {:.1} minutes of {}.\n",
        results.machine.text(),
        results.options,
        results.minutes,
        results.limit_minutes
    );
    for dimension in &results.dimensions {
        let _ = writeln!(text, "\n### {}\n", capital(name(dimension.kind)));
        let counts: Vec<String> = dimension.points.iter().map(|p| grouped(p.count)).collect();
        let _ = writeln!(
            text,
            "{}. Measured: {}. {}\n",
            capital(&describe(dimension.kind)),
            if counts.is_empty() {
                "none".into()
            } else {
                counts.join("; ")
            },
            match &dimension.stopped {
                Some(why) => format!("Stopped by {}.", one_line(why)),
                None => "All that was asked for.".into(),
            }
        );
        if !dimension.points.is_empty() {
            text.push_str(&table(dimension));
        }
    }
    text.push_str("\n### A store of 100 TB\n\n");
    text.push_str(&extrapolation(results));
    for (name, title, _) in FIGURES {
        let _ = write!(text, "\n![{title}]({PLOTS}/{name})\n");
    }
    text
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(rest).collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Smallest and largest store, the cost of an item in the largest, and how it grows.
fn table(dimension: &Dimension) -> String {
    let head = [
        "",
        "smallest",
        "largest",
        "an item",
        "exponent",
        "at the end",
        "residual",
        "growth",
    ];
    let mut rows = Vec::new();
    for (measures, kind) in [
        (&TIMES[..], Unit::Seconds),
        (&SIZES[..], Unit::Bytes),
        (&MEMORY[..], Unit::Bytes),
    ] {
        for (measure, words) in measures {
            let points = series(&dimension.points, measure);
            let (Some(first), Some(last)) = (points.first(), points.last()) else {
                continue;
            };
            let fit = dimension.fit(measure);
            let number =
                |of: fn(&Fit) -> f64| fit.map_or("-".into(), |fit| format!("{:.2}", of(fit)));
            rows.push([
                (*words).to_owned(),
                kind.show(first.1),
                kind.show(last.1),
                kind.show(last.1 / last.0),
                number(|fit| fit.exponent),
                number(|fit| fit.last_exponent),
                fit.map_or("-".into(), |fit| format!("{:.0} %", fit.residual_percent)),
                fit.map_or("-", |fit| fit.growth.name()).to_owned(),
            ]);
        }
    }
    output::table(head, 1, &rows)
}

#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Bytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds => duration(value),
            Unit::Bytes if value < 1024.0 => format!("{} B", significant(value)),
            Unit::Bytes => output::bytes(value as u64),
        }
    }
}

/// A time in a unit that fits.
fn duration(seconds: f64) -> String {
    let units = [
        (172_800.0, 86_400.0, "days"),
        (7200.0, 3600.0, "h"),
        (120.0, 60.0, "min"),
        (1.0, 1.0, "s"),
        (1e-3, 1e-3, "ms"),
    ];
    let unit = units.iter().find(|(from, _, _)| seconds >= *from);
    let (_, one, name) = unit.copied().unwrap_or((0.0, 1e-6, "us"));
    format!("{} {name}", significant(seconds / one))
}

/// What is extrapolated: measure, and the kind of store whose growth is gone by.
const LARGE: [(Kind, f64, &str); 2] = [
    (Kind::Files, LARGE_STORE / FILE, "files"),
    (
        Kind::Bytes,
        LARGE_STORE / EXTENT as f64,
        "extents of 128 KiB",
    ),
];

/// The pace of the largest stores, continued.
fn extrapolation(results: &Results) -> String {
    let mut rows = Vec::new();
    for (kind, items, words) in LARGE {
        let of_kind = results.dimensions.iter().find(|d| d.kind == kind);
        let Some(dimension) = of_kind else {
            continue;
        };
        let all = TIMES.iter().map(|m| (m, Unit::Seconds));
        let all = all.chain(SIZES.iter().chain(&MEMORY).map(|m| (m, Unit::Bytes)));
        for ((measure, what), unit) in all {
            let last = series(&dimension.points, measure).last().copied();
            if let (Some(fit), Some(last)) = (dimension.fit(measure), last) {
                rows.push([
                    format!("{} {words}", grouped(items as u64)),
                    (*what).to_owned(),
                    unit.show(fit.extrapolate(last, items)),
                    format!("{:.0}", items / last.0),
                ]);
            }
        }
    }
    if rows.is_empty() {
        return "Not extrapolated: that takes two sizes of small files or of large ones.\n".into();
    }
    let head = [
        "a store of",
        "",
        "extrapolated",
        "times the largest measured",
    ];
    output::table(head, 2, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        let times = [2.5e-6, 0.002, 1.5, 130.0, 9000.0, 1e6].map(duration);
        assert_eq!(
            times,
            [
                "2.50 us",
                "2.00 ms",
                "1.50 s",
                "2.17 min",
                "2.50 h",
                "11.6 days"
            ]
        );
    }

    #[test]
    fn growth_is_fitted_where_values_are_and_nowhere_else() {
        let point = |count: u64| Point {
            count,
            seconds: 1.0,
            values: [
                ("create".to_owned(), count as f64 * 1e-5),
                ("index_bytes".to_owned(), 0.0),
            ]
            .into(),
        };
        let dimension = Dimension::new(Kind::Files, vec![point(10), point(1000)], None);
        assert_eq!(dimension.fits.len(), 1);
        assert!((dimension.fit("create").unwrap().exponent - 1.0).abs() < 1e-9);
        let table = table(&dimension);
        assert!(
            table.contains("linear") && table.contains("| index "),
            "{table}"
        );
    }
}
