//! Charts as SVG documents, of bars and of histograms of time.

use plotters::prelude::*;

use crate::cli::output::micros;
use crate::cli::plot::{Area, DrawResult, colour, font, mesh};
use crate::control::Latency;
use crate::volume::printable;

const WIDTH: u32 = 560;
const ROW: i32 = 26;
const HEAD: i32 = 34;
/// Where bars begin and where the longest one ends.
const BARS: (i32, i32) = (130, 430);
const NAME_MAX: usize = 16;
const LINES_HEIGHT: u32 = 300;

/// One row of a chart: a name, and bars below each other with what is written beside them.
pub struct Bars {
    pub name: String,
    pub bars: Vec<(f64, String)>,
}

impl Bars {
    pub fn one(name: &str, value: f64, text: String) -> Bars {
        Bars {
            name: name.to_owned(),
            bars: vec![(value, text)],
        }
    }
}

/// A chart of bars that begin at zero, all at one scale.
///
/// # Errors
/// If the library cannot draw it.
pub fn bars(title: &str, rows: &[Bars]) -> Result<String, String> {
    let lines = rows.iter().map(|row| row.bars.len() as i32);
    let height = HEAD + 10 + lines.sum::<i32>().max(1) * ROW;
    draw(height as u32, |root| draw_bars(root, title, rows))
}

/// How times are distributed: for each kind of work the share of its times by how long they took.
///
/// # Errors
/// If the library cannot draw it.
pub fn times(title: &str, kinds: &[(&str, &Latency)]) -> Result<String, String> {
    draw(LINES_HEIGHT, |root| draw_times(root, title, kinds))
}

fn draw(height: u32, body: impl FnOnce(&Area) -> DrawResult) -> Result<String, String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
    body(&root)
        .and_then(|()| root.present())
        .map_err(|error| error.to_string())?;
    drop(root);
    Ok(text)
}

fn draw_bars(root: &Area, title: &str, rows: &[Bars]) -> DrawResult {
    root.draw(&Text::new(title.to_owned(), (8, 8), font(15)))?;
    let values = rows.iter().flat_map(|row| &row.bars).map(|bar| bar.0);
    let most = values.fold(0.0, f64::max);
    if most <= 0.0 {
        return root.draw(&Text::new("nothing yet", (8, HEAD + 4), font(12)));
    }
    let mut y = HEAD;
    for row in rows {
        root.draw(&Text::new(short(&row.name), (8, y + 4), font(12)))?;
        for (bar, (value, text)) in row.bars.iter().enumerate() {
            let length = (value / most * f64::from(BARS.1 - BARS.0)).round() as i32;
            let corners = [(BARS.0, y + 2), (BARS.0 + length.max(1), y + ROW - 6)];
            let colour = colour(bar);
            root.draw(&Rectangle::new(corners, colour.filled()))?;
            let place = (BARS.0 + length.max(1) + 6, y + 4);
            root.draw(&Text::new(text.clone(), place, font(12)))?;
            y += ROW;
        }
    }
    Ok(())
}

fn draw_times(root: &Area, title: &str, kinds: &[(&str, &Latency)]) -> DrawResult {
    let curves: Vec<(&str, Vec<(f64, f64)>)> = kinds
        .iter()
        .filter(|(_, latency)| latency.count > 0)
        .map(|(name, latency)| (*name, shares(latency)))
        .collect();
    if curves.is_empty() {
        root.draw(&Text::new(title.to_owned(), (8, 8), font(15)))?;
        return root.draw(&Text::new("nothing was timed", (8, HEAD + 4), font(12)));
    }
    let points = || curves.iter().flat_map(|(_, points)| points);
    let longest = points().map(|point| point.0).fold(10.0, f64::max);
    let most = points().map(|point| point.1).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(root)
        .caption(title, font(15))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d((1.0..longest).log_scale(), 0.0..most * 1.05)?;
    mesh(&mut chart)
        .x_desc("up to")
        .y_desc("% of the times")
        .x_label_formatter(&|time| micros(*time as u64))
        .y_label_formatter(&|share| format!("{share:.0}"))
        .draw()?;
    for (number, (name, points)) in curves.iter().enumerate() {
        let colour = colour(number);
        let style = colour.stroke_width(2);
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        let place = (WIDTH as i32 - 130, HEAD + 18 * number as i32);
        let name = name.replace('_', " ");
        root.draw(&Text::new(name, place, font(12).color(&colour)))?;
    }
    Ok(())
}

/// The share of the times, in percent, up to each power of two of microseconds.
fn shares(latency: &Latency) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (end, count) in &latency.buckets {
        let bound = end.checked_next_power_of_two().unwrap_or(1 << 63) as f64;
        let share = *count as f64 * 100.0 / latency.count.max(1) as f64;
        match points.last_mut() {
            Some(last) if last.0 == bound => last.1 += share,
            Some(last) => {
                // The empty ones in between are at zero.
                let (mut next, mut empty) = (last.0 * 2.0, Vec::new());
                while next < bound {
                    empty.push((next, 0.0));
                    next *= 2.0;
                }
                points.extend(empty);
                points.push((bound, share));
            }
            None => {
                points.extend([(bound / 2.0, 0.0), (bound, share)].map(|(x, y)| (x.max(1.0), y)));
            }
        }
    }
    points.extend(points.last().map(|last| (last.0 * 2.0, 0.0)));
    points
}

/// A name that fits, without what XML cannot hold.
fn short(name: &str) -> String {
    let name = printable(name);
    match name.chars().count() {
        0..=NAME_MAX => name,
        _ => name.chars().take(NAME_MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).unwrap();
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let texts = document.descendants().filter(|node| node.is_text());
        texts
            .filter_map(|node| node.text())
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
            .collect()
    }

    #[test]
    fn bars_carry_their_names_and_values_and_keep_the_scale() {
        let rows = [
            Bars::one("<b>&\"'", 4.0, "4.00".into()),
            Bars::one(
                "a name of too many letters",
                1.0,
                "1 \u{7}".replace('\u{7}', ""),
            ),
        ];
        let svg = bars("ratio", &rows).unwrap();
        let words = words(&svg);
        assert!(words.contains(&"<b>&\"'".to_owned()), "{words:?}");
        assert!(words.contains(&"a name of too m…".to_owned()), "{words:?}");
        let document = roxmltree::Document::parse(&svg).unwrap();
        let widths: Vec<f64> = document
            .descendants()
            .filter(|node| node.has_tag_name("rect"))
            .map(|node| node.attribute("width").unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths, [300.0, 75.0]);
        assert!(self::words(&bars("empty", &[]).unwrap()).contains(&"nothing yet".to_owned()));
    }

    #[test]
    fn times_are_shares_that_add_up() {
        let latency = Latency {
            count: 8,
            buckets: vec![(3, 2), (4, 2), (40, 4)],
            ..Latency::default()
        };
        let points = shares(&latency);
        assert_eq!(
            points,
            [
                (2.0, 0.0),
                (4.0, 50.0),
                (8.0, 0.0),
                (16.0, 0.0),
                (32.0, 0.0),
                (64.0, 50.0),
                (128.0, 0.0)
            ]
        );
        let svg = times(
            "times",
            &[("fsync", &latency), ("write", &Latency::default())],
        )
        .unwrap();
        let words = words(&svg);
        assert!(words.contains(&"fsync".to_owned()), "{words:?}");
        assert!(!words.contains(&"write".to_owned()));
        let last = Latency {
            count: 1,
            buckets: vec![(u64::MAX, 1)],
            ..Latency::default()
        };
        assert!(times("times", &[("a", &last)]).is_ok());
        self::words(&times("times", &[]).unwrap());
    }
}
