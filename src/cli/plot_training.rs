//! `s2sfs plot-training`: what training with latents did, as a figure.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::output;
use super::plot::{Figure, Line as Curve, Panel, SERIES_MAX, Stroke};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::train::s2s::S2sError;
use crate::train::s2s::log::{self, Line};

#[derive(Debug, Args)]
pub struct PlotArguments {
    /// Logs of `train --s2s` (log.csv), at most 8
    #[arg(required = true, num_args = 1..=SERIES_MAX)]
    logs: Vec<PathBuf>,
    /// SVG to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// What a curve shows of a line of the log.
type Value = fn(&Line) -> f64;

/// Panels with their curves.
const PANELS: [(&str, &[(Stroke, Value)]); 6] = [
    ("reward of a string", &[(Stroke::Plain, |line| line.reward)]),
    (
        "latents of a string",
        &[(Stroke::Plain, |line| line.latents)],
    ),
    (
        "entropy of an action, nats",
        &[(Stroke::Plain, |line| line.entropy)],
    ),
    (
        "bits of a string",
        &[(Stroke::Plain, |line| line.latent_bits)],
    ),
    (
        "bits per byte: in all (bold), left to code, without (faint)",
        &[
            (Stroke::Faint, |line| line.without),
            (Stroke::Plain, |line| line.residual),
            (Stroke::Bold, |line| line.total),
        ],
    ),
    (
        "saved of what it takes without, in all, %",
        &[(Stroke::Plain, |line| {
            100.0 * (1.0 - line.total / line.without.max(1e-9))
        })],
    ),
];

pub fn run(arguments: &PlotArguments) -> Outcome<()> {
    let logs = arguments.logs.iter().map(|path| match log::read(path) {
        Ok(lines) if lines.is_empty() => {
            Err(Failure::usage(format!("{}: no lines yet", path.display())))
        }
        Ok(lines) => Ok((path.display().to_string(), lines)),
        Err(error @ S2sError::File { .. }) => Err(Failure::usage(error)),
        Err(error) => Err(Failure::new(Exit::Failed, error)),
    });
    let logs = logs.collect::<Outcome<Vec<_>>>()?;
    let svg = figure(&logs).svg().context("drawing")?;
    let target = &arguments.output;
    output::replace(target, |file| file.write_all(svg.as_bytes())).context(target.display())
}

fn figure(logs: &[(String, Vec<Line>)]) -> Figure {
    let panels = PANELS.iter().map(|(title, curves)| {
        let of_log = |(series, (_, lines)): (usize, &(String, Vec<Line>))| {
            let curve = |(stroke, value): &(Stroke, Value)| Curve {
                series,
                stroke: *stroke,
                points: lines
                    .iter()
                    .map(|line| (line.step as f64, value(line)))
                    .collect(),
            };
            curves.iter().map(curve).collect::<Vec<_>>()
        };
        Panel {
            title: (*title).to_owned(),
            lines: logs.iter().enumerate().flat_map(of_log).collect(),
            shades: logs.iter().enumerate().filter_map(copying).collect(),
        }
    });
    Figure {
        x: "step (shaded: copying)".into(),
        legend: logs.iter().map(|(name, _)| name.clone()).collect(),
        panels: panels.collect(),
        logarithmic: false,
    }
}

/// The steps that a log has copied for; None if it never did.
fn copying(
    (series, (_, lines)): (usize, &(String, Vec<Line>)),
) -> Option<(usize, std::ops::Range<f64>)> {
    let first = lines.first().filter(|line| !line.rewarded)?;
    let rewarded = lines.iter().find(|line| line.rewarded);
    let end = rewarded.or(lines.last())?;
    Some((series, first.step as f64..end.step as f64))
}
