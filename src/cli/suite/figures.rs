//! The results as figures: sizes of every class in every form, and speeds of every file system.

use std::path::Path;

use super::report::{self, Results};
use super::rivals::RivalRow;
use super::speeds::Speeds;
use crate::cli::plot_bars::{Bar, BarFigure, BarPanel};
use crate::exit::{Context, Outcome};

/// Name of ours in tables and figures.
pub const OWN: &str = "s2sfs";

/// Directory of figures beside a document or the results.
pub const PLOTS: &str = "plots";

/// File names and titles of the figures.
pub const FIGURES: [(&str, &str); 2] = [
    ("bench-sizes.svg", "Bytes stored per byte, class by class"),
    ("bench-speeds.svg", "Speeds, class by class"),
];

/// Writes all figures into `plots/` below `dir`.
pub fn write(results: &Results, dir: &Path) -> Outcome<()> {
    let plots = dir.join(PLOTS);
    std::fs::create_dir_all(&plots).context(plots.display())?;
    let figures = [sizes(results), speeds(results)];
    for ((name, _), figure) in FIGURES.iter().zip(figures) {
        let svg = figure.svg(&report::significant).context("drawing")?;
        let path = plots.join(name);
        std::fs::write(&path, svg).context(path.display())?;
    }
    Ok(())
}

/// Links to the figures, for a document beside `plots/`.
pub fn links() -> String {
    let link = |(name, title): &(&str, &str)| format!("![{title}]({PLOTS}/{name})\n");
    FIGURES.iter().map(link).collect::<Vec<_>>().join("\n")
}

/// What the files of a class take, in percent of their bytes: ours, other file systems, and programs.
fn sizes(results: &Results) -> BarFigure {
    let percent = |stored: u64, raw: u64| 100.0 * stored as f64 / raw.max(1) as f64;
    let panel = |class: &super::classes::ClassResult| {
        let mut bars = vec![Bar {
            name: OWN.into(),
            value: Some(percent(class.stored_bytes, class.raw_bytes)),
            own: true,
        }];
        bars.extend(others(results, &class.class).map(|row| {
            Bar {
                name: row.system.clone(),
                value: row
                    .stored_bytes
                    .map(|stored| percent(stored, row.raw_bytes)),
                own: false,
            }
        }));
        let programs = results.programs.iter();
        bars.extend(
            programs
                .filter(|row| row.class == class.class)
                .map(|row| Bar {
                    name: format!("{}, one stream", row.program),
                    value: row.whole_bytes.map(|whole| percent(whole, row.raw_bytes)),
                    own: false,
                }),
        );
        BarPanel {
            title: format!("{}: stored, % of the bytes of the files", class.class),
            bars,
            logarithmic: false,
        }
    };
    BarFigure {
        columns: 2,
        panels: results.classes.iter().map(panel).collect(),
    }
}

fn others<'a>(results: &'a Results, class: &str) -> impl Iterator<Item = &'a RivalRow> {
    let class = class.to_owned();
    let rows = results.rivals.iter();
    rows.filter(move |row| row.class == class)
}

/// What is shown of the speeds.
type Speed = (&'static str, fn(&Speeds) -> f64);
const SPEEDS: [Speed; 4] = [
    ("cold sequential read, MB/s", |s| s.cold_read_mb_per_second),
    ("cold random 4 KiB read, median ms", |s| {
        s.random_read_ms_median
    }),
    ("hot read, MB/s", |s| s.hot_read_mb_per_second),
    ("look-up, us", |s| s.look_up_us),
];

/// A row of panels for each class.
fn speeds(results: &Results) -> BarFigure {
    let mut panels = Vec::new();
    for class in &results.classes {
        for (what, of) in SPEEDS {
            let bar = |name: &str, speeds: Option<&Speeds>| Bar {
                name: name.to_owned(),
                value: speeds.map(of),
                own: name == OWN,
            };
            let rows = others(results, &class.class);
            let bars = rows.map(|row| bar(&row.system, row.speeds.as_ref()));
            panels.push(BarPanel {
                title: format!("{}: {what} (logarithmic)", class.class),
                bars: std::iter::once(bar(OWN, Some(&class.speeds)))
                    .chain(bars)
                    .collect(),
                logarithmic: true,
            });
        }
    }
    BarFigure { columns: 2, panels }
}
